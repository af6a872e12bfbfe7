"""Cluster: several nodes on one machine, through the real commands, for tests.

Example:
    >>> from zray.cluster_utils import Cluster
    >>> with Cluster() as cluster:                      # doctest: +SKIP
    ...     node = cluster.add_node(num_cpus=2)
    ...     cluster.wait_for_nodes()
    ...     cluster.connect()
    ...     cluster.remove_node(node, allow_graceful=False)   # kill -9
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import zray
from zray.io.session import living_nodes, sweep

_START_S = 60.0


class ClusterNode:
    """One node: the process of ``zray-head`` or ``zray-node``."""

    def __init__(self, process: subprocess.Popen[bytes], description: dict[str, Any], log_path: str) -> None:
        self._process = process
        self.pid = process.pid
        self.node_id: str = description["node_id"]
        self.address: str = description["address"]  # of the head
        self.session_dir: str = description["session"]
        self.log_path = log_path
        self._home = os.path.dirname(os.path.dirname(self.session_dir))

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def log(self) -> str:
        """What it has logged."""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def look(self) -> None:
        """See whether it has become another node: one that was given up by mistake joins anew, with another id."""
        for description in living_nodes(self._home):
            if description["pid"] == self.pid:
                self.node_id, self.session_dir = description["node_id"], description["session"]

    def child(self, title: str) -> int:
        """One of the processes of ``zray-head``.

        Args:
            title: its name: "zray-control" or "zray-node".

        Returns:
            Its process id; 0 while there is none.
        """
        with contextlib.suppress(FileNotFoundError):
            with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
                children = file.read().split()
            for pid in children:
                with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/comm") as file:
                    if file.read().strip() == title:
                        return int(pid)
        return 0

    def pause(self) -> None:
        """Stop its process where it is (SIGSTOP), as a machine that hangs; its workers run on."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def __repr__(self) -> str:
        return f"ClusterNode({self.node_id[:8]}, pid {self.pid})"


class Cluster:
    """A head and nodes on this machine. They end with the process that made them, however it ends.

    Args:
        initialize_head: start the head at once.
        connect: connect this process to it, as ``connect`` does.
        head_node_args: arguments of ``add_node`` for the head.
        insecure: no key and no encryption.
    """

    def __init__(
        self,
        initialize_head: bool = True,
        connect: bool = False,
        head_node_args: dict[str, Any] | None = None,
        *,
        insecure: bool = False,
    ) -> None:
        self._insecure = insecure
        self.head_node: ClusterNode | None = None
        self.worker_nodes: list[ClusterNode] = []
        self._numbers = itertools.count(1)
        self._home = tempfile.mkdtemp(prefix="zc-", dir="/tmp")  # a short name: it becomes part of the paths of sockets
        try:
            if initialize_head:
                self.add_node(**(head_node_args or {}))
                if connect:
                    self.connect()
        except BaseException:
            self._end_nodes()  # or nobody would ever end them
            raise

    @property
    def address(self) -> str:
        """Where its head listens.

        Raises:
            RuntimeError: it has no head.
        """
        if self.head_node is None:
            raise RuntimeError("the cluster has no head: the first add_node() starts it")
        return self.head_node.address

    def connect(self, namespace: str | None = None) -> Any:
        """Connect this process, through the head's machine.

        Args:
            namespace: as of ``zray.init``.

        Returns:
            The context, as of ``zray.init``.

        Raises:
            RuntimeError: the cluster has no head, or this process is connected already.
        """
        home = os.path.join(self._home, "h")
        return zray.init(self.address, namespace=namespace, _temp_dir=home)

    def add_node(
        self,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: dict[str, float] | None = None,
        labels: dict[str, str] | None = None,
        object_store_memory: int = 64 << 20,
        wait: bool = True,
        env_vars: dict[str, str] | None = None,
    ) -> ClusterNode:
        """Start a node; the first one is the head.

        Args:
            num_cpus, num_gpus, resources, labels: what it offers.
            object_store_memory: bytes of its object store.
            wait: until those who are connected see it, too; it has joined in any case.
            env_vars: environment variables for it, as limits (``ZRAY_...``).

        Returns:
            The node; it has joined.

        Raises:
            RuntimeError: it did not start; the text is its log.
        """
        module = "head" if self.head_node is None else "node"
        number = 0 if module == "head" else next(self._numbers)
        host = self._host(number)
        home = os.path.join(self._home, str(number) if number else "h")
        os.makedirs(home, exist_ok=True)
        command = [sys.executable, "-c", f"import sys; from zray.ops import cli; sys.exit(cli.{module}())"]
        command += ["--ends-with", str(os.getpid())]
        command += ["--host", host, "--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus)]
        command += ["--resources", json.dumps(resources or {}), "--object-store-memory", str(object_store_memory)]
        command += ["--labels", ",".join(f"{k}={v}" for k, v in (labels or {}).items()), "--session-dir", home]
        command += ["--insecure"] if self._insecure else ["--key-file", os.path.join(self._home, "key")]
        if self.head_node is not None:
            command += ["--address", self.address]
        root = os.path.dirname(os.path.dirname(os.path.abspath(zray.__file__)))
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        log_path = os.path.join(home, "log")
        with open(log_path, "ab") as log:
            environment = {**os.environ, **(env_vars or {}), "PYTHONPATH": path}
            process = self._spawn(number, command, environment, log)
        node = self._started(process, home, log_path)
        if self.head_node is None:
            self.head_node = node
        else:
            self.worker_nodes.append(node)
        if wait and zray.is_initialized() and self.head_node.node_id in _living():  # or connected to another cluster
            self._wait([node], lambda: _living() >= {node.node_id}, _START_S)
        return node

    def _host(self, number: int) -> str:
        """The address of a node; 0 is the head."""
        return "127.0.0.1"

    def _spawn(self, number: int, command: list[str], environment: dict[str, str], log: Any) -> subprocess.Popen[bytes]:
        """Start the process of a node."""
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )

    def _started(self, process: subprocess.Popen[bytes], home: str, log_path: str) -> ClusterNode:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and process.poll() is None:
            for description in living_nodes(home):
                if description["pid"] == process.pid:
                    return ClusterNode(process, description, log_path)
            _wait_for_end([process.pid], 0.01)  # it tells by a file, but may end instead
        process.kill()
        process.wait()
        with open(log_path, encoding="utf-8", errors="replace") as file:
            raise RuntimeError(f"the node did not start: {file.read()}")

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node and wait for its end.

        Args:
            node: the node.
            allow_graceful: with SIGTERM; if not, as a power cut would (kill -9).

        Raises:
            subprocess.TimeoutExpired: its process still runs after 60 seconds.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(node.pid, signal.SIGTERM if allow_graceful else signal.SIGKILL)
            os.kill(node.pid, signal.SIGCONT)
        node._process.wait(_START_S)
        if node in self.worker_nodes:
            self.worker_nodes.remove(node)
        elif node is self.head_node:
            self.head_node = None

    def wait_for_nodes(self, timeout: float = 30.0) -> None:
        """Wait until all nodes that run have joined, and those that were removed are known to be dead.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: that did not happen in time.
        """

        def expected() -> set[str]:
            return {node.node_id for node in self.list_all_nodes() if node.alive()}

        self._wait(self.list_all_nodes(), lambda: _living() == expected(), timeout)

    def _wait(self, nodes: list[ClusterNode], condition: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                running = sum(node.alive() for node in self.list_all_nodes())
                raise TimeoutError(f"after {timeout:g} s the cluster knows {len(_living())} nodes, and {running} run")
            for node in nodes:
                node.look()
            _wait_for_end([node.pid for node in nodes if node.alive()], 0.02)

    def list_all_nodes(self) -> list[ClusterNode]:
        """The nodes that were started and not removed, the head first."""
        return [*([self.head_node] if self.head_node else []), *self.worker_nodes]

    def shutdown(self) -> None:
        """Disconnect, and end all nodes."""
        if zray.is_initialized():
            zray.shutdown()
        self._end_nodes()

    def _end_nodes(self) -> None:
        for node in reversed(self.list_all_nodes()):
            self.remove_node(node)
        for home in os.scandir(self._home):
            if home.is_dir():
                sweep(home.path)  # of nodes that were killed, zygotes and all
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()


def _living() -> set[str]:
    return {node["NodeID"] for node in zray.nodes() if node["Alive"]}


def _wait_for_end(pids: list[int], at_most_s: float) -> None:
    """Wait until one of these processes ends, or for a moment."""
    pidfds = []
    poller = select.poll()  # not select(), which takes no descriptor of 1024 or more
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
                poller.register(pidfds[-1], select.POLLIN)
        poller.poll(at_most_s * 1000)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
