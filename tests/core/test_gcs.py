"""Gcs: what the whole cluster agrees on, on disk before it is acknowledged."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.config import Config
from zray.base.ids import agent_id, driver_id
from zray.base.wire import JobFinished, Reply
from zray.base.wire_nodes import DriverStarted
from zray.core.effects import AFTER_PERSIST, PERSIST, SEND, STOP
from zray.core.gcs import FETCH_TIMER, Gcs

from .reading import AGENT, drain, process, resident, sent, timers, verbs

DRIVER, WORKER = process("driver"), process("worker")
NODE = process("node")
OWN = resident("driv")[0]  # a driver that lives there
F = b"f" * 16


class Bench:
    def __init__(self, embedded: bool = False, saved: Any = None) -> None:
        self.gcs = Gcs(b"cluster", Config(function_fetch_timeout_s=5.0), embedded=embedded, saved=saved)
        self.hears("register_node", NODE, "sim://", "host", 1, {"CPU": 20_000}, {}, "arena", 1 << 20, peer=AGENT)

    def hears(self, event: str, *fields: Any, peer: bytes = DRIVER, now: float = 0.0) -> list[Any]:
        getattr(self.gcs, "on_" + event)(now, peer, *fields)
        self.gcs.check()
        return drain(self.gcs.out)

    def job(self, driver: bytes = DRIVER) -> bytes:
        effects = self.hears("register_job", 1, driver, "sim://", 2, "script.py", "ns", {"cwd": "."}, peer=driver)
        return acknowledged(effects).value["job_id"]


def acknowledged(effects: list[Any]) -> Any:
    """The one reply that waits for the disk, which must come after what it waits for."""
    order = [e[0] for e in effects]
    assert AFTER_PERSIST in order and PERSIST not in order[order.index(AFTER_PERSIST) :]
    [(_, reply)] = verbs(effects, AFTER_PERSIST)
    return reply


def test_jobs_are_counted_up_and_saved_before_the_driver_hears_of_it() -> None:
    bench = Bench()
    effects = bench.hears("register_job", 9, DRIVER, "sim://", 2, "script.py", "ns", {})
    assert [e[1] for e in effects if e[0] == PERSIST] == ["save_job"]
    reply = acknowledged(effects)
    assert reply.request_id == 9 and reply.ok and reply.value["job_id"] == b"\0\0\0\1"
    assert Config.from_dict(reply.value["config"]).function_fetch_timeout_s == 5.0
    assert [n["node_id"] for n in reply.value["nodes"]] == [NODE] and reply.value["cluster_id"] == b"cluster"
    assert bench.job(WORKER) == b"\0\0\0\2"


def test_job_numbers_go_on_after_a_restart() -> None:
    saved = {"jobs": [{"job_id": b"\0\0\0\7", "state": "FINISHED", "driver": WORKER}]}
    assert Bench(saved=saved).job() == b"\0\0\0\x08"


def test_the_end_of_a_job_reaches_every_node_once_and_is_acknowledged_when_saved() -> None:
    bench = Bench()
    job = bench.job()
    effects = bench.hears("finish_job", 4, job)
    assert sent(effects, JobFinished) == [(AGENT, JobFinished(job, DRIVER))]
    assert acknowledged(effects) == Reply(4, True, None)
    effects = bench.hears("finish_job", 5, job)
    assert sent(effects, JobFinished) == [] and acknowledged(effects) == Reply(5, True, None)
    assert sent(bench.hears("process_died", DRIVER, "gone", peer=AGENT), JobFinished) == []


def test_the_death_of_a_driver_finishes_its_jobs_and_no_others() -> None:
    bench = Bench()
    job, other = bench.job(), bench.job(WORKER)
    effects = bench.hears("process_died", DRIVER, "gone", peer=AGENT)
    assert [m.job_id for _, m in sent(effects, JobFinished)] == [job]
    assert bench.gcs.jobs[job]["state"] == "DIED" and bench.gcs.jobs[other]["state"] == "RUNNING"


@pytest.mark.parametrize("embedded", [True, False])
def test_only_an_embedded_control_ends_with_its_driver(embedded: bool) -> None:
    bench = Bench(embedded=embedded)
    job = bench.job()
    assert len(verbs(bench.hears("finish_job", 4, job), STOP)) == int(embedded)


def test_a_worker_learns_its_job() -> None:
    bench = Bench()
    job = bench.job()
    [(_, reply)] = sent(bench.hears("fetch_job", 3, job, peer=WORKER), Reply)
    assert reply.ok and reply.value["environment"] == {"cwd": "."}
    [(_, reply)] = sent(bench.hears("fetch_job", 3, b"none", peer=WORKER), Reply)
    assert not reply.ok and "unknown" in reply.value


def test_a_function_is_saved_once_and_served() -> None:
    bench = Bench()
    effects = bench.hears("export_function", 5, b"job1", F, "fun", b"body")
    assert verbs(effects, PERSIST) == [("save_function", (F, b"job1", "fun", b"body"))]
    assert verbs(bench.hears("export_function", 5, b"job2", F, "fun", b"body"), PERSIST) == []
    [(peer, reply)] = sent(bench.hears("fetch_function", 8, F, peer=WORKER), Reply)
    assert peer == WORKER and reply == Reply(8, True, ("fun", b"body"))


def test_who_asks_for_a_function_before_its_export_is_answered_by_the_export() -> None:
    bench = Bench()
    effects = bench.hears("fetch_function", 8, F, peer=WORKER, now=1.0)
    assert verbs(effects, SEND) == [] and timers(effects) == [(6.0, (FETCH_TIMER, F, WORKER, 8))]
    effects = bench.hears("export_function", 5, b"job1", F, "fun", b"body")
    assert sent(effects, Reply) == [(DRIVER, Reply(5, True, None)), (WORKER, Reply(8, True, ("fun", b"body")))]
    bench.gcs.on_timer(6.0, (FETCH_TIMER, F, WORKER, 8))
    assert drain(bench.gcs.out) == [], "it has its answer"


def test_who_asks_for_a_function_that_never_comes_is_told_so() -> None:
    bench = Bench()
    bench.hears("fetch_function", 8, F, peer=WORKER)
    bench.gcs.on_timer(5.0, (FETCH_TIMER, F, WORKER, 8))
    [(peer, reply)] = sent(drain(bench.gcs.out), Reply)
    assert peer == WORKER and not reply.ok and "never exported" in reply.value
    assert bench.gcs.statistics()["functions_wanted"] == 0, "and nothing of it is kept"


def test_functions_and_keys_survive_a_restart() -> None:
    saved = {
        "functions": [{"job_id": b"job1", "function_id": F, "name": "fun", "body": b"body"}],
        "kv": [{"namespace": b"n", "key": b"k", "value": b"v"}],
    }
    bench = Bench(saved=saved)
    assert sent(bench.hears("fetch_function", 1, F), Reply)[0][1].value == ("fun", b"body")
    assert sent(bench.hears("kv_get", 2, b"n", b"k"), Reply)[0][1].value == b"v"


def test_keys_are_put_got_listed_and_deleted() -> None:
    bench = Bench()
    assert acknowledged(bench.hears("kv_put", 1, b"n", b"key", b"1", False)).value is False
    assert acknowledged(bench.hears("kv_put", 2, b"n", b"key", b"2", False)).value is True
    assert sent(bench.hears("kv_get", 3, b"n", b"key"), Reply)[0][1].value == b"1", "it was not to be overwritten"
    acknowledged(bench.hears("kv_put", 4, b"n", b"key", b"3", True))
    assert sent(bench.hears("kv_get", 5, b"n", b"key"), Reply)[0][1].value == b"3"
    bench.hears("kv_put", 6, b"other", b"key", b"x", True)
    assert sent(bench.hears("kv_keys", 7, b"n", b"k"), Reply)[0][1].value == [b"key"]
    assert sent(bench.hears("kv_keys", 8, b"n", b"z"), Reply)[0][1].value == []
    assert acknowledged(bench.hears("kv_delete", 9, b"n", b"key")).value is True
    assert acknowledged(bench.hears("kv_delete", 10, b"n", b"key")).value is False
    assert sent(bench.hears("kv_get", 11, b"n", b"key"), Reply)[0][1].value is None


def test_nodes_are_listed_with_what_they_said_last() -> None:
    bench = Bench()
    bench.hears("heartbeat", NODE, {"CPU": 5}, peer=AGENT)
    bench.hears("heartbeat", b"unknown", {"CPU": 5}, peer=AGENT)
    [(_, reply)] = sent(bench.hears("list_nodes", 1), Reply)
    assert [(n["node_id"], n["available"], n["total"]) for n in reply.value] == [(NODE, {"CPU": 5}, {"CPU": 20_000})]


def test_the_numbers_of_the_control_tell_what_it_has_heard() -> None:
    bench = Bench()
    bench.gcs.heard["RegisterJob"] = 3
    [(_, reply)] = sent(bench.hears("control_statistics", 5), Reply)
    assert reply.request_id == 5 and reply.ok and reply.value["heard_RegisterJob"] == 3 and reply.value["jobs"] == 0


def test_the_statistics_of_the_control_have_those_of_all_its_machines() -> None:
    numbers = Bench().gcs.statistics()
    assert numbers["nodes"] == 1
    assert not {"jobs", "functions", "keys", "actors", "dead_actors", "placement_groups"} - numbers.keys()


# -- drivers that die young ------------------------------------------------------------------------------------------


def on_node(driver: bytes = OWN) -> tuple[Any, ...]:
    return (1, driver, "sim://", 42, "script.py", "ns", {})


def test_the_node_of_a_driver_looks_after_it_from_its_registration() -> None:
    bench = Bench()
    effects = bench.hears("register_job", *on_node(), peer=OWN)
    assert sent(effects, DriverStarted) == [(AGENT, DriverStarted(OWN, 42))]
    bench.hears("process_died", OWN, "the driver ended", peer=AGENT)
    assert [job["state"] for job in bench.gcs.jobs.values()] == ["DIED"]


def test_a_driver_that_registers_before_its_node_is_looked_after_when_that_comes() -> None:
    bench = Bench()
    node = b"late" + NODE[4:]
    driver = driver_id(node)
    bench.hears("register_job", *on_node(driver), peer=driver)
    effects = bench.hears("register_node", node, "sim://", "host", 1, {"CPU": 20_000}, {}, "", 0, peer=agent_id(node))
    assert sent(effects, DriverStarted) == [(agent_id(node), DriverStarted(driver, 42))]


def test_a_node_that_registers_again_hears_of_drivers_that_it_does_not_know() -> None:
    bench = Bench()
    bench.hears("register_job", *on_node(), peer=OWN)
    for processes, told in (([], [(AGENT, DriverStarted(OWN, 42))]), ([OWN], [])):
        running = {"number": len(processes) + 1, "available": {}, "processes": processes, "jobs": [], "actors": [], "ends": []}
        running["bundles"] = []
        fields = (NODE, "sim://", "host", 1, {"CPU": 20_000}, {}, "arena", 1 << 20, running)
        assert sent(bench.hears("register_node", *fields, peer=AGENT), DriverStarted) == told


def test_a_driver_of_a_dead_node_is_refused() -> None:
    bench = Bench()
    bench.hears("leave_cluster", NODE, "SIGTERM", peer=AGENT)
    [(_, reply)] = sent(bench.hears("register_job", *on_node(), peer=OWN), Reply)
    assert not reply.ok and "is dead" in reply.value and not bench.gcs.jobs
