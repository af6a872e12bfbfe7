"""The simulation: random workloads, faults, and limits, one seed after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .simulation import simulate

SEEDS = 200
CHUNK = 20


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_nothing_wrong_happens_and_everything_comes_to_rest(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate(seed)


def test_actors_are_created_called_found_killed_and_restarted() -> None:
    """The workload is drawn: what never happens in it is not tested."""
    lines = [line for seed in range(40) for line in simulate(seed, trace=True).lines]
    for what in ("becomes actor", "incarnation 2", "runs call", "GetActor", "KillActor", "ActorOutOfScope", "RESTARTING"):
        assert any(what in line for line in lines), what


def fingerprints(hash_seed: str) -> str:
    program = (
        "from tests.sim.simulation import simulate\n"
        "print([simulate(seed).fingerprint() for seed in (3, 17, 40)])"
    )
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environ, capture_output=True, text=True, check=True
    )
    return run.stdout


def test_one_seed_is_one_history_whatever_the_hashes() -> None:
    assert fingerprints("1") == fingerprints("2")


def test_a_seed_can_be_read() -> None:
    world = simulate(1, trace=True)
    assert any("RequestLease" in line for line in world.lines) and any("runs" in line for line in world.lines)
