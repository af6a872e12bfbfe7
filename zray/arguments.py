"""Arguments: the check of a call where it is made, and how its arguments travel."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.base import serialization
from zray.object_ref import ObjectRef
from zray.runtime.executor import ARGUMENTS

if TYPE_CHECKING:
    from zray.runtime.core_worker import CoreWorker

Packed = tuple[Any, tuple[Any, ...], tuple[Any, ...]]  # payload, slots, nested references


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The parameters of a function; None for builtins that do not tell."""
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return None


def arity(signature: inspect.Signature | None) -> tuple[int, float]:
    """How few and how many positional arguments a call without keywords may have."""
    if signature is None:
        return 0, float("inf")
    low, high = 0, 0.0
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            high = float("inf")
        elif parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                return 1, 0.0  # always look closely
        elif parameter.kind is not parameter.VAR_KEYWORD:
            high += 1
            low += parameter.default is parameter.empty
    return low, high


def check_call(name: str, signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TypeError as a call of the function would."""
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}() {error}") from None


def pack(worker: CoreWorker, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
    """Arguments as ``(payload, slots, nested references)``; large ones are put into the store.

    Raises:
        TypeError: one of them can not be pickled.
        ValueError: together they are larger than ``args_bytes_max``.
    """
    slots: list[tuple[Any, ObjectRef[Any]]] = []
    large = False
    for where, value in [*enumerate(args), *kwargs.items()] if kwargs else enumerate(args):
        kind = type(value)
        if kind is ObjectRef:
            slots.append((where, value))
        elif kind is bytes or kind is bytearray:
            large = True
    if slots:
        args = tuple(None if type(value) is ObjectRef else value for value in args)
        kwargs = {key: None if type(value) is ObjectRef else value for key, value in kwargs.items()}
    if large:
        args = tuple(serialization.out_of_band(value) for value in args)
        kwargs = {key: serialization.out_of_band(value) for key, value in kwargs.items()}
    try:
        value = serialization.serialize((args, kwargs))
    except TypeError as error:
        raise _blame(error, name, args, kwargs) from error.__cause__
    nested = tuple(value.refs)
    if slots or nested:
        worker.check_ours([*(ref for _, ref in slots), *nested])
    if value.size_bytes > worker.config.inline_bytes_max:
        if value.size_bytes > worker.config.args_bytes_max:
            raise ValueError(
                f"the arguments of {name}() take {value.size_bytes} bytes, more than ZRAY_ARGS_BYTES_MAX "
                f"({worker.config.args_bytes_max}): pass a path, or split the data"
            )
        return None, ((ARGUMENTS, worker.put_serialized(value)), *slots), nested
    return value.inline(), tuple(slots), nested


def _blame(error: TypeError, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError:
    """The error of the one argument that does not pickle."""
    for which, value in [*enumerate(args, start=1), *kwargs.items()]:
        try:
            serialization.serialize(value)
        except TypeError as own:
            return TypeError(f"argument {which} of {name}(): {own}")
    return TypeError(f"the arguments of {name}(): {error}")
