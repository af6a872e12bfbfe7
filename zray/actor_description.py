"""Description: what the handle of an actor knows of its class, found by looking at the class."""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

from zray import options
from zray.arguments import signature_of
from zray.base import serialization
from zray.core.tasks import TaskTemplate


class Method(NamedTuple):
    """What a handle knows of a method."""

    parameters: tuple[tuple[str, int, bool], ...]  # name, kind, whether it has a default
    options: dict[str, Any]
    generates: bool

    def signature(self) -> inspect.Signature:
        """Its parameters, as far as calls are checked; what they default to is not known."""
        kinds = tuple(inspect._ParameterKind)
        empty = inspect.Parameter.empty
        return inspect.Signature(
            [inspect.Parameter(name, kinds[kind], default=None if has else empty) for name, kind, has in self.parameters]
        )


class Description(NamedTuple):
    """What a handle knows of its actor's class and options; travels with the handle."""

    class_name: str
    methods: dict[str, Method]
    ordered: bool
    max_task_retries: int
    max_pending_calls: int


class BoundMethod(NamedTuple):
    """A method of a handle, ready to be called."""

    template: TaskTemplate
    low: int  # how few and how many positional arguments need no closer look
    high: float
    signature: inspect.Signature


@functools.lru_cache(maxsize=1024)
def described(blob: bytes) -> Description:
    """A description as it travelled; the same bytes give the same object."""
    class_name, methods, ordered, retries, pending = serialization.deserialize(blob)
    return Description(class_name, {name: Method(*m) for name, m in methods.items()}, ordered, retries, pending)


# Methods that every actor has, with Ray's names.
SPECIAL = {
    "__ray_ready__": Method((), {}, False),
    "__ray_terminate__": Method((), {}, False),
    "__ray_call__": Method((("args", 2, False), ("kwargs", 4, False)), {}, False),
}


def members_of(cls: type) -> dict[str, Any]:
    """The functions of a class and its bases, without those that every object has."""
    found = {}
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        if inspect.isroutine(function) and getattr(object, name, None) is not function and name != "__init__":
            found[name] = member
    return found


def is_async(member: Any) -> bool:
    function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def methods_of(cls: type) -> dict[str, Method]:
    """What handles must know of each method."""
    methods = {}
    for name, member in members_of(cls).items():
        static = isinstance(member, staticmethod)
        function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        signature = signature_of(function)
        parameters: tuple[tuple[str, int, bool], ...] = SPECIAL["__ray_call__"].parameters
        if signature is not None:
            listed = list(signature.parameters.values())
            if not static and listed and listed[0].kind in (listed[0].POSITIONAL_ONLY, listed[0].POSITIONAL_OR_KEYWORD):
                listed = listed[1:]
            parameters = tuple((p.name, int(p.kind), p.default is not p.empty) for p in listed)
        chosen = dict(getattr(function, "__zray_method__", {}))
        if chosen.get("retry_exceptions"):
            chosen["retry_exceptions"] = options.exceptions_payload(chosen["retry_exceptions"])
        generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        methods[name] = Method(parameters, chosen, generates)
    return methods


def constructor_of(cls: type) -> inspect.Signature | None:
    """The parameters of a class's constructor."""
    own = [base for base in cls.__mro__[:-1] if "__init__" in vars(base) or "__new__" in vars(base)]
    if not own:
        return inspect.Signature()
    return signature_of(cls)
