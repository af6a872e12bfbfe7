"""GeneratorOwner: the items of generators that this process has called.

Theory of operation
-------------------
A call of a generator is a task with one result, the object at its end; it is there when the generator is over (``completed()``).
Until then the worker sends *items*, each an object of this process, in their order. A *stream* says how many came (``received``)
and whether the generator is over. User threads read that without asking anybody: who takes an item makes its reference, and takes
over the count with which it came.

*Room.* A worker makes so many items, or so many bytes of them, ahead of those that were taken, and pauses then. So it is told now
and then how many were: after each quarter of what may wait, and before a reader waits itself. Who waits for the end of a
generator wants all of it: from then on it need not pause.

*Failures.* An error is the last item. Who waits for the end hears of it too, unless the generator has raised it by itself. When a
worker dies the task may run again from the start; the new attempt is told how many items are here, and sends those that follow,
besides large ones that were lost meanwhile. Items that an earlier attempt has sent arrive late: they are as good as those of the
new one, and whichever comes second is dropped. *Attempts* are counted so that the word about room goes to who needs it.

*The end.* A generator whose reference was dropped is cancelled, unless somebody still has the object at its end. Items that
nobody took are freed. What was made by a generator that is over can be made again as all results of tasks can.

``num_returns="dynamic"`` is the same with one reader, the worker itself: its result is the list of the references to the items.
"""

from __future__ import annotations

from typing import Any

from zray.base import serialization
from zray.base.ids import END_INDEX, agent_id, return_id
from zray.base.wire import ERROR, INLINE, STORED, Entry
from zray.base.wire_generators import ALL_TAKEN, ItemsTaken
from zray.core.cancellation import TaskCancellation
from zray.core.effects import SEND
from zray.core.entries import contained_in, irrecoverable, size_of
from zray.core.recovery import LostState, ObjectRecovery
from zray.core.tasks import Task
from zray.core.waiters import Waiter, Waiters
from zray.exceptions import InvariantError

STREAMING = -1  # in place of a number of results
_NOTHING: Entry = (INLINE, serialization.serialize(None).inline())
_ALL_HERE = (1 << 32) - 2  # no index is as high
_LEFT_BEHIND_MAX = 4096


class Stream:
    """The items of one generator.

    Args:
        task_id: the task that runs it.
        items_max: how many items may wait to be taken; 0 for any number.
        bytes_max: how many bytes of them.
        dynamic: nobody reads them: the result of the task refers to them.
    """

    __slots__ = (
        "attempt",
        "begun",
        "bytes_max",
        "dropped",
        "dynamic",
        "ended",
        "items_max",
        "received",
        "report_at",
        "size_bytes",
        "step",
        "taken",
        "task_id",
        "told",
        "worker",
    )

    def __init__(self, task_id: bytes, items_max: int, bytes_max: int, *, dynamic: bool) -> None:
        self.task_id = task_id
        self.items_max = items_max
        self.bytes_max = bytes_max
        self.dynamic = dynamic
        self.received = 0
        self.taken = 0  # as far as this was reported
        self.step = max(1, items_max // 4) if items_max else ALL_TAKEN  # how many are taken between two reports
        self.report_at = self.step  # written by readers too
        self.size_bytes = 0  # of all that was received
        self.ended = False  # nothing will come any more
        self.dropped = dynamic  # nobody reads any more
        self.attempt = 0
        self.begun: dict[int, None] = {}  # with which items attempts began, that went on after others
        self.worker = b""  # that makes this attempt, when it has said so
        self.told = 0  # how many were taken, as far as it knows


class GeneratorOwner(ObjectRecovery, TaskCancellation):
    """What ``Owner`` inherits; the fields are made there."""

    __slots__ = ()

    streams: dict[bytes, Stream]  # by task: those that are not over, or have a reader
    unread: dict[bytes, Stream]  # ... and those without one of which something is to be settled
    waiters: Waiters

    def _drop(self) -> None:
        """Forget the values of borrowed objects that nobody here holds any more."""
        raise NotImplementedError

    def submit(self, now: float, task: Task) -> None:
        """A task was called."""
        raise NotImplementedError

    # -- what the local user does ---------------------------------------------------------------------------------

    def open_stream(self, now: float, stream: Stream, task: Task) -> None:
        """A generator was called."""
        self.streams[task.id] = stream
        if stream.dynamic:
            stream.items_max = 0
        self.submit(now, task)

    def await_item(self, waiter: Waiter, stream: Stream, index: int) -> None:
        """Tell ``waiter`` when an item is there, or the generator is over; all before it were taken."""
        self.report_taken(stream, index)
        if index < stream.received or stream.ended:
            self.waiters.count_down(waiter, _NOTHING)
        else:
            self.waiters.watch(waiter, return_id(stream.task_id, stream.received + 1))

    def report_taken(self, stream: Stream, taken: int) -> None:
        """So many items were taken."""
        if taken > stream.taken:
            stream.taken = taken
            self._tell_taken(stream)

    def drop_stream(self, stream: Stream, taken: int) -> None:
        """Nobody reads the items any more."""
        stream.dropped = True
        stream.taken = taken
        self.unread[stream.task_id] = stream
        self._let_go(stream)

    def _let_go(self, stream: Stream) -> None:
        """Nobody will take the items that are here."""
        for number in range(stream.taken, stream.received):
            self.references.release(return_id(stream.task_id, number + 1))

    def settle_streams(self, now: float) -> None:
        """Cancel generators that nobody wants anything of, and forget those that are over."""
        while self.unread:
            task_id, stream = self.unread.popitem()
            needed = self.references.needed(task_id + END_INDEX)
            if stream.ended:
                del self.streams[task_id]
                if stream.dynamic:  # the result holds them now
                    self._let_go(stream)
            elif needed:  # if that ends it comes back
                self.hurry(stream)
            else:  # and when it is over
                self._cancel(now, self.tasks.pending[task_id], force=False, recursive=False)

    def _end_freed(self, task_id: bytes) -> None:
        """Nobody needs the object at the end of a generator any more."""
        stream = self.streams[task_id]
        if stream.dropped and not stream.dynamic:
            self.unread[task_id] = stream

    def hurry(self, stream: Stream) -> None:
        """Somebody waits for the end, and takes no items: there is room for all of them."""
        if stream.items_max and not stream.ended:
            stream.items_max = 0
            stream.report_at = stream.step = ALL_TAKEN
            self._tell_taken(stream)

    def _awaited(self, object_id: bytes) -> None:
        """Somebody waits for an object that will come."""
        if object_id in self.lost:
            self._want(object_id)
        elif self.streams and object_id[16:] == END_INDEX and object_id[:16] in self.streams:
            self.hurry(self.streams[object_id[:16]])

    # -- items ----------------------------------------------------------------------------------------------------

    def on_items(
        self, now: float, peer: bytes, task_id: bytes, attempt: int, first: int, entries: list[Entry]
    ) -> None:
        """A worker has made items."""
        stream = self.streams.get(task_id)
        if stream is None or stream.ended:
            new = len(entries)
        else:
            new = min(max(stream.received - first, 0), len(entries))
            if attempt == stream.attempt and not stream.worker:
                self._found_worker(stream, peer)
        for index in range(new):
            self._item_again(now, return_id(task_id, first + index + 1), entries[index])
        if stream is not None and new < len(entries):
            self._take(stream, entries[new:] if new else entries)
        if peer == self._me:
            for entry in entries:
                self.references.come_home(contained_in(entry))

    def _take(self, stream: Stream, entries: list[Entry]) -> None:
        """Items that were not here yet."""
        counts, memory = self.references.counts, self.memory
        task_id = stream.task_id
        number = stream.received
        if stream.dropped and not stream.dynamic:
            for index, entry in enumerate(entries, number + 1):
                self._refuse(return_id(task_id, index), entry)
            stream.received += len(entries)
            return
        size = 0
        for entry in entries:
            number += 1
            object_id = task_id + number.to_bytes(4, "big")
            counts[object_id] = 1
            if len(entry) > 2:
                self._contain(object_id, entry)
            memory[object_id] = entry
            content = entry[1]
            size += len(content) if type(content) is bytes else size_of(entry)
        next_id = return_id(task_id, stream.received + 1)
        stream.received = number  # from here on readers see them
        stream.size_bytes += size
        if stream.items_max:
            room = stream.bytes_max // 4 * number // (stream.size_bytes + 1)
            stream.step = max(1, min(room, stream.items_max // 4))
            stream.report_at = min(stream.report_at, stream.taken + stream.step)
        self.waiters.arrived(next_id, entries[0])

    def _contain(self, object_id: bytes, entry: Entry) -> None:
        """An item is large, or has references inside."""
        contained = contained_in(entry)
        if contained:
            if self.references.dropped:
                self._drop()
            self.references.contain(object_id, contained, received=True)
        if entry[0] == STORED:
            if entry[2] != self._node_id:
                self.meet(agent_id(entry[2]))
            task = self.tasks.pending[object_id[:16]]
            if task.template.max_retries != 0:
                self.lineage.record(task, [object_id])

    def _item_again(self, now: float, object_id: bytes, entry: Entry) -> None:
        """An item came that was here already: it may have been lost, else nobody needs this one."""
        known = self.memory.get(object_id)
        if object_id in self.lost:
            self._arrive(now, object_id, entry)
        elif known is not None and known[0] == STORED == entry[0] and known[2] == entry[2]:
            self.references.decline(contained_in(entry))
        else:
            self._refuse(object_id, entry)

    def _refuse(self, object_id: bytes, entry: Entry) -> None:
        self.references.decline(contained_in(entry))
        if entry[0] == STORED:
            self._free_at(entry[2], [object_id])

    # -- workers --------------------------------------------------------------------------------------------------

    def stream_extra(self, task: Task) -> dict[str, Any]:
        """What a worker must know of a generator: which items to send, and how far to go."""
        stream = self.streams.get(task.id)
        again = []
        for object_id, lost in self.lost.items():
            if object_id[:16] == task.id and object_id[16:] != END_INDEX:
                lost.asked = True
                again.append(int.from_bytes(object_id[16:], "big") - 1)
        if stream is None or stream.ended:  # it runs for those that are lost
            order: tuple[Any, ...] = (0, _ALL_HERE, tuple(again), 0, 0, 0, None)
        else:
            stream.attempt += 1
            if task.tried:
                stream.begun[stream.received] = None
            stream.worker = b""
            stream.told = stream.taken if stream.items_max else ALL_TAKEN
            owner = self.references.me if stream.dynamic else None
            order = (
                stream.attempt,
                stream.received,
                tuple(again),
                stream.taken,
                stream.items_max,
                stream.bytes_max,
                owner,
            )
        return {**(task.template.extra or {}), "stream": order}

    def _found_worker(self, stream: Stream, peer: bytes) -> None:
        """A worker has begun with an attempt."""
        stream.worker = peer
        self._tell_taken(stream)

    def _tell_taken(self, stream: Stream) -> None:
        taken = stream.taken if stream.items_max else ALL_TAKEN
        if stream.worker and taken > stream.told and not stream.ended:
            stream.told = taken
            self.out.append((SEND, stream.worker, ItemsTaken(stream.task_id, taken)))

    # -- the end --------------------------------------------------------------------------------------------------

    def _end_stream(self, task: Task, entry: Entry | None) -> tuple[Entry, ...]:
        """A generator is over. An error that it raised is its last item, and not its result, unless it was cancelled."""
        assert entry is not None
        task_id = task.id
        stream = self.streams[task_id]
        if not stream.ended:  # else it was run again for an item
            next_id = return_id(task_id, stream.received + 1)
            if entry[0] == ERROR and not stream.dropped:
                self.references.counts[next_id] = 1
                self.memory[next_id] = entry[:2]
                stream.received += 1
            stream.ended = True
            self.waiters.arrived(next_id, entry)
            if stream.dropped:
                self.unread[task_id] = stream
        raised = entry[0] == ERROR and not stream.dynamic and not task.cancelled
        return (_NOTHING if raised else entry,)

    def _not_made(self, now: float, task_id: bytes, entry: Entry) -> None:
        """A generator was run again and is over: lost items that it has not brought, though it knew of them, will not come."""
        for object_id in [o for o, lost in self.lost.items() if o[:16] == task_id]:
            lost = self.lost[object_id]
            if lost.state is not LostState.REBUILDING:
                continue
            if entry[0] == ERROR:
                self._arrive(now, object_id, entry[:2])
            elif lost.asked:
                problem = "the generator that made it was run again, and has not yielded so many items"
                self._arrive(now, object_id, irrecoverable(object_id, lost.reason, problem))
            else:
                lost.move("missed")
                self.rebuilds.append(object_id)

    def _left_behind(self, task: Task) -> tuple[bytes, ...]:
        """Objects that workers may have left in stores when they died with this task: what was made and not told."""
        stream = self.streams.get(task.id)
        if stream is None:
            return task.returns
        most = min(stream.items_max or _LEFT_BEHIND_MAX, _LEFT_BEHIND_MAX)
        numbers = {first + n for first in (*stream.begun, stream.received) for n in range(most)}
        return tuple([return_id(task.id, number + 1) for number in sorted(numbers)])

    # -- checks ---------------------------------------------------------------------------------------------------

    def check_streams(self) -> None:
        """Assert the invariants; true after ``settle``."""
        for task_id, stream in self.streams.items():
            if not stream.ended and task_id not in self.tasks.pending:
                raise InvariantError(f"generator {task_id.hex()} is not over, and is not pending")
            if stream.taken > stream.received:
                raise InvariantError(f"of generator {task_id.hex()} more was taken than came")
            if return_id(task_id, stream.received + 1) in self.memory:
                raise InvariantError(f"an item of generator {task_id.hex()} is there that did not come")
        for task_id in self.unread:
            if self.streams.get(task_id) is not self.unread[task_id]:
                raise InvariantError(f"generator {task_id.hex()} is forgotten and unread")
