"""The console commands: what they accept, what they refuse and how they say it."""

from __future__ import annotations

import re

import pytest

from zray.ops import cli, network


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
        (cli.head, ["--num-cpus", "-1"], "must not be negative"),
        (cli.head, ["--log-level", "LOUD"], "--log-level must be"),
    ],
)
def test_what_is_wrong_is_named(command, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command(arguments)
    assert end.value.code == 2
    assert re.search(text, capsys.readouterr().err)


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
