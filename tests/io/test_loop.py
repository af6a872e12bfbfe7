"""The loop: one thread at a time turns it, the others sleep or take over, and nothing posted is ever forgotten."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from zray.io.loop import Loop

PATIENCE_S = 30.0


class Waiter:
    """What a thread waits for."""

    def __init__(self) -> None:
        self.done = False
        self.signal: Any = None

    def finish(self) -> None:
        """In the loop."""
        self.done = True
        if self.signal is not None:
            try:
                self.signal.release()
            except RuntimeError:
                return


class Pipe:
    """A source that counts what it reads."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self.got = b""

    def fileno(self) -> int:
        return self.read

    def on_readable(self) -> None:
        self.got += os.read(self.read, 100)

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class Bench:
    """A loop whose inbox takes callables, and which notes in which threads it turned."""

    def __init__(self) -> None:
        self.loop = Loop(0.002)
        self.loop.on_inbox = self._take
        self.loop.on_timer = lambda now, key: key()
        self.turned: dict[int, None] = {}
        self.inside = 0
        self.errors: list[BaseException] = []

    def _take(self, now: float) -> None:
        self.inside += 1
        assert self.inside == 1, "two threads turn the loop at once"
        self.turned[threading.get_ident()] = None
        while self.loop.inbox:
            self.loop.inbox.popleft()()
        self.inside -= 1

    def start(self) -> None:
        self.loop.run_in_thread("test-loop", self.errors.append)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.loop.stop()
    assert made.loop.acquire(PATIENCE_S)
    made.loop.close()


def test_a_waiting_thread_turns_the_loop_itself(bench: Bench) -> None:
    waiter = Waiter()
    bench.loop.post(waiter.finish)
    assert bench.loop.wait(waiter, PATIENCE_S)
    assert list(bench.turned) == [threading.get_ident()]


def test_what_is_posted_is_taken_though_nobody_waits(bench: Bench) -> None:
    bench.start()
    done = threading.Event()
    bench.loop.post(done.set)
    assert done.wait(PATIENCE_S)


def test_a_wait_that_is_over_before_it_begins(bench: Bench) -> None:
    waiter = Waiter()
    waiter.done = True
    assert bench.loop.wait(waiter)
    assert bench.loop.wait(waiter, 0.0)


@pytest.mark.parametrize("threaded", [False, True])
def test_a_wait_ends_with_its_time(bench: Bench, threaded: bool) -> None:
    if threaded:
        bench.start()
    waiter = Waiter()
    assert not bench.loop.wait(waiter, 0.0)
    assert not bench.loop.wait(waiter, 0.01)
    bench.loop.post(waiter.finish)
    assert bench.loop.wait(waiter, PATIENCE_S)


def test_eight_threads_wait_and_each_is_served(bench: Bench) -> None:
    bench.start()
    results: list[bool] = []

    def work() -> None:
        for _ in range(200):
            waiter = Waiter()
            bench.loop.post(waiter.finish)
            results.append(bench.loop.wait(waiter, PATIENCE_S))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 1600
    assert bench.errors == []


def test_a_follower_takes_over_when_the_driver_leaves(bench: Bench) -> None:
    """Without a loop thread: the second can only be served by turning the loop itself."""
    first, second = Waiter(), Waiter()
    served: list[bool] = []
    threads = [
        threading.Thread(target=lambda waiter=waiter: served.append(bench.loop.wait(waiter, PATIENCE_S)))
        for waiter in (first, second)
    ]
    for thread in threads:
        thread.start()
    bench.loop.post(first.finish)
    threads[0].join()
    bench.loop.post(second.finish)
    threads[1].join()
    assert served == [True, True]


def test_a_follower_whose_time_is_short_does_not_wait_for_the_driver(bench: Bench) -> None:
    long = Waiter()
    driver = threading.Thread(target=lambda: bench.loop.wait(long, PATIENCE_S))
    driver.start()
    assert not bench.loop.wait(Waiter(), 0.01)
    bench.loop.post(long.finish)
    driver.join()


def test_sources_are_read_and_can_be_removed(bench: Bench) -> None:
    pipe = Pipe()
    try:
        bench.loop.add_source(pipe)
        os.write(pipe.write, b"one")
        bench.loop.turn(0.0)
        assert pipe.got == b"one"
        bench.loop.remove_source(pipe)
        os.write(pipe.write, b"two")
        bench.loop.turn(0.0)
        assert pipe.got == b"one"
    finally:
        pipe.close()


def test_a_source_that_removes_another_while_both_can_be_read(bench: Bench) -> None:
    first, second = Pipe(), Pipe()

    def each_removes_the_other(me: Pipe, other: Pipe) -> Any:
        def on_readable() -> None:
            me.got = b"read"
            bench.loop.remove_source(other)

        return on_readable

    try:
        for me, other in ((first, second), (second, first)):
            me.on_readable = each_removes_the_other(me, other)  # type: ignore[method-assign]
            bench.loop.add_source(me)
            os.write(me.write, b"x")
        bench.loop.turn(0.0)
        assert sorted([first.got, second.got]) == [b"", b"read"]
    finally:
        first.close()
        second.close()


def test_a_source_is_not_starved_by_a_busy_inbox(bench: Bench) -> None:
    pipe = Pipe()
    try:
        bench.loop.add_source(pipe)
        os.write(pipe.write, b"x")

        def again() -> None:
            if not pipe.got and turns[0] < 1000:
                bench.loop.inbox.append(again)

        turns = [0]
        bench.loop.inbox.append(again)
        while bench.loop.inbox:
            turns[0] += 1
            bench.loop.on_inbox = lambda now: bench.loop.inbox.popleft()()
            bench.loop.turn(None)
        assert pipe.got == b"x"
        assert turns[0] < 1000
    finally:
        bench.loop.remove_source(pipe)
        pipe.close()


def test_timers_fire_in_order_of_time_then_of_setting(bench: Bench) -> None:
    fired: list[int] = []
    waiter = Waiter()
    now = time.monotonic()
    for at, mark in ((0.004, 4), (0.001, 1), (0.002, 2), (0.002, 3), (-5.0, 0)):
        bench.loop.add_timer(now + at, lambda mark=mark: fired.append(mark))
    bench.loop.add_timer(now + 0.005, waiter.finish)
    assert bench.loop.wait(waiter, PATIENCE_S)
    assert fired == [0, 1, 2, 3, 4]


def test_a_timer_set_by_a_timer(bench: Bench) -> None:
    waiter = Waiter()
    bench.loop.add_timer(0.0, lambda: bench.loop.add_timer(0.0, waiter.finish))
    assert bench.loop.wait(waiter, PATIENCE_S)


def test_posts_without_end_from_many_threads_are_all_taken(bench: Bench) -> None:
    bench.start()
    counts = [0]

    def count() -> None:
        counts[0] += 1

    def work() -> None:
        for _ in range(5000):
            bench.loop.post(count)
            bench.loop.maybe_turn()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waiter = Waiter()
    bench.loop.post(waiter.finish)
    assert bench.loop.wait(waiter, PATIENCE_S)
    assert counts == [20_000]


def test_a_wait_inside_the_loop_is_an_error_and_not_a_deadlock(bench: Bench) -> None:
    caught: list[BaseException] = []
    waiter = Waiter()

    def careless() -> None:
        try:
            bench.loop.wait(Waiter(), PATIENCE_S)
        except RuntimeError as error:
            caught.append(error)
        waiter.finish()

    bench.loop.post(careless)
    assert bench.loop.wait(waiter, PATIENCE_S)
    assert "must not block" in str(caught[0])


def test_stop_releases_everybody_who_waits(bench: Bench) -> None:
    bench.start()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(bench.loop.wait(Waiter()))) for _ in range(5)]
    for thread in threads:
        thread.start()
    bench.loop.stop()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert results == [False] * 5
    assert not bench.loop.wait(Waiter())


def test_who_is_about_to_follow_when_the_loop_stops_does_not_wait_for_ever() -> None:
    loop = Loop(0.002)

    class Late(Waiter):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "signal" and value is not None:
                loop.stop()

    assert loop.acquire(PATIENCE_S)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(loop.wait(Late())), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert results == [False]
    loop.close()


def test_a_loop_that_fails_tells_it(bench: Bench) -> None:
    def broken() -> None:
        raise LookupError

    bench.start()
    bench.loop.post(broken)
    deadline = time.monotonic() + PATIENCE_S
    while not bench.errors and time.monotonic() < deadline:
        time.sleep(0.001)
    assert isinstance(bench.errors[0], LookupError)


def test_an_interrupt_in_a_wait_is_raised_when_the_turn_is_complete(bench: Bench) -> None:
    previous = signal.signal(signal.SIGINT, bench.loop.on_interrupt)
    complete: list[bool] = []

    def interrupted_half_way() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
        complete.append(True)

    try:
        bench.loop.post(interrupted_half_way)
        with pytest.raises(KeyboardInterrupt):
            bench.loop.wait(Waiter(), PATIENCE_S)
        assert complete == [True]
        waiter = Waiter()
        bench.loop.post(waiter.finish)
        assert bench.loop.wait(waiter, PATIENCE_S)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_an_interrupt_while_another_thread_drives(bench: Bench) -> None:
    bench.start()
    previous = signal.signal(signal.SIGINT, bench.loop.on_interrupt)
    other = Waiter()
    driver = threading.Thread(target=lambda: bench.loop.wait(other, PATIENCE_S))
    driver.start()
    try:
        killer = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        killer.start()
        with pytest.raises(KeyboardInterrupt):
            bench.loop.wait(Waiter(), PATIENCE_S)
    finally:
        signal.signal(signal.SIGINT, previous)
        bench.loop.post(other.finish)
        driver.join()
        killer.join()


def test_a_nudge_that_comes_while_one_is_handled_is_left_to_that(bench: Bench, monkeypatch: Any) -> None:
    """The driver nudges in each turn; if it is quick enough it does so before the handler has returned."""
    loop, woken = bench.loop, []

    def wake() -> None:
        woken.append(None)
        loop.on_nudge(0, None)

    monkeypatch.setattr(loop, "wake", wake)
    monkeypatch.setattr(loop, "is_ours", lambda frame: True)
    loop.interrupted = True
    for count in (1, 2):
        loop.on_nudge(0, sys._getframe())
        assert len(woken) == count and loop.interrupted


def test_waking_a_loop_whose_pipe_is_full(bench: Bench) -> None:
    for _ in range(70_000):
        bench.loop.wake()
    waiter = Waiter()
    bench.loop.post(waiter.finish)
    assert bench.loop.wait(waiter, PATIENCE_S)


# -- who has Ctrl-C -------------------------------------------------------------------------------------------------------


@pytest.fixture
def usual_ctrl_c() -> Iterator[None]:
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_loop_takes_ctrl_c_and_gives_it_back(bench: Bench, usual_ctrl_c: None) -> None:
    assert bench.loop.catch_interrupts()
    assert signal.getsignal(signal.SIGINT) == bench.loop.on_interrupt
    bench.loop.release_interrupts()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_programs_own_is_left_in_place(bench: Bench, usual_ctrl_c: None) -> None:
    def own(number: int, frame: Any) -> None:
        """Set before the loop was, or after."""

    signal.signal(signal.SIGINT, own)
    assert not bench.loop.catch_interrupts()
    assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bench.loop.catch_interrupts()
    signal.signal(signal.SIGINT, own)
    bench.loop.release_interrupts()
    assert signal.getsignal(signal.SIGINT) is own


def closed_loop() -> Loop:
    """One that had Ctrl-C, and ended where that could not be given back: in another thread."""
    dead = Loop(0.002)
    assert dead.catch_interrupts()
    ending = threading.Thread(target=lambda: (dead.release_interrupts(), dead.stop(), dead.close()))
    ending.start()
    ending.join()
    assert signal.getsignal(signal.SIGINT) == dead.on_interrupt
    return dead


def test_a_loop_that_has_ended_keeps_ctrl_c_from_nobody(bench: Bench, usual_ctrl_c: None) -> None:
    closed_loop()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(PATIENCE_S)
    assert bench.loop.catch_interrupts(), "the next one takes it"
    assert signal.getsignal(signal.SIGINT) == bench.loop.on_interrupt


def test_a_loop_that_has_ended_writes_nowhere(usual_ctrl_c: None) -> None:
    dead = closed_loop()
    pipes = [os.pipe() for _ in range(4)]  # which have the numbers of its own
    dead.interrupted = True
    dead.on_nudge(0, None)
    dead.wake()
    for read, write in pipes:
        os.close(write)
        assert os.read(read, 1) == b""
        os.close(read)


def test_a_fork_of_a_program_has_ctrl_c_to_itself(bench: Bench, usual_ctrl_c: None) -> None:
    bench.loop.catch_interrupts()
    pid = os.fork()
    if pid == 0:
        os._exit(3 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert signal.getsignal(signal.SIGINT) == bench.loop.on_interrupt
