"""Hosts of their own on one machine: network namespaces, each with a cable to a switch, which can be pulled.

A namespace is made by a thread, which alone moves into it, and lives as long as a descriptor of it is open: nothing has to be
tidied up. The kernel is spoken to directly (rtnetlink), so that no program has to be installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

_CLONE_NEWNET = 0x40000000
_NEWLINK, _NEWADDR = 16, 20
_REQUEST, _ACK, _CREATE, _EXCL = 1, 4, 0x400, 0x200
_ERROR = 2
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 10, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_UP = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The kernel does not let this process make namespaces or links; the text says what."""


class Namespace:
    """A network of its own, with nothing but a loopback."""

    def __init__(self) -> None:
        self.fd = _in_thread(_unshare)
        self.run(lambda: _Netlink().up("lo"))

    def run(self, function: Callable[[], Any]) -> Any:
        """Call a function in a thread that lives there."""

        def inside() -> Any:
            self.enter()
            return function()

        return _in_thread(inside)

    def enter(self) -> None:
        """Move the calling thread there; threads and processes that it starts from now on live there too."""
        _check(_libc.setns(self.fd, _CLONE_NEWNET), "setns")

    def close(self) -> None:
        os.close(self.fd)


class Network:
    """A switch, and hosts with an address each.

    Raises:
        Refused: the kernel does not allow it.
    """

    def __init__(self, count: int) -> None:
        self.addresses = [f"10.77.0.{number + 1}" for number in range(count)]
        self.hosts: list[Namespace] = []
        try:
            self.hosts += [Namespace() for _ in range(count + 1)]
            self._switch = self.hosts.pop()
            self._switch.run(self._wire)
            for address, host in zip(self.addresses, self.hosts, strict=True):
                host.run(lambda address=address: _Netlink().address("eth0", address))  # type: ignore[misc]
        except BaseException:
            self.close()
            raise

    def _wire(self) -> None:
        netlink = _Netlink()
        netlink.create("switch", "bridge")
        netlink.up("switch")
        for number, host in enumerate(self.hosts):
            netlink.create(f"port{number}", "veth", peer=("eth0", host.fd))
            netlink.up(f"port{number}", master="switch")

    def cut(self, number: int) -> None:
        """Pull the cable of a host."""
        self._switch.run(lambda: _Netlink().up(f"port{number}", False))

    def heal(self, number: int) -> None:
        """Plug it in again."""
        self._switch.run(lambda: _Netlink().up(f"port{number}"))

    @contextlib.contextmanager
    def entered(self, number: int) -> Iterator[None]:
        """Have the calling thread live on a host."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self.hosts[number].enter()
            yield
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET), "setns")
            os.close(home)

    def close(self) -> None:
        for each in self.hosts:
            each.close()
        with contextlib.suppress(AttributeError):
            self._switch.close()


class _Netlink:
    """Questions to the kernel about the links of the calling thread's namespace."""

    def create(self, name: str, kind: str, peer: tuple[str, int] | None = None) -> None:
        data = b""
        if peer is not None:
            other = _link() + _text(_IFLA_IFNAME, peer[0]) + _number(_IFLA_NET_NS_FD, peer[1])
            data = _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, other))
        info = _attribute(_IFLA_LINKINFO, _text(_INFO_KIND, kind) + data)
        self._ask(_NEWLINK, _CREATE | _EXCL, _link() + _text(_IFLA_IFNAME, name) + info, f"a {kind}")

    def up(self, name: str, up: bool = True, master: str = "") -> None:
        more = _number(_IFLA_MASTER, socket.if_nametoindex(master)) if master else b""
        self._ask(_NEWLINK, 0, _link(socket.if_nametoindex(name), _UP if up else 0, _UP) + more, f"{name} up or down")

    def address(self, name: str, address: str) -> None:
        packed = socket.inet_aton(address)
        message = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, socket.if_nametoindex(name))
        message += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        self._ask(_NEWADDR, _CREATE | _EXCL, message, f"the address {address}")
        self.up(name)

    def _ask(self, kind: int, flags: int, message: bytes, what: str) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
            kernel.send(struct.pack("=IHHII", 16 + len(message), kind, _REQUEST | _ACK | flags, 1, 0) + message)
            answer = kernel.recv(65536)
        answered, code = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
        if answered != _ERROR or code:
            raise Refused(f"the kernel does not make {what}: {os.strerror(-code)}")


def _attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, flags, change)


def _unshare() -> int:
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _check(result: int, what: str) -> None:
    if result:
        raise Refused(f"the kernel does not allow {what} of a network namespace: {os.strerror(ctypes.get_errno())}")


def _in_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a thread of its own, and return or raise what it does."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
