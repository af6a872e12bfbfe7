"""What a cluster knows of its nodes, objects, workers and actors, for people and programs that look into it."""

from __future__ import annotations

from typing import Any

from zray import api
from zray.base.resources import from_units
from zray.base.wire import CONTROL, ListNodes, ListObjects, ListWorkers
from zray.base.wire_actors import ListActors
from zray.object_ref import ObjectRef


def nodes() -> list[dict[str, Any]]:
    """What the control knows of each node.

    Returns:
        For each: ``NodeID`` in hexadecimal, ``Alive``, ``NodeManagerHostname``, ``NodeManagerAddress``, ``Resources``: what the
        node has, by name, and ``Labels``.

    Example:
        >>> [node["NodeManagerHostname"] for node in nodes() if node["Alive"]]  # doctest: +SKIP
        ['worker-1', 'worker-2']
    """
    return [
        {
            "NodeID": node["node_id"].hex(),
            "Alive": node["alive"],
            "NodeManagerHostname": node["hostname"],
            "NodeManagerAddress": node["endpoint"],
            "Resources": _amounts(node["total"]),
            "Labels": node["labels"],
        }
        for node in api.runtime().call(CONTROL, ListNodes)
    ]


def cluster_resources() -> dict[str, float]:
    """What all living nodes together have.

    Returns:
        Amounts by the name of the resource.

    Example:
        >>> cluster_resources()  # doctest: +SKIP
        {'CPU': 8.0, 'GPU': 1.0}
    """
    return _sum("total")


def available_resources() -> dict[str, float]:
    """What is free on all living nodes together, as of their last heartbeats.

    Returns:
        Amounts by the name of the resource; one of which nothing is free is not there.

    Example:
        >>> available_resources()  # doctest: +SKIP
        {'CPU': 6.0}
    """
    return _sum("available")


def list_objects() -> list[dict[str, Any]]:
    """The objects in this node's store, the largest first.

    Returns:
        For each: ``object_id``, ``size_bytes``, ``state`` (WRITING, IN_MEMORY, SPILLING, ON_DISK, RESTORING), ``owner``
        (process id), ``pins`` (readers), ``path`` of its copy on disk or "", and ``call_site``: the line that put it, or
        the task that returned it.

    Example:
        >>> list_objects()[0]["call_site"]  # doctest: +SKIP
        'train.py:12'
    """
    worker = api.runtime()
    names = ("object_id", "size_bytes", "state", "owner", "pins", "path", "call_site")
    rows = [dict(zip(names, row, strict=True)) for row in worker.call(worker.agent, ListObjects)]
    for row in rows:
        row["object_id"] = row["object_id"].hex()
        row["owner"] = row["owner"].hex()
    return sorted(rows, key=lambda row: -int(row["size_bytes"]))


def list_workers() -> list[dict[str, Any]]:
    """The worker processes of this node.

    Returns:
        For each: ``worker_id`` in hexadecimal, ``pid`` and ``state`` (STARTING, IDLE, LEASED, LEAVING, ENDING).

    Example:
        >>> [worker["pid"] for worker in list_workers() if worker["state"] == "IDLE"]  # doctest: +SKIP
        [4711]
    """
    worker = api.runtime()
    return [
        {"worker_id": worker_id.hex(), "pid": pid, "state": state}
        for worker_id, _, pid, state in worker.call(worker.agent, ListWorkers)
    ]


def explain(ref: ObjectRef[Any]) -> str:
    """Why an object is not there yet: what its task waits for, where it is queued or runs, for how long, and in which line.

    Args:
        ref: of the object.

    Returns:
        A line for the object, and one for each object that it waits for, indented.

    Example:
        >>> print(explain(ref))  # doctest: +SKIP
        1a2b...: train() (task 1a2b...) was sent to a worker; it runs for 3.2 s in process 4711 on node 8c5d1f00 at train.py:12
    """
    return api.runtime().explainer.explain(ref.binary(), ref.owner)


def list_actors() -> list[dict[str, Any]]:
    """The actors of the cluster, those included that died lately.

    Returns:
        For each: ``actor_id``, ``class_name``, ``state`` (DEPENDENCIES_UNREADY, PENDING_CREATION, ALIVE, RESTARTING, DEAD),
        ``name``, ``ray_namespace``, ``detached``, ``job_id``, ``node_id``, ``worker_id``, ``pid``, ``restarts``,
        ``max_restarts``, ``resources``, and ``reason``: of its death, or why no node can run it.

    Example:
        >>> [actor["name"] for actor in list_actors() if actor["state"] == "ALIVE"]  # doctest: +SKIP
        ['counter']
    """
    rows: list[dict[str, Any]] = api.runtime().call(CONTROL, ListActors)
    for row in rows:
        for name in ("actor_id", "job_id", "node_id", "worker_id"):
            row[name] = row[name].hex()
        row["resources"] = {name: from_units(units) for name, units in row["resources"].items()}
    return rows


def _sum(field: str) -> dict[str, float]:
    total: dict[str, int] = {}
    for node in api.runtime().call(CONTROL, ListNodes):
        for name, units in node[field].items() if node["alive"] else ():
            total[name] = total.get(name, 0) + units
    return _amounts(total)


def _amounts(units: dict[str, int]) -> dict[str, float]:
    return {name: from_units(amount) for name, amount in units.items() if amount}
