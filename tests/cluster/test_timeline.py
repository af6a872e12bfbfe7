"""What ran when."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import zray as ray

pytestmark = pytest.mark.usefixtures("cluster")


@ray.remote
def timed() -> tuple[float, float]:
    return time.monotonic(), time.monotonic()


@ray.remote
def whereabouts(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def named(name: str) -> list[dict[str, Any]]:
    return [event for event in ray.timeline() or () if event["name"] == name]


def test_each_task_that_ran_is_shown_once_with_its_times() -> None:
    spans = ray.get([timed.remote() for _ in range(10)])
    events = named("timed")
    assert len(events) == 10
    for begun, ended in spans:
        assert any(event["ts"] <= begun * 1e6 and ended * 1e6 <= event["ts"] + event["dur"] for event in events)


def test_a_file_that_the_viewers_of_browsers_read(tmp_path: Path) -> None:
    ray.get(timed.remote())
    assert ray.timeline(str(tmp_path / "trace.json")) is None
    events = json.loads((tmp_path / "trace.json").read_text())
    assert {"name", "cat", "ph", "ts", "dur", "pid", "tid"} <= set(events[0])
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)


@pytest.mark.processes("it stops one")
def test_a_worker_that_gives_no_answer_is_left_out() -> None:
    one, two = ray.get([whereabouts.remote(0.3), whereabouts.remote(0.3)])
    os.kill(one, signal.SIGSTOP)
    try:
        events = named("whereabouts")
    finally:
        os.kill(one, signal.SIGCONT)
    assert {event["tid"] for event in events} == {f"worker:{two}"}
