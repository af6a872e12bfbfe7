"""ControlDesk: the part of a node agent that finds its control again.

Theory of operation
-------------------
An agent registers its node when it starts, and again whenever its connection to the control was broken: what was under way then
is lost, and it may be another control process that answers, which knows only what was on disk. So it says all that runs here
(``inventory``), and the control draws the consequences (``restart``). When it is another control, the processes of this
node are told, since they might not notice: who says nothing to the control sees no connection break.
"""

from __future__ import annotations

from typing import Any

from zray.base.wire import RegisterNode
from zray.base.wire_placement import SubscribePlacementGroup
from zray.base.wire_return import ControlReturned
from zray.core.actor_desk import ActorDesk
from zray.core.bundles import BundleState, NodeBundles
from zray.core.effects import SEND


class ControlDesk(ActorDesk):
    """What ``NodeAgent`` inherits; the fields are made there."""

    __slots__ = ("_control_heard", "_control_known", "_fields", "_reported")

    _control_heard: float
    _control_known: bytes
    _fields: tuple[Any, ...]
    _reported: dict[str, int]
    bundles: NodeBundles

    def register(self, fields: tuple[Any, ...]) -> None:
        """Join the cluster.

        Args:
            fields: of RegisterNode, without what runs here.
        """
        self._fields = fields
        self.out.append((SEND, self._control, RegisterNode(*(*fields, {}))))

    def on_control_broken(self, now: float) -> None:
        """The connection to the control broke; what is said now arrives as soon as there is one again."""
        self.out.append((SEND, self._control, RegisterNode(*(*self._fields, self.inventory()))))
        for group_id in self.bundles.known():
            self.out.append((SEND, self._control, SubscribePlacementGroup(group_id)))

    def on_node_registered(self, now: float, peer: bytes, control: bytes) -> None:
        """The control has written down that this node lives."""
        self._control_heard = now
        known, self._control_known = self._control_known, control
        if known not in (b"", control):
            for client in self.clients:
                self.out.append((SEND, client, ControlReturned(control)))

    def inventory(self) -> dict[str, Any]:
        """What runs here."""
        self._reported = dict(self.scheduler.resources.available)
        jobs = [worker.job_id for worker in self.pool.workers.values() if worker.job_id is not None]
        return {
            "available": self._reported,
            "processes": list(self.clients),
            "jobs": list(dict.fromkeys([*jobs, *self.scheduler.jobs()])),
            "actors": self.actors_here(),
            "ends": [(actor_id, *end) for actor_id, end in self._ends.items()],
            "bundles": [
                (bundle.group_id, bundle.index, bundle.state is BundleState.COMMITTED)
                for bundle in self.bundles.bundles.values()
            ],
        }
