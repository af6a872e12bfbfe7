"""Control: the body of the control: its brain, its database, and the process that it may have to itself."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING, Any

from zray.base import wire
from zray.base.config import Config
from zray.base.ids import NodeID, agent_id
from zray.base.wire import CONTROL
from zray.core import effects as e
from zray.core.gcs import Gcs
from zray.io.db import Database, read
from zray.io.session import Session
from zray.runtime.process import Process, log

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey

DATABASE = "gcs.sqlite"


class Control:
    """The parts of a process that hosts the control.

    Args:
        session: the directory with the database; what an earlier control process left there is taken up.
        cluster: identity of the cluster.
        config: limits.
        home: the agent in the same process, which then lives for one driver.

    Raises:
        RuntimeError: the database can not be read.
    """

    def __init__(self, session: Session, cluster: bytes, config: Config, home: bytes = b"") -> None:
        self._path = os.path.join(session.path, DATABASE)
        saved = read(self._path) if os.path.exists(self._path) else None
        self._process: Process
        self._database: Database
        self.gcs = Gcs(cluster, config, embedded=bool(home), saved=saved, home=home, rng=random.Random())

    def attach(self, process: Process) -> None:
        """Live in ``process``: from now on the control hears and acts."""
        self._process = process
        self._database = Database(self._path, self._on_database_error)
        gcs = self.gcs
        process.add_brain(gcs, "control")
        process.add_handlers(gcs.actors, "control")
        process.add_handlers(gcs.placement, "control")
        process.count_messages("control", gcs.heard)
        process.add_local(CONTROL)
        process.on_timers("gcs", gcs.on_timer)
        process.on_timers("actors", gcs.actors.on_timer)
        process.on_timers("placement", gcs.placement.on_timer)
        process.on_timers("nodes", gcs.on_timer)
        process.on_effect(e.PERSIST, self._database.execute)
        process.on_effect(e.AFTER_PERSIST, self._after_persist)
        process.transport.on_lost = lambda peer: gcs.on_connection_lost(process.now(), peer)
        gcs.start(process.now())

    def close(self) -> None:
        """Write what is not written yet."""
        self._database.close()

    def _after_persist(self, peer: bytes, message: Any) -> None:
        process = self._process
        self._database.after(lambda: process.loop.post((process.send, peer, message)))

    def _on_database_error(self, error: BaseException) -> None:
        log.error("the database failed: %s", error)
        self._process.loop.post((self._process.stop, f"the database failed: {error}"))


class ControlProcess(Process):
    """The control as a process of its own."""

    def __init__(
        self, control: Control, cluster: bytes, config: Config, tcp: tuple[str, int, str], key: ClusterKey | None
    ) -> None:
        super().__init__(
            agent_id(NodeID.from_random()),
            "control",
            "",
            cluster,
            wire.decode_plain,
            config.lazy_handover_ms / 1000,
            config.message_bytes_max,
            tcp=tcp,
            key=key,
        )
        self.control = control
        self.on_effect(e.STOP, self.stop)
        self.on_effect(e.WARN, lambda text: log.warning("%s", text))
        control.attach(self)
        self.settle(self.now())

    def leave(self) -> None:
        """Tell the nodes that the cluster ends."""
        self.control.gcs.leave(self.reason)
        self.settle(self.now())

    def close(self) -> None:
        self.transport.close(linger_ms=100)
        self.control.close()


def start(arguments: dict[str, Any], session: Session, key: ClusterKey | None) -> ControlProcess:
    """Make the control of a cluster; nothing runs until its loop does.

    Raises:
        OSError: it can not listen where it should.
        RuntimeError: its database can not be read.
    """
    config = Config.from_dict(arguments["config"])
    cluster = bytes.fromhex(arguments["cluster"])
    process = ControlProcess(Control(session, cluster, config), cluster, config, tuple(arguments["tcp"]), key)
    signal.signal(signal.SIGTERM, lambda signum, frame: process.loop.post((process.stop, "SIGTERM")))
    return process
