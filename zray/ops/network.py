"""Addresses: which one of this machine's others can reach, and how they are written."""

from __future__ import annotations

import socket
from typing import Any


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
        OSError: there is no way to it, or nobody knows that name.
    """
    family, kind, protocol, place = _found(host, port)
    with socket.socket(family, kind, protocol) as probe:
        try:
            probe.connect(place)
        except OSError as error:
            raise OSError(error.errno, f"there is no way from this machine to {joined(host, port)}: {error.strerror}") from None
        return str(probe.getsockname()[0])


def check_own(host: str) -> None:
    """Whether this machine can listen at an address, or under a name.

    Raises:
        OSError: it can not; the text says why.
    """
    family, _, _, place = _found(host, 0)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(place)
        except OSError as error:
            raise OSError(error.errno, f"{host} is no address of this machine: {error.strerror}") from None


def _found(host: str, port: int) -> tuple[int, int, int, Any]:
    """Where a host is: names stand for addresses of IPv4, as for all sockets here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)[0]
    except socket.gaierror as error:
        raise OSError(error.errno, f"the host {host!r} is not known: {error.strerror}") from None
    return family, kind, protocol, place


def own_address() -> str:
    """The address of this machine on its way out, or that of the loopback if there is no way out."""
    for elsewhere in ("192.0.2.1", "2001:db8::1"):  # of documentations: only the route is looked at
        try:
            return address_towards(elsewhere, 9)
        except OSError:
            continue
    return "127.0.0.1"
