"""DeathWatch: everybody who asked hears of an end once, whether the process lived here or on another node."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base.ids import agent_id, process_id
from zray.base.wire import WatchProcess, WorkerDied
from zray.base.wire_nodes import ProcessGone
from zray.core.death_watch import DeathWatch
from zray.exceptions import InvariantError

from .reading import drain, sent

HERE, THERE = b"here-here-here--", b"there-there-ther"
ME, OTHER = agent_id(HERE), agent_id(THERE)
A, B, C = (process_id(HERE, bytes([0, 0, 0, n])) for n in (1, 2, 3))
X, Y = (process_id(THERE, bytes([0, 0, 0, n])) for n in (1, 2))


class Bench:
    def __init__(self) -> None:
        self.out: list[Any] = []
        self.known = [OTHER]
        self.deaths = DeathWatch(ME, self.out, lambda process: process in (A, B, C), lambda agent: agent in self.known)

    def watch(self, watcher: bytes, process: bytes) -> list[Any]:
        self.deaths.watch(watcher, process)
        self.deaths.check()
        return drain(self.out)

    def ended(self, process: bytes, reason: str = "gone") -> list[Any]:
        self.deaths.ended(process, reason)
        self.deaths.check()
        return drain(self.out)

    def watched(self) -> int:
        return self.deaths.statistics()["processes_watched"]


def test_all_who_asked_are_told_once() -> None:
    bench = Bench()
    for watcher in (A, B, A):
        assert bench.watch(watcher, C) == [], "a process of this node is seen by the agent itself"
    assert sent(bench.ended(C, "killed"), WorkerDied) == [(A, WorkerDied(C, "killed")), (B, WorkerDied(C, "killed"))]
    assert bench.ended(C) == [] and bench.watched() == 0


def test_nothing_is_told_to_the_dead() -> None:
    bench = Bench()
    bench.watch(A, C)
    bench.watch(B, C)
    assert bench.ended(A) == []
    assert [peer for peer, _ in sent(bench.ended(C), WorkerDied)] == [B]


def test_the_agent_of_another_node_is_asked_once_for_each_process() -> None:
    bench = Bench()
    assert sent(bench.watch(A, X), WatchProcess) == [(OTHER, WatchProcess(X))]
    assert bench.watch(B, X) == []
    assert sent(bench.watch(A, Y), WatchProcess) == [(OTHER, WatchProcess(Y))]
    assert [peer for peer, _ in sent(bench.ended(X), WorkerDied)] == [A, B]


def test_it_is_asked_again_when_nobody_was_left_to_tell() -> None:
    bench = Bench()
    bench.watch(A, X)
    bench.ended(A)
    assert sent(bench.watch(B, X), WatchProcess) == [(OTHER, WatchProcess(X))]


def test_an_agent_is_not_asked_about_itself() -> None:
    bench = Bench()
    assert bench.watch(A, OTHER) == []
    assert sent(bench.ended(OTHER, "its node is dead"), WorkerDied) == [(A, WorkerDied(OTHER, "its node is dead"))]


def test_another_agent_that_watches_hears_it_in_the_words_of_agents() -> None:
    bench = Bench()
    bench.watch(OTHER, A)
    bench.watch(B, A)
    effects = bench.ended(A, "killed")
    assert sent(effects, ProcessGone) == [(OTHER, ProcessGone(A, "killed"))]
    assert sent(effects, WorkerDied) == [(B, WorkerDied(A, "killed"))]


def test_the_agent_itself_watches_without_being_told() -> None:
    bench = Bench()
    assert sent(bench.watch(ME, X), WatchProcess) == [(OTHER, WatchProcess(X))]
    assert bench.ended(X) == [] and bench.watched() == 0


def test_who_asks_too_late_is_told_at_once() -> None:
    bench = Bench()
    bench.ended(X, "killed")
    assert sent(bench.watch(A, X), WorkerDied) == [(A, WorkerDied(X, "killed"))]
    assert bench.watch(ME, X) == [] and bench.watched() == 0
    stranger = process_id(HERE, b"gone")
    assert sent(bench.watch(A, stranger), WorkerDied) == [(A, WorkerDied(stranger, "it ended earlier"))]
    assert sent(bench.watch(A, ME), WorkerDied) == []  # who answers lives


def test_all_processes_of_a_dead_node_are_dead_those_too_that_nobody_had_met() -> None:
    bench = Bench()
    bench.ended(OTHER, "its node is dead")
    assert bench.deaths.is_dead(Y)
    assert sent(bench.watch(A, Y), WorkerDied) == [(A, WorkerDied(Y, "its node is dead"))] and bench.watched() == 0


@pytest.mark.parametrize("lives", [True, False])
def test_a_process_of_a_node_that_is_not_known_yet_is_watched_when_that_is_known(lives: bool) -> None:
    bench = Bench()
    bench.known.clear()
    assert bench.watch(A, X) == [] and bench.watch(B, X) == []
    bench.ended(B)
    if lives:
        bench.known.append(OTHER)
    else:
        bench.ended(OTHER, "its node is dead")
    bench.deaths.heard_of(OTHER)
    effects = drain(bench.out)
    assert sent(effects, WatchProcess) == ([(OTHER, WatchProcess(X))] if lives else [])
    assert sent(effects, WorkerDied) == ([] if lives else [(A, WorkerDied(X, "its node is dead"))])


def test_the_processes_of_a_node_are_those_that_watch_and_those_that_are_watched() -> None:
    bench = Bench()
    bench.watch(A, X)
    bench.watch(Y, B)
    bench.watch(A, C)
    assert sorted(bench.deaths.of_node(OTHER)) == [X, Y]
    assert sorted(bench.deaths.of_node(ME)) == [A, B, C]
    for process in bench.deaths.of_node(OTHER):
        bench.ended(process)
    assert bench.deaths.of_node(OTHER) == []


def test_a_watch_that_is_listed_on_one_side_only_is_noticed() -> None:
    bench = Bench()
    bench.watch(A, C)
    bench.deaths._watchers[C].pop(A)
    with pytest.raises(InvariantError, match="one side only"):
        bench.deaths.check()


_PROCESS = st.sampled_from([A, B, C, X, Y, OTHER])


@given(st.lists(st.one_of(st.tuples(_PROCESS, _PROCESS), _PROCESS), max_size=40))
def test_every_watch_is_answered_by_one_word_or_by_the_end_of_the_watcher(steps: list[Any]) -> None:
    bench = Bench()
    pairs: set[tuple[bytes, bytes]] = set()
    for step in steps:
        if isinstance(step, tuple):
            watcher, process = step
            if not bench.deaths.is_dead(watcher):  # agents do not listen to the dead
                told = [peer for peer, _ in sent(bench.watch(watcher, process), WorkerDied)]
                if bench.deaths.is_dead(process):
                    assert told == ([] if watcher == OTHER else [watcher])
                else:
                    pairs.add(step)
            continue
        effects = bench.ended(step)
        told = [peer for peer, _ in [*sent(effects, WorkerDied), *sent(effects, ProcessGone)]]
        assert sorted(told) == sorted(watcher for watcher, process in pairs if process == step and watcher != step)
        pairs = {pair for pair in pairs if step not in pair}
    assert bench.watched() == len({process for _, process in pairs})
