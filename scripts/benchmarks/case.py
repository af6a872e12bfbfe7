"""The table: the cases, the metrics each yields, and what is required of them.

To add a case, write its body in a module of this package and add a row to CASES; everything else follows from the row.
"""

from typing import NamedTuple

from benchmarks.engine import CLUSTERS, ENGINES, SUBJECT


class Skipped(Exception):
    """A body's refusal to measure, with its reason."""


class Bound(NamedTuple):
    """What is required of a metric: `limit` times better than the peer `against`, or, without a peer, the value itself."""

    limit: float
    against: str | None = None


class Metric(NamedTuple):
    key: str
    title: str
    unit: str = "/s"
    required: tuple[Bound, ...] = ()
    less_is_better: bool = False


class Case(NamedTuple):
    name: str
    body: str  # "module:function", loaded in the session after the engine's start has been timed
    metrics: tuple[Metric, ...]
    engines: tuple[str, ...] = tuple(ENGINES)
    arguments: tuple = ()
    alone: bool = False  # needs a session of its own, once, not one a round
    quick: bool = True  # runs with --quick as well
    limit_s: float = 90.0  # a session that says nothing for so long is taken for hung


def _less(key, title, unit, *required):
    return Metric(key, title, unit, required, less_is_better=True)


def _ray(limit):
    return (Bound(limit, "ray"),)


def _queue(key, n, **options):
    title = f"{n:,} queued tasks"
    metrics = [_less(f"queue_{key}_us", f"{title}: cost of each", "us")]
    if n > 1000:
        metrics.append(_less(f"queue_{key}_ratio", f"{title}: against 1,000", "x", Bound(2.0)))
        # A driver's memory grows in steps of whole arenas, which only a long queue outweighs.
        bound = (Bound(1500),) if n >= 100_000 else ()
        metrics.append(_less(f"queue_{key}_bytes", f"{title}: memory of each", "B", *bound))
    body = "growth:queued_tasks"
    return Case(f"queue_{key}", body, tuple(metrics), (SUBJECT,), (n, key), alone=True, limit_s=240.0, **options)


def _many(name, title, n):
    metrics = (
        _less(f"{name}_us", f"{n:,} {title}: cost of each", "us"),
        _less(f"{name}_ratio", f"{n:,} {title}: against {n // 10:,}", "x", Bound(2.0)),
    )
    return Case(name, f"growth:many_{name}", metrics, (SUBJECT,), (n,), alone=True)


def _actor(name, title, limit, **options):
    return Case(name, f"actors:{name}", (Metric(name, title, "/s", _ray(limit)),), CLUSTERS, **options)


# The session reports the start by itself, hence no body. A session runs cases in the order of this table, which matters
# twice: memory is that of a cluster which has done nothing yet, and the first large put must be the first.
START = Case("start", "", (
    _less("start", "init() to first result", "s", Bound(0.4)),
    _less("import_and_start", "import to first result", "s"),
))

CASES = (
    START,
    Case("memory", "footprint:idle_memory", (
        _less("memory", "idle cluster, PSS without driver", "MB", Bound(120)),
        _less("memory_with_driver", "idle cluster, PSS with driver", "MB"),
        _less("processes", "idle cluster, processes", ""),
    )),
    Case("put_first", "objects:put_first", (
        Metric("put_first", "first put of 100 MB", "GB/s", _ray(1.0)),
    ), CLUSTERS),
    Case("put_large", "objects:put_large", (
        Metric("put_large", "warm put of 100 MB", "GB/s"),
        Metric("memcpy", "plain copy of 100 MB", "GB/s"),
        Metric("put_large_of_memcpy", "warm put / plain copy", "x", (Bound(0.7),)),
    ), CLUSTERS),
    Case("multi_client_large_puts", "objects:multi_client_large_puts", (
        Metric("multi_client_large_puts", "multi-client put of 100 MB", "GB/s", _ray(0.8)),
    ), CLUSTERS),
    Case("get_small", "objects:get_small", (Metric("get_small", "get of a small put", "/s", _ray(20.0)),), CLUSTERS),
    Case("put_small", "objects:put_small", (Metric("put_small", "put of a small value", "/s", _ray(30.0)),), CLUSTERS),
    Case("multi_client_puts", "objects:multi_client_puts", (
        Metric("multi_client_puts", "multi-client put calls", "/s", _ray(20.0)),
    ), CLUSTERS),
    Case("get_refs", "objects:get_refs", (
        Metric("get_refs", "get of an object holding 10k refs", "/s", _ray(3.0)),
    ), CLUSTERS),
    Case("spill", "disk:spill", (
        Metric("spill", "put of four times the store", "GB/s"),
        Metric("restore", "get of what is on disk", "GB/s"),
        Metric("file_copy", "plain copy of files on that disk", "GB/s"),
        Metric("spill_of_copy", "put through the disk / plain copy", "x", (Bound(0.6),)),
        Metric("restore_of_copy", "get from disk / plain copy", "x", (Bound(0.6),)),
    ), (SUBJECT,), alone=True, limit_s=240.0),
    Case("tasks_sync", "calls:tasks_sync", (
        Metric("tasks_sync", "tasks sync", "/s", _ray(8.0)),
        _less("driver_us_sync", "tasks sync: driver's CPU for each", "us"),
        _less("engine_us_sync", "tasks sync: other processes' CPU", "us"),
    )),
    Case("tasks_async", "calls:tasks_async", (
        Metric("tasks_async", "tasks async", "/s", (Bound(10.0, "ray"), Bound(1.2, "Pool"))),
        _less("driver_us_async", "tasks async: driver's CPU for each", "us"),
        _less("engine_us_async", "tasks async: other processes' CPU", "us"),
        Metric("tasks_and_get", "1000 tasks and get, rounds", "/s", _ray(8.0)),
    )),
    Case("tasks_and_waits", "calls:tasks_and_waits", (
        Metric("tasks_and_waits", "1000 tasks, 1000 single waits, rounds", "/s", _ray(8.0)),
    ), CLUSTERS),
    Case("tasks_awaited", "calls:tasks_awaited", (
        _less("tasks_awaited_us", "gather() of 10,000 tasks: cost of each", "us"),
        _less("awaits_us", "gather() of 10,000 values that are there: cost of each", "us"),
        _less("coroutines_us", "gather() of 10,000 plain coroutines: cost of each", "us"),
        _less("await_one_us", "await of one task after the other", "us"),
    ), CLUSTERS),
    Case("multi_client_tasks", "calls:multi_client_tasks", (
        Metric("multi_client_tasks", "multi-client tasks async", "/s", _ray(6.0)),
    ), CLUSTERS),
    _actor("actor_sync", "actor calls 1:1 sync", 4.0),
    _actor("actor_async", "actor calls 1:1 async", 5.0),
    _actor("actor_concurrent", "actor calls 1:1 concurrent, 16 threads", 3.0, quick=False),
    _actor("actor_one_to_n", "actor calls 1:n async", 4.0, quick=False),
    _actor("actor_n_to_n", "actor calls n:n async", 4.0),
    _actor("actor_n_to_n_with_object", "actor calls n:n with object argument", 4.0, quick=False),
    _actor("async_actor_sync", "async actor 1:1 sync", 4.0, quick=False),
    _actor("async_actor_async", "async actor 1:1 async", 6.0),
    _actor("async_actor_with_argument", "async actor 1:1 async with argument", 6.0, quick=False),
    Case("actor_life", "actors:actor_life", (
        Metric("actor_life", "actors made, called once and killed"),
    ), CLUSTERS, quick=False),
    Case("actor_memory", "actors:actor_memory", (
        _less("actor_memory", "an idle actor among twenty, PSS", "MB"),
    ), (SUBJECT,), alone=True, quick=False),
    Case("generator_items", "generators:generator_items", (
        Metric("generator_items", "items of a generator", "/s", _ray(5.0)),
    ), CLUSTERS),
    Case("generator_actor", "generators:generator_actor", (
        Metric("generator_actor", "items of a generator of an actor", "/s", _ray(5.0)),
    ), CLUSTERS, quick=False),
    Case("generator_large", "generators:generator_large", (
        Metric("generator_large", "items of 1 MB of a generator", "/s", _ray(1.5)),
    ), CLUSTERS, quick=False),
    Case("generator_million", "generators:generator_million", (
        Metric("generator_million", "a million items of one generator"),
        _less("generator_reader_mb", "... growth of its reader", "MB", Bound(5)),
        _less("generator_worker_mb", "... growth of its worker", "MB", Bound(5)),
    ), (SUBJECT,), alone=True, quick=False),
    Case("placement_groups", "groups:create_and_remove", (
        Metric("placement_groups", "placement groups created and removed", "/s", _ray(2.0)),
    ), CLUSTERS),
    Case("spread_tasks", "spread:spread_tasks", (
        Metric("spread_tasks", "tasks over four nodes", "/s", (Bound(500),)),
        _less("spread_control", "... messages to the control for each", "", Bound(0)),
        Metric("spread_least", "... share of the node with the fewest", "x"),
    ), (SUBJECT,), alone=True),
    Case("executor_sync", "pools:executor_sync", (
        Metric("executor_sync", "Executor: submit and result, one at a time", "/s", (Bound(1.2, "Executor"),)),
    ), ("zray", "Executor")),
    Case("executor_async", "pools:executor_async", (
        Metric("executor_async", "Executor: 10,000 submits, then results", "/s", (Bound(1.2, "Executor"),)),
    ), ("zray", "Executor")),
    Case("executor_map", "pools:executor_map", (
        Metric("executor_map", "Executor: map of 10,000 in chunks of 100"),
    ), ("zray", "Executor")),
    Case("pool_map", "pools:pool_map", (
        Metric("pool_map", "Pool: map of a million integers in 8 chunks", "M/s", (Bound(0.67, "Pool"),)),
    ), ("zray", "ray", "Pool")),
    Case("pool_imap", "pools:pool_imap", (
        Metric("pool_imap", "Pool: imap of 10,000, one by one"),
    ), ("zray", "Pool"), quick=False),
    Case("joblib", "pools:joblib_bursts", (
        Metric("joblib", "joblib: tasks of 1 ms, on zray"),
        Metric("joblib_loky", "joblib: tasks of 1 ms, on loky"),
        Metric("joblib_of_loky", "joblib: on zray / on loky", "x", (Bound(0.83),)),
    ), (SUBJECT,)),
    Case("transfer", "nodes:transfer", (
        Metric("transfer_raw", "100 MB between processes: plain tcp", "MB/s"),
        Metric("transfer_plain", "100 MB between nodes, without CURVE", "MB/s"),
        Metric("transfer_curve", "100 MB between nodes, with CURVE", "MB/s"),
        Metric("transfer_of_raw", "between nodes without CURVE / plain tcp", "x", (Bound(0.5),)),
        Metric("transfer_curve_of_plain", "between nodes: with CURVE / without", "x"),
    ), (SUBJECT,), alone=True, quick=False),
    # On one machine all nodes share its processors, and one transfer takes two of them; with cables of their own the bound holds.
    Case("broadcast", "nodes:broadcast", (
        _less("broadcast_one_plain", "100 MB to one node, without CURVE", "ms"),
        _less("broadcast_all_plain", "100 MB to four nodes, without CURVE", "ms"),
        _less("broadcast_ratio_plain", "to four nodes / to one, without CURVE", "x"),
        _less("broadcast_one_curve", "100 MB to one node, with CURVE", "ms"),
        _less("broadcast_all_curve", "100 MB to four nodes, with CURVE", "ms"),
        _less("broadcast_ratio_curve", "to four nodes / to one, with CURVE", "x"),
    ), (SUBJECT,), alone=True, quick=False),
    Case("broadcast_links", "links:broadcast_links", (
        _less("broadcast_one_links", "100 MB to one host, cables of 400 Mbit/s", "ms"),
        _less("broadcast_all_links", "100 MB to four hosts, cables of 400 Mbit/s", "ms"),
        _less("broadcast_ratio_links", "to four hosts / to one", "x", Bound(2.0)),
    ), (SUBJECT,), alone=True, quick=False),
    Case("agents", "nodes:many_agents", (
        _less("agents_join", "a hundred nodes join", "s", Bound(20.0)),
        _less("agents_memory", "an idle node among a hundred, PSS", "MB"),
        _less("agents_idle", "a hundred idle nodes and the head, of one processor", "%"),
        Metric("agents_alive", "nodes alive after that", "", (Bound(100.0),)),
    ), (SUBJECT,), alone=True, quick=False, limit_s=180.0),
    Case("recovery", "recovery:processes", (
        _less("recovery_task", "worker killed: until its task runs again", "ms", Bound(50.0)),
        _less("recovery_actor", "actor killed: until it answers again", "ms", Bound(100.0)),
    ), (SUBJECT,), alone=True),
    Case("recovery_of_control", "recovery:control", (
        _less("recovery_control", "control killed: to its first answer", "s"),
        _less("recovery_new", "... to a new function, actor and key", "s", Bound(2.0)),
        _less("recovery_longest", "... the longest of ten", "s"),
    ), (SUBJECT,), alone=True),
    Case("recovery_of_nodes", "recovery:nodes", (
        _less("recovery_node", "node killed: until that is known", "s", Bound(3.0)),
        _less("recovery_object", "node killed: until what it had made is there again", "s"),
    ), (SUBJECT,), alone=True, quick=False),
    _queue("1k", 1_000),
    _queue("10k", 10_000),
    _queue("100k", 100_000),
    _queue("1m", 1_000_000, quick=False),
    _many("arguments", "arguments of one task", 10_000),
    _many("returns", "returns of one task", 3_000),
    _many("gets", "objects in one get", 10_000),
)
BY_NAME = {case.name: case for case in CASES}
