"""The simulation: random workloads, faults, and limits, one seed after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .scale import Scale
from .simulation import simulate

SEEDS = 200  # of which a third have one machine, the others up to four
CHUNK = 20
CLUSTERS = range(20)  # seeds that are looked at with three machines


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_nothing_wrong_happens_and_everything_comes_to_rest(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate(seed)


def test_actors_are_created_called_found_killed_and_restarted() -> None:
    """The workload is drawn: what never happens in it is not tested."""
    lines = [line for seed in range(20) for line in simulate(seed, trace=True).lines]
    for what in ("becomes actor", "incarnation 2", "runs call", "GetActor", "KillActor", "ActorOutOfScope", "RESTARTING"):
        assert any(what in line for line in lines), what


def test_nodes_die_stop_are_cut_off_and_come_back_and_objects_and_leases_go_between_them() -> None:
    """The faults are drawn too."""
    lines = [line for seed in CLUSTERS for line in simulate(seed, trace=True, machines=3).lines]
    happens = ["DIES", "FREEZES", "FREEZES, alone", "THAWS", "is GIVEN UP", "STOPS: the cluster had not heard"]
    happens += ["CUT OFF", "BREAKS"]
    says = ["LeaseRedirected", "RequestCopy", "CopyOffered", "on_fetched", "FreePrimaries", "ProcessGone", "FindCopies"]
    groups = ["CommitBundles", "ReturnBundles", "ClusterLoads"]
    for what in (*happens, *says, *groups):
        assert any(what in line for line in lines), what


def fingerprints(hash_seed: str) -> str:
    program = (
        "from tests.sim.simulation import simulate\n"
        "print([simulate(seed, machines=count).fingerprint() for seed, count in ((3, 1), (17, 3), (40, 4))])"
    )
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environ, capture_output=True, text=True, check=True
    )
    return run.stdout


def test_one_seed_is_one_history_whatever_the_hashes() -> None:
    assert fingerprints("1") == fingerprints("2")


def test_what_a_large_cluster_costs_can_be_measured() -> None:
    figures = Scale(30).run(0.5)
    assert figures.leases > 100 and figures.redirected > 0 and figures.rows > 0
    assert min(figures.decision_us, figures.lease_us, figures.view_ms, figures.control_ms) > 0


def test_a_seed_can_be_read() -> None:
    world = simulate(1, trace=True)
    assert any("RequestLease" in line for line in world.lines) and any("runs" in line for line in world.lines)
