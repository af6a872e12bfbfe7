"""Resync: how a driver or worker says again what its control must know of it.

Theory of operation
-------------------
A process goes on while there is no control; what it says to it meanwhile is lost, as is what was under way when the
control ended. When it notices that there is another one (its agent says so, or its connection broke) it does not repeat what
it had said, but says how things are: it asks its open questions again, subscribes to the actors that it calls, and names
the functions that it has exported. The control answers with what it knows (OwnerKnown), and the process corrects that: it
sends what is missing, creates the actors whose creation was lost, and gives up those that are not needed any more.

It is said again, after a while that doubles, until the control has answered: the first word may have gone into the old
connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.base.config import Config
from zray.base.wire import CONTROL, ERROR
from zray.base.wire_actors import ActorOutOfScope, CreateActor, KillActor, SubscribeActor
from zray.base.wire_return import OwnerReturned
from zray.core.actor import ActorState
from zray.core.effects import GREET, SEND, TIMER
from zray.core.owner import Owner

AGAIN_TIMER = "resync.again"


class Resync:
    """What one driver or worker says to a control that it did not know.

    Args:
        config: limits.
        owner: its brain, whose effects carry what is said.
        exports: the functions it has exported, each with the message that does that.
        open_words: what else was said and is not known to have been heard, as questions without an answer.
    """

    __slots__ = ("_config", "_control", "_delay_s", "_exports", "_open_words", "_owner", "_timer_set")

    def __init__(
        self, config: Config, owner: Owner, exports: dict[bytes, Any], open_words: Callable[[], list[Any]]
    ) -> None:
        self._config = config
        self._owner = owner
        self._exports = exports
        self._open_words = open_words
        self._control = b""  # the control process that has answered last
        self._delay_s = 0.0  # before it is said once more; 0 when it was answered
        self._timer_set = False

    def on_control_returned(self, now: float, peer: bytes, control: bytes) -> None:
        """The agent has found another control process."""
        if control != self._control:
            self._owner.out.append((GREET, CONTROL))
            self.begin(now)

    def begin(self, now: float) -> None:
        """This process has introduced itself to a control that may know nothing of what it said before."""
        out = self._owner.out
        out.extend((SEND, CONTROL, message) for message in self._open_words())
        out.append((SEND, CONTROL, OwnerReturned(list(self._exports))))
        for queue in self._owner.calls.queues.values():
            if not queue.error:
                out.append((SEND, CONTROL, SubscribeActor(queue.actor_id)))
                if queue.killed:
                    out.append((SEND, CONTROL, KillActor(queue.actor_id, True)))
        self._delay_s = max(self._delay_s, self._config.resync_retry_s)
        if not self._timer_set:
            self._timer_set = True
            out.append((TIMER, now + self._delay_s, (AGAIN_TIMER,)))

    def on_owner_known(
        self, now: float, peer: bytes, control: bytes, actors: list[Any], missing: list[bytes]
    ) -> None:
        """The control says what it knows."""
        self._control = control
        self._delay_s = 0.0
        out = self._owner.out
        out.extend((SEND, CONTROL, self._exports[function_id]) for function_id in missing if function_id in self._exports)
        known = {actor_id: state for actor_id, _, state in actors}
        for actor_id, handle_id, _ in actors:
            if not self._owner.references.needed(handle_id):
                out.append((SEND, CONTROL, ActorOutOfScope(actor_id)))
        for queue in self._owner.calls.queues.values():
            if queue.registration is not None and queue.actor_id not in known:
                out.append((SEND, CONTROL, queue.registration))
                known[queue.actor_id] = ActorState.DEPENDENCIES_UNREADY.name
        for actor_id, state in known.items():
            if state == ActorState.DEPENDENCIES_UNREADY.name:
                self._create(actor_id)

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        self._timer_set = False
        if self._delay_s:
            self._delay_s *= 2
            self._owner.out.append((GREET, CONTROL))
            self.begin(now)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _create(self, actor_id: bytes) -> None:
        """The control has not heard that the arguments of a constructor are there, or that one of them is an error."""
        task = self._owner.creations.get(actor_id)
        queue = self._owner.calls.queues.get(actor_id)
        if task is not None:
            if task.id in self._owner.tasks.pending and not task.missing:
                self._owner.out.append((SEND, CONTROL, CreateActor(actor_id, self._owner.creation(task), b"")))
        elif queue is not None:
            entry = self._owner.memory.get(queue.handle_id)
            if entry is not None and entry[0] == ERROR:
                self._owner.out.append((SEND, CONTROL, CreateActor(actor_id, b"", entry[1])))

    def statistics(self) -> dict[str, int]:
        return {"control_unanswered": int(self._delay_s > 0), "functions_exported": len(self._exports)}
