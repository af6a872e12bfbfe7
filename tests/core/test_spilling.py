"""SpillFiles: directories in turn, a rest for those that fail, and files that go with the last object in them."""

from __future__ import annotations

from typing import Any

import pytest

from zray.core.effects import DELETE_FILE
from zray.core.spilling import SPILL_TIMER, SpillFiles
from zray.exceptions import InvariantError

from .reading import drain, timers, verbs


def files(*directories: str) -> tuple[SpillFiles, list[Any]]:
    out: list[Any] = []
    return SpillFiles(list(directories), 2.0, out), out


def test_directories_are_used_in_turn() -> None:
    spills, _ = files("/a", "/b", "/c")
    assert [spills.choose() for _ in range(5)] == [0, 1, 2, 0, 1]


def test_without_directories_there_is_none_to_choose() -> None:
    spills, _ = files()
    assert spills.choose() is None and spills.local() is None and not spills.has_local()


def test_a_directory_that_failed_rests_until_its_timer() -> None:
    spills, out = files("/a", "/b")
    spills.on_failed(5.0, 0, "no space")
    assert timers(drain(out)) == [(7.0, (SPILL_TIMER, 0))]
    assert [spills.choose() for _ in range(3)] == [1, 1, 1]
    spills.on_failed(5.5, 0, "another file was under way")
    assert drain(out) == [], "it rests already"
    spills.on_rested(0)
    assert {spills.choose(), spills.choose()} == {0, 1}


def test_when_all_failed_there_is_none_and_the_reason_is_known() -> None:
    spills, _ = files("/a", "s3://b")
    spills.on_failed(0.0, 0, "first")
    assert spills.choose() == 1
    spills.on_failed(0.0, 1, "second")
    assert spills.choose() is None and spills.reason == "second"
    spills.on_rested(1)
    assert spills.choose() == 1


def test_only_directories_of_this_machine_serve_for_objects_used_on_disk() -> None:
    spills, _ = files("memory://x", "/a", "/b")
    assert [spills.local() for _ in range(4)] == ["/a", "/b", "/a", "/b"]
    spills.on_failed(0.0, 1, "gone")
    assert spills.local() == "/b"
    spills.on_failed(0.0, 2, "gone")
    assert spills.local() is None and spills.choose() == 0


def test_a_file_that_a_client_could_not_write_turns_it_to_the_other_directories() -> None:
    spills, out = files("/a", "/ab")
    spills.avoid(1.0, "/ab/x.object", "no space")
    assert timers(drain(out)) == [(3.0, (SPILL_TIMER, 1))]
    assert spills.local() == "/a"


def test_the_only_directory_does_not_rest_because_one_object_is_too_large_for_it() -> None:
    spills, out = files("/a")
    spills.avoid(1.0, "/a/x.object", "no space")
    assert drain(out) == [] and spills.local() == "/a"


def test_a_file_is_deleted_with_its_last_object() -> None:
    spills, out = files("/a")
    for path in ("/a/1", "/a/1", "/a/2"):
        spills.keep(path)
        spills.check()
    spills.drop("/a/1")
    assert drain(out) == []
    spills.drop("/a/1")
    assert verbs(drain(out), DELETE_FILE) == [("/a/1",)]
    spills.drop("/a/2")
    assert verbs(drain(out), DELETE_FILE) == [("/a/2",)]
    assert spills.live == {}


def test_check_finds_a_file_that_nobody_needs() -> None:
    spills, _ = files("/a")
    spills.live["/a/1"] = 0
    with pytest.raises(InvariantError, match="for nothing"):
        spills.check()
