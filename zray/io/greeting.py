"""Greeting: the first frame of a connection, in which who dialled says who it is."""

from __future__ import annotations

import json
import sys

from zray.base.wire import HELLO, PROTOCOL_VERSION, Hello, well_formed

_HELLO_BYTES_MAX = 4096
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def encode_hello(hello: Hello) -> bytes:
    """The first frame of a connection. It is no pickle: even reading one can take all memory, and nobody knows the sender yet."""
    return json.dumps([field.hex() if isinstance(field, bytes) else field for field in hello]).encode()


def decode_hello(frame: bytes) -> Hello | None:
    """The Hello of a first frame, or None if it is something else."""
    if len(frame) > _HELLO_BYTES_MAX:
        return None
    try:
        fields = json.loads(frame)
        version, python, cluster, sender, role, endpoint, pid, conversation, heard = fields
        sender, cluster = bytes.fromhex(sender), bytes.fromhex(cluster)
        message = (HELLO, version, python, cluster, sender, role, endpoint, pid, conversation, heard)
    except (ValueError, TypeError, RecursionError):
        return None
    return Hello(*message[1:]) if well_formed(message) else None


def unfit(hello: Hello, cluster: bytes, remote: bool) -> str:
    """Why a well-formed Hello is not admitted, or ""; ``remote``: it came over tcp."""
    if hello.version != PROTOCOL_VERSION:
        return f"protocol version {hello.version} does not fit {PROTOCOL_VERSION}: install the same zray everywhere"
    if hello.python != PYTHON:
        return f"Python {hello.python} does not fit Python {PYTHON} of the cluster: use the same minor version"
    if hello.cluster != cluster:
        return "this is another cluster: check the address"
    if not hello.sender or not 0 < hello.pid < 1 << 31 or (remote and hello.conversation < 1):
        return "the introduction makes no sense"
    return ""
