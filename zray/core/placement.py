"""PlacementGroupManager: the placement groups of the cluster, from their registration to their removal.

Theory of operation
-------------------
A placement group is a list of *bundles*, each a set of resources that is set apart on one node, all of them or none. When one is
registered its name is taken, and places are looked for (``packing``) in what the nodes said last. That may be wrong by now,
so in a *round* each node is asked to prepare its bundles. When all have done so, they are told to commit, and the group is
there. When one refuses or dies, the others give theirs back, and another round follows later, after a delay that doubles up to
``placement_retry_max_s``, or as soon as nodes change. Rounds are numbered, and answers to an earlier one are ignored.

When a node dies the group is *rescheduled*: the bundles that were there get new places, the others stay and go on being used.
What the nodes can never hold is told to the creator; a group that never had its places is removed after ``infeasible_grace_s`` of
that, unless the cluster is one that waits for nodes (``infeasible``).

A group is removed by hand, or when its job is over, and the actor that created it as well, if one did; a *detached* one
by hand only. The nodes then end what runs in its bundles. Agents that have requests for a group subscribe to it, and hear where
its bundles are whenever that changes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from zray.base.config import Config
from zray.base.ids import agent_id, agent_of
from zray.base.resources import ResourceSet
from zray.base.wire import Reply
from zray.base.wire_actors import Notice
from zray.base.wire_placement import BundlesCounted, CommitBundles, PlacementGroupUpdated, PrepareBundles, ReturnBundles
from zray.core.effects import AFTER_PERSIST, PERSIST, SEND, TIMER, Effect
from zray.core.packing import STRATEGIES, Packing, pack_bundles
from zray.core.placement_group import GroupState, PlacementGroup
from zray.core.views import GroupView, NodeView, Views, are_amounts, is_condition
from zray.exceptions import InvariantError

RETRY_TIMER = "placement.retry"
WAIT_TIMER = "placement.wait"


class PlacementGroupManager:
    """All placement groups of the cluster.

    Args:
        config: limits.
        out: where effects go.
        views: gives the nodes as they are now.
        told: called with the time and the id of a group whose places have changed, or that is gone.
    """

    __slots__ = (
        "_agents",
        "_config",
        "_dead",
        "_out",
        "_over",
        "_rounds",
        "_told",
        "_unplaced",
        "_views",
        "_waits",
        "frozen",
        "groups",
        "names",
    )

    def __init__(
        self,
        config: Config,
        out: list[Effect],
        views: Callable[[], Views],
        told: Callable[[float, bytes], None] | None = None,
    ) -> None:
        self._config = config
        self._out = out
        self._views = views
        self._told = told
        self._agents: dict[bytes, bytes] = {}  # of the nodes that were ever asked
        self._dead: dict[bytes, None] = {}  # the removed that are remembered, the oldest first
        self._over: dict[bytes, None] = {}  # jobs and actors that ended: what they have sent may arrive later
        self._rounds: dict[bytes, PlacementGroup] = {}  # whose nodes are being asked
        self._waits: dict[bytes, dict[bytes, None]] = {}  # process -> groups it waits for
        self._unplaced: dict[bytes, PlacementGroup] = {}  # those that look for places
        self.frozen = False  # not all nodes are known: nobody looks for places
        self.groups: dict[bytes, PlacementGroup] = {}
        self.names: dict[tuple[str, str], PlacementGroup] = {}  # (namespace, name) of those that are not removed

    # -- what owners ask for --------------------------------------------------------------------------------------

    def on_register_placement_group(
        self,
        now: float,
        peer: bytes,
        request_id: int,
        group_id: bytes,
        job_id: bytes,
        actor_id: bytes,
        name: str,
        namespace: str,
        detached: bool,
        strategy: str,
        bundles: list[dict[str, int]],
        conditions: list[tuple[Any, ...]],
    ) -> None:
        if group_id in self.groups:  # the answer may have been lost with an earlier control
            self._out.append((AFTER_PERSIST, peer, Reply(request_id, True, None)))
            return
        refusal = self._refusal(strategy, bundles, conditions)
        known = self.names.get((namespace, name)) if name else None
        if known is not None:
            refusal = f"the name {name!r} is taken in namespace {namespace!r} by {known.title()}"
        if refusal:
            self._out.append((SEND, peer, Reply(request_id, False, refusal)))
            return
        sets = tuple(ResourceSet(units) for units in bundles)
        group = PlacementGroup(group_id, job_id, peer, strategy, sets, tuple(conditions))
        group.actor_id = actor_id
        group.name = name
        group.namespace = namespace
        group.detached = detached
        group.job_over = job_id in self._over
        group.actor_over = not actor_id or actor_id in self._over
        self.groups[group_id] = self._unplaced[group_id] = group
        if name:
            self.names[namespace, name] = group
        held = "; ".join(repr(bundle) for bundle in group.bundles)
        details = pickle.dumps((actor_id, name, namespace, bundles, conditions), 5)
        row = (group_id, job_id, peer, name, namespace, detached, strategy, held, group.state.name, details)
        self._out.append((PERSIST, "save_placement_group", row))
        self._out.append((AFTER_PERSIST, peer, Reply(request_id, True, None)))
        self._end_if_over(now, group)
        self._try(now, group)

    def on_remove_placement_group(self, now: float, peer: bytes, request_id: int, group_id: bytes) -> None:
        group = self.groups.get(group_id)
        if group is not None:
            self._remove(now, group, "remove_placement_group() was called on it")
        self._out.append((AFTER_PERSIST, peer, Reply(request_id, True, None)))

    def on_get_placement_group(self, now: float, peer: bytes, request_id: int, name: str, namespace: str) -> None:
        group = self.names.get((namespace, name))
        if group is not None:
            found = (group.id, [dict(bundle) for bundle in group.bundles])
            self._out.append((SEND, peer, Reply(request_id, True, found)))
            return
        others = sorted(n for space, n in self.names if space == namespace)[:10]
        known = f"those there are {', '.join(map(repr, others))}" if others else "there is none with a name"
        text = f"there is no placement group named {name!r} in namespace {namespace!r}: {known}"
        self._out.append((SEND, peer, Reply(request_id, False, text)))

    def on_list_placement_groups(self, now: float, peer: bytes, request_id: int) -> None:
        self._out.append((SEND, peer, Reply(request_id, True, [_row(group) for group in self.groups.values()])))

    def on_wait_placement_group(
        self, now: float, peer: bytes, request_id: int, group_id: bytes, timeout_s: float
    ) -> None:
        group = self.groups.get(group_id)
        if group is None or group.state is GroupState.REMOVED:
            self._out.append((SEND, peer, Reply(request_id, False, self._gone(group_id))))
        elif group.state is GroupState.CREATED or timeout_s == 0:
            self._out.append((AFTER_PERSIST, peer, Reply(request_id, True, group.state is GroupState.CREATED)))
        else:
            group.waiters[peer, request_id] = None
            self._waits.setdefault(peer, {})[group_id] = None
            if timeout_s > 0:
                self._out.append((TIMER, now + timeout_s, (WAIT_TIMER, group_id, peer, request_id)))

    def on_subscribe_placement_group(self, now: float, peer: bytes, group_id: bytes) -> None:
        group = self.groups.get(group_id)
        if group is not None and group.state is not GroupState.REMOVED:
            group.subscribers[peer] = None
        self._out.append((SEND, peer, _update(group_id, self.view(group_id))))
        if group is not None and group.free:
            self._out.append((SEND, peer, BundlesCounted(group_id, group.free)))

    # -- what nodes say -------------------------------------------------------------------------------------------

    def on_bundles_prepared(
        self, now: float, peer: bytes, group_id: bytes, attempt: int, node_id: bytes, reason: str
    ) -> None:
        group = self.groups.get(group_id)
        if group is None or attempt != group.attempt or node_id not in group.asked:
            return  # the round is over
        if reason:
            del group.asked[node_id]
            self._give_up(group, "another node had no room")
            group.reason = f"node {node_id.hex()[:8]} had no room: {reason}"
            self._later(now, group)
            return
        group.prepared[node_id] = group.asked.pop(node_id)
        if not group.asked:
            self._commit(now, group)

    def bundles_counted(self, node_id: bytes, rows: Iterable[tuple[Any, ...]]) -> None:
        """A node says what is free in its bundles: those who have requests for their groups want to know."""
        changed: dict[bytes, dict[int, dict[str, int]]] = {}
        for group_id, index, free in filter(_is_count, rows):
            group = self.groups.get(group_id)
            if group is not None and group.nodes[index : index + 1] == [node_id] and group.free.get(index) != free:
                group.free[index] = free
                changed.setdefault(group_id, {})[index] = free
        for group_id, news in changed.items():
            for agent in self.groups[group_id].subscribers:
                self._out.append((SEND, agent, BundlesCounted(group_id, news)))

    def node_ended(self, now: float, node_id: bytes, agent: bytes) -> None:
        """A node is dead, with its processes and the bundles that were there."""
        self._agents.pop(node_id, None)
        for process in [process for process in self._waits if agent_of(process) == agent]:
            self.process_ended(process)
        for group in list(self.groups.values()):
            group.subscribers.pop(agent, None)
            lost = [index for index, node in enumerate(group.nodes) if node == node_id]
            in_round = node_id in group.asked or node_id in group.prepared
            if in_round or lost:  # a round that goes on has not looked for places for what is lost now
                group.asked.pop(node_id, None)
                group.prepared.pop(node_id, None)
                self._give_up(group, f"node {node_id.hex()[:8]} died")
            if lost:
                self.lose(now, group, lost, f"node {node_id.hex()[:8]} died")
            elif in_round:
                self._try(now, group)

    def lose(self, now: float, group: PlacementGroup, indexes: list[int], reason: str) -> None:
        """Some of its bundles are gone, and need new places."""
        for index in indexes:
            group.nodes[index] = b""
            group.free.pop(index, None)
        group.reason = reason
        group.move("lost")
        self._unplaced[group.id] = group
        self._changed(now, group)
        self._try(now, group)

    def nodes_changed(self, now: float) -> None:
        """There are new nodes, or something is free that was not."""
        failed: dict[tuple[Any, ...], Packing] = {}
        for group in list(self._unplaced.values()):
            self._try(now, group, failed)

    def break_off(self, now: float, node_id: bytes, reason: str) -> None:
        """A node may not have heard what it was asked for, or not have been heard: those rounds begin anew."""
        for group in list(self._rounds.values()):
            if node_id in group.asked or node_id in group.prepared:
                self._give_up(group, reason)
                self._later(now, group)

    def restore(self, group: PlacementGroup) -> None:
        """A group that an earlier control process knew."""
        self.groups[group.id] = group
        self._agents.update({node: agent_id(node) for node in group.nodes if node})
        if group.state is GroupState.REMOVED:
            self._dead[group.id] = None
            return
        if group.state is not GroupState.CREATED:
            self._unplaced[group.id] = group
        if group.name:
            self.names[group.namespace, group.name] = group

    # -- ends -----------------------------------------------------------------------------------------------------

    def job_finished(self, now: float, job_id: bytes) -> None:
        """A job is over: so are its groups, unless they are detached or belong to an actor that lives on."""
        self._note_end(job_id)
        for group in list(self.groups.values()):
            if group.job_id == job_id:
                group.job_over = True
                self._end_if_over(now, group)

    def actor_ended(self, now: float, actor_id: bytes) -> None:
        """An actor is dead for good."""
        self._note_end(actor_id)
        for group in list(self.groups.values()):
            if group.actor_id == actor_id:
                group.actor_over = True
                self._end_if_over(now, group)

    def process_ended(self, process: bytes) -> None:
        """A driver or worker is gone: it waits for nothing any more."""
        for group_id in self._waits.pop(process, ()):
            group = self.groups.get(group_id)
            if group is not None:
                group.waiters = {key: None for key in group.waiters if key[0] != process}

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        group = self.groups.get(key[1])
        if group is None:
            return
        if key[0] == RETRY_TIMER:
            group.retry_set = False
            self._try(now, group)
        elif key[2:] in group.waiters:
            del group.waiters[key[2], key[3]]
            if not any(peer == key[2] for peer, _ in group.waiters):
                self._waits_no_more(key[2], group)
            self._out.append((SEND, key[2], Reply(key[3], True, False)))

    def view(self, group_id: bytes) -> GroupView:
        """What policies must know of a group; one that is not known was removed."""
        group = self.groups.get(group_id)
        return group.view() if group is not None else GroupView(GroupState.REMOVED.name, (), (), "it was removed long ago")

    # -- inside ---------------------------------------------------------------------------------------------------

    def _refusal(self, strategy: str, bundles: list[dict[str, int]], conditions: list[tuple[Any, ...]]) -> str:
        """What is wrong with a registration; what is sent by processes of users is not trusted."""
        if strategy not in STRATEGIES:
            return f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}"
        if not 0 < len(bundles) <= self._config.placement_bundles_max:
            return f"a placement group has between 1 and {self._config.placement_bundles_max} bundles, not {len(bundles)}"
        for index, units in enumerate(bundles):
            whole = all(isinstance(name, str) and type(amount) is int and amount >= 0 for name, amount in units.items())
            if not whole or not any(units.values()):
                return f"bundle {index} must hold something: {units!r}"
        if len(conditions) > len(bundles) or not all(is_condition(one) for row in conditions for one in row):
            return "the labels that its bundles ask for can not be read"
        return ""

    def _try(self, now: float, group: PlacementGroup, failed: dict[tuple[Any, ...], Packing] | None = None) -> None:
        """Look for places and ask the nodes, unless they are being asked already."""
        if self.frozen or group.asked or group.state not in (GroupState.PENDING, GroupState.RESCHEDULING):
            return
        placed = {index: node for index, node in enumerate(group.nodes) if node}
        shape = (group.strategy, group.bundles, group.conditions, tuple(group.nodes))
        packing = failed.get(shape) if failed is not None else None
        views = {} if packing is not None else self._left()
        if packing is None:
            packing = pack_bundles(views, group.bundles, group.strategy, placed=placed, conditions=group.conditions)
        if packing.nodes is None:
            if failed is not None:
                failed[shape] = packing
            self._wait(now, group, packing)
            return
        group.infeasible = ""
        group.attempt += 1
        group.plan = {index: node for index, node in enumerate(packing.nodes) if index not in placed}
        for index, node in group.plan.items():
            group.asked.setdefault(node, []).append(index)
        self._rounds[group.id] = group
        for node, indexes in group.asked.items():
            self._agents[node] = views[node].agent
            rows = [(index, dict(group.bundles[index])) for index in indexes]
            self._out.append((SEND, views[node].agent, PrepareBundles(group.id, group.attempt, rows)))

    def _left(self) -> dict[bytes, NodeView]:
        """The nodes without what other rounds have asked for, which no view shows yet."""
        views = dict(self._views())
        own: dict[bytes, None] = {}
        for group in self._rounds.values():
            for node, indexes in (*group.asked.items(), *group.prepared.items()):
                if node in views and node not in own:
                    own[node] = None
                    views[node] = replace(views[node])
                for index in indexes if node in views else ():
                    views[node].available = views[node].available.minus(group.bundles[index])
        return views

    def _wait(self, now: float, group: PlacementGroup, packing: Packing) -> None:
        """There are no places for it now."""
        group.reason = packing.reason
        if not packing.infeasible:
            group.infeasible = ""
            self._later(now, group)
            return
        grace_s = self._config.infeasible_grace_s
        ends = group.state is GroupState.PENDING and self._config.infeasible != "wait"
        if not group.infeasible:
            group.infeasible_since = now
            fate = f"it fails in {grace_s:g} s" if ends else "it waits for nodes that can"
            text = f"no nodes can hold {group.title()}: {packing.reason}; {fate}"
            self._out.append((SEND, group.creator, Notice(text)))
        group.infeasible = packing.reason
        if ends and now - group.infeasible_since >= grace_s:
            self._remove(now, group, f"no nodes can hold it: {packing.reason}")
        else:
            self._later(now, group)

    def _later(self, now: float, group: PlacementGroup) -> None:
        """Try again after a while."""
        if not group.retry_set:
            group.retry_set = True
            delay_s = self._config.placement_retry_ms / 1000 * 2.0 ** min(group.tries, 20)
            group.tries += 1
            at = now + min(delay_s, self._config.placement_retry_max_s)
            self._out.append((TIMER, at, (RETRY_TIMER, group.id)))

    def _commit(self, now: float, group: PlacementGroup) -> None:
        """All nodes have prepared theirs."""
        nodes, group.prepared = list(group.prepared), {}
        for index, node in group.plan.items():
            group.nodes[index] = node
        group.plan = {}
        del self._rounds[group.id]
        group.tries = 0
        group.reason = ""
        group.move("placed")
        self._unplaced.pop(group.id, None)
        self._changed(now, group)
        for node in nodes:
            self._out.append((AFTER_PERSIST, self._agents[node], CommitBundles(group.id, group.attempt)))
        self._answer(group, True, True)

    def _give_up(self, group: PlacementGroup, reason: str) -> None:
        """The round has failed: what was asked for is not wanted any more."""
        for node, indexes in (*group.asked.items(), *group.prepared.items()):
            self._out.append((SEND, self._agents[node], ReturnBundles(group.id, indexes, reason)))
        group.asked = {}
        group.prepared = {}
        group.plan = {}
        self._rounds.pop(group.id, None)

    def _end_if_over(self, now: float, group: PlacementGroup) -> None:
        if group.job_over and group.actor_over and not group.detached:
            self._remove(now, group, "its job ended")

    def _remove(self, now: float, group: PlacementGroup, reason: str) -> None:
        if group.state is GroupState.REMOVED:
            return
        self._give_up(group, reason)
        for node in dict.fromkeys(filter(None, group.nodes)):
            indexes = [index for index, place in enumerate(group.nodes) if place == node]
            text = f"{group.title()} was removed: {reason}"
            self._out.append((SEND, self._agents[node], ReturnBundles(group.id, indexes, text)))
        group.nodes = [b""] * len(group.bundles)
        group.free = {}
        group.reason = reason
        group.move("removed")
        self._unplaced.pop(group.id, None)
        if group.name:
            del self.names[group.namespace, group.name]
        self._answer(group, False, self._gone(group.id))
        self._changed(now, group)
        group.subscribers = {}
        self._dead[group.id] = None
        if len(self._dead) > self._config.dead_placement_groups_max:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            del self.groups[oldest]
            self._out.append((PERSIST, "forget_placement_group", (oldest,)))

    def _answer(self, group: PlacementGroup, ok: bool, value: Any) -> None:
        """Tell those who wait for its places."""
        for peer, request_id in group.waiters:
            self._out.append((AFTER_PERSIST, peer, Reply(request_id, ok, value)))
            self._waits_no_more(peer, group)
        group.waiters = {}

    def _waits_no_more(self, peer: bytes, group: PlacementGroup) -> None:
        self._waits.get(peer, {}).pop(group.id, None)
        if not self._waits.get(peer):
            self._waits.pop(peer, None)

    def _gone(self, group_id: bytes) -> str:
        group = self.groups.get(group_id)
        title = group.title() if group is not None else f"placement group ({group_id.hex()})"
        return f"{title} was removed: {self.view(group_id).reason}"

    def _changed(self, now: float, group: PlacementGroup) -> None:
        """Write it down, and tell who wants to know."""
        nodes, standing = ", ".join(node.hex()[:8] for node in group.nodes), pickle.dumps((group.nodes, group.attempt), 5)
        self._out.append((PERSIST, "update_placement_group", (group.state.name, nodes, group.reason, standing, group.id)))
        for agent in group.subscribers:
            self._out.append((AFTER_PERSIST, agent, _update(group.id, group.view())))
        if self._told is not None:
            self._told(now, group.id)

    def _note_end(self, id: bytes) -> None:
        self._over[id] = None
        if len(self._over) > self._config.dead_actors_max:
            del self._over[next(iter(self._over))]

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        for (namespace, name), group in self.names.items():
            if (group.namespace, group.name) != (namespace, name) or group.state is GroupState.REMOVED:
                raise InvariantError(f"name {name!r} belongs to {group.title()}, which is {group.state.name}")
        for group in self.groups.values():
            self._check(group)

    def _check(self, group: PlacementGroup) -> None:
        removed = group.state is GroupState.REMOVED
        unsettled = group.asked or group.prepared or group.waiters or group.subscribers or any(group.nodes)
        looks = group.state in (GroupState.PENDING, GroupState.RESCHEDULING)
        if removed != (group.id in self._dead) or looks != (group.id in self._unplaced) or (removed and unsettled):
            raise InvariantError(f"{group.title()} is {group.state.name}, not as listed")
        if (group.state is GroupState.CREATED) != all(group.nodes):
            raise InvariantError(f"{group.title()} is {group.state.name} with {group.nodes}")
        if group.asked or group.prepared:
            if group.id not in self._rounds:
                raise InvariantError(f"the round of {group.title()} is not listed")
            in_round = sorted(_flat([*group.asked.values(), *group.prepared.values()]))
            if in_round != sorted(group.plan) or not group.asked or any(group.nodes[index] for index in in_round):
                raise InvariantError(f"the round of {group.title()} does not add up")
        elif looks and not (group.retry_set or self.frozen):
            raise InvariantError(f"{group.title()} is {group.state.name} and nobody looks for places")
        for peer, _ in group.waiters:
            if group.id not in self._waits.get(peer, {}):
                raise InvariantError(f"{peer.hex()} waits for {group.title()} and is not listed")

    def statistics(self) -> dict[str, int]:
        return {
            "placement_groups": len(self.groups) - len(self._dead),
            "placement_groups_pending": len(self._unplaced),
            "placement_groups_removed": len(self._dead),
        }


def _is_count(row: tuple[Any, ...]) -> bool:
    """Whether what a peer said of a bundle can be read."""
    return isinstance(row[0], bytes) and type(row[1]) is int and row[1] >= 0 and are_amounts(row[2])


def _flat(lists: Iterable[list[int]]) -> list[int]:
    return [index for one in lists for index in one]


def _update(group_id: bytes, view: GroupView) -> PlacementGroupUpdated:
    bundles = [dict(bundle) for bundle in view.bundles]
    return PlacementGroupUpdated(group_id, view.state, bundles, list(view.nodes), view.reason)


def _row(group: PlacementGroup) -> dict[str, Any]:
    """The group as a row of the state API."""
    return {
        "placement_group_id": group.id,
        "name": group.name,
        "ray_namespace": group.namespace,
        "strategy": group.strategy,
        "state": group.state.name,
        "bundles": [dict(bundle) for bundle in group.bundles],
        "bundles_to_node_id": list(group.nodes),
        "job_id": group.job_id,
        "detached": group.detached,
        "reason": group.reason,
    }
