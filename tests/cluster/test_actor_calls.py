"""Calls of actors: kinds of methods, results, order, arguments, and handles that travel."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
from typing import Any, Generic, TypeVar

import cloudpickle
import numpy as np
import pytest

import zray as ray
from zray.exceptions import ActorDiedError, RayTaskError

from .actors import Box, Counter, PlainCounter
from .driving import PATIENCE_S

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


# -- methods ------------------------------------------------------------------------------------------------------------


def test_inherited_and_overridden_methods() -> None:
    class Base:
        def who(self) -> str:
            return "base"

        def greet(self) -> str:
            return f"I am {self.who()}"  # type: ignore[no-any-return]

        @ray.method(num_returns=2)
        def pair(self) -> tuple[int, int]:
            return 1, 2

    class Mixin:
        def mixed(self) -> str:
            return "mixed"

    @ray.remote
    class Child(Mixin, Base):
        def who(self) -> str:
            return "child"

        def greet(self) -> str:
            return super().greet() + "!"

    actor: Any = Child.remote()
    assert ray.get([actor.greet.remote(), actor.mixed.remote(), *actor.pair.remote()]) == ["I am child!", "mixed", 1, 2]
    assert ray.get(ray.remote(Base).remote().greet.remote()) == "I am base"


def test_an_inherited_constructor_is_checked_too() -> None:
    class Child(PlainCounter):
        pass

    with pytest.raises(TypeError, match=r"Child\(\)"):
        ray.remote(Child).remote(1, 2, 3)
    assert ray.get(ray.remote(Child).remote(5).get.remote()) == 5

    class Bare:
        def f(self) -> int:
            return 1

    with pytest.raises(TypeError, match=r"Bare\(\)"):
        ray.remote(Bare).remote(1)
    assert ray.get(ray.remote(Bare).remote().f.remote()) == 1


def test_methods_of_all_kinds() -> None:
    def noted(function: Any) -> Any:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return "noted", function(*args, **kwargs)

        return wrapped

    @ray.remote
    class Kinds:
        def __init__(self) -> None:
            self.items = [1, 2, 3]

        @staticmethod
        def static(x: int) -> int:
            return x

        @classmethod
        def of_class(cls, x: int) -> tuple[str, int]:
            return cls.__name__, x

        @noted
        def decorated(self, x: int = 3) -> int:
            return x

        partial = functools.partialmethod(static.__func__, 7)  # type: ignore[attr-defined]
        short = lambda self, x: -x  # noqa: E731

        def __call__(self, x: int) -> int:
            return x + 1

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, index: Any) -> Any:
            return self.items[index]

        def __contains__(self, x: int) -> bool:
            return x in self.items

        def _private(self) -> str:
            return "private"

        def remote(self) -> str:
            return "remote"

        def options(self) -> str:
            return "options"

    actor: Any = Kinds.remote()
    with pytest.raises(TypeError, match=r"Kinds\.decorated\(\)"):
        actor.decorated.remote(1, 2)
    refs = [
        (actor.static.remote(1), 1),
        (actor.of_class.remote(2), ("Kinds", 2)),
        (actor.decorated.remote(), ("noted", 3)),
        (actor.short.remote(4), -4),
        (actor.__call__.remote(5), 6),
        (actor.__len__.remote(), 3),
        (actor.__getitem__.remote(slice(1, None)), [2, 3]),
        (actor.__contains__.remote(2), True),
        (actor._private.remote(), "private"),
        (actor.remote.remote(), "remote"),
        (actor.options.remote(), "options"),
    ]
    assert ray.get([ref for ref, _ in refs]) == [value for _, value in refs]


def test_methods_that_every_actor_has() -> None:
    counter: Any = Counter.remote(3)
    assert ray.get(counter.__ray_ready__.remote()) is True
    assert ray.get(counter.__ray_call__.remote(lambda self, a, *, b: (self.value, a, b), 1, b=2)) == (3, 1, 2)
    counter.__ray_terminate__.remote()
    with pytest.raises(ActorDiedError):
        ray.get(counter.get.remote(), timeout=PATIENCE_S)


def test_num_returns_of_a_method() -> None:
    @ray.remote
    class Returns:
        @ray.method(num_returns=3)
        def three(self, *values: Any) -> Any:
            return values

        @ray.method(num_returns=0)
        def none(self) -> None:
            self.called = True

        def was_called(self) -> bool:
            return self.called

    actor: Any = Returns.remote()
    assert ray.get(actor.three.remote(1, 2, 3)) == [1, 2, 3]
    assert ray.get(actor.three.options(num_returns=1).remote(1, 2)) == (1, 2)
    one, two = actor.three.options(num_returns=2).remote(1, bytes(300_000))
    assert (ray.get(one), ray.get(two)) == (1, bytes(300_000))
    assert actor.none.remote() is None
    assert ray.get(actor.was_called.remote())
    assert actor.was_called.options(num_returns=0).remote() is None
    for ref in actor.three.remote(1, 2):
        with pytest.raises(ValueError, match=r"Returns\.three\(\) has num_returns=3 but returned 2 values"):
            ray.get(ref)
    for ref in actor.was_called.options(num_returns=2).remote():
        with pytest.raises(ValueError, match="returned a bool"):
            ray.get(ref)


def test_the_name_of_a_call_is_in_its_errors() -> None:
    box = Box.remote()
    for method, name in ((box.run, "Box.run"), (box.run.options(name="a name"), "a name")):
        with pytest.raises(RayTaskError, match=rf"{name}\(\) \(pid=") as caught:
            ray.get(method.remote(lambda: 1 / 0))
        assert isinstance(caught.value, ZeroDivisionError)
        assert "in <lambda>" in str(caught.value)
        assert "zray/runtime" not in str(caught.value)


Item = TypeVar("Item")


def test_classes_with_types() -> None:
    class Shelf(Generic[Item]):
        def __init__(self) -> None:
            self.items: list[Item] = []

        def put(self, item: Item) -> int:
            self.items.append(item)
            return len(self.items)

    actor: ray.actor.ActorHandle[Shelf[int]] = ray.remote(Shelf).remote()
    ref: ray.ObjectRef[int] = actor.put.remote(5)
    assert ray.get(ref) == 1
    assert isinstance(actor, ray.actor.ActorHandle)
    assert isinstance(Counter, ray.actor.ActorClass)


# -- arguments and results ----------------------------------------------------------------------------------------------


def test_arrays_are_read_where_they_lie() -> None:
    @ray.remote
    class Arrays:
        def keep(self, array: Any) -> tuple[bool, bool]:
            self.array = array
            return array.flags.writeable, array.flags.owndata

        def total(self) -> int:
            return int(self.array.sum())

        def zeros(self) -> Any:
            return np.zeros(300_000)

    actor = Arrays.remote()
    array = np.arange(300_000)
    ref = ray.put(array)
    assert ray.get(actor.keep.remote(ref)) == (False, False)
    assert ray.get(actor.keep.remote(array)) == (False, False)
    del ref
    others = [ray.put(np.ones(300_000)) for _ in range(5)]  # what was freed is used again
    assert ray.get(actor.total.remote()) == array.sum()
    result = ray.get(actor.zeros.remote())
    assert not result.flags.writeable and not result.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        result[0] = 1
    assert len(others) == 5


def test_references_inside_arguments_and_results_stay_references() -> None:
    box = Box.remote()
    ref = ray.put("inner")
    ((given,), _) = ray.get(box.same.remote([ref]))
    assert given == [ref]
    ray.get(box.set.remote({"ref": ray.put("kept")}))
    assert ray.get(ray.get(box.get.remote())["ref"]) == "kept"
    made = ray.get(box.run.remote(lambda: [ray.put("made inside"), Counter.remote(8).get.remote()]))
    assert ray.get(made) == ["made inside", 8]


def test_a_call_takes_the_results_of_others_in_any_place() -> None:
    boxes = [Box.remote() for _ in range(3)]
    value: Any = ray.put(0)
    for box in boxes * 5:
        value = box.run.remote(lambda x: x + 1, value)
    assert ray.get(value, timeout=PATIENCE_S) == 15
    args, kwargs = ray.get(boxes[0].same.remote(value, 2, third=value))
    assert (args, kwargs) == ((15, 2), {"third": 15})


def test_many_small_calls_come_in_their_order() -> None:
    @ray.remote
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, number: int, filler: bytes = b"") -> int:
            self.seen.append(number)
            return number

        def all(self) -> list[int]:
            return self.seen

    log = Log.remote()
    slow = ray.remote(lambda x: x)
    big = bytes(200_000)
    refs = [log.note.remote(slow.remote(i) if i % 50 == 0 else i, big if i % 70 == 0 else b"") for i in range(1000)]
    assert ray.get(refs, timeout=PATIENCE_S) == list(range(1000))
    assert ray.get(log.all.remote()) == list(range(1000))


# -- handles ------------------------------------------------------------------------------------------------------------


def test_handles_can_be_compared_copied_and_sent() -> None:
    counter, other = Counter.remote(), Counter.remote()
    same, again = ray.get(Box.remote().same.remote(counter, [counter]))[0]
    assert same == counter and again == [counter] and counter not in (other, 5)
    assert {counter: 1}[same] == 1 and len({counter, other, same}) == 2
    assert copy.copy(counter) is counter and copy.deepcopy([counter])[0] is counter
    assert pickle.loads(pickle.dumps(counter)) == counter
    assert repr(counter) == f"Actor(PlainCounter, {counter._actor_id.hex()})"
    assert "add" in dir(counter)
    ray.get([same.add.remote(), counter.add.remote()])
    assert ray.get(ray.get(ray.put(counter)).get.remote()) == 2
    ray.kill(counter)  # it was pickled by hand, and who reads that is unknown: it would live as long as this program


def test_a_handle_in_a_closure() -> None:
    counter = Counter.remote()

    @ray.remote
    def work() -> int:
        return int(ray.get(counter.add.remote()))

    assert sorted(ray.get([work.remote() for _ in range(5)])) == [1, 2, 3, 4, 5]
    ray.kill(counter)


def test_a_method_is_as_good_as_a_handle() -> None:
    method: Any = Box.remote("kept").same
    assert [ray.get(method.remote(i)) for i in range(3)] == [((i,), {}) for i in range(3)]
    refs = [ray.remote(lambda method, x: ray.get(method.remote(x))).remote(m, 5) for m in (method, method.options(name="x"))]
    one, two = ray.get(ray.remote(lambda method: method.remote(5)).remote(method.options(num_returns=2)))
    del method
    assert ray.get(refs) == [((5,), {})] * 2
    assert (ray.get(one), ray.get(two)) == ((5,), {})
