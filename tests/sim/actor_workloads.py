"""What drivers, tasks and actors do with actors. As everywhere, the choices of a task follow from its plan."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from zray.object_ref import ObjectRef

from . import actors
from .actors import Handle, Options

if TYPE_CHECKING:
    from .bodies import OwnerBody
    from .threads import Steps
    from .workloads import Arguments

ACTORS_MAX = 20  # in one simulation
DEPTH_MAX = 2  # of those that create actors
NAMES = ["alpha", "beta"]
DRIVER_STEPS = ["create", "create", "create", "calls", "calls", "calls", "calls", "calls", "find", "kill", "forget"]
TASK_STEPS = ["create", "calls", "calls", "calls", "find", "keep handle", "recall handle", "self", "kill", "exit"]


def draw_strategy(body: OwnerBody, rng: random.Random) -> tuple[Any, ...]:
    """Which node a task or an actor asks for. (Nothing is drawn where there is one node only: nothing could be learned.)"""
    machines = body.cluster.machines
    if len(machines) == 1 or rng.random() < 0.3:
        return ("default",)
    kind = rng.choice(["spread", "spread", "spread", "affinity", "affinity", "labels"])
    if kind == "affinity":
        node = rng.choice(body.cluster.nodes[: len(machines)])
        return ("affinity", node.id, rng.random() < 0.7)
    if kind == "labels":
        return ("labels", (("zone", "in", ("a",)),), (("zone", "in", ("b",)),) if rng.random() < 0.3 else ())
    return ("spread",)


def draw_options(body: OwnerBody, rng: random.Random) -> Options:
    detached = rng.random() < 0.15
    strategy = draw_strategy(body, rng)
    resources = {}
    if strategy[0] == "affinity":
        pass  # the CPUs of that node may be held for ever
    elif rng.random() < 0.3 and body.cluster.cpus_to_hold > 0:
        resources = {"CPU": rng.choice([0.5, 1.0])}
        body.cluster.cpus_to_hold -= 1.0
    elif rng.random() < 0.03:
        resources = {"GPU": 1.0}
    return Options(
        name=rng.choice(NAMES) if rng.random() < (0.8 if detached else 0.25) else "",
        get_if_exists=rng.random() < 0.5,
        detached=detached,
        restarts=rng.choice([0, 0, 1, 3, -1, -1]),
        retries=rng.choice([0, 0, 1, -1, -1]),
        concurrency=rng.choice([1, 1, 3]),
        resources=resources,
        strategy=strategy,
    )


def act(
    body: OwnerBody,
    rng: random.Random,
    what: str,
    arguments: Arguments,
    refs: list[ObjectRef[Any]],
    handles: list[Handle],
    depth: int,
) -> Steps:
    """One step with actors; what it makes is added to ``refs`` and ``handles``. ``arguments`` are for its calls."""
    if what == "create" and depth <= DEPTH_MAX and len(body.judge.actors) < ACTORS_MAX:
        options = draw_options(body, rng)
        slots = [rng.choice(refs)] if refs and rng.random() < 0.3 else []
        handle = yield from actors.create(body, arguments.tag, options, arguments, slots, depth + 1)
        if handle is not None:
            handles.append(handle)
    elif what == "calls" and handles:
        handle = rng.choice(handles)
        for number in range(rng.choice([1, 2, 5, 10])):
            slots = [rng.choice(refs)] if refs and rng.random() < 0.2 else []
            refs += one_call(body, rng, handle, arguments, number, slots)
    elif what == "find":
        handle = yield from actors.find(body, rng.choice(NAMES))
        if handle is not None:
            handles.append(handle)
    elif what == "kill" and handles and body.cluster.violent:
        # A call that is tried again may kill its own actor again: then it must be for good.
        actors.kill(body, rng.choice(handles), no_restart=depth > 0 or rng.random() < 0.5)
    elif what == "forget" and handles:
        rng.shuffle(handles)
        del handles[rng.randrange(len(handles)) :]
    elif what == "keep handle" and handles and body.cluster.may_keep:
        body.kept_handles.append(rng.choice(handles))
    elif what == "recall handle":
        handles += body.kept_handles[-1:]


def one_call(
    body: OwnerBody,
    rng: random.Random,
    handle: Handle,
    arguments: Arguments,
    number: int,
    slots: list[ObjectRef[Any]],
) -> list[ObjectRef[Any]]:
    raises = rng.random() < 0.06
    retried = raises and handle.description.retries > 0
    mine = arguments.another(f"{arguments.tag}.{number}", rng.getrandbits(30), raises, retried)
    if raises:
        body.judge.raising[mine.tag] = None
    return actors.call(body, handle, mine.tag, mine, slots, rng.choice([1, 1, 1, 2]))
