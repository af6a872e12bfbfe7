"""Ctrl-C at any moment, as in a notebook: the session can be used as before."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from .driving import Script

CELLS = """
def cell():
    refs = [f.remote(n) for n in range(20)] + [g.remote(n) for n in range(3)]
    large = ray.put(bytes(200_000))
    ready, rest = ray.wait(refs, num_returns=5)
    ray.get(ready)
    ray.cancel(rest[0])
    ray.get(large)
    for ref in rest:
        ray.cancel(ref)
    ray.wait(rest, num_returns=len(rest))
    ray.get(actor.add.remote(1))
"""


@pytest.mark.parametrize("threads", ["", "others = [threading.Thread(target=work) for _ in range(2)]"])
def test_an_interrupt_in_any_line(script: Callable[..., Script], threads: str) -> None:
    """With other threads that wait it is now one of them that turns the loop, and now the main thread."""
    program = script(
        f"""
import random
start(num_cpus=2, object_store_memory=1 << 26)
f = ray.remote(num_cpus=0)(lambda x: x)
g = ray.remote(lambda x: time.sleep(0.02 * x))

class Counter:
    total = 0
    def add(self, n):
        self.total += n
        return self.total

actor = ray.remote(Counter).remote()
ray.get(actor.add.remote(0))
{CELLS}
over = threading.Event()
quiet = threading.Event()
sent = threading.Event()  # one at a time: a second one would meet the handler of the first
guard = threading.Lock()
dice = random.Random(1)
hits = 0

def work():
    while not over.is_set():
        assert ray.get(f.remote(7)) == 7

def press():
    while not over.is_set():
        time.sleep(dice.random() * 0.02)
        with guard:
            if not quiet.is_set() and not sent.is_set():
                sent.set()
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

others = []
{threads}
others.append(threading.Thread(target=press))
quiet.set()
for thread in others:
    thread.start()
while hits < 60:
    try:
        quiet.clear()
        for _ in range(3):
            cell()
        with guard:
            quiet.set()
        while sent.is_set():
            time.sleep(0.001)
    except KeyboardInterrupt:
        quiet.set()
        hits += 1
        sent.clear()
over.set()
for thread in others:
    thread.join()
total = ray.get(actor.add.remote(0))
say("works", ray.get([f.remote(n) for n in range(50)]) == list(range(50)), ray.get(actor.add.remote(1)) == total + 1)
"""
    )
    assert program.until("works") == "True True"
    code, _, errors = program.finish()
    assert (code, errors) == (0, "")


_LEFT = {
    "a shutdown in another thread": "ending = threading.Thread(target=ray.shutdown); ending.start(); ending.join(); start()",
    "a fork": """
if os.fork():
    sys.stdin.read()
    os._exit(0)
start()
""",
}


@pytest.mark.parametrize("local", [False, True], ids=["processes", "local"])
@pytest.mark.parametrize("left", _LEFT)
def test_ctrl_c_is_heard_after(script: Callable[..., Script], left: str, local: bool) -> None:
    program = script(
        f"""
start()
{_LEFT[left]}
def work():
    while True:
        time.sleep(0.01)

ref = ray.remote(work).remote()
try:
    say("waits", os.getpid())
    ray.get(ref)
except KeyboardInterrupt:
    say("interrupted", ray.get(ray.remote(num_cpus=0)(lambda: "and well").remote()))
ray.shutdown()
""",
        **({"ZRAY_LOCAL_MODE": "1"} if local else {}),
    )
    os.kill(int(program.until("waits")), signal.SIGINT)
    assert program.until("interrupted") == "and well"
    assert program.finish()[::2] == (0, "")
