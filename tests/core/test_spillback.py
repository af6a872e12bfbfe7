"""Spillback: agents and owners of several nodes together; what one node can not run goes to another, and comes back."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from zray.base import wire
from zray.base.ids import agent_id, process_id
from zray.base.resources import ResourceSet
from zray.base.wire import (
    CONTROL,
    CancelLease,
    FreeObjects,
    LeaseGranted,
    LeaseRejected,
    RequestLease,
    ReturnLease,
    WatchProcess,
    WorkerDied,
)
from zray.base.wire_actors import ActorRefused
from zray.base.wire_nodes import ClusterView, LeaseRedirected, NodeRefused, ProcessGone
from zray.base.wire_transfer import FreePrimaries, PrimariesFreed
from zray.core.agent import HEARTBEAT_TIMER, SIGN_TIMER
from zray.core.effects import HANG_UP, KILL_WORKER, STOP
from zray.core.leases import IDLE_TIMER
from zray.exceptions import TaskUnschedulableError, WorkerCrashedError

from .reading import drain, sent, timers, verbs
from .spill_bench import ONE, Net, node

THERE = ResourceSet.of({"CPU": 1, "there": 0.1})
TWO = ResourceSet.of({"CPU": 2})


def net(**cpus: float) -> Net:
    """Nodes that know of one another."""
    joined = Net(**cpus)
    joined.views()
    joined.forget()
    return joined


# -- redirecting ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_here_runs_there() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    tasks = driver.call(2)
    assert sorted(driver.where(tasks)) == ["here", "there"]
    [(sender, receiver, redirect)] = both.sent(LeaseRedirected)
    assert (sender, receiver) == (agent_id(node("here")), driver.me)
    assert (redirect.agent, redirect.endpoint) == (agent_id(node("there")), "tcp://there")


def test_the_request_keeps_its_number_and_counts_its_hops() -> None:
    both = net(here=1, there=1)
    both.driver("here").call(demand=THERE)
    asked = [(receiver, message.request_id, message.hops) for _, receiver, message in both.sent(RequestLease)]
    assert asked == [(agent_id(node("here")), 1, 0), (agent_id(node("there")), 1, 1)]


def test_a_lease_from_elsewhere_goes_back_to_where_it_came_from() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    driver.finish(*driver.call(demand=THERE))
    both.now = 1.0
    driver.brain.on_timer(both.now, (IDLE_TIMER,))
    both.turn()
    assert [receiver for _, receiver, _ in both.sent(ReturnLease)] == [agent_id(node("there"))]
    assert both.agent("there").scheduler.leases == {}


def test_a_node_that_can_never_run_it_sends_it_on_even_if_all_others_are_full() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    first, second = driver.call(2, demand=THERE)
    assert driver.where([first, second]) == ["there", ""]
    driver.finish(first)
    assert driver.where([second]) == ["there"]


def test_when_all_are_full_it_waits_where_it_was_asked_for() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    tasks = driver.call(4)
    assert sorted(driver.where(tasks)) == ["", "", "here", "there"]
    assert len(both.agent("here").scheduler.queue) == 2 and not both.agent("there").scheduler.queue
    driver.finish(*(t for t in tasks if t.id in driver.pushed))
    assert all(driver.where(tasks[2:]))


def test_what_waits_here_goes_where_room_appears() -> None:
    both = net(here=1, there=1)
    other = both.driver("there")
    [occupied] = other.call()
    both.views()
    driver = both.driver("here")
    tasks = driver.call(2)
    assert sorted(driver.where(tasks)) == ["", "here"]
    other.finish(occupied)
    other.brain.on_timer(1.0, (IDLE_TIMER,))
    both.turn()
    both.forget()
    both.views()
    assert sorted(driver.where(tasks)) == ["here", "there"]
    assert len(both.sent(LeaseRedirected)) == 1
    assert not both.agent("here").scheduler.queue, "it does not wait in two places"


def test_room_that_was_used_between_two_views_is_found_again() -> None:
    """The other node never says a word, since what is free there is the same whenever it looks."""
    both = net(here=1, there=1)
    first, second = both.driver("here"), both.driver("here")
    held, short = first.call(2)
    assert first.where([held, short]) == ["here", "there"]
    [waiting] = second.call()
    first.finish(short)
    first.brain.on_timer(1.0, (IDLE_TIMER,))
    both.turn()
    assert second.where([waiting]) == [""]
    both.does(agent_id(node("here")), "on_cluster_view", CONTROL, [])  # that there is no news
    assert second.where([waiting]) == ["there"]


def test_what_waits_here_goes_to_a_node_that_joins() -> None:
    both = Net(here=1, there=4)
    driver = both.driver("here")
    tasks = driver.call(4)
    assert driver.where(tasks).count("here") == 1
    both.views()
    assert sorted(driver.where(tasks)) == ["here", "there", "there", "there"]


def test_what_was_infeasible_runs_on_a_node_that_joins() -> None:
    both = Net(here=1, there=1)
    driver = both.driver("here")
    [task] = driver.call(demand=THERE)
    [(_, _, refusal)] = both.sent(LeaseRejected)
    assert "there" in refusal.reason and driver.where([task]) == [""]
    both.views()
    [queue] = driver.brain.leases.queues.values()
    queue.infeasible = ""  # as when its grace is over and the cluster may grow
    driver.brain.leases.retry(queue)
    both.turn()
    assert driver.where([task]) == ["there"]


def came_back(retries: int = 3) -> tuple[Net, Any, Any, Any]:
    """One task runs on its owner's node; another was sent to a node that was full by then, and waits there."""
    both = net(here=2, there=1)
    other, driver = both.driver("there"), both.driver("here")
    other.call()  # nobody has told "here" of that
    held = driver.call(2, retries=retries, strategy=("affinity", node("here"), False))
    both.views("here")
    [task] = driver.call(retries=retries)
    assert driver.where([*held, task]) == ["here", "here", ""]
    assert [(r, m.agent) for _, r, m in both.sent(LeaseRedirected)] == [(driver.me, agent_id(node("there")))]
    assert len(both.agent("there").scheduler.queue) == 1
    driver.finish(held[0])
    driver.brain.on_timer(1.0, (IDLE_TIMER,))
    both.turn()
    both.forget()
    both.views("here")
    assert [(r, m.agent) for _, r, m in both.sent(LeaseRedirected)] == [(driver.me, agent_id(node("here")))]
    return both, driver, held[1], task


def test_what_was_sent_elsewhere_comes_back_when_room_appears_at_home() -> None:
    _, driver, _, task = came_back()
    assert driver.where([task]) == ["here"] and driver.attempts[task.id] == 1


@pytest.mark.parametrize("retries", [0, 3])
def test_what_comes_back_is_no_news_of_the_end_of_the_own_node(retries: int) -> None:
    both, driver, running, _ = came_back(retries)
    assert both.sent(WorkerDied) == [], "its own node lives"
    assert driver.where([running]) == ["here"] and driver.attempts[running.id] == 1, "it runs on, and only once"
    assert driver.entry(running) is None
    assert (driver.me, (HANG_UP, agent_id(node("here")))) not in both.effects


def test_a_request_is_sent_on_a_bounded_number_of_times() -> None:
    """Each of the nodes believes that another has room."""
    four = Net(a=1, b=1, c=1, d=1)
    holders = [four.driver(name) for name in "abcd"]
    for holder in holders:
        holder.call()  # all are full
    four.forget()
    four.views(a=1, b=1, c=1, d=1)  # and all others look free
    driver = four.driver("a")
    [task] = driver.call()
    hops = [message.hops for _, _, message in four.sent(RequestLease)]
    assert hops == list(range(len(hops))) and 1 < len(hops) <= four.config.lease_hops_max + 1
    assert driver.where([task]) == [""] and sum(len(a.scheduler.queue) for a in four.agents.values()) == 1
    for holder in holders:
        holder.finish(*[t for t in holder.brain.tasks.pending.values() if t.id in holder.pushed])
        holder.brain.on_timer(1.0, (IDLE_TIMER,))
        four.turn()
    assert driver.where([task]) != [""], "wherever it ended up, it runs"


def test_a_burst_is_spread_over_the_others() -> None:
    three = net(here=1, east=2, west=2)
    driver = three.driver("here")
    assert sorted(driver.where(driver.call(5))) == ["east", "east", "here", "west", "west"]


def test_what_no_node_can_run_is_refused_in_the_name_of_the_closest() -> None:
    three = net(here=1, east=4, west=2)
    driver = three.driver("here")
    driver.call(demand=ResourceSet.of({"CPU": 8}))
    [(_, _, refusal)] = three.sent(LeaseRejected)
    assert refusal.kind == "infeasible" and "asks for 8 CPU" in refusal.reason and "east) has 4" in refusal.reason


def test_a_strategy_names_the_node() -> None:
    three = net(here=4, east=2, west=2)
    driver = three.driver("here")
    tasks = driver.call(2, strategy=("affinity", node("west"), False))
    assert driver.where(tasks) == ["west", "west"]
    [soft] = driver.call(strategy=("affinity", node("gone"), True))
    assert driver.where([soft]) == ["here"]
    driver.call(strategy=("affinity", node("gone"), False))
    assert [m.kind for _, _, m in three.sent(LeaseRejected)] == ["infeasible"]


def test_a_node_that_is_asked_for_and_is_dead_is_no_reason_to_wait() -> None:
    three = net(here=1, east=1, west=1)
    driver = three.driver("here")
    three.dead("west")
    [task] = driver.call(strategy=("affinity", node("west"), False))
    error = pickle.loads(driver.entry(task)[1])
    assert isinstance(error, TaskUnschedulableError) and "which is dead" in str(error) and node("west").hex() in str(error)
    [soft] = driver.call(strategy=("affinity", node("west"), True))
    assert driver.where([soft]) == ["here"]


def test_what_waits_for_a_node_that_dies_fails_at_once() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    running, waiting = driver.call(2, strategy=("affinity", node("there"), False), retries=0)
    assert driver.where([running, waiting]) == ["there", ""]
    both.dead("there")
    errors = [pickle.loads(driver.entry(task)[1]) for task in (running, waiting)]
    assert [type(error) for error in errors] == [WorkerCrashedError, TaskUnschedulableError]


def test_a_strategy_that_nobody_can_read_is_refused() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    request = RequestLease(9, b"job1", dict(ONE), 1, True, ("somewhere", 1), 0)
    both.post(driver.me, agent_id(node("here")), request)
    both.turn()
    [(_, _, refusal)] = both.sent(LeaseRejected)
    assert "no strategy" in refusal.reason


def test_a_redirect_that_comes_after_the_request_was_cancelled_is_not_followed() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    tasks = driver.call(3)
    waiting = list(driver.brain.leases._requests)
    assert len(waiting) == 1
    driver.finish(*tasks[:2])
    driver.finish(*(t for t in tasks if t.id in driver.pushed))
    driver.brain.on_timer(1.0, (IDLE_TIMER,))
    both.turn()
    assert driver.brain.leases._requests == {}
    both.forget()
    both.post(agent_id(node("here")), driver.me, LeaseRedirected(waiting[0], agent_id(node("there")), "tcp://there"))
    both.turn()
    assert both.sent(RequestLease) == []


def test_a_request_that_waits_elsewhere_is_cancelled_there() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    first, second = driver.call(2, demand=THERE)
    assert len(both.agent("there").scheduler.queue) == 1
    driver.brain.leases.give_up(next(iter(driver.brain.leases.queues.values())))
    both.turn()
    driver.brain.on_timer(1.0, (IDLE_TIMER,))
    both.turn()
    assert [receiver for _, receiver, _ in both.sent(CancelLease)] == [agent_id(node("there"))]
    assert not both.agent("there").scheduler.queue and driver.where([first, second]) == ["there", ""]


def test_an_actor_that_waits_goes_back_to_the_control_when_there_is_room_elsewhere() -> None:
    """The control has placed it, and places it anew."""
    both = net(here=1, there=1)
    for actor in (b"actor-a-----", b"actor-b-----"):
        what = (actor, 1, b"job1", False, dict(ONE), dict(ONE), True, b"creation")
        both.does(agent_id(node("here")), "on_place_actor", CONTROL, *what)
    assert len(both.agent("here").scheduler.queue) == 1
    both.views(there=0)
    assert len(both.agent("here").scheduler.queue) == 1 and both.sent(ActorRefused) == []
    both.views(there=1)
    [(_, receiver, refusal)] = both.sent(ActorRefused)
    assert (receiver, refusal[:3]) == (CONTROL, (b"actor-b-----", 1, "elsewhere")) and "room appeared" in refusal.reason
    assert both.agent("here").scheduler.queue == {} and both.sent(LeaseRedirected) == []


# -- deaths ---------------------------------------------------------------------------------------------------------


def test_a_node_dies_and_its_tasks_run_elsewhere() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    tasks = driver.call(2)
    [lost] = [t for t, where in zip(tasks, driver.where(tasks), strict=True) if where == "there"]
    [kept] = [t for t in tasks if t is not lost]
    both.dead("there")
    driver.finish(kept)
    assert driver.where([lost]) == ["here"]
    assert driver.attempts == {kept.id: 1, lost.id: 2}


def test_a_task_that_must_not_run_twice_fails_with_its_node() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    [task] = driver.call(demand=THERE, retries=0)
    both.dead("there")
    error = pickle.loads(driver.entry(task)[1])
    assert isinstance(error, WorkerCrashedError) and "dead" in str(error) and "1 time(s) its node died" in str(error)


def test_what_was_asked_of_a_node_that_dies_is_asked_again() -> None:
    three = net(here=1, east=1, west=1)
    driver = three.driver("here")
    tasks = driver.call(2, strategy=("affinity", node("east"), True))
    assert sorted(driver.where(tasks)) == ["", "east"]
    three.dead("east")
    assert sorted(driver.where(tasks)) == ["here", "west"]


def test_a_request_on_its_way_to_a_node_that_is_known_to_be_dead_is_asked_again() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    [running] = driver.call()
    both.dead("there")
    [waiting] = driver.call()
    [request_id] = driver.brain.leases._requests
    both.post(agent_id(node("here")), driver.me, LeaseRedirected(request_id, agent_id(node("there")), "tcp://there"))
    both.turn()
    driver.finish(running)
    assert driver.where([waiting]) == ["here"], "the agent says at once that that node is dead"


def test_an_owner_on_another_node_dies_and_its_leases_with_it() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    [task] = driver.call(demand=THERE)
    worker, _ = driver.pushed[task.id]
    both.forget()
    both.cut.add(driver.me)
    both.does(agent_id(node("here")), "on_process_ended", driver.me)
    told = [(s, r, m.process) for s, r, m in both.sent(ProcessGone) if s != agent_id(node("there"))]
    assert told == [(agent_id(node("here")), agent_id(node("there")), driver.me)]
    assert (agent_id(node("there")), (KILL_WORKER, worker)) in both.effects, "it runs a task that nobody waits for"
    assert both.agent("there").scheduler.leases == {}


def test_the_node_of_an_owner_dies_and_its_leases_and_requests_with_it() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    driver.call(2, demand=THERE)
    agent = both.agent("there")
    assert len(agent.scheduler.leases) == len(agent.scheduler.queue) == 1
    both.dead("here")
    assert not agent.scheduler.leases and not agent.scheduler.queue
    assert agent.scheduler.resources.available == dict(agent.scheduler.resources.total)


def test_nothing_is_granted_to_the_dead_who_asked_before() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    driver.call(demand=THERE)
    both.dead("here")
    both.forget()
    request = RequestLease(77, b"job1", dict(THERE), 1, True, ("default",), 1)
    both.agent("there").on_request_lease(0.0, driver.me, *request)
    assert sent(drain(both.agent("there").out), LeaseGranted) == []


def test_the_end_of_a_worker_on_another_node_is_told_to_those_who_asked() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    [task] = driver.call(demand=THERE)
    worker, _ = driver.pushed[task.id]
    assert (agent_id(node("here")), agent_id(node("there")), WatchProcess(worker)) in both.sent(WatchProcess)
    both.forget()
    both.does(agent_id(node("there")), "on_worker_exited", worker, "killed by signal 9")
    assert [(s, r) for s, r, _ in both.sent(ProcessGone)] == [(agent_id(node("there")), agent_id(node("here")))]
    assert (agent_id(node("here")), driver.me, WorkerDied(worker, "killed by signal 9")) in both.sent(WorkerDied)
    assert driver.attempts[task.id] == 2 and driver.where([task]) == ["there"]


def test_with_a_node_end_all_its_processes_that_somebody_deals_with() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    process = process_id(node("there"), b"\0\0\0\x63")
    both.post(agent_id(node("there")), agent_id(node("there")), wire.WorkerReady(process, "sim://", 1))
    both.agent("there").on_peer_joined(0.0, process, "worker", 1)
    driver.brain.meet(process)
    both.turn()
    both.forget()
    both.dead("there")
    told = {message.worker_id: message.reason for _, receiver, message in both.sent(WorkerDied) if receiver == driver.me}
    assert "there is dead" in told[process]
    assert (agent_id(node("here")), (HANG_UP, agent_id(node("there")))) in both.effects


def test_who_asks_about_a_process_of_a_dead_node_is_told_at_once() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    both.dead("there")
    driver.brain.meet(process_id(node("there"), b"\0\0\0\1"))
    both.forget()
    both.turn()
    assert [receiver for _, receiver, _ in both.sent(WorkerDied)] == [driver.me]


def test_a_node_that_is_dead_for_the_others_is_not_asked_any_more() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    both.dead("there")
    driver.call()
    [waiting] = driver.call()
    assert driver.where([waiting]) == [""]
    both.forget()
    both.views("here")
    assert both.sent(LeaseRedirected) == []


def test_the_head_keeps_its_line_to_a_dead_node_for_as_long_as_that_may_come_back() -> None:
    both = Net(here=1, there=1)
    head = both.agent("here")
    head._remote = False  # the control is in the same process, and answers a late sign of life
    both.views()
    both.effects.clear()
    both.dead("there")
    of_head = [effect for who, effect in both.effects if who == agent_id(node("here"))]
    assert verbs(of_head, HANG_UP) == []
    [(at, key)] = [(at, key) for at, key in timers(of_head) if key[1:] == (agent_id(node("there")),)]
    assert at >= both.config.control_death_s
    head.on_timer(at, key)
    assert verbs(drain(head.out), HANG_UP) == [(agent_id(node("there")),)]


# -- objects --------------------------------------------------------------------------------------------------------


def test_frees_are_sent_on_to_the_node_that_has_the_object_until_it_answers() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    here, there = agent_id(node("here")), agent_id(node("there"))
    both.post(driver.me, here, FreeObjects([b"o" * 20], there))
    both.turn()
    assert [(s, r, m.object_ids) for s, r, m in both.sent(FreePrimaries)] == [(here, there, [b"o" * 20])]
    assert [(s, r) for s, r, _ in both.sent(PrimariesFreed)] == [(there, here)]
    assert both.agent("here").transfer.statistics()["frees_unconfirmed"] == 0


def test_nothing_is_freed_on_a_node_that_is_dead() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    both.dead("there")
    both.forget()
    both.post(driver.me, agent_id(node("here")), FreeObjects([b"o" * 20], agent_id(node("there"))))
    both.turn()
    assert both.sent(FreePrimaries) == []


def test_what_a_process_of_another_node_owns_here_goes_when_that_ends() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    agent = both.agent("there")
    writer = process_id(node("there"), b"\0\0\0\x63")
    agent.on_peer_joined(0.0, writer, "worker", 1)
    agent.on_create_object(0.0, writer, 1, b"o" * 20, 1000)
    agent.on_seal_object(0.0, writer, b"o" * 20, driver.me)
    both.turn()
    assert agent.store.statistics()["objects"] == 1
    both.cut.add(driver.me)
    both.does(agent_id(node("here")), "on_process_ended", driver.me)
    assert agent.store.statistics()["objects"] == 0


# -- the agent and its control --------------------------------------------------------------------------------------


def silence(until: float, heard_at: float | None) -> list[Any]:
    """What a node does that has heard its control once, at ``heard_at``, or never."""
    agent = Net(there=1).agent("there")
    agent.start(0.0)
    effects = drain(agent.out)
    while timers(effects):
        [(now, key)] = [timer for timer in timers(effects) if timer[1] == (SIGN_TIMER,)]
        if now > until:
            return []
        if heard_at is not None and now >= heard_at:
            agent.on_cluster_view(heard_at, CONTROL, [])
            heard_at = None
        agent.on_timer(now, key)
        effects = drain(agent.out)
        assert sent(effects, wire.Heartbeat), "it says that it lives whenever it looks"
        if verbs(effects, STOP):
            return verbs(effects, STOP)
    raise AssertionError("it looks no more")


def test_a_node_that_hears_nothing_of_its_control_for_long_ends() -> None:
    [(reason,)] = silence(60.0, heard_at=1.0)
    assert "the head has been silent for" in reason


def test_a_node_waits_for_the_first_word_of_its_control() -> None:
    assert silence(60.0, heard_at=None) == []
    assert silence(20.0, heard_at=1.0) == []


@pytest.mark.parametrize("rejoin", [True, False])
def test_a_node_that_is_refused_ends(rejoin: bool) -> None:
    agent = Net(there=1).agent("there")
    agent.on_node_refused(0.0, CONTROL, "given up", rejoin)
    assert verbs(agent.out, STOP) == [("given up",)]


def test_a_probe_is_answered_with_what_is_free() -> None:
    both = net(here=1, there=1)
    driver = both.driver("there")
    driver.call()
    both.does(agent_id(node("there")), "on_probe_node", CONTROL)
    beat = [m for m in both.to_control if isinstance(m, wire.Heartbeat)][-1]
    assert beat.node_id == node("there") and beat.available["CPU"] == 0
    both.to_control.clear()
    both.does(agent_id(node("there")), "on_timer", (HEARTBEAT_TIMER,))
    assert both.to_control == [], "what was said is not said again"


def test_an_empty_view_only_says_that_the_control_lives() -> None:
    both = net(here=1, there=1)
    both.forget()
    both.post(CONTROL, agent_id(node("here")), ClusterView([]))
    both.turn()
    assert [m for m in both.log if type(m[2]) is not ClusterView] == []
    assert both.sent(NodeRefused) == []
