"""Chains of tasks, each of which needs the result of the one before: an error at the head is the result of all, however many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from zray.base.ids import return_id
from zray.base.resources import ResourceSet
from zray.base.wire import ERROR, STORED
from zray.core.entries import error_entry
from zray.core.tasks import Task, TaskTemplate
from zray.exceptions import ActorDiedError, ObjectReconstructionFailedError, TaskCancelledError
from zray.object_ref import ObjectRef

from .owner_bench import NODE, ONE, Bench
from .reading import CONTROL

LINKS = 10_000
FUNCTION = TaskTemplate(b"f" * 16, "fun", ONE, 1, 3, None)
Link = Callable[[Bench, ObjectRef[Any], int], ObjectRef[Any]]


def submit(bench: Bench, template: TaskTemplate, argument: ObjectRef[Any]) -> ObjectRef[Any]:
    task_id = bench.ids()
    result = bench.ref(return_id(task_id, 1))
    bench.owner.submit(0.0, Task(task_id, template, b"p", ((0, argument),), (), (result.binary(),), 1))
    return result


def task(bench: Bench, argument: ObjectRef[Any], number: int) -> ObjectRef[Any]:
    return submit(bench, FUNCTION, argument)


def ordered_call(bench: Bench, argument: ObjectRef[Any], number: int) -> ObjectRef[Any]:
    template = TaskTemplate(b"add", "Counter.add", ResourceSet({}), 1, 0, None)
    template.actor = (number.to_bytes(12, "big"), number.to_bytes(20, "big"))
    return submit(bench, template, argument)


def constructor(bench: Bench, argument: ObjectRef[Any], number: int) -> ObjectRef[Any]:
    """The reference is that of the actor's handles, and its value is what the constructor returns."""
    task_id = bench.ids()
    handle = bench.ref(return_id(task_id, 1))
    template = TaskTemplate(b"c" * 16, "Counter.__init__", ResourceSet({}), 1, 0, None)
    template.actor = (number.to_bytes(12, "big"), handle.binary())
    template.creates = True
    bench.owner.create_actor(0.0, Task(task_id, template, b"p", ((0, argument),), (), (handle.binary(),), 1), None)
    return handle


def chain(bench: Bench, link: Link, head: ObjectRef[Any]) -> list[ObjectRef[Any]]:
    links = [head]
    for number in range(LINKS):
        links.append(link(bench, links[-1], number))
    return links


def all_failed(bench: Bench, links: list[ObjectRef[Any]], error: type) -> None:
    assert not bench.owner.tasks.pending
    assert len({bench.owner.memory[ref.binary()] for ref in links}) == 1
    assert isinstance(bench.error(links[-1]), error)


@pytest.mark.parametrize("link", [task, ordered_call, constructor])
def test_the_error_of_the_first_is_that_of_all(link: Link) -> None:
    bench = Bench()
    [head], effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    links = chain(bench, link, head)
    bench.turn()
    bench.done(lease, head, (ERROR, error_entry(ValueError("first"))[1]))
    all_failed(bench, links, ValueError)


@pytest.mark.parametrize("link", [task, ordered_call, constructor])
def test_if_the_first_is_cancelled_none_runs(link: Link) -> None:
    bench = Bench()
    [head], _ = bench.call()
    links = chain(bench, link, head)
    bench.turn()
    assert bench.owner.cancel(0.0, head.binary())
    bench.turn()
    all_failed(bench, links, TaskCancelledError)


@pytest.mark.parametrize("link", [task, ordered_call, constructor])
def test_if_the_first_argument_can_not_be_brought_back_none_runs(link: Link) -> None:
    bench = Bench()
    object_id = bench.ids() + bytes(4)
    bench.owner.put(object_id, (STORED, 1 << 20, NODE, ()))
    head = bench.ref(object_id)
    bench.turn()
    bench.owner.recover(object_id, NODE, "its file is damaged")
    links = chain(bench, link, head)
    bench.turn()
    bench.hears("copies_found", [(object_id, False, b"", "")])
    all_failed(bench, links, ObjectReconstructionFailedError)


def test_if_the_actor_of_the_first_is_dead_none_runs() -> None:
    bench = Bench()
    template = TaskTemplate(b"add", "Counter.add", ResourceSet({}), 1, 0, None)
    template.actor = (b"actor-a-----", b"h" * 20)
    task_id = bench.ids()
    head = bench.ref(return_id(task_id, 1))
    bench.owner.submit(0.0, Task(task_id, template, b"p", (), (), (head.binary(),), 1))
    links = chain(bench, task, head)
    bench.turn()
    error = error_entry(ActorDiedError("it was killed", "a"))[1]
    bench.hears("actor_updated", b"actor-a-----", "DEAD", 1, b"", "", error, peer=CONTROL)
    all_failed(bench, links, ActorDiedError)


def test_tasks_that_wait_for_the_same_become_ready_in_their_order() -> None:
    bench = Bench()
    [head], effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    refs = [submit(bench, FUNCTION, head) for _ in range(5)]
    bench.done(lease, head, (STORED, 1, NODE, ()))
    inflight = list(bench.owner.leases.leases[lease].inflight)
    [queue] = bench.owner.leases.queues.values()
    assert [*inflight, *[waiting.id for waiting in queue.tasks]] == [ref.binary()[:16] for ref in refs]
