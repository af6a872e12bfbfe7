"""NodeBundles: the bundles of placement groups on one node.

Theory of operation
-------------------
A bundle is a part of the node's resources that was set apart. The control has it *prepared* first, on all nodes of the group,
and *committed* when all could do so; only then leases can take from it. They take from the bundle what others take from the node,
with the bundle's own share of GPUs; a worker in it that blocks lends its CPU to the bundle. A lease takes from one bundle,
never from two.

When a bundle is given back, what is free in it goes back to the node at once. What is lent follows as its leases end,
which the agent sees to (``evict``): until its process is gone, nobody else gets the GPU it uses.

An agent that gets a request for a group it does not know asks the control, once, and is told from then on where its bundles are
and what is free in them (``groups``), until the group is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from zray.base.resources import NodeResources, ResourceSet, from_units
from zray.base.wire_placement import BundlesPrepared, SubscribePlacementGroup
from zray.core.effects import SEND, Effect
from zray.core.gpus import GpuSlots
from zray.core.lifecycle import Lifecycle
from zray.core.views import REMOVED, GroupView, are_amounts
from zray.exceptions import InvariantError

REMOVED_GROUPS_MAX = 1000  # of which an agent remembers that they were removed


class BundleState(Enum):
    PREPARED = 1
    COMMITTED = 2
    RETURNED = 3


BUNDLE_LIFECYCLE = Lifecycle(
    "bundle",
    {
        BundleState.PREPARED: "Its resources are set apart; nobody can use them before all nodes have prepared theirs.",
        BundleState.COMMITTED: "Leases take from it.",
        BundleState.RETURNED: "Its resources are the node's again, those that are lent as soon as their leases end.",
    },
    {
        BundleState.PREPARED: {"committed": BundleState.COMMITTED, "returned": BundleState.RETURNED},
        BundleState.COMMITTED: {"returned": BundleState.RETURNED},
        BundleState.RETURNED: {},
    },
)


class Bundle:
    """One bundle on its node.

    Args:
        group_id, index: which it is.
        attempt: of the control to place the group.
        demand: what it holds.
        gpu_ids: the GPUs it has, or shares.
        node: the resources of the node.
        node_gpus: its GPUs.
    """

    __slots__ = ("_node", "_node_gpus", "attempt", "gpu_ids", "gpus", "group_id", "index", "resources", "state")

    def __init__(
        self,
        group_id: bytes,
        index: int,
        attempt: int,
        demand: ResourceSet,
        gpu_ids: tuple[int, ...],
        node: NodeResources,
        node_gpus: GpuSlots,
    ) -> None:
        self._node = node
        self._node_gpus = node_gpus
        self.group_id = group_id
        self.index = index
        self.attempt = attempt
        self.state = BundleState.PREPARED
        self.resources = NodeResources(demand)
        self.gpu_ids = gpu_ids
        self.gpus = GpuSlots(len(gpu_ids))
        if gpu_ids:
            share = demand["GPU"] // len(gpu_ids)  # several are whole ones; one may be shared with others outside
            self.gpus.free = [share] * len(gpu_ids)

    def take(self, demand: ResourceSet) -> tuple[int, ...] | None:
        """Resources for a lease. Returns its GPUs, or None if there is no room now."""
        if self.state is not BundleState.COMMITTED or not self.resources.fits(demand):
            return None
        slots = self.gpus.assign(demand["GPU"]) if demand["GPU"] else ()
        if slots is None:
            return None
        self.resources.acquire(demand)
        return tuple(self.gpu_ids[slot] for slot in slots)

    def give(self, demand: ResourceSet, gpu_ids: tuple[int, ...] = ()) -> None:
        """A lease gives back what it had, or lends its CPU out while it is blocked."""
        if self.state is BundleState.RETURNED:
            self._node.release(demand)
            self._node_gpus.release(gpu_ids, demand["GPU"])
        else:
            self.resources.release(demand)
            self.gpus.release(tuple(self.gpu_ids.index(gpu) for gpu in gpu_ids), demand["GPU"])

    def retake(self, demand: ResourceSet) -> None:
        """A worker that was blocked takes its CPU back, below zero if it must."""
        returned = self.state is BundleState.RETURNED
        (self._node if returned else self.resources).acquire(demand)

    def give_back(self) -> None:
        """The node has its resources again, but for those that are lent."""
        self.state = BUNDLE_LIFECYCLE.next(self.state, "returned")
        self._node.release(ResourceSet(self.resources.available))
        for gpu, free in zip(self.gpu_ids, self.gpus.free, strict=True):
            self._node_gpus.release((gpu,), free)

    def check(self) -> None:
        """Assert the invariants."""
        self.gpus.check()
        for name, units in self.resources.available.items():
            if units > self.resources.total[name]:
                raise InvariantError(f"bundle {self.index} of {self.group_id.hex()} has more {name} free than it has")


class NodeBundles:
    """The bundles of one node.

    Args:
        node_id: the node.
        control: process id of the control process.
        resources: of the node.
        gpus: of the node.
        out: where effects go.
        evict: called with the time, a bundle that is no more, and why: its leases have to end.
        advance: called with the time when requests that wait may go on: there is room, or a bundle has its place.
    """

    __slots__ = ("_advance", "_asked", "_control", "_evict", "_gpus", "_node_id", "_out", "_resources", "bundles", "groups")

    def __init__(
        self,
        node_id: bytes,
        control: bytes,
        resources: NodeResources,
        gpus: GpuSlots,
        out: list[Effect],
        evict: Callable[[Bundle, str], None],
        advance: Callable[[float], None],
    ) -> None:
        self._node_id = node_id
        self._control = control
        self._resources = resources
        self._gpus = gpus
        self._out = out
        self._evict = evict
        self._advance = advance
        self._asked: dict[bytes, None] = {}  # groups that the control was asked for
        self.bundles: dict[tuple[bytes, int], Bundle] = {}
        self.groups: dict[bytes, GroupView] = {}  # what is known of those that were asked for

    # -- what the control says ------------------------------------------------------------------------------------

    def on_prepare_bundles(self, now: float, peer: bytes, group_id: bytes, attempt: int, rows: list[Any]) -> None:
        if not all(are_amounts(units) for _, units in rows):
            return  # the control does not say such things
        prepared: list[Bundle] = []
        reason = ""
        for index, units in rows:
            self._drop(now, group_id, index, "its placement group was placed anew")
            bundle = self._set_apart(group_id, index, attempt, ResourceSet(units))
            if isinstance(bundle, str):
                reason = bundle
                break
            prepared.append(bundle)
        if reason:
            for bundle in prepared:
                bundle.give_back()
        else:
            self.bundles.update({(group_id, bundle.index): bundle for bundle in prepared})
        self._out.append((SEND, self._control, BundlesPrepared(group_id, attempt, self._node_id, reason)))
        self._advance(now)

    def on_commit_bundles(self, now: float, peer: bytes, group_id: bytes, attempt: int) -> None:
        for bundle in self._of(group_id):
            if bundle.attempt == attempt and bundle.state is BundleState.PREPARED:
                bundle.state = BUNDLE_LIFECYCLE.next(bundle.state, "committed")
        self._advance(now)

    def on_return_bundles(self, now: float, peer: bytes, group_id: bytes, indexes: list[int], reason: str) -> None:
        for index in indexes:
            self._drop(now, group_id, index, reason)
        self._advance(now)

    def on_placement_group_updated(
        self, now: float, peer: bytes, group_id: bytes, state: str, bundles: list[Any], nodes: list[bytes], reason: str
    ) -> None:
        known = self.groups.pop(group_id, None)
        view = GroupView(state, tuple(ResourceSet(units) for units in bundles), tuple(nodes), reason)
        if known is not None:
            view.told = {i: free for i, free in known.told.items() if view.nodes[i : i + 1] == known.nodes[i : i + 1]}
            view.free = dict(view.told)
        self.groups[group_id] = view
        if state == REMOVED:
            removed = [known for known, view in self.groups.items() if view.state == REMOVED]
            for oldest in removed[:-REMOVED_GROUPS_MAX]:
                del self.groups[oldest]
                self._asked.pop(oldest, None)
        self._advance(now)

    def on_bundles_counted(self, now: float, peer: bytes, group_id: bytes, free: dict[int, Any]) -> None:
        """What is free in bundles on other nodes: what waits here may run there."""
        view = self.groups.get(group_id)
        if view is None:
            return
        for index, units in free.items():
            if index < len(view.nodes) and are_amounts(units):
                view.told[index] = view.free[index] = ResourceSet(units)
        self._advance(now)

    # -- what leases need -----------------------------------------------------------------------------------------

    def learn(self, group_id: bytes) -> None:
        """A request names this group: where its bundles are must be known."""
        if group_id not in self._asked:
            self._asked[group_id] = None
            self._out.append((SEND, self._control, SubscribePlacementGroup(group_id)))

    def known(self) -> list[bytes]:
        """The groups that the control was asked for."""
        return list(self._asked)

    def take(self, group_id: bytes, index: int, demand: ResourceSet) -> tuple[Bundle, tuple[int, ...]] | None:
        """Resources for a lease from a bundle that is here, any of the group for -1: the bundle, and the GPUs."""
        wanted = self._of(group_id) if index == -1 else [self.bundles.get((group_id, index))]
        for bundle in wanted:
            gpu_ids = None if bundle is None else bundle.take(demand)
            if bundle is not None and gpu_ids is not None:
                return bundle, gpu_ids
        return None

    def count(self, group_id: bytes) -> None:
        """Put what is free in the bundles here into the view of their group."""
        view = self.groups.get(group_id)
        if view is None:
            return
        for index, node_id in enumerate(view.nodes):
            bundle = self.bundles.get((group_id, index)) if node_id == self._node_id else None
            if bundle is not None and bundle.state is BundleState.COMMITTED:
                view.free[index] = ResourceSet(bundle.resources.available)

    def rows(self) -> tuple[tuple[bytes, int, dict[str, int]], ...]:
        """What is free in the bundles that can be used, for the control: ``(group, index, units)`` each."""
        usable = [bundle for bundle in self.bundles.values() if bundle.state is BundleState.COMMITTED]
        return tuple(
            (bundle.group_id, bundle.index, {name: max(0, units) for name, units in bundle.resources.available.items()})
            for bundle in usable
        )

    def reserved(self) -> ResourceSet:
        """What all bundles hold together, used or not: with what is free outside and lent outside, that is all there is."""
        together = ResourceSet({})
        for bundle in self.bundles.values():
            together = together.plus(bundle.resources.total)
        return together

    # -- inside ---------------------------------------------------------------------------------------------------

    def _set_apart(self, group_id: bytes, index: int, attempt: int, demand: ResourceSet) -> Bundle | str:
        """A new bundle, or why there can not be one now."""
        reason = self._lacking(demand)
        if reason:
            return reason
        gpu_ids = self._gpus.assign(demand["GPU"]) if demand["GPU"] else ()
        if gpu_ids is None:
            return "its GPUs are not free in the pieces that are asked for"
        self._resources.acquire(demand)
        return Bundle(group_id, index, attempt, demand, gpu_ids, self._resources, self._gpus)

    def _drop(self, now: float, group_id: bytes, index: int, reason: str) -> None:
        bundle = self.bundles.pop((group_id, index), None)
        if bundle is not None:
            bundle.give_back()
            self._evict(bundle, reason)

    def _of(self, group_id: bytes) -> list[Bundle]:
        found = [bundle for bundle in self.bundles.values() if bundle.group_id == group_id]
        return sorted(found, key=lambda bundle: bundle.index)

    def _lacking(self, demand: ResourceSet) -> str:
        """What there is too little of just now."""
        free = ResourceSet(self._resources.available)
        short = [name for name in demand if free[name] < demand[name]]
        if not short:
            return ""
        return " and ".join(f"{from_units(free[name]):g} of {from_units(demand[name]):g} {name}" for name in short) + " free"

    def check(self) -> None:
        """Assert the invariants."""
        for (group_id, index), bundle in self.bundles.items():
            bundle.check()
            if (bundle.group_id, bundle.index) != (group_id, index) or bundle.state is BundleState.RETURNED:
                raise InvariantError(f"bundle {index} of {group_id.hex()} is listed and {bundle.state.name}")
        for group_id in self.groups:
            if group_id not in self._asked:
                raise InvariantError(f"placement group {group_id.hex()} is known and was never asked for")

    def statistics(self) -> dict[str, int]:
        return {"bundles": len(self.bundles), "placement_groups_known": len(self.groups)}
