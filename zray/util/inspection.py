"""inspect_serializability: which member of a value does not pickle."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from zray.base import serialization


def inspect_serializability(
    value: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[tuple[str, str]]]:
    """Find out what of a value keeps it from being sent to a worker, and print it.

    Args:
        value: any object or function.
        name: what to call it in the report.
        depth: how many levels of members to look into.
        print_file: where the report goes; standard output by default.

    Returns:
        Whether the value can be sent, and the innermost members found that can not, as ``(name, type)``.

    Example:
        >>> import threading
        >>> inspect_serializability({"lock": threading.Lock()}, name="state")[0]  # doctest: +ELLIPSIS
        state (dict) can not be serialized: ...
        False
    """
    out = print_file or sys.stdout
    name = name or str(getattr(value, "__qualname__", type(value).__name__))
    problem = _problem(value)
    if problem is None:
        print(f"{name} can be serialized", file=out)
        return True, set()
    found: dict[tuple[str, str], None] = {}
    _descend(value, name, depth, 0, out, found)
    return False, set(found)


def _problem(value: Any) -> str | None:
    try:
        serialization.serialize(value)
    except TypeError as error:
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {cause}"
    return None


def _descend(value: Any, name: str, depth: int, level: int, out: TextIO, found: dict[tuple[str, str], None]) -> bool:
    """Report ``value`` if it does not pickle, innermost members last; whether it was reported."""
    problem = _problem(value)
    if problem is None:
        return False
    print(f"{'    ' * level}{name} ({type(value).__name__}) can not be serialized: {problem}", file=out)
    deeper = False
    if depth > 0:
        for member_name, member in _members(value):
            deeper = _descend(member, member_name, depth - 1, level + 1, out, found) or deeper
    if not deeper:
        found[name, type(value).__name__] = None
    return True


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if inspect.isfunction(value):
        closure = inspect.getclosurevars(value)
        yield from closure.nonlocals.items()
        yield from closure.globals.items()
        yield from ((f"default {index}", member) for index, member in enumerate(value.__defaults__ or ()))
    elif inspect.ismethod(value):
        yield "__self__", value.__self__
        yield "__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield "func", value.func
        yield "args", value.args
        yield "keywords", value.keywords
    elif isinstance(value, dict):
        yield from ((str(key), member) for key, member in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", member) for index, member in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from (("one of them", member) for member in value)
    elif isinstance(value, type):
        yield from ((name, member) for name, member in vars(value).items() if not name.startswith("__"))
    else:
        yield from getattr(value, "__dict__", {}).items()
        slots = (name for cls in type(value).__mro__ for name in _slots(cls))
        yield from ((name, getattr(value, name)) for name in slots if hasattr(value, name))


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
