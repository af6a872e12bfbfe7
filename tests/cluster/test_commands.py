"""The commands as operators use them: in the background, ended, started anew, with IPv6, several clusters at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import zray
from zray.io.session import living_nodes

from .driving import PATIENCE_S, Script, alive, assert_nothing_remains, eventually

HAS_IPV6 = Path("/proc/net/if_inet6").exists() and "lo" in Path("/proc/net/if_inet6").read_text()
_PROGRAM = """
import numpy as np
from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

context = ray.init(address=os.environ.get("WANTED", "auto"))
say("address", context["address"])

@ray.remote(num_cpus=1)
def make():
    return np.ones(1 << 18)

@ray.remote(num_cpus=1)
def total(array):
    return float(array.sum()), ray.get_runtime_context().get_node_id()

ids = [node["NodeID"] for node in ray.nodes()]
say("nodes", len(ids))
for node_id in ids:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    value, where = ray.get(total.options(scheduling_strategy=there).remote(make.remote()))
    assert (value, where) == (float(1 << 18), node_id)
say("done")
"""


class Operator:
    """Gives commands, and ends whatever is left of what they started."""

    def __init__(self, home: str) -> None:
        self.home = home
        self._homes = [home]

    def __call__(self, command: str, *options: str, home: str = "") -> tuple[int, str]:
        """Run a command; its exit code, and what it said."""
        home = home or self.home
        if home not in self._homes:
            self._homes.append(home)
        name = command.removeprefix("zray-")
        line = [sys.executable, "-c", f"import sys; from zray.ops import cli; sys.exit(cli.{name}())"]
        root = os.path.dirname(os.path.dirname(zray.__file__))
        environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": home, "ZRAY_TMPDIR": home}
        line += ["--session-dir", home, *options]
        done = subprocess.run(line, env=environment, capture_output=True, timeout=PATIENCE_S, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def started(self, command: str, *options: str, home: str = "") -> str:
        """Have it run in the background; the address of the head."""
        code, told = self(command, "--num-cpus", "1", "--object-store-memory", str(1 << 25), "--detach", *options, home=home)
        assert code == 0, told
        found = re.search(r"(?:zray head at|of the cluster at) (\S+)", told)
        assert found is not None, told
        return found[1]

    def end(self) -> None:
        for home in self._homes:
            for node in living_nodes(home):
                os.kill(node["pid"], 15)
                eventually(lambda pid=node["pid"]: not alive(pid), "the end of a node")
                assert_nothing_remains(node["session"])


@pytest.fixture
def operator(home: str) -> Iterator[Operator]:
    given = Operator(home)
    yield given
    given.end()


def done(program: Script) -> None:
    code, told, errors = program.finish()
    assert code == 0 and "done" in told, errors


def sub(home: str, name: str) -> str:
    path = os.path.join(home, name)
    os.makedirs(path, exist_ok=True)
    return path


def test_a_head_in_the_background_is_joined_ended_and_started_anew_with_its_key(
    operator: Operator, home: str, script: Callable[..., Script]
) -> None:
    key = os.path.join(home, "key")
    options = ("--host", "127.0.0.1", "--key-file", key)
    address = operator.started("zray-head", *options)
    first = json.loads(Path(key).read_text())
    assert first["address"] == address and os.stat(key).st_mode & 0o777 == 0o600
    program = script(_PROGRAM, ZRAY_TMPDIR=home)
    assert program.until("address") == address and program.until("nodes") == "1"
    done(program)
    [node] = living_nodes(home)
    assert operator("zray-head", "--stop") == (0, "")
    assert not alive(node["pid"])
    assert_nothing_remains(node["session"])
    assert operator("zray-head", "--stop") == (1, "zray-head: none runs here\n")
    again = operator.started("zray-head", *options)
    second = json.loads(Path(key).read_text())
    assert second == {**first, "address": again}, "who has a copy of the key needs no other"


def test_what_runs_in_the_background_logs_where_nobody_else_may_write(operator: Operator, home: str) -> None:
    code, told = operator("zray-head", "--insecure", "--object-store-memory", str(1 << 25), "--detach")
    found = re.search(r"logs to (\S+)", told)
    assert code == 0 and found is not None, told
    log = Path(found[1])
    assert log.parent == Path(home, f"zray-{os.getuid()}") and log.stat().st_mode & 0o777 == 0o600


def test_a_key_file_that_nobody_has_named_goes_with_its_head(operator: Operator, home: str) -> None:
    address = operator.started("zray-head", "--host", "127.0.0.1")
    [node] = living_nodes(home)
    key = Path(node["key_file"])
    assert json.loads(key.read_text())["address"] == address and key.parent == Path(home, f"zray-{os.getuid()}")
    assert operator("zray-head", "--stop") == (0, "")
    assert not key.exists()


def test_a_key_that_can_not_be_used_is_no_reason_to_make_another(operator: Operator, home: str) -> None:
    key = Path(home, "key")
    key.write_text("{}")
    key.chmod(0o600)
    code, told = operator("zray-head", "--host", "127.0.0.1", "--key-file", str(key))
    assert code == 1 and told.startswith(f"zray-head: {key} is not the key file of a cluster")
    key.chmod(0o644)
    code, told = operator("zray-head", "--host", "127.0.0.1", "--key-file", str(key))
    assert code == 1 and told.startswith(f"zray-head: others can read the key file {key}: chmod 600")
    assert key.read_text() == "{}"


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no loopback of IPv6")
def test_a_cluster_speaks_ipv6(operator: Operator, home: str, script: Callable[..., Script]) -> None:
    key = os.path.join(home, "key")
    node_home = sub(home, "n")
    address = operator.started("zray-head", "--host", "::1", "--key-file", key)
    assert re.fullmatch(r"\[::1\]:\d+", address)
    assert operator.started("zray-node", "--address", address, "--key-file", key, home=node_home) == address
    [node] = living_nodes(node_home)
    assert node["host"] == "::1", "the address from which it reaches the head"
    program = script(_PROGRAM, ZRAY_TMPDIR=node_home, WANTED=address)
    assert program.until("address") == address and program.until("nodes") == "2"
    done(program)


def test_two_clusters_of_one_user_do_not_meet(operator: Operator, home: str, script: Callable[..., Script]) -> None:
    homes = [sub(home, name) for name in "ab"]
    options = [("--host", "127.0.0.1", "--key-file", os.path.join(own, "key")) for own in homes]
    addresses = [operator.started("zray-head", *more, home=own) for own, more in zip(homes, options, strict=True)]
    assert addresses[0] != addresses[1]
    for own, address in zip(homes, addresses, strict=True):
        program = script(_PROGRAM, ZRAY_TMPDIR=own)
        assert program.until("address") == address and program.until("nodes") == "1"
        done(program)
    wrong = (operator("zray-node", "--address", addresses[0], "--key-file", os.path.join(homes[1], "key"), home=sub(home, "n")))
    assert wrong[0] == 1 and "key" in wrong[1]
    third = operator.started("zray-head", *options[0][:3], os.path.join(home, "third"), home=homes[0])
    code, told = operator("zray-head", "--stop", home=homes[0])
    assert code == 1 and "2 run here" in told, "which of them?"
    _, _, errors = script('ray.init(address="auto")', ZRAY_TMPDIR=homes[0]).finish()
    assert "2 clusters run on this machine" in errors and third in errors
    assert operator("zray-head", "--stop", home=homes[1]) == (0, "")
