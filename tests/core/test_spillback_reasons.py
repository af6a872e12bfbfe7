"""Spillback: what goes to another node for its bundle, or for the arguments that lie there."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base import wire
from zray.base.ids import agent_id, process_id
from zray.base.wire import CONTROL, Heartbeat, RequestLease
from zray.base.wire_placement import BundlesCounted
from zray.core.agent import HEARTBEAT_TIMER
from zray.core.leases import IDLE_TIMER
from zray.core.views import LOCALITY_BYTES_MIN

from .reading import make_ref
from .spill_bench import ONE, Net, node
from .test_spillback import net

# -- placement groups -----------------------------------------------------------------------------------------------


GROUP = b"group-group-grou"


def with_group() -> Net:
    """Two nodes with a bundle of one CPU each, known to both."""
    both = net(here=2, there=2)
    nodes = [node("here"), node("there")]
    for index, name in enumerate(("here", "there")):
        bundles = both.agent(name).bundles
        bundles.learn(GROUP)
        bundles.on_prepare_bundles(0.0, CONTROL, GROUP, 1, [(index, dict(ONE))])
        bundles.on_commit_bundles(0.0, CONTROL, GROUP, 1)
        bundles.on_placement_group_updated(0.0, CONTROL, GROUP, "CREATED", [dict(ONE)] * 2, nodes, "")
    both.turn()
    both.forget()
    return both


def test_any_bundle_will_do_and_what_waits_in_one_goes_where_another_is_free() -> None:
    both = with_group()
    driver, other = both.driver("here"), both.driver("here")
    first, second = driver.call(2, strategy=("bundle", GROUP, -1))
    [third] = other.call(strategy=("bundle", GROUP, -1))
    assert driver.where([first, second]) == ["here", "there"] and other.where([third]) == [""]
    driver.finish(second)
    driver.brain.on_timer(1.0, (IDLE_TIMER,))
    both.turn()
    [(_, _, beat)] = heard(both, "there")
    assert beat.bundles == ((GROUP, 1, dict(ONE)),)
    both.forget()
    both.post(CONTROL, agent_id(node("here")), BundlesCounted(GROUP, {1: beat.bundles[0][2]}))
    both.turn()
    assert other.where([third]) == ["there"]


def heard(both: Net, name: str) -> list[Any]:
    """What a node tells the control of itself when its time has come."""
    both.forget()
    both.does(agent_id(node(name)), "on_timer", (HEARTBEAT_TIMER,))
    return both.sent(Heartbeat)


# -- to be spread -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "kept"), [("spread", 1), ("default", 0)])
def test_a_lease_that_comes_when_all_short_tasks_are_pushed_is_kept_for_the_next_if_they_are_to_be_spread(
    kind: str, kept: int
) -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    [running] = driver.call(strategy=(kind,))
    [queue] = driver.brain.leases.queues.values()
    driver.brain.leases.run_us[running.template.function_id] = 1.0  # very short: they are pushed ahead to one worker
    late = driver.brain.leases
    late._requests[99] = queue
    queue.requests[99] = (agent_id(node("there")), 1)
    driver.brain.on_lease_granted(0.0, agent_id(node("there")), 99, 12345, process_id(node("there"), b"late"), "sim://late")
    assert len(queue.leases) == 1 + kept
    both.agent("there").check()


# -- where the arguments lie ----------------------------------------------------------------------------------------


def argument(driver: Any, number: int, size: int, name: str) -> Any:
    """An object of the driver that lies on a node."""
    object_id = bytes([number]) * 20
    driver.brain.put(object_id, (wire.STORED, size, node(name), ()))
    return make_ref(object_id, driver.brain.references.me)


LARGE = LOCALITY_BYTES_MIN


def test_tasks_go_where_their_large_arguments_lie() -> None:
    three = net(here=4, east=1, west=4)
    driver = three.driver("here")
    west, east, small = (argument(driver, n, s, w) for n, s, w in ((1, 3 * LARGE, "west"), (2, LARGE, "east"), (3, 9, "east")))
    tasks = [*driver.call(args=(west,)), *driver.call(args=(west, east)), *driver.call(args=(small,)), *driver.call(args=(east,))]
    assert driver.where(tasks) == ["west", "west", "here", "east"]
    asked = {tuple(m.locality) for _, _, m in three.sent(RequestLease)}
    both = ((node("west"), 3 * LARGE), (node("east"), LARGE))
    assert asked == {both[:1], both, (), ((node("east"), LARGE),)}


@pytest.mark.parametrize(
    ("strategy", "where"), [(("spread",), "here"), (("affinity", node("here"), False), "here"), (("default",), "there")]
)
def test_unless_they_ask_for_a_node_or_it_has_no_room(strategy: Any, where: str) -> None:
    both = net(here=4, there=1)
    driver = both.driver("here")
    ref = argument(driver, 1, LARGE, "there")
    first, second = driver.call(args=(ref,), strategy=strategy), driver.call(args=(ref,), strategy=("default",))
    assert driver.where(first) == [where]
    assert driver.where(second) == ["there" if where == "here" else "here"]


def test_a_lease_elsewhere_than_at_the_arguments_serves_one_task() -> None:
    both = net(here=1, there=1)
    other, driver = both.driver("there"), both.driver("here")
    [occupied] = other.call()
    both.views()
    ref = argument(driver, 1, LARGE, "there")
    [first] = driver.call(args=(ref,))
    assert driver.where([first]) == ["here"], "there is no room there"
    other.finish(occupied)
    other.brain.on_timer(1.0, (IDLE_TIMER,))
    both.turn()
    both.views()
    driver.finish(first)
    second = driver.call(args=(ref,))
    assert driver.where(second) == ["there"]
    driver.finish(*second)
    both.forget()
    assert driver.where(driver.call(args=(ref,))) == ["there"] and both.sent(RequestLease) == [], "that lease is kept"


def test_a_task_whose_node_died_with_its_arguments_is_not_bound_to_it() -> None:
    both = net(here=1, there=1)
    driver = both.driver("here")
    [task] = driver.call(args=(argument(driver, 1, LARGE, "there"),))
    assert driver.where([task]) == ["there"]
    both.dead("there")
    assert driver.where([task]) == ["here"]
