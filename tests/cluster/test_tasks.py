"""Tasks that go well: calls, options, arguments, results, and which code reaches the workers."""

from __future__ import annotations

import functools
import os
import sys
import textwrap
from typing import Any

import pytest

import zray as ray

pytestmark = pytest.mark.usefixtures("cluster")


def test_remote_bare_with_options_and_as_a_function() -> None:
    @ray.remote
    def bare(x: int) -> int:
        return x + 1

    @ray.remote(num_cpus=1, max_retries=0)
    def chosen(x: int) -> int:
        return x + 2

    called = ray.remote(lambda x: x + 3)
    assert ray.get([bare.remote(1), chosen.remote(1), called.remote(1)]) == [2, 3, 4]


@pytest.mark.processes("it compares processes")
def test_a_task_runs_in_another_process() -> None:
    @ray.remote
    def pid() -> int:
        return os.getpid()

    assert ray.get(pid.remote()) != os.getpid()


def test_options_give_the_same_function_with_other_options() -> None:
    @ray.remote
    def pair() -> tuple[int, int]:
        return 1, 2

    first, second = pair.options(num_returns=2).remote()
    assert ray.get([first, second]) == [1, 2]
    assert ray.get(pair.remote()) == (1, 2)


def test_a_direct_call_is_a_type_error_that_names_remote() -> None:
    @ray.remote
    def f() -> None: ...

    with pytest.raises(TypeError, match=r"f\.remote\("):
        f()


def test_a_remote_function_keeps_name_and_docstring() -> None:
    @ray.remote
    def documented() -> None:
        """What it does."""

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "What it does."


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1,), {}), ((1, 2, 3, 4), {}), ((1, 2), {"a": 1}), ((1, 2), {"wrong": 1}), ((), {"a": 1})],
)
def test_arguments_that_do_not_fit_the_signature_are_a_type_error_at_submit(args: Any, kwargs: Any) -> None:
    @ray.remote
    def f(a: int, b: int, c: int = 0) -> int:
        return a + b + c

    with pytest.raises(TypeError, match="f"):
        f.remote(*args, **kwargs)


def test_every_way_to_pass_arguments() -> None:
    @ray.remote
    def f(a: Any, /, b: Any, *rest: Any, c: Any = "c", **more: Any) -> Any:
        return a, b, rest, c, more

    assert ray.get(f.remote(1, 2)) == (1, 2, (), "c", {})
    assert ray.get(f.remote(1, 2, 3, 4, c=5, d=6)) == (1, 2, (3, 4), 5, {"d": 6})
    assert ray.get(f.remote(1, b=2, d=ray.put(3))) == (1, 2, (), "c", {"d": 3})


def test_a_required_keyword_is_demanded_at_submit() -> None:
    @ray.remote
    def f(*, key: int) -> int:
        return key

    with pytest.raises(TypeError, match="key"):
        f.remote()
    assert ray.get(f.remote(key=3)) == 3


def test_top_level_references_are_replaced_by_their_values_and_nested_ones_are_not() -> None:
    @ray.remote
    def f(value: Any, refs: list[Any], named: Any = None) -> Any:
        return value, [isinstance(ref, ray.ObjectRef) for ref in refs], named, ray.get(refs)

    one, two = ray.put(1), ray.put(2)
    assert ray.get(f.remote(one, [one, two], named=two)) == (1, [True, True], 2, [1, 2])


def test_a_task_waits_for_the_tasks_it_depends_on() -> None:
    @ray.remote
    def add(a: int, b: int) -> int:
        return a + b

    ref = add.remote(1, 1)
    for _ in range(20):
        ref = add.remote(ref, ref)
    assert ray.get(ref) == 2 << 20


def test_the_same_reference_twice_among_the_arguments() -> None:
    @ray.remote
    def same(a: Any, b: Any, c: Any) -> Any:
        return a, b, c

    ref = ray.put("x")
    assert ray.get(same.remote(ref, ref, c=ref)) == ("x", "x", "x")


@pytest.mark.parametrize("size", [0, 1, 100 * 1024 - 200, 100 * 1024, 1 << 20])
def test_arguments_and_results_of_any_size(size: int) -> None:
    @ray.remote
    def double(data: bytes) -> bytes:
        return data + data

    assert ray.get(double.remote(b"x" * size)) == b"x" * (2 * size)


def test_num_returns() -> None:
    @ray.remote(num_returns=3)
    def three() -> Any:
        return 1, [2], "3"

    @ray.remote(num_returns=0)
    def none() -> None: ...

    @ray.remote(num_returns=2)
    def listed() -> Any:
        return [1, 2]

    refs = three.remote()
    assert isinstance(refs, list)
    assert ray.get(refs) == [1, [2], "3"]
    assert none.remote() is None
    assert ray.get(listed.remote()) == [1, 2]


def test_a_thousand_returns() -> None:
    @ray.remote(num_returns=1000)
    def many() -> range:
        return range(1000)

    assert ray.get(many.remote()) == list(range(1000))


@pytest.mark.parametrize(("count", "got"), [(2, "3 values"), (4, "3 values")])
def test_a_wrong_number_of_returned_values_is_an_error_in_every_reference(count: int, got: str) -> None:
    @ray.remote(num_returns=count)
    def f() -> Any:
        return 1, 2, 3

    for ref in f.remote():
        with pytest.raises(ValueError, match=f"num_returns={count}.*{got}"):
            ray.get(ref)


def test_one_value_where_several_were_announced_is_an_error_that_names_its_type() -> None:
    @ray.remote(num_returns=2)
    def f() -> int:
        return 1

    for ref in f.remote():
        with pytest.raises(ValueError, match=r"num_returns=2.*int"):
            ray.get(ref)


def test_nested_tasks() -> None:
    @ray.remote
    def leaf(x: int) -> int:
        return x * x

    @ray.remote
    def branch(n: int) -> int:
        return sum(ray.get([leaf.remote(i) for i in range(n)]))

    assert ray.get([branch.remote(n) for n in range(6)]) == [sum(i * i for i in range(n)) for n in range(6)]


def test_recursion_that_ends() -> None:
    @ray.remote
    def fibonacci(n: int) -> int:
        if n < 2:
            return n
        return sum(ray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))

    assert ray.get(fibonacci.remote(7)) == 13


def test_closures_lambdas_and_partial_functions() -> None:
    base = 10

    @ray.remote
    def add(x: int) -> int:
        return base + x

    def plus(a: int, b: int) -> int:
        return a + b

    five = functools.wraps(plus)(functools.partial(plus, 5))
    assert ray.get(add.remote(1)) == 11
    assert ray.get(ray.remote(lambda: base).remote()) == 10
    assert ray.get(ray.remote(lambda: five(1)).remote()) == 6


def test_the_newest_definition_of_a_function_wins_for_new_calls() -> None:
    def define(version: int) -> Any:
        @ray.remote
        def same_name() -> int:
            return version

        return same_name

    old, new = define(1), define(2)
    assert ray.get([old.remote(), new.remote(), old.remote()]) == [1, 2, 1]


def test_a_function_can_call_others_of_its_module_and_use_its_classes() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

        def moved(self) -> Point:
            return Point(self.x + 1)

    @ray.remote
    def move(point: Point) -> Point:
        return point.moved()

    assert ray.get(move.remote(move.remote(Point(1)))).x == 3


def test_functions_and_classes_of_a_module_beside_the_script(tmp_path: Any, monkeypatch: Any, script: Any) -> None:
    """And those of ``__main__``: the worker has both."""
    (tmp_path / "beside_the_script.py").write_text(
        textwrap.dedent(
            """
            class Held:
                def __init__(self, value):
                    self.value = value
            def hold(value):
                return Held(value)
            """
        )
    )
    program = script(
        """
        import beside_the_script

        class Mine(beside_the_script.Held):
            def twice(self):
                return Mine(2 * self.value)

        LIMIT = 5

        @ray.remote
        def hold(value):
            held = beside_the_script.hold(value)
            assert isinstance(held, beside_the_script.Held)
            return Mine(min(held.value, LIMIT)).twice()

        start()
        say("got", ray.get(hold.remote(9)).value, ray.get(ray.remote(beside_the_script.hold).remote(3)).value)
        """,
        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
    )
    assert program.until("got") == "10 3"
    assert program.finish()[0] == 0


def test_a_remote_function_can_be_passed_to_a_task() -> None:
    @ray.remote
    def inner(x: int) -> int:
        return x + 1

    @ray.remote
    def outer(f: Any) -> Any:
        return ray.get(f.remote(1))

    assert ray.get(outer.remote(inner)) == 2


def test_the_name_option_is_what_errors_and_the_context_show() -> None:
    @ray.remote(name="the chosen name")
    def f(fail: bool) -> str | None:
        if fail:
            raise ValueError
        return ray.get_runtime_context().get_task_name()

    assert ray.get(f.remote(False)) == "the chosen name"
    with pytest.raises(ray.exceptions.RayTaskError, match="the chosen name"):
        ray.get(f.remote(True))


def test_the_runtime_context_of_a_task() -> None:
    @ray.remote(num_cpus=0.5, resources={})
    def f() -> Any:
        context = ray.get_runtime_context()
        return (
            context.get_task_id(),
            context.get_job_id(),
            context.get_node_id(),
            context.get_worker_id(),
            context.get_assigned_resources(),
            context.namespace,
        )

    here = ray.get_runtime_context()
    ref = f.remote()
    task, job, node, worker, resources, namespace = ray.get(ref)
    assert task == ref.task_id().hex()
    assert (job, node, namespace) == (here.get_job_id(), here.get_node_id(), here.namespace)
    assert worker != here.get_worker_id()
    assert resources == {"CPU": 0.5}
    assert here.get_task_id() is None


def test_output_of_a_task_with_no_value_is_none() -> None:
    assert ray.get(ray.remote(lambda: None).remote()) is None


def test_fractions_of_a_cpu_and_none_at_all() -> None:
    @ray.remote(num_cpus=0)
    def free() -> int:
        return 1

    @ray.remote(num_cpus=0.25)
    def quarter() -> int:
        return 2

    assert ray.get([free.remote() for _ in range(4)] + [quarter.remote() for _ in range(4)]) == [1] * 4 + [2] * 4


@pytest.mark.processes("it compares processes")
def test_max_calls_gives_a_new_process_after_so_many_calls() -> None:
    @ray.remote(max_calls=1)
    def pid() -> int:
        return os.getpid()

    pids = [ray.get(pid.remote()) for _ in range(4)]
    assert len(set(pids)) == 4


def test_thousands_of_tasks_in_order() -> None:
    @ray.remote
    def same(x: int) -> int:
        return x

    assert ray.get([same.remote(i) for i in range(3000)]) == list(range(3000))


def test_an_argument_list_of_a_thousand_references() -> None:
    @ray.remote
    def add(*values: int) -> int:
        return sum(values)

    @ray.remote
    def one() -> int:
        return 1

    assert ray.get(add.remote(*[one.remote() for _ in range(1000)])) == 1000


def test_the_scheduling_strategies_that_need_no_second_node() -> None:
    @ray.remote(scheduling_strategy="SPREAD")
    def f() -> int:
        return 1

    assert ray.get([f.remote(), f.options(scheduling_strategy="DEFAULT").remote()]) == [1, 1]


def test_nodes_and_resources() -> None:
    (node,) = ray.nodes()
    assert node["Alive"]
    assert node["NodeID"] == ray.get_runtime_context().get_node_id()
    assert ray.cluster_resources()["CPU"] == 2
    assert 0 <= ray.available_resources().get("CPU", 0) <= 2
