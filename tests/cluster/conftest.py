"""What tests of the public API share: a cluster for the file, and drivers that run as scripts of their own.

Tests that ask for ``cluster`` or ``local_mode`` run twice: on real processes, and in local mode. Those that concern processes
say so with ``@pytest.mark.processes("why")`` and run once, as do those that start scripts.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zray as ray
from zray.util.state import list_actors

from .driving import Script, eventually


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """In local mode, leave out what concerns processes."""
    left_out = [item for item in items if _in_local_mode(item) and _concerns_processes(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _in_local_mode(item: Any) -> bool:
    return hasattr(item, "callspec") and bool(item.callspec.params.get("local_mode"))


def _concerns_processes(item: Any) -> bool:
    return item.get_closest_marker("processes") is not None or "script" in item.fixturenames


@pytest.fixture(scope="module", params=[False, True], ids=["processes", "local"])
def local_mode(request: Any) -> bool:
    """Whether the tests run in local mode now; for ``ray.init(local_mode=local_mode)``."""
    return bool(request.param)


@pytest.fixture(scope="module")
def cluster(local_mode: bool) -> Iterator[Any]:
    """One cluster of two CPUs for the file."""
    with ray.init(num_cpus=2, local_mode=local_mode) as context:
        ray.put(0).future().result(30)  # the thread that serves futures belongs to the cluster, not to one test
        yield context


@pytest.fixture
def no_actor_left(cluster: Any) -> Iterator[None]:
    """The actors of a test are gone soon after it, since nobody has a handle of them any more."""
    yield

    def all_dead() -> bool:
        gc.collect()  # an exception that was caught keeps the variables of those who raised it
        return all(actor["state"] == "DEAD" for actor in list_actors())

    eventually(all_dead, "the end of all actors")


@pytest.fixture
def home() -> Iterator[str]:
    """A directory for the sessions of scripts; with a short name, since it becomes part of the paths of sockets."""
    path = tempfile.mkdtemp(prefix="zt-", dir="/tmp")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def script(home: str) -> Iterator[Callable[..., Script]]:
    """Starts drivers as processes of their own: ``script(program)``; whatever is left of them at the end is killed."""
    started: list[Script] = []

    def start(program: str, before: str = "", **environment: str) -> Script:
        started.append(Script(program, home, environment, before))
        return started[-1]

    yield start
    for each in started:
        each.close()
