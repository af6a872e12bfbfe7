"""Body of the case about nodes whose links are slower than they are: network namespaces with limited cables."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from benchmarks.case import Skipped

NODES = 5  # one of them has the object
RATE = "400mbit"
NETWORK = "10.213.77"
ROUNDS = 3
START_S = 30.0

DRIVER = """
import json, statistics, sys, time
import numpy, zray
from benchmarks import nodes
zray.init(sys.argv[1], _temp_dir=sys.argv[2])
while len(zray.nodes()) < {nodes}:
    time.sleep(0.1)
reads = [zray.remote(nodes._timed_read).options(resources={{f"n{{n}}": 0.1}}) for n in range(1, {nodes})]
array = numpy.ones(nodes.SIZE, numpy.uint8)
engine = type("Engine", (), {{"api": zray}})
nodes._wall(engine, reads, array)  # the first one meets memory that was never touched
rounds = [(nodes._wall(engine, reads[:1], array), nodes._wall(engine, reads, array)) for _ in range({rounds})]
one, four = (statistics.median(times) for times in zip(*rounds))
print(json.dumps({{"one": one, "four": four}}))
"""


def broadcast_links(engine, seconds):
    """An array read on four hosts at once, beside one, where each host has a cable of 400 Mbit/s."""
    with _hosts() as (names, home):
        command = [sys.executable, "-c", "import sys; from zray.ops import cli; sys.exit(cli.{}())", "--num-cpus", "1"]
        command += ["--object-store-memory", "500000000", "--key-file", f"{home}/key"]
        address = f"{NETWORK}.1:6390"
        processes = []
        try:
            for number, name in enumerate(names):
                role = "node" if number else "head"
                words = [word.format(role) for word in command] + ["--resources", json.dumps({f"n{number}": 1})]
                words += ["--session-dir", f"{home}/{number}"]
                words += ["--address", address] if number else ["--host", f"{NETWORK}.1", "--port", "6390"]
                processes.append(_inside(name, words, stderr=subprocess.DEVNULL))
                _wait_for(f"{home}/key")
            driver = [sys.executable, "-c", DRIVER.format(nodes=NODES, rounds=ROUNDS), address, f"{home}/0"]
            told = _inside(names[0], driver, stdout=subprocess.PIPE).communicate()[0]
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(30)
    found = json.loads(told)
    return {
        "broadcast_one_links": found["one"] * 1e3,
        "broadcast_all_links": found["four"] * 1e3,
        "broadcast_ratio_links": found["four"] / found["one"],
    }


@contextlib.contextmanager
def _hosts():
    """Namespaces on one bridge; yields their names and a directory."""
    mark = f"zb{os.getpid() % 100_000}"
    names = [f"{mark}-{number}" for number in range(NODES)]
    home = tempfile.mkdtemp(prefix="zb-", dir="/tmp")
    try:
        _ip("link", "add", mark, "type", "bridge")
        _ip("link", "set", mark, "up")
        for number, name in enumerate(names):
            os.mkdir(f"{home}/{number}")
            cable = f"{mark}v{number}"
            _ip("netns", "add", name)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", cable, "master", mark, "up")
            _ip("-n", name, "addr", "add", f"{NETWORK}.{number + 1}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
            limit = ["root", "tbf", "rate", RATE, "burst", "256k", "latency", "50ms"]
            _run(["tc", "-n", name, "qdisc", "add", "dev", "eth0", *limit])
            _run(["tc", "qdisc", "add", "dev", cable, *limit])
        yield names, home
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skipped(f"hosts of its own need root, ip and tc: {getattr(error, 'stderr', '') or error}") from error
    finally:
        for words in [*(["netns", "del", name] for name in names), ["link", "del", mark]]:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip(*words)
        shutil.rmtree(home, ignore_errors=True)


def _inside(name, command, **options):
    return subprocess.Popen(["ip", "netns", "exec", name, *command], stdin=subprocess.DEVNULL, **options)


def _ip(*words):
    _run(["ip", *words])


def _run(command):
    subprocess.run(command, check=True, capture_output=True, text=True)


def _wait_for(path):
    deadline = time.monotonic() + START_S
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the head did not start in {START_S:g} s")
        time.sleep(0.05)
