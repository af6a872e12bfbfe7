"""The processes of ``zray-head``: each of them is killed, and comes back or takes the others along."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.cluster_utils import Cluster, ClusterNode
from zray.experimental import internal_kv as kv
from zray.io.session import living_heads, living_nodes, sweep
from zray.ops.supervisor import Child

from .driving import PATIENCE_S, alive, eventually, processes_of
from .test_control_restart import Counter, double, get
from .test_node_deaths import home_of, node_is_dead
from .test_nodes import head, introduced, on

ROOT = Path(__file__).parents[2]


def test_many_kills_under_load_lose_nothing() -> None:
    """As ``scripts/restarts``, in short."""
    assert restarts().run(6, seed=5, pause_s=0.05) == []


def restarts() -> Any:
    path = str(ROOT / "scripts" / "restarts")
    loader = importlib.machinery.SourceFileLoader("restarts", path)
    spec = importlib.util.spec_from_loader("restarts", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_agent_of_the_head_is_killed_and_its_machine_is_another_node() -> None:
    with Cluster(head_node_args={"num_cpus": 1, "resources": {"head": 1}}, connect=True) as cluster:
        cluster.add_node(num_cpus=1, resources={"east": 1})
        introduced(cluster)
        keeps = Counter.options(name="keeps", lifetime="detached", **on("east")).remote()
        get([keeps.add.remote(), double.options(**on("head")).remote(1)])
        old, agent = head(cluster).session_dir, head(cluster).child("zray-node")
        workers = [pid for pid, title in processes_of(home_of(head(cluster))).items() if title in ("zray-worker", "zray-zygote")]
        os.kill(agent, signal.SIGKILL)
        eventually(lambda: not any(alive(pid) for pid in workers), "the end of its workers")
        eventually(node_is_dead, "the end of what this driver was connected to")
        [new] = eventually(lambda: living_nodes(home_of(head(cluster))), "the next agent")
        assert new["node_id"] != head(cluster).node_id and not os.path.exists(old)
        assert not os.path.exists(f"/dev/shm/zray-{os.getuid()}-{os.path.basename(old)}")
        ray.shutdown()
        cluster.connect()
        assert get(double.options(**on("head")).remote(2)) == 4
        assert get(ray.get_actor("keeps", namespace=keeps_namespace()).add.remote()) == 2
        eventually(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, "the death of the old node")


def keeps_namespace() -> str:
    [actor] = [row for row in ray.util.state.list_actors() if row["name"] == "keeps"]
    return str(actor["ray_namespace"])


@pytest.fixture
def home() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="zt-", dir="/tmp")
    yield path
    shutil.rmtree(path)


class HeadProcess:
    """``zray-head`` on a port of the operator's choice."""

    def __init__(self, home: str, port: int) -> None:
        self.home = home
        command = [sys.executable, "-c", "import sys; from zray.ops import cli; sys.exit(cli.head())", "--insecure"]
        command += ["--port", str(port), "--num-cpus", "1", "--object-store-memory", str(80 << 20), "--session-dir", home]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reader.start()
        eventually(lambda: any("other machines" in line for line in self.said) or self._process.poll() is not None, "its start")

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.said.append(line.decode())

    def end(self, number: signal.Signals) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self._process.stderr is not None
        self._process.stderr.close()
        return code


def test_a_head_that_was_killed_is_taken_up_by_the_next_on_its_port_unless_it_ended_in_good_order(home: str) -> None:
    port = free_port()
    first = HeadProcess(home, port)
    ray.init(f"127.0.0.1:{port}", _temp_dir=home)
    kv._internal_kv_put(b"key", b"value")
    processes = [*processes_of(home)]
    first.end(signal.SIGKILL)
    ray.shutdown()
    eventually(lambda: not any(alive(pid) for pid in processes), "the end of all that it had started")
    sweep(home)  # as any other program does when it starts
    second = HeadProcess(home, port)
    assert any("with what an earlier one has left" in line for line in second.said)
    ray.init(f"127.0.0.1:{port}", _temp_dir=home)
    assert kv._internal_kv_get(b"key") == b"value" and get(double.remote(1)) == 2
    ray.shutdown()
    assert second.end(signal.SIGTERM) == 0
    assert living_heads(home) == [] and os.listdir(os.path.join(home, f"zray-{os.getuid()}")) == []
    third = HeadProcess(home, port)
    ray.init(f"127.0.0.1:{port}", _temp_dir=home)
    assert kv._internal_kv_get(b"key") is None
    ray.shutdown()
    third.end(signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_child_that_fails_after_its_report_writes_into_nothing_of_its_own(tmp_path: Path) -> None:
    """The number of the pipe to its supervisor is that of a file by then."""
    own = tmp_path / "own"

    def run(report: Any) -> int:
        report("here")
        for _ in range(4):
            os.open(own, os.O_WRONLY | os.O_CREAT)
        raise OSError("it failed later")

    child = Child("child", run)
    child.start()
    eventually(lambda: child.is_event(select.select(child.sources(), [], [], 1.0)[0])[1], "its end")
    assert child.reap() == "exited with code 1"
    assert child.report == "up here" and own.read_bytes() == b""


def test_a_head_whose_control_can_not_run_says_why(home: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = HeadProcess(home, int(listener.getsockname()[1]))
        assert taken.end(signal.SIGTERM) == 1
    assert any("can not listen at" in line for line in taken.said)


def test_a_control_that_fails_again_and_again_is_given_up(home: str) -> None:
    broken = HeadProcess(home, 0)
    [session] = [row["session"] for row in living_heads(home)]
    with open(os.path.join(session, "gcs.sqlite"), "wb") as file:
        file.write(b"this is no database at all" * 1000)
    for name in ("gcs.sqlite-wal", "gcs.sqlite-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(session, name))
    node = ClusterNode(broken._process, {**living_nodes(home)[0]}, "")
    os.kill(node.child("zray-control"), signal.SIGKILL)
    assert broken._process.wait(PATIENCE_S) == 1
    broken.end(signal.SIGTERM)
    assert any("can not be read: file is not a database" in line for line in broken.said)
