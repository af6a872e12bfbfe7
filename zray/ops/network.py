"""Addresses: which one of this machine's others can reach, and how they are written."""

from __future__ import annotations

import socket


def split(address: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[HOST]:PORT`` in its parts.

    Raises:
        ValueError: it is something else.

    Example:
        >>> split("[::1]:6390")
        ('::1', 6390)
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"an address is written HOST:PORT, not {address!r}")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError(f"an address of IPv6 is written [HOST]:PORT, not {address!r}")
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    """An address as it is written."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_towards(host: str, port: int) -> str:
    """The address of this machine from which that host is reached. Nothing is sent.

    Raises:
        OSError: there is no way to it.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def own_address() -> str:
    """The address of this machine on its way out, or that of the loopback if there is no way out."""
    try:
        return address_towards("192.0.2.1", 9)  # a documentation address: only the route is looked at
    except OSError:
        return "127.0.0.1"
