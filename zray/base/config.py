"""Every limit and timeout, with its unit in the name.

One frozen ``Config`` serves a whole cluster: the control process makes it from the environment (``ZRAY_<NAME>``) and hands
it to each process that joins. Nothing else in zray has a number that an operator could want to change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Config:
    """The limits of one cluster.

    Example:
        >>> Config.from_environment({"ZRAY_INLINE_BYTES_MAX": "1000"}).inline_bytes_max
        1000
    """

    # objects
    inline_bytes_max: int = 100 * 1024  # larger values go to shared memory
    store_fraction_of_memory: float = 0.3  # default size of the object store
    store_headroom_of_shm: float = 0.9  # ... and never more of /dev/shm than this
    store_full_grace_s: float = 10.0  # how long a put waits for room
    collect_interval_s: float = 1.0  # how often processes are asked to collect garbage while the store is full
    spill_directories: str = ""  # separated as in PATH; by default one in the session's directory
    spill_threshold: float = 0.8  # of the store: above it cold objects go to disk before anybody waits
    spill_file_bytes_max: int = 100 << 20
    spill_rest_s: float = 2.0  # a directory that failed is tried again after this
    # copies of objects on other nodes
    pull_bytes_max: int = 512 << 20  # of objects that one node brings from others at once; the less urgent do not count
    pulls_max: int = 64  # ... and how many objects
    copy_receivers_max: int = 2  # nodes that bring the same object from one node at once; others get it from those
    orphan_copy_s: float = 30.0  # a copy outlives the node that made the object by this, for its owner to find it
    transfer_renew_s: float = 5.0  # nodes tell each other what they are bringing; what was not told three times is over
    transfer_stall_s: float = 10.0  # a node that sends nothing for so long is asked anew, or another
    transfer_attempts_max: int = 4  # in a row from one node, without a byte
    transfer_chunk_bytes: int = 1 << 20
    transfer_window_bytes: int = 8 << 20  # that are asked of one node and not here yet
    # tasks
    max_retries: int = 3  # attempts after the first when workers die; tasks can say otherwise
    task_depth_max: int = 200  # tasks that submit tasks that submit tasks ...
    args_bytes_max: int = 8 << 30  # one task's arguments in all
    lineage_bytes_max: int = 256 << 20  # what a process remembers of tasks, to run them again if their large results are lost
    infeasible_grace_s: float = 10.0  # then a demand that no node can ever fit fails
    infeasible_retry_s: float = 0.5  # until then it is asked again so often, since nodes may come
    infeasible: str = "fail"  # "wait": leave it queued, for clusters that grow
    # generators
    generator_items_max: int = 4096  # that were made and not taken, before a generator is paused
    generator_bytes_max: int = 64 << 20  # ... and bytes of them
    # leases and pipelining
    pipeline_window_ms: float = 5.0  # how much work may wait at a worker
    pipeline_depth_max: int = 512  # tasks pushed ahead to one worker, however short they are
    pipeline_bytes_max: int = 8 << 20  # ... and bytes of arguments
    handback_ms: float = 20.0  # a worker busy for longer gives its queue back
    lease_idle_ms: float = 100.0  # an idle lease goes back after this
    lease_slice_ms: float = 20.0  # how long a lease may be used although others want it
    lease_requests_max: int = 8  # outstanding for one scheduling key
    # workers
    workers_max: int = 512  # processes on one node, blocked ones included
    exhausted_grace_ms: float = 100.0  # all workers wait for others for so long: then tasks are refused
    worker_idle_s: float = 2.0  # idle workers above the prestarted number are ended
    worker_start_timeout_s: float = 30.0  # a worker that has not said hello by then is ended
    worker_start_failures_max: int = 8  # in a row; then what waits for a worker fails
    worker_start_rest_ms: float = 100.0  # after the second failure in a row, then twice as long each time
    worker_start_rest_max_s: float = 10.0  # ... but never longer
    worker_exit_grace_s: float = 0.5  # between the polite word and the signal
    # actors
    actors_max: int = 4096  # actor processes on one node
    actor_starts_max: int = 16  # processes that start at the same time on one node
    actor_restart_delay_ms: float = 100.0  # before the second restart in a row, then twice as long each time
    actor_restart_delay_max_s: float = 10.0  # ... but never longer; who lived for that long starts again with no delay
    actor_calls_bytes_max: int = 8 << 20  # arguments of calls that are sent to one actor at once
    dead_actors_max: int = 10_000  # that are remembered, with the reason of their deaths
    # jobs and nodes
    dead_jobs_max: int = 1000  # that are remembered
    dead_nodes_max: int = 1000  # that are remembered, so that what came from them is known to be lost
    # placement groups
    placement_bundles_max: int = 1000  # in one group
    placement_retry_ms: float = 50.0  # before places are looked for again, then twice as long each time
    placement_retry_max_s: float = 1.0  # ... but never longer
    dead_placement_groups_max: int = 1000  # that are remembered, with the reason of their removal
    # memory of workers
    memory_check_ms: float = 250.0
    memory_fraction_max: float = 0.95  # above it workers are ended
    memory_limit_bytes: int = 0  # what the workers of a node may use together; 0: what the machine or container has
    oom_retries_max: int = 15  # of a task that was ended for want of memory, beside max_retries
    # what workers write
    worker_log_bytes_max: int = 16 << 20  # of a worker's file; then a new one is begun, and the last one kept
    ended_logs_bytes_max: int = 1 << 30  # files of workers that ended, on one node; the oldest go first
    output_bytes_per_s: int = 2 << 20  # that one node sends to a driver
    output_backlog_bytes_max: int = 4 << 20  # that wait for that, errors apart; what comes then is dropped and counted
    output_fold_s: float = 1.0  # the same line by several workers within this time is shown once, with a number
    # loop and transport
    flush_ms: float = 1.0  # results wait no longer than this
    lazy_handover_ms: float = 5.0  # the loop thread leaves the loop this long to a thread that just used it
    message_bytes_max: int = 1 << 30  # larger frames are refused by the socket
    timeline_events_max: int = 10_000  # tasks that a worker remembers for timeline()
    # control
    start_timeout_s: float = 30.0  # how long init() waits for the head process
    heartbeat_ms: float = 100.0  # changes of what is free on a node are told no more often than this
    health_check_ms: float = 500.0  # a node says at least so often that it lives
    node_suspect_s: float = 1.5  # a node that was silent for so long is asked for a sign of life
    node_death_s: float = 10.0  # ... and for so long, it is dead: a network may be cut for a while
    node_lost_s: float = 1.5  # a node whose connection ended, as that of a process that was killed, has so long to come back
    node_return_s: float = 5.0  # a node that does not come to a control that was started again for so long is dead
    driver_death_s: float = 300.0  # a driver of a running cluster that is stopped (SIGSTOP, Ctrl-Z) for so long has ended
    control_death_s: float = 30.0  # a node that has not heard of the control for so long ends
    lease_hops_max: int = 3  # how often a request for a lease is sent on to another node
    function_fetch_timeout_s: float = 60.0  # how long a worker waits for a function that was not exported

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The defaults, changed by ``ZRAY_<NAME>`` variables.

        Raises:
            ValueError: a variable has a value of the wrong kind; the text names it.
        """
        environ = os.environ if environ is None else environ
        changed: dict[str, Any] = {}
        for field in fields(cls):
            text = environ.get("ZRAY_" + field.name.upper())
            if text is None:
                continue
            kind: Any = type(field.default)
            try:
                changed[field.name] = kind(text)
            except ValueError:
                name = "ZRAY_" + field.name.upper()
                raise ValueError(f"{name} must be of type {kind.__name__}, not {text!r}") from None
        return cls(**changed)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The defaults, changed by ``values``.

        Raises:
            ValueError: there is no such limit, or a value is of the wrong kind; the text names it.
        """
        kinds = {field.name: type(field.default) for field in fields(cls)}
        for name, value in values.items():
            if name not in kinds:
                raise ValueError(f"there is no limit {name!r}: the limits are {', '.join(kinds)}")
            kind = kinds[name]
            fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
            if not fits:
                raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")
        return cls(**values)
