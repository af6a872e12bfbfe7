"""AgentProcess: the process of a node agent on a machine that joined a cluster."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.base import wire
from zray.base.config import Config
from zray.base.ids import NodeID, agent_id
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, Hello
from zray.base.wire_nodes import JoinCluster, LeaveCluster
from zray.core import effects as e
from zray.exceptions import RaySystemError
from zray.io.session import Session
from zray.runtime.client import Client
from zray.runtime.node import Node, default_store_bytes, memory_bytes, node_description
from zray.runtime.process import Process, log

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey

_ANSWER_S = 10.0  # how long a head may take to answer the first question


class AgentProcess(Process):
    """A node agent whose control is another process."""

    def __init__(
        self,
        node: Node,
        cluster: bytes,
        config: Config,
        tcp: tuple[str, int, str],
        key: ClusterKey | None,
    ) -> None:
        super().__init__(
            node.description["agent"],
            "agent",
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
        self.on_joined: Callable[[], None] = lambda: None
        self.on_effect(e.JOINED, self._joined)
        self.on_effect(e.STOP, self.stop)
        self.on_effect(e.WARN, lambda text: log.warning("%s", text))
        self.transport.on_broken = self._on_broken
        self.transport.dial(CONTROL, node.description["control"])
        node.attach(self, CONTROL)
        node.agent.register(node.registration())
        node.agent.start(self.now())
        self.settle(self.now())

    def on_peer_joined(self, hello: Hello) -> None:
        self.node.on_peer_joined(self.now(), hello)

    def leave(self) -> None:
        """Tell the cluster that this node ends."""
        self.send(CONTROL, LeaveCluster(self.node.description["node_id"], self.reason))
        self.settle(self.now())

    def _joined(self) -> None:
        self.on_joined()

    def close(self) -> None:
        self.node.close()
        self.transport.close(linger_ms=100)

    def _on_broken(self, peer: bytes) -> None:
        """Somebody else is where a peer was."""
        if peer == CONTROL:
            log.warning("there is another control process: registering again")
            self.node.agent.on_control_broken(self.now())
            self.execute(self.node.agent)


def start(
    arguments: dict[str, Any], session: Session, answer: dict[str, Any], key: ClusterKey | None
) -> AgentProcess:
    """Make the agent of a node; nothing runs until its loop does.

    Must be called before the process has threads or a zmq context, for the sake of the zygote.
    """
    config = Config.from_dict(answer["config"])
    resources = ResourceSet.of({"memory": memory_bytes() * 7 // 10, **arguments["resources"]})
    store_bytes = arguments["store_bytes"] or default_store_bytes(config)
    node_id = bytes(NodeID.from_random())
    description = node_description(
        session, node_id, session.endpoint("h"), store_bytes, control=arguments["control"]
    )
    cluster = bytes.fromhex(answer["cluster_id"])
    tcp = tuple(arguments["tcp"])
    node = Node(
        session,
        cluster,
        config,
        description,
        resources,
        host=tcp[2],
        key=key,
        labels=arguments.get("labels"),
    )
    agent = AgentProcess(node, cluster, config, tcp, key)
    signal.signal(signal.SIGTERM, lambda signum, frame: agent.loop.post((agent.stop, "SIGTERM")))
    signal.signal(signal.SIGINT, lambda signum, frame: agent.loop.post((agent.stop, "SIGINT")))
    return agent


def ask_cluster(control: str, cluster: bytes, key: ClusterKey | None) -> dict[str, Any]:
    """The limits and the identity of a cluster.

    A process of its own asks: this one must not have had sockets when it makes its zygote.

    Args:
        control: where the control listens.
        cluster: identity of the cluster.
        key: what proves that this process belongs to it.

    Raises:
        ConnectionError: nobody answers there, or the answer is a refusal; the text says which.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _guarded(lambda: _ask(control, cluster, key), write)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    answer: dict[str, Any] = json.loads(text) if text else {"error": "the question could not be asked"}
    if "error" in answer:
        raise ConnectionError(f"the head at {control} can not be reached: {answer['error']}")
    return answer


def _guarded(function: Callable[[], dict[str, Any]], write: int) -> None:
    """Run the rest of a forked process; its parent's stack must never be returned to."""
    try:
        try:
            answer = function()
        except Exception as error:
            answer = {"error": str(error)}
        os.write(write, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _ask(control: str, cluster: bytes, key: ClusterKey | None) -> dict[str, Any]:
    me = agent_id(NodeID.from_random())
    asker = Client(me, "agent", "", cluster, wire.decode_plain, 0.005, 1 << 24, tcp=None, key=key)
    refused: list[str] = []
    asker.add_handlers(asker, "any")

    def on_refused(peer: bytes, reason: str) -> None:
        refused.append(reason)
        asker.fail(RaySystemError(reason))

    asker.transport.on_refused = on_refused
    asker.loop.post((lambda: asker.transport.dial(CONTROL, control, watched=True),))
    request = asker.ask(CONTROL, JoinCluster)
    in_time = asker.loop.wait(request, _ANSWER_S)
    asker.transport.close()  # else its end waits for the sockets whenever it is collected as garbage
    if not in_time:
        raise ConnectionError(f"no answer within {_ANSWER_S:g} s: is zray-head running there?")
    if not request.ok:
        raise ConnectionError(refused[0] if refused else str(request.value))
    answer: dict[str, Any] = request.value
    return {"config": answer["config"], "cluster_id": answer["cluster_id"].hex()}
