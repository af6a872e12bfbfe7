"""The console commands: what they accept, what they refuse and how they say it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zray.ops import cli, network

HAS_IPV6 = Path("/proc/net/if_inet6").exists() and "lo" in Path("/proc/net/if_inet6").read_text()


@pytest.mark.parametrize("command", [cli.head, cli.node])
def test_help_is_given_and_is_no_error(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: zray-") and "examples:" in told


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        (cli.node, [], "--address HOST:PORT is needed"),
        (cli.node, ["--address", "nowhere"], "written HOST:PORT"),
        (cli.node, ["--address", "::1:6390"], r"\[HOST\]:PORT"),
        (cli.node, ["--adress", "10.0.0.1:6379"], "unrecognized arguments"),
        (cli.head, ["--port", "70000"], "between 0 and 65535"),
        (cli.head, ["--resources", "[1]"], "JSON object of amounts"),
        (cli.head, ["--resources", '{"CPU": 1}'], "must not name CPU"),
        (cli.head, ["--resources", '{"disk": -1}'], "JSON object of amounts"),
        (cli.head, ["--labels", "zone"], "NAME=VALUE"),
        (cli.head, ["--resources", '{"": 1}'], "a name for each amount"),
        (cli.head, ["--resources", '{"disk": 1e400}'], "--resources: a resource amount must be a finite number"),
        (cli.head, ["--labels", "zone=a,zone=b"], "says twice what zone is"),
        (cli.head, ["--num-cpus", "-1"], "--num-cpus: a resource amount cannot be negative"),
        (cli.head, ["--num-cpus", "nan"], "--num-cpus: a resource amount must be a finite number"),
        (cli.head, ["--num-cpus", "many"], "--num-cpus: invalid float value: 'many'"),
        (cli.head, ["--num-gpus", "0.5"], "--num-gpus must be a whole number, not 0.5"),
        (cli.head, ["--num-gpus", "0.00001"], "--num-gpus: a resource amount has at most four decimals"),
        (cli.head, ["--object-store-memory", "10"], "--object-store-memory must be 1048576 bytes at least, not 10"),
        (cli.head, ["--host", "0.0.0.0"], "--host must be the one address of this machine by which the others reach it"),
        (cli.node, ["--address", "127.0.0.1:6390", "--host", "::"], "--host must be the one address"),
        (cli.node, ["--address", "[::1:6390"], r"\[HOST\]:PORT"),
        (cli.node, ["--address", "host:0"], "written HOST:PORT"),
        (cli.head, ["--log-level", "LOUD"], "--log-level must be"),
        (cli.head, ["--session-dir", "/tmp/" + "x" * 60], "has 65 bytes in its path.*--session-dir"),
        (cli.head, ["--session-dir", "/tmp/" + "x" * 60, "--stop"], "has 65 bytes in its path.*--session-dir"),
    ],
)
def test_what_is_wrong_is_named(command, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command(arguments)
    assert end.value.code == 2
    assert re.search(text, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        (cli.head, ["--host", "203.0.113.7"], "203.0.113.7 is no address of this machine"),
        (cli.head, ["--host", "no-such-host.invalid"], "the host 'no-such-host.invalid' is not known"),
        (cli.node, ["--address", "no-such-host.invalid:6390"], "the host 'no-such-host.invalid' is not known"),
        (cli.node, ["--address", "127.0.0.1:6390", "--host", "203.0.113.7"], "203.0.113.7 is no address of this machine"),
    ],
)
def test_what_this_machine_can_not_do_is_told(
    command, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(arguments) == 1
    told = capsys.readouterr().err
    assert text in told and told.count("\n") == 1


def test_a_node_tells_the_address_from_which_it_reaches_the_head() -> None:
    assert network.address_towards("127.0.0.1", 6390) == "127.0.0.1"
    assert network.address_towards("localhost", 6390) == "127.0.0.1", "names stand for addresses of IPv4"
    network.check_own(network.own_address())


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no loopback of IPv6")
def test_addresses_of_ipv6() -> None:
    assert network.address_towards("::1", 6390) == "::1"
    network.check_own("::1")
    with pytest.raises(OSError, match="2001:db8::7 is no address of this machine"):
        network.check_own("2001:db8::7")


@pytest.mark.parametrize("command", [cli.head, cli.node])
def test_there_is_nothing_to_stop(command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--stop"]) == 1
    assert "none runs here" in capsys.readouterr().err


def test_a_node_without_the_key_of_the_cluster_says_where_it_looked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.node(["--address", "127.0.0.1:9"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("zray-node: ") and "key" in told


@pytest.mark.parametrize(
    ("address", "parts"), [("10.0.0.1:80", ("10.0.0.1", 80)), ("[::1]:6390", ("::1", 6390)), ("head:1", ("head", 1))]
)
def test_addresses_are_read_and_written(address: str, parts: tuple[str, int]) -> None:
    assert network.split(address) == parts
    assert network.joined(*parts) == address


def test_of_several_networks_that_is_told_by_which_the_head_is_reached() -> None:
    """In a network namespace of its own, with two networks."""
    program = (
        "from zray.ops import network\n"
        "print(network.address_towards('10.1.0.9', 1), network.address_towards('10.2.0.9', 1))\n"
        "try: network.address_towards('10.3.0.9', 1)\n"
        "except OSError as error: print(error.strerror)\n"
        "print(network.own_address())"
    )
    setup = "ip link set lo up && ip addr add 10.1.0.5/24 dev lo && ip addr add 10.2.0.5/24 dev lo"
    line = ["unshare", "--net", "sh", "-c", f'{setup} && exec "$0" -c "$1"', sys.executable, program]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=60)
    if answer.returncode and "unshare" in answer.stderr:
        pytest.skip(f"the kernel refuses network namespaces: {answer.stderr.strip()}")
    assert answer.stdout.splitlines() == [
        "10.1.0.5 10.2.0.5",
        "there is no way from this machine to 10.3.0.9:1: Network is unreachable",
        "127.0.0.1",
    ]
