"""LeaseScheduler: who gets resources next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base.resources import ResourceSet
from zray.base.wire_actors import PlaceActor
from zray.core.scheduler import LeaseScheduler
from zray.exceptions import InvariantError

from .reading import process

P, Q = process("p"), process("q")
JOB = b"job1"


def cpus(amount: float, **others: float) -> ResourceSet:
    return ResourceSet.of({"CPU": amount, **others})


def scheduler(amount: float = 2, **others: float) -> LeaseScheduler:
    return LeaseScheduler(cpus(amount, **others))


def ask(s: LeaseScheduler, request_id: int, amount: float = 1, owner: bytes = P, depth: int = 0, **others: float) -> str:
    reason = s.request(owner, request_id, JOB, cpus(amount, **others), depth)
    s.check()
    return reason


def granted(s: LeaseScheduler) -> list[int]:
    leases = s.grant()
    s.check()
    return [lease.request.id for lease in leases]


def test_requests_are_granted_in_order_while_resources_last() -> None:
    s = scheduler(2)
    for request_id in (1, 2, 3):
        ask(s, request_id)
    assert granted(s) == [1, 2]
    s.end(1)
    assert granted(s) == [3]


def test_the_deepest_goes_first_then_the_oldest() -> None:
    s = scheduler(3)
    for request_id, depth in ((1, 0), (2, 5), (3, 5), (4, 9)):
        ask(s, request_id, depth=depth)
    assert granted(s) == [4, 2, 3]


def ask_for(s: LeaseScheduler, job: bytes, owner: bytes, request_id: int, depth: int, amount: float = 1) -> None:
    assert s.request(owner, request_id, job, cpus(amount), depth) == ""


def test_jobs_share_a_node_evenly_however_much_and_how_deep_each_asks_for() -> None:
    s, many, one = scheduler(4), b"job1", b"job2"
    owners = [process(f"p{number}") for number in range(8)]
    for number, owner in enumerate(owners):
        ask_for(s, many, owner, number, depth=9)
    ask_for(s, one, Q, 100, depth=1)
    ask_for(s, one, Q, 101, depth=1)
    assert granted(s) == [0, 100, 1, 101]
    served = {many: 0, one: 0}
    for number in range(200, 300):  # whose turn is over asks again at once
        lease = next(iter(s.leases.values()))
        s.end(lease.id)
        request = lease.request
        served[request.job_id] += 1
        ask_for(s, request.job_id, request.owner, number, request.depth)
        assert len(granted(s)) == 1
    assert served == {many: 50, one: 50}


def test_what_a_job_can_not_use_is_left_to_the_others() -> None:
    s = scheduler(4)
    ask_for(s, b"job1", P, 1, depth=0, amount=4)
    assert granted(s) == [1]
    ask_for(s, b"job2", Q, 2, depth=0, amount=4)  # it comes first, and does not fit
    ask_for(s, b"job1", P, 3, depth=0, amount=0)
    assert granted(s) == [3]


def test_blocked_tasks_do_not_count_for_their_job() -> None:
    s = scheduler(1)
    ask_for(s, b"job1", P, 1, depth=0)
    assert granted(s) == [1]
    s.assign(1, b"w")
    s.on_blocked(b"w")
    ask_for(s, b"job1", P, 2, depth=1)
    ask_for(s, b"job2", Q, 3, depth=0)
    assert granted(s) == [2], "else a tree of tasks would not get on"


def test_leases_are_called_back_from_the_job_that_has_most() -> None:
    s = scheduler(3)
    for request_id, job in ((1, b"job1"), (2, b"job2"), (3, b"job2")):
        ask_for(s, job, P, request_id, depth=0)
    assert granted(s) == [1, 2, 3]
    for number in (1, 2, 3):
        s.assign(number, b"w%d" % number)
    ask_for(s, b"job3", Q, 4, depth=0)
    assert [lease.request.job_id for lease in s.to_reclaim()] == [b"job2"]


def test_one_that_does_not_fit_is_passed_over() -> None:
    s = scheduler(2)
    ask(s, 1, 1)
    ask(s, 2, 2)
    ask(s, 3, 0.5)
    assert granted(s) == [1, 3]


def test_what_can_never_fit_is_refused_at_once_with_the_reason() -> None:
    s = scheduler(2)
    assert ask(s, 1, 1, GPU=2) == "it asks for 2 GPU where the largest node has 0"
    assert s.queue == {}


def test_a_cancelled_request_is_forgotten() -> None:
    s = scheduler(1)
    ask(s, 1)
    s.cancel(P, 1)
    s.cancel(P, 99)
    assert granted(s) == []


def test_requests_of_two_owners_may_have_the_same_number() -> None:
    s = scheduler(2)
    ask(s, 1, owner=P)
    ask(s, 1, owner=Q)
    s.cancel(Q, 1)
    assert granted(s) == [1] and s.leases[1].request.owner == P


def test_a_blocked_worker_lends_its_cpu_but_not_its_other_resources() -> None:
    s = scheduler(1, GPU=1)
    ask(s, 1, 1, GPU=1)
    granted(s)
    s.assign(1, b"w")
    assert s.on_blocked(b"w") and not s.on_blocked(b"w")
    s.check()
    ask(s, 2, 1)
    ask(s, 3, 0, GPU=1)
    assert granted(s) == [2]


def test_a_worker_that_wakes_takes_its_cpu_back_below_zero_and_nothing_is_granted_until_it_is_balanced() -> None:
    s = scheduler(1)
    ask(s, 1)
    granted(s)
    s.assign(1, b"w")
    s.on_blocked(b"w")
    ask(s, 2)
    assert granted(s) == [2]
    s.on_unblocked(b"w")
    s.check()
    assert s.resources.available["CPU"] == -10_000
    ask(s, 3)
    s.end(2)
    assert granted(s) == []
    s.end(1)
    assert granted(s) == [3]


def test_a_lease_that_ends_while_its_worker_is_blocked_gives_back_only_what_it_still_had() -> None:
    s = scheduler(1, GPU=1)
    ask(s, 1, 1, GPU=1)
    granted(s)
    s.assign(1, b"w")
    s.on_blocked(b"w")
    assert s.end(1) is not None and s.end(1) is None
    s.check()
    assert s.resources.available == dict(s.resources.total)
    s.on_unblocked(b"w")  # late word of a worker without a lease
    s.check()


def test_leases_are_called_back_for_other_owners_once() -> None:
    s = scheduler(1)
    ask(s, 1, owner=P)
    granted(s)
    ask(s, 2, owner=Q)
    assert s.to_reclaim() == [], "it has no worker yet: its grant is still on the way"
    s.assign(1, b"w")
    assert [lease.id for lease in s.to_reclaim()] == [1]
    assert s.to_reclaim() == []


def test_an_owner_is_not_robbed_for_its_own_requests_of_the_same_shape() -> None:
    s = scheduler(1)
    ask(s, 1)
    granted(s)
    s.assign(1, b"w")
    ask(s, 2)
    assert s.to_reclaim() == []
    ask(s, 3, 0.5)
    assert [lease.id for lease in s.to_reclaim()] == [1], "but for one of another shape"


def test_blocked_leases_are_not_called_back() -> None:
    s = scheduler(1)
    ask(s, 1, owner=P)
    granted(s)
    s.assign(1, b"w")
    s.on_blocked(b"w")
    ask(s, 2, owner=Q)
    ask(s, 3, owner=Q)
    granted(s)
    assert s.to_reclaim() == []


def test_a_dead_owner_loses_its_requests_and_its_leases_are_named() -> None:
    s = scheduler(1)
    ask(s, 1, owner=P)
    ask(s, 2, owner=P)
    ask(s, 3, owner=Q)
    granted(s)
    assert s.holds(P) and s.holds(Q) and not s.holds(process("r"))
    assert [lease.id for lease in s.drop_owner(P)] == [1]
    s.end(1)
    assert granted(s) == [3]


def place(s: LeaseScheduler, number: int, placement: dict[str, int], resources: dict[str, int]) -> str:
    actor = PlaceActor(b"actor-%06d" % number, 1, JOB, False, placement, resources, True, b"")
    reason = s.place(P, number, actor)
    s.check()
    return reason


def test_an_actor_waits_for_what_it_holds_and_not_for_what_its_node_must_have() -> None:
    s = scheduler(1)
    ask(s, 1)
    assert granted(s) == [1]
    assert place(s, 2, {"CPU": 10_000}, {}) == "" and place(s, 3, {}, {"CPU": 10_000}) == ""
    assert granted(s) == [2], "it holds nothing"
    s.end(1)
    assert granted(s) == [3]


def test_an_actor_that_can_never_be_here_is_refused_with_the_reason() -> None:
    s = scheduler(1)
    assert place(s, 1, {"CPU": 20_000}, {}) == "it asks for 2 CPU where the largest node has 1"
    assert place(s, 2, {}, {"GPU": 10_000}) == "it asks for 1 GPU where the largest node has 0"
    assert s.queue == {}


def test_the_lease_of_an_actor_is_never_called_back() -> None:
    s = scheduler(2)
    place(s, 1, {}, {"CPU": 10_000})
    ask(s, 2, owner=P)
    granted(s)
    s.assign(1, b"w1")
    s.assign(2, b"w2")
    ask(s, 3, owner=Q)
    ask(s, 4, owner=Q)
    assert [lease.id for lease in s.to_reclaim()] == [2]


def test_tasks_are_called_back_for_an_actor() -> None:
    s = scheduler(1)
    ask(s, 1, owner=Q)
    granted(s)
    s.assign(1, b"w")
    place(s, 2, {}, {"CPU": 10_000})
    assert [lease.id for lease in s.to_reclaim()] == [1]


def test_check_sees_resources_that_do_not_add_up() -> None:
    s = scheduler(1)
    s.resources.available["CPU"] = 5
    with pytest.raises(InvariantError, match="CPU does not add up"):
        s.check()


walks = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "place", "grant", "assign", "end", "block", "unblock", "cancel", "reclaim", "drop"]),
        st.integers(0, 5),
        st.sampled_from([0.5, 1, 2]),
        st.sampled_from([P, Q]),
    ),
    max_size=80,
)


@given(walks)
def test_random_walk_what_is_free_and_what_is_lent_is_all_there_is(walk: list[tuple[str, int, float, bytes]]) -> None:
    s = scheduler(3, GPU=1)
    for number, (what, index, amount, owner) in enumerate(walk):
        leases = list(s.leases.values())
        lease = leases[index % len(leases)] if leases else None
        if what == "ask":
            ask(s, number, amount, owner, depth=index, GPU=index % 2)
        elif what == "place":
            place(s, number, {"CPU": 10_000 * index}, {"CPU": int(10_000 * amount)})
        elif what == "grant":
            for new in s.grant():
                assert s.leases[new.id] is new
            s.check()
            for request in s.queue.values():
                assert not s.resources.fits(request.demand), "no request waits for what is free"
        elif what == "cancel":
            s.cancel(owner, index)
        elif what == "reclaim":
            for wanted in s.to_reclaim():
                assert wanted.worker is not None and not wanted.blocked and wanted.request.actor is None
        elif what == "drop":
            for held in s.drop_owner(owner):
                s.end(held.id)
        elif lease is not None:
            worker = b"w%d" % lease.id
            if what == "assign" and lease.worker is None:
                s.assign(lease.id, worker)
            elif what == "block":
                s.on_blocked(worker)
            elif what == "unblock":
                s.on_unblocked(worker)
            elif what == "end":
                s.end(lease.id)
        s.check()
    for lease_id in list(s.leases):
        s.end(lease_id)
        s.check()
    assert s.resources.available == dict(s.resources.total) and not s.by_worker
