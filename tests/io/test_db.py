"""The control's database: what it keeps, when it says so, who may read it, and what a kill leaves."""

from __future__ import annotations

import os
import queue
import random
import resource
import signal
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from zray.io import db
from zray.io.db import MIGRATIONS, Database, migrate


@pytest.fixture
def path(tmp_path: Any) -> str:
    return str(tmp_path / "gcs.sqlite")


@pytest.fixture
def errors() -> queue.SimpleQueue[BaseException]:
    return queue.SimpleQueue()


@pytest.fixture
def database(path: str, errors: Any) -> Iterator[Database]:
    made = Database(path, errors.put)
    yield made
    made.close()


def sync(database: Database) -> None:
    """All that was queued before is on disk."""
    done = threading.Event()
    database.after(done.set)
    assert done.wait(30)


def rows(path: str, query: str) -> list[Any]:
    """As an operator reads it by hand."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def put(database: Database, key: bytes, value: bytes = b"v") -> None:
    database.execute("save_kv", (b"", key, value))


def test_what_was_written_is_there_after_a_restart(path: str, errors: Any) -> None:
    first = Database(path, errors.put)
    first.execute("save_job", (b"\0\0\0\1", b"driver", 7, "python x.py", "ns", b"", "RUNNING"))
    first.execute("save_function", (b"id", b"\0\0\0\1", "f", b"body"))
    put(first, b"kept")
    put(first, b"gone")
    first.execute("delete_kv", (b"", b"gone"))
    first.execute("finish_job", ("FINISHED", b"\0\0\0\1"))
    first.close()
    saved = db.read(path)
    assert [row["key"] for row in saved["kv"]] == [b"kept"]
    assert saved["functions"][0]["body"] == b"body"
    assert saved["jobs"][0]["state"] == "FINISHED"
    assert saved["jobs"][0]["ended_at"]
    assert errors.empty()


def test_it_can_be_read_by_hand_while_it_runs(path: str, database: Database) -> None:
    put(database, b"a")
    sync(database)
    assert rows(path, "SELECT key FROM kv") == [(b"a",)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    put(database, b"b")
    sync(database)
    assert rows(path, "SELECT count(*) FROM kv") == [(2,)]


def test_a_reader_in_the_middle_of_a_long_query_does_not_stop_the_writer(path: str, database: Database) -> None:
    put(database, b"a")
    sync(database)
    reader = sqlite3.connect(path)
    try:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM kv").fetchone() == (1,)
        put(database, b"b")
        sync(database)
        assert reader.execute("SELECT count(*) FROM kv").fetchone() == (1,)
    finally:
        reader.close()


def test_what_gathers_while_a_commit_runs_goes_into_the_next_one(path: str, errors: Any, monkeypatch: Any) -> None:
    """Group commit: a thousand writes are a handful of transactions."""
    commits = []
    first, entered, go_on = [True], threading.Event(), threading.Event()

    class Watched(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> Any:  # type: ignore[override]
            if statement == "COMMIT":
                commits.append(1)
                if first.pop() if first else False:
                    entered.set()
                    assert go_on.wait(30)
            return super().execute(statement, *args)

    connect = sqlite3.connect
    monkeypatch.setattr(db.sqlite3, "connect", lambda *a, **k: connect(*a, factory=Watched, **k))
    database = Database(path, errors.put)
    put(database, b"first")
    assert entered.wait(30)
    for i in range(1000):
        put(database, b"%d" % i)
    go_on.set()
    sync(database)
    database.close()
    assert len(commits) <= 4
    monkeypatch.undo()
    assert rows(path, "SELECT count(*) FROM kv") == [(1001,)]


def test_a_word_after_a_write_comes_only_when_it_is_on_disk(path: str, database: Database) -> None:
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(50):
        put(database, b"%d" % i)
        database.after(lambda i=i: seen.put(rows(path, "SELECT count(*) FROM kv")[0][0] - i))  # type: ignore[misc]
    assert all(seen.get(timeout=30) >= 1 for _ in range(50))


def test_words_come_in_order(database: Database) -> None:
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(200):
        database.after(lambda i=i: seen.put(i))  # type: ignore[misc]
    assert [seen.get(timeout=30) for _ in range(200)] == list(range(200))


def test_text_that_is_no_text_and_numbers_that_are_too_large(path: str, database: Database, errors: Any) -> None:
    """They are stored readably: the name of a script may hold any bytes."""
    name = os.fsdecode(b"caf\xe9.py")
    database.execute("save_job", (b"1", b"d", 1 << 70, name, "\udcff", b"", "RUNNING"))
    database.execute("save_job", (b"2", b"d", 1, "café", "", b"", "RUNNING"))
    sync(database)
    assert rows(path, "SELECT entrypoint, pid FROM jobs ORDER BY job_id") == [
        ("caf\\udce9.py", hex(1 << 70)),
        ("café", 1),
    ]
    assert errors.empty()


def test_close_writes_what_is_queued(path: str, errors: Any) -> None:
    database = Database(path, errors.put)
    for i in range(500):
        put(database, b"%d" % i)
    database.close()
    assert rows(path, "SELECT count(*) FROM kv") == [(500,)]


def test_a_file_that_is_no_database_is_reported(path: str, errors: Any) -> None:
    with open(path, "wb") as file:
        file.write(b"this is no database at all" * 1000)
    database = Database(path, errors.put)
    assert isinstance(errors.get(timeout=30), sqlite3.DatabaseError)
    database.close()


def test_a_directory_that_does_not_exist_is_reported(tmp_path: Any, errors: Any) -> None:
    database = Database(str(tmp_path / "missing" / "gcs.sqlite"), errors.put)
    assert isinstance(errors.get(timeout=30), FileNotFoundError)
    database.close()


def test_a_write_that_fails_is_reported_and_nothing_is_acknowledged(path: str, errors: Any) -> None:
    database = Database(path, errors.put)
    put(database, b"good")
    sync(database)
    said = threading.Event()
    database.execute("save_kv", (b"", b"too few"))
    database.after(said.set)
    assert isinstance(errors.get(timeout=30), Exception)
    database.close()
    assert not said.is_set()
    assert rows(path, "SELECT key FROM kv") == [(b"good",)]


def test_a_full_disk_is_reported_and_what_was_acknowledged_stays(path: str) -> None:
    """The limit on the size of a file stands in for a full disk."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            failed = threading.Event()
            database = Database(path, lambda error: failed.set())
            put(database, b"good")
            sync(database)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            said = threading.Event()
            put(database, b"large", bytes(1 << 20))
            database.after(said.set)
            assert failed.wait(30)
            database.close()
            os.write(write, b"acknowledged" if said.is_set() else b"refused")
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    assert os.read(read, 100) == b"refused"
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0
    assert rows(path, "SELECT key FROM kv") == [(b"good",)]


def test_a_process_killed_while_it_writes_loses_nothing_it_acknowledged(path: str) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        database = Database(path, lambda error: os._exit(1))
        for i in range(1 << 30):
            put(database, b"%d" % i, bytes(1000))
            database.after(lambda i=i: os.write(write, i.to_bytes(4, "big")))  # type: ignore[misc]
            if i % 50 == 0:
                sync(database)
    os.close(write)
    said = b""
    while len(said) < 4 * 300:
        said += os.read(read, 4096)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while data := os.read(read, 65536):
        said += data
    os.close(read)
    last = int.from_bytes(said[len(said) // 4 * 4 - 4 :][:4], "big")
    found = {int(key) for (key,) in rows(path, "SELECT key FROM kv")}
    assert found >= set(range(last + 1))
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def write_until_killed(path: str, first: int, said: int) -> None:
    """The life of a control process, as far as its file is concerned; it says which keys it has acknowledged."""
    assert all(row["value"] == bytes(1000) for row in db.read(path)["kv"])
    database = Database(path, lambda error: os._exit(1))
    for number in range(first, 1 << 31):
        put(database, b"%d" % number, bytes(1000))
        database.after(lambda number=number: os.write(said, number.to_bytes(4, "big")))  # type: ignore[misc]
        if number % 7 == 0:
            sync(database)


def test_a_file_whose_writers_are_killed_one_after_the_other_is_whole_and_has_all_they_acknowledged(path: str) -> None:
    """Wherever they are: in their first migration, reading what the one before has left, writing, or moving it to the file."""
    chance = random.Random(1)
    acknowledged: set[int] = set()
    for life in range(30):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                write_until_killed(path, life << 16, write)
            finally:
                os._exit(1)
        os.close(write)
        said = b""
        for _ in range(chance.choice([0, 1, 1, 20, 100])):
            said += os.read(read, 4)
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL, "it ended by itself"
        while data := os.read(read, 65536):
            said += data
        os.close(read)
        acknowledged |= {int.from_bytes(said[at : at + 4], "big") for at in range(0, len(said) - 3, 4)}
    assert {int(row["key"]) for row in db.read(path)["kv"]} >= acknowledged
    assert len(acknowledged) > 500
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_what_can_not_be_read_is_said_with_the_reason(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"this is no database at all" * 1000)
    with pytest.raises(RuntimeError, match=r"gcs\.sqlite can not be read: file is not a database"):
        db.read(path)


def test_migrations_run_once_and_in_order(tmp_path: Any, monkeypatch: Any) -> None:
    connection = sqlite3.connect(str(tmp_path / "m.sqlite"), isolation_level=None)
    try:
        migrate(connection)
        migrate(connection)
        more = [*MIGRATIONS, ("9999 one more", "ALTER TABLE kv ADD COLUMN more TEXT; CREATE TABLE another (x);")]
        monkeypatch.setattr(db, "MIGRATIONS", more)
        migrate(connection)
        migrate(connection)
        names = [row[0] for row in connection.execute("SELECT name FROM migrations ORDER BY name")]
        assert names == [name for name, _ in more]
    finally:
        connection.close()


def test_a_migration_that_fails_leaves_no_half_of_it(tmp_path: Any, monkeypatch: Any) -> None:
    path = str(tmp_path / "m.sqlite")
    monkeypatch.setattr(db, "MIGRATIONS", [*MIGRATIONS, ("9999 bad", "CREATE TABLE half (x); SELECT nonsense;")])
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError, match="nonsense"):
        migrate(connection)
    connection.close()
    assert rows(path, "SELECT name FROM sqlite_master WHERE name = 'half'") == []
    assert len(rows(path, "SELECT name FROM migrations")) == len(MIGRATIONS)
