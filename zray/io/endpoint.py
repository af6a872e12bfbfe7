"""Endpoint: the text that says where a process can be reached.

It names one place or two, separated by a space: ``ipc:///tmp/zray-0/s-abc/w1 tcp://10.0.0.5:40123``. The first is for
processes of the same session, which lies on the same machine; the second for everybody else.
"""

from __future__ import annotations

import os
import re

_IPC = "ipc://"
_TCP = re.compile(r"tcp://(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+):([1-9]\d{0,4})", re.ASCII)
_EVERY_INTERFACE = ("", "*", "0.0.0.0", "::")


def places(endpoint: str) -> tuple[str, str]:
    """The ipc place and the tcp place of an endpoint, each "" if it has none that makes sense."""
    if endpoint.startswith(_IPC):
        ipc, space, tcp = endpoint.rpartition(" tcp://")
        if not space:
            ipc, tcp = endpoint, ""
        else:
            tcp = "tcp://" + tcp
    else:
        ipc, tcp = "", endpoint
    match = _TCP.fullmatch(tcp)
    return ipc if len(ipc) > len(_IPC) else "", tcp if match and int(match[2]) < 1 << 16 else ""


def choose(endpoint: str, directory: str) -> str:
    """Where a process whose own ipc socket lies in ``directory`` connects to, or "" if the endpoint makes no sense."""
    ipc, tcp = places(endpoint)
    return ipc if ipc and (not tcp or directory_of(ipc) == directory) else tcp


def directory_of(ipc: str) -> str:
    """The directory of an ipc place, "-" if there is none: no other is equal to that."""
    return os.path.dirname(ipc.removeprefix(_IPC)) if ipc else "-"


def tcp_place(host: str, port: int | str) -> str:
    """The tcp place of a host, which is a name or an address; one of IPv6 gets its brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"tcp://{host}:{port}"


def advertised(bound_host: str, told_host: str) -> str:
    """What others are told of the host.

    Raises:
        ValueError: every interface is listened on, and none was chosen to be told.
    """
    host = told_host or bound_host
    if host.strip("[]") in _EVERY_INTERFACE:
        raise ValueError(f"other machines can not connect to {host!r}: say under which address they reach this one")
    return host
