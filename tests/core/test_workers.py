"""WorkerPool: which process runs a lease."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base.config import Config
from zray.base.wire import ExitWorker
from zray.core.effects import KILL_WORKER, START_WORKER
from zray.core.worker_starts import START_TIMER
from zray.core.workers import WorkerPool, WorkerState
from zray.exceptions import InvariantError

from .reading import drain, process, sent, timers, verbs

J, K = b"job1", b"job2"


class Bench:
    def __init__(self, prestart: int = 0, workers_max: int = 10, worker_idle_s: float = 2.0, **limits: Any) -> None:
        self.out: list[Any] = []
        config = Config(workers_max=workers_max, worker_idle_s=worker_idle_s, **limits)
        self.pool = WorkerPool(prestart, process("node"), config, self.out)

    def does(self, event: str, *args: Any) -> Any:
        result = getattr(self.pool, event)(*args)
        self.pool.check()
        return result

    def started(self) -> list[bytes]:
        return [e[0] for e in verbs(drain(self.out), START_WORKER)]

    def asked(self) -> list[bytes]:
        return [peer for peer, _ in sent(drain(self.out), ExitWorker)]

    def killed(self) -> list[bytes]:
        return [e[0] for e in verbs(drain(self.out), KILL_WORKER)]

    def ready(self, worker_id: bytes, now: float = 0.0) -> Any:
        return self.does("on_ready", now, worker_id, "sim://", 1)


def test_the_pool_is_filled_before_anybody_asks() -> None:
    bench = Bench(prestart=3)
    bench.does("prestart")
    assert len(bench.started()) == 3
    bench.does("prestart")
    assert bench.started() == []


def test_worker_ids_are_unique_in_the_pool_and_between_nodes() -> None:
    bench, other = Bench(prestart=3), WorkerPool(3, process("other"), Config(), [])
    bench.does("prestart")
    other.prestart()
    ids = [*bench.pool.workers, *other.workers]
    assert len(dict.fromkeys(ids)) == 6
    assert len(dict.fromkeys(i[:10] for i in ids)) == 6, "task ids begin with the first ten bytes"


def test_a_lease_takes_an_idle_worker_of_its_job_before_a_fresh_one() -> None:
    bench = Bench(prestart=2)
    bench.does("prestart")
    first, second = bench.started()
    bench.ready(first)
    bench.ready(second)
    assert bench.does("lease", 1, J).id == first
    assert bench.does("lease", 2, J).id == second
    bench.does("on_returned", 1.0, second)
    assert bench.does("lease", 3, J).id == second


def test_workers_are_never_shared_between_jobs() -> None:
    bench = Bench(prestart=1)
    bench.does("prestart")
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("lease", 1, J)
    bench.does("on_returned", 1.0, worker)
    assert bench.does("lease", 2, K) is None
    assert len(bench.started()) == 1, "a new worker starts for the other job"


def test_a_worker_is_never_lent_to_itself() -> None:
    bench = Bench(prestart=1, workers_max=2)
    bench.does("prestart")
    [worker] = bench.started()
    bench.ready(worker)
    assert bench.does("lease", 1, J, worker) is None
    [second] = bench.started()
    assert bench.ready(second)[0] == 1
    assert bench.does("lease", 2, J, second).id == worker
    assert bench.does("lease", 3, J, worker) is None
    assert bench.does("on_returned", 1.0, worker) is None
    assert bench.does("on_returned", 1.0, second)[0] == 3


def test_leases_wait_in_order_and_starting_workers_are_counted() -> None:
    bench = Bench()
    assert bench.does("lease", 1, J) is None and bench.does("lease", 2, J) is None
    first, second = bench.started()
    lease_id, worker = bench.ready(second)
    assert (lease_id, worker.id, worker.state) == (1, second, WorkerState.LEASED)
    assert bench.ready(first)[0] == 2
    assert bench.ready(first) is None, "saying it twice is harmless"
    assert bench.ready(b"unknown") is None


def test_a_returned_worker_serves_the_next_lease_of_its_job() -> None:
    bench = Bench(workers_max=1)
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("lease", 2, J)
    assert bench.started() == []
    assert bench.does("on_returned", 1.0, worker)[0] == 2


def test_at_the_limit_an_idle_worker_of_another_job_is_asked_to_make_room() -> None:
    bench = Bench(workers_max=1)
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("on_returned", 1.0, worker)
    assert bench.does("lease", 2, K) is None
    assert bench.asked() == [worker]
    assert bench.does("lease", 3, J) is None, "nothing is lent to a worker that leaves"
    assert bench.asked() == [], "one that leaves is enough for the moment"
    bench.does("on_exited", 0.0, worker)
    assert len(bench.started()) == 1


def test_a_worker_that_is_returned_to_another_job_makes_room_for_the_lease_that_waits() -> None:
    """Without this the lease would wait for ever beside an idle worker that it may not have."""
    bench = Bench(prestart=1, workers_max=1)
    bench.does("prestart")
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("lease", 1, J)
    assert bench.does("lease", 2, K) is None
    assert bench.does("on_returned", 1.0, worker) is None
    assert bench.asked() == [worker]
    bench.does("on_exited", 0.0, worker)
    [fresh] = bench.started()
    assert bench.ready(fresh)[0] == 2


def test_filling_the_pool_stays_within_the_limit() -> None:
    """Workers that were told to end are still processes: they count until their exit is seen."""
    bench = Bench(prestart=2, workers_max=2)
    bench.does("prestart")
    first, second = bench.started()
    bench.ready(first)
    bench.ready(second)
    bench.does("lease", 1, J)
    bench.does("kill_job", J)
    bench.does("prestart")
    assert bench.started() == []
    bench.does("on_exited", 0.0, first)
    bench.does("prestart")
    assert len(bench.started()) == 1


def test_one_who_waits_no_more_is_not_served() -> None:
    bench = Bench()
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.does("cancel", 1)
    assert bench.ready(worker) is None
    assert bench.pool.workers[worker].state is WorkerState.IDLE


def test_the_end_of_a_job_ends_its_workers_and_its_waiting() -> None:
    bench = Bench()
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("lease", 2, J)
    bench.does("kill_job", J)
    assert bench.killed() == [worker] and bench.pool.waiting == {}
    assert bench.does("on_returned", 1.0, worker) is None, "it is ending"
    assert bench.does("on_exited", 0.0, worker).id == worker
    assert bench.does("on_exited", 0.0, worker) is None


def test_a_worker_that_dies_while_starting_is_replaced_for_the_lease_that_waits() -> None:
    bench = Bench()
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.does("on_exited", 0.0, worker)
    [second] = bench.started()
    assert bench.ready(second)[0] == 1


def test_idle_workers_above_the_prestarted_number_are_ended_when_their_time_is_over() -> None:
    bench = Bench(prestart=1, worker_idle_s=2.0)
    for lease_id in (1, 2, 3):
        bench.does("lease", lease_id, J)
    for worker in bench.started():
        bench.ready(worker)
    ids = list(bench.pool.workers)
    for at, worker in zip((1.0, 2.0, 3.0), ids, strict=True):
        bench.does("on_returned", at, worker)
    assert bench.does("reap", 3.0) is True
    assert bench.asked() == [ids[0]]
    assert bench.does("reap", 9.0) is True
    assert bench.asked() == [ids[1]], "one is kept"
    assert bench.pool.workers[ids[0]].state is WorkerState.LEAVING


def test_a_worker_that_was_asked_to_leave_and_does_nothing_is_ended() -> None:
    bench = Bench(prestart=0, worker_idle_s=2.0)
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("on_returned", 1.0, worker)
    assert bench.does("reap", 3.0) is True and bench.asked() == [worker]
    assert bench.does("reap", 5.0) is True
    assert bench.does("reap", 7.0) is True
    assert bench.pool.workers[worker].state is WorkerState.ENDING
    assert bench.does("reap", 9.0) is False


def test_a_worker_that_owns_what_others_need_stays_and_is_asked_again_later() -> None:
    bench = Bench(worker_idle_s=2.0)
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("on_returned", 1.0, worker)
    bench.does("reap", 3.0)
    assert bench.asked() == [worker]
    assert bench.does("lease", 2, J) is None
    assert bench.does("on_stays", 4.0, worker)[0] == 2, "it serves those who came meanwhile"
    assert bench.does("on_stays", 4.0, worker) is None
    bench.does("on_returned", 5.0, worker)
    bench.does("reap", 6.0)
    assert bench.asked() == []
    bench.does("reap", 7.0)
    assert bench.asked() == [worker]


def test_a_worker_that_stays_is_not_asked_again_at_once_to_make_room() -> None:
    bench = Bench(workers_max=1)
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("on_returned", 1.0, worker)
    bench.does("lease", 2, K)
    assert bench.asked() == [worker]
    bench.does("on_stays", 2.0, worker)
    assert bench.asked() == []


# -- actors ---------------------------------------------------------------------------------------------------------


def test_an_actor_takes_a_fresh_worker_and_another_is_started_ahead() -> None:
    bench = Bench(prestart=1)
    bench.does("prestart")
    [worker] = bench.started()
    bench.ready(worker)
    assert bench.does("dedicate", 1, J).id == worker
    assert len(bench.started()) == 1
    assert bench.pool.workers[worker].state is WorkerState.LEASED


def test_an_actor_gets_a_worker_that_nobody_has_used() -> None:
    bench = Bench()
    bench.does("lease", 1, J)
    [used] = bench.started()
    bench.ready(used)
    bench.does("on_returned", 1.0, used)
    assert bench.does("dedicate", 2, J) is None
    [fresh] = bench.started()
    bench.does("lease", 3, J)
    bench.does("lease", 4, J)
    [for_task] = bench.started()
    lease_id, worker = bench.ready(fresh)
    assert (lease_id, worker.id, worker.job_id) == (2, fresh, J), "it is not given to the task that waits"
    assert bench.ready(for_task)[0] == 4


def test_no_task_gets_the_worker_of_an_actor_not_even_when_the_actor_is_gone() -> None:
    bench = Bench(worker_idle_s=2.0)
    bench.does("dedicate", 1, J)
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("lease", 2, J)
    assert bench.does("on_returned", 1.0, worker) is None
    assert bench.asked() == [worker]
    assert bench.does("on_stays", 1.5, worker) is None
    assert bench.does("lease", 3, J) is None
    assert bench.asked() == [], "it is not in anybody's way"
    assert bench.does("reap", 3.5) is True and bench.asked() == [worker]
    assert bench.does("on_exited", 0.0, worker).id == worker


def test_actors_and_tasks_do_not_take_each_others_places() -> None:
    bench = Bench(prestart=1, workers_max=1, actors_max=2)
    bench.does("prestart")
    bench.started()
    bench.does("dedicate", 1, J)
    assert len(bench.started()) == 1 and not bench.pool.full_of_actors(0)
    bench.does("dedicate", 2, J)
    assert len(bench.started()) == 1 and bench.pool.full_of_actors(0)
    assert bench.pool.full(), "by the worker that was started ahead"


def test_only_so_many_workers_start_for_actors_at_the_same_time() -> None:
    bench = Bench(actor_starts_max=2)
    for lease_id in (1, 2, 3, 4):
        bench.does("dedicate", lease_id, J)
    first, second = bench.started()
    assert bench.ready(second)[0] == 2
    [third] = bench.started()
    bench.does("cancel", 1)
    assert bench.killed() == [first]
    bench.does("on_exited", 0.0, first)
    [fourth] = bench.started()
    assert (bench.ready(fourth)[0], bench.ready(third)[0]) == (4, 3)
    assert bench.ready(first) is None and not bench.pool.actors_waiting


def test_a_worker_that_dies_before_it_is_an_actor_is_replaced() -> None:
    bench = Bench()
    bench.does("dedicate", 7, J)
    [worker] = bench.started()
    bench.does("on_exited", 0.0, worker)
    [second] = bench.started()
    lease_id, served = bench.ready(second)
    assert (lease_id, served.dedicated, served.job_id) == (7, True, J)


def test_the_end_of_a_job_leaves_detached_actors_and_those_that_are_not_born_yet() -> None:
    """Whether these are to be born is not for the pool to say."""
    bench = Bench()
    bench.does("dedicate", 1, J)
    bench.does("dedicate", 2, J)
    bench.does("dedicate", 3, J)
    plain, lasting, _unborn = bench.started()
    bench.ready(plain)
    bench.ready(lasting)[1].lasting = True
    bench.does("kill_job", J)
    assert bench.killed() == [plain]


def test_what_a_detached_actor_waits_for_outlives_its_job() -> None:
    bench = Bench(workers_max=1)
    bench.does("dedicate", 1, J)
    [actor] = bench.started()
    bench.ready(actor)[1].lasting = True
    bench.does("lease", 2, J, process("driver"))
    bench.does("lease", 3, J, actor)
    [worker] = bench.started()
    bench.does("kill_job", J)
    assert list(bench.pool.waiting) == [3]
    assert bench.ready(worker)[0] == 3


def test_workers_of_a_job_that_is_over_are_not_kept_ahead() -> None:
    """A detached actor may have had tasks run there after the end of its job; nobody else can use them."""
    bench = Bench(prestart=1, worker_idle_s=2.0)
    bench.does("kill_job", J)
    bench.does("lease", 1, J)
    [worker] = bench.started()
    bench.ready(worker)
    bench.does("on_returned", 1.0, worker)
    assert bench.does("reap", 2.0) is True and bench.asked() == []
    bench.does("reap", 3.0)
    assert bench.asked() == [worker]


def test_workers_of_actors_do_not_count_as_those_that_are_kept() -> None:
    bench = Bench(prestart=1, worker_idle_s=2.0)
    bench.does("prestart")
    [spare] = bench.started()
    bench.does("dedicate", 1, J)
    [worker] = bench.started()
    bench.ready(spare)
    bench.ready(worker)
    assert bench.does("reap", 9.0) is False and bench.asked() == []


def test_check_sees_a_pool_above_its_limit() -> None:
    bench = Bench(prestart=2, workers_max=2)
    bench.does("prestart")
    bench.pool._start()
    with pytest.raises(InvariantError, match="more than the limit"):
        bench.pool.check()


walks = st.lists(
    st.tuples(
        st.sampled_from(
            ["lease", "lease", "ready", "ready", "return", "exit", "stays", "cancel", "reap", "kill_job", "dedicate", "dedicate"]
        ),
        st.integers(0, 6),
        st.sampled_from([J, K]),
    ),
    max_size=80,
)


@given(st.integers(0, 3), st.integers(1, 4), walks)
def test_random_walk_every_lease_gets_a_worker_in_the_end(prestart: int, room: int, walk: list[Any]) -> None:
    bench = Bench(prestart=prestart, workers_max=max(prestart, room), actor_starts_max=2)
    pool = bench.pool
    pool.prestart()
    held: dict[bytes, int] = {}  # worker -> lease
    jobs: dict[int, bytes] = {}
    actors: dict[int, None] = {}
    now = 0.0

    def serve(served: Any) -> None:
        if served is not None:
            lease_id, worker = served
            assert jobs[lease_id] == worker.job_id and worker.id not in held
            assert worker.dedicated == (lease_id in actors)
            held[worker.id] = lease_id

    def step(what: str, index: int, job: bytes, lease_id: int) -> None:
        workers = list(pool.workers.values())
        worker = workers[index % len(workers)] if workers else None
        if what == "lease":
            jobs[lease_id] = job
            found = pool.lease(lease_id, job)
            serve(None if found is None else (lease_id, found))
        elif what == "dedicate":
            jobs[lease_id] = job
            actors[lease_id] = None
            found = pool.dedicate(lease_id, job)
            serve(None if found is None else (lease_id, found))
        elif what == "cancel" and pool.actors_waiting and index > 3:
            pool.cancel(next(iter(pool.actors_waiting)))
        elif what == "cancel" and pool.waiting:
            pool.cancel(list(pool.waiting)[index % len(pool.waiting)])
        elif what == "reap":
            pool.reap(now)
        elif what == "kill_job":
            for worker_id in [w for w, i in held.items() if jobs[i] == job]:
                del held[worker_id]
            pool.kill_job(job)
        elif worker is None:
            return
        elif what == "ready":
            serve(pool.on_ready(now, worker.id, "", 1))
        elif what == "return":
            if held.pop(worker.id, None) is not None:
                serve(pool.on_returned(now, worker.id))
        elif what == "stays":
            serve(pool.on_stays(now, worker.id))
        elif what == "exit":
            held.pop(worker.id, None)
            pool.on_exited(0.0, worker.id)
            pool.on_rested()
        pool.check()

    for number, (what, index, job) in enumerate(walk):
        now += 1.0
        step(what, index, job, number + 1)
    for _ in range(200):  # processes start and end as they were told, and leases end: all who wait are served
        if not pool.statistics()["leases_waiting"]:
            break
        for worker in list(pool.workers.values()):
            if worker.state is WorkerState.STARTING:
                serve(pool.on_ready(now, worker.id, "", 1))
            elif worker.state in (WorkerState.ENDING, WorkerState.LEAVING):
                pool.on_exited(0.0, worker.id)
                pool.on_rested()
            elif worker.id in held:
                del held[worker.id]
                serve(pool.on_returned(now, worker.id))
            pool.check()
    assert not pool.statistics()["leases_waiting"]


# -- workers that can not be started -----------------------------------------------------------------------------------


def rests(bench: Bench) -> list[float]:
    """When the rests that have begun will be over."""
    return [at for at, key in timers(drain(bench.out)) if key == (START_TIMER,)]


def test_after_a_worker_that_was_never_ready_one_alone_is_tried_after_longer_and_longer_rests() -> None:
    bench = Bench(worker_start_rest_ms=1000.0, worker_start_rest_max_s=5.0)
    for lease_id in range(3):
        bench.does("lease", lease_id, J)
    now = 10.0
    first, second, third = bench.started()
    for worker_id in (first, second, third):
        bench.does("on_exited", now, worker_id, "no room")
    assert rests(bench) == [11.0], "the first may be bad luck; failures during a rest are not counted"
    assert bench.pool.starts.failures == 2
    for rest_s in (2.0, 4.0, 5.0, 5.0):
        bench.does("on_rested")
        (worker_id,) = bench.started()
        bench.does("on_exited", now, worker_id, "no room")
        effects = drain(bench.out)
        assert [at for at, _ in timers(effects)] == [now + rest_s] and not verbs(effects, START_WORKER)
    assert not bench.pool.starts.hopeless()


def test_a_worker_that_is_ready_ends_the_caution() -> None:
    bench = Bench(prestart=2)
    for lease_id in range(3):
        bench.does("lease", lease_id, J)
    for worker_id in bench.started():
        bench.does("on_exited", 0.0, worker_id, "no room")
    assert bench.started() == []
    bench.does("on_rested")
    (worker_id,) = bench.started()
    assert bench.ready(worker_id)[0] == 0
    assert bench.pool.starts.failures == 0 and len(bench.started()) == 2


def test_a_worker_that_is_ready_during_a_rest_ends_it_and_the_next_failures_count_again() -> None:
    bench = Bench()
    for lease_id in range(4):
        bench.does("lease", lease_id, J)
    first, second, third, fourth = bench.started()
    for worker_id in (first, second):
        bench.does("on_exited", 0.0, worker_id, "no room")
    bench.ready(third)
    bench.does("on_exited", 0.0, fourth, "no room")
    for _ in range(3):
        for worker_id in bench.started():
            bench.does("on_exited", 0.0, worker_id, "no room")
    assert bench.started() == [] and bench.pool.starts.failures > 1


def test_what_was_ended_on_purpose_has_not_failed() -> None:
    bench = Bench()
    bench.does("dedicate", 1, J)
    (worker_id,) = bench.started()
    bench.does("cancel", 1)
    assert bench.killed() == [worker_id]
    bench.does("on_exited", 0.0, worker_id, "killed")
    assert bench.pool.starts.failures == 0 and rests(bench) == []


def test_a_worker_that_is_never_ready_is_ended_and_has_failed() -> None:
    bench = Bench(worker_start_failures_max=1, worker_start_timeout_s=30.0)
    bench.does("lease", 1, J)
    (worker_id,) = bench.started()
    assert bench.does("on_late", worker_id) and bench.killed() == [worker_id]
    bench.does("on_exited", 0.0, worker_id, "killed by signal 9")
    assert bench.pool.starts.hopeless() and bench.pool.starts.reason == "it was not ready within 30 s"
