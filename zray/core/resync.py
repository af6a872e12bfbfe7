"""Resync: how a driver or worker says again what its control must know of it.

Theory of operation
-------------------
A process goes on while there is no control. When it finds another one there, that may not know what the one before had heard
last. The process does not repeat all it ever said, but says how things are: it asks its open questions again, and
subscribes to the actors that it calls. The control answers with what it knows (OwnerKnown), and the process corrects that: it
registers and creates the actors whose registration or creation was lost, and gives up those that are not needed any more.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from zray.base.wire import CONTROL, ERROR
from zray.base.wire_actors import ActorOutOfScope, CreateActor, KillActor, SubscribeActor
from zray.base.wire_return import OwnerReturned
from zray.core.actor import ActorState
from zray.core.effects import SEND
from zray.core.owner import Owner
from zray.exceptions import ActorDiedError


class Resync:
    """What one driver or worker says to a control that it did not know.

    Args:
        owner: its brain, whose effects carry what is said.
        open_words: what else was said and is not known to have been heard, as questions without an answer.
    """

    __slots__ = ("_open_words", "_owner")

    def __init__(self, owner: Owner, open_words: Callable[[], list[Any]]) -> None:
        self._owner = owner
        self._open_words = open_words

    def on_broken(self, peer: bytes) -> None:
        """Somebody else is where a peer was."""
        if peer == CONTROL:
            self.begin()

    def begin(self) -> None:
        """There is a control process that knows nothing of this one: this is the first that it hears."""
        out = self._owner.out
        out.extend((SEND, CONTROL, message) for message in self._open_words())
        out.append((SEND, CONTROL, OwnerReturned()))
        for queue in self._owner.calls.queues.values():
            if not queue.error:
                out.append((SEND, CONTROL, SubscribeActor(queue.actor_id)))
                if queue.killed:
                    out.append((SEND, CONTROL, KillActor(queue.actor_id, True)))

    def on_owner_known(self, now: float, peer: bytes, actors: list[Any]) -> None:
        """The control says what it knows."""
        out, queues = self._owner.out, self._owner.calls.queues
        known = {actor_id: state for actor_id, _, state in actors}
        for actor_id, handle_id, _ in actors:
            if not self._owner.references.needed(handle_id):
                out.append((SEND, CONTROL, ActorOutOfScope(actor_id)))
        for queue in queues.values():
            if queue.registration is not None and queue.actor_id not in known:
                out.append((SEND, CONTROL, queue.registration))
                known[queue.actor_id] = ActorState.DEPENDENCIES_UNREADY.name
        for actor_id, state in known.items():
            if state == ActorState.DEPENDENCIES_UNREADY.name:
                self._create(actor_id)
        for actor_id in [a for a in self._owner.creations if a not in known and a not in queues]:
            text = "no handle of it was left, and it had ended, or was never known, when another control was started"
            error = pickle.dumps(ActorDiedError(text, actor_id.hex()), 5)
            self._owner.on_actor_updated(now, peer, actor_id, ActorState.DEAD.name, 0, b"", "", error)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _create(self, actor_id: bytes) -> None:
        """The control has not heard that the arguments of a constructor are there, or that one of them is an error."""
        task = self._owner.creations.get(actor_id)
        queue = self._owner.calls.queues.get(actor_id)
        if task is not None:
            if task.id in self._owner.tasks.pending and not task.missing:
                self._owner.send_creation(actor_id, task)
        elif queue is not None:
            entry = self._owner.memory.get(queue.handle_id)
            if entry is not None and entry[0] == ERROR:
                self._owner.out.append((SEND, CONTROL, CreateActor(actor_id, b"", entry[1])))
