"""Driver: the runtime of the user's script, and the start of an embedded cluster for it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from typing import Any

import zray
from zray.base import wire
from zray.base.config import Config
from zray.base.ids import WorkerID
from zray.core.owner import Waiter
from zray.exceptions import NodeDiedError, RaySystemError
from zray.io.session import Session, sweep
from zray.runtime.core_worker import CoreWorker, finish
from zray.runtime.process import CONTROL, PidWatch

_LOG_TAIL_BYTES = 2000


class EmbeddedHead:
    """The head process of a cluster that lives for this driver alone.

    Args:
        config: limits.
        resources: what the node offers, by name.
        store_bytes: size of the object store, 0 for the default.
        log_to_driver: whether workers write to this process's output.
        logging_level: of the head's own log.
    """

    def __init__(
        self, config: Config, resources: dict[str, float], store_bytes: int, *, log_to_driver: bool, logging_level: int
    ) -> None:
        sweep()
        self.session = Session()
        self.cluster = os.urandom(16)
        self._config = config
        ready_read, ready_write = os.pipe()
        arguments = {
            "session": self.session.path,
            "lock_fd": self.session.lock_fd,
            "ready_fd": ready_write,
            "cluster": self.cluster.hex(),
            "config": config.as_dict(),
            "resources": resources,
            "store_bytes": store_bytes,
            "log_to_driver": log_to_driver,
            "logging_level": logging_level,
            "driver_pid": os.getpid(),
        }
        root = os.path.dirname(os.path.dirname(os.path.abspath(zray.__file__)))
        program = f"import sys; sys.path.append({root!r}); from zray.runtime.head import main; main()"
        safe_path = ["-P"] if sys.version_info >= (3, 11) else []  # modules beside the script must not shadow ours
        self._process = subprocess.Popen(
            [sys.executable, *safe_path, "-c", program, json.dumps(arguments)],
            pass_fds=(ready_write, self.session.lock_fd),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is for the driver
        )
        os.close(ready_write)
        self._ready = ready_read
        self.session.release()
        self.pid = self._process.pid

    def wait_ready(self) -> None:
        """Wait until the head can be reached.

        Raises:
            RuntimeError: it could not start; the text says why.
        """
        readable, _, _ = select.select([self._ready], [], [], self._config.start_timeout_s)
        answer = os.read(self._ready, 65536).decode() if readable else "it did not start in time"
        os.close(self._ready)
        if answer != "ready":
            tail = self.log_tail()
            self.stop(0.0)
            raise RuntimeError(f"the head process could not start: {answer or 'it ended at once'}\n{tail}")

    def log_tail(self) -> str:
        """The last lines of the head's log."""
        try:
            with open(self.session.log_path("head"), "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def stop(self, grace_s: float) -> None:
        """Wait for the head to end by itself, then end it; nothing of it remains."""
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its zygote and workers follow
            self._process.wait()
        self.session.remove()


class Driver(CoreWorker):
    """The runtime of a driver."""

    def __init__(self, config: Config, endpoint: str, cluster: bytes) -> None:
        super().__init__("driver", bytes(WorkerID.from_random()), endpoint, cluster, config)
        self.head: EmbeddedHead | None = None
        self.nodes: list[dict[str, Any]] = []
        self._previous_handler: Any = None

    def connect(self, endpoint: str, namespace: str) -> None:
        """Register this driver as a job with the control at ``endpoint``."""
        self.namespace = namespace
        self.loop.run_in_thread("zray-loop", self._on_loop_error)
        self.loop.post((self.transport.dial, CONTROL, endpoint))
        environment = {"sys_path": [os.path.abspath(p) for p in sys.path], "cwd": os.getcwd()}
        entrypoint = " ".join(sys.argv) or "python"
        answer = self.call(
            CONTROL, wire.RegisterJob, self.me, self.address[1], os.getpid(), entrypoint, namespace, environment
        )
        self.nodes = answer["nodes"]
        node = self.nodes[0]
        joined = Waiter(1)
        self.loop.post((self._join, answer["job_id"], node, endpoint))
        self.loop.post((finish, joined))
        if not self.loop.wait(joined):
            raise self.broken or RaySystemError("the event loop ended while the driver joined its job")
        self._catch_interrupts()

    def _join(self, job_id: bytes, node: dict[str, Any], control_endpoint: str) -> None:
        self.join(job_id, node)
        if node["endpoint"] == control_endpoint:  # one process hosts both
            self.transport.alias(node["agent"], CONTROL)
        else:
            self.transport.dial(node["agent"], node["endpoint"])

    def live_with(self, head: EmbeddedHead) -> None:
        """Fail everything that waits when the head ends before us."""
        self.head = head

        def ended() -> None:
            self.loop.remove_source(watch)
            watch.close()
            tail = head.log_tail().strip().splitlines()[-1:] or ["it left no word"]
            text = f"the head process (pid {head.pid}) ended: {tail[0]}. Call zray.shutdown() and zray.init() to start anew"
            self.fail(NodeDiedError(text))

        watch = PidWatch(head.pid, ended)
        self.loop.post((self.loop.add_source, watch))

    def shutdown(self) -> None:
        """Finish the job; with an embedded head, end the cluster and wait until nothing of it is left."""
        if self.broken is None:
            request = self.ask(CONTROL, wire.FinishJob, self.job_id)
            with contextlib.suppress(RaySystemError):
                self.loop.wait(request, self.config.worker_exit_grace_s + 2.0)
        self._release_interrupts()
        self.close()
        if self.head is not None:
            self.head.stop(5.0)

    def _on_loop_error(self, error: BaseException) -> None:
        self.fail(RaySystemError(f"zray's event loop failed: {type(error).__name__}: {error}"))
        sys.excepthook(type(error), error, error.__traceback__)
        self.loop.stop()

    def _catch_interrupts(self) -> None:
        """Route Ctrl-C through the loop, unless the program has a handler of its own."""
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if handler is signal.default_int_handler:
                self._previous_handler = handler
                signal.signal(signal.SIGINT, self.loop.on_interrupt)

    def _release_interrupts(self) -> None:
        if self._previous_handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None


def start_embedded(
    config: Config,
    resources: dict[str, float],
    store_bytes: int,
    namespace: str,
    *,
    log_to_driver: bool,
    logging_level: int,
) -> Driver:
    """Start a cluster of one node for this process and connect to it."""
    head = EmbeddedHead(
        config, resources, store_bytes, log_to_driver=log_to_driver, logging_level=logging_level
    )
    driver: Driver | None = None
    try:
        driver = Driver(config, head.session.endpoint("d"), head.cluster)  # while the head starts
        head.wait_ready()
        driver.live_with(head)
        driver.connect(head.session.endpoint("h"), namespace)
    except BaseException:
        if driver is not None:
            driver.close()
        head.stop(0.0)
        raise
    return driver
