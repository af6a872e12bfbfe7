"""What tests with real processes share: a cluster for the file, and drivers that run as scripts of their own."""

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One cluster of two CPUs for the file."""
    with ray.init(num_cpus=2) as context:
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
