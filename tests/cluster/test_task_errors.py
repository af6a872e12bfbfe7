"""Bad input and tasks that raise: the error names the cause and the mend, and the next call works."""

from __future__ import annotations

import builtins
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray
from zray.exceptions import RayTaskError, TaskCancelledError

from .modes import in_local_mode

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(autouse=True)
def the_next_call_works(cluster: Any) -> Iterator[None]:
    """Whatever a test did to it, the cluster goes on."""
    yield
    assert ray.get(ray.remote(lambda: "works").remote(), timeout=30) == "works"


# -- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_cpu", 1),
        ("num_cpus", -1),
        ("num_cpus", "two"),
        ("num_cpus", True),
        ("num_cpus", float("nan")),
        ("num_cpus", 0.00001),
        ("num_gpus", -0.5),
        ("num_gpus", 1.5),
        ("memory", "1GB"),
        ("resources", {"CPU": 1}),
        ("resources", {"a": -1}),
        ("resources", ["a"]),
        ("num_returns", -1),
        ("num_returns", "many"),
        ("num_returns", 1.5),
        ("max_calls", -1),
        ("max_retries", -2),
        ("max_retries", 1.5),
        ("retry_exceptions", "ValueError"),
        ("retry_exceptions", [1]),
        ("scheduling_strategy", "FASTEST"),
        ("runtime_env", "env"),
        ("name", 1),
    ],
)
def test_a_bad_option_is_refused_at_decoration_by_name(option: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=option):
        ray.remote(**{option: value})(lambda: None)
    with pytest.raises((ValueError, TypeError), match=option):
        ray.remote(lambda: None).options(**{option: value})


def test_what_can_not_be_remote() -> None:
    with pytest.raises(TypeError, match="function"):
        ray.remote(3)
    with pytest.raises(TypeError, match="keyword"):
        ray.remote(lambda: 1, 2)
    with pytest.raises(TypeError, match="remote function already"):
        ray.remote(ray.remote(lambda: 1))
    with pytest.raises(TypeError, match=r"@remote"):
        ray.remote()


def test_a_coroutine_function_is_refused_with_the_mend() -> None:
    async def f() -> None: ...

    with pytest.raises(ValueError, match=r"asyncio\.run"):
        ray.remote(f)


# -- things that do not pickle ------------------------------------------------------------------------------------


def test_an_unpicklable_argument_is_a_type_error_at_submit() -> None:
    @ray.remote
    def f(x: Any) -> None: ...

    with pytest.raises(TypeError, match=r"f\(\).*lock.*inspect_serializability"):
        f.remote(threading.Lock())
    with pytest.raises(TypeError, match=r"f\(\).*lock"):
        f.remote(x=[threading.Lock()])


def test_an_unpicklable_closure_is_a_type_error_at_submit() -> None:
    lock = threading.Lock()

    @ray.remote
    def f() -> bool:
        return lock.locked()

    with pytest.raises(TypeError, match=r"f\(\).*lock.*inside the function"):
        f.remote()


def test_an_unpicklable_value_can_not_be_put() -> None:
    with pytest.raises(TypeError, match="lock"):
        ray.put(threading.Lock())


def test_an_unpicklable_result_is_a_clear_error() -> None:
    @ray.remote
    def f() -> Any:
        return threading.Lock()

    with pytest.raises(TypeError, match=r"f\(\)[\s\S]*lock"):
        ray.get(f.remote())


def test_one_unpicklable_result_of_several_fails_them_all() -> None:
    @ray.remote(num_returns=2)
    def f() -> Any:
        return 1, threading.Lock()

    for ref in f.remote():
        with pytest.raises(TypeError, match="lock"):
            ray.get(ref)


def test_a_value_nested_too_deeply_is_a_clear_error() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="nested too deeply"):
        ray.put(deep)
    while deep:  # or the interpreter itself recurses when it frees it
        deep = deep[0]


class FailsToPickle:
    """Raises when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError("no"), StopIteration("no"), RuntimeError("no")])
def test_whatever_pickling_raises_becomes_a_type_error(error: BaseException) -> None:
    with pytest.raises(TypeError, match="no"):
        ray.put(FailsToPickle(error))


def _raise(text: str) -> None:
    raise OSError(text)


def test_a_result_that_can_not_be_read_back_raises_at_get_and_only_there() -> None:
    class Poisoned:
        def __reduce__(self) -> Any:
            def poison() -> None:
                raise LookupError("can not be read back")

            return poison, ()

    @ray.remote
    def f() -> Any:
        return Poisoned()

    ref = f.remote()
    ray.wait([ref])
    with pytest.raises(LookupError, match="can not be read back"):
        ray.get(ref)


def test_an_argument_that_can_not_be_read_back_is_an_error_of_the_task() -> None:
    class Poisoned:
        def __reduce__(self) -> Any:
            def poison() -> None:
                raise LookupError("can not be read back")

            return poison, ()

    @ray.remote
    def f(x: Any) -> None: ...

    with pytest.raises(LookupError, match="can not be read back") as caught:
        ray.get(f.remote(Poisoned()))
    assert isinstance(caught.value, RayTaskError)


# -- exceptions of tasks ------------------------------------------------------------------------------------------


def test_an_exception_keeps_its_type_and_tells_where_it_happened() -> None:
    class Special(KeyError):
        def __init__(self, key: str, extra: int) -> None:
            super().__init__(key)
            self.extra = extra

        def __reduce__(self) -> Any:
            return Special, (self.args[0], self.extra)

    @ray.remote
    def broken_function() -> int:
        def inner() -> int:
            raise Special("the key", 7)

        return inner()

    with pytest.raises(Special) as caught:
        ray.get(broken_function.remote())
    error = caught.value
    assert isinstance(error, RayTaskError)
    assert type(error.cause) is Special
    assert error.cause.extra == error.extra == 7
    assert error.args == ("the key",)
    text = str(error)
    for part in ("broken_function", "inner", "Special", "the key", f"pid={error.pid}", f"node={error.node[:8]}"):
        assert part in text
    assert (error.pid == os.getpid()) == in_local_mode()
    assert error.node == ray.get_runtime_context().get_node_id()
    assert "zray/runtime" not in text  # the frames of the worker itself help nobody


_TYPES = [
    kind
    for kind in vars(builtins).values()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and kind.__name__ not in ("ExceptionGroup", "BaseExceptionGroup")
]
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "UnicodeDecodeError": ("utf-8", b"x", 0, 1, "bad"),
    "UnicodeEncodeError": ("utf-8", "x", 0, 1, "bad"),
    "UnicodeTranslateError": ("x", 0, 1, "bad"),
}


@pytest.mark.parametrize("kind", list(dict.fromkeys(_TYPES)), ids=lambda kind: kind.__name__)
def test_every_exception_of_the_language_can_be_caught_by_its_type(kind: type[Exception]) -> None:
    arguments = _ARGUMENTS.get(kind.__name__, ("what went wrong",))

    @ray.remote
    def f() -> None:
        raise kind(*arguments)

    with pytest.raises(kind) as caught:
        ray.get(f.remote())
    assert isinstance(caught.value, RayTaskError)
    assert "f()" in str(caught.value)
    assert type(caught.value.cause) is kind


def test_the_fields_of_an_os_error_arrive() -> None:
    @ray.remote
    def f() -> None:
        with open("/there/is/no/such/file", encoding="utf-8"):
            pass

    with pytest.raises(FileNotFoundError) as caught:
        ray.get(f.remote())
    assert caught.value.errno == 2
    assert caught.value.filename == "/there/is/no/such/file"


def test_an_exception_type_with_a_demanding_constructor() -> None:
    class Demanding(Exception):
        def __new__(cls, a: int, b: int) -> Any:
            return super().__new__(cls)

        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")
            self.a = a

        def __reduce__(self) -> Any:
            return Demanding, (self.a, 2)

    @ray.remote
    def f() -> None:
        raise Demanding(1, 2)

    with pytest.raises(RayTaskError, match="1 and 2") as caught:
        ray.get(f.remote())
    assert isinstance(caught.value, Demanding)


@pytest.mark.processes("modules and classes of one process are the same for all")
def test_an_exception_type_with_slots_and_properties() -> None:
    class Slotted(Exception):
        __slots__ = ("code",)

        @property
        def fixed(self) -> int:
            return 3

    @ray.remote
    def f() -> None:
        error = Slotted("slotted")
        error.code = 5
        raise error

    with pytest.raises(Slotted, match="slotted") as caught:
        ray.get(f.remote())
    assert caught.value.fixed == 3
    assert caught.value.cause.code == 5


def test_an_exception_travels_through_dependent_tasks_unchanged() -> None:
    @ray.remote
    def fail() -> int:
        raise ValueError("the first")

    @ray.remote
    def use(x: int) -> int:
        return x

    @ray.remote
    def get_inside() -> int:
        return ray.get(fail.remote())

    for ref in (use.remote(use.remote(fail.remote())), get_inside.remote()):
        with pytest.raises(ValueError, match="the first") as caught:
            ray.get(ref)
        assert type(caught.value.cause) is ValueError
    ref = use.remote(fail.remote())
    with pytest.raises(ValueError, match=r"fail\(\)"):
        ray.get(ref)


def test_an_unpicklable_exception_gives_its_text() -> None:
    @ray.remote
    def f() -> None:
        error = ValueError("the text")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    with pytest.raises(RayTaskError, match=r"the text[\s\S]*could not be pickled") as caught:
        ray.get(f.remote())
    assert caught.value.cause is None


def test_an_exception_that_can_not_be_read_back_gives_its_text() -> None:
    class Lopsided(Exception):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")  # pickle will call it with one argument

    @ray.remote
    def f() -> None:
        raise Lopsided(1, 2)

    with pytest.raises(RayTaskError, match="1 and 2"):
        ray.get(f.remote())


def test_an_exception_that_only_the_worker_can_read() -> None:
    """Its type is found there and nowhere else: ``get`` still raises something that says so."""

    @ray.remote
    def f() -> None:
        import types

        module = types.ModuleType("only_in_the_worker")
        sys.modules["only_in_the_worker"] = module
        exec("class Local(Exception): pass", module.__dict__)
        raise module.Local("from afar")

    with pytest.raises(RayTaskError, match="from afar"):
        ray.get(f.remote())


def test_an_exception_whose_text_can_not_be_made() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @ray.remote
    def f() -> None:
        raise Mute

    with pytest.raises(RayTaskError, match="Mute"):
        ray.get(f.remote())


def test_an_exception_with_causes_shows_them() -> None:
    @ray.remote
    def f() -> None:
        try:
            raise ValueError("the inner")
        except ValueError as error:
            raise RuntimeError("the outer") from error

    with pytest.raises(RuntimeError, match=r"the inner[\s\S]*the outer"):
        ray.get(f.remote())


def test_an_exception_with_a_large_array_travels() -> None:
    np = pytest.importorskip("numpy")

    @ray.remote
    def f() -> None:
        raise ValueError(np.zeros(1 << 17))

    with pytest.raises(ValueError) as caught:
        ray.get(f.remote())
    assert caught.value.args[0].shape == (1 << 17,)


def test_keyboard_interrupt_in_a_task_is_a_cancelled_task() -> None:
    @ray.remote
    def f() -> None:
        raise KeyboardInterrupt

    with pytest.raises(TaskCancelledError, match=r"f\(\)"):
        ray.get(f.remote())


def test_other_base_exceptions_are_errors_of_the_task() -> None:
    class Base(BaseException): ...

    @ray.remote
    def f() -> None:
        raise Base("base")

    @ray.remote
    def g() -> None:
        raise GeneratorExit

    with pytest.raises(RayTaskError, match="base"):
        ray.get(f.remote())
    with pytest.raises(RayTaskError, match="GeneratorExit"):
        ray.get(g.remote())


def test_endless_recursion_inside_a_function_is_its_error() -> None:
    @ray.remote
    def f() -> None:
        def down(n: int) -> int:
            return down(n + 1)

        down(0)

    with pytest.raises(RecursionError):
        ray.get(f.remote())


def test_errors_of_zray_raised_inside_a_task_arrive_as_what_they_are() -> None:
    @ray.remote
    def f() -> Any:
        return ray.get([ray.remote(lambda: 1).remote(), "no reference"])

    with pytest.raises(TypeError, match="item 1"):
        ray.get(f.remote())


# -- functions that do not arrive ---------------------------------------------------------------------------------


@pytest.mark.processes("modules and classes of one process are the same for all")
def test_a_module_that_the_worker_can_not_find_is_an_error_with_the_mend(tmp_path: Any, monkeypatch: Any) -> None:
    """The job told its workers the path as it was at init: a module found later only here is not found there."""
    (tmp_path / "only_the_driver_has_it.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_the_driver_has_it  # type: ignore[import-not-found]

    with pytest.raises(ImportError, match=r"only_the_driver_has_it[\s\S]*register_pickle_by_value"):
        ray.get(ray.remote(only_the_driver_has_it.f).remote())


def test_an_import_error_inside_a_function_is_its_error() -> None:
    @ray.remote
    def f() -> None:
        import there_is_no_such_module  # type: ignore[import-not-found] # noqa: F401

    with pytest.raises(ImportError, match="there_is_no_such_module") as caught:
        ray.get(f.remote())
    assert isinstance(caught.value, ModuleNotFoundError)


@pytest.mark.processes("modules and classes of one process are the same for all")
def test_a_module_that_fails_while_it_is_imported(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "fails_elsewhere.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}:\n    raise RuntimeError('only here')\ndef f():\n    return 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import fails_elsewhere  # type: ignore[import-not-found]

    @ray.remote
    def g(path: str) -> int:
        sys.path.append(path)
        try:
            import fails_elsewhere  # type: ignore[import-not-found]

            return fails_elsewhere.f()
        finally:
            sys.path.remove(path)

    assert fails_elsewhere.f() == 1
    with pytest.raises(RuntimeError, match="only here"):
        ray.get(g.remote(str(tmp_path)))


# -- what is not a reference --------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [1, "ref", None, {"a": 1}, object(), b"x" * 20, {1, 2}])
def test_get_of_something_else_is_a_type_error_that_names_it(thing: Any) -> None:
    with pytest.raises(TypeError, match=type(thing).__name__):
        ray.get(thing)
    with pytest.raises(TypeError, match="item 1"):
        ray.get([ray.put(1), thing])


def test_put_of_a_reference_is_a_type_error_with_the_mend() -> None:
    with pytest.raises(TypeError, match=r"ObjectRef.*list"):
        ray.put(ray.put(1))


@pytest.mark.parametrize("timeout", ["1", [], True, -2, float("nan")])
def test_a_bad_timeout_is_refused(timeout: Any) -> None:
    ref = ray.put(1)
    with pytest.raises((TypeError, ValueError), match="timeout"):
        ray.get(ref, timeout=timeout)
    with pytest.raises((TypeError, ValueError), match="timeout"):
        ray.wait([ref], timeout=timeout)
