"""The schema of messages: how they are registered, and how they are checked on arrival.

A message on the wire is a plain tuple ``(op, *fields)``. Each is declared once, as a NamedTuple under ``@message``; from
``SCHEMA`` derive the dispatch of incoming messages (``on_<snake_case_name>`` of the receiver's brain), the check of their
shape, ``docs/protocol.md``, and the test that each message has exactly one handler.
"""

import re
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar


class Schema(NamedTuple):
    """What is known of one message."""

    op: int
    name: str
    sender: str
    receiver: str
    handler: str
    cls: type
    checks: tuple[tuple[type, ...], ...]
    contents: tuple[Callable[[tuple[Any, ...]], bool], ...]
    hot: bool


SCHEMA: dict[int, Schema] = {}
OPS: dict[type, int] = {}
_T = TypeVar("_T", bound=type)


def _accepted(hint: Any) -> tuple[type, ...]:
    if hint is Any:
        return (object,)
    if hint is None or hint is type(None):
        return (type(None),)
    if isinstance(hint, types.UnionType):
        return tuple(t for part in typing.get_args(hint) for t in _accepted(part))
    if hint is float:
        return (float, int)
    return (typing.get_origin(hint) or hint,)


def _contents(position: int, hint: Any) -> list[Callable[[tuple[Any, ...]], bool]]:
    """Checks of what is inside a container field: ``dict[str, int]``, ``list[bytes]``, ``tuple[int, ...]``."""
    inner = [t for t in typing.get_args(hint) if t is not Ellipsis]
    if isinstance(hint, types.UnionType) or not inner or all(t is Any for t in inner):
        return []
    if typing.get_origin(hint) is dict:
        keys, values = _accepted(inner[0]), _accepted(inner[1])
        return [lambda msg: all(isinstance(k, keys) and isinstance(v, values) for k, v in msg[position].items())]
    items = _accepted(inner[0])
    return [lambda msg: all(isinstance(item, items) for item in msg[position])]


def message(
    op: int, sender: str, receiver: str, *, hot: bool = False, rows: int = 0
) -> Callable[[_T], _T]:
    """Register a NamedTuple as message ``op``; ``rows``: its last field is a list of tuples of that length."""

    def register(cls: _T) -> _T:
        if op in SCHEMA:
            raise ValueError(f"op {op} is {SCHEMA[op].name} already")
        handler = "on_" + re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        checks = tuple(_accepted(hint) for hint in cls.__annotations__.values())
        contents = [c for i, hint in enumerate(cls.__annotations__.values()) for c in _contents(i + 1, hint)]
        if rows:
            contents.append(lambda msg: all(type(row) is tuple and len(row) == rows for row in msg[-1]))
        SCHEMA[op] = Schema(op, cls.__name__, sender, receiver, handler, cls, checks, tuple(contents), hot)
        OPS[cls] = op
        return cls

    return register


def pack(msg: tuple[Any, ...]) -> tuple[Any, ...]:
    """The wire form of a message; a plain tuple is in it already."""
    if type(msg) is tuple:
        return msg
    return (OPS[type(msg)], *msg)


def well_formed(msg: Any) -> bool:
    """Whether a decoded message has a known op and fields of the right kinds."""
    if type(msg) is not tuple or not msg:
        return False
    schema = SCHEMA.get(msg[0]) if type(msg[0]) is int else None
    if schema is None or len(msg) != len(schema.checks) + 1:
        return False
    if not all(map(isinstance, msg[1:], schema.checks)):
        return False
    return all(check(msg) for check in schema.contents) if schema.contents else True
