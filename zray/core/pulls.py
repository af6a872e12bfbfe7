"""PullManager: which objects this node brings from other nodes, and from whom.

Theory of operation
-------------------
There is one *pull* for each object, however many read it. It waits to be admitted, then for room in the store, then asks, and
then the body brings the bytes into that room. Room comes first: who holds nothing at another node while it waits can not make two
nodes wait for each other.

*Admission.* What is on its way is bounded in bytes and in number. What somebody waits for in ``get`` comes before the arguments
of tasks that have not started, and before what ``wait`` has brought ahead; the less urgent do not count against the more
urgent, so that a hundred arguments do not delay one ``get``. One object is always admitted, however large it is.

*Sources.* The agent that has the primary is asked first. It says who serves: itself, or another that has a copy. A source
whose link breaks is asked again, after a pause that doubles; after ``transfer_attempts_max`` breaks without a byte between
them it counts as failed, and the primary's agent is told so and names another. When the primary's node dies, or refuses, or
does not answer, those are asked that were named before. If nobody is left, the readers are told that the object is lost, and
why. It is not lost where the primary's node has no room to read it from a storage elsewhere: then they are told that.

*Resuming.* Bytes come in order, so one number says how much is here. It outlives a broken link and a change of source: all
copies of one primary are the same.

*Places.* Where memory has no room the copy goes to a file. If that disk turns out to be full the pull begins anew, on another if
there is one, a few times.

The room is given back only when the body has said that it does not write there any more: each FETCH has exactly one end.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from zray.base.config import Config
from zray.base.wire import Reply
from zray.base.wire_transfer import CopyEnded, OpenCopy, RequestCopy
from zray.core.effects import CANCEL_FETCH, FETCH, SEND, TIMER, Effect
from zray.core.lifecycle import Lifecycle
from zray.core.store import ARGUMENT, PULLS, ObjectStore
from zray.exceptions import InvariantError

REST_TIMER = "transfer.rest"
_REST_S = 0.1  # after the first break, then twice as long each time
_REST_S_MAX = 2.0
_MOVES_MAX = 3


class PullState(Enum):
    WAITING = 1
    NEEDS_ROOM = 2
    ASKING = 3
    FETCHING = 4
    RESTING = 5
    ENDING = 6


PULL_LIFECYCLE = Lifecycle(
    "pull",
    {
        PullState.WAITING: "Enough is on its way already, or more urgent things wait.",
        PullState.NEEDS_ROOM: "The store makes room for it.",
        PullState.ASKING: "A node was asked for the object, and has not answered yet.",
        PullState.FETCHING: "Bytes come.",
        PullState.RESTING: "The source failed, and is asked again a little later.",
        PullState.ENDING: "Nobody wants it any more, or its source is gone; the last write into its room is awaited.",
    },
    {
        PullState.WAITING: {"admitted": PullState.NEEDS_ROOM},
        PullState.NEEDS_ROOM: {"asked": PullState.ASKING},
        PullState.ASKING: {"asked": PullState.ASKING, "offered": PullState.FETCHING},
        PullState.FETCHING: {"failed": PullState.RESTING, "cancelled": PullState.ENDING},
        PullState.RESTING: {"asked": PullState.ASKING},
        PullState.ENDING: {"failed": PullState.RESTING},
    },
)


class Pull:
    """One object on its way to this node."""

    __slots__ = (
        "asked_at",
        "bad",
        "failures",
        "forsaken",
        "heard_at",
        "helpers",
        "moves",
        "number",
        "object_id",
        "owner",
        "place",
        "primary",
        "priority",
        "readers",
        "received",
        "refusal",
        "size",
        "source",
        "state",
    )

    def __init__(self, number: int, object_id: bytes, size: int, primary: bytes, owner: bytes, priority: int) -> None:
        self.number = number
        self.object_id = object_id
        self.size = size
        self.primary = primary
        self.owner = owner
        self.priority = priority
        self.state = PullState.WAITING
        self.readers: list[tuple[bytes, int]] = []
        self.place: tuple[Any, ...] | None = None  # (offset, warm) or (path, False)
        self.received = 0
        self.source = primary  # who is asked, or read from
        self.failures = 0  # of the source, in a row
        self.bad: dict[bytes, str] = {}  # from whom it can not be got, and why
        self.helpers: list[bytes] = []  # who had a copy when the source was asked
        self.forsaken = False  # the primary's agent will not name another
        self.refusal = "lost"  # what the primary's agent calls the reason
        self.moves = 0  # how often it began anew, because a disk of this machine was full
        self.asked_at = 0.0
        self.heard_at = 0.0

    def move(self, event: str) -> None:
        self.state = PULL_LIFECYCLE.next(self.state, event)


class PullManager:
    """The pulls of one node.

    Args:
        me: process id of this node's agent.
        config: limits.
        out: where effects go.
        store: where copies go.
        on_abandoned: called with an object of which it is not known any more whether the rest of it will come.
    """

    __slots__ = (
        "_by_number",
        "_bytes",
        "_config",
        "_counts",
        "_dead",
        "_me",
        "_next",
        "_on_abandoned",
        "_out",
        "_store",
        "_waiting",
        "pulls",
    )

    def __init__(
        self, me: bytes, config: Config, out: list[Effect], store: ObjectStore, on_abandoned: Callable[[bytes], None]
    ) -> None:
        self._me = me
        self._config = config
        self._out = out
        self._store = store
        self._on_abandoned = on_abandoned
        self._dead: dict[bytes, str] = {}  # agents of nodes that died, and why
        self._next = 1
        self._by_number: dict[int, Pull] = {}
        self._waiting: list[dict[bytes, Pull]] = [{} for _ in range(ARGUMENT + 1)]  # of each priority
        self._bytes = [0] * (ARGUMENT + 1)  # admitted, of each priority
        self._counts = [0] * (ARGUMENT + 1)
        self.pulls: dict[bytes, Pull] = {}

    # -- readers --------------------------------------------------------------------------------------------------

    def pull(
        self,
        now: float,
        object_id: bytes,
        size: int,
        primary: bytes,
        owner: bytes,
        reader: tuple[bytes, int],
        priority: int,
    ) -> None:
        """Somebody wants to read an object that is not here: its pin (peer, request id) is answered when it is."""
        pull = self.pulls.get(object_id)
        if pull is None:
            if primary in self._dead:
                self._refuse([reader], ("lost", self._lost_text(object_id, self._dead[primary])))
                return
            pull = self._begin(object_id, size, primary, owner, priority)
        elif priority < pull.priority:
            self._hurry(now, pull, priority)
        pull.readers.append(reader)
        self._admit(now)

    def drop_client(self, now: float, peer: bytes) -> None:
        """A process is gone, and reads nothing any more."""
        for pull in list(self.pulls.values()):
            if any(reader[0] == peer for reader in pull.readers):
                pull.readers = [reader for reader in pull.readers if reader[0] != peer]
                if not pull.readers:
                    self._give_up(pull)
        self._admit(now)

    def on_freed(self, now: float, object_ids: list[bytes]) -> None:
        """No reference to these is left: whoever waits for one all the same is told."""
        for object_id in object_ids:
            pull = self.pulls.get(object_id)
            if pull is not None:
                self._end(pull, ("lost", f"object {object_id.hex()} was freed by its owner"))
        self._admit(now)

    def primary_of(self, object_id: bytes) -> bytes:
        """The agent from whose primary a pull is, b"" if there is no pull."""
        pull = self.pulls.get(object_id)
        return pull.primary if pull is not None else b""

    def is_stuck(self, object_id: bytes) -> bool:
        """Whether an object does not come from where it should have come from."""
        pull = self.pulls.get(object_id)
        return pull is not None and pull.state is not PullState.FETCHING and bool(pull.bad)

    def is_dead(self, agent: bytes) -> bool:
        """Whether a node has died."""
        return agent in self._dead

    # -- the store ------------------------------------------------------------------------------------------------

    def on_answer(self, now: float, number: int, ok: bool, value: Any) -> None:
        """The store has room for a copy, or can not make any."""
        pull = self._by_number.get(number)
        if pull is None:
            return  # it was given up, and its room given back, while the answer was on its way
        if not ok:
            self._end(pull, value)
            self._admit(now)
        elif value == "exists":  # a task of this node has made it meanwhile
            self._forget(pull)
            for peer, request_id in pull.readers:
                self._store.pin(peer, request_id, pull.object_id, now=now)
            self._admit(now)
        else:
            pull.place = value
            self._ask(now, pull)

    # -- other agents ---------------------------------------------------------------------------------------------

    def on_copy_offered(
        self,
        now: float,
        peer: bytes,
        object_id: bytes,
        ticket: int,
        endpoint: str,
        size: int,
        checksum: int,
        holders: list[bytes],
    ) -> None:
        pull = self._answered(now, peer, object_id)
        if pull is None:
            return
        if size != pull.size:
            self._fail_source(now, pull, f"it is said to have {pull.size} bytes, and has {size} there")
            return
        pull.helpers = [agent for agent in holders if agent not in (self._me, peer)]
        pull.move("offered")
        self._out.append((FETCH, object_id, endpoint, ticket, size, pull.received, pull.place, checksum))

    def on_copy_elsewhere(self, now: float, peer: bytes, object_id: bytes, agent: bytes) -> None:
        pull = self._answered(now, peer, object_id)
        if pull is not None:
            pull.failures = 0
            pull.source = agent
            if agent in self._dead or agent in pull.bad or agent == self._me:
                self._fail_source(now, pull, self._dead.get(agent, "who is said to have it does not"))
            else:
                self._ask(now, pull)

    def on_copy_waits(self, now: float, peer: bytes, object_id: bytes) -> None:
        self._answered(now, peer, object_id)

    def on_copy_refused(self, now: float, peer: bytes, object_id: bytes, reason: str, kind: str) -> None:
        pull = self._answered(now, peer, object_id)
        if pull is not None:
            if peer == pull.primary:
                pull.forsaken = True
                pull.refusal = kind
            self._fail_source(now, pull, reason)

    def on_node_died(self, now: float, agent: bytes, reason: str) -> None:
        """A node is gone: what was to come from there comes from another that has a copy, or not at all."""
        self._dead[agent] = reason
        if len(self._dead) > self._config.dead_nodes_max:
            del self._dead[next(iter(self._dead))]  # who is asked for something there does not answer
        for pull in list(self.pulls.values()):
            if agent == pull.primary:
                pull.forsaken = True
            if agent == pull.source and pull.state is PullState.FETCHING:
                pull.bad[agent] = reason
                self._cancel(pull)
            elif agent == pull.source and pull.state is not PullState.ENDING:
                self._fail_source(now, pull, reason)
        self._admit(now)

    # -- bytes ----------------------------------------------------------------------------------------------------

    def on_fetched(self, now: float, object_id: bytes, checksum: int) -> None:
        """All bytes are here; ``checksum`` is theirs, where the room is in a file."""
        pull = self.pulls[object_id]
        self._forget(pull)
        for peer, request_id in pull.readers:
            self._store.pin(peer, request_id, object_id, now=now)  # they have it before anybody can take the room
        self._leave(pull, complete=True)  # before the store may say that it keeps no copy
        self._store.seal(object_id, pull.owner, checksum, pull.primary)
        self._admit(now)

    def on_fetch_failed(self, now: float, object_id: bytes, received: int, kind: str, reason: str) -> None:
        """No more bytes will come for now; ``received`` are here.

        Args:
            now: the time.
            object_id: which.
            received: bytes from the start that are here.
            kind: ``link``: the source can not be reached, or says nothing; ``ticket``: it does not know the ticket, which may
                have been an old one; ``source``: it can not read the object, or its bytes are wrong; ``full`` or ``disk``:
                they could not be written here; ``cancelled``.
            reason: a sentence.
        """
        pull = self.pulls[object_id]
        at_once = kind == "ticket" or pull.state is PullState.ENDING  # somebody came who wants it after all
        pull.move("failed")
        pull.failures = 1 if received > pull.received else pull.failures + 1
        pull.received = received
        if not pull.readers:
            self._close(pull)
        elif kind == "disk" and pull.moves < _MOVES_MAX and pull.primary not in self._dead:
            self._close(pull, reason)
            again = self._begin(object_id, pull.size, pull.primary, pull.owner, pull.priority)
            again.readers, again.moves = pull.readers, pull.moves + 1
        elif kind in ("full", "disk"):
            self._end(pull, (kind, f"object {object_id.hex()} could not be written here: {reason}"), reason)
        elif kind == "source" or pull.source in pull.bad or pull.failures >= self._config.transfer_attempts_max:
            self._fail_source(now, pull, self._dead.get(pull.source, reason))
        elif at_once:
            self._ask(now, pull)
        else:
            pause = min(_REST_S * 2.0 ** (pull.failures - 1), _REST_S_MAX)
            self._out.append((TIMER, now + pause, (REST_TIMER, pull.number)))
        self._admit(now)

    # -- time -----------------------------------------------------------------------------------------------------

    def on_rested(self, now: float, number: int) -> None:
        """A source that failed is asked again."""
        pull = self._by_number.get(number)
        if pull is not None and pull.state is PullState.RESTING:
            self._ask(now, pull)

    def renew(self, now: float) -> list[tuple[bytes, bytes]]:
        """Ask those again who have not answered; returns (agent, object) for all others that are on their way."""
        period = self._config.transfer_renew_s
        rows = []
        for pull in list(self.pulls.values()):
            if pull.state is PullState.ASKING and now >= pull.asked_at + period / 2:
                if now > pull.heard_at + period * self._config.transfer_attempts_max:
                    pull.forsaken = pull.forsaken or pull.source == pull.primary
                    self._fail_source(now, pull, "it does not answer")
                else:
                    self._say(now, pull)
            elif pull.place is not None:
                rows += [(agent, pull.object_id) for agent in self._sources(pull)]
        self._admit(now)
        return rows

    # -- inside: admission ----------------------------------------------------------------------------------------

    def _begin(self, object_id: bytes, size: int, primary: bytes, owner: bytes, priority: int) -> Pull:
        pull = self.pulls[object_id] = Pull(self._next, object_id, size, primary, owner, priority)
        self._by_number[self._next] = pull
        self._waiting[priority][object_id] = pull
        self._next += 1
        return pull

    def _admit(self, now: float) -> None:
        for priority, waiting in enumerate(self._waiting):
            while waiting:
                pull = next(iter(waiting.values()))
                count = sum(self._counts[: priority + 1])
                total = sum(self._bytes[: priority + 1]) + pull.size
                if count and (total > self._config.pull_bytes_max or count >= self._config.pulls_max):
                    break
                del waiting[pull.object_id]
                self._counts[priority] += 1
                self._bytes[priority] += pull.size
                pull.move("admitted")
                self._demand(now, pull)

    def _demand(self, now: float, pull: Pull) -> None:
        self._store.create(
            now, PULLS, pull.number, pull.object_id, pull.size, "a copy from another node", pull.priority
        )

    def _hurry(self, now: float, pull: Pull, priority: int) -> None:
        """Somebody wants it more urgently than those before."""
        old, pull.priority = pull.priority, priority
        if pull.state is PullState.WAITING:
            self._waiting[priority][pull.object_id] = self._waiting[old].pop(pull.object_id)
            return
        self._counts[old] -= 1
        self._bytes[old] -= pull.size
        self._counts[priority] += 1
        self._bytes[priority] += pull.size
        if pull.state is PullState.NEEDS_ROOM and self._store.withdraw(pull.object_id):
            self._demand(now, pull)

    def _forget(self, pull: Pull) -> None:
        """The pull is over; what it held is somebody else's care."""
        del self.pulls[pull.object_id], self._by_number[pull.number]
        if pull.state is PullState.WAITING:
            del self._waiting[pull.priority][pull.object_id]
        else:
            self._counts[pull.priority] -= 1
            self._bytes[pull.priority] -= pull.size

    # -- inside: sources ------------------------------------------------------------------------------------------

    def _ask(self, now: float, pull: Pull) -> None:
        pull.move("asked")
        pull.heard_at = now
        self._say(now, pull)

    def _say(self, now: float, pull: Pull) -> None:
        pull.asked_at = now
        if pull.source == pull.primary:
            self._out.append((SEND, pull.source, RequestCopy(pull.object_id, list(pull.bad))))
        else:
            self._out.append((SEND, pull.source, OpenCopy(pull.object_id)))

    def _answered(self, now: float, peer: bytes, object_id: bytes) -> Pull | None:
        """The pull that waits for an answer of this agent. What nobody waits for is declined, so that nothing is kept for it."""
        pull = self.pulls.get(object_id)
        if pull is None:
            self._out.append((SEND, peer, CopyEnded(object_id, False)))
        elif pull.state is PullState.ASKING and peer == pull.source:
            pull.heard_at = now
            return pull
        return None

    def _fail_source(self, now: float, pull: Pull, reason: str) -> None:
        """Nothing comes from this source: ask another. Those to whom it was passed on had better do so too."""
        self._on_abandoned(pull.object_id)
        pull.bad.setdefault(pull.source, reason)
        if pull.source != pull.primary and pull.source not in self._dead:
            self._out.append((SEND, pull.source, CopyEnded(pull.object_id, False)))
        pull.failures = 0
        helper = next((agent for agent in pull.helpers if agent not in pull.bad and agent not in self._dead), None)
        if not pull.forsaken:
            pull.source = pull.primary
        elif helper is not None:
            pull.source = helper
        else:
            kind = pull.refusal if pull.primary not in self._dead else "lost"
            reasons = dict.fromkeys([*pull.bad.values(), reason])
            self._end(pull, (kind, self._lost_text(pull.object_id, "; ".join(reasons))))
            return
        self._ask(now, pull)

    # -- inside: the end ------------------------------------------------------------------------------------------

    def _give_up(self, pull: Pull, why: str = "") -> None:
        """Nobody reads it any more."""
        if pull.state is PullState.FETCHING:
            self._cancel(pull)
        elif pull.state is not PullState.ENDING:
            self._close(pull, why)

    def _end(self, pull: Pull, refusal: tuple[str, str], why: str = "") -> None:
        """Tell those who wait that they wait in vain; ``why``: what the file system said."""
        readers, pull.readers = pull.readers, []
        self._refuse(readers, refusal)
        self._give_up(pull, why)

    def _cancel(self, pull: Pull) -> None:
        pull.move("cancelled")
        self._out.append((CANCEL_FETCH, pull.object_id))

    def _close(self, pull: Pull, why: str = "") -> None:
        """Give back what the pull holds, here and elsewhere."""
        self._forget(pull)
        if pull.state is PullState.NEEDS_ROOM:
            stored = self._store.objects.get(pull.object_id)
            if not self._store.withdraw(pull.object_id) and stored is not None and stored.creator == PULLS:
                self._store.abort(pull.object_id)  # the answer that is on its way says that there is room
        elif pull.place is not None:
            self._on_abandoned(pull.object_id)
            self._store.abort(pull.object_id, why)
            self._leave(pull, complete=False)

    def _leave(self, pull: Pull, *, complete: bool) -> None:
        """Tell those who serve it that they can stop."""
        for agent in self._sources(pull):
            self._out.append((SEND, agent, CopyEnded(pull.object_id, complete)))

    def _sources(self, pull: Pull) -> list[bytes]:
        """The agents that keep something for this pull."""
        return [agent for agent in dict.fromkeys([pull.primary, pull.source]) if agent not in self._dead]

    def _refuse(self, readers: list[tuple[bytes, int]], refusal: tuple[str, str]) -> None:
        for peer, request_id in readers:
            self._out.append((SEND, peer, Reply(request_id, False, refusal)))

    def _lost_text(self, object_id: bytes, reason: str) -> str:
        return f"object {object_id.hex()} can not be brought from any node that had it: {reason}"

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        counts, total = [0] * (ARGUMENT + 1), [0] * (ARGUMENT + 1)
        for object_id, pull in self.pulls.items():
            name = f"the pull of {object_id.hex()}, which is {pull.state.name},"
            if pull.object_id != object_id or self._by_number.get(pull.number) is not pull:
                raise InvariantError(f"{name} is listed wrongly")
            if (object_id in self._waiting[pull.priority]) != (pull.state is PullState.WAITING):
                raise InvariantError(f"{name} is in the wrong queue")
            if not pull.readers and pull.state is not PullState.ENDING:
                raise InvariantError(f"{name} is for nobody")
            if (pull.place is None) != (pull.state in (PullState.WAITING, PullState.NEEDS_ROOM)):
                raise InvariantError(f"{name} has the room {pull.place}")
            stored = self._store.objects.get(object_id)
            if pull.place is not None and (stored is None or stored.sealed or stored.creator != PULLS):
                raise InvariantError(f"{name} has lost its room")
            if not 0 <= pull.received <= pull.size:
                raise InvariantError(f"{name} has {pull.received} of {pull.size} bytes")
            if pull.state is not PullState.WAITING:
                counts[pull.priority] += 1
                total[pull.priority] += pull.size
        if (counts, total) != (self._counts, self._bytes):
            raise InvariantError(f"{self._counts} pulls with {self._bytes} bytes are admitted, not {counts} with {total}")
        if len(self._by_number) != len(self.pulls) or sum(map(len, self._waiting)) > len(self.pulls):
            raise InvariantError("pulls that are over are still listed")

    def statistics(self) -> dict[str, int]:
        return {
            "pulls": len(self.pulls),
            "pulls_waiting": sum(map(len, self._waiting)),
            "pulls_bytes": sum(self._bytes),
            "pulls_received_bytes": sum(pull.received for pull in self.pulls.values()),
        }
