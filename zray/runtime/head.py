"""Head: the process that ``zray.init()`` starts for one driver: the control and a node agent, in the same loop.

It ends when that driver does, however it does.
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
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, Hello
from zray.core import effects as e
from zray.io.session import Session
from zray.io.spawn import redirect_output, set_title
from zray.runtime.control import Control
from zray.runtime.node import Node, default_store_bytes, memory_bytes, node_description
from zray.runtime.process import PidWatch, Process, log


class Head(Process):
    """Control and node agent: two brains, one body, for one driver.

    Args:
        node: the parts of the agent.
        session: the directory of the cluster.
        cluster: identity of the cluster.
        config: limits.
    """

    def __init__(self, node: Node, session: Session, cluster: bytes, config: Config) -> None:
        agent = node.description["agent"]
        super().__init__(
            agent,
            "control",
            node.description["endpoint"],
            cluster,
            wire.decode_plain,
            config.lazy_handover_ms / 1000,
            config.message_bytes_max,
        )
        self.node = node
        self.control = Control(session, cluster, config, home=agent)
        self.on_effect(e.STOP, self.stop)
        self.on_effect(e.WARN, lambda text: log.warning("%s", text))
        self.control.attach(self)
        node.attach(self, CONTROL)
        self.control.gcs.on_register_node(self.now(), agent, *node.registration())
        node.agent.start(self.now())
        self.settle(self.now())

    def on_peer_joined(self, hello: Hello) -> None:
        self.node.on_peer_joined(self.now(), hello)

    def watch_driver(self, pid: int) -> None:
        """End when the process we live for does, even if it never connected."""
        self.loop.add_source(PidWatch(pid, lambda: self.stop("the driver ended")))

    def close(self) -> None:
        self.node.close()
        self.transport.close(linger_ms=100)
        self.control.close()


def main() -> None:
    """Run an embedded head. Its one argument is a JSON object; it writes "ready" or an error to the descriptor it names."""
    arguments = json.loads(sys.argv[1])
    ready_fd = arguments["ready_fd"]
    for fd in (ready_fd, arguments["lock_fd"]):
        os.set_inheritable(fd, False)  # by forks alone, not by what tasks start
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


def start(arguments: dict[str, Any], session: Session) -> Head:
    """Make the head of a cluster; nothing runs until its loop does.

    Must be called before the process has threads or a zmq context, for the sake of the zygote.
    """
    cluster = bytes.fromhex(arguments["cluster"])
    node_id = bytes.fromhex(arguments["node_id"])
    config = Config.from_dict(arguments["config"])
    resources = ResourceSet.of({"memory": memory_bytes() * 7 // 10, **arguments["resources"]})
    store_bytes = arguments["store_bytes"] or default_store_bytes(config)
    description = node_description(session, node_id, session.endpoint("h"), store_bytes)
    node = Node(session, cluster, config, description, resources, labels=arguments["labels"], unneeded=(arguments["ready_fd"],))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; an embedded head ends with it
    redirect_output(session.log_path("head"))
    start_logging(arguments["logging_level"])
    head = Head(node, session, cluster, config)
    signal.signal(signal.SIGTERM, lambda signum, frame: head.loop.post((head.stop, "SIGTERM")))
    return head


def start_logging(level: int) -> None:
    """Have this process log to its standard error, with times that are the same everywhere."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.Formatter.converter = time.gmtime
