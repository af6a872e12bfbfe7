"""Bodies of the cases about faults: how long until what was killed is made good."""

import os
import signal
import statistics
import tempfile
import time

from benchmarks.nodes import _cluster

TIMES = 7


def _die_once(path):
    """The first attempt leaves its time of death and ends its process; the second says how long that is ago."""
    try:
        with open(path, encoding="utf-8") as file:
            died = float(file.read())
        return time.monotonic() - died
    except FileNotFoundError:
        with open(path, "w", encoding="utf-8") as file:
            file.write(repr(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)


class _Mortal:
    def pid(self):
        return os.getpid()


def processes(engine, seconds):
    """A worker is killed under a task, and the process of an actor; the rest of the cluster lives."""
    api = engine.api
    die_once = api.remote(_die_once).options(max_retries=1)
    again = []
    for number in range(TIMES):
        path = os.path.join(tempfile.gettempdir(), f"died-{os.getpid()}-{number}")
        again.append(api.get(die_once.remote(path)))
        os.unlink(path)
    restarts = []
    for _ in range(TIMES):
        actor = api.remote(_Mortal).options(max_restarts=1, max_task_retries=-1).remote()
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
    with _cluster(engine, 1) as cluster:
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
