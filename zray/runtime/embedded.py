"""EmbeddedHead: the head process that ``zray.init()`` starts for one driver.

This module imports little on purpose: the head starts while the driver imports the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys

import zray
from zray.base.config import Config
from zray.base.ids import NodeID
from zray.io.session import Session, sweep

_LOG_TAIL_BYTES = 2000


class EmbeddedHead:
    """The head process of a cluster that lives for this driver alone.

    Args:
        config: limits.
        resources: what the node offers, by name.
        store_bytes: size of the object store, 0 for the default.
        logging_level: of the head's own log.
        temp_dir: where the session directory is made, "" for the default.
        labels: of the node.

    Raises:
        OSError: the session directory can not be made, or the interpreter can not be started.
    """

    def __init__(
        self,
        config: Config,
        resources: dict[str, float],
        store_bytes: int,
        *,
        logging_level: int,
        temp_dir: str = "",
        labels: dict[str, str] | None = None,
    ) -> None:
        sweep(temp_dir)
        self.session = Session(parent=temp_dir)
        self.cluster = os.urandom(16)
        self.node_id = bytes(NodeID.from_random())
        self._config = config
        ready_read, ready_write = os.pipe()
        arguments = {
            "session": self.session.path,
            "lock_fd": self.session.lock_fd,
            "ready_fd": ready_write,
            "cluster": self.cluster.hex(),
            "node_id": self.node_id.hex(),
            "config": config.as_dict(),
            "resources": resources,
            "labels": labels or {},
            "store_bytes": store_bytes,
            "logging_level": logging_level,
            "driver_pid": os.getpid(),
        }
        root = os.path.dirname(os.path.dirname(os.path.abspath(zray.__file__)))
        program = f"import sys; sys.path.append({root!r}); from zray.runtime.head import main; main()"
        safe_path = ["-P"] if sys.version_info >= (3, 11) else []  # modules beside the script must not shadow ours
        try:
            self._process = subprocess.Popen(
                [sys.executable, *safe_path, "-c", program, json.dumps(arguments)],
                pass_fds=(ready_write, self.session.lock_fd),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for the driver
            )
        except BaseException:
            os.close(ready_read)
            self.session.remove()
            raise
        finally:
            os.close(ready_write)
            self.session.release()
        self._ready = ready_read
        self._log_fd = -1
        self.pid = self._process.pid

    def wait_ready(self) -> None:
        """Wait until the head can be reached.

        Raises:
            RuntimeError: it could not start; the text says why.
        """
        try:
            poller = select.poll()  # not select(), which takes no descriptor of 1024 or more
            poller.register(self._ready, select.POLLIN)
            in_time = poller.poll(self._config.start_timeout_s * 1000)
            answer = os.read(self._ready, 65536).decode() if in_time else "it did not start in time"
        finally:
            self._close_ready()
        if answer != "ready":
            raise RuntimeError(f"the head process could not start: {answer or 'it ended at once'}\n{self.log_tail()}")
        self._log_fd = os.open(self.session.log_path("head"), os.O_RDONLY)  # its last words outlive its directory

    def log_tail(self) -> str:
        """The last lines of the head's log."""
        if self._log_fd < 0:
            try:
                with open(self.session.log_path("head"), "rb") as file:
                    return file.read()[-_LOG_TAIL_BYTES:].decode(errors="replace")
            except FileNotFoundError:
                return ""
        size = os.fstat(self._log_fd).st_size
        return os.pread(self._log_fd, _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES)).decode(errors="replace")

    def stop(self, grace_s: float) -> None:
        """Wait for the head to end by itself, then end it; nothing of it remains. An interrupt ends the wait."""
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        finally:
            self._process.kill()  # its zygote and workers follow
            self._process.wait()
            self._close_ready()
            if self._log_fd >= 0:
                os.close(self._log_fd)
                self._log_fd = -1
            self.session.remove()

    def _close_ready(self) -> None:
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1
