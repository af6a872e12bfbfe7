"""The messages of people who look into a cluster and ask why. They belong to the one schema, as those of ``wire`` do."""

from typing import NamedTuple

from zray.base.schema import message


@message(63, "owner", "owner")
class ExplainObject(NamedTuple):
    """Why is the object not there? The reply: ``(text, waits_for)``, where the latter are ``(object_id, owner)`` each."""

    request_id: int
    object_id: bytes


@message(64, "owner", "worker")
class ExplainTask(NamedTuple):
    """What has become of a task or call that was sent there? The reply is a text."""

    request_id: int
    task_id: bytes


@message(65, "owner", "agent")
class ExplainLease(NamedTuple):
    """Why is the sender's request for a lease not granted? The reply is a text."""

    request_id: int
    lease_request_id: int


@message(66, "owner", "control")
class ExplainActor(NamedTuple):
    """Why does the actor take no calls? The reply is a text."""

    request_id: int
    actor_id: bytes


@message(67, "owner", "control")
class ExplainNode(NamedTuple):
    """How is the node of that agent? The reply is a text."""

    request_id: int
    agent: bytes
