"""Node: the body of a node agent: its arena, its zygote, and what it sees of the processes of its machine."""

from __future__ import annotations

import os
import random
import socket
from typing import TYPE_CHECKING, Any

from zray.base.config import Config
from zray.base.ids import agent_id
from zray.base.resources import ResourceSet
from zray.base.wire import Hello
from zray.core import effects as e
from zray.core.agent import NodeAgent
from zray.core.workers import WorkerState
from zray.io import descriptors
from zray.io.memory import private_bytes, usage
from zray.io.pipes import WorkerPipes
from zray.io.session import Session
from zray.io.spawn import Zygote, describe_exit, is_stopped
from zray.io.spill import SpillStorage, open_directories
from zray.io.storage import Arena, shared_memory_free_bytes
from zray.runtime.process import PidWatch, Process, log
from zray.runtime.worker import WorkerSettings, run_worker

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey
    from zray.io.transfer import TransferService

_EXIT_TIMER = "node.exited"
_LATE_TIMER = "node.late"
_LAST_WORDS_S = 0.05
_SMALL_STORE = 75 << 20
_DESCRIPTORS_RESERVE = 100  # for those who connect, files of the store, and what must not fail


def memory_bytes() -> int:
    """The memory of this machine. (psutil says the same and takes as long to import as all of the node's own modules.)"""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def default_store_bytes(config: Config) -> int:
    """The size of the object store when nobody says: a share of memory, and what /dev/shm can hold."""
    wanted = int(memory_bytes() * config.store_fraction_of_memory)
    return min(wanted, int(shared_memory_free_bytes() * config.store_headroom_of_shm))


def node_description(
    session: Session, node_id: bytes, endpoint: str, store_bytes: int, *, control: str = ""
) -> dict[str, Any]:
    """What workers and drivers must know of a node; ``control``: where the control is, if that is another process."""
    return {
        "node_id": node_id,
        "agent": agent_id(node_id),
        "endpoint": endpoint,
        "control": control,
        "store_name": session.arena_name(),
        "store_bytes": store_bytes,
        "with_control": not control,  # it lives in the same process
    }


class Node:
    """The parts of a process that hosts a node agent.

    Must be made before the process has threads or a zmq context, for the sake of the zygote.

    Args:
        session: the session's directory.
        cluster: identity of the cluster.
        config: limits.
        node: the description workers get.
        resources: what the node offers.
        host: where other machines reach this one, in a cluster of several.
        key: what proves that a process belongs to the cluster.
        labels: of the node.
        unneeded: descriptors that neither the zygote nor its workers need.
    """

    def __init__(
        self,
        session: Session,
        cluster: bytes,
        config: Config,
        node: dict[str, Any],
        resources: ResourceSet,
        *,
        host: str = "",
        key: ClusterKey | None = None,
        labels: dict[str, str] | None = None,
        unneeded: tuple[int, ...] = (),
    ) -> None:
        self._session = session
        self.description = node
        self._labels = labels or {}
        settings = WorkerSettings(session.path, cluster, config, node, session.endpoint("w"), host, key)
        self.zygote = Zygote(lambda worker_id: run_worker(settings, worker_id), session.remove, self._on_zygote, unneeded)
        self._pids: dict[bytes, int] = {}
        self._watches: dict[bytes, PidWatch] = {}
        self._resources = resources
        self._arena: Arena | None = None
        self._spills: SpillStorage | None = None
        self._bytes: TransferService | None = None
        self._host = host
        self._key = key
        self._config = config
        self._process: Process
        self._pipes: WorkerPipes
        self.agent: NodeAgent

    def attach(self, process: Process, control: bytes) -> None:
        """Live in ``process``: from now on the agent hears and acts."""
        self._process = process
        prestart = int(self._resources.amounts().get("CPU", 0))
        store_bytes = self.description["store_bytes"]
        if store_bytes:
            self._arena = Arena(self.description["store_name"], store_bytes)
        if 0 < store_bytes < _SMALL_STORE:
            log.warning(
                "the object store has only %d MB because /dev/shm is small; in a container use a larger --shm-size",
                store_bytes >> 20,
            )
        directories, paths = open_directories(self._config.spill_directories, self._session)
        self.agent = NodeAgent(
            self.description["node_id"],
            self._resources,
            store_bytes,
            prestart,
            control,
            self._config,
            paths,
            rng=random.Random(),
            remote=bool(self.description["control"]),
            labels=self._labels,
        )
        if self._arena is not None:
            prefix = self.description["node_id"].hex()[:8]
            self._spills = SpillStorage(directories, self._arena, prefix, process.loop.post)
            process.on_effect(e.SPILL, self._spill)
            process.on_effect(e.RESTORE, self._restore)
            process.on_effect(e.DELETE_FILE, self._spills.delete)
        self._attach_transfer(process)
        process.on_effect(e.MEASURE, self._measure)
        process.on_effect(e.COLLECT, lambda: self.agent.collect(process.now()))
        process.add_brain(self.agent, "agent")
        process.add_handlers(self.agent.bundles, "agent")
        process.add_local(self.description["agent"])
        process.on_timers("agent", self.agent.on_timer)
        process.on_timers("store", self.agent.on_timer)
        process.on_timers("node", self._on_node_timer)
        self._attach_output(process)
        process.on_effect(e.START_WORKER, self._start_worker)
        process.on_effect(e.KILL_WORKER, self.zygote.kill)
        process.on_effect(e.WATCH, self._watch)
        process.on_effect(e.LOOK, self._look)
        process.loop.add_source(self.zygote)

    def _attach_output(self, process: Process) -> None:
        """What workers write is read here."""
        desk, now, config = self.agent.output, process.now, self._config

        def drain(workers: list[bytes], *asked: Any) -> None:
            for worker_id in workers:
                self._pipes.drain(worker_id)
            desk.drained(now(), workers, *asked)

        directory = os.path.dirname(self._session.log_path("worker"))
        limits = (config.worker_log_bytes_max, config.ended_logs_bytes_max)
        self._pipes = WorkerPipes(process.loop, directory, *limits, lambda *data: desk.heard(now(), *data))
        process.add_handlers(desk, "agent")
        process.on_timers("output", desk.on_timer)
        process.on_timers("pipes", self._pipes.on_timer)
        process.on_effect(e.DRAIN, drain)

    def _attach_transfer(self, process: Process) -> None:
        """Objects come from other nodes and go there, where there may be any."""
        transfer, now = self.agent.transfer, process.now
        process.add_handlers(transfer, "agent")
        process.add_handlers(transfer.search, "agent")
        process.on_timers("transfer", transfer.on_timer)
        process.on_effect(
            e.ANSWER, lambda client, request_id, ok, value: transfer.on_answer(now(), client, request_id, ok, value)
        )
        if not self._host or self._arena is None:  # who asks nevertheless is no node of this cluster
            process.on_effect(e.SERVE, lambda ticket, object_id, place, whole: None)
            process.on_effect(e.SERVE_REST, lambda ticket: None)
            process.on_effect(e.UNSERVE, lambda ticket: transfer.on_unserved(now(), ticket))
            process.on_effect(
                e.FETCH, lambda object_id, *_: transfer.on_fetch_failed(now(), object_id, 0, "lost", "there are no other nodes")
            )
            process.on_effect(e.CANCEL_FETCH, lambda object_id: None)
            return
        from zray.io.transfer import TransferService  # a machine of its own does without it

        self._bytes = TransferService(
            self._arena,
            self._host,
            "",
            self._key,
            process.loop.post,
            lambda object_id, checksum: transfer.on_fetched(now(), object_id, checksum),
            lambda object_id, received, kind, reason: transfer.on_fetch_failed(now(), object_id, received, kind, reason),
            lambda ticket: transfer.on_unserved(now(), ticket),
            chunk_bytes=self._config.transfer_chunk_bytes,
            window_bytes=self._config.transfer_window_bytes,
            stall_s=self._config.transfer_stall_s,
        )
        transfer.pushes.endpoint = self._bytes.endpoint
        process.on_effect(e.SERVE, self._bytes.serve)
        process.on_effect(e.SERVE_REST, self._bytes.serve_rest)
        process.on_effect(e.UNSERVE, self._bytes.unserve)
        process.on_effect(e.FETCH, self._bytes.fetch)
        process.on_effect(e.CANCEL_FETCH, self._bytes.cancel)

    def registration(self) -> tuple[Any, ...]:
        """The fields of this node's RegisterNode."""
        node = self.description
        return (
            node["node_id"],
            node["endpoint"],
            socket.gethostname(),
            os.getpid(),
            dict(self._resources),
            self._labels,
            node["store_name"],
            node["store_bytes"],
        )

    def on_peer_joined(self, now: float, hello: Hello) -> None:
        self.agent.on_peer_joined(now, hello.sender, hello.role, hello.pid)

    def close(self) -> None:
        """End the workers, and remove what they shared."""
        self.zygote.close()
        self._pipes.close()
        if self._bytes is not None:
            self._bytes.close()
        if self._spills is not None:
            self._spills.close()
        if self._arena is not None:
            self._arena.unlink()
            self._arena.close()
        for watch in self._watches.values():
            watch.close()

    def _start_worker(self, worker_id: bytes) -> None:
        left = descriptors.left()
        if left < _DESCRIPTORS_RESERVE:
            reason = f"the agent may open only {left} more files: raise its limit (ulimit -n, LimitNOFILE of a service)"
            self._on_zygote(("failed", worker_id, reason))
            return
        self.zygote.start(worker_id, self._pipes.open(worker_id))
        at = self._process.now() + self._config.worker_start_timeout_s
        self._process.loop.add_timer(at, (_LATE_TIMER, worker_id))

    def _on_node_timer(self, now: float, key: tuple[Any, ...]) -> None:
        if key[0] == _LATE_TIMER:
            self.agent.on_worker_late(now, key[1])
        else:
            self.agent.on_worker_exited(now, key[1], key[2])

    def _on_zygote(self, event: tuple[Any, ...]) -> None:
        now = self._process.now()
        if event[0] == "exited":
            pid = self._pids.pop(event[1], 0)
            reason = describe_exit(event[2])
            words = self._end_output(event[1])
            worker = self.agent.pool.workers.get(event[1])
            if words and worker is not None and worker.state is WorkerState.STARTING:
                reason = f"{reason}; its last words: {words}"
            log.info("worker %s (pid %d) %s", event[1][6:10].hex(), pid, reason)
            if os.WIFEXITED(event[2]):  # of its own will: what it said last may still be on its way
                self._process.loop.add_timer(now + _LAST_WORDS_S, (_EXIT_TIMER, event[1], f"pid {pid} {reason}"))
            else:
                self.agent.on_worker_exited(now, event[1], f"pid {pid} {reason}")
        elif event[0] == "started":
            self._pids[event[1]] = event[2]
        elif event[0] == "failed":
            log.warning("worker %s was not started: %s", event[1][6:10].hex(), event[2])
            self._end_output(event[1])
            self.agent.on_worker_exited(now, event[1], event[2])
        elif event[0] == "gone":
            pass  # it was told to end, and had ended
        else:
            self._process.loop.remove_source(self.zygote)
            log.error("the zygote ended: this node can not go on")
            self._process.stop("the zygote ended")

    def _end_output(self, worker_id: bytes) -> str:
        """A worker has said its last words, which are returned: its driver hears them before it hears of its end."""
        words = self._pipes.end(worker_id)
        self.agent.output.ended(self._process.now(), worker_id)
        return words

    def _spill(self, batch_id: int, directory: int, rows: list[tuple[int, int]]) -> None:
        assert self._spills is not None
        store = self.agent.store
        now = self._process.now
        self._spills.spill(
            batch_id, directory, rows, store.on_spilled, lambda b, reason: store.on_spill_failed(now(), b, reason)
        )

    def _restore(self, object_id: bytes, path: str, position: int, size: int, checksum: int, target: int | str) -> None:
        assert self._spills is not None
        store = self.agent.store
        now = self._process.now
        self._spills.restore(
            object_id,
            (path, position, size, checksum),
            target,
            store.on_restored,
            store.on_restore_failed,
            lambda o, reason: store.on_restore_refused(now(), o, reason),
        )

    def _measure(self) -> None:
        limit = self._config.memory_limit_bytes
        if limit:
            rss = {worker_id: private_bytes(pid) for worker_id, pid in self._pids.items()}
            used = sum(rss.values())
        else:
            rss = {}
            used, limit = usage()
            if used > limit * self._config.memory_fraction_max:
                rss = {worker_id: private_bytes(pid) for worker_id, pid in self._pids.items()}
        self._process.loop.post((self.agent.on_memory_measured, self._process.now(), used, limit, rss))

    def _watch(self, peer: bytes, pid: int) -> None:
        if peer in self._watches:
            return  # it introduced itself twice

        def ended() -> None:
            watch = self._watches.pop(peer)
            self._process.loop.remove_source(watch)
            watch.close()
            self.agent.on_process_ended(self._process.now(), peer)

        try:
            watch = PidWatch(pid, ended)
        except ProcessLookupError:
            self.agent.on_process_ended(self._process.now(), peer)
            return
        self._watches[peer] = watch
        self._process.loop.add_source(watch)

    def _look(self) -> None:
        stopped = [peer for peer, watch in self._watches.items() if is_stopped(watch.pid)]
        self.agent.on_drivers_seen(self._process.now(), stopped)
