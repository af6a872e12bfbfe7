"""What drivers, tasks and actors of each kind can know of themselves."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

import zray as ray

pytestmark = pytest.mark.usefixtures("cluster")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import pytest

LABELS = {"zone": "east"}
VARIABLES = {"ZRAY_TEST_CONTEXT": "yes"}


@pytest.fixture(scope="module")
def cluster(local_mode: bool) -> Iterator[Any]:
    """One with labels, a GPU and an environment of its own."""
    environment = {"env_vars": VARIABLES}
    with ray.init(
        num_cpus=2, num_gpus=1, labels=LABELS, namespace="ours", runtime_env=environment, local_mode=local_mode
    ) as context:
        yield context


def everything() -> dict[str, Any]:
    """All that can be asked, as text where it can not travel."""
    context = ray.get_runtime_context()
    known = {name: getattr(context, name)() for name in dir(context) if name.startswith("get")}
    for name in ("namespace", "runtime_env", "was_current_actor_reconstructed", "gcs_address"):
        known[name] = getattr(context, name)
    return known


class Plain:
    def ask(self) -> dict[str, Any]:
        return everything()


class Asynchronous:
    async def ask(self) -> dict[str, Any]:
        return everything()


COMMON = ("get_job_id", "get_node_id", "get_node_labels", "get_runtime_env_string", "namespace", "runtime_env", "gcs_address")


def test_a_driver() -> None:
    known = everything()
    assert known["namespace"] == "ours" and known["get_node_labels"] == LABELS
    assert known["runtime_env"] == {"env_vars": VARIABLES} == json.loads(known["get_runtime_env_string"])
    assert known["get_node_id"] == ray.nodes()[0]["NodeID"]
    assert known["get_assigned_resources"] == {} and known["get_accelerator_ids"] == {"GPU": []}
    nothing = ("get_task_id", "get_task_name", "get_actor_id", "get_actor_name", "get_placement_group_id")
    assert [known[name] for name in nothing] == [None] * 5
    assert known["was_current_actor_reconstructed"] is False
    assert known["get"] == {name: known.get(f"get_{name}", "ours") for name in ("job_id", "node_id", "namespace")}
    assert known["gcs_address"] == ray.get_runtime_context().gcs_address


def test_a_task() -> None:
    ref = ray.remote(num_cpus=0.5, num_gpus=1, name="asked")(everything).remote()
    known, here = ray.get(ref), everything()
    assert {name: known[name] for name in COMMON} == {name: here[name] for name in COMMON}
    assert (known["get_task_id"], known["get_task_name"]) == (ref.task_id().hex(), "asked")
    assert known["get"]["task_id"] == ref.task_id().hex() and "actor_id" not in known["get"]
    assert known["get_assigned_resources"] == {"CPU": 0.5, "GPU": 1} and known["get_accelerator_ids"] == {"GPU": ["0"]}
    assert known["get_actor_id"] is known["get_actor_name"] is None and not known["was_current_actor_reconstructed"]
    assert known["get_worker_id"] != here["get_worker_id"]


@pytest.mark.parametrize("kind", ["plain", "threaded", "asynchronous"])
def test_an_actor(kind: str) -> None:
    cls = ray.remote(Asynchronous if kind == "asynchronous" else Plain)
    actor = cls.options(name=kind, num_cpus=0.5, **({"max_concurrency": 2} if kind == "threaded" else {})).remote()
    refs = [actor.ask.remote() for _ in range(2)]
    for ref, known in zip(refs, ray.get(refs), strict=True):
        here = everything()
        assert {name: known[name] for name in COMMON} == {name: here[name] for name in COMMON}
        assert known["get_task_id"] == ref.task_id().hex() and known["get_task_name"].endswith(".ask")
        assert known["get_actor_name"] == kind and known["get"]["actor_id"] == known["get_actor_id"]
        assert known["get_assigned_resources"] == {"CPU": 0.5}
        assert not known["was_current_actor_reconstructed"]
    assert len({known["get_actor_id"] for known in ray.get(refs)}) == 1


def test_a_thread_of_a_driver_knows_what_the_driver_knows() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(everything()))
    thread.start()
    thread.join()
    assert found == [everything()]
