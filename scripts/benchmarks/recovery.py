"""Bodies of the cases about faults: how long until what was killed is made good."""

import os
import signal
import statistics
import tempfile
import time

from benchmarks.nodes import cluster_of

TIMES = 7
KILLS = 10  # of the control


def processes(engine, seconds):
    """A worker is killed under a task, and the process of an actor; the rest of the cluster lives."""
    api = engine.api

    # Inside, so that the workers get them as they are and need not import this module.
    def die_once_body(path):
        """The first attempt leaves its time of death and ends its process; the second says how long that is ago."""
        try:
            with open(path, encoding="utf-8") as file:
                died = float(file.read())
            return time.monotonic() - died
        except FileNotFoundError:
            with open(path, "w", encoding="utf-8") as file:
                file.write(repr(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)

    class Mortal:
        def pid(self):
            return os.getpid()

    die_once = api.remote(die_once_body).options(max_retries=1)
    again = []
    for number in range(TIMES):
        path = os.path.join(tempfile.gettempdir(), f"died-{os.getpid()}-{number}")
        again.append(api.get(die_once.remote(path)))
        os.unlink(path)
    restarts = []
    for _ in range(TIMES):
        actor = api.remote(Mortal).options(max_restarts=1, max_task_retries=-1).remote()
        pid = api.get(actor.pid.remote())
        api.get([api.remote(os.getpid).remote() for _ in range(2)])  # there are idle workers, as in a cluster that is used
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while api.get(actor.pid.remote()) == pid:
            pass
        restarts.append(time.monotonic() - started)
        del actor
    return {"recovery_task": statistics.median(again) * 1000, "recovery_actor": statistics.median(restarts) * 1000}


def nodes(engine, seconds):
    """The agent of a node is killed: until everybody knows, and until an object that lay there can be read again."""
    noticed, rebuilt = [], []
    with cluster_of(engine, 1) as cluster:
        for _ in range(3):
            node = cluster.worker_nodes[0]
            make = engine.api.remote(_array).options(resources={"n0": 0.1}, num_cpus=0)
            lost = make.remote()
            engine.api.wait([lost])
            cluster.add_node(resources={"n0": 1})
            started = time.monotonic()
            cluster.remove_node(node, allow_graceful=False)
            while any(each["Alive"] and each["NodeID"] == node.node_id for each in engine.api.nodes()):
                time.sleep(0.01)
            noticed.append(time.monotonic() - started)
            engine.api.get(lost)
            rebuilt.append(time.monotonic() - started)
    return {"recovery_node": statistics.median(noticed), "recovery_object": statistics.median(rebuilt)}


def _array():
    import numpy

    return numpy.ones(1 << 20)


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
