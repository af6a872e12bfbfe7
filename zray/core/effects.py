"""The verbs of effects: all that a machine can ask of its body."""

from __future__ import annotations

from typing import Any

Effect = tuple[Any, ...]

SEND = 1  # (SEND, peer, message): peer is a process id; message a NamedTuple of wire, or its tuple
DIAL = 2  # (DIAL, peer, endpoint): the peer can be reached there from now on
HANG_UP = 3  # (HANG_UP, peer): nothing more will be said to the peer
RESOLVE = 4  # (RESOLVE, waiter): everything the waiter waited for is there
TIMER = 5  # (TIMER, at, key): call on_timer(now, key) at that time
START_WORKER = 6  # (START_WORKER, worker_id)
KILL_WORKER = 7  # (KILL_WORKER, worker_id)
WATCH = 8  # (WATCH, peer, pid): tell when that process of this machine ends
PERSIST = 9  # (PERSIST, statement, parameters)
AFTER_PERSIST = 10  # (AFTER_PERSIST, peer, message): send once all that was persisted before is on disk
WARN = 11  # (WARN, text): show it to the user or the operator
SPILL = 13  # (SPILL, batch_id, directory_index, [(offset, size), ...]): write these bytes to a new file
RESTORE = 14  # (RESTORE, object_id, path, position, size, checksum, place): read it back, to an offset or into a new file
DELETE_FILE = 15  # (DELETE_FILE, path)
COLLECT = 16  # (COLLECT,): have every process of this node collect its garbage
MEASURE = 17  # (MEASURE,): look at the memory of this machine and its workers, and call on_memory_measured
ANSWER = 18  # (ANSWER, client, request_id, ok, value): the store answers a machine of the same agent: call its on_answer
# (SERVE, ticket, object_id, place, whole): let another node read the object, which lies in the arena or in a file. If it is not
# whole, because it is still being brought here, what is not here yet is sent when it has come.
SERVE = 19
SERVE_REST = 23  # (SERVE_REST, ticket): the whole is here now
UNSERVE = 20  # (UNSERVE, ticket): no longer; call on_unserved(ticket) when nothing looks at that place any more
FETCH = 21  # (FETCH, object_id, endpoint, ticket, size, received, place, checksum): bring the rest of an object from another node
CANCEL_FETCH = 22  # (CANCEL_FETCH, object_id): stop that; each FETCH ends in on_fetched or on_fetch_failed nevertheless
ADOPT_FILE = 24  # (ADOPT_FILE, object_id, size, path, position, checksum): bring it into this node's store; call on_file_adopted
STOP = 12  # (STOP, reason): this process has done its work
JOINED = 25  # (JOINED,): the control knows of this node
LOOK = 27  # (LOOK,): see which drivers of this node are stopped, and call on_drivers_seen
DRAIN = 26  # (DRAIN, workers, job_id, peer, request_id): read all that these workers have written, then call drained
