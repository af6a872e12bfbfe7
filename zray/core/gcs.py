"""Gcs: the brain of the control process.

Theory of operation
-------------------
The control keeps what the whole cluster must agree on: nodes, jobs, functions, actors (in a machine of their own), and a
key-value store. All of it is in memory for reading and in SQLite for surviving: a change is handed to the database first
(PERSIST) and acknowledged when it is on disk (AFTER_PERSIST). Nothing here is on the path of a task or an object; a worker asks
for a function once and keeps it.

A control that ended is started again with what was on disk, and hears the rest from nodes and owners (``restart``). They
ask again whatever they had no answer to, so a question may come twice: the second time it is answered as the first.

Of what is over, so much is remembered as people may still ask for, on disk too: the latest jobs, nodes and actors. The functions
of a job are forgotten with the last of its actors: a detached one that starts again needs its class.
"""

from __future__ import annotations

import pickle
from typing import Any

from zray.base.config import Config
from zray.base.ids import agent_of
from zray.base.resources import ResourceSet
from zray.base.wire import JobFinished, Reply
from zray.base.wire_nodes import DriverStarted, NodeRefused
from zray.base.wire_output import DriverFound
from zray.base.wire_return import OwnerKnown
from zray.core.actor_places import WAITING, Place, choose_place
from zray.core.actors import ActorManager
from zray.core.chance import First
from zray.core.effects import AFTER_PERSIST, PERSIST, SEND, STOP, TIMER, Effect
from zray.core.nodes import HEALTH_TIMER, VIEW_TIMER, Node, NodeManager, NodeState
from zray.core.placement import PlacementGroupManager
from zray.core.policy import Policy, Rng, readable
from zray.core.restart import EXPECTED_TIMER, Restart, is_inventory
from zray.core.views import NodeView

FETCH_TIMER = "gcs.fetch"
ANSWERS_MAX = 4096  # to changes of the key-value store, that are remembered in case the question comes again


class Gcs:
    """The brain of the control process.

    Args:
        cluster_id: identity of the cluster.
        config: limits, handed to every process that joins.
        embedded: whether this control lives for one driver only, the first one, and ends with it.
        home: the agent that lives in the same process.
        rng: chance, for choices among nodes that are equally good.
        saved: rows of an earlier control process: table name -> list of dicts.
    """

    __slots__ = (
        "_answers",
        "_cluster_id",
        "_config",
        "_drivers",
        "_embedded",
        "_exports",
        "_next_answer",
        "_next_job",
        "_policy",
        "_wanted",
        "actors",
        "functions",
        "heard",
        "jobs",
        "kv",
        "members",
        "out",
        "placement",
        "restart",
    )

    def __init__(
        self,
        cluster_id: bytes,
        config: Config,
        *,
        embedded: bool = False,
        home: bytes = b"",
        rng: Rng | None = None,
        saved: dict[str, list[dict[str, Any]]] | None = None,
    ) -> None:
        self._cluster_id = cluster_id
        self._config = config
        self._embedded = embedded
        self._policy = Policy(rng or First())
        self._wanted: dict[bytes, list[tuple[bytes, int]]] = {}  # functions asked for before their export
        self.out: list[Effect] = []
        self.members = NodeManager(config, self.out, home)
        self.placement = PlacementGroupManager(config, self.out, self._views, self._group_changed)
        self.actors = ActorManager(config, self.out, self._choose_node, self._actor_ended)
        self.restart = Restart(config, self.out, self.members, self.actors, self.placement)
        saved = saved or {}
        self.restart.load(saved)
        self.jobs: dict[bytes, dict[str, Any]] = {row["job_id"]: _job(row) for row in saved.get("jobs", [])}
        self._drivers = {job["driver"]: job_id for job_id, job in self.jobs.items() if job["state"] == "RUNNING"}
        self.functions: dict[bytes, tuple[str, bytes]] = {
            row["function_id"]: (row["name"], row["body"]) for row in saved.get("functions", [])
        }
        self.kv: dict[tuple[bytes, bytes], bytes] = {
            (row["namespace"], row["key"]): row["value"] for row in saved.get("kv", [])
        }
        self._exports: dict[bytes, list[bytes]] = {}  # the functions of each job
        for row in saved.get("functions", []):
            self._exports.setdefault(row["job_id"], []).append(row["function_id"])
        answers = saved.get("answers", [])
        self._answers: dict[tuple[bytes, int], bool] = {(r["asker"], r["request_id"]): bool(r["existed"]) for r in answers}
        self._next_answer = len(answers)
        self.heard: dict[str, int] = {}  # messages by kind; the body counts them
        self._next_job = max((int.from_bytes(job, "big") for job in self.jobs), default=0) + 1

    def start(self, now: float) -> None:
        """The control process has begun: what an earlier one knew is expected to show itself."""
        self.restart.start(now, {job_id: driver for driver, job_id in self._drivers.items()})
        for job_id in list(self._exports):
            self._forget_functions(job_id)

    # -- nodes ----------------------------------------------------------------------------------------------------

    def on_register_node(
        self,
        now: float,
        peer: bytes,
        node_id: bytes,
        endpoint: str,
        hostname: str,
        pid: int,
        resources: dict[str, int],
        labels: dict[str, str],
        store_name: str,
        store_bytes: int,
        running: dict[str, Any] | None = None,
    ) -> None:
        if running and not is_inventory(running):
            return  # nothing that an agent of ours would say
        number = running["number"] if running else 0
        node = self.members.register(
            now, peer, node_id, endpoint, hostname, pid, resources, labels, store_name, store_bytes, number
        )
        if node is None:
            return
        if running:
            self.members.heard(now, peer, node_id, running["available"])
            for job_id in running["jobs"]:
                job = self.jobs.get(job_id)
                if job is not None and job["state"] != "RUNNING":
                    self.out.append((SEND, peer, JobFinished(job_id, job["driver"])))
            self.restart.node_returned(now, node, running)
        for driver, job_id in self._drivers.items():  # that were quicker than their node
            if agent_of(driver) == peer and not (running and driver in running["processes"]):
                self.out.append((SEND, peer, DriverStarted(driver, self.jobs[job_id]["pid"])))
        self.restart.look(now)
        self.placement.nodes_changed(now)
        self.actors.node_joined(now)

    def on_join_cluster(self, now: float, peer: bytes, request_id: int) -> None:
        answer = {"config": self._config.as_dict(), "cluster_id": self._cluster_id}
        self.out.append((SEND, peer, Reply(request_id, True, answer)))

    def on_heartbeat(
        self, now: float, peer: bytes, node_id: bytes, available: dict[str, int], bundles: tuple[Any, ...] = ()
    ) -> None:
        self.members.heard(now, peer, node_id, available)
        self.placement.bundles_counted(node_id, bundles)
        self.placement.nodes_changed(now)

    def on_leave_cluster(self, now: float, peer: bytes, node_id: bytes, reason: str) -> None:
        node = self.members.nodes.get(node_id)
        if node is not None and node.state is not NodeState.DEAD:
            self._end_node(now, node, f"it left the cluster: {reason}")

    def on_connection_lost(self, now: float, agent: bytes) -> None:
        """The connection that an agent had made has ended: it has to come back soon."""
        self.members.lost(now, agent)

    def on_list_nodes(self, now: float, peer: bytes, request_id: int) -> None:
        self.out.append((SEND, peer, Reply(request_id, True, self._described())))

    def on_explain_node(self, now: float, peer: bytes, request_id: int, agent: bytes) -> None:
        self.out.append((SEND, peer, Reply(request_id, True, self.members.explain(now, agent))))

    def on_control_statistics(self, now: float, peer: bytes, request_id: int) -> None:
        heard = {f"heard_{kind}": count for kind, count in self.heard.items()}
        self.out.append((SEND, peer, Reply(request_id, True, {**self.statistics(), **heard})))

    def leave(self, reason: str) -> None:
        """The control ends in good order, and with it the cluster."""
        for node in self.members.alive():
            self.out.append((SEND, node.agent, NodeRefused(reason, False)))

    def _described(self) -> list[dict[str, Any]]:
        return [node.description() for node in self.members.nodes.values()]

    def _end_node(self, now: float, node: Node, reason: str) -> None:
        """A node is dead: so is all that lived there."""
        self.members.end(now, node, reason)
        self.placement.node_ended(now, node.id, node.agent)
        self.restart.look(now)
        self.actors.node_ended(now, node.agent, f"its node {node.id.hex()[:8]} on {node.hostname} is dead: {reason}")
        for driver, job_id in list(self._drivers.items()):
            if agent_of(driver) == node.agent:
                self._finish(now, job_id, "DIED")

    # -- jobs -----------------------------------------------------------------------------------------------------

    def on_register_job(
        self,
        now: float,
        peer: bytes,
        request_id: int,
        driver: bytes,
        endpoint: str,
        pid: int,
        entrypoint: str,
        namespace: str,
        environment: dict[str, Any],
    ) -> None:
        """A driver starts. The reply: its job, the limits, and the nodes. Its node looks after it from now on."""
        node = next((node for node in self.members.nodes.values() if node.agent == agent_of(driver)), None)
        if node is not None and node.state is NodeState.DEAD:
            text = f"its node {node.id.hex()[:8]} on {node.hostname} is dead: join again when it is back"
            self.out.append((SEND, peer, Reply(request_id, False, text)))
            return
        known = [job["job_id"] for job in self.jobs.values() if job["driver"] == driver]
        job_id = known[0] if known else self._next_job.to_bytes(4, "big")
        self.restart.heard(driver)
        if not known:
            self._next_job += 1
            self._drivers[driver] = job_id
            self.jobs[job_id] = {
                "job_id": job_id,
                "driver": driver,
                "endpoint": endpoint,
                "pid": pid,
                "entrypoint": entrypoint,
                "namespace": namespace,
                "environment": environment,
                "state": "RUNNING",
            }
            details = pickle.dumps((endpoint, namespace, environment), 5)
            self.out.append((PERSIST, "save_job", (job_id, driver, pid, entrypoint, namespace, details, "RUNNING")))
        self.out.append((SEND, agent_of(driver), DriverStarted(driver, pid)))
        answer = {
            "job_id": job_id,
            "cluster_id": self._cluster_id,
            "config": self._config.as_dict(),
            "nodes": self._described(),
        }
        self.out.append((AFTER_PERSIST, peer, Reply(request_id, True, answer)))

    def on_finish_job(self, now: float, peer: bytes, request_id: int, job_id: bytes) -> None:
        self._finish(now, job_id, "FINISHED")
        self.out.append((AFTER_PERSIST, peer, Reply(request_id, True, None)))

    def on_process_died(self, now: float, peer: bytes, process: bytes, reason: str) -> None:
        """A driver or worker is gone."""
        if process in self._drivers:
            self._finish(now, self._drivers[process], "DIED")
        self.actors.process_ended(now, process)
        self.placement.process_ended(process)

    def on_owner_returned(self, now: float, peer: bytes) -> None:
        """A driver or worker found this control process in the place of an earlier one."""
        self.restart.heard(peer)
        self.out.append((SEND, peer, OwnerKnown(self.actors.owned_by(peer))))

    def on_fetch_job(self, now: float, peer: bytes, request_id: int, job_id: bytes) -> None:
        job = self.jobs.get(job_id)
        if job is None:
            self.out.append((SEND, peer, Reply(request_id, False, f"job {job_id.hex()} is unknown")))
        else:
            self.out.append((SEND, peer, Reply(request_id, True, job)))

    def on_find_driver(self, now: float, peer: bytes, job_id: bytes) -> None:
        job = self.jobs.get(job_id)
        if job is None or "environment" not in job or job["state"] != "RUNNING":
            self.out.append((SEND, peer, DriverFound(job_id, b"", "", False)))
            return
        wants = job["environment"].get("log_to_driver") is not False
        self.out.append((SEND, peer, DriverFound(job_id, job["driver"], job["endpoint"], wants)))

    # -- functions ------------------------------------------------------------------------------------------------

    def on_export_function(
        self, now: float, peer: bytes, request_id: int, job_id: bytes, function_id: bytes, name: str, body: bytes
    ) -> None:
        if function_id not in self.functions:
            self.functions[function_id] = (name, body)
            self._exports.setdefault(job_id, []).append(function_id)
            self.out.append((PERSIST, "save_function", (function_id, job_id, name, body)))
        self.out.append((AFTER_PERSIST, peer, Reply(request_id, True, None)))
        for waiting, asked in self._wanted.pop(function_id, ()):
            self.out.append((SEND, waiting, Reply(asked, True, (name, body))))
        if job_id in self.jobs:  # its end may have come before this
            self._forget_functions(job_id)

    def on_fetch_function(self, now: float, peer: bytes, request_id: int, function_id: bytes) -> None:
        known = self.functions.get(function_id)
        if known is not None:
            self.out.append((SEND, peer, Reply(request_id, True, known)))
            return
        self._wanted.setdefault(function_id, []).append((peer, request_id))
        at = now + self._config.function_fetch_timeout_s
        self.out.append((TIMER, at, (FETCH_TIMER, function_id, peer, request_id)))

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        if key[0] == VIEW_TIMER:
            self.members.publish(now)
            return
        if key[0] == EXPECTED_TIMER:
            for process in self.restart.missing():
                self.on_process_died(now, b"", process, "it ended while the control was away")
            return
        if key[0] == HEALTH_TIMER:
            for node, reason in self.members.tick(now):
                self._end_node(now, node, reason)
            return
        _, function_id, peer, request_id = key
        waiting = self._wanted.get(function_id, [])
        if (peer, request_id) in waiting:
            waiting.remove((peer, request_id))
            if not waiting:
                del self._wanted[function_id]
            text = f"function {function_id.hex()} was never exported: its driver may have ended"
            self.out.append((SEND, peer, Reply(request_id, False, text)))

    # -- key-value store ------------------------------------------------------------------------------------------

    def on_kv_put(
        self, now: float, peer: bytes, request_id: int, namespace: bytes, key: bytes, value: bytes, overwrite: bool
    ) -> None:
        """The reply: whether the key existed."""
        existed = self._answers.get((peer, request_id))
        if existed is None:
            existed = (namespace, key) in self.kv
            if overwrite or not existed:
                self.kv[namespace, key] = value
                self.out.append((PERSIST, "save_kv", (namespace, key, value)))
                self._note_answer(peer, request_id, existed)
        self.out.append((AFTER_PERSIST, peer, Reply(request_id, True, existed)))

    def on_kv_get(self, now: float, peer: bytes, request_id: int, namespace: bytes, key: bytes) -> None:
        self.out.append((SEND, peer, Reply(request_id, True, self.kv.get((namespace, key)))))

    def on_kv_delete(self, now: float, peer: bytes, request_id: int, namespace: bytes, key: bytes) -> None:
        """The reply: whether the key existed."""
        existed = self._answers.get((peer, request_id))
        if existed is None:
            existed = self.kv.pop((namespace, key), None) is not None
            if existed:
                self.out.append((PERSIST, "delete_kv", (namespace, key)))
                self._note_answer(peer, request_id, existed)
        self.out.append((AFTER_PERSIST, peer, Reply(request_id, True, existed)))

    def on_kv_keys(self, now: float, peer: bytes, request_id: int, namespace: bytes, prefix: bytes) -> None:
        keys = [key for space, key in self.kv if space == namespace and key.startswith(prefix)]
        self.out.append((SEND, peer, Reply(request_id, True, keys)))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _note_answer(self, peer: bytes, request_id: int, existed: bool) -> None:
        """If the question comes again it is answered so, and the change is not made twice."""
        if len(self._answers) >= ANSWERS_MAX:
            del self._answers[next(iter(self._answers))]
        self._answers[peer, request_id] = existed
        self.out.append((PERSIST, "save_answer", (self._next_answer % ANSWERS_MAX, peer, request_id, existed)))
        self._next_answer += 1

    def _finish(self, now: float, job_id: bytes, state: str) -> None:
        job = self.jobs.get(job_id)
        if job is None or job["state"] != "RUNNING":
            return
        self.out.append((PERSIST, "finish_job", (state, job_id)))
        self.actors.job_finished(now, job_id)
        self.placement.job_finished(now, job_id)
        job["state"] = state
        del self._drivers[job["driver"]]
        last = self._embedded and job_id == next(iter(self.jobs))
        self._forget_functions(job_id)
        self._forget_jobs()
        for node in self.members.alive():
            self.out.append((SEND, node.agent, JobFinished(job_id, job["driver"])))
        if last:
            self.out.append((STOP, f"job {job_id.hex()}: {state}"))

    def _actor_ended(self, now: float, actor_id: bytes) -> None:
        """An actor is dead for good."""
        self.placement.actor_ended(now, actor_id)
        self._forget_functions(self.actors.actors[actor_id].job_id)

    def _forget_functions(self, job_id: bytes) -> None:
        """Nobody needs the functions of a job that is over, unless an actor of it has outlived it."""
        if job_id not in self._exports or self._runs(job_id) or job_id in self.actors.jobs():
            return
        for function_id in self._exports.pop(job_id):
            del self.functions[function_id]
        self.out.append((PERSIST, "forget_functions", (job_id,)))

    def _forget_jobs(self) -> None:
        """Remember so many of those that are over. The latest is always among them: its number is not given again."""
        most = self._config.dead_jobs_max
        if len(self.jobs) - len(self._drivers) > most:
            needed = self.actors.jobs()  # a worker that begins to serve a job asks for it
            for job_id in [j for j in self.jobs if not self._runs(j) and j not in needed][:-most]:
                del self.jobs[job_id]
                self.out.append((PERSIST, "forget_job", (job_id,)))

    def _runs(self, job_id: bytes) -> bool:
        return job_id in self.jobs and self.jobs[job_id]["state"] == "RUNNING"

    def _choose_node(self, demand: dict[str, int], strategy: tuple[Any, ...]) -> Place:
        """A place for an actor."""
        if not self.restart.settled:
            return Place(b"", WAITING, "not all nodes have come back to the control")
        views = self._views()
        group = None
        if readable(strategy) and strategy[0] == "bundle":
            group = (strategy[1], self.placement.view(strategy[1]), self.actors.members(strategy[1]))
        elif readable(strategy) and strategy[0] == "affinity":  # that a node is dead is another thing than that it is unknown
            asked = self.members.nodes.get(strategy[1])
            if asked is not None:
                views[asked.id] = _view(asked)
        return choose_place(
            self._policy, views, ResourceSet(demand), strategy, self.actors.count_by_agent(), group
        )

    def _group_changed(self, now: float, group_id: bytes) -> None:
        """Actors that wait for a place in this group may have it now."""
        self.actors.group_changed(now, group_id)

    def _views(self) -> dict[bytes, NodeView]:
        return {node.id: _view(node) for node in self.members.alive() if node.registered}

    def check(self) -> None:
        """Assert the invariants of its leaf; the tables have none."""
        self.members.check()
        self.actors.check()
        self.placement.check()

    def statistics(self) -> dict[str, int]:
        return {
            **self.members.statistics(),
            "jobs": len(self.jobs),
            "functions": len(self.functions),
            "keys": len(self.kv),
            "functions_wanted": len(self._wanted),
            **self.actors.statistics(),
            **self.placement.statistics(),
        }


def _job(row: dict[str, Any]) -> dict[str, Any]:
    """The job of a row."""
    job = dict(row)
    details = job.pop("details", None)
    if details:
        job["endpoint"], job["namespace"], job["environment"] = pickle.loads(details)
    return job


def _view(node: Node) -> NodeView:
    """A node as policies see it."""
    return NodeView(
        node.id,
        node.agent,
        node.endpoint,
        ResourceSet(node.total),
        ResourceSet({name: max(0, units) for name, units in node.available.items()}),
        node.labels,
        node.state is not NodeState.DEAD,
        hostname=node.hostname,
    )
