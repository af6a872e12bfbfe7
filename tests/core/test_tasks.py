"""TaskManager: waiting for arguments, finishing once, charging attempts."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.ids import return_id
from zray.base.resources import ResourceSet
from zray.core.tasks import CANCELLED, NODE_DIED, OUT_OF_MEMORY, RAISED, WORKER_DIED, Task, TaskManager, TaskTemplate
from zray.exceptions import InvariantError

from .reading import address, make_ref

ME = address("me")
A, B = bytes([1]) * 20, bytes([2]) * 20


def make_task(number: int = 1, args: tuple[bytes, ...] = (), max_retries: int = 3) -> Task:
    template = TaskTemplate(b"f" * 16, "f", ResourceSet.of({"CPU": 1}), 1, max_retries, None)
    task_id = number.to_bytes(16, "big")
    slots = tuple((position, make_ref(object_id, ME)) for position, object_id in enumerate(args))
    return Task(task_id, template, b"payload", slots, (), (return_id(task_id, 1),), 1)


def submit(manager: TaskManager, task: Task, here: tuple[bytes, ...] = ()) -> list[Any]:
    missing = manager.submit(task, here.__contains__)
    manager.check()
    return [ref.binary() for ref in missing]


def test_a_task_waits_for_the_arguments_that_are_not_there() -> None:
    m, task = TaskManager(), make_task(args=(A, B))
    assert submit(m, task, (A,)) == [B]
    assert m.on_object_ready(B) == [task]
    m.check()
    assert task.missing == 0 and m.waiting == {} and task.id in m.pending


def test_a_task_with_all_arguments_waits_for_nothing() -> None:
    m, task = TaskManager(), make_task(args=(A,))
    assert submit(m, task, (A,)) == []
    assert m.statistics() == {"pending": 1, "waiting_for_arguments": 0}


def test_an_argument_given_twice_is_waited_for_once_and_readies_the_task_once() -> None:
    m, task = TaskManager(), make_task(args=(A, A))
    submit(m, task)
    assert m.on_object_ready(A) == [task]
    m.check()


def test_tasks_are_ready_in_the_order_of_their_submission() -> None:
    m = TaskManager()
    tasks = [make_task(n, (A,)) for n in range(5)]
    for task in tasks:
        submit(m, task)
    assert m.on_object_ready(A) == tasks
    assert m.on_object_ready(A) == []


def test_a_task_that_was_given_up_is_not_readied() -> None:
    m, task = TaskManager(), make_task(args=(A,))
    submit(m, task)
    assert m.pending.pop(task.id) is task
    assert m.on_object_ready(A) == []
    m.check()


@pytest.mark.parametrize(("max_retries", "attempts"), [(0, 1), (1, 2), (3, 4)])
def test_every_lost_attempt_costs_one_retry(max_retries: int, attempts: int) -> None:
    m, task = TaskManager(), make_task(max_retries=max_retries)
    assert [m.may_retry(task, WORKER_DIED) for _ in range(attempts)] == [True] * max_retries + [False]


def test_a_task_with_minus_one_is_retried_for_ever() -> None:
    m, task = TaskManager(), make_task(max_retries=-1)
    assert all(m.may_retry(task, WORKER_DIED) for _ in range(100))


def test_deaths_and_exceptions_share_a_budget_and_want_of_memory_has_its_own() -> None:
    m, task = TaskManager(oom_retries_max=2), make_task(max_retries=3)
    causes = [WORKER_DIED, OUT_OF_MEMORY, RAISED, NODE_DIED, OUT_OF_MEMORY]
    assert [m.may_retry(task, cause) for cause in causes] == [True] * 5
    assert not m.may_retry(task, RAISED) and not m.may_retry(task, OUT_OF_MEMORY)
    assert task.attempts() == (
        "It was tried 7 time(s): 1 time(s) its worker died, 3 time(s) memory was short, 2 time(s) it raised an exception, "
        "1 time(s) its node died"
    )


@pytest.mark.parametrize(("max_retries", "again"), [(0, False), (-1, True), (1, True)])
def test_want_of_memory_is_retried_where_anything_is(max_retries: int, again: bool) -> None:
    m, task = TaskManager(oom_retries_max=1), make_task(max_retries=max_retries)
    assert m.may_retry(task, OUT_OF_MEMORY) is again
    assert task.retries_left == max_retries and not m.may_retry(task, OUT_OF_MEMORY)


def test_a_cancelled_task_is_never_retried() -> None:
    m, task = TaskManager(oom_retries_max=1), make_task(max_retries=3)
    task.cancelled = CANCELLED
    assert not any(m.may_retry(task, cause) for cause in (WORKER_DIED, OUT_OF_MEMORY, RAISED))


def test_check_sees_a_task_whose_waiting_is_not_listed() -> None:
    m, task = TaskManager(), make_task(args=(A,))
    submit(m, task)
    task.missing = 0
    with pytest.raises(InvariantError):
        m.check()
