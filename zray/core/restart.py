"""Restart: how a control that was started again finds its cluster.

Theory of operation
-------------------
What the control must agree on with others is on disk before they hear of it, so what was saved is never behind what somebody
was told. It may be behind what has happened since: nodes, workers and drivers go on without a control. So all that is
*expected* to live has to show itself:

- A node registers again, with what runs there. An actor that should be there and is not was lost; one that is there and
  should not be is ended; the same for bundles of placement groups. A node that does not register in time is dead.
- A driver or worker is shown by its agent, or comes itself. Who is not seen in time has ended.

Until every node that was alive has come or is dead the control is not *settled*: it looks for no places, because it does not
know what is free. All of this can happen twice and changes nothing then: a node registers again as well when only its
connection broke.
"""

from __future__ import annotations

import pickle
from typing import Any

from zray.base.config import Config
from zray.base.resources import ResourceSet
from zray.base.wire_actors import EndActor
from zray.base.wire_placement import CommitBundles, ReturnBundles
from zray.core.actor import ActorState
from zray.core.actor import restored as _actor
from zray.core.actors import ActorManager
from zray.core.effects import AFTER_PERSIST, SEND, TIMER, Effect
from zray.core.nodes import Node, NodeManager
from zray.core.placement import PlacementGroupManager
from zray.core.placement_group import GroupState, PlacementGroup

EXPECTED_TIMER = "gcs.expected"
_GONE = "its process ended while the control was away"
_ACTOR = (bytes, int, bytes, str, int)  # id, incarnation, worker, endpoint, pid
_END = (bytes, int, str, bool)  # id, incarnation, reason, whether by its own will
_BUNDLE = (bytes, int, int, bool)  # group, index, attempt, whether it is committed


class Restart:
    """What an earlier control process knew, until it is confirmed.

    Args:
        config: limits.
        out: where effects go.
        members: the nodes.
        actors: the actors.
        placement: the placement groups.
    """

    __slots__ = ("_actors", "_config", "_expected", "_members", "_out", "_placement", "settled")

    def __init__(
        self,
        config: Config,
        out: list[Effect],
        members: NodeManager,
        actors: ActorManager,
        placement: PlacementGroupManager,
    ) -> None:
        self._config = config
        self._out = out
        self._members = members
        self._actors = actors
        self._placement = placement
        self._expected: dict[bytes, None] = {}  # processes that nobody has seen yet
        self.settled = True

    def load(self, saved: dict[str, list[dict[str, Any]]]) -> None:
        """Take over what was on disk."""
        for row in saved.get("nodes", []):
            self._members.restore(row)
        for row in saved.get("actors", []):
            self._actors.restore(_actor(row))
        for row in saved.get("placement_groups", []):
            self._placement.restore(_group(row))
        self.settled = not self._absent()
        self._placement.frozen = not self.settled

    def start(self, now: float, running: dict[bytes, bytes]) -> None:
        """Wait for those that should live.

        Args:
            now: the time.
            running: jobs that are not over, and their drivers.
        """
        living = [actor for actor in self._actors.actors.values() if actor.state is not ActorState.DEAD]
        self._expected.update(dict.fromkeys([*running.values(), *[actor.owner[0] for actor in living]]))
        if self._expected:
            self._out.append((TIMER, now + self._config.node_return_s, (EXPECTED_TIMER,)))
        self._members.expect(now)
        groups = list(self._placement.groups.values())
        for group in groups:
            actor = self._actors.actors.get(group.actor_id)
            group.actor_over = actor is None or actor.state is ActorState.DEAD
            group.attempt = max(group.attempt, int(now * 1000) << 20)  # above those whose answers may still come
        for job_id in dict.fromkeys([*[actor.job_id for actor in living], *[group.job_id for group in groups]]):
            if job_id not in running:  # its end was written down, and perhaps not all that follows from it
                self._actors.job_finished(now, job_id)
                self._placement.job_finished(now, job_id)
        if self.settled:
            self._go_on(now)

    def heard(self, process: bytes) -> None:
        """A driver or worker has shown itself."""
        self._expected.pop(process, None)

    def missing(self) -> list[bytes]:
        """The processes that were not seen in time."""
        missing = list(self._expected)
        self._expected.clear()
        return missing

    def node_returned(self, now: float, node: Node, running: dict[str, Any]) -> None:
        """A node has registered again, and said what runs there."""
        for process in running["processes"]:
            self.heard(process)
        self._compare_actors(now, node, running)
        self._compare_bundles(now, node, running["bundles"])

    def look(self, now: float) -> None:
        """A node came or ended: perhaps it was the last that was waited for."""
        if not self.settled and not self._absent():
            self.settled = True
            self._placement.frozen = False
            self._go_on(now)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _absent(self) -> bool:
        return any(not node.registered for node in self._members.alive())

    def _go_on(self, now: float) -> None:
        """All nodes are known: what waits for a place can have one."""
        self._placement.nodes_changed(now)
        self._actors.place_waiting(now)

    def _compare_actors(self, now: float, node: Node, running: dict[str, Any]) -> None:
        there = {(actor_id, incarnation): place for actor_id, incarnation, *place in running["actors"]}
        ends = {(actor_id, incarnation): end for actor_id, incarnation, *end in running["ends"]}
        for actor in self._actors.placed_at(node.agent):
            which = (actor.id, actor.incarnation)
            place = there.pop(which, None)
            if place is not None:
                if place[0]:
                    self._actors.on_actor_placed(now, node.agent, *which, node.id, *place)
            elif which in ends or actor.worker_id:
                self._actors.on_actor_lost(now, node.agent, *which, *ends.get(which, (_GONE, False)))
            else:
                self._actors.place_again(now, actor)
        for actor_id, incarnation in there:
            self._out.append((AFTER_PERSIST, node.agent, EndActor(actor_id, incarnation, True)))

    def _compare_bundles(self, now: float, node: Node, rows: list[tuple[bytes, int, int, bool]]) -> None:
        groups = self._placement.groups
        self._placement.break_off(now, node.id, "a node that was asked has registered again")
        there: dict[bytes, list[int]] = {}
        for group_id, index, attempt, committed in rows:
            group = groups.get(group_id)
            if group is None or index >= len(group.nodes) or group.nodes[index] != node.id:
                text = "its placement group has other places, or is gone"
                self._out.append((SEND, node.agent, ReturnBundles(group_id, [index], text)))
                continue
            there.setdefault(group_id, []).append(index)
            if not committed:
                self._out.append((SEND, node.agent, CommitBundles(group_id, attempt)))
        for group in list(groups.values()):
            placed = [index for index, place in enumerate(group.nodes) if place == node.id]
            lost = [index for index in placed if index not in there.get(group.id, [])]
            if lost and group.state is not GroupState.REMOVED:
                self._placement.lose(now, group, lost, f"node {node.id.hex()[:8]} has lost it")
                self._placement.nodes_changed(now)


def is_inventory(running: dict[str, Any]) -> bool:
    """Whether it has the shape of what agents say of themselves (``ControlDesk.inventory``)."""
    available, number = running.get("available"), running.get("number")
    if not isinstance(number, int) or not isinstance(available, dict):
        return False
    amounts = all(isinstance(name, str) and isinstance(units, int) for name, units in available.items())
    ids = [running.get("processes"), running.get("jobs")]
    plain = all(isinstance(each, list) and all(isinstance(id, bytes) for id in each) for each in ids)
    rows = [(running.get("actors"), _ACTOR), (running.get("ends"), _END), (running.get("bundles"), _BUNDLE)]
    return amounts and plain and all(isinstance(each, list) and all(_fits(row, types) for row in each) for each, types in rows)


def _fits(row: Any, types: tuple[type, ...]) -> bool:
    return isinstance(row, tuple) and len(row) == len(types) and all(map(isinstance, row, types))


def _group(row: dict[str, Any]) -> PlacementGroup:
    """The group of a row."""
    actor_id, name, namespace, bundles, conditions = pickle.loads(row["details"])
    sets = tuple(ResourceSet(units) for units in bundles)
    group = PlacementGroup(row["group_id"], row["job_id"], row["creator"], row["strategy"], sets, tuple(conditions))
    group.actor_id, group.name, group.namespace = actor_id, name, namespace
    group.detached = bool(row["detached"])
    group.state = GroupState[row["state"]]
    group.reason = row["reason"] or ""
    if row["standing"]:
        group.nodes, group.attempt = pickle.loads(row["standing"])
    return group
