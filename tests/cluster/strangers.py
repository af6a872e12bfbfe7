"""Strangers: who knocks at the tcp sockets of a cluster without belonging to it, and what that costs its processes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from zray.io.cluster_key import ClusterKey

HOST = "127.0.0.1"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)  # of ZMTP 3.1, from a client
PAUSE_S = 0.005
Port = int


def ports_of(pid: int) -> list[Port]:
    """The ports at which a node listens."""
    return [port for each in _with_children(pid) for _, port in _listening(each)]


def addresses_of(pid: int) -> list[str]:
    """The addresses of IPv4 at which a node listens."""
    found = [address for each in _with_children(pid) for address, _ in _listening(each)]
    return [socket.inet_ntoa(int(address, 16).to_bytes(4, "little")) for address in found if len(address) == 8]


def _with_children(pid: int) -> list[int]:
    """A head has its control and its agent in processes of their own."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [pid, *map(int, file.read().split())]


def _listening(pid: int) -> list[tuple[str, Port]]:
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            inodes.add(target.removeprefix("socket:[").rstrip("]"))
    found = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
            for row in list(file)[1:]:
                fields = row.split()
                address, port = fields[1].split(":")
                if fields[3] == "0A" and fields[9] in inodes:
                    found.append((address, int(port, 16)))
    return found


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_mb(pid: int) -> float:
    """The memory a process has touched."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith("VmRSS"))


# -- one stranger, once ---------------------------------------------------------------------------------------------


def knock(port: Port, words: bytes) -> socket.socket:
    """A connection on which something was said; it may wait for long if nobody opens."""
    connection = socket.socket()
    connection.settimeout(5.0)
    try:
        connection.connect((HOST, port))
        if words:
            connection.sendall(words)
    except OSError:
        connection.close()  # it was cut off in the middle, or nobody opened
    return connection


def garbage(port: Port) -> None:
    """Noise, and hang up."""
    knock(port, os.urandom(4096)).close()


def huge_frame(port: Port, length: int = 1 << 40) -> int:
    """The beginning of what would be a proof, in a frame of that length; returns how many bytes of it were taken."""
    taken = 0
    with knock(port, GREETING + b"\x06" + length.to_bytes(8, "big")) as connection:
        block = bytes(1 << 16)
        with contextlib.suppress(OSError):
            while taken < min(length, 256 << 20):
                taken += connection.send(block)
    return taken


# -- strangers that go on until they are told to stop --------------------------------------------------------------------


def _until_stopped(once: Callable[[Port], Any]) -> Callable[[list[Port], threading.Event], None]:
    def go_on(ports: list[Port], stop: threading.Event) -> None:
        while not stop.wait(PAUSE_S):
            for port in ports:
                once(port)

    return go_on


def _held(words: bytes, count: int = 1000) -> Callable[[list[Port], threading.Event], None]:
    """Connections that are held open, and made anew when they are cut."""

    def hold(ports: list[Port], stop: threading.Event) -> None:
        connections = [(port, knock_quickly(port, words)) for port in ports for _ in range(count)]
        while not stop.wait(0.1):
            for index, (port, connection) in enumerate(connections):
                if cut(connection):
                    connection.close()
                    connections[index] = (port, knock_quickly(port, words))
        for _, connection in connections:
            connection.close()

    return hold


def knock_quickly(port: Port, words: bytes) -> socket.socket:
    """Begin a connection without waiting for it."""
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex((HOST, port))
    if words:
        with contextlib.suppress(OSError):  # it is not there yet: then it says nothing
            connection.send(words)
    return connection


def cut(connection: socket.socket) -> bool:
    """Whether the other side has hung up."""
    try:
        return connection.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _dealers(count: int, key: Callable[[], ClusterKey | None]) -> Callable[[list[Port], threading.Event], None]:
    """Who speaks the language well, and knocks again as often as libzmq does by itself."""

    def dial(ports: list[Port], stop: threading.Event) -> None:
        context = zmq.Context()
        dealers: list[Any] = []
        for port in ports:
            for _ in range(count):
                dealer: Any = context.socket(zmq.DEALER)
                dealers.append(dealer)
                dealer.set(zmq.LINGER, 0)
                own = key()
                if own is not None:
                    dealer.set(zmq.CURVE_SERVERKEY, own.server_public.encode())
                    dealer.set(zmq.CURVE_PUBLICKEY, own.client_public.encode())
                    dealer.set(zmq.CURVE_SECRETKEY, own.client_secret.encode())
                dealer.connect(f"tcp://{HOST}:{port}")
                with contextlib.suppress(zmq.Again):  # it was refused before that
                    dealer.send(b"let me in", zmq.NOBLOCK)
        stop.wait()
        for dealer in dealers:
            dealer.close(0)
        context.term()

    return dial


def _flood(ports: list[Port], stop: threading.Event) -> None:
    """As fast as one thread can."""
    while not stop.is_set():
        for port in ports:
            with socket.socket() as connection:
                connection.settimeout(0.05)
                with contextlib.suppress(OSError):
                    connection.connect((HOST, port))
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")


ATTACKS: dict[str, Callable[[list[Port], threading.Event], None]] = {
    "no key": _dealers(20, lambda: None),
    "a wrong key": _dealers(20, lambda: ClusterKey.create(f"{HOST}:1")),
    "garbage": _until_stopped(garbage),
    "huge frames": _until_stopped(huge_frame),
    "1,000 that say nothing": _held(b""),
    "1,000 that only greet": _held(GREETING),
    "a flood": _flood,
}


class Attack:
    """One of the attacks, in a thread: a context.

    Args:
        name: which.
        ports: where.
    """

    def __init__(self, name: str, ports: list[Port]) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=ATTACKS[name], args=(ports, self._stop))

    def __enter__(self) -> Attack:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
