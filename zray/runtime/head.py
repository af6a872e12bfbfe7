"""Head: the process of the control, with the node agent of its machine in the same loop.

``zray.init()`` starts it with the driver's process to live for (``embedded``): it ends when that driver does, however it does.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from zray.base import wire
from zray.base.config import Config
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, Hello
from zray.core import effects as e
from zray.core.gcs import Gcs
from zray.io.db import Database
from zray.io.session import Session
from zray.io.spawn import redirect_output, set_title
from zray.runtime.node import Node, default_store_bytes, memory_bytes, node_description
from zray.runtime.process import PidWatch, Process, log

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey


class Head(Process):
    """Control and node agent: two brains, one body.

    Args:
        node: the parts of the agent.
        session: the directory of this machine's part of the cluster.
        cluster: identity of the cluster.
        config: limits.
        embedded: whether it lives for one driver.
        tcp: where to listen for other machines: address to bind, port (0: any), address to tell others.
        key: what proves that a process belongs to the cluster.
    """

    def __init__(
        self,
        node: Node,
        session: Session,
        cluster: bytes,
        config: Config,
        *,
        embedded: bool,
        tcp: tuple[str, int, str] | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        agent = node.description["agent"]
        super().__init__(
            agent,
            "control",
            node.description["endpoint"],
            cluster,
            wire.decode_plain,
            config.lazy_handover_ms / 1000,
            config.message_bytes_max,
            tcp=tcp,
            key=key,
        )
        node.description["endpoint"] = self.transport.endpoint
        self.node = node
        self.reason = ""
        path = os.path.join(session.path, "gcs.sqlite")
        saved = os.path.exists(path)
        self._db = Database(path, self._on_db_error)
        self.gcs = Gcs(
            cluster, config, embedded=embedded, saved=self._db.load() if saved else None, home=agent, rng=random.Random()
        )
        self.add_brain(self.gcs, "control")
        self.add_handlers(self.gcs.actors, "control")
        self.add_handlers(self.gcs.placement, "control")
        self.add_local(CONTROL)
        self.on_timers("gcs", self.gcs.on_timer)
        self.on_timers("actors", self.gcs.actors.on_timer)
        self.on_timers("placement", self.gcs.placement.on_timer)
        self.on_timers("nodes", self.gcs.on_timer)
        self.on_effect(e.PERSIST, self._db.execute)
        self.on_effect(e.AFTER_PERSIST, self._after_persist)
        self.on_effect(e.STOP, self.stop)
        self.on_effect(e.WARN, lambda text: log.warning("%s", text))
        self.transport.on_lost = lambda peer: self.gcs.on_connection_lost(self.now(), peer)
        self.loop.on_inbox = self._on_inbox
        node.attach(self, CONTROL)
        self.gcs.on_register_node(self.now(), agent, *node.registration())
        node.agent.start(self.now())
        self.settle(self.now())

    def on_peer_joined(self, hello: Hello) -> None:
        self.node.on_peer_joined(self.now(), hello)

    def stop(self, reason: str) -> None:
        self.reason = reason
        self.loop.stopped = True

    def leave(self) -> None:
        """Tell the other nodes that the cluster ends."""
        self.gcs.leave(self.reason)
        self.settle(self.now())

    def watch_driver(self, pid: int) -> None:
        """End when the process we live for does, even if it never connected."""
        self.loop.add_source(PidWatch(pid, lambda: self.stop("the driver ended")))

    def close(self) -> None:
        self.node.close()
        self.transport.close(linger_ms=100)
        self._db.close()

    def _after_persist(self, peer: bytes, message: Any) -> None:
        self._db.after(lambda: self.loop.post((self.send, peer, message)))

    def _on_inbox(self, now: float) -> None:
        while self.loop.inbox:
            entry = self.loop.inbox.popleft()
            entry[0](*entry[1:])

    def _on_db_error(self, error: BaseException) -> None:
        log.error("the database failed: %s", error)
        self.loop.post((self.stop, f"the database failed: {error}"))


def main() -> None:
    """Run an embedded head. Its one argument is a JSON object; it writes "ready" or an error to the descriptor it names."""
    arguments = json.loads(sys.argv[1])
    ready_fd = arguments["ready_fd"]
    set_title("zray-head")
    try:
        session = Session(arguments["session"], arguments["lock_fd"])
        head = start(arguments, session)
        head.watch_driver(arguments["driver_pid"])
    except BaseException as error:
        os.write(ready_fd, f"{type(error).__name__}: {error}".encode())
        raise
    os.write(ready_fd, b"ready")
    os.close(ready_fd)
    try:
        head.loop.run()
        log.info("ending: %s", head.reason)
    finally:
        head.close()
        session.remove()


def start(arguments: dict[str, Any], session: Session, key: ClusterKey | None = None) -> Head:
    """Make the head of a cluster; nothing runs until its loop does.

    Must be called before the process has threads or a zmq context, for the sake of the zygote.
    """
    cluster = bytes.fromhex(arguments["cluster"])
    node_id = bytes.fromhex(arguments["node_id"])
    config = Config.from_dict(arguments["config"])
    tcp = arguments.get("tcp")
    resources = ResourceSet.of({"memory": memory_bytes() * 7 // 10, **arguments["resources"]})
    store_bytes = arguments["store_bytes"] or default_store_bytes(config)
    description = node_description(session, node_id, session.endpoint("h"), store_bytes)
    node = Node(
        session,
        cluster,
        config,
        description,
        resources,
        log_to_driver=arguments["log_to_driver"],
        host=tcp[2] if tcp else "",
        key=key,
        labels=arguments.get("labels"),
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; an embedded head ends with it
    if arguments.get("log", True):
        redirect_output(session.log_path("head"))
    start_logging(arguments["logging_level"])
    head = Head(
        node, session, cluster, config, embedded="driver_pid" in arguments, tcp=tuple(tcp) if tcp else None, key=key
    )
    signal.signal(signal.SIGTERM, lambda signum, frame: head.loop.post((head.stop, "SIGTERM")))
    return head


def start_logging(level: int) -> None:
    """Have this process log to its standard error, with times that are the same everywhere."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.Formatter.converter = time.gmtime
