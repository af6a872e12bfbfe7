"""Placement groups: resources that are set apart on the nodes of a cluster, all of them or none.

The names and their meaning are those of Ray's documentation of placement groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zray import api
from zray.base.ids import PlacementGroupID
from zray.base.resources import UNIT, ResourceSet, from_units
from zray.base.wire import CONTROL
from zray.base.wire_placement import (
    GetPlacementGroup,
    ListPlacementGroups,
    RegisterPlacementGroup,
    RemovePlacementGroup,
    WaitPlacementGroup,
)
from zray.object_ref import ObjectRef
from zray.strategy import PlacementGroupSchedulingStrategy, read_selector

if TYPE_CHECKING:
    from zray.runtime.core_worker import CoreWorker

_STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroup:
    """A placement group. Made by ``placement_group()``; it can be passed to tasks and actors.

    Args:
        id: of the group.
        bundles: what each bundle holds; asked for when it is needed, if it is None.
    """

    def __init__(self, id: PlacementGroupID, bundles: Sequence[Mapping[str, float]] | None = None) -> None:
        self.id = id
        self._bundles = None if bundles is None else [dict(bundle) for bundle in bundles]

    @staticmethod
    def empty() -> PlacementGroup:
        """The group that is none."""
        return PlacementGroup(PlacementGroupID(bytes(PlacementGroupID.SIZE)), [])

    @property
    def is_empty(self) -> bool:
        """Whether this is the group that is none."""
        return self.id.is_nil()

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A reference to this group that is there when all bundles have their places.

        Example:
            >>> zray.get(group.ready(), timeout=10)  # doctest: +SKIP
        """
        from zray.remote_function import RemoteFunction

        if self.is_empty:
            return api.put(self)
        strategy = PlacementGroupSchedulingStrategy(self)
        chosen = {"num_cpus": 0, "scheduling_strategy": strategy, "name": "PlacementGroup.ready", "max_retries": -1}
        return RemoteFunction(_itself, chosen).remote(self)

    def wait(self, timeout_seconds: float | int = 30) -> bool:
        """Wait until all bundles have their places.

        Args:
            timeout_seconds: how long to wait at most; 0 or less only looks.

        Returns:
            Whether they have.

        Raises:
            ValueError: the group was removed.

        Example:
            >>> group.wait(timeout_seconds=10)  # doctest: +SKIP
            True
        """
        return bool(_ask(WaitPlacementGroup, bytes(self.id), max(0.0, float(timeout_seconds))))

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle holds."""
        if self._bundles is None:
            self._bundles = [dict(bundle) for _, bundle in sorted(placement_group_table(self)["bundles"].items())]
        return self._bundles

    @property
    def bundle_count(self) -> int:
        """How many bundles there are."""
        return len(self.bundle_specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _group, (bytes(self.id), self._bundles)


def _group(id: bytes, bundles: list[dict[str, float]] | None) -> PlacementGroup:
    return PlacementGroup(PlacementGroupID(id), bundles)


def _itself(group: PlacementGroup) -> PlacementGroup:
    """What runs in a bundle of the group as soon as there is one."""
    return group


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
) -> PlacementGroup:
    """Set resources apart on the nodes of the cluster. It returns at once; ``ready()`` and ``wait()`` tell when they are.

    Args:
        bundles: what each bundle holds: ``[{"CPU": 2}, {"CPU": 1, "GPU": 1}]``. A bundle lies on one node.
        strategy: "PACK" on few nodes, "SPREAD" over many, "STRICT_PACK" on one, "STRICT_SPREAD" on another node for each.
        name: to find it with ``get_placement_group``, within the namespace of the job.
        lifetime: "detached" to have it stay when the job ends.
        bundle_label_selector: for each bundle, which labels its node must have: ``[{"region": "eu"}, {}]``.

    Returns:
        The group; its bundles may not have their places yet.

    Raises:
        ValueError: an argument is not what it should be, or the name is taken.

    Example:
        >>> group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="SPREAD")  # doctest: +SKIP
    """
    sets = _bundles(bundles)
    if strategy not in _STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(_STRATEGIES)}, not {strategy!r}")
    if not isinstance(name, str):
        raise ValueError(f"the name of a placement group must be a string, not {name!r}")
    if lifetime not in (None, "detached"):
        raise ValueError(f'lifetime must be None or "detached", not {lifetime!r}')
    selectors = bundle_label_selector or []
    if len(selectors) not in (0, len(bundles)):
        raise ValueError(f"bundle_label_selector must have one for each of {len(bundles)} bundles, not {len(selectors)}")
    conditions = [read_selector(selector) for selector in selectors]
    worker = api.runtime()
    group_id = PlacementGroupID(bytes(worker.job_id) + PlacementGroupID.from_random()[len(worker.job_id) :])
    units = [dict(bundle) for bundle in sets]
    who = (bytes(group_id), bytes(worker.job_id), _actor_id(), name, worker.namespace)
    _ask(RegisterPlacementGroup, *who, lifetime == "detached", strategy, units, conditions)
    return PlacementGroup(group_id, [bundle.amounts() for bundle in sets])


def _bundles(given: Any) -> list[ResourceSet]:
    """Bundles in units."""
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f'bundles must be a list of dicts as [{{"CPU": 1}}], with one at least, not {given!r}')
    found = []
    for index, bundle in enumerate(given):
        if not isinstance(bundle, Mapping) or not all(isinstance(name, str) for name in bundle):
            raise ValueError(f'bundle {index} must be a dict as {{"CPU": 1}}, not {bundle!r}')
        try:
            held = ResourceSet.of(bundle)
        except (TypeError, ValueError) as error:
            raise ValueError(f"bundle {index} is {bundle!r}: {error}") from None
        if not held:
            raise ValueError(f"bundle {index} holds nothing: {bundle!r}")
        if held["GPU"] > UNIT and held["GPU"] % UNIT:
            raise ValueError(f"bundle {index} asks for {bundle['GPU']} GPUs: more than one are had whole only")
        found.append(held)
    return found


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give the resources of a placement group back, and end what runs in it. Removing it twice is no error.

    Args:
        placement_group: the group.

    Raises:
        ValueError: it was given something else.

    Example:
        >>> remove_placement_group(group)  # doctest: +SKIP
    """
    given: object = placement_group
    if not isinstance(given, PlacementGroup):
        raise ValueError(f"remove_placement_group() takes a placement group, not {given!r}")
    _ask(RemovePlacementGroup, bytes(placement_group.id))


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The placement group of that name, in the namespace of this job.

    Args:
        placement_group_name: as given to ``placement_group(name=...)``.

    Returns:
        The group, with its bundles.

    Raises:
        ValueError: there is none.

    Example:
        >>> get_placement_group("trainers")  # doctest: +SKIP
        PlacementGroup(000000015a0c3e8f1122334455667788)
    """
    if not isinstance(placement_group_name, str) or not placement_group_name:
        raise ValueError(f"the name of a placement group must be a string that is not empty, not {placement_group_name!r}")
    group_id, bundles = _ask(GetPlacementGroup, placement_group_name, api.runtime().namespace)
    return _group(group_id, [ResourceSet(units).amounts() for units in bundles])


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What is known of one placement group, or of all by their ids.

    Args:
        placement_group: the group; None for all.

    Returns:
        For each: ``placement_group_id``, ``name``, ``ray_namespace``, ``strategy``, ``state`` (PENDING, CREATED, RESCHEDULING,
        REMOVED), ``bundles`` and ``bundles_to_node_id`` by index, ``job_id``, ``is_detached``, and ``reason``: why it waits, or
        was removed.

    Raises:
        ValueError: the group is not known, or was removed long ago.

    Example:
        >>> placement_group_table(group)["state"]  # doctest: +SKIP
        'CREATED'
    """
    rows = {row["placement_group_id"]: _row(row) for row in _ask(ListPlacementGroups)}
    if placement_group is None:
        return {row["placement_group_id"]: row for row in rows.values()}
    found = rows.get(bytes(placement_group.id))
    if found is None:
        raise ValueError(f"{placement_group!r} is not known: it was removed long ago")
    return found


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "placement_group_id": row["placement_group_id"].hex(),
        "name": row["name"],
        "ray_namespace": row["ray_namespace"],
        "strategy": row["strategy"],
        "state": row["state"],
        "bundles": {
            index: {name: from_units(units) for name, units in bundle.items()} for index, bundle in enumerate(row["bundles"])
        },
        "bundles_to_node_id": {index: node.hex() for index, node in enumerate(row["bundles_to_node_id"])},
        "job_id": row["job_id"].hex(),
        "is_detached": row["detached"],
        "reason": row["reason"],
    }


def get_current_placement_group() -> PlacementGroup | None:
    """The placement group in which the running task or actor is; None if it is in none, and in a driver.

    Example:
        >>> get_current_placement_group()  # doctest: +SKIP
        PlacementGroup(000000015a0c3e8f1122334455667788)
    """
    worker = api.connected()
    current = None if worker is None else worker.placement_group
    return None if current is None else PlacementGroup(PlacementGroupID(current[0]))


def _actor_id() -> bytes:
    """The actor that this process is, if it is one."""
    from zray.runtime_context import get_runtime_context

    return bytes.fromhex(get_runtime_context().get_actor_id() or "")


def _ask(message: type, *fields: Any) -> Any:
    """Ask the control; what it refuses is the caller's mistake."""
    worker: CoreWorker = api.runtime()
    request = worker.ask(CONTROL, message, *fields)
    worker.loop.wait(request)
    if request.ok:
        return request.value
    raise worker.broken or ValueError(str(request.value))
