"""Serializers of one's own, and the search for what does not pickle."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zray as ray

from .driving import Script

pytestmark = pytest.mark.usefixtures("cluster")


class Holder:
    """Has a lock, which does not pickle."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.lock = threading.Lock()

    def read(self) -> Any:
        return self.value


def test_what_a_serializer_must_be() -> None:
    with pytest.raises(TypeError, match="takes a class, not 'x'"):
        ray.util.register_serializer("x", serializer=str, deserializer=str)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the deserializer of Holder must be a function, not 5"):
        ray.util.register_serializer(Holder, serializer=str, deserializer=5)  # type: ignore[arg-type]


@pytest.fixture
def registered() -> Iterator[None]:
    ray.util.register_serializer(Holder, serializer=lambda h: h.value, deserializer=Holder)
    yield
    ray.util.deregister_serializer(Holder)


@pytest.mark.usefixtures("registered")
def test_a_registered_serializer_is_used_for_arguments_results_and_objects() -> None:
    @ray.remote
    def same(holder: Any) -> Any:
        assert holder.lock.acquire(False)
        return holder.value

    assert ray.get(same.remote(Holder(1))) == 1
    assert ray.get(same.remote(ray.put(Holder([2])))) == [2]
    assert ray.get(ray.put([Holder(3)]))[0].value == 3


def test_without_it_the_class_does_not_pickle_again() -> None:
    ray.util.register_serializer(Holder, serializer=lambda h: h.value, deserializer=Holder)
    ray.util.deregister_serializer(Holder)
    ray.util.deregister_serializer(Holder)
    with pytest.raises(TypeError, match="lock"):
        ray.put(Holder(1))


@pytest.mark.usefixtures("registered")
def test_references_inside_a_registered_class_are_kept() -> None:
    outer = ray.put(Holder(ray.put("inner")))
    assert ray.get(ray.get(outer).value) == "inner"


def test_a_module_that_is_sent_along(script: Callable[..., Script], tmp_path: Any) -> None:
    """Its functions and classes arrive where it can not be imported, in every place."""
    (tmp_path / "only_here.py").write_text("def f(x):\n    return x + 1\nclass K:\n    value = 3\n")
    program = script(
        f"""
        import cloudpickle
        sys.path.append({str(tmp_path)!r})
        import only_here
        sys.path.remove({str(tmp_path)!r})
        cloudpickle.register_pickle_by_value(only_here)
        start()
        assert ray.get(ray.remote(only_here.f).remote(1)) == 2
        assert ray.get(ray.remote(lambda f: f(2)).remote(only_here.f)) == 3
        assert ray.get(ray.remote(lambda k: k[0].value).remote([only_here.K()])) == 3
        assert ray.get(ray.remote(lambda ref: ray.get(ref[0]).value).remote([ray.put(only_here.K())])) == 3
        say("works")
        """
    )
    program.until("works")
    assert program.finish()[::2] == (0, "")


def test_inspect_serializability_finds_the_member() -> None:
    lock = threading.Lock()

    def f() -> bool:
        return lock.locked()

    class Slotted:
        __slots__ = ("held", "other")

        def __init__(self) -> None:
            self.held = lock

        def method(self, amount: Any = lock) -> None: ...

    class Shared:
        member = lock

    for value, member in (
        (Holder(1), "lock"),
        ({"a": [1, lock]}, "[1]"),
        (f, "lock"),
        ({1, lock}, "one of them"),
        (Slotted(), "held"),
        (Shared, "member"),
        (functools.partial(print, lock), "[0]"),
        (Holder(1).read, "lock"),
        (lambda amount=lock: amount, "default 0"),
    ):
        out = io.StringIO()
        good, found = ray.util.inspect_serializability(value, name="the value", print_file=out)
        assert not good
        assert member in {name for name, _ in found}
        assert "the value" in out.getvalue()
        assert "lock" in out.getvalue()


def test_inspect_serializability_of_what_pickles() -> None:
    out = io.StringIO()
    assert ray.util.inspect_serializability([1, 2], name="numbers", print_file=out) == (True, set())
    assert "numbers" in out.getvalue()


def test_inspect_serializability_of_something_that_contains_itself() -> None:
    loop: dict[str, Any] = {"lock": threading.Lock()}
    loop["self"] = loop
    good, found = ray.util.inspect_serializability(loop, print_file=io.StringIO())
    assert not good
    assert "lock" in {name for name, _ in found}
