"""Strangers at the ports of a cluster, other users of its machine, and other clusters: none gets in, and none is in the way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zray as ray
from zray.base import wire
from zray.base.wire import CONTROL
from zray.cluster_utils import Cluster
from zray.io.cluster_key import ClusterKey
from zray.io.session import SHM_DIRECTORY, living_nodes
from zray.io.spawn import guarded
from zray.ops.daemon import INSECURE
from zray.runtime.agent_process import ask_cluster
from zray.runtime.process import Process

from .driving import Script, eventually
from .strangers import ATTACKS, HOST, Attack, addresses_of, descriptors, huge_frame, knock, ports_of, resident_mb

SLACK = 10  # descriptors that come and go with work


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    """A head and a node of one CPU each; this process is connected."""
    with Cluster(head_node_args={"num_cpus": 1, "resources": {"here": 1}}, connect=True) as cluster:
        cluster.add_node(num_cpus=1, resources={"there": 1})
        ray.put(0).future().result(30)  # the thread that serves futures belongs to the cluster, not to one test
        ray.get([where.options(resources={name: 0.1}).remote() for name in ("here", "there")])
        yield cluster


@ray.remote
def square(n: int) -> int:
    return n * n


@ray.remote(num_cpus=0)
def where() -> int:
    return os.getpid()


def pids_of(cluster: Cluster) -> list[int]:
    """All processes of a cluster."""
    found = [node.pid for node in cluster.list_all_nodes()]
    for pid in found:  # which grows meanwhile
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


# -- who knocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_the_cluster_works_while_strangers_knock_and_afterwards_nothing_of_them_is_left(two: Cluster, name: str) -> None:
    nodes = two.list_all_nodes()
    open_before = [descriptors(node.pid) for node in nodes]
    with Attack(name, [port for node in nodes for port in ports_of(node.pid)]):
        for _ in range(10):
            assert ray.get([square.remote(n) for n in range(100)]) == [n * n for n in range(100)]
        everywhere = [where.options(resources={place: 0.1}).remote() for place in ("here", "there")]
        assert len(set(ray.get(everywhere))) == 2
    for node, count in zip(nodes, open_before, strict=True):
        eventually(lambda node=node, count=count: descriptors(node.pid) <= count + SLACK, "descriptors given back")
        assert node.alive() and "Traceback" not in node.log()
    assert len([node for node in ray.nodes() if node["Alive"]]) == len(nodes)


def test_workers_are_knocked_at_in_vain_too(two: Cluster) -> None:
    worker = ray.get(where.options(resources={"there": 0.1}).remote())
    before = descriptors(worker)
    with Attack("1,000 that only greet", ports_of(worker)):
        eventually(lambda: descriptors(worker) > before + SLACK, "strangers at the door")
        assert ray.get([square.remote(n) for n in range(300)]) == [n * n for n in range(300)]
    eventually(lambda: descriptors(worker) <= before + SLACK, "descriptors given back")


@pytest.mark.parametrize("length", [1 << 62, 1 << 30, 1 << 19])
def test_a_huge_frame_takes_no_memory_before_it_is_known_who_sends_it(two: Cluster, length: int) -> None:
    for node in two.list_all_nodes():
        before = resident_mb(node.pid)
        for port in ports_of(node.pid):
            assert huge_frame(port, length) < 64 << 20, "the connection was cut; what the kernel took before is not much"
        assert resident_mb(node.pid) < before + 32
        assert node.alive()


def test_who_says_nothing_is_cut_off_after_a_while(two: Cluster) -> None:
    for port in ports_of(two.list_all_nodes()[1].pid):
        with knock(port, b"") as silent:
            silent.settimeout(30.0)
            with contextlib.suppress(ConnectionResetError):
                while silent.recv(1000):  # its own greeting
                    pass


def test_the_log_says_in_few_lines_who_was_refused(two: Cluster) -> None:
    for node in two.list_all_nodes():
        port = ports_of(node.pid)[0]
        for _ in range(300):
            with socket.create_connection((HOST, port), 30.0) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        lines = eventually(lambda node=node: [line for line in node.log().splitlines() if "failed before" in line], "a line")
        assert len(lines) < 50 and "connections over tcp that failed before they were made" in lines[0]


# -- keys -----------------------------------------------------------------------------------------------------------


def secrets_of(cluster: Cluster) -> list[bytes]:
    [path] = {f"{os.path.dirname(os.path.dirname(os.path.dirname(n.session_dir)))}/key" for n in cluster.list_all_nodes()}
    key = ClusterKey.load(path)
    return [secret.encode() for secret in (key.server_secret, key.client_secret)]


def test_the_key_is_in_no_title_environment_or_log(two: Cluster) -> None:
    @ray.remote
    def shout() -> None:
        print(os.environ)
        print(vars(ray.get_runtime_context()))
        raise ValueError("in the log too")

    with pytest.raises(ValueError, match="in the log"):
        ray.get(shout.remote())
    pids = pids_of(two)
    assert len(pids) >= 6, "two nodes, two zygotes, two workers"
    seen = {}
    for pid in [*pids, os.getpid()]:
        for what in ("cmdline", "environ", "comm"):
            with open(f"/proc/{pid}/{what}", "rb") as file:
                seen[f"{what} of {pid}"] = file.read()
    for node in two.list_all_nodes():
        seen[node.log_path] = node.log().encode()
        for directory, _, names in os.walk(node.session_dir):
            for path in (os.path.join(directory, name) for name in names):
                if stat.S_ISREG(os.stat(path).st_mode):
                    with open(path, "rb") as file:
                        seen[path] = file.read()
    for secret in secrets_of(two):
        assert [where for where, text in seen.items() if secret in text] == []


def test_files_are_for_their_user_alone(two: Cluster) -> None:
    ray.get(ray.put(bytes(1 << 20)))
    for node in two.list_all_nodes():
        paths = [node.session_dir, os.path.dirname(node.session_dir)]
        for directory, _, names in os.walk(node.session_dir):
            paths += [directory, *(os.path.join(directory, name) for name in names)]
        paths.append(os.path.join(SHM_DIRECTORY, f"zray-{os.getuid()}-{os.path.basename(node.session_dir)}"))
        modes = {path: os.stat(path).st_mode for path in paths}
        open_to_others = {
            path: oct(mode) for path, mode in modes.items() if mode & 0o077 and not stat.S_ISSOCK(mode)
        }  # sockets lie in directories that nobody else may enter
        assert open_to_others == {}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_finds_every_door_shut(two: Cluster) -> None:
    session = two.list_all_nodes()[0].session_dir
    segment = os.path.join(SHM_DIRECTORY, f"zray-0-{os.path.basename(session)}")
    home = os.path.dirname(os.path.dirname(os.path.dirname(session)))

    def try_all() -> list[str]:
        def ipc() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{session}/h")

        tries: dict[str, Callable[[], Any]] = {
            "list": lambda: os.listdir(session),
            "key": lambda: os.open(f"{home}/key", os.O_RDONLY),
            "memory": lambda: os.open(segment, os.O_RDONLY),
            "socket": ipc,
            "environment": lambda: os.open(f"/proc/{two.list_all_nodes()[0].pid}/environ", os.O_RDONLY),
        }
        done = []
        for name, attempt in tries.items():
            with contextlib.suppress(PermissionError):
                attempt()
                done.append(name)
        return done

    assert as_nobody(try_all) == ""


def as_nobody(function: Callable[[], list[str]]) -> str:
    """What a function finds as another user, in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(write, " ".join(function()).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    return found


# -- several clusters -----------------------------------------------------------------------------------------------

_JOIN = """
try:
    context = ray.init(address=os.environ["WHICH"])
    say("joined", context["address"], len(ray.nodes()))
except ConnectionError as error:
    say("refused", error)
"""


class Command:
    """``zray-head`` or ``zray-node`` as a user starts it, with nothing chosen but where its files lie."""

    def __init__(self, name: str, home: str, *options: str) -> None:
        program = f"import sys; from zray.ops import cli; sys.exit(cli.{name}())"
        root = os.path.dirname(os.path.dirname(ray.__file__))
        with open(os.path.join(home, "commands.log"), "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, "--num-cpus", "1", "--object-store-memory", str(1 << 24), *options],
                env={**os.environ, "PYTHONPATH": root, "ZRAY_TMPDIR": home},
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        self.node = eventually(lambda: [n for n in living_nodes(home) if n["pid"] == self._process.pid], f"a {name}")[0]
        self.address: str = self.node["address"]

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture
def command(home: str) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(name: str, *options: str) -> Command:
        started.append(Command(name, home, *options))
        return started[-1]

    yield start
    for each in reversed(started):
        each.end()


def test_clusters_of_one_user_on_one_machine_do_not_meet(
    command: Callable[..., Command], script: Callable[..., Script]
) -> None:
    one, other = command("head", "--host", HOST), command("head", "--host", HOST)
    assert one.address != other.address and one.node["session"] != other.node["session"]
    assert one.node["key_file"] != other.node["key_file"]
    refused = script(_JOIN, WHICH="auto").until("refused")
    assert "2 clusters run on this machine" in refused and one.address in refused and other.address in refused
    for head in (one, other):
        assert script(_JOIN, WHICH=head.address).until("joined") == f"{head.address} 1"
    command("node", "--address", other.address)
    assert script(_JOIN, WHICH=one.address).until("joined") == f"{one.address} 1"
    assert script(_JOIN, WHICH=other.address).until("joined") == f"{other.address} 2"
    one.end()
    assert script(_JOIN, WHICH="auto").until("joined") == f"{other.address} 2"


def test_without_a_key_it_listens_on_the_loopback_only_unless_told_otherwise(
    command: Callable[..., Command], script: Callable[..., Script]
) -> None:
    head = command("head", "--insecure")
    assert head.address.startswith("127.0.0.1:") and head.node["key_file"] == ""
    node = command("node", "--insecure", "--address", head.address)
    assert script(_JOIN, WHICH="auto").until("joined") == f"{head.address} 2"
    for each in (head, node):
        assert set(addresses_of(each.node["pid"])) == {"127.0.0.1"}
    told = command("head", "--insecure", "--host", "127.0.0.2")
    assert set(addresses_of(told.node["pid"])) == {"127.0.0.2"}


# -- who answers ----------------------------------------------------------------------------------------------------


class Impostor(Process):
    """Listens where a head should: its first answer is code, its second an answer."""

    def __init__(self, home: str, code: Any) -> None:
        super().__init__(CONTROL, "control", f"ipc://{home}/h", INSECURE, wire.decode_plain, 0.005, 1 << 24)
        self._code = code
        self.add_handlers(self, "control")

    def on_join_cluster(self, now: float, peer: bytes, request_id: int) -> None:
        self.send(peer, wire.Reply(request_id, True, self._code))
        self.transport.flush()
        self.send(peer, wire.Reply(request_id, True, {"config": {}, "cluster_id": INSECURE}))


class Written:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return open, (self._path, "w")


def test_what_answers_a_node_that_joins_runs_nothing_in_it(home: str) -> None:
    path = os.path.join(home, "written")
    pid = os.fork()
    if pid == 0:
        guarded(Impostor(home, Written(path)).loop.run)
    try:
        eventually(lambda: os.path.exists(os.path.join(home, "h")), "somebody who listens")
        answer = ask_cluster(f"ipc://{home}/h", INSECURE, None)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert answer == {"config": {}, "cluster_id": INSECURE.hex()}
    assert not os.path.exists(path)
