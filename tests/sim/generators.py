"""Generators: what their readers do, and the workers that make their items.

What a generator yields follows from its plan, as all that tasks do: a second attempt yields the same.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from zray.base import serialization
from zray.base.ids import END_INDEX, return_id
from zray.base.resources import ResourceSet
from zray.base.wire import INLINE, Entry
from zray.base.wire_generators import ITEMS
from zray.core.entries import contained_in
from zray.core.generators import STREAMING, Stream
from zray.core.tasks import Task, TaskTemplate
from zray.core.waiters import Waiter
from zray.object_ref import ObjectRef

from .checkers import TaskFailure
from .world import SimulationError

if TYPE_CHECKING:
    from .bodies import OwnerBody
    from .processes import WorkerBody
    from .threads import Steps, Thread
    from .workloads import Arguments

NOTHING: Entry = (INLINE, serialization.serialize(None).inline())
ITEMS_MAX = 9


def number_of_items(plan: int) -> int:
    return random.Random(plan).randint(0, ITEMS_MAX)


# -- readers --------------------------------------------------------------------------------------------------------


class Reader:
    """Takes the items of a generator, as an ObjectRefGenerator does."""

    def __init__(self, body: OwnerBody, stream: Stream, completion: ObjectRef[Any]) -> None:
        self._body = body
        self._stream = stream
        self.completion: ObjectRef[Any] | None = completion
        self.taken = 0

    @property
    def over(self) -> bool:
        return self._stream.ended and self.taken >= self._stream.received

    def take(self) -> ObjectRef[Any] | None:
        """The reference to the next item, if it is there."""
        body, stream = self._body, self._stream
        if stream.items_max and stream.received - self.taken > stream.items_max + stream.ended:
            raise SimulationError(f"{stream.received} items of {stream.task_id.hex()} came, and only {self.taken} were taken")
        if self.taken >= stream.received:
            return None
        self.taken += 1
        if self.taken >= stream.report_at:
            stream.report_at = self.taken + stream.step
            body.owner.report_taken(stream, self.taken)
        return ObjectRef(return_id(stream.task_id, self.taken), body.address, body.inbox.append)

    def wait(self) -> Steps:
        yield from self._blocked(("item", Waiter(1), self._stream, self.taken))

    def wait_for_the_end(self) -> Steps:
        """Who waits for that wants all items to be made."""
        assert self.completion is not None
        yield from self._blocked(("wait", Waiter(1), [self.completion], None))

    def _blocked(self, request: tuple[Any, ...]) -> Steps:
        self._body.on_blocking(True)
        try:
            yield request
        finally:
            if self._body.alive:
                self._body.on_blocking(False)

    def drop(self) -> None:
        self._body.owner.drop_stream(self._stream, self.taken)
        self.completion = None


def call(body: OwnerBody, rng: random.Random, arguments: Arguments, depth: int) -> Reader:
    """Call a generator."""
    task_id = body.task_ids()
    demand = rng.choice([{"CPU": 1.0}, {"CPU": 0.5}, {}])
    retries = rng.choice([0, 1, 3, -1])
    function_id = body.export(b"generator-------")
    template = TaskTemplate(function_id, "generator", ResourceSet.of(demand), STREAMING, retries, None)
    for number in range(number_of_items(arguments.plan) + 1):
        body.judge.expected[return_id(task_id, number + 1)] = f"{arguments.tag}/{number}"
        body.judge.touched(body.id, return_id(task_id, number + 1))
    body.judge.retries[task_id] = retries
    body.judge.strategies[task_id] = (("default",), demand)
    stream = Stream(task_id, rng.choice([0, 1, 2, 5]), rng.choice([100, 1 << 30]), dynamic=False)
    completion: ObjectRef[Any] = ObjectRef(task_id + END_INDEX, body.address, body.inbox.append)
    made = serialization.serialize(arguments)
    task = Task(task_id, template, made.pickle, (), tuple(made.refs), (completion.binary(),), depth)
    body.owner.open_stream(body.world.now, stream, task)
    return Reader(body, stream, completion)


def read(body: OwnerBody, rng: random.Random, arguments: Arguments, held: list[ObjectRef[Any]], depth: int) -> Steps:
    """Call a generator, and read it to its end, or until there is enough."""
    total = number_of_items(arguments.plan)
    enough = rng.choice([total + 1, total + 1, rng.randint(0, ITEMS_MAX)])
    hurried = rng.random() < 0.1
    reader = call(body, rng, arguments, depth)
    seen = 0
    failed = False
    try:
        while not reader.over and reader.taken < enough:
            ref = reader.take()
            if ref is None:
                yield from (reader.wait_for_the_end() if hurried else reader.wait())
                continue
            if rng.random() < 0.3:
                yield ("sleep", body.world.some(0.02))
            outcomes = yield from body.get([ref])
            failed = failed or isinstance(outcomes[0], BaseException)
            seen += not isinstance(outcomes[0], BaseException)
            if rng.random() < 0.3:
                held.append(ref)
            del ref, outcomes
        if reader.over and not failed and seen != total:
            raise SimulationError(f"{body.name} has seen {seen} items of {arguments.tag}, and there are {total}")
    finally:
        reader.drop()


# -- workers --------------------------------------------------------------------------------------------------------


class Runner:
    """One attempt to make the items, as ``runtime/generator_runner.py`` does it."""

    def __init__(self, body: WorkerBody, peer: bytes, spec: Any) -> None:
        self._body = body
        self.peer = peer
        self.task_id: bytes = spec[0]
        self.attempt, self.skip, self.again, self.taken, self.items_max, self.bytes_max, _ = spec[7]["stream"]
        self.stopped = False
        self.thread: Thread | None = None  # that waits for room
        self._made = 0
        self._announced = False
        self._entries: list[Entry] = []
        self._sizes: list[int] = []  # of all items, those before ``skip`` as nothing

    def run(self, arguments: Arguments) -> Steps:
        """Make all items, and send them."""
        try:
            yield from self._make(arguments)
        finally:
            if self._body.alive:
                self._flush()
        return (NOTHING,)

    def _make(self, arguments: Arguments) -> Steps:
        from .workloads import pick, run_time_s, value_of

        body, rng = self._body, random.Random(arguments.plan)
        total = rng.randint(0, ITEMS_MAX)
        refs, arguments.refs = arguments.refs, []
        for index in range(total):
            yield ("sleep", run_time_s(body, arguments))
            if arguments.raises and index == total // 2:
                break
            value = value_of(f"{arguments.tag}/{index}", pick(rng, refs, 2), [], rng)
            yield from self._add(index, value)
            del value
            self._made = index + 1
            while not self.stopped and not self._has_room():
                self._flush()
                self.thread = body.current
                body.on_blocking(True)
                try:
                    yield ("wait for room",)
                finally:
                    if body.alive:
                        body.on_blocking(False)
            if self.stopped:
                break
            if body.world.rng.random() < 0.5:
                self._flush()
        if arguments.raises:
            raise TaskFailure(arguments.tag)

    def _add(self, index: int, value: Any) -> Steps:
        body = self._body
        if index < self.skip and index not in self.again:
            self._sizes.append(0)
            return
        object_id = return_id(self.task_id, index + 1)
        body.judge.touched(body.id, object_id)
        entry = yield from body.entry(object_id, value, self.peer)
        for inner, owner in contained_in(entry):
            body.owner.references.give(inner, owner, self.peer)
        if index < self.skip:
            self._sizes.append(0)
            body.send(self.peer, (ITEMS, self.task_id, self.attempt, index, [entry]))
        else:
            self._sizes.append(entry[1] if isinstance(entry[1], int) else len(entry[1]))
            self._entries.append(entry)

    def _has_room(self) -> bool:
        waiting = self._made - self.taken
        if not self.items_max or waiting <= 0:
            return True
        return waiting < self.items_max and sum(self._sizes[self.taken :]) < self.bytes_max

    def _flush(self) -> None:
        """Send what was made; the first time also if that is nothing, so that the owner knows who waits."""
        if self._entries or not self._announced:
            first = max(self._made, self.skip) - len(self._entries)
            self._body.send(self.peer, (ITEMS, self.task_id, self.attempt, first, self._entries))
            self._entries, self._announced = [], True

    def on_taken(self, taken: int) -> None:
        self.taken = max(taken, self.taken)
        self._wake()

    def stop(self) -> None:
        self.stopped = True
        self._wake()

    def _wake(self) -> None:
        thread, self.thread = self.thread, None
        if thread is not None:
            self._body.world.after(0.0, thread.step)
