"""Bodies of the cases about what is killed and comes back."""

import os
import signal
import statistics
import time

from benchmarks.nodes import cluster_of

KILLS = 10


def control(engine, seconds):
    """The control of a head and two nodes is killed; how long until it answers, and until what is new is there."""
    from zray.experimental import internal_kv as kv

    answers, news = [], []
    with cluster_of(engine, 2) as cluster:

        class Counter:
            def add(self):
                return 1

        actors = engine.api.remote(Counter)
        engine.api.get(actors.remote().add.remote())
        for number in range(KILLS):
            new = engine.api.remote(lambda number=number: number)
            while not (pid := cluster.head_node.child("zray-control")):
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            killed_at = time.monotonic()
            kv._internal_kv_get(b"nothing")
            answers.append(time.monotonic() - killed_at)
            kv._internal_kv_put(b"key", b"%d" % number)
            actor = actors.remote()
            engine.api.get([new.remote(), actor.add.remote()])
            news.append(time.monotonic() - killed_at)
            del actor
            time.sleep(0.2)
    return {
        "recovery_control": statistics.median(answers),
        "recovery_new": statistics.median(news),
        "recovery_longest": max(news),
    }
