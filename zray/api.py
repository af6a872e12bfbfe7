"""The public functions: init, shutdown, put, get, wait and cancel.

The signatures and their meaning are those of Ray Core's documentation.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from zray import object_ref
from zray.base.config import Config
from zray.base.resources import to_units
from zray.object_ref import ObjectRef
from zray.object_ref_generator import ObjectRefGenerator

if TYPE_CHECKING:
    from zray.runtime.core_worker import CoreWorker

T = TypeVar("T")


class _Change:
    """An init or a shutdown: one at a time, and none inside another, where a signal handler or a finalizer may call it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.under_way = ""

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[bool]:
        """Do ``what``. Given is whether it has to be done: what is shut down already need not be.

        Raises:
            RuntimeError: this thread is inside another one.
        """
        with self._lock:
            if self.under_way:
                if what == self.under_way == "shutdown":
                    yield False
                    return
                raise RuntimeError(
                    f"zray.{what}() was called inside zray.{self.under_way}(), by a signal handler or a __del__ method: "
                    "do that when it is over"
                )
            try:
                self.under_way = what
                yield True
            finally:
                self.under_way = ""


_change = _Change()


def connected() -> Any:
    """The runtime of this process, or None."""
    return object_ref.connected


def runtime() -> CoreWorker:
    """The runtime of this process; an embedded cluster is started if there is none."""
    worker = object_ref.connected
    if worker is None:
        with _change("init"):
            if object_ref.connected is None:
                _start_default()
            worker = object_ref.connected
    return worker  # type: ignore[return-value]


class Context(Mapping[str, Any]):
    """What ``init`` returns: a mapping with the address and the session; as a context manager it shuts down at the end."""

    def __init__(self, address_info: dict[str, Any]) -> None:
        from zray import __version__

        self.address_info = address_info
        self.session_dir: str = address_info["session_dir"]
        self.zray_version = __version__
        self.python_version = ".".join(str(part) for part in sys.version_info[:3])
        self.dashboard_url = ""

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exception: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        """Shut down."""
        shutdown()

    def __repr__(self) -> str:
        return f"Context({self.address_info})"


def _anonymous() -> str:
    """A namespace that nobody else has."""
    return f"anonymous-{os.urandom(16).hex()}"


def init(
    address: str | None = None,
    *,
    num_cpus: int | float | None = None,
    num_gpus: int | float | None = None,
    resources: dict[str, float] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    namespace: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    labels: dict[str, str] | None = None,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    log_to_driver: bool = True,
    logging_level: int | str = logging.INFO,
    configure_logging: bool = True,
    _temp_dir: str | None = None,
    _system_config: dict[str, Any] | None = None,
) -> Context:
    """Connect this process to a cluster, or start one for it.

    Args:
        address: None takes ``ZRAY_ADDRESS`` or else starts a cluster of one node that lives as long as this process;
            "local" always starts one; "auto" joins the running cluster of this user, if there is one alone, "HOST:PORT" that
            of this head. A node of it must run on this machine.
        num_cpus: CPUs the node offers; by default those this process may use.
        num_gpus, resources, labels: GPUs, further resources by name, and labels for strategies, that the node offers.
        object_store_memory: bytes of shared memory for objects; by default 30 % of memory, and never more than /dev/shm has.
        runtime_env: ``{"env_vars": {...}}`` sets environment variables in the workers of this job.
        local_mode: run everything in this very process, for debugging; ``ZRAY_LOCAL_MODE=1`` does so for any program.
        namespace: isolates names from other jobs; by default one of its own.
        ignore_reinit_error: a second ``init`` is not an error.
        include_dashboard, configure_logging: accepted, as Ray has them, and without effect.
        log_to_driver: whether what workers write is shown here; their files in the session directory have it in any case.
        logging_level: of the cluster's own log.
        _temp_dir: where the session directory is made, or that of a running node is looked for; its path may have 60 bytes.
        _system_config: limits by name (see ``zray.base.config``).

    Returns:
        A mapping with ``address``, ``session_dir`` and ``node_id``, usable as a context manager.

    Raises:
        RuntimeError: it was called before, or the cluster could not start.
        ConnectionError: there is no cluster at ``address``, or "auto" does not say which of several.
        ValueError: an argument has a bad value.

    Example:
        >>> with zray.init(num_cpus=2):  # doctest: +SKIP
        ...     print(zray.get(zray.put(1)))
        1
    """
    with _change("init"):
        if object_ref.connected is not None:
            if ignore_reinit_error:
                return _context()
            raise RuntimeError("zray.init() was called before: call zray.shutdown() first, or pass ignore_reinit_error=True")
        address = address if address is not None else os.environ.get("ZRAY_ADDRESS") or None
        given = {"num_cpus": num_cpus, "num_gpus": num_gpus, "resources": resources, "labels": labels}
        given["object_store_memory"] = object_store_memory
        env_vars = _job_env_vars(runtime_env)
        if local_mode or _local_by_default(address):
            _start_local(address, given, namespace, env_vars, _system_config)
            return _context()
        if address not in (None, "local"):
            _join_running(str(address), given, namespace, env_vars, _temp_dir or "", log_to_driver=log_to_driver)
        else:
            how = {"log_to_driver": log_to_driver, "logging_level": logging_level, "temp_dir": _temp_dir}
            limits = {"namespace": namespace, "system_config": _system_config, "env_vars": env_vars}
            _start_embedded({**given, **how, **limits})
        return _context()


def _join_running(
    address: str,
    given: dict[str, Any],
    namespace: str | None,
    env_vars: dict[str, str],
    temp_dir: str,
    *,
    log_to_driver: bool,
) -> None:
    """Connect to a running cluster through the node that runs on this machine."""
    from zray.io.session import living_nodes
    from zray.runtime import driver

    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is for a cluster that init() starts: the one at {address!r} has its nodes already")
    nodes = living_nodes(temp_dir)
    found = [node for node in nodes if address in ("auto", node["address"])]
    if not found:
        others = ", ".join(dict.fromkeys(node["address"] for node in nodes))
        hint = f"; those that run here belong to {others}" if others else ""
        raise ConnectionError(
            f"no cluster: no node of one at {address!r} runs on this machine{hint}; start one with zray-head, or with "
            "zray-node --address"
        )
    clusters = list(dict.fromkeys(node["address"] for node in found))
    if len(clusters) > 1:
        raise ConnectionError(
            f"{len(clusters)} clusters run on this machine: {', '.join(clusters)}; say which one you mean: init(address=...), or "
            "the variable ZRAY_ADDRESS"
        )
    space = namespace or _anonymous()
    object_ref.connected = driver.connect_running(found[0], space, env_vars, log_to_driver=log_to_driver)


def _start_default() -> None:
    """What ``init()`` would do that was not called."""
    if _local_by_default(None):
        _start_local(None, {}, None, {}, None)
    else:
        _start_embedded({})


def _local_by_default(address: str | None) -> bool:
    return address in (None, "local") and os.environ.get("ZRAY_LOCAL_MODE") == "1"


def _start_local(
    address: str | None,
    given: dict[str, Any],
    namespace: str | None,
    env_vars: dict[str, str],
    system_config: dict[str, Any] | None,
) -> None:
    """Have the cluster in this very process."""
    if address not in (None, "local"):
        raise ValueError(f"local_mode has no other processes: there is nothing to connect to at {address!r}")
    from zray.runtime.local import LocalRuntime

    config = Config.from_environment()
    if system_config:
        config = Config.from_dict({**config.as_dict(), **system_config})
    space = namespace or _anonymous()
    object_ref.connected = LocalRuntime(config, _node_resources(given), space, env_vars, _node_labels(given.get("labels")))


def _start_embedded(arguments: dict[str, Any]) -> None:
    from zray.runtime.embedded import EmbeddedHead

    config = Config.from_environment()
    if arguments.get("system_config"):
        config = Config.from_dict({**config.as_dict(), **arguments["system_config"]})
    level = arguments.get("logging_level", logging.INFO)
    store_bytes = arguments.get("object_store_memory") or 0
    if store_bytes < 0:
        raise ValueError(f"object_store_memory must be a number of bytes, not {store_bytes!r}")
    if isinstance(level, str):
        level = logging.getLevelName(level.upper())
    if not isinstance(level, int):
        raise ValueError(f"logging_level must be a number or a name such as 'INFO', not {arguments['logging_level']!r}")
    head = EmbeddedHead(
        config,
        _node_resources(arguments),
        int(store_bytes),
        logging_level=level,
        temp_dir=arguments.get("temp_dir") or "",
        labels=_node_labels(arguments.get("labels")),
    )
    try:
        from zray.runtime import driver  # takes as long to import as the head takes to start: both at once

        namespace = arguments.get("namespace") or _anonymous()
        env_vars = arguments.get("env_vars") or {}
        log_to_driver = arguments.get("log_to_driver", True)
        object_ref.connected = driver.connect_embedded(head, config, namespace, env_vars, log_to_driver=log_to_driver)
    except BaseException:
        head.stop(0.0)
        raise


def _job_env_vars(runtime_env: dict[str, Any] | None) -> dict[str, str]:
    """The environment variables of a job's workers, the one field of ``runtime_env`` that exists so far."""
    others = sorted(set(runtime_env or {}) - {"env_vars"})
    if others:
        raise NotImplementedError(f"runtime_env: {', '.join(others)} not supported yet; env_vars is")
    env_vars = (runtime_env or {}).get("env_vars") or {}
    for name, value in env_vars.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"runtime_env['env_vars'] must map strings to strings, not {name!r} to {value!r}")
    return dict(env_vars)


def _node_resources(arguments: dict[str, Any]) -> dict[str, float]:
    """What the node offers."""
    cpus = arguments.get("num_cpus")
    gpus = arguments.get("num_gpus")
    named = dict(arguments.get("resources") or {})
    for name in ("CPU", "GPU", "memory", "object_store_memory"):
        if name in named:
            raise ValueError(f"resources must not name {name!r}: use the argument for it")
    for name, amount in [("num_cpus", cpus), ("num_gpus", gpus), *named.items()]:
        if amount is not None:
            if isinstance(amount, bool) or not isinstance(amount, (int, float)):
                raise ValueError(f"{name} must be a number, not {amount!r}")
            to_units(amount)
    return {
        "CPU": float(_usable_cpus() if cpus is None else cpus),
        "GPU": float(gpus or 0),
        **{name: float(amount) for name, amount in named.items()},
    }


def _node_labels(labels: Any) -> dict[str, str]:
    """What strategies can ask the node for."""
    named = labels if labels is not None else {}
    if not isinstance(named, dict) or not all(isinstance(k, str) and k and isinstance(v, str) for k, v in named.items()):
        raise ValueError(f"labels must be a dict of text by name, not {labels!r}")
    return dict(named)


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _context() -> Context:
    worker: Any = object_ref.connected
    head = getattr(worker, "head", None)
    running = worker.running if hasattr(worker, "running") else {}
    info = {
        "address": head.session.endpoint("h") if head else running.get("address", ""),
        "session_dir": head.session.path if head else running.get("session", ""),
        "node_id": worker.node_id.hex(),
        "job_id": worker.job_id.hex(),
        "namespace": worker.namespace,
    }
    return Context(info)


def shutdown(_exiting_interpreter: bool = False) -> None:
    """Disconnect; a cluster that ``init`` started ends, with all its processes and files. Does nothing if not connected.

    A signal handler may call it. If it has met this thread in the middle of a ``get`` or the like, it returns at once: another
    thread does the rest, and the ``get`` fails with RaySystemError.

    Example:
        >>> shutdown()  # doctest: +SKIP
    """
    worker: Any = object_ref.connected
    if worker is not None and worker.loop.is_turned_here() and worker.executor() is None:
        threading.Thread(target=shutdown, name="zray-shutdown").start()
        return
    with _change("shutdown") as is_first:
        worker = object_ref.connected
        if not is_first or worker is None or worker.executor() is not None:
            return  # a task or actor has not called init()
        object_ref.connected = None
        worker.shutdown()


atexit.register(shutdown, True)


def _after_fork_in_child() -> None:
    """A fork of the user's has none of the parent's threads and sockets: it is not connected, and may connect anew."""
    global _change
    _change = _Change()
    object_ref.connected = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def is_initialized() -> bool:
    """Whether this process is connected to a cluster.

    Example:
        >>> is_initialized()  # doctest: +SKIP
        True
    """
    return object_ref.connected is not None


def put(value: T) -> ObjectRef[T]:
    """Make an object of a value.

    Args:
        value: anything that pickles; arrays are copied once, into shared memory if they are large.

    Returns:
        A reference to it; the object lives as long as references do.

    Raises:
        TypeError: the value is an ObjectRef, or does not pickle.
        ObjectStoreFullError: there is no room for it.

    Example:
        >>> ref = put([1, 2, 3])  # doctest: +SKIP
    """
    if isinstance(value, ObjectRef):
        raise TypeError("put() of an ObjectRef is not allowed: pass the reference itself, or put a list that contains it")
    return runtime().put(value)


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(object_refs: Sequence[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...
def get(object_refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a reference, or the values of a list of references in order; waits for them.

    Args:
        object_refs: an ObjectRef or a list of them. An ObjectRefGenerator is returned as it is.
        timeout: seconds to wait at most; 0 only looks; None waits for ever.

    Returns:
        The value of a reference; for a list of them the list of their values, in the same order.

    Raises:
        GetTimeoutError: not all values were there in time. The objects are intact.
        RayTaskError: the task raised; the error is an instance of the exception's own type too.
        TypeError: it was given something else than references.

    Example:
        >>> get(put(1))  # doctest: +SKIP
        1
    """
    if isinstance(object_refs, ObjectRef):
        return runtime().get([object_refs], _seconds(timeout))[0]
    if isinstance(object_refs, ObjectRefGenerator):
        return object_refs
    if not isinstance(object_refs, (list, tuple)):
        raise TypeError(f"get() takes an ObjectRef or a list of them, not a {type(object_refs).__name__}: {object_refs!r}")
    _check_refs("get", object_refs)
    if not object_refs:
        return []
    return runtime().get(list(object_refs), _seconds(timeout))


def wait(
    object_refs: list[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Wait until some of the references are ready.

    Args:
        object_refs: references, each once. An ObjectRefGenerator among them is ready when ``next()`` of it would not wait.
        num_returns: how many must be ready.
        timeout: seconds to wait at most; 0 only looks; None waits for ever.
        fetch_local: have large objects that are ready on other nodes brought to this one, so that ``get`` finds them here. They
            are ready before they have come.

    Returns:
        ``(ready, not_ready)``: at most ``num_returns`` ready references and all the others, both in the order given.

    Raises:
        TypeError: ``object_refs`` is not a list of references.
        ValueError: it is empty or has a reference twice, or ``num_returns`` is not between 1 and its length.

    Example:
        >>> ready, rest = wait([put(1), put(2)])  # doctest: +SKIP
    """
    if not isinstance(object_refs, list):
        raise TypeError(f"wait() takes a list of ObjectRefs, not a {type(object_refs).__name__}")
    if not object_refs:
        raise ValueError("wait() needs at least one ObjectRef")
    worker = runtime()
    generators: list[ObjectRefGenerator[Any]] = []
    if worker.checked != _mark(object_refs):  # a loop passes what the last call left over: that is checked already
        generators = [ref for ref in object_refs if type(ref) is ObjectRefGenerator]
        _check_refs("wait", [ref for ref in object_refs if ref not in generators] if generators else object_refs)
        worker.check_ours(object_refs)
        if len({ref._id for ref in object_refs}) != len(object_refs):
            raise ValueError("wait() needs a list of different ObjectRefs: one of them is in it twice")
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns must be an integer, not {num_returns!r}")
    if not 0 < num_returns <= len(object_refs):
        raise ValueError(f"num_returns must be between 1 and {len(object_refs)} (the number of references), not {num_returns}")
    for generator in generators:
        generator.report()
    ready, rest = worker.wait(object_refs, num_returns, _seconds(timeout))
    worker.checked = () if generators else _mark(rest)
    if fetch_local:
        worker.fetch(ready)
    return ready, rest


def cancel(object_ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True) -> None:
    """Cancel the task that makes an object. ``get`` raises TaskCancelledError then.

    What has not begun never does. A task that runs gets a KeyboardInterrupt, once; a call of an asynchronous actor
    is cancelled as any ``asyncio.Task``; a call of another actor can find out with ``get_runtime_context().is_canceled()``.
    A task that is over stays as it is. Returns at once: the end of what runs is awaited with ``get`` or ``wait``.

    Args:
        object_ref: a result of the task, or the generator it is. Its owner may be another process.
        force: end the process that runs the task. What was queued there runs elsewhere.
        recursive: cancel what the task has submitted too.

    Raises:
        TypeError: it was given something else than a reference; actors are ended with ``kill``.
        ValueError: ``force`` for a call of an actor.

    Example:
        >>> cancel(f.remote())  # doctest: +SKIP
    """
    if isinstance(object_ref, ObjectRefGenerator):
        object_ref = object_ref._completion
    if not isinstance(object_ref, ObjectRef):
        raise TypeError(f"cancel() takes an ObjectRef, not a {type(object_ref).__name__}; actors are ended with zray.kill()")
    runtime().cancel(object_ref, force=force, recursive=recursive)


def _mark(refs: list[Any]) -> tuple[Any, ...]:
    """What tells a list from others without looking at all of it, and without keeping it alive."""
    if not refs:
        return ()
    return (id(refs), len(refs), getattr(refs[0], "_id", None), getattr(refs[-1], "_id", None))


def _check_refs(function: str, refs: Sequence[Any]) -> None:
    for index, ref in enumerate(refs):
        if type(ref) is not ObjectRef:
            raise TypeError(f"{function}() takes ObjectRefs: item {index} is a {type(ref).__name__}: {ref!r}")


def _seconds(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
    if timeout == -1:
        return None
    if not timeout >= 0:  # NaN too
        raise ValueError(f"timeout must not be negative: {timeout!r}")
    return float(timeout)


def get_gpu_ids() -> list[int]:
    """The GPUs assigned to the running task; none in a driver. ``CUDA_VISIBLE_DEVICES`` says the same.

    Example:
        >>> get_gpu_ids()  # doctest: +SKIP
        [0]
    """
    executor = runtime().executor()
    return executor.gpu_ids() if executor is not None else []
