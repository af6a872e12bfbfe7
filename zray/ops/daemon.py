"""Daemon: how a head or a node runs: in the foreground, in the background, and how it is ended.

Before anything with threads or sockets exists, the process is alone: it makes its session, asks the head what it must know (in
a process of its own), and forks its zygote. Then it listens.
"""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any, TextIO

from zray.io.cluster_key import ClusterKey, find
from zray.io.endpoint import places
from zray.io.session import Session, living_nodes, sweep
from zray.io.spawn import set_title
from zray.runtime import agent_process, head
from zray.runtime.process import log

Serve = Callable[[dict[str, Any], TextIO], int]
_START_S = 60.0
_STOP_S = 30.0
INSECURE = b"an open cluster-"  # the identity of clusters without a key


def serve_head(settings: dict[str, Any], out: TextIO, ready: Callable[[], None] = lambda: None) -> int:
    """Run a head until it is told to end; returns the exit code."""
    sweep(settings["temp_dir"])
    session = Session(parent=settings["temp_dir"])
    try:
        set_title("zray-head")
        key = None if settings["insecure"] else ClusterKey.create("")
        cluster = INSECURE if key is None else key.cluster
        process = head.start({**settings, "cluster": cluster.hex()}, session, key)
        signal.signal(signal.SIGINT, lambda signum, frame: process.loop.post((process.stop, "SIGINT")))
        address = places(process.transport.endpoint)[1].removeprefix("tcp://")
        key_file = _keep(key, address, settings["key_file"])
        _describe(session, "zray-head", settings, process.transport.endpoint, address, key_file, cluster)
        print(_welcome(address, key_file, session), file=out, flush=True)
        ready()
        try:
            process.loop.run()
            log.info("ending: %s", process.reason)
            process.leave()
        finally:
            process.close()
    finally:
        session.remove()
    return 0


def serve_node(settings: dict[str, Any], out: TextIO, ready: Callable[[], None] = lambda: None) -> int:
    """Run a node until it is told to end; returns the exit code. If the cluster would have it back it starts anew."""
    address = settings["address"]
    key_file = "" if settings["insecure"] else find(address, settings["key_file"])
    key = ClusterKey.load(key_file) if key_file else None
    cluster = INSECURE if key is None else key.cluster
    control = f"tcp://{address}"
    answer = agent_process.ask_cluster(control, cluster, key)
    sweep(settings["temp_dir"])
    session = Session(parent=settings["temp_dir"])
    try:
        set_title("zray-node")
        head.start_logging(settings["logging_level"])
        process = agent_process.start({**settings, "control": control}, session, answer, key)
        settings = {**settings, "config": answer["config"], "node_id": process.node.description["node_id"].hex()}

        def joined() -> None:
            _describe(session, "zray-node", settings, control, address, key_file, cluster)
            print(f"zray node of the cluster at {address} (session {session.path})", file=out, flush=True)
            ready()

        process.on_joined = joined
        try:
            process.loop.run()
            log.info("ending: %s", process.reason)
            process.leave()
        finally:
            process.close()
    finally:
        session.remove()
    if process.node.agent.rejoin:  # as another node, in a process that has never had threads
        command = [word for word in sys.orig_argv[1:] if word != "--detach"]
        os.execv(sys.executable, [sys.executable, *command])
    return 0


def _keep(key: ClusterKey | None, address: str, path: str) -> str:
    """Write the key where those who may join find it."""
    return dataclasses.replace(key, address=address).save(path) if key is not None else ""


def _describe(
    session: Session, role: str, settings: dict[str, Any], control: str, address: str, key_file: str, cluster: bytes
) -> None:
    """Say in the session's directory how programs on this machine join."""
    session.describe(
        {
            "role": role,
            "pid": os.getpid(),
            "address": address,
            "control": control,
            "host": settings["tcp"][2],
            "key_file": os.path.abspath(key_file) if key_file else "",
            "cluster": cluster.hex(),
            "node_id": settings["node_id"],
            "config": settings["config"],
        }
    )


def _welcome(address: str, key_file: str, session: Session) -> str:
    how = f"--address {address} " + (f"--key-file {key_file}" if key_file else "--insecure")
    return (
        f"zray head at {address} (session {session.path})\n"
        f'  programs on this machine:  zray.init(address="auto")\n'
        f"  other machines:            zray-node {how}" + ("   (copy the key file there, mode 0600)" if key_file else "")
    )


def detach(role: str, serve: Serve, settings: dict[str, Any]) -> int:
    """Serve in the background; returns the exit code when it is up, or has failed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
            select.select([pipe], [], [], _START_S)
            text = pipe.read()
        print(text.removesuffix("ready\n"), end="", file=sys.stderr)
        if text.endswith("ready\n"):
            return 0
        print(f"{role}: it did not start", file=sys.stderr)
        return 1
    os.close(read)
    os.setsid()
    log_path = os.path.join(tempfile.gettempdir(), f"{role}-{os.getuid()}-{os.getpid()}.log")
    code = 1
    with os.fdopen(write, "w", encoding="utf-8", closefd=True) as pipe:
        try:
            _leave_terminal(log_path)
            pipe.write(f"{role} runs in the background as pid {os.getpid()} and logs to {log_path}\n")
            code = serve_detached(serve, settings, pipe)
        except Exception as error:
            if not pipe.closed:
                pipe.write(f"{role}: {error}\n")
                pipe.flush()
        finally:
            os._exit(code)


def serve_detached(serve: Any, settings: dict[str, Any], pipe: TextIO) -> int:
    """Serve, and close the pipe to those who wait for the start when it is up."""

    def ready() -> None:
        pipe.write("ready\n")
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
    found = [node for node in living_nodes(temp_dir) if node["role"] == role]
    if not found:
        print(f"{role}: none runs here", file=sys.stderr)
        return 1
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
        ended, _, _ = select.select([pidfd], [], [], _STOP_S)
    finally:
        os.close(pidfd)
    if not ended:
        print(f"{role}: pid {pid} was told to end and still runs after {_STOP_S:g} s", file=sys.stderr)
        return 1
    return 0
