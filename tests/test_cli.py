"""The console commands say plainly that they can not do anything yet."""

from __future__ import annotations

import pytest

from zray.ops import cli


@pytest.mark.parametrize("command", [cli.head, cli.node])
def test_commands_refuse_with_one_sentence_and_code_2(command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "not available in this version" in told.err and "zray.init()" in told.err


@pytest.mark.parametrize("command", [cli.head, cli.node])
def test_help_is_given_and_is_no_error(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: zray-")


def test_an_address_to_join_is_understood_and_an_unknown_option_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.node(["--address", "10.0.0.1:6379"]) == 2
    with pytest.raises(SystemExit) as end:
        cli.node(["--adress", "10.0.0.1:6379"])
    assert end.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
