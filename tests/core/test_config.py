"""Config: defaults, environment, and the trip through a message."""

from __future__ import annotations

import dataclasses

import pytest

from zray.base.config import Config


def test_the_environment_changes_only_what_it_names() -> None:
    changed = Config.from_environment({"ZRAY_MAX_RETRIES": "7", "ZRAY_UNRELATED": "x", "PATH": "/bin"})
    assert changed == dataclasses.replace(Config(), max_retries=7)


@pytest.mark.parametrize(
    ("name", "text", "value"), [("lease_idle_ms", "2.5", 2.5), ("infeasible", "wait", "wait"), ("workers_max", "3", 3)]
)
def test_each_value_gets_the_kind_of_its_default(name: str, text: str, value: object) -> None:
    assert getattr(Config.from_environment({"ZRAY_" + name.upper(): text}), name) == value


def test_a_value_of_the_wrong_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="ZRAY_WORKERS_MAX must be of type int, not 'many'"):
        Config.from_environment({"ZRAY_WORKERS_MAX": "many"})


def test_a_config_crosses_a_message_unchanged() -> None:
    config = Config(inline_bytes_max=1, infeasible="wait")
    assert Config.from_dict(config.as_dict()) == config


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().max_retries = 1  # type: ignore[misc]


def test_every_number_has_its_unit_in_its_name() -> None:
    units = ("_s", "_ms", "_max", "_bytes", "_memory", "_shm")
    plain = {"max_retries", "spill_threshold"}  # a count of itself, and a fraction
    for field in dataclasses.fields(Config):
        if isinstance(field.default, (int, float)):
            assert field.name.endswith(units) or field.name in plain, field.name
