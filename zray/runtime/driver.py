"""Driver: the runtime of the user's script."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.base import wire
from zray.base.config import Config
from zray.base.ids import agent_id, agent_of, driver_id
from zray.base.wire import CONTROL
from zray.base.wire_output import FlushOutput
from zray.core.waiters import Waiter
from zray.exceptions import NodeDiedError, RaySystemError
from zray.io.loop import NUDGE
from zray.runtime.client import finish, shut_down
from zray.runtime.core_worker import CoreWorker
from zray.runtime.embedded import EmbeddedHead
from zray.runtime.output import DriverOutput
from zray.runtime.process import PidWatch

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey

_FLUSH_S = 2.0  # for a node that is gone and not yet known to be


class Driver(CoreWorker):
    """The runtime of a driver."""

    def __init__(
        self,
        config: Config,
        endpoint: str,
        cluster: bytes,
        node_id: bytes,
        host: str = "",
        key: ClusterKey | None = None,
    ) -> None:
        super().__init__("driver", driver_id(node_id), endpoint, cluster, config, host, key)
        self.head: EmbeddedHead | None = None
        self.running: dict[str, Any] = {}  # the node of a running cluster that was joined
        self._watch: PidWatch | None = None  # of the head
        self.output = DriverOutput(config)
        self.add_handlers(self.output, "owner")
        self.nodes: list[dict[str, Any]] = []
        self._log_to_driver = True
        self._leaving = False  # shutdown() was called

    def connect(self, endpoint: str, namespace: str, env_vars: dict[str, str], *, log_to_driver: bool) -> None:
        """Register this driver as a job with the control at ``endpoint``."""
        self.namespace = namespace
        self._log_to_driver = log_to_driver
        self.env_vars = env_vars
        self.loop.run_in_thread("zray-loop", self._on_loop_error)
        self.loop.post((self.transport.dial, CONTROL, endpoint))
        environment = {
            "sys_path": [os.path.abspath(p) for p in sys.path],
            "cwd": os.getcwd(),
            "env_vars": env_vars,
            "log_to_driver": log_to_driver,
        }
        entrypoint = " ".join(sys.argv) or "python"
        answer = self.call(
            CONTROL, wire.RegisterJob, self.me, self.address[1], os.getpid(), entrypoint, namespace, environment
        )
        self.nodes = answer["nodes"]
        node = next(n for n in self.nodes if n["alive"] and agent_id(n["node_id"]) == agent_of(self.me))
        joined = Waiter(1)
        self.loop.post((self._join, answer["job_id"], node, endpoint))
        self.loop.post((finish, joined))
        if not self.loop.wait(joined):
            raise self.broken or RaySystemError("the event loop ended while the driver joined its job")
        if self.loop.catch_interrupts():
            signal.signal(NUDGE, self.loop.on_nudge)
            self.loop.nudges = True

    def _join(self, job_id: bytes, node: dict[str, Any], control_endpoint: str) -> None:
        self.join(job_id, node)
        self.output.own_agent = self.agent
        self.output.control_agent = next((n["agent"] for n in self.nodes if n["endpoint"] == control_endpoint), b"")
        if node["endpoint"] == control_endpoint:  # one process hosts both
            self.transport.alias(node["agent"], CONTROL)
        else:
            self.transport.dial(node["agent"], node["endpoint"])

    def live_with(self, head: EmbeddedHead) -> None:
        """Fail everything that waits when the head ends before us."""
        self.head = head

        def why() -> str:
            tail = head.log_tail().strip().splitlines()[-1:] or ["it left no word"]
            return f"the head process (pid {head.pid}) ended: {tail[0]}. Call zray.shutdown() and zray.init() to start anew"

        self._live_with(head.pid, why)

    def live_with_node(self, pid: int) -> None:
        """Fail everything that waits when the agent of this machine ends before us."""
        self._live_with(
            pid,
            lambda: f"the node agent of this machine (pid {pid}) ended: start one with zray-node or zray-head, and call "
            "zray.shutdown() and zray.init() to join again",
        )

    def _live_with(self, pid: int, why: Callable[[], str]) -> None:
        def ended() -> None:
            self.loop.remove_source(watch)
            watch.close()
            self.fail(shut_down() if self._leaving else NodeDiedError(why()))

        watch = self._watch = PidWatch(pid, ended)
        self.loop.post((self.loop.add_source, watch))

    def control_endpoint(self) -> str:
        return self.head.session.endpoint("h") if self.head is not None else self.node_endpoint

    def shutdown(self) -> None:
        """Finish the job; with an embedded head, end the cluster and wait until nothing of it is left.

        An interrupt ends one of the waits, and nothing more.
        """
        self._leaving = True
        try:
            if self.broken is None and self._log_to_driver:
                self._flush_output()
        finally:
            try:
                if self.broken is None:
                    self._finish_job()
            finally:
                self.loop.release_interrupts()
                try:
                    self.close()
                finally:
                    if self.head is not None:
                        self.head.stop(5.0)

    def _finish_job(self) -> None:
        request = self.ask(CONTROL, wire.FinishJob, self.job_id)
        with contextlib.suppress(RaySystemError):
            self.loop.wait(request, self.config.worker_exit_grace_s + 2.0)

    def close(self, linger_ms: int = 0) -> None:
        super().close(linger_ms)
        if self._watch is not None:
            self._watch.close()
        self.output.close()

    def show_bar(self, state: str) -> None:
        """A progress bar of this process has moved."""
        self.output.screen.show(bars=[(b"", json.loads(state))])

    def _flush_output(self) -> None:
        """Have it here what workers have written so far, on this node and on those whose workers this process knows."""
        peers = self.transport.peers()
        known = [agent for agent in dict.fromkeys(map(agent_of, peers)) if agent in peers]
        agents = dict.fromkeys([self.agent, *self.output.agents, *known])
        deadline = time.monotonic() + _FLUSH_S
        for request in [self.ask(agent, FlushOutput, self.job_id) for agent in agents]:
            with contextlib.suppress(RaySystemError):
                self.loop.wait(request, max(0.0, deadline - time.monotonic()))

    def _on_loop_error(self, error: BaseException) -> None:
        self.fail(RaySystemError(f"zray's event loop failed: {type(error).__name__}: {error}"))
        sys.excepthook(type(error), error, error.__traceback__)
        self.loop.stop()


def connect_running(node: dict[str, Any], namespace: str, env_vars: dict[str, str], *, log_to_driver: bool) -> Driver:
    """Connect to the cluster of a node that runs on this machine, as it described itself.

    Raises:
        NodeDiedError: it has just ended.
    """
    from zray.io.cluster_key import ClusterKey

    key = ClusterKey.load(node["key_file"]) if node["key_file"] else None
    endpoint = f"ipc://{node['session']}/d{os.urandom(6).hex()}"
    config = Config.from_dict(node["config"])
    cluster, node_id = bytes.fromhex(node["cluster"]), bytes.fromhex(node["node_id"])
    driver = Driver(config, endpoint, cluster, node_id, node["host"], key)
    try:
        try:
            driver.live_with_node(node["agent_pid"])
        except ProcessLookupError:
            raise NodeDiedError(f"the node agent of this machine (pid {node['agent_pid']}) has just ended") from None
        driver.connect(node["control"], namespace, env_vars, log_to_driver=log_to_driver)
    except BaseException:
        driver.close()
        raise
    driver.running = node
    return driver


def connect_embedded(
    head: EmbeddedHead, config: Config, namespace: str, env_vars: dict[str, str], *, log_to_driver: bool
) -> Driver:
    """Wait for the head that was started for this process, and connect to it."""
    driver = Driver(config, head.session.endpoint("d"), head.cluster, head.node_id)  # while the head starts
    try:
        head.wait_ready()
        driver.live_with(head)
        driver.connect(head.session.endpoint("h"), namespace, env_vars, log_to_driver=log_to_driver)
    except BaseException:
        driver.close()
        raise
    return driver
