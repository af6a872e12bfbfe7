"""What machines remember does not grow with what is over, and an event does not look at what it is not about."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.ids import agent_id, process_id, return_id
from zray.base.resources import ResourceSet
from zray.base.wire import (
    INLINE,
    STORED,
    CancelLease,
    CancelTask,
    JobFinished,
    LeaseGranted,
    RequestLease,
    ReturnLease,
    WatchProcess,
    WorkerDied,
)
from zray.base.wire_nodes import ClusterView
from zray.base.wire_output import FindDriver
from zray.core import death_watch, leases, recovery
from zray.core.arena import PAGE, Arena
from zray.core.death_watch import DeathWatch
from zray.core.leases import IDLE_TIMER
from zray.core.nodes import VIEW_TIMER
from zray.core.owner import INFEASIBLE_TIMER
from zray.core.scheduler import LeaseScheduler
from zray.core.tasks import Task, TaskTemplate
from zray.core.waiters import Waiter, Waiters

from .agent_bench import ACTOR, ONE, SECOND
from .agent_bench import Bench as Agent
from .owner_bench import WORKER, Bench
from .reading import AGENT, CONTROL, NODE, drain, process, sent, timers
from .store_bench import CLIENT, OTHER, OWNER, answers
from .store_bench import Bench as Store
from .test_generators import Generating
from .test_output import JOB, Desk
from .test_output import ONE as ONE_WORKER
from .test_output import TWO as TWO_WORKERS
from .test_restart import CPU, DRIVER, EAST, A, F
from .test_restart import Bench as Control

FAR = b"far".ljust(16, b"-")


class Looked(dict[Any, Any]):
    """A table that counts how often somebody looks at all of it."""

    scans = 0

    def items(self) -> Any:
        self.scans += 1
        return super().items()

    def values(self) -> Any:
        self.scans += 1
        return super().values()

    def copy(self) -> Any:
        self.scans += 1
        return dict(self)

    def __iter__(self) -> Any:
        self.scans += 1
        return super().__iter__()


# -- owners ---------------------------------------------------------------------------------------------------------


def test_the_death_of_a_worker_makes_nobody_look_at_all_objects() -> None:
    bench = Bench()
    keep = [bench.put(b"1") for _ in range(3)]
    memory, borrowers = Looked(bench.owner.memory), Looked({keep[0].binary(): {FAR: 1}})
    bench.owner.memory, bench.owner.references.borrowers = memory, borrowers
    bench.owner.on_worker_died(0.0, WORKER[0], WORKER[0], "killed")
    assert memory.scans == borrowers.scans == 0
    bench.owner.on_worker_died(0.0, WORKER[0], agent_id(FAR), "its node is dead")
    assert memory.scans > 0, "only a node takes objects with it"


def test_a_thread_may_put_while_the_objects_of_a_lost_node_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    memory = bench.owner.memory
    object_id = bench.ids() + bytes(4)
    bench.owner.put(object_id, (STORED, 1 << 20, FAR, ()))
    ref = bench.ref(object_id)
    bench.turn()

    def and_meanwhile(node_id: bytes) -> bytes:
        memory[bench.ids() + bytes(4)] = (STORED, 1 << 20, FAR, ())
        return agent_id(node_id)

    monkeypatch.setattr(recovery, "agent_id", and_meanwhile)
    bench.owner.on_worker_died(0.0, WORKER[0], agent_id(FAR), "its node is dead")
    assert ref.binary() in bench.owner.lost


def test_queues_that_have_nothing_left_are_forgotten() -> None:
    bench = Bench()
    now, returned = 0.0, 0
    for n in range(1, 51):
        refs, effects = bench.call(demand=ResourceSet.of({"CPU": n / 100}))
        if n % 5 == 0:
            bench.does("cancel", refs[0].binary(), now=now)  # the lease comes when nobody wants it any more
        lease, _ = bench.grant(effects)
        if n % 3 == 0:
            bench.hears("lease_lost", lease, "killed", now=now)
            bench.does("cancel", refs[0].binary(), now=now)
        elif n % 5:
            bench.done(lease, refs[0], (INLINE, b"1"))
        now += 1.0
        returned += len(sent(bench.does("on_timer", (IDLE_TIMER,), now=now), ReturnLease))
    assert len(bench.owner.leases.queues) <= 2 and returned > 20
    bench.does("on_timer", (IDLE_TIMER,), now=now + 1)
    bench.does("on_timer", (IDLE_TIMER,), now=now + 2)
    assert not bench.owner.leases.queues and not bench.owner.leases.leases


def test_a_lease_that_comes_for_a_forgotten_queue_goes_back() -> None:
    bench = Bench()
    refs, effects = bench.call()
    bench.does("cancel", refs[0].binary())
    assert sent(bench.does("on_timer", (IDLE_TIMER,), now=1.0), CancelLease)
    assert not bench.owner.leases.queues
    lease, effects = bench.grant(effects)
    assert [m.lease_id for _, m in sent(effects, ReturnLease)] == [lease]


def test_a_queue_that_no_node_can_serve_is_kept_until_its_grace_is_over() -> None:
    bench = Bench(infeasible_grace_s=5.0)
    refs, effects = bench.call()
    [(_, request)] = sent(effects, RequestLease)
    effects = bench.hears("lease_rejected", request.request_id, "infeasible", "it asks for 9 CPU")
    bench.does("on_timer", (IDLE_TIMER,), now=1.0)
    assert len(bench.owner.leases.queues) == 1
    bench.does("cancel", refs[0].binary(), now=1.0)
    bench.does("on_timer", (IDLE_TIMER,), now=2.0)
    [again] = [key for _, key in timers(effects) if key[0] == INFEASIBLE_TIMER]
    bench.does("on_timer", again, now=2.0)
    bench.does("on_timer", (IDLE_TIMER,), now=3.0)
    assert not bench.owner.leases.queues


def test_the_run_times_of_so_many_functions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_RUN_TIMES_MAX", 3)
    bench = Bench()
    lease = 0
    for n in range(5):
        task_id = bench.ids()
        template = TaskTemplate(bytes([n]) * 16, "fun", ResourceSet.of({"CPU": 1}), 1, 3, None)
        bench.owner.submit(0.0, Task(task_id, template, b"p", (), (), (return_id(task_id, 1),), 1))
        effects = bench.turn()
        lease = lease or bench.grant(effects)[0]
        bench.done(lease, bench.ref(return_id(task_id, 1)), (INLINE, b"1"))
    assert list(bench.owner.leases.run_us) == [bytes([n]) * 16 for n in (2, 3, 4)]


def test_listeners_that_gave_up_are_forgotten_when_the_next_one_comes() -> None:
    waiters = Waiters([])
    stays = Waiter(1)
    waiters.listen(stays, 0, 0)
    for _ in range(50):
        waiter = Waiter(1)
        waiters.listen(waiter, 0, 0)
        waiter.done = True  # its time is over
    assert len(waiters._listeners) == 2 and stays in waiters._listeners


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_generator_that_nobody_reads_is_looked_at_when_something_happens_to_it(cancelled: bool) -> None:
    bench = Generating()
    if cancelled:
        bench.completion = None
    bench.drop()
    assert not bench.owner.unread and list(bench.owner.streams) == [bench.task_id]
    bench.completion = None
    assert len(sent(bench.turn(), CancelTask)) == (not cancelled), "nobody wants its end any more"
    assert not bench.owner.unread and list(bench.owner.streams) == [bench.task_id]
    bench.over()
    assert bench.at_rest()


# -- the store ------------------------------------------------------------------------------------------------------


class Counting(Arena):
    """An arena that counts how often somebody asked it for room."""

    asked = 0

    def allocate(self, size: int) -> tuple[int, bool] | None:
        self.asked += 1
        return super().allocate(size)


def object_id(n: int) -> bytes:
    return n.to_bytes(20, "big")


def test_room_is_looked_for_again_only_where_enough_has_become_free() -> None:
    bench = Store(pages=40, directories=())
    bench.store.arena = arena = Counting(40 * PAGE)
    for n in range(40):
        bench.sealed(object_id(n))
        if n % 2 or n in (20, 21):
            bench.store.copies[object_id(n)] = AGENT  # it can be dropped, the others can not
            bench.pin(object_id(n))
            bench.does("unpin", OTHER, [object_id(n)])
        else:
            bench.pin(object_id(n))
    arena.asked = 0
    assert [(ok, place) for _, _, ok, place in answers(bench.create(object_id(40), 3))] == [(True, (19 * PAGE, True))]
    assert arena.asked == 2, "at first, and when the last of the three was dropped"
    bench.create(object_id(41), 3)
    assert arena.asked == 3 and not bench.store._droppable, "all others are dropped in vain"


def test_the_end_of_a_process_takes_what_it_held_in_the_store_and_nothing_else() -> None:
    bench = Store(pages=8)
    for n, owner in enumerate((OWNER, OTHER, OWNER)):
        bench.sealed(object_id(n), owner=owner)
    lists = [stored.readers for stored in bench.store.objects.values()]
    bench.pin(object_id(0), peer=CLIENT)
    bench.pin(object_id(1), peer=OWNER)
    bench.create(object_id(3), peer=OWNER)
    bench.create(object_id(4), peer=OTHER)
    bench.pin(object_id(4), peer=OWNER)
    bench.does("drop_client", OWNER)
    objects = bench.store.objects
    assert list(objects) == [object_id(0), object_id(1), object_id(4)], "one of those that it owned is still read"
    assert objects[object_id(0)].freed and not objects[object_id(1)].pins and not objects[object_id(4)].readers
    assert objects[object_id(0)].readers is lists[0], "a list that is empty is not made anew"


# -- agents ---------------------------------------------------------------------------------------------------------


def test_an_agent_remembers_so_many_of_those_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(death_watch, "_DEAD_MAX", 5)
    monkeypatch.setattr(death_watch, "DEAD_NODES_MAX", 2)
    out: list[Any] = []
    deaths = DeathWatch(AGENT, out, lambda process: False, lambda agent: True)
    for n in range(1, 21):
        deaths.ended(process_id(NODE, n.to_bytes(4, "big")), "killed")
    for n in range(4):
        deaths.ended(agent_id(node(n)), "its node is dead")
    assert sum(deaths.is_dead(process_id(NODE, n.to_bytes(4, "big"))) for n in range(1, 21)) == 5
    assert [deaths.is_dead(process_id(node(n), b"work")) for n in range(4)] == [False, False, True, True]
    deaths.watch(DRIVER, process_id(NODE, b"\0\0\0\1"))
    assert [m.worker_id for _, m in sent(out, WorkerDied)] == [process_id(NODE, b"\0\0\0\1")], "which is known without a list"
    deaths.watch(DRIVER, process_id(node(0), b"work"))
    assert sent(out, WatchProcess) == [(agent_id(node(0)), WatchProcess(process_id(node(0), b"work")))]


def test_an_agent_remembers_so_many_dead_nodes_and_jobs() -> None:
    bench = Agent(dead_nodes_max=3, dead_jobs_max=3)
    for n in range(10):
        row = (node(n), agent_id(node(n)), "tcp://", "host", ONE, ONE, {})
        bench.does("on_cluster_view", CONTROL, [(*row, True)])
        bench.does("on_cluster_view", CONTROL, [(*row, False)])
        bench.does("on_job_finished", CONTROL, n.to_bytes(4, "big"), process(f"driver{n}"))
    transfer = bench.agent.transfer
    assert [len(table) for table in (transfer.pulls._dead, transfer._died_at, bench.agent.pool._finished)] == [3, 3, 3]
    assert bench.agent.output._readers == {}, "none of these jobs has written anything here"


def test_the_readers_of_finished_jobs_are_forgotten_with_the_last_worker_that_wrote() -> None:
    desk = Desk()
    for worker_id in (ONE_WORKER, TWO_WORKERS):
        desk.hear(b"a\n", worker_id=worker_id)
    desk.found()
    desk.desk.job_finished(5.0, JOB)
    desk.desk.ended(5.0, ONE_WORKER)
    desk.sent()
    desk.hear(b"b\n", worker_id=TWO_WORKERS)
    assert desk.sent() == [], "that the job is over is still known"
    desk.desk.ended(5.0, TWO_WORKERS)
    assert desk.desk._readers == {}
    desk.tick()
    desk.desk.drained(5.0, [], JOB, DRIVER, 7)
    desk.sent()
    desk.hear(b"c\n", worker_id=ONE_WORKER)  # the last words of a worker that was silent
    assert [message for _, message in desk.sent()] == [FindDriver(JOB)]
    desk.found(b"", wants=False)
    desk.desk.ended(5.0, ONE_WORKER)
    assert desk.desk._readers == {} and desk.sent() == []


def test_a_lease_makes_an_agent_look_at_no_worker_that_has_one() -> None:
    bench = Agent(cpus=4, prestart=1)
    bench.started(bench.does("start"))
    bench.started(bench.place(ACTOR))
    bench.does("on_return_lease", SECOND, bench.lease(SECOND).lease_id)
    pool = bench.agent.pool
    pool.workers = workers = Looked(pool.workers)
    for n in range(3):
        bench.agent.on_request_lease(0.0, SECOND, 100 + n, JOB, ONE, 0)
        [grant] = [m for _, m in sent(drain(bench.agent.out), LeaseGranted)]
        bench.agent.on_return_lease(0.0, SECOND, grant.lease_id)
        drain(bench.agent.out)
    assert workers.scans == 0
    bench.agent.check()


class Compared(bytes):
    """A process that counts how often it is compared with others."""

    comparisons = 0

    def __ne__(self, other: object) -> bool:
        Compared.comparisons += 1
        return super().__ne__(other)


def test_of_requests_that_are_alike_only_the_first_is_looked_at() -> None:
    scheduler, cpu = LeaseScheduler(ResourceSet.of({"CPU": 4})), ResourceSet.of({"CPU": 1})
    for n in range(50):
        assert not scheduler.request(Compared(DRIVER), n, (b"job1", b"job2")[n % 2], cpu, n % 3)
    scheduler.queue = queue = Looked(scheduler.queue)
    granted = scheduler.grant()
    assert [lease.request.depth for lease in granted] == [2, 2, 2, 2] and scheduler.grant() == []
    assert queue.scans == 0
    for lease in granted:
        scheduler.assign(lease.id, process(f"worker{lease.id}"))
    assert scheduler.to_reclaim() == [], "who asks has them all"
    assert Compared.comparisons == len(granted), "for one of the requests, not for each"


# -- the control ----------------------------------------------------------------------------------------------------


def node(n: int) -> bytes:
    return n.to_bytes(12, "big") + bytes(4)


def function(n: int) -> bytes:
    return n.to_bytes(16, "big")


def rows(bench: Control, table: str) -> int:
    [(count,)] = bench.database.execute(f"SELECT count(*) FROM {table}")
    return int(count)


def test_the_functions_of_a_job_are_forgotten_with_it_and_so_many_jobs_are_remembered() -> None:
    bench = Control(dead_jobs_max=3)
    for n in range(10):
        driver = process(f"driver{n}")
        job_id = bench.job(driver)
        bench.hears("export_function", 2, job_id, function(n), "fun", b"body", peer=driver)
        bench.hears("finish_job", 3, job_id, peer=driver)
    bench.hears("export_function", 4, job_id, F, "late", b"body", peer=driver)
    for _ in range(2):
        assert (rows(bench, "jobs"), rows(bench, "functions")) == (3, 0)
        assert (len(bench.gcs.jobs), len(bench.gcs.functions)) == (3, 0)
        bench.killed()
    assert bench.job(process("next")) == b"\0\0\0\x0b", "no number is given twice"
    assert not sent(bench.hears("process_died", process("driver9"), "it ended"), JobFinished), "which is known"


def test_what_an_actor_needs_that_outlives_its_job_stays_as_long_as_it() -> None:
    bench = Control(dead_jobs_max=1)
    job_id = bench.job()
    bench.hears("export_function", 2, job_id, F, "Counter", b"body")
    bench.alive(detached=True)
    bench.hears("finish_job", 3, job_id)
    for n in range(3):
        bench.hears("finish_job", 3, bench.job(process(f"driver{n}")))
    bench.killed()
    assert list(bench.gcs.functions) == [F] and job_id in bench.gcs.jobs and len(bench.gcs.jobs) == 2
    bench.hears("kill_actor", A, True)
    assert (rows(bench, "functions"), bench.gcs.functions) == (0, {})
    bench.hears("finish_job", 3, bench.job(process("last")))
    assert job_id not in bench.gcs.jobs and rows(bench, "jobs") == 1


def test_so_many_dead_nodes_are_remembered_once_all_have_heard_of_them() -> None:
    bench = Control(dead_nodes_max=2)
    told = []
    for n in range(6):
        node_id = node(n)
        bench.register(node_id, agent_id(node_id))
        bench.hears("leave_cluster", node_id, "SIGTERM", peer=agent_id(node_id))
        if n % 2:
            effects = bench.timer(10.0, VIEW_TIMER)
            told += [row[0] for _, view in sent(effects, ClusterView) for row in view.rows if not row[-1]]
    assert told == [node(n) for n in range(6)]
    assert bench.gcs.statistics()["dead_nodes"] == 2 and rows(bench, "nodes") == 3
    [(_, view)] = sent(bench.register(EAST, agent_id(EAST)), ClusterView)
    assert [(row[0], row[4]) for row in view.rows if not row[-1]] == [(node(4), {}), (node(5), {})]
    bench.killed()
    assert bench.gcs.statistics()["dead_nodes"] == 2


def test_the_end_of_a_process_makes_the_control_look_at_no_other_job() -> None:
    bench = Control()
    job_id = bench.job()
    bench.gcs.jobs = Looked(bench.gcs.jobs)
    bench.hears("process_died", WORKER[0], "killed")
    assert bench.gcs.jobs.scans == 0
    bench.hears("process_died", DRIVER, "killed")
    assert bench.gcs.jobs[job_id]["state"] == "DIED"


def test_the_dead_are_not_looked_at_when_an_actor_is_placed() -> None:
    bench = Control()
    job_id = bench.job()
    bench.alive()
    bench.hears("kill_actor", A, True)
    other = b"actor-b-----"
    manager = bench.gcs.actors
    manager.actors = actors = Looked(manager.actors)
    manager.on_register_actor(
        10.0, DRIVER, 5, other, job_id, "tcp://d", b"handle", "Counter", "", "space", False, False, 0, CPU, {}, b"", ("default",)
    )
    manager.on_create_actor(10.0, DRIVER, other, b"creation", b"")
    manager.on_actor_placed(10.0, AGENT, other, 1, NODE, WORKER[0], "tcp://w", 42)
    manager.place_waiting(10.0)
    manager.node_joined(10.0)
    manager.node_ended(10.0, AGENT, "silent")
    manager.job_finished(10.0, job_id)
    assert actors.scans == 0
