"""The nodes of a Cluster end with the process that made it, and leave nothing, however it ends."""

from __future__ import annotations

import glob
import os
import signal
from collections.abc import Callable

import pytest

from .driving import Script, alive, eventually

MAKE = """
from zray.cluster_utils import Cluster

@ray.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.rows = bytes(1 << 20)
    def pid(self):
        return os.getpid()

@ray.remote(scheduling_strategy="SPREAD")
def busy():
    time.sleep(1000)

cluster = Cluster()
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
say("folder", cluster._home)
cluster.connect()
cluster.wait_for_nodes()
counters = [Counter.options(scheduling_strategy="SPREAD").remote() for _ in range(3)]
ray.get([counter.pid.remote() for counter in counters])
kept = [ray.put(bytes(1 << 20)), *[busy.remote() for _ in range(3)]]
"""


def processes_in(folder: str) -> list[int]:
    """The living processes of the nodes of a Cluster: their command lines name its folder."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        pid = int(path.split("/")[2])
        try:
            with open(path, "rb") as file:
                mine = folder.encode() in file.read()
        except OSError:
            continue  # it ended meanwhile
        if mine and alive(pid):
            found.append(pid)
    return found


def segments_of(folder: str) -> list[str]:
    """The names that shared memory of a Cluster's sessions has."""
    return [f"/dev/shm/zray-{os.getuid()}-{os.path.basename(path)}" for path in glob.glob(f"{folder}/*/zray-*/s-*")]


def assert_all_gone(folder: str, segments: list[str]) -> None:
    eventually(lambda: not processes_in(folder), f"the end of {processes_in(folder)}")
    eventually(lambda: not os.path.exists(folder), f"the end of {folder}")
    assert [path for path in segments if os.path.exists(path)] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nodes_end_with_a_maker_that_is_killed(script: Callable[..., Script], number: signal.Signals) -> None:
    program = script(f"{MAKE}\nsay('made')\ntime.sleep(1000)\n")
    folder = program.until("folder")
    program.until("made")
    segments = segments_of(folder)
    assert len(segments) >= 3 and len(processes_in(folder)) >= 3 * 3 + 2  # agent, zygote, worker; supervisor and control
    program.signal(number)
    assert program.finish()[0] == -number
    assert_all_gone(folder, segments)


def test_what_killed_nodes_left_goes_with_the_last_one(script: Callable[..., Script]) -> None:
    program = script(f"{MAKE}\ncluster.remove_node(nodes[0], allow_graceful=False)\nsay('made')\ntime.sleep(1000)\n")
    folder = program.until("folder")
    program.until("made")
    segments = segments_of(folder)
    program.signal(signal.SIGKILL)
    program.finish()
    assert_all_gone(folder, segments)


def test_children_of_the_maker_do_not_keep_its_nodes(script: Callable[..., Script]) -> None:
    program = script(
        f"""{MAKE}
child = os.fork()
if child == 0:
    time.sleep(1000)
say("made", child)
time.sleep(1000)
"""
    )
    folder = program.until("folder")
    child = int(program.until("made"))
    segments = segments_of(folder)
    program.signal(signal.SIGKILL)
    try:
        assert_all_gone(folder, segments)
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_maker_that_is_killed_while_its_nodes_start(script: Callable[..., Script]) -> None:
    program = script("from zray.cluster_utils import Cluster\nsay('starts')\nCluster(head_node_args={'env_vars': {'A': 'B'}})\n")
    program.until("starts")

    def starting() -> list[str]:
        """The folders in which a process of this script starts."""
        with open(f"/proc/{program.pid}/task/{program.pid}/children") as file:
            children = file.read().split()
        lines = []
        for child in children:
            with open(f"/proc/{child}/cmdline") as file:
                lines += [word for word in file.read().split("\0") if word.startswith("/tmp/zc-") and word.endswith("/h")]
        return lines

    (home,) = eventually(starting, "the start of the head")
    program.signal(signal.SIGKILL)
    program.finish()
    assert_all_gone(os.path.dirname(home), [])
