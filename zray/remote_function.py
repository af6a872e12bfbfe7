"""RemoteFunction: what ``@remote`` makes of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from zray import api, options
from zray.actor import ActorClass
from zray.arguments import arity, check_call, pack, signature_of
from zray.base import serialization
from zray.base.ids import FIRST_RETURN, return_id
from zray.core.tasks import Task, TaskTemplate
from zray.object_ref import ObjectRef
from zray.object_ref_generator import call_generator, returns_of, window_of
from zray.strategy import Group, placed

if TYPE_CHECKING:
    from zray.runtime.core_worker import CoreWorker

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class RemoteFunction(Generic[P, R]):
    """A function whose calls run in worker processes.

    Made by ``@zray.remote``. ``f.remote(...)`` submits a task and returns an ObjectRef at once; ``f.options(...)``
    gives the same function with other options. Semantics follow Ray's documentation of remote functions.

    Example:
        >>> import zray as ray
        >>> @ray.remote
        ... def square(x):
        ...     return x * x
        >>> ray.get(square.remote(4))  # doctest: +SKIP
        16
    """

    def __init__(self, function: Callable[P, R], task_options: dict[str, Any]) -> None:
        task_options = options.with_current_names(task_options)
        options.check_task_options(task_options)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ValueError(
                f"{function.__qualname__}() is a coroutine function: only actors have an event loop; make it an ordinary "
                "function that calls asyncio.run(), or a method of an actor"
            )
        options.check_generator_options(function.__qualname__, task_options, generates=inspect.isgeneratorfunction(function))
        self._function = function
        self._options = task_options
        self._name = task_options.get("name") or function.__qualname__
        self._arity: tuple[int, float] = (0, 0)
        self._worker: CoreWorker | None = None  # the runtime whose cluster has the function
        self._function_id = b""  # in that cluster
        self._job_id = b""  # for which it was exported
        self._template: TaskTemplate
        self._within: tuple[Group, TaskTemplate] | None = None  # of tasks that are submitted in a placement group
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        raise TypeError(
            f"{self._name}() is a remote function and can not be called directly: use {self._name}.remote(...), or "
            f"{self._name}._function(...) to run it here"
        )

    def options(self, **task_options: Any) -> RemoteFunction[P, R]:
        """The same function with other options.

        Args:
            task_options: those to change, as in ``remote``; the others stay.

        Returns:
            Another remote function.

        Raises:
            ValueError: an option is unknown or has a bad value.
        """
        other = RemoteFunction(self._function, {**self._options, **task_options})
        if self._worker is not None and self._worker is api.connected():
            other._function_id = self._function_id  # exported once, whatever the options
            other._job_id = self._job_id
        return other

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]:
        """Submit a task.

        Args:
            args, kwargs: the function's arguments; ObjectRefs among them are replaced by their values in the worker.

        Returns:
            A reference to the result; with ``num_returns`` other than 1 a list of references, or None for 0; an
            ObjectRefGenerator if the function is a generator.

        Raises:
            TypeError: the arguments do not fit the function, or can not be pickled.
        """
        worker = self._worker
        if worker is None or worker is not api.connected():
            worker = self._bind()
        if args or kwargs:
            low, high = self._arity
            if kwargs or not low <= len(args) <= high:
                check_call(self._name, signature_of(self._function), args, kwargs)
            payload, slots, nested = pack(worker, self._name, args, kwargs)
        else:
            if self._arity[0]:
                check_call(self._name, signature_of(self._function), args, kwargs)
            payload, slots, nested = None, (), ()
        template = self._template if worker.placement_group is None else self._template_within(worker.placement_group)
        depth = worker.depth + 1
        if depth > worker.config.task_depth_max:
            raise RecursionError(
                f"{self._name}() is submitted by a task {worker.depth} levels below the driver; the limit is "
                f"ZRAY_TASK_DEPTH_MAX={worker.config.task_depth_max}: does it submit itself without an end?"
            )
        task_id = worker.task_ids()
        if template.num_returns == 1:
            object_id = task_id + FIRST_RETURN
            ref: ObjectRef[R] = ObjectRef(object_id, worker.address, worker.release)
            worker.submit(Task(task_id, template, payload, slots, nested, (object_id,), depth))
            return ref
        if template.num_returns < 0:
            return call_generator(worker, task_id, template, payload, slots, nested, depth)  # type: ignore[no-any-return]
        ids = tuple(return_id(task_id, index + 1) for index in range(template.num_returns))
        refs = [worker.new_ref(object_id) for object_id in ids]
        worker.submit(Task(task_id, template, payload, slots, nested, ids, depth))
        return refs or None  # type: ignore[return-value]

    def __getstate__(self) -> dict[str, Any]:
        """A remote function inside another's globals, or passed as an argument: the worker needs no second export."""
        known = self._worker is not None and self._worker is api.connected()
        return {
            "_function": self._function,
            "_options": self._options,
            "_name": self._name,
            "_function_id": self._function_id if known else b"",
            "_job_id": self._job_id,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arity = (0, 0)  # a function that refers to itself is not complete yet: looked at when it is called
        self._worker = None
        self._within = None

    # -- inside ---------------------------------------------------------------------------------------------------

    def _bind(self) -> CoreWorker:
        """Give the function to the connected cluster; its globals and closure are taken as they are now."""
        worker = api.runtime()
        if self._worker is not None or not self._function_id or self._job_id != worker.job_id:
            # It is not exported, or to a cluster that is no more, or for a job that may end before this one.
            self._job_id = worker.job_id
            self._function_id, body = serialization.export_function(self._function, worker.job_id)
            worker.export(self._function_id, self._name, body)
        self._arity = arity(signature_of(self._function))
        self._template = self._made_template(worker, None)
        self._within = None
        self._worker = worker
        return worker

    def _template_within(self, group: Group) -> TaskTemplate:
        """What tasks have in common that are submitted by one in a placement group; the last one is remembered."""
        within = self._within  # another thread may submit in another group
        if within is None or within[0] != group:
            assert self._worker is not None
            within = self._within = (group, self._made_template(self._worker, group))
        return within[1]

    def _made_template(self, worker: CoreWorker, parent: Group | None) -> TaskTemplate:
        chosen = self._options
        strategy, group = placed(chosen, parent)
        retries = chosen.get("max_retries")
        retry_exceptions = chosen.get("retry_exceptions") or False
        extra: dict[str, Any] = {}
        if chosen.get("max_calls"):
            extra["max_calls"] = chosen["max_calls"]
        if retry_exceptions:
            extra["retry_exceptions"] = options.exceptions_payload(retry_exceptions)
        if group is not None:
            extra["placement_group"] = group
        template = TaskTemplate(
            self._function_id,
            self._name,
            options.task_resources(chosen),
            returns_of(chosen, generates=inspect.isgeneratorfunction(self._function)),
            worker.config.max_retries if retries is None else retries,
            extra or None,
            strategy,
        )
        template.window = window_of(chosen, worker.config)
        return template


@overload
def remote(cls: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**chosen: Any) -> Callable[[Any], Any]: ...
def remote(*args: Any, **chosen: Any) -> Any:
    """Make a function or class remote: ``@remote``, ``@remote(num_cpus=2)``, or ``remote(f)``.

    Args:
        args: the function or class, if there are no options.
        chosen: for functions ``num_cpus``, ``num_gpus``, ``memory`` (bytes), ``resources``, ``num_returns``, ``max_calls``,
            ``max_retries``, ``retry_exceptions``, ``scheduling_strategy``, ``runtime_env``, ``name``; for classes also
            ``namespace``, ``lifetime``, ``get_if_exists``, ``max_restarts``, ``max_task_retries``, ``max_concurrency``,
            ``concurrency_groups``, ``max_pending_calls`` and the others of Ray's documentation.

    Returns:
        A RemoteFunction or an ActorClass, or a decorator that makes one.

    Raises:
        TypeError: it was given something else than a function or class.
        ValueError: an option is unknown or has a bad value.

    Example:
        >>> @remote
        ... def f(x):
        ...     return x + 1
    """
    if len(args) == 1 and not chosen and callable(args[0]):
        return _make(args[0], {})
    if args or not chosen:
        raise TypeError(
            "use @remote without parentheses or with keyword options, as in @remote(num_cpus=2), on a function or class"
        )
    options.check_known(options.with_current_names(chosen))
    return lambda function: _make(function, chosen)


def _make(function: Any, chosen: dict[str, Any]) -> Any:
    if isinstance(function, RemoteFunction):
        raise TypeError(f"{function._name}() is a remote function already: use .options() to change its options")
    if isinstance(function, ActorClass):
        raise TypeError(f"{function!r} is a remote class already: use .options() to change its options")
    if isinstance(function, type):
        return ActorClass(function, chosen)
    if not callable(function) or not hasattr(function, "__qualname__"):
        raise TypeError(f"@remote needs a function or a class, not {function!r}")
    return RemoteFunction(function, chosen)
