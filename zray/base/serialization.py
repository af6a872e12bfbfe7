"""Values to bytes and back.

A serialized value is a pickle (protocol 5) and the buffers it keeps out of band: arrays are never copied into the pickle.
The C pickler does nearly all the work. It pickles functions and classes by reference, which is wrong for those of the
user's script, so a pickle that mentions ``__main__`` or a module registered with cloudpickle, and anything the C pickler refuses
(lambdas, local classes), is made again by cloudpickle, by value.

References found inside a value are *captured*: ``ObjectRef.__reduce__`` hands itself to ``capture``, and whoever serialized
the value learns which objects it contains. This module does not know ``ObjectRef`` itself.

In the object store a value lies as: a count, the lengths of the pickle and of each buffer, then the parts, each aligned to
64 bytes, so that arrays can be used where they lie.
"""

from __future__ import annotations

import copyreg
import hashlib
import pickle
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from pickle import PickleBuffer
from typing import Any, NamedTuple

Payload = bytes | tuple[bytes, ...]  # the inline form: a pickle, or a pickle and its buffers

_ALIGNMENT = 64
_BOXED_BYTES = 1 << 16
_MAIN = b"__main__"
_PLAIN = frozenset({int, float, bool, type(None), complex})


class _Captured(threading.local):
    """The references met while this thread pickles; None while it pickles nothing of ours."""

    refs: list[Any] | None = None


_captured = _Captured()


def capture(ref: Any) -> bool:
    """Note a reference that is being pickled; False when zray is not the one who pickles (out of band)."""
    refs = _captured.refs
    if refs is None:
        return False
    refs.append(ref)
    return True


class Serialized(NamedTuple):
    """A value ready to travel: the pickle, its out-of-band buffers, and the references found inside."""

    pickle: bytes
    buffers: list[PickleBuffer]
    refs: list[Any]

    @property
    def size_bytes(self) -> int:
        return len(self.pickle) + sum(b.raw().nbytes for b in self.buffers)

    def inline(self) -> Payload:
        """The form that rides in messages and in an owner's memory."""
        if not self.buffers:
            return self.pickle
        return (self.pickle, *(b.raw().tobytes() for b in self.buffers))


class _BytesBox:
    """Carries large ``bytes`` out of band, so that they are copied once and not twice."""

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.value), (PickleBuffer(self.value),)


def out_of_band(value: Any) -> Any:
    """Large ``bytes`` in a form that is not copied into the pickle; anything else as it is."""
    return _BytesBox(value) if type(value) in (bytes, bytearray) and len(value) > _BOXED_BYTES else value


def serialize(value: Any) -> Serialized:
    """Pickle a value.

    Returns:
        The pickle, its buffers and the references inside.

    Raises:
        TypeError: the value cannot be pickled; the text says which and why.
    """
    if type(value) in _PLAIN:
        return Serialized(pickle.dumps(value, 5), [], [])
    value = out_of_band(value)
    buffers: list[PickleBuffer] = []
    outer = _captured.refs
    refs: list[Any] = []
    _captured.refs = refs
    try:
        try:
            data = pickle.dumps(value, 5, buffer_callback=buffers.append)
            if _MAIN not in data and not _sent_along(data):
                return Serialized(data, buffers, refs)
        except (pickle.PicklingError, AttributeError, TypeError):
            pass  # not for the C pickler: cloudpickle decides
        buffers.clear()
        refs.clear()
        import cloudpickle  # a tenth of the start-up time; many programs' values never need it

        data = cloudpickle.dumps(value, 5, buffer_callback=buffers.append)
        return Serialized(data, buffers, refs)
    except RecursionError:
        raise TypeError(
            f"cannot serialize a {type(value).__name__}: it is nested too deeply for pickle; flatten it"
        ) from None
    except Exception as error:
        raise TypeError(
            f"cannot serialize a {type(value).__name__}: {type(error).__name__}: {error}. "
            "zray.util.inspect_serializability(value) shows which member it is; hold such things (locks, sockets, "
            "files, generators) inside the task or an actor instead of passing them"
        ) from error
    finally:
        _captured.refs = outer


def _sent_along(data: bytes) -> bool:
    """Whether a pickle mentions a module that the user has registered to be sent by value."""
    cloudpickle: Any = sys.modules.get("cloudpickle")
    names = cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else ()
    return bool(names) and any(name.encode() in data for name in names)  # mostly there are none


def deserialize(payload: Payload) -> Any:
    """The value of an inline payload."""
    if isinstance(payload, bytes):
        return pickle.loads(payload)
    return pickle.loads(payload[0], buffers=payload[1:])


def deserialize_parts(data: Any, buffers: Iterable[Any]) -> Any:
    """The value of a pickle and its buffers, as read from the object store."""
    return pickle.loads(data, buffers=buffers)


def _aligned(offset: int) -> int:
    return (offset + _ALIGNMENT - 1) & -_ALIGNMENT


def stored_size(value: Serialized) -> int:
    """Bytes that ``value`` takes in the object store."""
    end = _aligned(8 * (2 + len(value.buffers))) + len(value.pickle)
    for buffer in value.buffers:
        end = _aligned(end) + buffer.raw().nbytes
    return end


def stored_parts(value: Serialized) -> list[tuple[int, Any]]:
    """Where each part of ``value`` lies in its place in the store: ``(offset, bytes-like)``."""
    raws: list[Any] = [value.pickle, *(b.raw() for b in value.buffers)]
    lengths = [len(value.pickle), *(b.nbytes for b in raws[1:])]
    parts: list[tuple[int, Any]] = [(0, struct.pack(f"<Q{len(raws)}Q", len(raws), *lengths))]
    end = len(parts[0][1])
    for raw, length in zip(raws, lengths, strict=True):
        start = _aligned(end)
        parts.append((start, raw))
        end = start + length
    return parts


def parse_stored(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    """The pickle and the buffers of a value as it lies in the store, without copying."""
    (count,) = struct.unpack_from("<Q", view)
    lengths = struct.unpack_from(f"<{count}Q", view, 8)
    parts: list[memoryview] = []
    end = 8 * (1 + count)
    for length in lengths:
        start = _aligned(end)
        end = start + length
        parts.append(view[start:end])
    return parts[0], parts[1:]


def stored_again(view: memoryview) -> Serialized:
    """A value as it lay in a store, ready to be laid down in another."""
    data, buffers = parse_stored(view)
    return Serialized(bytes(data), [PickleBuffer(buffer) for buffer in buffers], [])


def export_function(function: Callable[..., Any], job_id: bytes) -> tuple[bytes, bytes]:
    """A function as ``(id, body)``: the id is a hash of job and body, so that equal functions of a job are exported once.

    Each job has its own, since they are forgotten with it.

    Raises:
        TypeError: something the function closes over cannot be pickled.
    """
    try:
        import cloudpickle  # see serialize

        body = cloudpickle.dumps(function, 5)
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"cannot export {name}() to the workers: {type(error).__name__}: {error}. It, or a global or closure "
            "variable it uses, cannot be pickled: create such things inside the function"
        ) from error
    return hashlib.blake2b(body, digest_size=16, key=job_id).digest(), body


def import_function(body: bytes) -> Any:
    """The function of an exported body; raises whatever importing it raises."""
    return pickle.loads(body)


def _rebuild(deserializer: Callable[[Any], Any], data: Any) -> Any:
    return deserializer(data)


def register_serializer(
    cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """Use ``serializer`` and ``deserializer`` for instances of exactly ``cls``, in this process.

    Args:
        cls: the class.
        serializer: makes of an instance something that pickles.
        deserializer: makes an instance of that.

    Raises:
        TypeError: an argument is of the wrong kind.

    Example:
        >>> register_serializer(Connection, serializer=lambda c: c.address, deserializer=Connection)  # doctest: +SKIP
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer() takes a class, not {cls!r}")
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"the {name} of {cls.__name__} must be a function, not {function!r}")

    def reduce(value: Any) -> tuple[Any, ...]:
        return _rebuild, (deserializer, serializer(value))

    copyreg.pickle(cls, reduce)


def deregister_serializer(cls: type) -> None:
    """Forget what ``register_serializer`` set for a class; nothing happens if it was not set.

    Args:
        cls: the class.

    Example:
        >>> deregister_serializer(Connection)  # doctest: +SKIP
    """
    copyreg.dispatch_table.pop(cls, None)
