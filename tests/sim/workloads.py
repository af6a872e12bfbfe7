"""Workloads: what drivers and tasks do. Every choice of a task follows from its plan, so that a second attempt does the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from zray.exceptions import ObjectStoreFullError
from zray.object_ref import ObjectRef

from . import actor_workloads, cancels, generators, groups
from .actors import ActorExit, Handle
from .checkers import TaskFailure

if TYPE_CHECKING:
    from .bodies import OwnerBody
    from .processes import DriverBody, WorkerBody
    from .threads import Steps

T = TypeVar("T")
DEPTH_MAX = 3
TASK_STEPS = ["nest", "nest", "leave", "put", "put", "get", "get", "open", "open", "keep", "keep"]
TASK_STEPS += ["recall", "recall", "drop", "burst", "sleep", "generate"]
DRIVER_STEPS = ["call", "call", "call", "call", "burst", "put", "put", "get", "open", "timeout", "drop", "sleep"]
DRIVER_STEPS += ["generate", "generate"]


@dataclass
class Arguments:
    """What a task is given: its name, the seed of its choices, and references."""

    tag: str
    plan: int
    raises: bool
    refs: list[ObjectRef[Any]] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    retried: bool = False  # that it raises is to be tried again

    def another(self, tag: str, plan: int, raises: bool, retried: bool) -> Arguments:
        """The same references for another call."""
        return Arguments(tag, plan, raises, self.refs, self.handles, retried)


def value_of(tag: str, refs: list[ObjectRef[Any]], handles: list[Handle], rng: random.Random) -> tuple[Any, ...]:
    """A value that says what it is, has references and handles inside, and is now and then large."""
    pad = rng.choice([0, 0, 0, 150, 600, 5000, 20_000])
    return ("value", tag, refs, bytes(pad), handles)


def pick(rng: random.Random, refs: list[T], most: int) -> list[T]:
    return [rng.choice(refs) for _ in range(rng.randint(0, most))] if refs else []


def submit(
    body: OwnerBody, rng: random.Random, tag: str, refs: list[ObjectRef[Any]], handles: list[Handle], depth: int
) -> list[ObjectRef[Any]]:
    """Submit a task with some of ``refs`` nested in its arguments and some of them in their places."""
    raises = rng.random() < 0.04
    function = rng.choice([b"fast-function---", b"slow-function---", b"mixed-function--"])
    demand = rng.choice([{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 0.5}, {}])
    if depth == 1 and rng.random() < 0.02:
        demand = {"GPU": 1.0}
    if raises:
        body.judge.raising[tag] = None
    strategy = actor_workloads.draw_strategy(body, rng)
    if strategy[0] == "affinity":  # its CPUs may be held for ever
        demand = rng.choice([{}, {body.cluster.node(strategy[1]).machine.own: 1.0}])
    arguments = Arguments(tag, rng.getrandbits(30), raises, pick(rng, refs, 2), pick(rng, handles, 1))
    return body.call(
        tag,
        arguments,
        pick(rng, refs, 1),
        function=function,
        demand=demand,
        retries=rng.choice([0, 1, 3, 3, -1]),
        returns=rng.choice([1, 1, 1, 2]),
        depth=depth,
        strategy=strategy,
    )


def drawn(body: OwnerBody, rng: random.Random, tag: str, refs: list[ObjectRef[Any]]) -> Arguments:
    """The arguments of a generator."""
    arguments = Arguments(tag, rng.getrandbits(30), rng.random() < 0.1, pick(rng, refs, 2))
    if arguments.raises:
        body.judge.raising[tag] = None
    return arguments


def burst(body: OwnerBody, rng: random.Random, tag: str, depth: int) -> list[ObjectRef[Any]]:
    """Many small tasks of one kind, so that they are pushed ahead of each other."""
    found = []
    for number in range(rng.randint(3, 12)):
        arguments = Arguments(f"{tag}.{number}", rng.getrandbits(30) | 1, False)
        found += body.call(
            arguments.tag,
            arguments,
            [],
            function=b"fast-function---",
            demand={"CPU": 1.0},
            retries=3,
            returns=1,
            depth=depth,
        )
    return found


def run_time_s(body: WorkerBody, arguments: Arguments) -> float:
    """Mostly as its function promises; surprises are what hand-backs are for."""
    rng = body.world.rng
    if rng.random() < 0.1:
        return rng.uniform(0.001, 0.05)
    return rng.choice([0.00001, 0.00005, 0.0003, 0.002])


def run_task(body: WorkerBody, arguments: Arguments, num_returns: int, depth: int) -> Steps:
    """What a task or a call does; its values."""
    rng = random.Random(arguments.plan)
    mine, handles = list(arguments.refs), list(arguments.handles)
    arguments.refs.clear()
    arguments.handles.clear()
    made: list[ObjectRef[Any]] = []
    yield ("sleep", run_time_s(body, arguments))
    if arguments.raises:
        raise TaskFailure(arguments.tag)
    for step in range(rng.choice([0, 0, 1, 2, 3]) if depth <= DEPTH_MAX else 0):
        tag = f"{arguments.tag}.{step}"
        if body.cluster.with_actors and rng.random() < 0.5:
            yield from run_actor_step(body, rng, tag, mine, made, handles, depth)
        else:
            yield from run_step(body, rng, arguments, tag, mine, made, handles, depth)
    kept = body.kept_handles[-1:] if rng.random() < 0.1 else []
    inside = pick(rng, handles, 1) + kept
    return [value_of(f"{arguments.tag}/{n}", pick(rng, mine + made, 2), inside, rng) for n in range(num_returns)]


def run_step(
    body: WorkerBody,
    rng: random.Random,
    arguments: Arguments,
    tag: str,
    mine: list[ObjectRef[Any]],
    made: list[ObjectRef[Any]],
    handles: list[Handle],
    depth: int,
) -> Steps:
    """One step of a task; ``mine`` are the references it was given, ``made`` its own."""
    if body.cluster.cancels and mine + made and rng.random() < 0.15:
        cancels.cancel(body, rng, mine + made)
        return
    what = rng.choice(TASK_STEPS)
    if what == "nest":
        children = submit(body, rng, tag, mine + made, handles, depth + 1)
        yield from get_or_raise(body, rng, children)
        made += children
    elif what == "leave":  # nobody waits here for the child; its reference may be returned, or dropped
        made += submit(body, rng, tag, mine + made, handles, depth + 1)
    elif what == "burst" and depth < DEPTH_MAX:
        children = burst(body, rng, tag, depth + 1)
        yield from get_or_raise(body, rng, children)
    elif what == "put":
        inside = pick(rng, mine + made, 2)
        ref = yield from body.put(tag, value_of(tag, inside, pick(rng, handles, 1), rng))
        made.append(ref)
    elif what == "get" and mine:
        yield from get_or_raise(body, rng, [rng.choice(mine)])
    elif what == "open" and mine:  # the references inside a value go on as the task's own
        outcomes = yield from get_or_raise(body, rng, [rng.choice(mine)])
        for outcome in outcomes:
            mine += outcome[2]
            handles += outcome[4]
    elif what == "keep" and mine and body.cluster.may_keep:
        body.kept.append(rng.choice(mine))  # the process holds it longer than the task
    elif what == "recall" and body.kept:
        # It may be this very task's own result, or wait for it: so nobody waits for ever.
        yield from body.get([body.world.rng.choice(body.kept)], timeout_s=0.01)
    elif what == "generate":
        yield from generators.read(body, rng, drawn(body, rng, tag, mine + made), made, depth + 1)
    elif what == "drop":
        body.forget()
    elif what == "sleep":
        yield ("sleep", run_time_s(body, arguments))


def run_actor_step(
    body: WorkerBody,
    rng: random.Random,
    tag: str,
    mine: list[ObjectRef[Any]],
    made: list[ObjectRef[Any]],
    handles: list[Handle],
    depth: int,
) -> Steps:
    """One step of a task with actors."""
    what = rng.choice(actor_workloads.TASK_STEPS)
    actor = body.actor
    if what == "exit" and actor is not None and body.cluster.violent:
        raise ActorExit
    if what == "self" and actor is not None:  # its own handle goes into its results, or it calls itself
        handles.append(actor.handle())
        return
    given = Arguments(tag, rng.getrandbits(30), rng.random() < 0.06, pick(rng, mine + made, 1), pick(rng, handles, 1))
    if what == "create" and given.raises:
        body.judge.raising[tag] = None
    yield from actor_workloads.act(body, rng, what, given, made, handles, depth)


def construct(body: WorkerBody, arguments: Arguments, depth: int) -> Steps:
    """What a constructor does: it keeps what it was given."""
    rng = random.Random(arguments.plan)
    yield ("sleep", run_time_s(body, arguments))
    if arguments.raises:
        raise TaskFailure(arguments.tag)
    if rng.random() < 0.1:
        yield ("sleep", 0.05)
    if body.cluster.may_keep:
        body.kept += pick(rng, arguments.refs, 1)
        body.kept_handles += pick(rng, arguments.handles, 1)
    if rng.random() < 0.15:
        handles: list[Handle] = []
        given = Arguments(f"{arguments.tag}.child", rng.getrandbits(30), False)
        yield from actor_workloads.act(body, rng, "create", given, [], handles, depth)
        if body.cluster.may_keep:
            body.kept_handles += handles
    arguments.refs.clear()
    arguments.handles.clear()


def get_or_raise(body: OwnerBody, rng: random.Random, refs: list[ObjectRef[Any]]) -> Steps:
    """The values of ``refs``; the first error among them is raised, as ``get`` does it.

    Where there are actors, who waits may wait for itself: an actor knows of things that are younger than the call it runs. So
    nobody waits for ever; what is not there in time is no value.
    """
    timeout_s = rng.choice([0.005, 0.05, 0.3]) if body.cluster.with_actors else None
    outcomes = yield from body.get(refs, timeout_s)
    for outcome in outcomes or ():
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes or []


def script(body: DriverBody) -> Steps:
    """What a driver does."""
    rng = random.Random(body.world.rng.getrandbits(60))
    held: list[ObjectRef[Any]] = []
    handles: list[Handle] = []
    for step in range(rng.randint(4, 24)):
        tag = f"{body.name}.{step}"
        if body.cluster.copies and rng.random() < 0.3:
            yield from copy(body, rng, tag, held)
        elif body.cluster.with_groups and rng.random() < 0.1:
            yield from groups.act(body, rng, tag, held)
        elif body.cluster.with_actors and rng.random() < 0.5:
            what = rng.choice(actor_workloads.DRIVER_STEPS)
            raises = what == "create" and rng.random() < 0.06
            if raises:
                body.judge.raising[tag] = None
            given = Arguments(tag, rng.getrandbits(30), raises, pick(rng, held, 2), pick(rng, handles, 1))
            yield from actor_workloads.act(body, rng, what, given, held, handles, 0)
            del given
        else:
            yield from drive(body, rng, tag, held, handles)
    yield from groups.remove_own(body)
    yield from body.get(held)
    if rng.random() < 0.5:
        yield ("sleep", rng.choice([0.01, 3.0]))
        yield from body.get(held)
    held.clear()
    handles.clear()


def copy(body: DriverBody, rng: random.Random, tag: str, held: list[ObjectRef[Any]]) -> Steps:
    """Something large is made on one machine and read on others; whoever dies then, the driver wants it later."""
    made = submit(body, rng, tag, [], [], 1)
    held += made
    for number in range(rng.randint(1, 3)):
        arguments = Arguments(f"{tag}.{number}", rng.getrandbits(30), False)
        held += body.call(
            arguments.tag,
            arguments,
            made[:1],
            function=b"slow-function---",
            demand={},
            retries=3,
            returns=1,
            depth=1,
            strategy=("spread",),
        )
    yield from body.get(held[-1:], timeout_s=rng.choice([0.01, 0.1]))


def drive(
    body: DriverBody, rng: random.Random, tag: str, held: list[ObjectRef[Any]], handles: list[Handle]
) -> Steps:
    """One step of a driver."""
    if body.cluster.cancels and held and rng.random() < 0.3:
        cancels.cancel(body, rng, held)
        return
    what = rng.choice(DRIVER_STEPS)
    if what == "call":
        held += submit(body, rng, tag, held, handles, 1)
    elif what == "burst":
        held += burst(body, rng, tag, 1)
    elif what == "put":
        try:
            ref = yield from body.put(tag, value_of(tag, pick(rng, held, 2), pick(rng, handles, 1), rng))
        except ObjectStoreFullError as error:
            assert body.judge.no_room(str(error))
        else:
            held.append(ref)
    elif what == "get":
        yield from body.get(pick(rng, held, 3))
    elif what == "open" and held:  # the references inside a value go on as the driver's own
        outcomes = yield from body.get([rng.choice(held)])
        for outcome in outcomes:
            if isinstance(outcome, tuple):
                held += outcome[2]
                handles += outcome[4]
    elif what == "generate":
        yield from generators.read(body, rng, drawn(body, rng, tag, held), held, 1)
    elif what == "timeout" and held:
        yield from body.get([rng.choice(held)], timeout_s=rng.choice([0.0, 0.001, 0.01]))
    elif what == "drop" and held:
        rng.shuffle(held)
        del held[rng.randrange(len(held)) :]
    elif what == "sleep":
        yield ("sleep", rng.choice([0.001, 0.02, 0.2]))
