"""ControlDesk: the part of a node agent that finds its control again.

Theory of operation
-------------------
An agent registers its node when it starts, and again when it finds a control process that does not know it, in the place of one
that did. That knows only what was on disk, so the agent says all that runs here (``inventory``), and the control draws
the consequences (``restart``).
"""

from __future__ import annotations

from typing import Any

from zray.base.wire import RegisterNode
from zray.base.wire_placement import SubscribePlacementGroup
from zray.core.actor_desk import ActorDesk
from zray.core.bundles import BundleState, NodeBundles
from zray.core.effects import SEND


class ControlDesk(ActorDesk):
    """What ``NodeAgent`` inherits; the fields are made there."""

    __slots__ = ("_fields", "_registrations", "_reported")

    _fields: tuple[Any, ...]
    _registrations: int
    _reported: tuple[dict[str, int], tuple[Any, ...]]
    bundles: NodeBundles

    def register(self, fields: tuple[Any, ...]) -> None:
        """Join the cluster.

        Args:
            fields: of RegisterNode, without what runs here.
        """
        self._fields = fields
        self._registrations = 1
        self.out.append((SEND, self._control, RegisterNode(*(*fields, {}))))

    def on_control_broken(self, now: float) -> None:
        """There is a control process that knows nothing of this one: this is the first that it hears.

        It may hear earlier words after that, those that are not known to have been heard.
        """
        running = {"number": self._registrations, **self.inventory()}
        self._registrations += 1
        self.out.append((SEND, self._control, RegisterNode(*(*self._fields, running))))
        for group_id in self.bundles.known():
            self.out.append((SEND, self._control, SubscribePlacementGroup(group_id)))

    def inventory(self) -> dict[str, Any]:
        """What runs here."""
        jobs = [worker.job_id for worker in self.pool.workers.values() if worker.job_id is not None]
        return {
            "available": dict(self.scheduler.resources.available),
            "processes": list(self.clients),
            "jobs": list(dict.fromkeys([*jobs, *self.scheduler.jobs()])),
            "actors": self.actors_here(),
            "ends": [(actor_id, *end) for actor_id, end in self._ends.items()],
            "bundles": [
                (bundle.group_id, bundle.index, bundle.attempt, bundle.state is BundleState.COMMITTED)
                for bundle in self.bundles.bundles.values()
            ],
        }
