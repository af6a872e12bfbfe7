"""Bodies of the cases about several nodes: objects between them, and many agents on one machine."""

import contextlib
import multiprocessing
import socket
import statistics
import time
from concurrent import futures

import numpy
import psutil

from benchmarks import footprint

SIZE = 100_000_000
STORE = 512 << 20
RECEIVERS = 4
BLOCK = 1 << 20
AGENTS = 100
STARTS = 4  # at the same time
IDLE_S = 10.0


@contextlib.contextmanager
def cluster_of(engine, nodes, **options):
    """A head and nodes of one CPU each, in place of the engine's own cluster; this process is connected."""
    from zray.cluster_utils import Cluster

    engine.api.shutdown()
    try:
        arguments = {"num_cpus": 1, "object_store_memory": STORE}
        with Cluster(head_node_args=arguments, connect=True, **options) as cluster:
            for number in range(nodes):
                cluster.add_node(**arguments, resources={f"n{number}": 1})
            yield cluster
    finally:
        engine.api.init(num_cpus=2)  # what stops the session stops this one


def transfer(engine, seconds):
    """An array of the head's node read on another one, beside as many bytes through plain tcp to another process."""
    raw, plain, curve = [], [], []
    for insecure, times in ((True, plain), (False, curve)):
        with cluster_of(engine, 1, insecure=insecure), _raw_server() as port:
            read = engine.api.remote(_timed_read).options(resources={"n0": 0.1})
            array = numpy.ones(SIZE, numpy.uint8)
            for number in range(2 + int(4 * seconds)):
                taken = _read_once(engine, read, array)
                if number:  # the first one meets memory that was never touched
                    times.append(taken)
                    raw.append(_raw_read(port))
    raw_rate, plain_rate, curve_rate = (SIZE / 1e6 / statistics.median(times) for times in (raw, plain, curve))
    return {
        "transfer_raw": raw_rate,
        "transfer_plain": plain_rate,
        "transfer_curve": curve_rate,
        "transfer_of_raw": plain_rate / raw_rate,
        "transfer_curve_of_plain": curve_rate / plain_rate,
    }


def broadcast(engine, seconds):
    """An array of the driver's node read on four nodes at once, beside one."""
    values = {}
    for name, insecure in (("plain", True), ("curve", False)):
        with cluster_of(engine, RECEIVERS, insecure=insecure):
            reads = [engine.api.remote(_timed_read).options(resources={f"n{n}": 0.1}) for n in range(RECEIVERS)]
            array = numpy.ones(SIZE, numpy.uint8)
            one, all_of_them = [], []
            for number in range(2 + int(2 * seconds)):
                times = [_wall(engine, [reads[number % RECEIVERS]], array), _wall(engine, reads, array)]
                if number:
                    one.append(times[0])
                    all_of_them.append(times[1])
        values[f"broadcast_one_{name}"] = statistics.median(one) * 1e3
        values[f"broadcast_all_{name}"] = statistics.median(all_of_them) * 1e3
        values[f"broadcast_ratio_{name}"] = statistics.median(all_of_them) / statistics.median(one)
    return values


def many_agents(engine, seconds):
    """Nodes without workers that join a head: until all are there, what each takes, and what they take when idle."""
    from zray.cluster_utils import Cluster

    engine.api.shutdown()
    try:
        with Cluster(head_node_args={"num_cpus": 0, "object_store_memory": 16 << 20}, connect=True) as cluster:
            started = time.perf_counter()
            with futures.ThreadPoolExecutor(STARTS) as pool:
                for _ in range(AGENTS):
                    pool.submit(cluster.add_node, num_cpus=0, object_store_memory=16 << 20, wait=False)
            cluster.wait_for_nodes(120.0)
            joined = time.perf_counter() - started
            time.sleep(1.0)
            trees = [_tree(node.pid) for node in cluster.worker_nodes]
            memory = [sum(footprint.proportional_bytes(process.pid) for process in tree) for tree in trees]
            everything = [process for tree in [*trees, _tree(cluster.head_node.pid)] for process in tree]
            before = _processor(everything)
            time.sleep(IDLE_S)
            spent = _processor(everything) - before
            alive = sum(node["Alive"] for node in engine.api.nodes())
    finally:
        engine.api.init(num_cpus=2)
    return {
        "agents_join": joined,
        "agents_memory": statistics.mean(memory) / 1e6,
        "agents_idle": 100 * spent / IDLE_S,
        "agents_alive": alive - 1,
    }


# -- inside -----------------------------------------------------------------------------------------------------------


def _timed_read(refs):
    """Seconds that a get takes on the node where this runs."""
    import time

    import zray

    start = time.perf_counter()
    array = zray.get(refs[0])
    elapsed = time.perf_counter() - start
    assert array[-1] == 1
    return elapsed


def _read_once(engine, read, array):
    ref = engine.api.put(array)
    return engine.api.get(read.remote([ref]))


def _wall(engine, reads, array):
    """Seconds until all of them have read a new object."""
    ref = engine.api.put(array)
    start = time.perf_counter()
    engine.api.get([read.remote([ref]) for read in reads])
    return time.perf_counter() - start


@contextlib.contextmanager
def _raw_server():
    """Another process that sends as many bytes to whoever connects; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=_serve_raw, args=(listener,), daemon=True)
    process.start()
    try:
        yield listener.getsockname()[1]
    finally:
        process.kill()
        process.join()
        listener.close()


def _serve_raw(listener):
    data = memoryview(bytes(BLOCK) * (SIZE // BLOCK + 1))[:SIZE]
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(data)


def _raw_read(port):
    target = memoryview(bytearray(SIZE))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.perf_counter()
        count = 0
        while count < SIZE:
            count += connection.recv_into(target[count : count + BLOCK])
        return time.perf_counter() - start


def _tree(pid):
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _processor(processes):
    return sum(sum(process.cpu_times()[:2]) for process in processes)
