"""Nobody is left behind: however a driver, a worker, the head or the zygote ends, nothing of the session survives."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from .driving import Script, alive, assert_nothing_remains, eventually, pid_of, processes_of, remains_of

WORK = """
@ray.remote
def f(x):
    return x

@ray.remote
def busy():
    time.sleep(1000)

def fill():
    import gc
    kept = [ray.put(bytes(1 << 20)) for _ in range(3)]
    assert ray.get([f.remote(i) for i in range(20)]) == list(range(20))
    return kept
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("ray.shutdown()", 0),
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise LookupError('at the end')", 1),
        ("import atexit; atexit.register(lambda: 1 / 0)", 0),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("os.abort()", -6),
        ("os.execv('/bin/true', ['true'])", 0),
        ("threading.Thread(target=lambda: os._exit(5)).start(); ray.get(busy.remote())", 5),
        ("ray.get(busy.remote(), timeout=0.01)", 1),
    ],
)
def test_however_a_driver_ends(script: Callable[..., Script], ending: str, code: int) -> None:
    program = script(f"{WORK}\nstart()\nkept = fill()\nbusy.remote()\nsay('filled')\n{ending}\n")
    session = program.session
    program.until("filled")
    assert program.finish()[0] == code
    assert_nothing_remains(session)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
def test_a_driver_killed_while_it_waits(script: Callable[..., Script], number: signal.Signals) -> None:
    program = script(f"{WORK}\nstart()\nkept = fill()\nref = busy.remote()\nsay('waits')\nray.get(ref)\n")
    session = program.session
    program.until("waits")
    program.signal(number)
    assert program.finish()[0] == -number
    assert_nothing_remains(session)


def test_a_driver_killed_while_its_cluster_starts(script: Callable[..., Script], home: str) -> None:
    program = script("start()\n")
    base = os.path.join(home, f"zray-{os.getuid()}")
    (name,) = eventually(lambda: os.path.isdir(base) and os.listdir(base), "a session directory")
    program.signal(signal.SIGKILL)
    program.finish()
    session = os.path.join(base, name)
    eventually(lambda: not processes_of(session), "the end of its processes")
    script("start()\n").finish()  # the next start sweeps what the first was too young to know of
    assert remains_of(session) == [] or not os.path.exists(os.path.join(session, "lock"))


def test_ctrl_c_in_get(script: Callable[..., Script]) -> None:
    program = script(
        f"""
{WORK}
start()
kept = fill()
ref = busy.remote()
try:
    threading.Thread(target=lambda: say("waits")).start()
    ray.get(ref)
except KeyboardInterrupt:
    say("interrupted", ray.get(ray.put("and well")))
"""
    )
    session = program.session
    program.until("waits")
    program.signal(signal.SIGINT)  # in ``get`` or just before it: it must be heard in both cases
    program.until("interrupted")
    assert program.finish()[::2] == (0, "")
    assert_nothing_remains(session)


@pytest.mark.parametrize(
    "waiting", ["ray.get(ref)", "ray.wait([ref])", "ref.future().result()", "__import__('asyncio').run(wait(ref))"]
)
def test_ctrl_c_that_nobody_catches(script: Callable[..., Script], waiting: str) -> None:
    program = script(
        f"{WORK}\nasync def wait(ref): await ref\nstart()\nkept = fill()\nref = busy.remote()\nsay('waits')\n{waiting}\n"
    )
    session = program.session
    program.until("waits")
    program.signal(signal.SIGINT)
    code, _, errors = program.finish()
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert_nothing_remains(session)


def test_ctrl_c_again_and_again(script: Callable[..., Script]) -> None:
    """Each ends one ``get``, none kills the cluster, whenever it comes."""
    program = script(
        f"""
{WORK}
start()
fill()
ref = busy.remote()
for i in range(20):
    try:
        say("waits", i)
        ray.get(ref)
    except KeyboardInterrupt:
        pass
say("works", ray.get(f.options(num_cpus=0).remote("still")))
"""
    )
    session = program.session
    for _ in range(20):
        program.until("waits")
        program.signal(signal.SIGINT)
    assert program.until("works") == "still"
    assert program.finish()[::2] == (0, "")
    assert_nothing_remains(session)


def test_a_handler_of_the_programs_own_stays(script: Callable[..., Script]) -> None:
    program = script(
        f"""
{WORK}
def handler(number, frame):
    os.write(1, b"handled\\n")  # not print: it may be what was interrupted
    raise LookupError
signal.signal(signal.SIGINT, handler)
start()
ref = busy.remote()
try:
    say("waits")
    ray.get(ref)
except LookupError:
    say("works", ray.get(f.options(num_cpus=0).remote("still")))
ray.shutdown()
assert signal.getsignal(signal.SIGINT) is handler
"""
    )
    program.until("waits")
    program.signal(signal.SIGINT)
    program.until("handled")
    assert program.until("works") == "still"
    assert program.finish()[::2] == (0, "")


HEARS_OF_IT = (
    WORK
    + """
context = start()
kept = fill()
refs = [busy.remote(), f.remote(busy.remote())]
future = refs[0].future()
errors = []
def work():
    try:
        ray.get(refs[0])
    except ray.exceptions.RayError as error:
        errors.append(error)
thread = threading.Thread(target=work)
thread.start()
say("waits")
for use in (lambda: ray.get(refs), lambda: ray.wait(refs[:1]), lambda: ray.get(f.remote(1)), lambda: future.result(30),
            lambda: ray.put(bytes(1 << 20)), ray.nodes):
    try:
        use()
        say("nothing was raised")
    except ray.exceptions.RayError as error:
        say("raised", type(error).__name__, str(error).replace(chr(10), " "))
thread.join()
say("thread", *[type(error).__name__ for error in errors])
say("value", len(ray.get(ray.put(b"small"))))
ray.shutdown()
say("again")
start()
say("works", ray.get(f.remote(1)))
"""
)


@pytest.mark.parametrize(
    "victims", [("zray-head",), ("zray-zygote",), ("zray-head", "zray-zygote"), ("zray-zygote", "zray-head")]
)
def test_the_driver_survives_head_and_zygote(script: Callable[..., Script], victims: tuple[str, ...]) -> None:
    """All that waits raises an error that says what to do, and doing it works."""
    program = script(HEARS_OF_IT)
    session = program.session
    program.until("waits")
    for pid in [pid_of(session, name) for name in victims]:
        os.kill(pid, signal.SIGKILL)
    for _ in range(6):
        words = program.line()
        assert words.startswith("raised NodeDiedError"), words
        assert "zray.init()" in words
    assert program.line() == "thread NodeDiedError"
    assert program.line() == "value 5"
    program.until("again")
    assert_nothing_remains(session)
    assert program.until("works") == "1"
    assert program.finish()[::2] == (0, "")


def test_head_and_zygote_and_driver_killed_at_once(script: Callable[..., Script]) -> None:
    """Nobody is left to clean up: the processes are gone, and the next start sweeps the rest."""
    program = script(f"{WORK}\nstart()\nkept = fill()\nbusy.remote()\nsay('filled')\ntime.sleep(1000)\n")
    session = program.session
    program.until("filled")
    pids = [pid_of(session, "zray-head"), pid_of(session, "zray-zygote"), program.pid]
    for pid in pids:  # all stop first, so that none can react to the death of another
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    program.finish()
    eventually(lambda: not processes_of(session), "the end of the workers")
    assert os.path.exists(session)
    assert script("start()\n").finish()[::2] == (0, "")
    assert_nothing_remains(session)


def test_everything_killed_in_one_sweep(script: Callable[..., Script]) -> None:
    program = script(f"{WORK}\nstart()\nkept = fill()\nbusy.remote()\nsay('filled')\ntime.sleep(1000)\n")
    session = program.session
    program.until("filled")
    for pid in [*processes_of(session), program.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    program.finish()
    eventually(lambda: not processes_of(session), "the end of the workers")
    assert script("start()\n").finish()[::2] == (0, "")
    assert_nothing_remains(session)


def test_a_start_leaves_living_sessions_alone(script: Callable[..., Script]) -> None:
    first = script("start()\nref = ray.put(bytes(1 << 20))\nsay('filled')\nsys.stdin.read()\nsay('still', len(ray.get(ref)))\n")
    session = first.session
    first.until("filled")
    assert script("start()\n").finish()[0] == 0
    assert os.path.exists(session)
    assert "zray-head" in processes_of(session).values()
    assert first.finish()[1].endswith(f"still {1 << 20}\n")


def test_what_a_task_starts_has_nothing_of_the_cluster(script: Callable[..., Script]) -> None:
    """Nor can it keep the lock of the session when it outlives everything else."""
    program = script(
        """
        @ray.remote
        def heirlooms():
            numbers = [int(name) for name in os.listdir("/proc/self/fd")]
            own = [number for number in numbers if number > 2 and os.path.exists(f"/proc/self/fd/{number}")]
            return [os.readlink(f"/proc/self/fd/{number}") for number in own if os.get_inheritable(number)]
        start()
        say("inherited", ray.get(heirlooms.remote()))
        """
    )
    assert program.until("inherited") == "[]"
    assert program.finish()[0] == 0


def test_what_workers_started_ends_with_the_driver(script: Callable[..., Script]) -> None:
    program = script(
        """
        @ray.remote
        def spawn():
            import subprocess
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid
        start()
        say("child", ray.get(spawn.remote()))
        time.sleep(1000)
        """
    )
    session = program.session
    child = int(program.until("child"))
    program.signal(signal.SIGKILL)
    program.finish()
    assert_nothing_remains(session)
    eventually(lambda: not alive(child), "the end of what a worker had started")


def test_a_worker_killed_again_and_again(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote(max_retries=-1)
        def f(x):
            return os.getpid()
        for _ in range(5):
            os.kill(ray.get(f.remote(0)), signal.SIGKILL)
        say("works", ray.get(f.remote(0)) > 0)
        """
    )
    session = program.session
    assert program.until("works") == "True"
    assert program.finish()[::2] == (0, "")
    assert_nothing_remains(session)


def test_the_output_pipe_of_a_driver_ends_with_it(script: Callable[..., Script]) -> None:
    """Workers share it: whoever reads it must not wait for a worker that was forgotten."""
    program: Any = script(f"{WORK}\nstart()\nbusy.remote()\nsay('runs')\nos._exit(0)\n")
    session = program.session
    assert program.finish()[1].endswith("runs\n")
    assert_nothing_remains(session)
