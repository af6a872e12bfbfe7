"""The key-value store of the cluster: drivers and tasks see the same, and it is on disk when a put returns."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator

import pytest

import zray as ray
from zray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_exists,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)


@pytest.fixture(scope="module", autouse=True)
def session_dir(local_mode: bool) -> Iterator[str]:
    yield ray.init(num_cpus=1, local_mode=local_mode)["session_dir"]
    ray.shutdown()


def test_values_are_found_again_and_namespaces_are_apart() -> None:
    assert _internal_kv_put("a", "1") is False
    assert _internal_kv_put(b"a", b"2", overwrite=False) is True
    assert _internal_kv_get("a") == b"1"
    assert _internal_kv_get("a", namespace="other") is None
    assert _internal_kv_put("a", "3") is True
    assert _internal_kv_get("a") == b"3"
    assert _internal_kv_del("a") == 1
    assert _internal_kv_del("a") == 0
    assert not _internal_kv_exists("a")


def test_keys_are_listed_by_prefix() -> None:
    for name in ("job-1", "job-2", "node-1"):
        _internal_kv_put(name, "x", namespace="list")
    assert sorted(_internal_kv_list("job", namespace="list")) == [b"job-1", b"job-2"]


def test_a_task_sees_what_the_driver_put_and_the_other_way_round() -> None:
    @ray.remote
    def swap() -> bytes | None:
        _internal_kv_put("from the task", "y", namespace="swap")
        return _internal_kv_get("from the driver", namespace="swap")

    _internal_kv_put("from the driver", "x", namespace="swap")
    assert ray.get(swap.remote()) == b"x"
    assert _internal_kv_get("from the task", namespace="swap") == b"y"


@pytest.mark.processes("there is no database")
def test_what_was_put_is_in_the_database(session_dir: str) -> None:
    _internal_kv_put("kept", "z", namespace="disk")
    with sqlite3.connect(os.path.join(session_dir, "gcs.sqlite")) as database:
        rows = database.execute("SELECT value FROM kv WHERE namespace = ? AND key = ?", (b"disk", b"kept")).fetchall()
    database.close()
    assert rows == [(b"z",)]


def test_anything_else_than_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes or strings, not int: 1"):
        _internal_kv_put(1, "x")  # type: ignore[arg-type]
