"""A driver that is stopped keeps its work for a while; then its job is over, for it and for everybody else."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import zray as ray
from zray.cluster_utils import Cluster
from zray.util.state import list_actors, list_objects

from .driving import PATIENCE_S, Script, alive, eventually
from .gates import Gate

PROGRAM = """
import numpy as np
from tests.cluster.gates import _Visitor

ray.init(sys.argv[1], _temp_dir=sys.argv[2])
gate = _Visitor(sys.argv[3])

@ray.remote(max_retries=0)
def task(number):
    if number < 2:
        gate.passed()
        open(gate.path + f".{number}", "w").close()
    return number * number

@ray.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.count = 0
    def add(self):
        self.count += 1
        return self.count
    def wait(self):
        gate.passed()
        open(gate.path + ".actor", "w").close()
        return self.count
    def pid(self):
        return os.getpid()

counter = Counter.remote()
kept = ray.put(np.arange(1 << 18))
say("pid", ray.get(counter.pid.remote()))
calls = [counter.add.remote() for _ in range(5)] + [counter.wait.remote()] + [counter.add.remote() for _ in range(5)]
tasks = [task.remote(number) for number in range(50)]
say("submitted")
"""
ANSWERS = """
assert ray.get(tasks) == [number * number for number in range(50)]
assert ray.get(calls) == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]
assert ray.get(counter.add.remote()) == 11
assert ray.get(ray.remote(lambda array: int(array.sum())).remote(kept)) == int(ray.get(kept).sum()) == sum(range(1 << 18))
ray.shutdown()
say("right")
"""
TOLD = """
for ask in (lambda: tasks, lambda: calls[-1], lambda: counter.add.remote(), lambda: task.remote(3)):
    try:
        ray.get(ask(), timeout=30)
    except (ray.exceptions.RaySystemError, ray.exceptions.ActorDiedError) as error:
        say("told", error)
ray.shutdown()
ray.init(sys.argv[1], _temp_dir=sys.argv[2])
assert ray.get(ray.remote(lambda: "again").remote()) == "again"
ray.shutdown()
say("joined")
"""


class Drivers:
    """A cluster with two drivers: this process, and a script that is stopped."""

    def __init__(self, cluster: Cluster, script: Callable[..., Script], path: Path) -> None:
        self.cluster = cluster
        self.gate = Gate(str(path / "gate"))
        self.start = script
        self._path = path

    def script(self, rest: str) -> Script:
        """Start the script, and stop it while a call of its actor and two of its tasks run."""
        setting = f"sys.argv += [{self.cluster.address!r}, {self.cluster._home + '/h'!r}, {self.gate.path!r}]"
        program = self.start(f"{setting}\n{PROGRAM}\n{rest}")
        self.actor_pid = int(program.until("pid"))
        program.until("submitted")
        self.gate.wait_for(3)
        program.signal(signal.SIGSTOP)
        return program

    def done(self) -> bool:
        """Whether all that ran when the script was stopped has come to its end."""
        return all((self._path / f"gate.{which}").exists() for which in ("0", "1", "actor"))


@pytest.fixture
def drivers(request: pytest.FixtureRequest, script: Callable[..., Script], tmp_path: Path) -> Iterator[Drivers]:
    limits = {"ZRAY_DRIVER_DEATH_S": request.param, "ZRAY_HEALTH_CHECK_MS": "100"}
    with Cluster(head_node_args={"num_cpus": 2, "env_vars": limits}, connect=True) as cluster:
        made = Drivers(cluster, script, tmp_path)
        yield made
        made.gate.open()


@ray.remote(num_cpus=0)
class Other:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


@pytest.mark.parametrize("drivers", ["300"], indirect=True)
def test_a_driver_that_goes_on_in_time_has_lost_nothing(drivers: Drivers) -> None:
    other = Other.remote()
    program = drivers.script(ANSWERS)
    drivers.gate.open()
    eventually(drivers.done, "the end of what runs")
    assert ray.get([other.add.remote() for _ in range(100)], timeout=PATIENCE_S) == list(range(1, 101)), "it goes on for others"
    program.signal(signal.SIGCONT)
    program.until("right")
    assert program.finish()[0] == 0


@pytest.mark.parametrize("drivers", ["1"], indirect=True)
def test_a_driver_that_is_stopped_for_too_long_is_tidied_up_after_and_told(drivers: Drivers) -> None:
    other, mine = Other.remote(), ray.put(np.zeros(1 << 18))
    assert ray.get(other.add.remote()) == 1
    program = drivers.script(TOLD)
    eventually(lambda: not alive(drivers.actor_pid), "the end of its actor")
    assert ray.get(ray.remote(num_cpus=2)(lambda: "free").remote(), timeout=PATIENCE_S) == "free"
    eventually(lambda: len(list_objects()) == 1, "the end of its objects")
    assert [actor["state"] for actor in list_actors()].count("ALIVE") == 1
    assert ray.get(other.add.remote(), timeout=PATIENCE_S) == 2 and not ray.get(mine, timeout=PATIENCE_S).any()
    assert alive(program.pid)
    program.signal(signal.SIGCONT)
    told = [program.until("told") for _ in range(4)]
    assert told[0] == told[3] == (
        "this job has ended: the driver was stopped for 1 s (ZRAY_DRIVER_DEATH_S). "
        "Call zray.shutdown() and zray.init() to join again"
    )
    assert all("its job ended" in text or text == told[0] for text in told[1:3]), "the actor itself is known to be dead"
    program.until("joined")
    assert program.finish()[0] == 0
    assert ray.get(other.add.remote(), timeout=PATIENCE_S) == 3


@pytest.mark.parametrize("drivers", ["300"], indirect=True)
def test_a_driver_that_is_killed_before_its_first_word_to_its_node_ends(drivers: Drivers) -> None:
    """It registers its job, and is gone before it has said anything to the agent of its machine."""
    program = drivers.start(
        f"""
from zray.runtime.driver import Driver

def die(self, *arguments):
    say("registered", self.me.hex())
    os.kill(os.getpid(), signal.SIGKILL)

Driver._join = die
ray.init({drivers.cluster.address!r}, _temp_dir={drivers.cluster._home + '/h'!r})
"""
    )
    died = bytes.fromhex(program.until("registered"))
    assert program.finish()[0] == -signal.SIGKILL
    eventually(lambda: states(drivers.cluster)[died] == "DIED", "the end of its job")


def states(cluster: Cluster) -> dict[bytes, str]:
    """The jobs that the control has written down, by their drivers."""
    (path,) = Path(cluster._home, "h").glob("zray-*/s-*/gcs.sqlite")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        found = dict(database.execute("SELECT driver, state FROM jobs"))
    database.close()
    return found
