"""Generators at their owner: items that come, are taken, dropped, lost and made again, and the word about room."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zray.base.ids import END_INDEX, agent_id, return_id
from zray.base.wire import ERROR, INLINE, STORED, CancelTask, Entry, FreeObjects, Push
from zray.base.wire_generators import ALL_TAKEN, ItemsTaken
from zray.base.wire_transfer import FindCopies
from zray.core.effects import RESOLVE
from zray.core.generators import STREAMING, Stream
from zray.core.tasks import Task, TaskTemplate
from zray.core.waiters import Waiter
from zray.exceptions import ObjectReconstructionFailedError, WorkerCrashedError
from zray.object_ref import ObjectRef

from .owner_bench import ME, NODE, ONE, WORKER, A, Bench
from .reading import address, sent, verbs

NEXT = address("next worker")
THERE, ELSEWHERE = bytes(range(16)), bytes(range(16, 32))
Ref = ObjectRef[Any]


def value(number: int) -> Entry:
    return (INLINE, b"item %d" % number)


def stored(node: bytes = THERE) -> Entry:
    return (STORED, 1 << 20, node, ())


class Generating(Bench):
    """A bench with one generator, whose items are taken as an ObjectRefGenerator takes them."""

    def __init__(
        self, items_max: int = 4, bytes_max: int = 1 << 30, *, retries: int = 3, dynamic: bool = False, ready: bool = True
    ) -> None:
        super().__init__()
        template = TaskTemplate(b"f" * 16, "fun", ONE, STREAMING, retries, None)
        self.task_id = self.ids()
        self.stream = Stream(self.task_id, items_max, bytes_max, dynamic=dynamic)
        self.completion: Ref | None = self.ref(self.task_id + END_INDEX)
        task = Task(self.task_id, template, b"p", (), (), (self.completion.binary(),), 1)
        self.owner.open_stream(0.0, self.stream, task)
        del task
        self.taken = 0
        self.orders: list[Any] = []  # what the workers were told
        effects = self.turn()
        if ready:
            self.lease, effects = self.grant(effects)
            self.pushed(effects)

    def pushed(self, effects: list[Any]) -> list[Any]:
        """Note with which order the generator was pushed."""
        self.orders += [s[7]["stream"] for _, push in sent(effects, Push) for s in push.specs if s[0] == self.task_id]
        return effects

    def items(self, first: int, *entries: Entry, attempt: int = 0, worker: Any = WORKER) -> list[Any]:
        attempt = attempt or self.stream.attempt
        return self.hears("items", self.task_id, attempt, first, list(entries), peer=worker[0])

    def take(self) -> Ref:
        assert self.taken < self.stream.received
        self.taken += 1
        return self.ref(return_id(self.task_id, self.taken))

    def report(self) -> list[Any]:
        self.owner.report_taken(self.stream, self.taken)
        return self.turn()

    def wait(self) -> Waiter:
        waiter = Waiter(1)
        self.owner.await_item(waiter, self.stream, self.taken)
        return waiter

    def drop(self) -> list[Any]:
        self.owner.drop_stream(self.stream, self.taken)
        return self.turn()

    def over(self, entry: Entry = (INLINE, b"none"), worker: Any = WORKER) -> list[Any]:
        return self.hears("done", self.lease, [(self.task_id, [entry], 10, [])], peer=worker[0])

    def dies(self) -> list[Any]:
        """Its worker dies; if the generator may run again, it is pushed to another."""
        effects = self.hears("lease_lost", self.lease, "it was killed")
        if self.task_id in self.owner.tasks.pending:
            self.lease, effects = self.grant(effects)
            self.pushed(effects)
        return effects

    def known(self, number: int) -> Entry | None:
        return self.owner.memory.get(return_id(self.task_id, number + 1))

    def at_rest(self) -> bool:
        return super().at_rest() and not self.owner.streams and not self.owner.unread and not self.owner.lineage.origins


def freed(effects: list[Any]) -> list[bytes]:
    return [object_id for _, message in sent(effects, FreeObjects) for object_id in message.object_ids]


def test_items_are_there_as_they_come_and_go_as_they_are_taken_and_dropped() -> None:
    bench = Generating()
    assert bench.orders == [(1, 0, (), 0, 4, 1 << 30, None)]
    bench.items(0, value(0), value(1))
    first = bench.take()
    assert bench.owner.memory[first.binary()] == value(0)
    del first
    bench.turn()
    assert bench.known(0) is None and bench.known(1) == value(1)
    bench.take()
    bench.over()
    assert bench.stream.ended and bench.stream.received == 2
    bench.drop()
    assert bench.completion is not None and bench.owner.memory[bench.completion.binary()] == (INLINE, b"none")
    bench.completion = None
    bench.turn()
    assert bench.at_rest()


def test_who_waits_for_an_item_is_woken_by_it_or_by_the_end() -> None:
    bench = Generating()
    waiter = bench.wait()
    assert verbs(bench.turn(), RESOLVE) == []
    assert verbs(bench.items(0, value(0), value(1)), RESOLVE) == [(waiter,)]
    assert verbs([*bench.owner.out, *bench.turn()], RESOLVE) == [] and bench.wait().done, "one is there"
    bench.take()
    bench.take()
    waiter = bench.wait()
    bench.turn()
    assert (waiter,) in verbs(bench.over(), RESOLVE)
    assert bench.wait().done


def test_an_error_is_the_last_item_and_not_the_result() -> None:
    bench = Generating()
    bench.items(0, value(0))
    bench.over((ERROR, b"oops"))
    assert bench.known(1) == (ERROR, b"oops") and bench.stream.received == 2
    assert bench.completion is not None and bench.owner.memory[bench.completion.binary()][0] == INLINE


def test_who_waits_for_the_end_hears_of_a_cancellation() -> None:
    bench = Generating()
    bench.items(0, value(0))
    assert bench.completion is not None
    assert bench.owner.cancel(0.0, bench.completion.binary())
    assert [task for _, (task, *_) in sent(bench.turn(), CancelTask)] == [bench.task_id]
    bench.over((ERROR, b"interrupted"))
    assert bench.known(1) == bench.owner.memory[bench.completion.binary()] == (ERROR, b"interrupted")


def test_a_task_that_fails_is_the_last_item_and_the_result() -> None:
    bench = Generating(retries=0)
    bench.items(0, value(0))
    bench.dies()
    assert bench.stream.ended and bench.stream.received == 2
    bench.take()
    assert isinstance(bench.error(bench.take()), WorkerCrashedError)
    assert bench.completion is not None and isinstance(bench.error(bench.completion), WorkerCrashedError)


# -- room -----------------------------------------------------------------------------------------------------------


def test_the_worker_is_told_how_many_were_taken() -> None:
    bench = Generating(items_max=8)
    bench.items(0, *map(value, range(8)))
    assert bench.stream.step == 2
    bench.take()
    assert sent(bench.report(), ItemsTaken) == [(WORKER[0], ItemsTaken(bench.task_id, 1))]
    assert sent(bench.report(), ItemsTaken) == [], "once"
    bench.take()
    bench.wait()
    assert sent(bench.turn(), ItemsTaken) == [(WORKER[0], ItemsTaken(bench.task_id, 2))], "and before a reader waits"


def test_large_items_are_reported_more_often() -> None:
    bench = Generating(items_max=100, bytes_max=4 << 20)
    bench.items(0, stored(), stored())
    assert bench.stream.step == bench.stream.report_at == 1
    bench = Generating(items_max=100, bytes_max=1)
    bench.items(0, value(0))
    assert bench.stream.step == 1, "though one of them is more than may wait"


def test_the_size_of_an_item_is_that_of_its_value_wherever_it_lies() -> None:
    bench = Generating(items_max=100)
    bench.items(0, (INLINE, b"1234"), (INLINE, (b"12", b"345", b"6")), stored())
    assert bench.stream.size_bytes == 4 + 6 + (1 << 20)


def test_who_waits_for_the_end_wants_all_items() -> None:
    bench = Generating(items_max=1)
    bench.items(0, value(0))
    assert bench.completion is not None
    bench.owner.watch(Waiter(1), [bench.completion])
    assert sent(bench.turn(), ItemsTaken) == [(WORKER[0], ItemsTaken(bench.task_id, ALL_TAKEN))]
    bench.dies()
    assert bench.orders[-1][4] == 0, "the next attempt need not pause either"


def test_another_process_that_waits_for_the_end_wants_all_items() -> None:
    bench = Generating(items_max=1)
    bench.items(0, value(0))
    effects = bench.hears("get_object", bench.task_id + END_INDEX, peer=address("friend")[0])
    assert sent(effects, ItemsTaken) == [(WORKER[0], ItemsTaken(bench.task_id, ALL_TAKEN))]


def test_the_word_about_room_goes_to_the_worker_of_this_attempt() -> None:
    bench = Generating(items_max=1)
    bench.items(0, value(0))
    bench.take()
    bench.dies()
    assert bench.orders[-1] == (2, 1, (), 0, 1, 1 << 30, None)
    assert sent(bench.report(), ItemsTaken) == [], "nobody knows yet who has it"
    bench.items(1, value(1), attempt=1)  # of the first attempt, and late
    assert bench.stream.received == 2 and not bench.stream.worker
    effects = bench.items(1, attempt=2, worker=NEXT)  # "it waits"
    assert sent(effects, ItemsTaken) == [(NEXT[0], ItemsTaken(bench.task_id, 1))]


# -- failures -------------------------------------------------------------------------------------------------------


def test_a_second_attempt_goes_on_after_the_items_that_are_here() -> None:
    bench = Generating()
    bench.items(0, value(0), value(1))
    bench.take()
    bench.dies()
    assert bench.orders[-1][:2] == (2, 2)
    bench.items(2, value(2), worker=NEXT)
    bench.over(worker=NEXT)
    assert [bench.known(n) for n in (1, 2)] == [value(1), value(2)] and bench.stream.received == 3


def test_an_item_that_comes_twice_is_taken_once() -> None:
    bench = Generating()
    bench.items(0, stored(), value(1))
    bench.dies()
    effects = bench.items(0, stored(ELSEWHERE), (INLINE, b"other"), value(2), worker=NEXT)
    assert freed(effects) == [return_id(bench.task_id, 1)]
    assert [bench.known(n) for n in range(3)] == [stored(), value(1), value(2)]
    assert freed(bench.items(0, stored())) == [], "it is this very object"


def test_references_inside_an_item_that_comes_twice_are_given_back() -> None:
    bench = Generating()
    friend = address("friend")
    bench.items(0, (INLINE, b"x", ((A, friend),)))
    bench.items(0, (INLINE, b"x", ((A, friend),)))
    assert bench.owner.references.counts[A] == 1 and bench.owner.references.handed[A] == 2
    bench.take()
    bench.turn()
    assert A not in bench.owner.references.counts


def test_items_of_a_generator_that_is_over_are_refused() -> None:
    bench = Generating()
    bench.items(0, stored())
    bench.dies()
    bench.over()  # the answer of the first attempt was late
    assert freed(bench.items(1, stored(ELSEWHERE), worker=NEXT)) == [return_id(bench.task_id, 2)]
    assert bench.stream.received == 1


def test_an_exception_that_is_to_be_tried_again_is_no_item_yet() -> None:
    bench = Generating(retries=1)
    bench.items(0, value(0))
    bench.pushed(bench.over((ERROR, b"oops", True)))
    assert bench.orders[-1][:2] == (2, 1) and not bench.stream.ended
    bench.over((ERROR, b"oops", True))
    assert bench.known(1) == (ERROR, b"oops") and bench.stream.ended


def lose(bench: Generating, node: bytes = THERE) -> list[Any]:
    """A node is gone, and no other has copies."""
    effects = bench.hears("worker_died", agent_id(node), "its node is dead")
    ids = [object_id for _, message in sent(effects, FindCopies) for object_id in message.object_ids]
    return [*effects, *bench.hears("copies_found", [(object_id, False, b"", "") for object_id in ids])]


def test_large_items_that_are_lost_with_their_node_come_again_with_the_next_attempt() -> None:
    bench = Generating()
    bench.items(0, stored(), value(1), stored())
    lose(bench)
    bench.dies()
    assert bench.orders[-1][:3] == (2, 3, (0, 2))
    bench.items(0, stored(ELSEWHERE), worker=NEXT)
    bench.items(2, stored(ELSEWHERE), worker=NEXT)
    bench.items(3, value(3), worker=NEXT)
    assert [bench.known(n) for n in range(4)] == [stored(ELSEWHERE), value(1), stored(ELSEWHERE), value(3)]


def finished(bench: Generating) -> Ref:
    """The second item of three, when the generator is over and nobody reads it any more."""
    bench.items(0, stored(), stored(), stored())
    bench.take()
    held = bench.take()
    bench.over()
    bench.drop()
    bench.completion = None
    bench.turn()
    return held


def test_a_generator_that_is_over_runs_again_for_a_lost_item_that_somebody_needs() -> None:
    bench = Generating()
    held = finished(bench)
    lose(bench)
    waiter = Waiter(1)
    bench.owner.watch(waiter, [held])
    bench.pushed(bench.turn())
    assert bench.orders[-1] == (0, (1 << 32) - 2, (1,), 0, 0, 0, None)
    assert verbs(bench.items(1, stored(ELSEWHERE), attempt=0), RESOLVE) == [(waiter,)]
    bench.over()
    del held
    bench.turn()
    assert bench.at_rest()


def test_an_item_that_does_not_come_again_is_given_up() -> None:
    bench = Generating()
    held = finished(bench)
    lose(bench)
    bench.owner.watch(Waiter(1), [held])
    bench.turn()
    bench.over()
    assert isinstance(bench.error(held), ObjectReconstructionFailedError)


def test_an_item_that_is_lost_when_it_has_passed_comes_with_another_run() -> None:
    bench = Generating(items_max=2)
    bench.items(0, stored(), value(1))
    bench.dies()
    held = bench.take()
    lose(bench)  # the second attempt runs already
    bench.items(2, value(2), worker=NEXT)
    bench.owner.watch(Waiter(1), [held])
    assert sent(bench.turn(), ItemsTaken) == [(NEXT[0], ItemsTaken(bench.task_id, ALL_TAKEN))], "it must come to its end"
    bench.pushed(bench.over(worker=NEXT))
    assert bench.orders[-1][2] == (0,)
    bench.items(0, stored(ELSEWHERE), worker=NEXT)
    bench.over(worker=NEXT)
    assert bench.known(0) == stored(ELSEWHERE)


# -- the end --------------------------------------------------------------------------------------------------------


def test_a_generator_that_nobody_wants_is_cancelled() -> None:
    bench = Generating()
    bench.items(0, value(0), stored())
    bench.completion = None
    effects = bench.drop()
    assert sent(effects, CancelTask) == [(WORKER[0], CancelTask(bench.task_id, False, False))]
    assert freed(effects) == [return_id(bench.task_id, 2)]
    assert freed(bench.items(2, stored())) == [return_id(bench.task_id, 3)]
    bench.over()
    assert bench.at_rest()


def test_one_that_has_not_begun_never_does() -> None:
    bench = Generating(ready=False)
    bench.completion = None
    bench.drop()
    assert bench.at_rest()


def test_it_does_not_run_again_when_nobody_wants_it() -> None:
    bench = Generating()
    bench.completion = None
    bench.drop()
    bench.dies()
    assert bench.at_rest()


def test_who_holds_the_reference_to_the_end_has_it_go_on() -> None:
    bench = Generating(items_max=1)
    bench.items(0, value(0))
    effects = bench.drop()
    assert sent(effects, ItemsTaken) == [(WORKER[0], ItemsTaken(bench.task_id, ALL_TAKEN))]
    bench.items(1, value(1))
    assert bench.known(1) is None
    bench.completion = None
    assert sent(bench.turn(), CancelTask) == [(WORKER[0], CancelTask(bench.task_id, False, False))]


def test_the_items_of_a_dynamic_generator_are_held_by_its_result() -> None:
    bench = Generating(dynamic=True)
    assert bench.orders[-1] == (1, 0, (), 0, 0, 1 << 30, ME)
    bench.items(0, value(0), value(1))
    assert [bench.known(n) for n in range(2)] == [value(0), value(1)]
    inside = tuple((return_id(bench.task_id, n + 1), ME) for n in range(2))
    bench.over((INLINE, b"refs", inside))
    assert [bench.known(n) for n in range(2)] == [value(0), value(1)] and not bench.owner.streams
    bench.completion = None
    bench.turn()
    assert bench.at_rest()


def test_what_a_worker_that_died_may_have_left_in_the_store_is_freed() -> None:
    bench = Generating(items_max=3, retries=0)
    bench.items(0, value(0))
    assert freed(bench.dies()) == [return_id(bench.task_id, n) for n in (2, 3, 4)]


# -- everything at once ---------------------------------------------------------------------------------------------


class Producer:
    """A worker that runs the generator, as one attempt sees it."""

    def __init__(self, bench: Generating, worker: Any) -> None:
        self.attempt, self.sent, again, self.taken, self.items_max, _, _ = bench.orders[-1]
        self.worker = worker
        self.late = [(n, [entry_of(n)]) for n in again]  # messages that are not delivered yet
        self.announced = self.over = False

    def make(self, rng: random.Random, total: int) -> None:
        if self.over:
            return
        room = self.items_max - (self.sent - self.taken) if self.items_max else total
        count = min(rng.randint(0, 3), total - self.sent, max(room, 0))
        if self.sent - self.taken + count > self.items_max > 0 and count:
            raise AssertionError("more was made than there was room for")
        if count or not self.announced:
            self.late.append((self.sent, [entry_of(n) for n in range(self.sent, self.sent + count)]))
            self.announced = True
        self.sent += count
        self.over = self.sent >= total


def entry_of(number: int) -> Entry:
    return stored(NODE) if number % 3 == 0 else value(number)


@pytest.mark.parametrize("seed", range(150))
def test_each_item_is_seen_once_and_in_order_whatever_dies(seed: int) -> None:
    rng = random.Random(seed)
    total = rng.randint(0, 12)
    bench = Generating(items_max=rng.choice([0, 1, 2, 5]), retries=-1)
    runs = [Producer(bench, WORKER)]
    seen = []
    for step in range(5000):
        run = runs[-1]
        what = rng.random()
        effects: list[Any] = []
        if what < 0.05 and len(runs) < 8 and not bench.stream.ended:
            bench.dies()
            runs.append(Producer(bench, address(f"worker {step}")))
        elif what < 0.5:
            run.make(rng, total)
        elif what < 0.9:
            late = rng.choice(runs)  # what dead ones have sent arrives later than what the living ones send
            if late.late:
                first, entries = late.late.pop(0)
                effects = bench.items(first, *entries, attempt=late.attempt, worker=late.worker)
            elif late.over and late is run and not bench.stream.ended:
                bench.over(worker=late.worker)
        elif bench.taken < bench.stream.received:
            ref = bench.take()
            seen.append(bench.owner.memory[ref.binary()])
            del ref
            effects = bench.report()
        for worker, message in sent(effects, ItemsTaken):
            assert worker == run.worker[0], "only the living one is told"
            run.taken = message.taken
        assert not bench.stream.items_max or bench.stream.received - bench.stream.taken <= bench.stream.items_max
        if bench.stream.ended and bench.taken == bench.stream.received:
            break
    assert seen == [entry_of(n) for n in range(total)] and bench.stream.ended
    bench.drop()
    bench.completion = None
    bench.turn()
    for late in runs:
        for first, entries in late.late:
            bench.items(first, *entries, attempt=late.attempt, worker=late.worker)
    assert bench.at_rest()
