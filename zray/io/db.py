"""Database: the control's SQLite file.

One thread owns the connection. What gathers in its queue while a commit runs goes into the next one (group commit). The file
is in WAL mode, so an operator can read it with ``sqlite3`` while the cluster runs; ``docs/gcs.md`` explains the tables. With
``synchronous=NORMAL`` a killed process loses nothing that was acknowledged.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

MIGRATIONS: list[tuple[str, str]] = [
    (
        "0001 first tables",
        """
        CREATE TABLE jobs (
            job_id BLOB PRIMARY KEY,      -- four bytes, counted up
            driver BLOB NOT NULL,         -- process id of the driver in the cluster
            pid INTEGER NOT NULL,         -- process id of the driver on its machine
            entrypoint TEXT NOT NULL,     -- the command line
            namespace TEXT NOT NULL,
            state TEXT NOT NULL,          -- RUNNING, FINISHED, DIED
            started_at TEXT NOT NULL DEFAULT (datetime('now')),
            ended_at TEXT
        );
        CREATE TABLE nodes (
            node_id BLOB PRIMARY KEY,
            endpoint TEXT NOT NULL,       -- where its agent listens
            hostname TEXT NOT NULL,
            pid INTEGER NOT NULL,
            resources TEXT NOT NULL,      -- "CPU=2, memory=..."
            state TEXT NOT NULL,          -- ALIVE, DEAD
            registered_at TEXT NOT NULL DEFAULT (datetime('now'))
        );
        CREATE TABLE functions (
            function_id BLOB PRIMARY KEY, -- hash of the body
            job_id BLOB NOT NULL,         -- the job that exported it first
            name TEXT NOT NULL,
            body BLOB NOT NULL            -- cloudpickle; opaque to the control
        );
        CREATE TABLE kv (
            namespace BLOB NOT NULL,
            key BLOB NOT NULL,
            value BLOB NOT NULL,
            PRIMARY KEY (namespace, key)
        ) WITHOUT ROWID;
        """,
    ),
    (
        "0002 actors",
        """
        CREATE TABLE actors (
            actor_id BLOB PRIMARY KEY,
            job_id BLOB NOT NULL,         -- the job that created it
            owner BLOB NOT NULL,          -- process id, in the cluster, of the driver or worker that created it
            class_name TEXT NOT NULL,
            name TEXT NOT NULL,           -- empty if it has none
            namespace TEXT NOT NULL,
            detached INTEGER NOT NULL,    -- 1: it outlives its job
            max_restarts INTEGER NOT NULL,
            state TEXT NOT NULL,          -- DEPENDENCIES_UNREADY, PENDING_CREATION, ALIVE, RESTARTING, DEAD
            restarts INTEGER NOT NULL DEFAULT 0,
            node_id BLOB,                 -- where it runs or ran last
            worker_id BLOB,
            pid INTEGER,
            reason TEXT,                  -- of its death
            registered_at TEXT NOT NULL DEFAULT (datetime('now')),
            changed_at TEXT
        );
        """,
    ),
    (
        "0003 placement groups",
        """
        CREATE TABLE placement_groups (
            group_id BLOB PRIMARY KEY,
            job_id BLOB NOT NULL,         -- the job that created it
            creator BLOB NOT NULL,        -- process id, in the cluster, of the driver or worker that created it
            name TEXT NOT NULL,           -- empty if it has none
            namespace TEXT NOT NULL,
            detached INTEGER NOT NULL,    -- 1: it outlives its job
            strategy TEXT NOT NULL,       -- PACK, SPREAD, STRICT_PACK, STRICT_SPREAD
            bundles TEXT NOT NULL,        -- what each holds: "{CPU: 1}; {CPU: 2}"
            state TEXT NOT NULL,          -- PENDING, CREATED, RESCHEDULING, REMOVED
            nodes TEXT,                   -- the first eight digits of the node of each bundle
            reason TEXT,                  -- of its removal
            registered_at TEXT NOT NULL DEFAULT (datetime('now')),
            changed_at TEXT
        );
        """,
    ),
    (
        "0004 what a control that is started again must know",
        """
        ALTER TABLE jobs ADD COLUMN details BLOB;              -- pickled: endpoint, namespace, environment
        ALTER TABLE nodes ADD COLUMN details BLOB;             -- pickled: agent, resources, labels, store
        ALTER TABLE actors ADD COLUMN details BLOB;            -- pickled: what its owner asked for
        ALTER TABLE actors ADD COLUMN creation BLOB;           -- the call of its constructor, while it may be needed
        ALTER TABLE actors ADD COLUMN standing BLOB;           -- pickled: incarnation, agent, endpoint, deaths in a row, error
        ALTER TABLE placement_groups ADD COLUMN details BLOB;  -- pickled: what its creator asked for
        ALTER TABLE placement_groups ADD COLUMN standing BLOB; -- pickled: the node of each bundle, the number of the round
        CREATE TABLE answers (
            slot INTEGER PRIMARY KEY,     -- the latest few thousand, round and round
            asker BLOB NOT NULL,          -- process id of who changed the key-value store
            request_id INTEGER NOT NULL,
            existed INTEGER NOT NULL      -- what the answer was, or will be if it has to be given again
        );
        """,
    ),
]

STATEMENTS = {
    "save_job": "INSERT INTO jobs (job_id, driver, pid, entrypoint, namespace, details, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
    "finish_job": "UPDATE jobs SET state = ?, ended_at = datetime('now') WHERE job_id = ?",
    "forget_job": "DELETE FROM jobs WHERE job_id = ?",
    "save_node": "INSERT INTO nodes (node_id, endpoint, hostname, pid, resources, details, state) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (node_id) DO UPDATE SET endpoint = excluded.endpoint, hostname = excluded.hostname, pid = excluded.pid, "
    "resources = excluded.resources, details = excluded.details, state = excluded.state",
    "forget_node": "DELETE FROM nodes WHERE node_id = ?",
    "save_function": "INSERT OR IGNORE INTO functions (function_id, job_id, name, body) VALUES (?, ?, ?, ?)",
    "forget_functions": "DELETE FROM functions WHERE job_id = ?",
    "save_actor": "INSERT INTO actors (actor_id, job_id, owner, class_name, name, namespace, detached, max_restarts, state, "
    "details) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "save_creation": "UPDATE actors SET creation = ? WHERE actor_id = ?",
    "update_actor": "UPDATE actors SET state = ?, restarts = ?, node_id = ?, worker_id = ?, pid = ?, reason = ?, standing = ?, "
    "changed_at = datetime('now') WHERE actor_id = ?",
    "forget_actor": "DELETE FROM actors WHERE actor_id = ?",
    "save_placement_group": "INSERT INTO placement_groups (group_id, job_id, creator, name, namespace, detached, strategy, "
    "bundles, state, details) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "update_placement_group": "UPDATE placement_groups SET state = ?, nodes = ?, reason = ?, standing = ?, "
    "changed_at = datetime('now') WHERE group_id = ?",
    "forget_placement_group": "DELETE FROM placement_groups WHERE group_id = ?",
    "save_kv": "INSERT OR REPLACE INTO kv (namespace, key, value) VALUES (?, ?, ?)",
    "delete_kv": "DELETE FROM kv WHERE namespace = ? AND key = ?",
    "save_answer": "INSERT OR REPLACE INTO answers (slot, asker, request_id, existed) VALUES (?, ?, ?, ?)",
}


class Database:
    """The SQLite file of one control process.

    Args:
        path: the file; made if there is none.
        on_error: called from the writer thread when SQLite fails; nothing is acknowledged from then on.
    """

    def __init__(self, path: str, on_error: Callable[[BaseException], None]) -> None:
        self._path = path
        self._on_error = on_error
        self._queue: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="zray-db", daemon=True)
        self._thread.start()

    def execute(self, statement: str, parameters: tuple[Any, ...]) -> None:
        """Queue one of STATEMENTS."""
        self._queue.put((statement, tuple(storable(value) for value in parameters)))

    def after(self, callback: Callable[[], None]) -> None:
        """Call ``callback``, in the writer thread, when all that was queued before is on disk."""
        self._queue.put(("after", callback))

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._queue.put(None)
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would have others read it
            connection = sqlite3.connect(self._path, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                migrate(connection)
                while self._work(connection):
                    pass
            finally:
                connection.close()
        except Exception as error:
            self._on_error(error)

    def _work(self, connection: sqlite3.Connection) -> bool:
        """One group commit; False when the end mark was met."""
        items = [self._queue.get()]
        while not self._queue.empty():
            items.append(self._queue.get())
        callbacks = []
        connection.execute("BEGIN IMMEDIATE")
        for item in items:
            if item is None:
                continue
            name, value = item
            if name == "after":
                callbacks.append(value)
            else:
                connection.execute(STATEMENTS[name], value)
        connection.execute("COMMIT")
        for callback in callbacks:
            callback()
        return None not in items


def storable(value: Any) -> Any:
    """What SQLite takes: names of files may hold bytes that are no text (surrogates), and its integers have 64 bits."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and value.bit_length() > 63:
        return hex(value)
    return value


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file's tables up to date: each migration once, in its own transaction with its record."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)")
    done = {row[0] for row in connection.execute("SELECT name FROM migrations")}
    for name, script in MIGRATIONS:
        if name not in done:
            connection.executescript(f"BEGIN IMMEDIATE; {script}; INSERT INTO migrations VALUES ('{name}'); COMMIT;")


def read(path: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables of a file, as an earlier control process left them; nobody may write to it now.

    Raises:
        RuntimeError: it can not be read; the text says why.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            migrate(connection)
            return load(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise RuntimeError(f"the database {path} can not be read: {error}") from error


def load(connection: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, each as a dict, in the order in which they were made."""
    connection.row_factory = sqlite3.Row
    tables = ("jobs", "nodes", "functions", "kv", "actors", "placement_groups", "answers")
    return {table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")] for table in tables}
