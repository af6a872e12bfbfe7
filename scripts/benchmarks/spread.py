"""Bodies of the cases about several nodes, which are processes of this machine."""

import time
from collections import Counter

from benchmarks import stopwatch, tasks

NODES = 4
BATCH = 1000
KNOWN_LIMIT_S = 20.0
BY_TIME = "heard_Heartbeat"  # what nodes say so many times a second, whatever runs on them


def spread_tasks(engine, seconds):
    """No-op tasks over four nodes, and what the control hears of them once their leases are there."""
    from zray import object_ref
    from zray.base.wire import CONTROL, ControlStatistics
    from zray.cluster_utils import Cluster

    api = engine.api
    api.shutdown()
    with Cluster(head_node_args={"num_cpus": 1}, connect=True) as cluster:
        for _ in range(NODES - 1):
            cluster.add_node(num_cpus=1)
        nop = api.remote(tasks.nop).options(scheduling_strategy="SPREAD")
        where = api.remote(tasks.where).options(scheduling_strategy="SPREAD")

        def heard():
            numbers = object_ref.connected.call(CONTROL, ControlStatistics)
            return sum(count for name, count in numbers.items() if name.startswith("heard_") and name != BY_TIME)

        def batch():
            api.get([nop.remote() for _ in range(BATCH)])

        def nodes():
            return Counter(api.get([where.remote(engine.name) for _ in range(BATCH)]))

        end = time.monotonic() + KNOWN_LIMIT_S
        while len(nodes()) < NODES:  # which the driver's node hears of a little later
            if time.monotonic() > end:
                raise TimeoutError(f"after {KNOWN_LIMIT_S:.0f} s some node had no task")
        batch()
        before = heard()
        timing = stopwatch.run(batch, seconds, warm_up=0.0)
        after = heard() - 1  # that question itself
        shares = nodes()
    return {
        "spread_tasks": timing.rate * BATCH,
        "spread_control": (after - before) / (timing.calls * BATCH),
        "spread_least": min(shares.values()) / BATCH if len(shares) == NODES else 0.0,
    }
