"""explain(): why an object is not there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.util.state import explain

from .driving import PATIENCE_S, eventually
from .gates import Gate


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1)
    ray.put(0).future().result(30)
    yield
    ray.shutdown()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(str(tmp_path / "gate"))
    yield gate
    gate.open()


@ray.remote
def held(gate: Any, *arguments: Any) -> int:
    gate.passed()
    return os.getpid()


@ray.remote
def nested(refs: list[Any]) -> Any:
    return ray.get(refs[0])


@ray.remote(num_cpus=0)
class Holder:
    def __init__(self, gate: Any = None) -> None:
        if gate is not None:
            gate.passed()

    def hold(self, gate: Any) -> None:
        gate.passed()

    def pid(self) -> int:
        return os.getpid()


def test_what_is_there_says_where() -> None:
    assert "it is there, with its owner" in explain(ray.put(1))
    text = explain(ray.put(b"0" * 1_000_000))
    assert "bytes in the store of a node" in text and "is ALIVE" in text


def test_an_error_is_said_to_be_one() -> None:
    @ray.remote
    def fails() -> None:
        raise ValueError("no")

    ref = fails.remote()
    ray.wait([ref], timeout=PATIENCE_S)
    assert "its value is an error" in explain(ref)


def test_a_running_task_is_shown_with_its_time_and_line_and_others_behind_it(gate: Gate) -> None:
    runs = held.remote(gate)
    gate.wait_for(1)
    waits = held.options(num_cpus=0.5).remote(gate)
    needs = held.remote(gate, waits, runs)
    text = explain(runs)
    assert f"held() (task {runs.hex()[:32]}) was sent to a worker; it runs for " in text and "at gates.py:" in text
    text = eventually(lambda: explain(waits) if "is queued" in explain(waits) else "", "a place in the queue")
    assert "it asks for 0.5 CPU, where 0 CPU is free; 1 leases are held" in text
    first, *others = explain(needs).splitlines()
    assert "waits for 2 of its arguments" in first and len(others) == 2 and all(line.startswith("  ") for line in others)
    assert others[0].strip().startswith(waits.hex()) and "it runs for" in others[1]
    gate.open()
    ray.get([runs, waits, needs], timeout=PATIENCE_S)


def test_a_task_that_waits_in_get_and_a_borrowed_reference(gate: Gate) -> None:
    runs = held.remote(gate)
    gate.wait_for(1)
    waits = nested.options(num_cpus=0).remote([runs])
    eventually(lambda: "waiting in zray's get()" in explain(waits), "the wait in get")

    @ray.remote(num_cpus=0)
    def look(refs: list[Any]) -> str:
        return explain(refs[0])

    assert "held()" in ray.get(look.remote([runs]), timeout=PATIENCE_S), "its owner was asked"
    gate.open()
    ray.get(waits, timeout=PATIENCE_S)


def test_what_no_node_can_run_says_what_is_missing_and_until_when() -> None:
    ref = held.options(num_gpus=3).remote(None)
    text = eventually(lambda: explain(ref) if "No node" in explain(ref) else "", "the refusal")
    assert "it asks for 3 GPU" in text and "it fails in " in text


def test_calls_say_what_their_actor_does(gate: Gate) -> None:
    actor = Holder.remote()
    runs, waits = actor.hold.remote(gate), actor.hold.remote(gate)
    gate.wait_for(1)
    assert "the call Holder.hold()" in explain(runs) and "it runs for " in explain(runs)
    assert "number 1 of those that wait" in explain(waits) and "behind Holder.hold()" in explain(waits)
    starting = Holder.remote(gate).hold.remote(gate)
    assert "waits here for the actor; actor Holder" in explain(starting)
    eventually(lambda: "PENDING_CREATION" in explain(starting), "the constructor begun")
    homeless = Holder.options(num_cpus=50).remote().hold.remote(gate)
    eventually(lambda: "50 CPU" in explain(homeless), "the reason of the actor")
    gate.open()
    ray.get([runs, waits, starting], timeout=PATIENCE_S)


def test_who_gives_no_answer_is_named(gate: Gate) -> None:
    actor = Holder.remote()
    pid = ray.get(actor.pid.remote(), timeout=PATIENCE_S)
    call = actor.hold.remote(gate)
    gate.wait_for(1)
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "the stop")
        text = explain(call)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "gives no answer" in text and "is ALIVE" in text
    gate.open()
    ray.get(call, timeout=PATIENCE_S)


def test_an_object_that_was_dropped_is_not_known() -> None:
    ref = ray.put(1)
    other = type(ref)(ref.binary()[:-1] + b"\x05", ref.owner, lambda object_id: None)
    assert "does not know it any more" in explain(other)
