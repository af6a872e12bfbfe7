"""init and shutdown."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from typing import Any

import pytest

import zray as ray
from zray.cluster_utils import Cluster
from zray.exceptions import OwnerDiedError, RayError
from zray.runtime.driver import Driver
from zray.runtime.embedded import EmbeddedHead
from zray.runtime.local import LocalRuntime

from .driving import assert_nothing_remains, eventually, processes_of

MB = 1 << 20


def init(**arguments: Any) -> Any:
    return ray.init(**{"num_cpus": 1, "object_store_memory": 16 * MB, **arguments})


def test_init_and_shutdown_many_times_in_one_process() -> None:
    f = ray.remote(lambda x: x + 1)
    for i in range(4):
        context = init()
        assert ray.is_initialized()
        assert ray.get(f.remote(i)) == i + 1
        ray.shutdown()
        assert not ray.is_initialized()
        assert_nothing_remains(context.session_dir)


def test_shutdown_is_idempotent() -> None:
    ray.shutdown()
    init()
    ray.shutdown()
    ray.shutdown()


def test_shutdown_right_after_init_and_with_tasks_in_flight() -> None:
    init()
    ray.shutdown()
    context = init()
    refs = [ray.remote(lambda: __import__("time").sleep(1000)).remote() for _ in range(5)]
    ray.shutdown()
    assert_nothing_remains(context.session_dir)
    del refs


@pytest.mark.parametrize(
    ("runtime", "step"),
    [
        *[(Driver, step) for step in ("_flush_output", "_finish_job", "close")],
        *[(LocalRuntime, step) for step in ("_finish_job", "_end_workers", "close")],
    ],
)
def test_a_shutdown_that_is_interrupted_ends_everything(monkeypatch: Any, runtime: Any, step: str) -> None:
    """Whatever it just waits for; the fixtures look for what is left."""
    local = runtime is LocalRuntime
    done = getattr(runtime, step)

    def interrupted(*arguments: Any) -> None:
        if step == "close":
            done(*arguments)
        raise KeyboardInterrupt

    context = init(local_mode=local)
    monkeypatch.setattr(runtime, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        ray.shutdown()
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not local:
        assert_nothing_remains(context.session_dir)
    monkeypatch.undo()
    with init(local_mode=local):
        assert ray.get(ray.put(1)) == 1


def test_a_head_is_ended_though_the_wait_for_its_end_is_interrupted(monkeypatch: Any) -> None:
    context = init()
    process = ray.api.connected().head._process

    def interrupted(timeout: float | None = None) -> int:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "wait", interrupted)
    monkeypatch.setattr(Driver, "_finish_job", lambda driver: None)  # or it would end by itself
    with pytest.raises(KeyboardInterrupt):
        ray.shutdown()
    assert_nothing_remains(context.session_dir)


@pytest.mark.parametrize("call", [ray.shutdown, ray.init, lambda: ray.put(1)], ids=["shutdown", "init", "put"])
def test_what_a_handler_calls_during_init_is_refused(monkeypatch: Any, call: Any) -> None:
    """Or a ``__del__`` method: it would wait for its own thread."""
    monkeypatch.setattr(EmbeddedHead, "wait_ready", lambda head: call())
    with pytest.raises(RuntimeError, match=r"inside zray\.init\(\)"):
        init()
    assert not ray.is_initialized()
    monkeypatch.undo()
    with init():
        assert ray.get(ray.put(1)) == 1


def test_what_a_handler_calls_during_shutdown(monkeypatch: Any) -> None:
    shutdown = Driver.shutdown

    def called_meanwhile(driver: Driver) -> None:
        ray.shutdown()  # that is under way
        for call in (ray.init, lambda: ray.put(1)):
            with pytest.raises(RuntimeError, match=r"inside zray\.shutdown\(\)"):
                call()
        shutdown(driver)

    init()
    monkeypatch.setattr(Driver, "shutdown", called_meanwhile)
    ray.shutdown()
    assert not ray.is_initialized()


@pytest.mark.parametrize("local", [False, True], ids=["processes", "local"])
@pytest.mark.parametrize("ending", ["", "; sys.exit(3)"], ids=["goes on", "exits"])
def test_a_handler_of_sigterm_shuts_down_in_the_middle_of_a_get(script: Any, ending: str, local: bool) -> None:
    program = script(
        f"""
        def handler(number, frame):
            ray.shutdown(){ending}
        def work():
            while True:
                time.sleep(0.01)
        def end():
            loop, main = ray.api.connected().loop, threading.main_thread().ident
            while not (loop._driver == main and loop._sleeping):
                time.sleep(0.001)
            signal.pthread_kill(main, signal.SIGTERM)
        signal.signal(signal.SIGTERM, handler)
        start()
        refs = [ray.remote(work).remote() for _ in range(2)]  # in local mode, get of one alone would run it
        threading.Thread(target=end).start()
        try:
            ray.get(refs)
        except ray.exceptions.RaySystemError as error:
            say("told", error)
        ray.shutdown()
        say("connected", ray.is_initialized())
        start()
        say("again", ray.get(ray.put(1)))
        """,
        **({"ZRAY_LOCAL_MODE": "1"} if local else {}),
    )
    session = "" if local else program.session
    if not ending:
        assert "shutdown" in program.until("told")
        assert program.until("connected") == "False"
        assert program.until("again") == "1"
    code, _, errors = program.finish()
    assert (code, errors) == (3 if ending else 0, "")
    if not local:
        assert_nothing_remains(session)


def test_the_context() -> None:
    with init(namespace="a name") as context:
        assert set(context) == set(context.address_info)
        assert len(context) == len(context.address_info)
        assert context["session_dir"] == context.session_dir == context.address_info["session_dir"]
        assert context["address"]
        assert context["node_id"] == ray.get_runtime_context().get_node_id()
        assert context.zray_version == ray.__version__
        assert context.python_version == ".".join(map(str, sys.version_info[:3]))
        assert ray.get_runtime_context().namespace == "a name"
        assert stat.S_IMODE(os.stat(context.session_dir).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(os.path.dirname(context.session_dir)).st_mode) == 0o700
        assert set(processes_of(context.session_dir).values()) >= {"zray-head", "zray-zygote"}
    assert not ray.is_initialized()


def test_the_context_shuts_down_after_an_exception() -> None:
    with pytest.raises(LookupError):
        with init():
            raise LookupError
    assert not ray.is_initialized()


def test_disconnect_of_the_context() -> None:
    init().disconnect()
    assert not ray.is_initialized()


def test_a_second_init_is_an_error_that_names_the_mend() -> None:
    with init() as context:
        with pytest.raises(RuntimeError, match=r"shutdown\(\).*ignore_reinit_error"):
            ray.init()
        again = ray.init(ignore_reinit_error=True, num_cpus=7)
        assert again.session_dir == context.session_dir
        assert ray.cluster_resources()["CPU"] == 1


@pytest.mark.parametrize("first_use", ["put", "remote", "nodes", "context"])
def test_the_first_use_starts_a_cluster(first_use: str) -> None:
    try:
        if first_use == "put":
            assert ray.get(ray.put(1)) == 1
        elif first_use == "remote":
            assert ray.get(ray.remote(lambda: 1).remote()) == 1
        elif first_use == "nodes":
            assert len(ray.nodes()) == 1
        else:
            assert ray.get_runtime_context().get_job_id()
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_first_uses_in_several_threads_start_one_cluster() -> None:
    barrier = threading.Barrier(4)
    got = []

    def work() -> None:
        barrier.wait()
        ref = ray.put(1)
        got.append((ray.get(ref), ray.get_runtime_context().get_node_id()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ray.shutdown()
    assert len(got) == 4
    assert len(set(got)) == 1


def test_the_resources_that_were_asked_for() -> None:
    with init(num_cpus=3, num_gpus=1.5, resources={"special": 2}):
        total = ray.cluster_resources()
        assert (total["CPU"], total["GPU"], total["special"]) == (3, 1.5, 2)

        @ray.remote(num_gpus=0.5, resources={"special": 1}, num_cpus=2)
        def f() -> Any:
            return ray.get_runtime_context().get_assigned_resources()

        assert ray.get(f.remote()) == {"CPU": 2, "GPU": 0.5, "special": 1}


def test_a_node_without_cpus_runs_what_needs_none() -> None:
    with init(num_cpus=0):
        assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_cpus": -1}, "negative"),
        ({"num_cpus": "2"}, "num_cpus"),
        ({"num_cpus": True}, "num_cpus"),
        ({"num_cpus": float("inf")}, "finite"),
        ({"num_gpus": -1}, "negative"),
        ({"resources": {"CPU": 1}}, "CPU"),
        ({"resources": {"x": -1}}, "negative"),
        ({"resources": {"x": "many"}}, "x must be a number"),
        ({"object_store_memory": -5}, "object_store_memory"),
        ({"_system_config": {"no_such_limit": 1}}, "no_such_limit"),
        ({"_system_config": {"workers_max": "many"}}, "workers_max"),
        ({"logging_level": "LOUD"}, "logging_level"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ray.init(**arguments)
    assert not ray.is_initialized()


def test_an_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no_such_argument"):
        ray.init(no_such_argument=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "no address at all"])
def test_an_address_where_no_cluster_is_is_a_connection_error(address: str) -> None:
    with pytest.raises(ConnectionError, match=r"no cluster"):
        ray.init(address)
    assert not ray.is_initialized()


def test_the_address_may_come_from_the_environment(monkeypatch: Any) -> None:
    monkeypatch.setenv("ZRAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:6379"):
        ray.init()
    with init(address="local"):
        assert ray.is_initialized()


def test_limits_from_the_environment(monkeypatch: Any) -> None:
    monkeypatch.setenv("ZRAY_MAX_RETRIES", "many")
    with pytest.raises(ValueError, match="ZRAY_MAX_RETRIES"):
        ray.init()
    monkeypatch.setenv("ZRAY_MAX_RETRIES", "0")
    with init():
        attempts = ray.remote(lambda: os._exit(1)).remote()
        with pytest.raises(ray.exceptions.WorkerCrashedError, match="tried 1 time"):
            ray.get(attempts)


def test_the_temporary_directory_is_for_one_session_only(tmp_path_factory: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="zt-", dir="/tmp") as home:
        with init(_temp_dir=home) as context:
            assert context.session_dir.startswith(home)
    with init() as context:
        assert not context.session_dir.startswith(home)


def test_a_session_directory_that_others_may_enter_is_refused(home: str) -> None:
    base = os.path.join(home, f"zray-{os.getuid()}")
    os.mkdir(base, 0o755)
    with pytest.raises(PermissionError, match="0700"):
        init(_temp_dir=home)
    assert not ray.is_initialized()


def test_a_head_that_can_not_start_says_why(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "executable", "/there/is/no/python")
    with pytest.raises((RuntimeError, OSError), match="python"):
        init()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="could not start"):
        init()
    assert not ray.is_initialized()


@pytest.mark.parametrize("running", [False, True], ids=["started", "joined"])
@pytest.mark.parametrize("step", ["__init__", "connect"])
def test_a_start_that_fails_leaves_nothing(monkeypatch: Any, step: str, running: bool) -> None:
    """The fixtures look for processes, threads, descriptors and directories."""

    def fail(*arguments: Any, **more: Any) -> None:
        raise LookupError(step)

    with Cluster() if running else contextlib.nullcontext() as cluster:
        monkeypatch.setattr(Driver, step, fail)
        with pytest.raises(LookupError, match=step):
            init() if cluster is None else cluster.connect()
        assert not ray.is_initialized()


def test_a_store_larger_than_memory_is_an_error_or_only_reserved() -> None:
    """Shared memory is taken when it is written: a large store alone needs none."""
    try:
        with init(object_store_memory=1 << 45):
            assert ray.get(ray.put(bytes(MB))) == bytes(MB)
    except RuntimeError as error:
        assert "could not start" in str(error)


def test_references_that_outlive_their_cluster_are_harmless() -> None:
    with init():
        old = ray.put("old")
        f = ray.remote(lambda: 1)
        task = f.remote()
        ray.get(task)
    with init():
        same = ray.remote(lambda x: x)
        for ref in (old, task):
            for use in (ray.get, same.remote, ray.ObjectRef.future):
                with pytest.raises(OwnerDiedError, match=r"shutdown\(\)"):
                    use(ref)
            for use in (ray.wait, same.remote, ray.put):
                with pytest.raises(OwnerDiedError, match=r"shutdown\(\)"):
                    use([ref])
        new = ray.put("new")
        del old, task, ref
        assert ray.get(new) == "new"
    del new


def test_a_thread_that_waits_learns_of_the_shutdown() -> None:
    init()
    ref = ray.remote(lambda: __import__("time").sleep(1000)).remote()
    errors: list[BaseException] = []
    waits = threading.Event()

    def work() -> None:
        waits.set()
        try:
            ray.get(ref)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    waits.wait()
    ray.shutdown()
    thread.join(30)
    assert not thread.is_alive()
    assert isinstance(errors[0], (RayError, ValueError, RuntimeError))
    assert "shutdown" in str(errors[0])


def test_a_future_learns_of_the_shutdown() -> None:
    init()
    future = ray.remote(lambda: __import__("time").sleep(1000)).remote().future()
    ray.shutdown()
    with pytest.raises((RayError, RuntimeError), match="shutdown"):
        future.result(30)


def test_output_of_tasks_goes_to_the_session_directory_if_not_to_the_driver() -> None:
    with init(log_to_driver=False) as context:

        @ray.remote
        def speak() -> None:
            print("these words")

        ray.get(speak.remote())
        logs = os.path.join(context.session_dir, "logs")

        def written() -> bool:
            texts = []
            for name in os.listdir(logs):
                with open(os.path.join(logs, name), encoding="utf-8") as file:
                    texts.append(file.read())
            return any("these words" in text for text in texts)

        eventually(written, "the words in a file")


def test_output_of_tasks_is_shown_by_the_driver(script: Any) -> None:
    program = script(
        """
        start()
        ray.get(ray.remote(lambda: print("these words")).remote())
        ray.shutdown()
        """
    )
    code, out, errors = program.finish()
    assert (code, errors) == (0, "")
    assert "these words" in out


def test_the_logging_level() -> None:
    with init(logging_level=logging.WARNING):
        pass
    with init(logging_level="error"):
        pass


def test_importing_is_cheap_and_does_nothing() -> None:
    program = "import sys, zray; print([m for m in ('zmq', 'psutil', 'cloudpickle', 'numpy') if m in sys.modules])"
    root = os.path.dirname(os.path.dirname(ray.__file__))
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert out.stdout.decode().strip() == "[]"


def test_every_public_name_exists() -> None:
    for name in ray.__all__:
        assert getattr(ray, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        ray.no_such_name


def test_a_program_that_never_shuts_down_leaves_nothing(script: Any) -> None:
    program = script("start()\nsay('got', ray.get(ray.remote(lambda: 1).remote()))\n")
    session = program.session
    assert program.until("got") == "1"
    assert program.finish()[::2] == (0, "")
    assert not os.path.exists(session)
    assert_nothing_remains(session)


def test_the_last_words_of_a_head_that_fails_reach_the_driver(script: Any) -> None:
    """Its log is removed with the session, but not before the driver has read it."""
    program = script(
        """
        import sqlite3
        context = start()
        broken = sqlite3.connect(context.session_dir + "/gcs.sqlite", isolation_level=None)
        broken.execute("DROP TABLE functions")
        broken.close()
        try:
            for i in range(10**6):
                ray.get(ray.remote(lambda i=i: i).remote())  # each is a function of its own, to be saved
        except ray.exceptions.NodeDiedError as error:
            say("error", error)
        """
    )
    assert "no such table" in program.until("error")
    assert program.finish()[::2] == (0, "")


def test_a_program_that_has_many_files_open(script: Any) -> None:
    """Descriptors of 1024 and more are too large for select()."""
    program = script(
        """
        import resource
        from zray.cluster_utils import Cluster
        from zray.ops import cli
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1030)]
        start()
        say("got", ray.get(ray.remote(lambda: 1).remote()))
        ray.shutdown()
        with Cluster() as cluster:
            say("stopped", cli.head(["--stop", "--session-dir", cluster.head_node.session_dir.rpartition("/zray-")[0]]))
        """
    )
    assert program.until("got") == "1"
    assert program.until("stopped") == "0"
    assert program.finish()[::2] == (0, "")
