"""The messages between the nodes of a cluster. They belong to the one schema, as those of ``wire`` do."""

from typing import Any, NamedTuple

from zray.base.schema import message

# ------------------------------------------------------------------------------------------------------- to the control


@message(100, "agent", "control")
class JoinCluster(NamedTuple):
    """A machine wants to become a node; the reply holds the limits of the cluster."""

    request_id: int


@message(106, "agent", "control")
class LeaveCluster(NamedTuple):
    """A node ends in good order: it is dead from now on."""

    node_id: bytes
    reason: str


# --------------------------------------------------------------------------------------------------------- to the agent


@message(101, "control", "agent", rows=8)
class ClusterView(NamedTuple):
    """Nodes that are new, or changed: ``(node_id, agent, endpoint, host, total, available, labels, alive)`` each."""

    rows: list[Any]


@message(107, "control", "agent", rows=2)
class ClusterLoads(NamedTuple):
    """What is free on nodes that are known: ``(node_id, available)`` each; the receiver's own node may be among them."""

    rows: list[Any]


@message(102, "agent", "agent")
class ProcessGone(NamedTuple):
    """A process that the receiver wanted to be watched is gone."""

    process: bytes
    reason: str


@message(105, "control", "agent")
class ProbeNode(NamedTuple):
    """A sign of life is wanted: a Heartbeat."""


@message(103, "control", "agent")
class NodeRefused(NamedTuple):
    """The cluster has given this node up, or ends: it has to end, and may join anew if ``rejoin``."""

    reason: str
    rejoin: bool


@message(108, "control", "agent")
class DriverStarted(NamedTuple):
    """A driver on the receiver's machine has registered: its end must be noticed, even if it comes before its first word."""

    driver: bytes
    pid: int


# -------------------------------------------------------------------------------------------------------- to an owner


@message(109, "agent", "owner")
class JobEnded(NamedTuple):
    """The receiver is a driver that was given up: nothing of its job is left."""

    reason: str


@message(104, "agent", "owner")
class LeaseRedirected(NamedTuple):
    """Another node has room: ask there."""

    request_id: int
    agent: bytes
    endpoint: str
