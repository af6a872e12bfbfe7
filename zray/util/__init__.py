"""Utilities, written against the public API as any user could write them."""

from __future__ import annotations

from zray.base.serialization import deregister_serializer, register_serializer
from zray.util.inspection import inspect_serializability

__all__ = ["deregister_serializer", "inspect_serializability", "register_serializer"]
