"""Head: the process of the control, with the node agent of its machine in the same loop.

``zray.init()`` starts it with the driver's process to live for (``embedded``): it ends when that driver does, however it does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from typing import Any

from zray.base import wire
from zray.base.config import Config
from zray.base.ids import NodeID, WorkerID
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, Hello
from zray.core import effects as e
from zray.core.gcs import Gcs
from zray.io.db import Database
from zray.io.session import Session
from zray.io.spawn import redirect_output, set_title
from zray.runtime.node import Node, default_store_bytes, memory_bytes, node_description
from zray.runtime.process import PidWatch, Process, log


class Head(Process):
    """Control and node agent: two brains, one body."""

    def __init__(self, node: Node, session: Session, cluster: bytes, config: Config, *, embedded: bool) -> None:
        agent = node.description["agent"]
        endpoint = node.description["endpoint"]
        super().__init__(
            agent,
            "control",
            endpoint,
            cluster,
            wire.decode_plain,
            config.lazy_handover_ms / 1000,
            config.message_bytes_max,
        )
        self.node = node
        self.reason = ""
        path = os.path.join(session.path, "gcs.sqlite")
        saved = os.path.exists(path)
        self._db = Database(path, self._on_db_error)
        self.gcs = Gcs(cluster, config, embedded=embedded, saved=self._db.load() if saved else None)
        self.add_brain(self.gcs, "control")
        self.add_handlers(self.gcs.actors, "control")
        self.add_local(CONTROL)
        self.on_timers("gcs", self.gcs.on_timer)
        self.on_timers("actors", self.gcs.actors.on_timer)
        self.on_effect(e.PERSIST, self._db.execute)
        self.on_effect(e.AFTER_PERSIST, self._after_persist)
        self.on_effect(e.STOP, self.stop)
        self.on_effect(e.WARN, lambda text: log.warning("%s", text))
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
        head, session = _start(arguments)
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


def _start(arguments: dict[str, Any]) -> tuple[Head, Session]:
    session = Session(arguments["session"], arguments["lock_fd"])
    cluster = bytes.fromhex(arguments["cluster"])
    config = Config.from_dict(arguments["config"])
    resources = ResourceSet.of({"memory": memory_bytes() * 7 // 10, **arguments["resources"]})
    store_bytes = arguments["store_bytes"] or default_store_bytes(config)
    endpoint = session.endpoint("h")
    description = node_description(
        session, NodeID.from_random(), WorkerID.from_random(), endpoint, store_bytes, with_control=True
    )
    node = Node(session, cluster, config, description, resources, log_to_driver=arguments["log_to_driver"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; the head ends with it
    redirect_output(session.log_path("head"))
    logging.basicConfig(
        level=arguments["logging_level"], format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.Formatter.converter = time.gmtime
    head = Head(node, session, cluster, config, embedded=True)
    signal.signal(signal.SIGTERM, lambda signum, frame: head.loop.post((head.stop, "SIGTERM")))
    head.watch_driver(arguments["driver_pid"])
    return head, session
