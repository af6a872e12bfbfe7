"""The messages about actors. They belong to the one schema, as those of ``wire`` do."""

from typing import Any, NamedTuple

from zray.base.schema import OPS, message

# ------------------------------------------------------------------------------------------------------- to the control


@message(23, "owner", "control")
class RegisterActor(NamedTuple):
    """An actor is to be; the reply is None, or the description of the one that has the name already."""

    request_id: int
    actor_id: bytes
    job_id: bytes
    endpoint: str  # of the sender, which is its owner
    handle_id: bytes  # the object that stands for its handles: without references to it the actor ends
    class_name: str
    name: str
    namespace: str
    detached: bool
    get_if_exists: bool
    max_restarts: int
    placement: dict[str, int]  # what its node must have
    resources: dict[str, int]  # what it holds while it lives
    description: bytes  # what a handle must know; opaque
    strategy: tuple[Any, ...] = ("default",)  # which node is wanted


@message(24, "owner", "control")
class CreateActor(NamedTuple):
    """The arguments of a registered actor are there: it can be placed; or one of them is an error, and it can not."""

    actor_id: bytes
    creation: bytes  # the call of its constructor; opaque
    error: bytes


@message(25, "owner", "control")
class SubscribeActor(NamedTuple):
    """Tell the sender, with ActorUpdated, where the actor is, now and whenever that changes."""

    actor_id: bytes


@message(26, "owner", "control")
class UnsubscribeActor(NamedTuple):
    """The sender has no handle of the actor any more."""

    actor_id: bytes


@message(27, "owner", "control")
class KillActor(NamedTuple):
    """End the actor's process, whatever it does. One that is named is ended once, even if a second control hears this too."""

    actor_id: bytes
    no_restart: bool
    incarnation: int = 0  # that the sender knows; 0: whichever there is


@message(28, "owner", "control")
class GetActor(NamedTuple):
    """The reply: (actor id, handle id, owner, description, detached) of the actor of that name."""

    request_id: int
    name: str
    namespace: str


@message(29, "owner", "control")
class ListActors(NamedTuple):
    """The reply: a dict for each actor, the dead that are remembered included."""

    request_id: int


@message(80, "owner", "control")
class ActorOutOfScope(NamedTuple):
    """No handle of the actor is left anywhere."""

    actor_id: bytes


@message(81, "worker", "control")
class ActorStarted(NamedTuple):
    """The constructor has returned, or raised ``error``, a pickled exception."""

    actor_id: bytes
    incarnation: int
    error: bytes


@message(83, "agent", "control")
class ActorPlaced(NamedTuple):
    """A worker was found, and told to become the actor."""

    actor_id: bytes
    incarnation: int
    node_id: bytes
    worker_id: bytes
    endpoint: str
    pid: int


@message(84, "agent", "control")
class ActorRefused(NamedTuple):
    """The node can not run it. ``infeasible``: it never can. ``exhausted``: it has as many processes as it may have.

    ``elsewhere``: it could not keep its place there, and another node may have one.
    """

    actor_id: bytes
    incarnation: int
    kind: str
    reason: str


@message(85, "agent", "control")
class ActorLost(NamedTuple):
    """The process of an actor is gone. ``willing``: the actor wanted that, and shall not be restarted."""

    actor_id: bytes
    incarnation: int
    reason: str
    willing: bool = False

# --------------------------------------------------------------------------------------------------------- to the agent


@message(82, "worker", "agent")
class ActorExiting(NamedTuple):
    """The actor ends by its own will: its process will be gone soon, and shall not be restarted."""

    actor_id: bytes
    reason: str


@message(86, "control", "agent")
class PlaceActor(NamedTuple):
    """Find a worker for an actor and have it started there; ActorPlaced or ActorRefused is the answer."""

    actor_id: bytes
    incarnation: int
    job_id: bytes
    detached: bool  # it stays when its job ends
    placement: dict[str, int]
    resources: dict[str, int]
    retriable: bool
    creation: bytes
    strategy: tuple[Any, ...] = ("default",)  # a bundle says from where its resources are taken


@message(87, "control", "agent")
class EndActor(NamedTuple):
    """The actor is dead. ``force``: kill its process; else it may end in good order, and stay while others need what it owns."""

    actor_id: bytes
    incarnation: int
    force: bool

# ---------------------------------------------------------------------------------------------------------- to an owner


@message(91, "control", "owner")
class Notice(NamedTuple):
    """Something that the user should know of."""

    text: str


@message(88, "control", "owner")
class ActorUpdated(NamedTuple):
    """Where an actor is; ``error`` is the pickled exception for its calls, once it is dead or while it restarts."""

    actor_id: bytes
    state: str
    incarnation: int
    worker_id: bytes
    endpoint: str
    error: bytes

# ---------------------------------------------------------------------------------------------------------- to a worker


@message(89, "agent", "worker")
class StartActor(NamedTuple):
    """Become this actor: run its constructor."""

    actor_id: bytes
    incarnation: int
    job_id: bytes
    resources: dict[str, int]
    gpu_ids: tuple[int, ...]
    creation: bytes


@message(90, "owner", "worker", hot=True, rows=8)
class Call(NamedTuple):
    """Calls of an actor, numbered by their caller from ``first`` on; the rows are those of Push."""

    first: int
    specs: list[Any]


CALL = OPS[Call]
