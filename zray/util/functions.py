"""Functions on their way to workers: which of them are worth keeping there, and what must run before them.

A function that is called again and again should be sent once. One that is made for a single call, as a lambda in a loop, should
not: whatever is kept for it, here and in every worker, would never be used again. Which is which shows at the second call.
"""

from __future__ import annotations

import inspect
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_KEPT_MAX = 128


class Regulars(Generic[T]):
    """What was made for functions that came at least twice; those that did not come for the longest time are forgotten.

    Args:
        make: makes it.
        forget: is told what is forgotten.
    """

    def __init__(self, make: Callable[[Any], T], forget: Callable[[T], object] | None = None) -> None:
        self._make = make
        self._forget = forget
        self._made: OrderedDict[int, tuple[Any, T]] = OrderedDict()  # by the id of the function, which is kept
        self._once: OrderedDict[int, weakref.ref[Any]] = OrderedDict()

    def get(self, function: Any) -> T | None:
        """What was made for a function; None if it comes for the first time, or is not of a kind that stays the same."""
        key = id(function)
        found = self._made.get(key)
        if found is not None:
            if len(self._made) > _KEPT_MAX // 2:
                self._made.move_to_end(key)
            return found[1]
        if type(function) is not types.FunctionType:
            return None  # a bound method or callable object has a state, which each call should see as it is then
        seen = self._once.pop(key, None)
        if seen is None or seen() is not function:
            self._once[key] = weakref.ref(function)
            if len(self._once) > _KEPT_MAX:
                self._once.popitem(last=False)
            return None
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            return None  # its calls fail, since what it returns can not be sent
        made = self._make(function)
        self._made[key] = (function, made)
        if len(self._made) > _KEPT_MAX:
            _, (_, old) = self._made.popitem(last=False)
            if self._forget is not None:
                self._forget(old)
        return made


def over_each(function: Callable[..., Any]) -> Callable[[Iterable[tuple[Any, ...]]], list[Any]]:
    """The function that calls another one with each tuple of arguments."""

    def each(calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        return [function(*args) for args in calls]

    return named_as(function, each)


def named_as(function: Callable[..., Any], wrapper: F) -> F:
    """Call a function by the name of another one, which is what people know."""
    wrapper.__qualname__ = getattr(function, "__qualname__", wrapper.__qualname__)
    return wrapper


class Initialized:
    """In a worker: what an initializer set, for functions that come later.

    A function of the user's script is sent by value, with global variables of its own: it would not see what the initializer
    set with ``global``. So it is sent together with the initializer, as their global variables are the same then, and gets the
    variables that the initializer changed when it ran.
    """

    def __init__(self, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
        variables = _variables(initializer)
        before = dict(variables)
        initializer(*initargs)
        self._variables = variables
        self._changed = {
            name: value for name, value in variables.items() if name not in before or before[name] is not value
        }

    def share_with(self, initializer: Callable[..., object]) -> None:
        """Give the variables to functions that came together with this copy of the initializer."""
        variables = _variables(initializer)
        if variables is not self._variables:
            variables.update(self._changed)


def _variables(function: Any) -> dict[str, Any]:
    variables = getattr(function, "__globals__", None)
    return variables if isinstance(variables, dict) else {}
