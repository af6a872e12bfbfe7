"""A cluster of three nodes under work, whose processes are killed and stopped at random.

Two drivers do work whose answer is known (``driver.py``), one of them on a node that may be killed under it. Every few seconds
one process is killed, or stopped for a while: a worker, a zygote, the agent of a node (then another node comes), a driver (then
another one comes), the control, the agent of the head's machine. A round is right if its answer is exact, or an error of the
kind that its documentation names; it must be over in time. At the end nothing may be left.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zray.cluster_utils import Cluster, ClusterNode

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("driver.py")
HANG_S = 30.0  # no round may take longer
NODE_DIED = 3
ALLOWED = {"exact", "ActorDiedError", "ActorUnavailableError"}
NODES = 2  # beside the head


@dataclass
class Report:
    """What happened."""

    faults: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        survived = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        work = ", ".join(f"{count} {name}" for name, count in sorted(self.rounds.items()))
        how = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        lines = [
            f"{self.faults.total()} faults survived: {survived}",
            f"{self.rounds.total()} rounds: {work}; the slowest took {self.slowest_s:.1f} s",
            f"outcomes: {how}",
        ]
        return "\n".join(lines + [f"PROBLEM: {problem}" for problem in self.problems])


class Driver:
    """One driver process on a node."""

    def __init__(self, node: ClusterNode, seed: int) -> None:
        self.node = node
        self.killed = False
        self.heard_at = time.monotonic()
        home = os.path.dirname(os.path.dirname(node.session_dir))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), home, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._buffer = b""

    def close(self) -> None:
        """Nothing more is asked of it, or heard."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def lines(self) -> list[dict[str, Any]]:
        """The rounds that it has finished since the last time."""
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], 0.0)[0]:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                break
            self._buffer += data
        *whole, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in whole]


class Storm:
    """One run.

    Args:
        seed: decides who is hit when; what the processes do meanwhile is theirs.
        seconds: how long faults go on.
        period_s: between two faults.
        say: what happens is told here.
    """

    def __init__(self, seed: int, seconds: float, period_s: float, say: Any = lambda text: None) -> None:
        self.report = Report()
        self._rng = random.Random(seed)
        self._seconds = seconds
        self._period_s = period_s
        self._say = say
        self._drivers: list[Driver] = []
        self._stopped: list[tuple[float, int, Any]] = []  # until when, whose pid, and the node if it is an agent
        self._homes: list[str] = []
        self._seed = seed
        self._cluster: Cluster

    def run(self) -> Report:
        """Let it rage, then let it calm down, and look at what is left."""
        with Cluster(head_node_args={"num_cpus": 2, "object_store_memory": 256 << 20}) as self._cluster:
            self._add_nodes()
            assert self._cluster.head_node is not None
            self._drivers = [Driver(self._cluster.head_node, self._seed), Driver(self._cluster.worker_nodes[0], self._seed + 1)]
            begun = time.monotonic()
            next_fault = begun + self._period_s
            while time.monotonic() < begun + self._seconds and not self.report.problems:
                self._listen(0.05)
                self._resume()
                if time.monotonic() >= next_fault:
                    next_fault += self._period_s
                    self._fault()
            self._resume(everybody=True)
            self._calm()
        self._look_for_remains()
        return self.report

    # -- work -----------------------------------------------------------------------------------------------------

    def _listen(self, at_most_s: float) -> None:
        """Take what drivers say; replace those that ended with their nodes, or were killed."""
        select.select([d.process.stdout for d in self._drivers], [], [], at_most_s)
        for driver in list(self._drivers):
            for line in driver.lines():
                self._judge(driver, line)
            code = driver.process.poll()
            if code is not None:
                self._drivers.remove(driver)
                driver.close()
                if not (driver.killed or (code == NODE_DIED and not driver.node.alive()) or code == NODE_DIED):
                    self.report.problems.append(f"a driver ended with code {code}")
                self.report.outcomes["NodeDiedError"] += code == NODE_DIED
                self._drivers.append(Driver(self._rng.choice(self._cluster.list_all_nodes()), self._rng.getrandbits(20)))
            elif time.monotonic() - driver.heard_at > HANG_S + self._time_stopped(driver):
                self.report.problems.append(f"a driver (pid {driver.process.pid}) has finished no round for {HANG_S:g} s")

    def _judge(self, driver: Driver, line: dict[str, Any]) -> None:
        driver.heard_at = time.monotonic()
        if line["work"] == "init":  # its node was killed under it
            self.report.outcomes[f"{line['outcome']} of init"] += 1
            return
        self.report.rounds[line["work"]] += 1
        for kind in line["outcome"].split(", "):
            self.report.outcomes[kind if kind in ALLOWED else "wrong"] += 1
            if kind not in ALLOWED:
                self.report.problems.append(f"{line['work']}: {line['outcome']}")
        self.report.slowest_s = max(self.report.slowest_s, line.get("s", 0.0))

    def _time_stopped(self, driver: Driver) -> float:
        return 10.0 if any(node is driver.node for _, _, node in self._stopped) else 0.0

    # -- faults ---------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        faults = [
            (6, self._kill_worker),
            (2, self._stop_worker),
            (1, self._kill_zygote),
            (2, self._kill_node),
            (1, self._stop_node),
            (1, self._kill_driver),
            (2, self._kill_control),
            (1, self._kill_agent_of_head),
        ]
        weights = [weight for weight, _ in faults]
        self._rng.choices([fault for _, fault in faults], weights)[0]()

    def _hit(self, name: str, pid: int, number: int = signal.SIGKILL) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return  # it has ended by itself meanwhile
        self.report.faults[name] += 1
        self._say(f"{name}: pid {pid}")

    def _some(self, name: str) -> int | None:
        """A process of the cluster that calls itself so."""
        nodes = [node for node in self._cluster.list_all_nodes() if node.alive()]
        found = [pid for node in nodes for pid, own in processes_of(home_of(node)).items() if own == name]
        return self._rng.choice(sorted(found)) if found else None

    def _kill_worker(self) -> None:
        pid = self._some("zray-worker")
        if pid is not None:
            self._hit("worker killed", pid)

    def _stop_worker(self) -> None:
        pid = self._some("zray-worker")
        if pid is not None:
            self._hit("worker stopped", pid, signal.SIGSTOP)
            self._stopped.append((time.monotonic() + self._rng.uniform(0.1, 2.0), pid, None))

    def _kill_zygote(self) -> None:
        victims = [node for node in self._cluster.worker_nodes if node.alive()]
        node = self._rng.choice(victims)
        pids = [pid for pid, own in processes_of(home_of(node)).items() if own == "zray-zygote"]
        if pids:
            self._hit("zygote killed", pids[0])
            self._replace(node)

    def _kill_node(self) -> None:
        node = self._rng.choice(self._cluster.worker_nodes)
        self._hit("node killed", node.pid)
        self._replace(node)

    def _replace(self, node: ClusterNode) -> None:
        self._stopped = [row for row in self._stopped if row[2] is not node]
        self._cluster.remove_node(node, allow_graceful=False)
        self._add_nodes()

    def _stop_node(self) -> None:
        """For a moment, or for so long that it is given up and comes back as another."""
        node = self._rng.choice(self._cluster.worker_nodes)
        seconds = self._rng.choice([0.5, 1.0, 5.0])
        self._hit(f"node stopped for {seconds:g} s", node.pid, signal.SIGSTOP)
        self._stopped.append((time.monotonic() + seconds, node.pid, node))

    def _kill_control(self) -> None:
        self._kill_child("zray-control", "control killed")

    def _kill_agent_of_head(self) -> None:
        self._kill_child("zray-node", "agent of the head killed")

    def _kill_child(self, title: str, name: str) -> None:
        """The head starts another at once."""
        assert self._cluster.head_node is not None
        pid = self._cluster.head_node.child(title)
        if pid:
            self._hit(name, pid)

    def _kill_driver(self) -> None:
        driver = self._rng.choice(self._drivers)
        driver.killed = True
        self._hit("driver killed", driver.process.pid)

    def _resume(self, everybody: bool = False) -> None:
        now = time.monotonic()
        for row in list(self._stopped):
            if everybody or now >= row[0]:
                self._stopped.remove(row)
                try:
                    os.kill(row[1], signal.SIGCONT)
                except ProcessLookupError:
                    pass  # somebody has killed it meanwhile

    def _add_nodes(self) -> None:
        while len(self._cluster.worker_nodes) < NODES:
            node = self._cluster.add_node(num_cpus=2, object_store_memory=256 << 20)
            self._homes.append(home_of(node))

    # -- the end --------------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """Drivers finish their rounds and end."""
        for driver in self._drivers:
            assert driver.process.stdin is not None
            driver.process.stdin.close()
        for driver in self._drivers:
            try:
                code = driver.process.wait(HANG_S)
            except subprocess.TimeoutExpired:
                self.report.problems.append(f"a driver (pid {driver.process.pid}) did not end within {HANG_S:g} s")
                driver.process.kill()
                driver.process.wait()
                driver.close()
                continue
            for line in driver.lines():
                self._judge(driver, line)
            driver.close()
            if code not in (0, NODE_DIED) and not driver.killed:
                self.report.problems.append(f"a driver ended with code {code}")

    def _look_for_remains(self) -> None:
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline and any(processes_of(home) for home in self._homes):
            time.sleep(0.05)
        for home in self._homes:
            left = processes_of(home)
            if left:
                self.report.problems.append(f"processes were left: {left}")


def home_of(node: ClusterNode) -> str:
    return os.path.dirname(os.path.dirname(node.session_dir))


def processes_of(home: str) -> dict[int, str]:
    """The processes whose command lines name a folder, and what they call themselves."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if home.encode() + b"/" not in file.read().replace(b"\0", b"/"):
                        continue
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    title, _, rest = file.read().partition("(")[2].rpartition(")")
                if rest.split()[0] != "Z":
                    found[int(name)] = title
            except OSError:
                continue  # it has just ended
    return found
