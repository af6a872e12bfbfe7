"""Several nodes: work, actors and objects go where there is room, and none of the nodes is missed for long."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zray as ray
from zray import object_ref
from zray.base.wire import CONTROL, ControlStatistics
from zray.cluster_utils import Cluster, ClusterNode
from zray.io.cluster_key import ClusterKey

from .driving import PATIENCE_S, Script, alive, eventually
from .gates import Gate

ELEMENTS = 1 << 18  # 2 MiB of float64: too large for a message


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """A head of one CPU, and two nodes of two; this process is connected."""
    with Cluster(head_node_args={"num_cpus": 1, "resources": {"head": 1}}, connect=True) as cluster:
        cluster.add_node(num_cpus=2, resources={"east": 1}, labels={"zone": "east"})
        cluster.add_node(num_cpus=2, resources={"west": 1}, labels={"zone": "west"})
        introduced(cluster)
        ray.put(0).future().result(30)  # the thread that serves futures belongs to the cluster, not to one test
        yield cluster


def head(cluster: Cluster) -> ClusterNode:
    assert cluster.head_node is not None
    return cluster.head_node


def introduced(cluster: Cluster) -> None:
    """Wait until the agent of the head, which this process asks, knows all nodes: the views come a little later."""
    from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tries = count(1)  # each asks for another amount: a lease that was granted for the same one would be used again

    def known(node: ClusterNode) -> bool:
        there = NodeAffinitySchedulingStrategy(node.node_id, soft=True)
        return bool(ray.get(where.options(num_cpus=next(tries) / 10_000, scheduling_strategy=there).remote()) == node.node_id)

    for node in cluster.worker_nodes:
        eventually(lambda node=node: known(node), "a node known")


def names(cluster: Cluster) -> dict[str, str]:
    """What the nodes are called here, by their ids."""
    nodes = [head(cluster), *cluster.worker_nodes]
    return {node.node_id: name for node, name in zip(nodes, ["head", "east", "west"], strict=True)}


@ray.remote(num_cpus=0)
def where() -> str:
    return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=0)
class Place:
    """Says where it is, and keeps what it is given."""

    def __init__(self, kept: Any = None) -> None:
        self.kept = kept

    def where(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def pid(self) -> int:
        return os.getpid()

    def keep(self, kept: Any) -> None:
        self.kept = kept

    def sum(self) -> float:
        return float(ray.get(self.kept[0]).sum())

    def ask(self, other: Any) -> Any:
        return ray.get(other.where.remote())


@ray.remote
def held(gate: Any) -> str:
    """Hold a CPU until the gate is open."""
    gate.passed()
    return str(ray.get_runtime_context().get_node_id())


@ray.remote(num_cpus=0)
def make(elements: int = ELEMENTS) -> Any:
    return np.arange(elements, dtype=np.float64)


@ray.remote(num_cpus=0)
def total(array: Any) -> tuple[float, bool, str]:
    return float(array.sum()), bool(array.flags.writeable), ray.get_runtime_context().get_node_id()


def on(name: str, **more: Any) -> dict[str, Any]:
    """Options that choose a node by what only that one has."""
    return {"resources": {name: 0.01}, **more}


def stored(cluster: Cluster) -> list[int]:
    """How many objects lie in the store of each node."""
    return [len(ray.get(objects_here.options(**on(name)).remote())) for name in names(cluster).values()]


@ray.remote(num_cpus=0)
def objects_here() -> list[Any]:
    from zray import object_ref
    from zray.base.wire import ListObjects

    worker = object_ref.connected
    return list(worker.call(worker.agent, ListObjects))


# -- what there is --------------------------------------------------------------------------------------------------


def test_all_nodes_are_listed_with_what_they_have(three: Cluster) -> None:
    listed = {node["NodeID"]: node for node in ray.nodes()}
    assert set(listed) == set(names(three)) and all(node["Alive"] for node in listed.values())
    assert [listed[node]["Resources"]["CPU"] for node in names(three)] == [1, 2, 2]
    assert [listed[node]["Labels"] for node in names(three)] == [{}, {"zone": "east"}, {"zone": "west"}]
    everything = ray.cluster_resources()
    assert everything["CPU"] == 5 and everything["east"] == everything["west"] == everything["head"] == 1


def test_what_tasks_hold_anywhere_is_not_available(three: Cluster, tmp_path: Path) -> None:
    gate = Gate(str(tmp_path / "gate"))
    tasks = [held.options(num_cpus=2, **on(name)).remote(gate) for name in ("east", "west")]
    eventually(lambda: ray.available_resources().get("CPU", 0) == 1, "four CPUs taken")
    gate.open()
    assert [names(three)[node] for node in ray.get(tasks)] == ["east", "west"]
    eventually(lambda: ray.available_resources() == ray.cluster_resources(), "everything given back")


# -- tasks ----------------------------------------------------------------------------------------------------------


def test_tasks_spill_to_all_nodes(three: Cluster, tmp_path: Path) -> None:
    gate = Gate(str(tmp_path / "gate"))
    tasks = [held.remote(gate) for _ in range(5)]
    gate.wait_for(5)
    gate.open()
    assert sorted(names(three)[node] for node in ray.get(tasks)) == ["east", "east", "head", "west", "west"]


def test_many_tasks_all_run_once(three: Cluster) -> None:
    @ray.remote
    def square(n: int) -> int:
        return n * n

    assert ray.get([square.remote(n) for n in range(2000)]) == [n * n for n in range(2000)]


def heard() -> dict[str, int]:
    """What the control was asked or told so far, by kind.

    Without what nodes say by themselves as time goes by, and the one question of each worker that is new.
    """
    worker = object_ref.connected
    numbers = worker.call(CONTROL, ControlStatistics)  # type: ignore[union-attr]
    by_themselves = ("heard_Heartbeat", "heard_ProcessDied", "heard_ControlStatistics", "heard_FetchFunction", "heard_FetchJob")
    return {kind: count for kind, count in numbers.items() if kind.startswith("heard_") and kind not in by_themselves}


def test_tasks_on_all_nodes_do_not_touch_the_control(three: Cluster) -> None:
    @ray.remote(scheduling_strategy="SPREAD")
    def place(n: int) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def nodes() -> set[str]:
        return set(ray.get([place.remote(n) for n in range(300)]))

    eventually(lambda: nodes() == set(names(three)), "tasks on all nodes")
    before = heard()
    assert nodes() == set(names(three))
    assert heard() == before


@pytest.mark.parametrize("name", ["head", "east", "west"])
def test_custom_resources_labels_and_affinity_pick_the_node(three: Cluster, name: str) -> None:
    from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ids = {own: node for node, own in names(three).items()}
    there = NodeAffinitySchedulingStrategy(ids[name], soft=False)
    found = [where.options(**on(name)).remote(), where.options(scheduling_strategy=there).remote()]
    if name != "head":
        found.append(where.options(label_selector={"zone": name}).remote())
    assert set(ray.get(found)) == {ids[name]}


def test_tasks_submit_tasks_on_other_nodes(three: Cluster) -> None:
    @ray.remote
    def descend(hops: list[dict[str, Any]]) -> list[str]:  # without a word of this module: each worker would import that
        here = [str(ray.get_runtime_context().get_node_id())]
        return here + (ray.get(descend.options(**hops[0]).remote(hops[1:])) if hops else [])

    routes = [["east", "west", "head", "west"], ["west", "east", "west", "head"]] * 3
    found = ray.get([descend.remote([on(name) for name in route]) for route in routes])
    for route, nodes in zip(routes, found, strict=True):
        assert [names(three)[node] for node in nodes[1:]] == route


def test_an_error_comes_back_from_another_node(three: Cluster) -> None:
    @ray.remote(**on("west"))
    def fail() -> None:
        raise KeyError("over there")

    with pytest.raises(KeyError, match="over there"):
        ray.get(fail.remote())


# -- actors ---------------------------------------------------------------------------------------------------------


def test_actors_are_spread_and_called_across_nodes(three: Cluster) -> None:
    actors = [Place.remote() for _ in range(6)]
    nodes = ray.get([actor.where.remote() for actor in actors])
    assert set(nodes) == set(names(three))
    for caller in actors[:3]:
        assert ray.get([caller.ask.remote(actor) for actor in actors if actor is not caller]) == [
            node for actor, node in zip(actors, nodes, strict=True) if actor is not caller
        ]


def test_a_named_actor_is_found_from_another_node(three: Cluster) -> None:
    @ray.remote(**on("west"))
    def ask() -> tuple[str, str]:
        return ray.get(ray.get_actor("bob").where.remote()), ray.get_runtime_context().get_node_id()

    bob = Place.options(name="bob", **on("east")).remote()
    assert [names(three)[node] for node in ray.get(ask.remote())] == ["east", "west"]
    del bob


def test_an_actor_whose_last_handle_was_on_another_node_ends(three: Cluster) -> None:
    @ray.remote(**on("west"))
    def use(handle: Any) -> str:
        return str(ray.get(handle.where.remote()))

    actor = Place.options(**on("east")).remote()
    pid = ray.get(actor.pid.remote())
    result = use.remote(actor)
    del actor
    assert names(three)[ray.get(result)] == "east"
    eventually(lambda: not alive(pid), "the end of the actor")


# -- objects --------------------------------------------------------------------------------------------------------


def test_arrays_made_on_one_node_are_read_on_all(three: Cluster) -> None:
    expected = float(np.arange(ELEMENTS, dtype=np.float64).sum())
    array = make.options(**on("east")).remote()
    for name in names(three).values():
        total_there, writeable, node = ray.get(total.options(**on(name)).remote(array))
        assert (total_there, writeable, names(three)[node]) == (expected, False, name)
    here = ray.get(array)
    assert np.array_equal(here, np.arange(ELEMENTS)) and not here.flags.writeable


def test_an_array_of_the_driver_is_read_by_many_on_other_nodes_at_once(three: Cluster) -> None:
    array = ray.put(np.ones(ELEMENTS))
    results = ray.get([total.options(**on(name)).remote(array) for name in ("east", "west") * 4])
    assert {(value, writeable) for value, writeable, _ in results} == {(float(ELEMENTS), False)}


def test_wait_has_what_is_ready_elsewhere_brought_here(three: Cluster) -> None:
    ref, other = (make.options(**on("east")).remote() for _ in range(2))

    def held_here() -> list[Any]:
        return [row[0] for row in ray.get(objects_here.options(**on("head")).remote())]

    assert ray.wait([other], fetch_local=False) == ([other], [])
    assert ray.wait([ref]) == ([ref], [])
    name = ref.binary()
    eventually(lambda: held_here() == [name], "the copy")
    assert ray.wait([ref]) == ([ref], [])  # it is here already
    assert float(ray.get(ref).sum()) == ELEMENTS * (ELEMENTS - 1) / 2
    del ref, other
    eventually(lambda: stored(three) == [0, 0, 0], "everything freed")


def test_nothing_of_an_object_is_left_on_any_node_once_nobody_needs_it(three: Cluster) -> None:
    eventually(lambda: stored(three) == [0, 0, 0], "the end of what earlier tests made")
    array = make.options(**on("east")).remote()
    ray.get([total.options(**on(name)).remote(array) for name in ("head", "west")])
    assert stored(three) == [1, 1, 1]
    del array
    eventually(lambda: gc.collect() >= 0 and stored(three) == [0, 0, 0], "the objects freed everywhere")


def test_a_reference_inside_an_argument_keeps_the_object_for_an_actor_of_another_node(three: Cluster) -> None:
    keeper = Place.options(**on("west")).remote()
    array = make.options(**on("east")).remote()
    ray.get(keeper.keep.remote([array]))
    del array
    gc.collect()
    assert ray.get(keeper.sum.remote()) == float(np.arange(ELEMENTS, dtype=np.float64).sum())
    ray.get(keeper.keep.remote(None))
    eventually(lambda: stored(three) == [0, 0, 0], "the object freed everywhere")


def test_a_reference_made_on_one_node_is_used_on_another_and_by_the_driver(three: Cluster) -> None:
    @ray.remote(**on("east"))
    def wrap() -> list[Any]:
        return [ray.put(np.full(ELEMENTS, 2.0)), make.options(**on("west")).remote()]

    inner, made = ray.get(wrap.remote())
    assert ray.get(total.options(**on("west")).remote(inner))[0] == 2.0 * ELEMENTS
    assert ray.get(inner).sum() == 2.0 * ELEMENTS and ray.get(made)[-1] == ELEMENTS - 1


# -- further drivers ------------------------------------------------------------------------------------------------

_SECOND = """
context = ray.init(address="auto", namespace=os.environ["SPACE"])
say("address", context["address"])

@ray.remote(num_cpus=0)
def where():
    return ray.get_runtime_context().get_node_id()

say("tasks", *ray.get([where.options(resources={name: 0.01}).remote() for name in ("head", "east", "west")]))
try:
    say("actor", ray.get(ray.get_actor("ann-" + os.environ["SPACE"]).where.remote()))
except ValueError as error:
    say("none", error)
"""


@pytest.mark.parametrize("space", ["shared", "another"])
def test_a_second_driver_joins_and_sees_the_names_of_its_namespace(
    three: Cluster, script: Callable[..., Script], space: str
) -> None:
    ann = Place.options(name=f"ann-{space}", namespace="shared", **on("east")).remote()  # the last one may be ending
    assert names(three)[ray.get(ann.where.remote())] == "east"
    home = os.path.dirname(os.path.dirname(head(three).session_dir))
    second = script(_SECOND, ZRAY_TMPDIR=home, SPACE=space)
    assert second.until("address") == three.address
    assert [names(three)[node] for node in second.until("tasks").split()] == ["head", "east", "west"]
    if space == "shared":
        assert second.until("actor") == ray.get(ann.where.remote())
    else:
        assert "ann" in second.until("none")
    assert second.finish()[0] == 0
    assert names(three)[ray.get(ann.where.remote())] == "east", "the end of another driver is nothing to this one"


_GIVES = """
context = ray.init(address="auto", namespace="given")

@ray.remote(num_cpus=0)
def double(value):
    return 2 * value

@ray.remote(num_cpus=0)
class Doubler:
    def double(self, value):
        return 2 * value

assert ray.get(double.remote(1)) == ray.get(Doubler.remote().double.remote(1)) == 2
ray.get(ray.get_actor("keeper").keep.remote([double, Doubler]))
"""


def test_what_another_driver_gave_away_can_be_used_when_that_is_gone(three: Cluster, script: Callable[..., Script]) -> None:
    @ray.remote(num_cpus=0)
    class Keeper:
        def keep(self, given: list[Any]) -> None:
            self.double, self.doubler = given

        def use(self, value: int) -> list[int]:
            return ray.get([self.double.remote(value), self.doubler.remote().double.remote(value)])  # type: ignore[no-any-return]

    keeper = Keeper.options(name="keeper", namespace="given").remote()
    home = os.path.dirname(os.path.dirname(head(three).session_dir))
    assert script(_GIVES, ZRAY_TMPDIR=home).finish()[0] == 0, "and its functions are forgotten with it"
    assert ray.get(keeper.use.remote(21)) == [42, 42]


def test_there_may_be_no_such_cluster(three: Cluster, script: Callable[..., Script], home: str) -> None:
    program = """
    for address, options in (("auto", {}), ("127.0.0.1:9", {}), ("auto", {"num_cpus": 2})):
        try:
            ray.init(address, **options)
        except (ConnectionError, ValueError) as error:
            say(type(error).__name__, error)
    """
    _, told, _ = script(program, ZRAY_TMPDIR=home).finish()
    first, second, third = told.splitlines()
    assert first.startswith("ConnectionError no cluster") and "zray-head" in first
    assert second.startswith("ConnectionError") and "127.0.0.1:9" in second
    assert third.startswith("ValueError num_cpus is for a cluster that init() starts")
    hint = script('ray.init("127.0.0.1:9")', ZRAY_TMPDIR=os.path.dirname(os.path.dirname(head(three).session_dir)))
    assert f"those that run here belong to {three.address}" in hint.finish()[2]


# -- who may join ---------------------------------------------------------------------------------------------------


def run_node(cluster: Cluster, home: str, *options: str) -> tuple[int, str]:
    """Have a node try to join, and say how that ended."""
    command = [sys.executable, "-c", "import sys; from zray.ops import cli; sys.exit(cli.node())"]
    command += ["--address", cluster.address, "--host", "127.0.0.1", "--session-dir", home, *options]
    root = os.path.dirname(os.path.dirname(ray.__file__))
    environment = {**os.environ, "PYTHONPATH": root, "ZRAY_TMPDIR": home}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE_S, text=True, check=False)
    return done.returncode, done.stderr


def test_a_node_that_does_not_prove_that_it_belongs_here_is_refused(three: Cluster, home: str) -> None:
    wrong = ClusterKey.create(three.address).save(os.path.join(home, "wrong"))
    for options, text in (((), "there is no key"), (("--key-file", wrong), "key"), (("--insecure",), "key")):
        code, told = run_node(three, home, *options)
        assert code == 1 and text in told and told.startswith("zray-node: "), told
        assert "Traceback" not in told
    assert len(ray.nodes()) == 3 and names(three)[ray.get(where.options(**on("west")).remote())] == "west"
