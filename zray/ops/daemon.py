"""Daemon: how a head or a node runs: in the foreground, in the background, and how it is ended.

Before anything with threads or sockets exists, the process is alone: it makes its session, asks the head what it must know (in
a process of its own), and forks its zygote. Then it listens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from zray.io.cluster_key import ClusterKey, find
from zray.io.endpoint import places
from zray.io.session import Session, base_directory, clear, forget_heads, living_heads, living_nodes, sweep, take_up
from zray.io.spawn import has_ended, set_title
from zray.ops.supervisor import Child, Supervisor
from zray.runtime import agent_process, control, head
from zray.runtime.process import PidWatch, log

Serve = Callable[[dict[str, Any], TextIO], int]
_START_S = 60.0
_STOP_S = 30.0
_READY = "ready\n"
INSECURE = b"an open cluster-"  # the identity of clusters without a key


def serve_head(settings: dict[str, Any], out: TextIO, ready: Callable[[], None] = lambda: None) -> int:
    """Run a head until it is told to end; returns the exit code."""
    set_title("zray-head")
    head.start_logging(settings["logging_level"])
    session = take_up(settings["tcp"][1], settings["temp_dir"])
    again = session is not None
    sweep(settings["temp_dir"])
    session = session or Session(parent=settings["temp_dir"])
    try:
        served = _Head(settings, session, out, ready, again=again)
        maker = os.pidfd_open(settings["ends_with"]) if settings["ends_with"] else -1
        try:
            return Supervisor(
                Child("control", served.run_control),
                Child("agent", served.run_agent),
                served.on_control,
                served.on_agent,
                maker,
            ).run()
        finally:
            served.forget_key()
    finally:
        session.remove()


class _Head:
    """What ``zray-head`` has its children run, and tells of them."""

    def __init__(
        self, settings: dict[str, Any], session: Session, out: TextIO, ready: Callable[[], None], *, again: bool
    ) -> None:
        self._session = session
        self._out = out
        self._ready = ready
        self._again = again
        kept = os.path.join(session.path, "cluster.key")
        self._key: ClusterKey | None = None
        if not settings["insecure"]:
            self._key = _load(kept) if again else _key(settings["key_file"])
            self._key.save(kept)
        self._cluster = INSECURE if self._key is None else self._key.cluster
        self._settings = {**settings, "cluster": self._cluster.hex()}
        self._address = ""
        self._key_file = ""
        session.note_head({"role": "zray-head", "pid": os.getpid(), "port": settings["tcp"][1]})

    def run_control(self, report: Callable[[str], None]) -> int:
        """The life of a control process."""
        set_title("zray-control")
        process = control.start(self._settings, self._session, self._key)
        try:
            report(places(process.transport.endpoint)[1])
            process.loop.run()
            log.info("ending: %s", process.reason)
            process.leave()
        finally:
            process.close()
        return int(process.reason != "SIGTERM")

    def run_agent(self, report: Callable[[str], None]) -> int:
        """The life of the agent of this machine."""
        self._session.release()
        answer = {"config": self._settings["config"], "cluster_id": self._cluster.hex()}
        host = self._settings["tcp"][2]
        settings = {**self._settings, "control": f"tcp://{self._address}", "tcp": [host, 0, host], "ends_with": 0}
        _run_node(settings, answer, "zray-head", self._address, self._key_file, self._key, report)
        return 0

    def on_control(self, place: str) -> None:
        """The control listens: from now on always there."""
        host, _, told = self._settings["tcp"]
        self._address = place.removeprefix("tcp://")
        self._settings["tcp"] = [host, int(place.rpartition(":")[2]), told]
        if not self._key_file:
            self._key_file = _keep(self._key, self._address, self._settings["key_file"])

    def on_agent(self, session_path: str) -> None:
        """The machine of the head is a node of its cluster."""
        print(_welcome(self._address, self._key_file, session_path, again=self._again), file=self._out, flush=True)
        self._ready()

    def forget_key(self) -> None:
        """Remove the key file if nobody has chosen its name: with the next start there will be another."""
        if self._key_file and not self._settings["key_file"]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._key_file)


def serve_node(settings: dict[str, Any], out: TextIO, ready: Callable[[], None] = lambda: None) -> int:
    """Run a node until it is told to end; returns the exit code. If the cluster would have it back it starts anew."""
    address = settings["address"]
    key_file = "" if settings["insecure"] else find(address, settings["key_file"])
    key = _load(key_file) if key_file else None
    cluster = INSECURE if key is None else key.cluster
    place = f"tcp://{address}"
    answer = agent_process.ask_cluster(place, cluster, key)
    set_title("zray-node")
    head.start_logging(settings["logging_level"])

    def joined(session_path: str) -> None:
        print(f"zray node of the cluster at {address} (session {session_path})", file=out, flush=True)
        ready()

    if _run_node({**settings, "control": place}, answer, "zray-node", address, key_file, key, joined):
        command = [word for word in sys.orig_argv[1:] if word != "--detach"]  # as another node, in a process without threads
        os.execv(sys.executable, [sys.executable, *command])
    return 0


def _run_node(
    settings: dict[str, Any],
    answer: dict[str, Any],
    role: str,
    address: str,
    key_file: str,
    key: ClusterKey | None,
    on_joined: Callable[[str], None],
) -> bool:
    """The life of an agent; returns whether the cluster would have the node back as another one."""
    sweep(settings["temp_dir"])
    session = Session(parent=settings["temp_dir"])
    try:
        set_title("zray-node")
        process = agent_process.start(settings, session, answer, key)
        node_id = process.node.description["node_id"].hex()
        described = {**settings, "config": answer["config"], "node_id": node_id}

        def joined() -> None:
            _describe(session, role, described, address, key_file, bytes.fromhex(answer["cluster_id"]))
            on_joined(session.path)

        process.on_joined = joined
        maker = settings["ends_with"]
        try:
            if maker:
                process.loop.add_source(PidWatch(maker, lambda: process.stop(f"its maker (pid {maker}) ended")))
            process.loop.run()
            log.info("ending: %s", process.reason)
            process.leave()
        finally:
            process.close()
    finally:
        session.remove()
    return process.node.agent.rejoin


def clear_after(maker: int, temp_dir: str) -> None:
    """Remove the folder of a ``zray.cluster_utils.Cluster``, as far as nobody uses it, if its maker can not do so any more.

    The last of its nodes to end finds all of it unused, what those have left included that were killed.
    """
    if maker and has_ended(maker):
        clear(os.path.dirname(temp_dir))


def _key(path: str) -> ClusterKey:
    """The key of a cluster: that of the file, if it is there. Who has a copy needs no other when the head starts anew."""
    return _load(path) if path and os.path.exists(path) else ClusterKey.create("")


def _load(path: str) -> ClusterKey:
    """The key in a file.

    Raises:
        OSError: there is none in it, or it can not be read.
    """
    try:
        return ClusterKey.load(path)
    except ValueError as error:
        raise OSError(str(error)) from None


def _keep(key: ClusterKey | None, address: str, path: str) -> str:
    """Write the key where those who may join find it, unless it is there."""
    if key is None or (path and key.address == address and os.path.exists(path)):
        return path if key is not None else ""
    return dataclasses.replace(key, address=address).save(path)


def _describe(
    session: Session, role: str, settings: dict[str, Any], address: str, key_file: str, cluster: bytes
) -> None:
    """Say in the session's directory how programs on this machine join."""
    session.describe(
        {
            "role": role,
            "pid": os.getpid() if role == "zray-node" else os.getppid(),  # which ends it when it is told to end
            "agent_pid": os.getpid(),
            "address": address,
            "control": settings["control"],
            "host": settings["tcp"][2],
            "key_file": os.path.abspath(key_file) if key_file else "",
            "cluster": cluster.hex(),
            "node_id": settings["node_id"],
            "config": settings["config"],
        }
    )


def _welcome(address: str, key_file: str, session_path: str, *, again: bool) -> str:
    how = f"--address {address} " + (f"--key-file {key_file}" if key_file else "--insecure")
    return (
        f"zray head at {address} (session {session_path})" + (", with what an earlier one has left" if again else "") + "\n"
        f'  programs on this machine:  zray.init(address="auto")\n'
        f"  other machines:            zray-node {how}" + ("   (copy the key file there, mode 0600)" if key_file else "")
    )


def detach(role: str, serve: Serve, settings: dict[str, Any]) -> int:
    """Serve in the background; returns the exit code when it is up, or has failed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        text = _hear(read, pid)
        print(text.removesuffix(_READY), end="", file=sys.stderr)
        if text.endswith(_READY):
            return 0
        print(f"{role}: it did not start", file=sys.stderr)
        return 1
    os.close(read)
    os.setsid()
    code = 1
    with os.fdopen(write, "w", encoding="utf-8", closefd=True) as pipe:
        try:
            log_path = os.path.join(base_directory(settings["temp_dir"]), f"{role}-{os.getpid()}.log")
            _leave_terminal(log_path)
            pipe.write(f"{role} runs in the background as pid {os.getpid()} and logs to {log_path}\n")
            code = serve_detached(serve, settings, pipe)
        except Exception as error:
            if not pipe.closed:
                pipe.write(f"{role}: {error}\n")
                pipe.flush()
        finally:
            os._exit(code)


def _hear(read: int, pid: int) -> str:
    """What the process in the background says until it is ready, or has ended. Its zygote has the pipe too, and keeps it."""
    pidfd = os.pidfd_open(pid)
    heard = b""
    end = time.monotonic() + _START_S
    try:
        while not heard.endswith(_READY.encode()):
            readable, _, _ = select.select([read, pidfd], [], [], max(0.0, end - time.monotonic()))
            part = os.read(read, 1 << 16) if read in readable else b""
            if not part:
                break
            heard += part
    finally:
        os.close(pidfd)
        os.close(read)
    return heard.decode(errors="replace")


def serve_detached(serve: Any, settings: dict[str, Any], pipe: TextIO) -> int:
    """Serve, and close the pipe to those who wait for the start when it is up."""

    def ready() -> None:
        pipe.write(_READY)
        pipe.close()

    return int(serve(settings, pipe, ready))


def _leave_terminal(log_path: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(null)
    os.close(out)


def stop(role: str, temp_dir: str) -> int:
    """End the instance that runs on this machine; returns the exit code."""
    living = living_heads if role == "zray-head" else living_nodes
    found = [node for node in living(temp_dir) if node["role"] == role]
    if not found:
        left = forget_heads(temp_dir) if role == "zray-head" else []
        what = f"; what {len(left)} that were killed had left is removed" if left else ""
        print(f"{role}: none runs here{what}", file=sys.stderr)
        return int(not left)
    if len(found) > 1:
        listed = "\n".join(f"  --session-dir {os.path.dirname(os.path.dirname(n['session']))}: pid {n['pid']}" for n in found)
        print(f"{role}: {len(found)} run here; end one by its pid (kill PID), or name it:\n{listed}", file=sys.stderr)
        return 1
    pid = found[0]["pid"]
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poller = select.poll()  # not select(), which takes no descriptor of 1024 or more
        poller.register(pidfd, select.POLLIN)
        ended = poller.poll(_STOP_S * 1000)
    finally:
        os.close(pidfd)
    if not ended:
        print(f"{role}: pid {pid} was told to end and still runs after {_STOP_S:g} s", file=sys.stderr)
        return 1
    return 0
