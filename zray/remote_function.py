"""RemoteFunction: what ``@remote`` makes of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

from zray import api, options
from zray.base import serialization
from zray.base.ids import FIRST_RETURN, return_id
from zray.core.tasks import Task, TaskTemplate
from zray.object_ref import ObjectRef
from zray.runtime.core_worker import CoreWorker
from zray.runtime.worker import ARGUMENTS

P = ParamSpec("P")
R = TypeVar("R")


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
        if inspect.iscoroutinefunction(function):
            raise ValueError(
                f"{function.__qualname__}() is a coroutine function: only actors have an event loop; make it an ordinary "
                "function that calls asyncio.run(), or a method of an actor"
            )
        self._function = function
        self._options = task_options
        self._name = task_options.get("name") or function.__qualname__
        self._arity: tuple[int, float] = (0, 0)
        self._worker: CoreWorker | None = None  # the runtime whose cluster has the function
        self._function_id = b""  # in that cluster
        self._template: TaskTemplate
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        raise TypeError(
            f"{self._name}() is a remote function and can not be called directly: use {self._name}.remote(...), or "
            f"{self._name}._function(...) to run it here"
        )

    def options(self, **task_options: Any) -> RemoteFunction[P, R]:
        """The same function with other options.

        Raises:
            ValueError: an option is unknown or has a bad value.
        """
        other = RemoteFunction(self._function, {**self._options, **task_options})
        if self._worker is not None and self._worker is api.connected():
            other._function_id = self._function_id  # exported once, whatever the options
        return other

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]:
        """Submit a task.

        Args:
            args: the function's arguments; ObjectRefs among them are replaced by their values in the worker.

        Returns:
            A reference to the result; with ``num_returns`` other than 1 a list of references, or None for 0.

        Raises:
            TypeError: the arguments do not fit the function, or can not be pickled.
        """
        worker = self._worker
        if worker is None or worker is not api.connected():
            worker = self._bind()
        if args or kwargs:
            low, high = self._arity
            if kwargs or not low <= len(args) <= high:
                self._check_call(args, kwargs)
            payload, slots, nested = self._pack(worker, args, kwargs)
        else:
            if self._arity[0]:
                self._check_call(args, kwargs)
            payload, slots, nested = None, (), ()
        template = self._template
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
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arity = (0, 0)  # a function that refers to itself is not complete yet: looked at when it is called
        self._worker = None

    # -- inside ---------------------------------------------------------------------------------------------------

    def _bind(self) -> CoreWorker:
        """Give the function to the connected cluster; its globals and closure are taken as they are now."""
        worker = api.runtime()
        if self._options.get("num_returns") in ("dynamic", "streaming") or inspect.isgeneratorfunction(self._function):
            raise NotImplementedError(f"{self._name}() is a generator: generator tasks are not supported yet")
        if self._worker is not None or not self._function_id:  # not exported, or to a cluster that is no more
            self._function_id, body = serialization.export_function(self._function)
            worker.export(self._function_id, self._name, body)
        self._arity = _arity(self._function)
        chosen = self._options
        retries = chosen.get("max_retries")
        retry_exceptions = chosen.get("retry_exceptions") or False
        extra: dict[str, Any] = {}
        if chosen.get("max_calls"):
            extra["max_calls"] = chosen["max_calls"]
        if retry_exceptions:
            kinds = True if retry_exceptions is True else tuple(retry_exceptions)
            extra["retry_exceptions"] = True if kinds is True else serialization.serialize(kinds).inline()
        returns = chosen.get("num_returns")
        self._template = TaskTemplate(
            self._function_id,
            self._name,
            options.task_resources(chosen),
            1 if returns is None else returns,
            worker.config.max_retries if retries is None else retries,
            extra or None,
        )
        self._worker = worker
        return worker

    def _check_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError as a call of the function would."""
        try:
            signature = inspect.signature(self._function)
        except ValueError:
            return  # a builtin that does not tell
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}() {error}") from None

    def _pack(
        self, worker: CoreWorker, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        """Arguments as ``(payload, slots, nested references)``."""
        slots: list[tuple[Any, ObjectRef[Any]]] = []
        large = False
        for where, value in [*enumerate(args), *kwargs.items()] if kwargs else enumerate(args):
            kind = type(value)
            if kind is ObjectRef:
                slots.append((where, value))
            elif kind is bytes or kind is bytearray:
                large = True
        if slots:
            args = tuple(None if type(value) is ObjectRef else value for value in args)
            kwargs = {name: None if type(value) is ObjectRef else value for name, value in kwargs.items()}
        if large:
            args = tuple(serialization.out_of_band(value) for value in args)
            kwargs = {name: serialization.out_of_band(value) for name, value in kwargs.items()}
        try:
            value = serialization.serialize((args, kwargs))
        except TypeError as error:
            raise self._blame(error, args, kwargs) from error.__cause__
        nested = tuple(value.refs)
        if slots or nested:
            worker.check_ours([*(ref for _, ref in slots), *nested])
        if value.size_bytes > worker.config.inline_bytes_max:
            if value.size_bytes > worker.config.args_bytes_max:
                raise ValueError(
                    f"the arguments of {self._name}() take {value.size_bytes} bytes, more than ZRAY_ARGS_BYTES_MAX "
                    f"({worker.config.args_bytes_max}): pass a path, or split the data"
                )
            return None, ((ARGUMENTS, worker.put_serialized(value)), *slots), nested
        return value.inline(), tuple(slots), nested

    def _blame(self, error: TypeError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError:
        """The error of the one argument that does not pickle."""
        for name, value in [*enumerate(args, start=1), *kwargs.items()]:
            try:
                serialization.serialize(value)
            except TypeError as own:
                return TypeError(f"argument {name} of {self._name}(): {own}")
        return TypeError(f"the arguments of {self._name}(): {error}")


def _arity(function: Callable[..., Any]) -> tuple[int, float]:
    """How few and how many positional arguments a call without keywords may have."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return 0, float("inf")
    low, high = 0, 0.0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            high = float("inf")
        elif parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                return 1, 0.0  # always look closely
        elif parameter.kind is not parameter.VAR_KEYWORD:
            high += 1
            low += parameter.default is parameter.empty
    return low, high


@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**task_options: Any) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]: ...
def remote(*args: Any, **task_options: Any) -> Any:
    """Make a function remote: ``@remote``, ``@remote(num_cpus=2)``, or ``remote(f)``.

    Args:
        task_options: ``num_cpus``, ``num_gpus``, ``memory`` (bytes), ``resources``, ``num_returns``, ``max_calls``,
            ``max_retries``, ``retry_exceptions``, ``scheduling_strategy``, ``runtime_env``, ``name`` and the others of
            Ray's documentation.

    Returns:
        A RemoteFunction, or a decorator that makes one.

    Raises:
        TypeError: it was given something else than a function.
        ValueError: an option is unknown or has a bad value.

    Example:
        >>> @remote
        ... def f(x):
        ...     return x + 1
    """
    if len(args) == 1 and not task_options and callable(args[0]):
        return _make(args[0], {})
    if args or not task_options:
        raise TypeError(
            "use @remote without parentheses or with keyword options, as in @remote(num_cpus=2), on a function"
        )
    options.check_task_options(options.with_current_names(task_options))
    return lambda function: _make(function, task_options)


def _make(function: Any, task_options: dict[str, Any]) -> Any:
    if isinstance(function, RemoteFunction):
        raise TypeError(f"{function._name}() is a remote function already: use .options() to change its options")
    if isinstance(function, type):
        raise NotImplementedError(f"{function.__name__} is a class: actors are not supported yet")
    if not callable(function) or not hasattr(function, "__qualname__"):
        raise TypeError(f"@remote needs a function or a class, not {function!r}")
    return RemoteFunction(function, task_options)
