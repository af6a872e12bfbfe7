"""Packing: nodes for the bundles of a placement group, for all of them or none.

PACK takes few nodes, SPREAD many, STRICT_PACK one, and STRICT_SPREAD another one for each bundle; the first two as well as they
can. STRICT_SPREAD and SPREAD look for a matching. PACK puts the largest bundles first and fills node after node. Where these two
ways find no place for some bundle, PACK and SPREAD take any assignment that there is, if a search of ``SEARCH_STEPS_MAX`` steps
finds one. Nodes with GPUs are spared for bundles that ask for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zray.base.resources import ResourceSet
from zray.core.views import Condition, Views, counted, living, meets, shortage

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
SEARCH_STEPS_MAX = 5000
SEARCH_BUNDLES_MAX = 200
Conditions = tuple[Condition, ...]


class Packing(NamedTuple):
    """The nodes of the bundles in their order, or None with the reason; ``infeasible``: room on these nodes will not help."""

    nodes: tuple[bytes, ...] | None
    reason: str = ""
    infeasible: bool = False


def pack_bundles(
    views: Views,
    bundles: Sequence[ResourceSet],
    strategy: str,
    *,
    placed: Mapping[int, bytes] | None = None,
    conditions: Sequence[Conditions] = (),
) -> Packing:
    """Find nodes for all bundles of a placement group, or none.

    Args:
        views: all nodes by id.
        bundles: what each holds.
        strategy: one of STRATEGIES.
        placed: bundles that have their nodes already, by index; only the others are placed.
        conditions: on the labels of the node of each bundle; none for any.
    """
    met = list(conditions) + [()] * (len(bundles) - len(conditions))
    nodes = _Packer(views, {view.node_id: view.available for view in living(views)}, bundles, met, placed or {}).pack(strategy)
    if nodes is not None:
        return Packing(nodes)
    empty = _Packer(views, {view.node_id: view.total for view in living(views)}, bundles, met, {})
    if empty.pack(strategy) is not None or empty.gave_up:
        return Packing(None, "there is not enough free at the moment")
    return Packing(None, _why_not(views, bundles, strategy, met), infeasible=True)


class _Packer:
    """One search.

    Args:
        views: all nodes by id.
        room: what each node that can be used has.
        bundles, conditions: what is to be placed.
        placed: what has its place.
    """

    def __init__(
        self,
        views: Views,
        room: Mapping[bytes, ResourceSet],
        bundles: Sequence[ResourceSet],
        conditions: Sequence[Conditions],
        placed: Mapping[int, bytes],
    ) -> None:
        self.gave_up = False
        self.room = dict(room)
        self.bundles = bundles
        self.conditions = conditions
        self._placed = dict(placed)
        self._room = self.room.copy()
        self.taken = dict(placed)
        self.todo = sorted((i for i in range(len(bundles)) if i not in placed), key=lambda i: _size(bundles[i]))
        wants_gpus = any(bundle["GPU"] for bundle in bundles)
        self.spared = {node: bool(views[node].total["GPU"]) and not wants_gpus for node in room}
        self._admits = {
            met: {node: meets(views[node].labels, met) for node in room} for met in dict.fromkeys(conditions)
        }

    def pack(self, strategy: str) -> tuple[bytes, ...] | None:
        """The node of each bundle."""
        if strategy == "STRICT_PACK":
            self._on_one_node()
        elif strategy == "STRICT_SPREAD":
            self.taken.update(self._match())
        elif strategy == "SPREAD":
            self._spread()
        elif strategy == "PACK":
            self._fill()
        else:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        if len(self.taken) < len(self.bundles) and strategy in ("PACK", "SPREAD"):
            self.taken = self._search()
        complete = len(self.taken) == len(self.bundles)
        return tuple(self.taken[i] for i in range(len(self.bundles))) if complete else None

    def _on_one_node(self) -> None:
        """The node of the others of the group, else the one that is filled best, so that large room stays elsewhere."""
        together = _sum([self.bundles[i] for i in self.todo])
        fitting = [
            node
            for node in dict.fromkeys(self.taken.values()) or self.room
            if node in self.room
            and self.room[node].covers(together)
            and all(self._admits[self.conditions[i]][node] for i in self.todo)
        ]
        if fitting:
            best = min(fitting, key=lambda node: (self.spared[node], _slack(self.room[node], together), node))
            self.taken.update(dict.fromkeys(self.todo, best))

    def _spread(self) -> None:
        """As many as can be on nodes of their own; each of the others where the fewest are."""
        alone = self._match()
        count = dict.fromkeys(self.room, 0)
        for node in self.taken.values():
            count[node] = count.get(node, 0) + 1
        for i in [*alone, *(i for i in self.todo if i not in alone)]:
            fitting = [alone[i]] if i in alone else self._fitting(i)
            if fitting:
                best = min(fitting, key=lambda node: (count[node], self.spared[node], node))
                self.taken[i] = best
                count[best] += 1
                self.room[best] = self.room[best].minus(self.bundles[i])

    def _fill(self) -> None:
        """Again and again the node that holds most of what is left, those first where the group is already."""
        left = list(self.todo)
        home = dict.fromkeys(self.taken.values())
        while left:
            need = _sum([self.bundles[i] for i in left])
            known: dict[tuple[ResourceSet, tuple[bool, ...]], list[int]] = {}
            ranked = []
            for node, room in self.room.items():
                shape = (room, tuple(admits[node] for admits in self._admits.values()))
                if shape not in known:  # nodes that are alike hold the same
                    known[shape] = self._held(node, left)
                if known[shape]:
                    rank = (node not in home, -len(known[shape]), self.spared[node], _slack(room, need), node)
                    ranked.append((rank, known[shape]))
            if not ranked:
                return
            (*_, best), held = min(ranked)
            for i in held:
                self.taken[i] = best
                self.room[best] = self.room[best].minus(self.bundles[i])
            left = [i for i in left if i not in self.taken]

    def _search(self) -> dict[int, bytes]:
        """Any assignment, or what it began with: depth first, the largest bundle first."""
        steps = 0
        room, taken = self._room.copy(), self._placed.copy()

        def place(position: int) -> bool:
            nonlocal steps
            if position == len(self.todo):
                return True
            i = self.todo[position]
            tried: dict[tuple[Any, ...], None] = {}
            for node, free in list(room.items()):
                shape = (free, *(admits[node] for admits in self._admits.values()))
                if shape in tried or not free.covers(self.bundles[i]) or not self._admits[self.conditions[i]][node]:
                    continue
                tried[shape] = None  # another that is alike would end likewise
                steps += 1
                if steps > SEARCH_STEPS_MAX:
                    self.gave_up = True
                    return False
                room[node], taken[i] = free.minus(self.bundles[i]), node
                if place(position + 1):
                    return True
                room[node] = free
                del taken[i]
            return False

        if len(self.todo) > SEARCH_BUNDLES_MAX:
            self.gave_up = True
        else:
            place(0)
        return taken

    def _held(self, node: bytes, indexes: Sequence[int]) -> list[int]:
        """Which of these bundles a node can hold together, the largest first."""
        room = self.room[node]
        held = []
        for i in indexes:
            if room.covers(self.bundles[i]) and self._admits[self.conditions[i]][node]:
                room = room.minus(self.bundles[i])
                held.append(i)
        return held

    def _fitting(self, i: int) -> list[bytes]:
        """The nodes that can hold a bundle."""
        admits = self._admits[self.conditions[i]]
        return [node for node, room in self.room.items() if admits[node] and room.covers(self.bundles[i])]

    def _match(self) -> dict[int, bytes]:
        """As many bundles as possible on nodes of their own: a bipartite matching, by augmenting paths."""
        used = dict.fromkeys(self.taken.values())
        known: dict[tuple[ResourceSet, Conditions], list[bytes]] = {}
        holder: dict[bytes, int] = {}
        held: dict[int, bytes] = {}
        for first in self.todo:
            came: dict[bytes, int] = {}  # node -> the bundle that would take it
            asking = [first]
            end: bytes | None = None
            for i in asking:
                shape = (self.bundles[i], self.conditions[i])
                if shape not in known:
                    free = [node for node in self._fitting(i) if node not in used]
                    known[shape] = sorted(free, key=lambda node: (self.spared[node], node))
                new = [node for node in known[shape] if node not in came]
                came.update(dict.fromkeys(new, i))
                end = next((node for node in new if node not in holder), None)
                if end is not None:
                    break
                asking += [holder[node] for node in new]
            while end is not None:  # each on the path moves on by one node
                i = came[end]
                before = held.get(i)
                holder[end], held[i] = i, end
                end = before
        return held


def _sum(bundles: Sequence[ResourceSet]) -> ResourceSet:
    together = ResourceSet({})
    for bundle in bundles:
        together = together.plus(bundle)
    return together


def _size(bundle: ResourceSet) -> tuple[int, ...]:
    """What is hardest to place comes first: GPUs, resources that few nodes have, CPUs, memory."""
    rare = sum(units for name, units in bundle.items() if name not in ("CPU", "GPU", "memory"))
    return -bundle["GPU"], -rare, -bundle["CPU"], -bundle["memory"]


def _slack(room: ResourceSet, need: ResourceSet) -> float:
    """How much more there is than needed, of each resource that is."""
    return sum(room[name] / need[name] for name in need)


def _why_not(views: Views, bundles: Sequence[ResourceSet], strategy: str, conditions: Sequence[Conditions]) -> str:
    """Why these nodes could not hold the bundles even if all were free."""
    nodes = living(views)
    for i, (bundle, met) in enumerate(zip(bundles, conditions)):
        if not any(view.total.covers(bundle) and meets(view.labels, met) for view in nodes):
            return f"no node can hold bundle {i}: {shortage(views, bundle, met)}"
    count = counted(len(nodes), "node")
    if strategy == "STRICT_SPREAD":
        return f"STRICT_SPREAD needs a node of its own for each of {len(bundles)} bundles, which {count} can not give"
    if strategy == "STRICT_PACK":
        together = _sum(bundles)
        if not any(view.total.covers(together) for view in nodes):
            return f"STRICT_PACK needs one node for all bundles: {shortage(views, together)}"
        return f"STRICT_PACK needs one node for all bundles, and none of {count} meets the conditions of all"
    return f"{count} can not hold {counted(len(bundles), 'bundle')} at once"
