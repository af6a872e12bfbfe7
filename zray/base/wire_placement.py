"""The messages about placement groups. They belong to the one schema, as those of ``wire`` do."""

from typing import Any, NamedTuple

from zray.base.schema import message

# ------------------------------------------------------------------------------------------------------- to the control


@message(150, "owner", "control")
class RegisterPlacementGroup(NamedTuple):
    """Resources are to be set apart on the nodes of the cluster; the reply is None, or why the name can not be had."""

    request_id: int
    group_id: bytes
    job_id: bytes
    actor_id: bytes  # of the actor that asks; empty for drivers and tasks
    name: str
    namespace: str
    detached: bool
    strategy: str  # PACK, SPREAD, STRICT_PACK, STRICT_SPREAD
    bundles: list[dict[str, int]]  # what each holds, in units
    conditions: list[tuple[Any, ...]]  # on the labels of the node of each bundle; none for the others if it is shorter


@message(151, "owner", "control")
class RemovePlacementGroup(NamedTuple):
    """Give its resources back, and end what runs in it; the reply is None when that is written down."""

    request_id: int
    group_id: bytes


@message(152, "owner", "control")
class GetPlacementGroup(NamedTuple):
    """The reply: (id, bundles) of the placement group of that name."""

    request_id: int
    name: str
    namespace: str


@message(153, "owner", "control")
class ListPlacementGroups(NamedTuple):
    """The reply: a dict for each placement group, those included that were removed lately."""

    request_id: int


@message(154, "owner", "control")
class WaitPlacementGroup(NamedTuple):
    """The reply: True when all bundles have their places, False when that took too long, or why it will never be."""

    request_id: int
    group_id: bytes
    timeout_s: float  # below zero: for ever


@message(155, "agent", "control")
class SubscribePlacementGroup(NamedTuple):
    """Tell the sender, with PlacementGroupUpdated, where the bundles are, now and whenever that changes."""

    group_id: bytes


@message(156, "agent", "control")
class BundlesPrepared(NamedTuple):
    """The answer to PrepareBundles: all of them are set apart, or none for the ``reason``."""

    group_id: bytes
    attempt: int
    node_id: bytes
    reason: str


# --------------------------------------------------------------------------------------------------------- to the agent


@message(160, "control", "agent", rows=2)
class PrepareBundles(NamedTuple):
    """Set resources apart, all or none: ``(index, units by name)`` each. BundlesPrepared is the answer."""

    group_id: bytes
    attempt: int
    rows: list[Any]


@message(161, "control", "agent")
class CommitBundles(NamedTuple):
    """All nodes have prepared theirs: the bundles of this attempt can be used."""

    group_id: bytes
    attempt: int


@message(162, "control", "agent")
class ReturnBundles(NamedTuple):
    """These bundles are not wanted any more: end what runs in them."""

    group_id: bytes
    indexes: list[int]
    reason: str


@message(164, "control", "agent")
class BundlesCounted(NamedTuple):
    """What is free in bundles of a placement group, by index."""

    group_id: bytes
    free: dict[int, Any]  # units by name


@message(163, "control", "agent")
class PlacementGroupUpdated(NamedTuple):
    """What a placement group is like now."""

    group_id: bytes
    state: str
    bundles: list[dict[str, int]]
    nodes: list[bytes]  # of each bundle; empty for one that has no place
    reason: str
