"""The cluster's key-value store, under the names Ray gives it. It is kept in the control's database.

Keys and values are bytes (text is encoded as UTF-8). Namespaces keep the keys of different libraries apart.

Example:
    >>> _internal_kv_put("step", "7")  # doctest: +SKIP
    False
    >>> _internal_kv_get("step")  # doctest: +SKIP
    b'7'
"""

from __future__ import annotations

from zray import api
from zray.base.wire import CONTROL, KvDelete, KvGet, KvKeys, KvPut


def _bytes(text: str | bytes | None) -> bytes:
    if text is None:
        return b""
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes):
        return text
    raise TypeError(f"keys, values and namespaces are bytes or strings, not {type(text).__name__}: {text!r}")


def _internal_kv_initialized() -> bool:
    """Whether there is a store to use."""
    return api.is_initialized()


def _internal_kv_put(
    key: str | bytes, value: str | bytes, overwrite: bool = True, *, namespace: str | bytes | None = None
) -> bool:
    """Store a value; returns whether the key existed. Without ``overwrite`` an existing value stays."""
    fields = (_bytes(namespace), _bytes(key), _bytes(value), overwrite)
    return bool(api.runtime().call(CONTROL, KvPut, *fields))


def _internal_kv_get(key: str | bytes, *, namespace: str | bytes | None = None) -> bytes | None:
    """The value of a key, or None."""
    value = api.runtime().call(CONTROL, KvGet, _bytes(namespace), _bytes(key))
    return None if value is None else bytes(value)


def _internal_kv_exists(key: str | bytes, *, namespace: str | bytes | None = None) -> bool:
    """Whether a key has a value."""
    return _internal_kv_get(key, namespace=namespace) is not None


def _internal_kv_del(key: str | bytes, *, namespace: str | bytes | None = None) -> int:
    """Remove a key; returns how many were removed."""
    return int(api.runtime().call(CONTROL, KvDelete, _bytes(namespace), _bytes(key)))


def _internal_kv_list(prefix: str | bytes, *, namespace: str | bytes | None = None) -> list[bytes]:
    """The keys that start with ``prefix``."""
    return list(api.runtime().call(CONTROL, KvKeys, _bytes(namespace), _bytes(prefix)))
