"""Actors: what ``@remote`` makes of a class, the handles of its instances, and their methods.

The names and their meaning are those of Ray's documentation of actors.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from zray import api, object_ref, options
from zray.actor_description import SPECIAL, BoundMethod, Description, constructor_of, described, is_async, members_of, methods_of
from zray.arguments import arity, check_call, pack
from zray.base import serialization
from zray.base.ids import FIRST_RETURN, ActorID, return_id
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, Address
from zray.base.wire_actors import GetActor, RegisterActor
from zray.core.tasks import CallBudget, Task, TaskTemplate
from zray.exceptions import ActorAlreadyExistsError, ActorDiedError, PendingCallsLimitExceeded
from zray.object_ref import ObjectRef
from zray.object_ref_generator import call_generator, returns_of, window_of
from zray.runtime.actor import ActorExit
from zray.strategy import Group, Strategy, placed

if TYPE_CHECKING:
    from zray.runtime.core_worker import CoreWorker

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_ASYNC_CONCURRENCY = 1000
_NOTHING_HELD = ResourceSet.of({})


@overload
def method(function: F, /) -> F: ...
@overload
def method(**chosen: Any) -> Callable[[F], F]: ...
def method(*args: Any, **chosen: Any) -> Any:
    """Set options of one method of an actor class.

    Args:
        args: the method, if there are no options: it stays as it is.
        chosen: ``num_returns``, ``concurrency_group``, ``max_task_retries``, ``retry_exceptions``, ``name``.

    Returns:
        The method, or a decorator that returns it.

    Raises:
        TypeError: it was used as neither ``@method`` nor ``@method(option=...)``.
        ValueError: an option is unknown or has a bad value.

    Example:
        >>> class Reader:
        ...     @method(num_returns=2)
        ...     def halves(self, text):
        ...         return text[: len(text) // 2], text[len(text) // 2 :]
    """
    if len(args) == 1 and not chosen and callable(args[0]):
        return args[0]
    if args or not chosen:
        raise TypeError("use @method with keyword options, as in @method(num_returns=2)")
    options.check_method_options(chosen)

    def decorate(function: F) -> F:
        generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        options.check_generator_options(function.__qualname__, chosen, generates=generates)
        function.__zray_method__ = chosen  # type: ignore[attr-defined]
        return function

    return decorate


class ActorClass(Generic[T]):
    """A class whose instances live in worker processes of their own.

    Made by ``@zray.remote``. ``Cls.remote(...)`` creates an actor and returns a handle at once; ``Cls.options(...)`` gives the
    same class with other options. Semantics follow Ray's documentation of actors.

    Example:
        >>> import zray as ray
        >>> @ray.remote
        ... class Counter:
        ...     def __init__(self):
        ...         self.n = 0
        ...     def add(self, k):
        ...         self.n += k
        ...         return self.n
        >>> counter = Counter.remote()           # doctest: +SKIP
        >>> ray.get(counter.add.remote(2))       # doctest: +SKIP
        2
    """

    def __init__(self, cls: type[T], chosen: dict[str, Any], *more: Any) -> None:
        if more or not isinstance(cls, type):
            raise TypeError(
                "a remote class can not be inherited from: decorate only the last class, or make one from a plain class "
                "with zray.remote(Plain)"
            )
        chosen = options.with_current_names(chosen)
        options.check_actor_options(chosen)
        self._cls = cls
        self._options = chosen
        self._name = cls.__name__
        self._worker: CoreWorker | None = None  # the runtime whose cluster has the class
        self._class_id = b""  # in that cluster
        self._job_id = b""  # for which it was exported
        self._description: Description
        self._blob: bytes
        self._template: TaskTemplate
        self._constructor: inspect.Signature | None
        functools.update_wrapper(self, cls, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{self._name} is a remote class and can not be instantiated here: use {self._name}.remote(...)")

    def __repr__(self) -> str:
        return f"ActorClass({self._name})"

    def options(self, **chosen: Any) -> ActorClass[T]:
        """The same class with other options.

        Args:
            chosen: those to change, as in ``remote``; the others stay.

        Returns:
            Another remote class.

        Raises:
            ValueError: an option is unknown or has a bad value.
        """
        other: ActorClass[T] = ActorClass(self._cls, {**self._options, **chosen})
        if self._worker is not None and self._worker is api.connected():
            other._class_id = self._class_id  # exported once, whatever the options
            other._job_id = self._job_id
        return other

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Create an actor.

        Args:
            args, kwargs: the constructor's arguments; ObjectRefs among them are replaced by their values.

        Returns:
            A handle; calls wait until the actor is there.

        Raises:
            TypeError: the arguments do not fit the constructor, or can not be pickled.
            ActorAlreadyExistsError: the name is taken (also a ValueError).
        """
        worker = self._worker
        if worker is None or worker is not api.connected():
            worker = self._bind()
        check_call(self._name, self._constructor, args, kwargs)
        if worker.depth + 1 > worker.config.task_depth_max:
            raise RecursionError(
                f"{self._name} is created {worker.depth} levels below the driver; the limit is "
                f"ZRAY_TASK_DEPTH_MAX={worker.config.task_depth_max}: does it create itself without an end?"
            )
        payload, slots, nested = pack(worker, self._name, args, kwargs)
        task_id = worker.task_ids()
        handle_id = task_id + FIRST_RETURN
        actor_id = worker.job_id + os.urandom(ActorID.SIZE - len(worker.job_id))
        strategy, group = placed(self._options, worker.placement_group)
        registration: RegisterActor | None = self._registration(worker, actor_id, handle_id, strategy)
        assert registration is not None
        if registration.name:
            found = self._register(worker, registration)
            if found is not None:
                return _found(worker, *found)
            registration = None
        template = self._made_template(actor_id, handle_id, group)
        worker.create_actor(
            Task(task_id, template, payload, slots, nested, (handle_id,), worker.depth + 1), registration
        )
        ref: ObjectRef[Any] = ObjectRef(handle_id, worker.address, worker.release)
        detached = self._options.get("lifetime") == "detached"
        return ActorHandle(worker, actor_id, handle_id, worker.address, self._blob, ref, detached=detached)

    def __getstate__(self) -> dict[str, Any]:
        """A remote class inside another's globals, or passed as an argument."""
        known = self._worker is not None and self._worker is api.connected()
        return {
            "_cls": self._cls,
            "_options": self._options,
            "_name": self._name,
            "_class_id": self._class_id if known else b"",
            "_job_id": self._job_id,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._worker = None

    # -- inside ---------------------------------------------------------------------------------------------------

    def _bind(self) -> CoreWorker:
        """Give the class to the connected cluster; the globals of its methods are taken as they are now."""
        worker = api.runtime()
        if self._worker is not None or not self._class_id or self._job_id != worker.job_id:
            # It is not exported, or to a cluster that is no more, or for a job that may end before this one.
            self._job_id = worker.job_id
            self._class_id, body = serialization.export_function(self._cls, worker.job_id)
            worker.export(self._class_id, self._name, body)
        chosen = self._options
        methods = methods_of(self._cls)
        groups = dict(chosen.get("concurrency_groups") or {})
        for name, found in methods.items():
            group = found.options.get("concurrency_group")
            if group is not None and group not in groups:
                raise ValueError(f"{self._name}.{name}() is in concurrency group {group!r}, which the class does not have")
        asynchronous = any(is_async(member) for member in members_of(self._cls).values())
        limit = chosen.get("max_concurrency") or (_ASYNC_CONCURRENCY if asynchronous else 1)
        description = Description(
            self._name,
            methods,
            self._in_order(one_at_a_time=limit == 1 and not asynchronous and not groups),
            chosen.get("max_task_retries") or 0,
            chosen.get("max_pending_calls") or -1,
        )
        self._description = description
        plain = (*description[:1], {name: tuple(m) for name, m in methods.items()}, *description[2:])
        self._blob = serialization.serialize(plain).pickle
        extra = {
            "class_name": self._name,
            "name": chosen.get("name") or "",
            "asyncio": asynchronous,
            "max_concurrency": limit,
            "groups": groups,
            "max_restarts": chosen.get("max_restarts") or 0,
            "handle": (self._blob, chosen.get("lifetime") == "detached"),
        }
        name = f"{self._name}.__init__"
        self._template = TaskTemplate(self._class_id, name, _NOTHING_HELD, 1, 0, extra)
        self._constructor = constructor_of(self._cls)
        self._worker = worker
        return worker

    def _in_order(self, *, one_at_a_time: bool) -> bool:
        """Whether calls of one caller wait for each other's arguments."""
        chosen = self._options.get("allow_out_of_order_execution")
        if chosen is False and not one_at_a_time:
            raise ValueError(
                f"{self._name} runs several calls at a time, in no order: allow_out_of_order_execution=False can not be kept"
            )
        return one_at_a_time and not chosen

    def _made_template(self, actor_id: bytes, handle_id: bytes, group: Group | None) -> TaskTemplate:
        common = self._template
        extra = {**(common.extra or {}), "handle_id": handle_id, "placement_group": group}
        template = TaskTemplate(common.function_id, common.name, common.resources, 1, 0, extra)
        template.actor = (actor_id, handle_id)
        template.creates = True
        return template

    def _registration(
        self, worker: CoreWorker, actor_id: bytes, handle_id: bytes, strategy: Strategy
    ) -> RegisterActor:
        chosen = self._options
        placement, resources = options.actor_resources(chosen)
        return RegisterActor(
            0,
            actor_id,
            worker.job_id,
            worker.address[1],
            handle_id,
            self._name,
            chosen.get("name") or "",
            chosen.get("namespace") or worker.namespace,
            chosen.get("lifetime") == "detached",
            bool(chosen.get("get_if_exists")),
            chosen.get("max_restarts") or 0,
            dict(placement),
            dict(resources),
            self._blob,
            strategy,
        )

    def _register(self, worker: CoreWorker, registration: RegisterActor) -> Any:
        """Take the name; what is known of the actor that has it already, where that is wanted."""
        handle_id = registration.handle_id
        worker.loop.post((worker.owner.references.own, handle_id))  # others may find the name before this process hears of it
        request = worker.ask(CONTROL, RegisterActor, *registration[1:])
        worker.loop.wait(request)
        if not request.ok or request.value is not None:
            worker.release(handle_id)
        if request.ok:
            return request.value
        if worker.broken is not None:
            raise worker.broken
        raise ActorAlreadyExistsError(f"{request.value}. Take another name, or pass get_if_exists=True to have that one")


class ActorHandle(Generic[T]):
    """A reference to an actor: its methods are called with ``handle.method.remote(...)``.

    Handles can be passed to tasks and actors, and put into objects. An actor lives as long as a handle of it does anywhere,
    unless it is detached.
    """

    __slots__ = (
        "__weakref__",
        "_actor_id",
        "_zray_blob",
        "_zray_budget",
        "_zray_description",
        "_zray_detached",
        "_zray_handle_id",
        "_zray_owner",
        "_zray_ref",
        "_zray_templates",
        "_zray_worker",
    )

    def __init__(
        self,
        worker: CoreWorker,
        actor_id: bytes,
        handle_id: bytes,
        owner: Address,
        blob: bytes,
        ref: ObjectRef[Any] | None,
        *,
        detached: bool,
    ) -> None:
        self._actor_id = ActorID(actor_id)
        self._zray_worker = worker
        self._zray_handle_id = handle_id
        self._zray_owner = owner
        self._zray_blob = blob
        self._zray_ref = ref  # keeps the actor; without it the handle is a weak one
        self._zray_detached = detached
        description = self._zray_description = described(blob)
        self._zray_templates: dict[str, BoundMethod] = {}
        self._zray_budget = CallBudget(description.max_pending_calls) if description.max_pending_calls > 0 else None

    def __getattr__(self, name: str) -> ActorMethod:
        methods = self._zray_description.methods
        if name not in methods and name not in SPECIAL:
            text = f"actor class {self._zray_description.class_name} has no method {name!r}"
            public = [n for n in methods if not n.startswith("_")]
            known = f": its methods are {', '.join(sorted(public))}" if public else ""
            raise AttributeError(text + known, name=name, obj=self)
        return ActorMethod(self, name)

    def __dir__(self) -> list[str]:
        return [*self._zray_description.methods, "_actor_id"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._actor_id == other._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._zray_description.class_name}, {self._actor_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (
            bytes(self._actor_id),
            self._zray_handle_id,
            self._zray_owner,
            self._zray_blob,
            self._zray_detached,
            self._zray_ref,
        )
        return _received, fields

    def __copy__(self) -> ActorHandle[T]:
        return self

    def __deepcopy__(self, memo: Any) -> ActorHandle[T]:
        return self


class ActorMethod:
    """A method of an actor; ``remote`` calls it."""

    __slots__ = ("_bound", "_handle", "_name")

    def __init__(self, handle: ActorHandle[Any], name: str, bound: BoundMethod | None = None) -> None:
        self._handle = handle
        self._name = name
        self._bound = bound

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = f"{self._handle._zray_description.class_name}.{self._name}"
        raise TypeError(f"{name}() is a method of an actor and can not be called directly: use .{self._name}.remote(...)")

    def __repr__(self) -> str:
        return f"ActorMethod({self._handle._zray_description.class_name}.{self._name})"

    def options(self, **chosen: Any) -> ActorMethod:
        """The same method with other options.

        Args:
            chosen: those to change, as in ``method``; the others stay.

        Returns:
            Another method of the same handle.

        Raises:
            ValueError: an option is unknown or has a bad value.
        """
        options.check_method_options(chosen)
        return ActorMethod(self._handle, self._name, _bound(self._handle, self._name, chosen))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method.

        Args:
            args, kwargs: its arguments; ObjectRefs among them are replaced by their values.

        Returns:
            A reference to the result; with ``num_returns`` other than 1 a list of references, or None for 0; an
            ObjectRefGenerator if the method is a generator.

        Raises:
            TypeError: the arguments do not fit the method, or can not be pickled.
            PendingCallsLimitExceeded: ``max_pending_calls`` calls of this handle have no result yet.
        """
        handle = self._handle
        worker = handle._zray_worker
        if worker is not object_ref.connected:
            raise _left_behind(handle)
        template, low, high, signature = (
            self._bound or handle._zray_templates.get(self._name) or _bound(handle, self._name, None)
        )
        ref = handle._zray_ref
        nested: tuple[Any, ...]
        if args or kwargs:
            if kwargs or not low <= len(args) <= high:
                check_call(template.name, signature, args, kwargs)
            payload, slots, nested = pack(worker, template.name, args, kwargs)
            if ref is not None:
                nested = (ref, *nested)
        else:
            if low:
                check_call(template.name, signature, args, kwargs)
            payload, slots, nested = None, (), () if ref is None else (ref,)
        budget = template.budget
        if budget is not None and not budget.take():
            raise PendingCallsLimitExceeded(
                f"{template.name}() was not called: {budget.most} calls of {handle!r} have no result yet, as many as its "
                "max_pending_calls allows. Get some results first"
            )
        task_id = worker.task_ids()
        if template.num_returns == 1:
            object_id = task_id + FIRST_RETURN
            result: ObjectRef[Any] = ObjectRef(object_id, worker.address, worker.release)
            worker.submit(Task(task_id, template, payload, slots, nested, (object_id,), 0))
            return result
        if template.num_returns < 0:
            return call_generator(worker, task_id, template, payload, slots, nested, 0)
        ids = tuple(return_id(task_id, index + 1) for index in range(template.num_returns))
        refs = [worker.new_ref(object_id) for object_id in ids]
        worker.submit(Task(task_id, template, payload, slots, nested, ids, 0))
        return refs or None


def _bound(handle: ActorHandle[Any], name: str, chosen: dict[str, Any] | None) -> BoundMethod:
    """Prepare a method with options for its calls; without options it is remembered."""
    description = handle._zray_description
    found = description.methods.get(name) or SPECIAL[name]
    merged = {**found.options, **(chosen or {})}
    label = merged.get("name") or f"{description.class_name}.{name}"
    options.check_generator_options(label, merged, generates=found.generates)
    extra: dict[str, Any] = {}
    if merged.get("concurrency_group"):
        extra["concurrency_group"] = merged["concurrency_group"]
    if merged.get("retry_exceptions"):
        kinds = merged["retry_exceptions"]
        extra["retry_exceptions"] = kinds if isinstance(kinds, bytes) else options.exceptions_payload(kinds)
    retries = merged.get("max_task_retries")
    template = TaskTemplate(
        name.encode(),
        label,
        _NOTHING_HELD,
        returns_of(merged, generates=found.generates),
        description.max_task_retries if retries is None else retries,
        extra or None,
    )
    template.actor = (bytes(handle._actor_id), handle._zray_handle_id)
    template.ordered = description.ordered
    template.budget = handle._zray_budget
    template.window = window_of(merged, handle._zray_worker.config)
    signature = found.signature()
    bound = BoundMethod(template, *arity(signature), signature)
    if chosen is None:
        handle._zray_templates[name] = bound
    return bound


def _left_behind(handle: ActorHandle[Any]) -> ActorDiedError:
    text = (
        f"{handle!r} belongs to a cluster that this process has left (zray.shutdown(), or a fork): make a new actor, or "
        "look it up by its name"
    )
    return ActorDiedError(text, handle._actor_id.hex())


def _received(
    actor_id: bytes, handle_id: bytes, owner: Address, blob: bytes, detached: bool, ref: ObjectRef[Any] | None
) -> ActorHandle[Any]:
    """A handle that arrived inside a value."""
    worker = api.connected()
    if worker is None:
        raise RuntimeError(f"the handle of actor {actor_id.hex()} can only be read where zray is initialized")
    if ref is None and not detached:
        ref = worker.borrow(handle_id, owner)
    return ActorHandle(worker, actor_id, handle_id, owner, blob, ref, detached=detached)


def _found(
    worker: CoreWorker, actor_id: bytes, handle_id: bytes, owner: Address, blob: bytes, detached: bool
) -> ActorHandle[Any]:
    """The handle of an actor that the control knows."""
    ref = None if detached else worker.borrow(handle_id, owner)
    return ActorHandle(worker, actor_id, handle_id, owner, blob, ref, detached=detached)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """The handle of a named actor.

    Args:
        name: as given in ``options(name=...)``.
        namespace: where it was created; by default that of this job.

    Returns:
        A handle; unless the actor is detached it keeps the actor alive, as other handles do.

    Raises:
        ValueError: there is no living actor of that name.

    Example:
        >>> get_actor("counter")  # doctest: +SKIP
        Actor(Counter, 00000001c0ffee0011223344)
    """
    for what, value in (("name", name), ("namespace", "x" if namespace is None else namespace)):
        if not isinstance(value, str) or not value:
            raise ValueError(f"the {what} of an actor must be a string that is not empty, not {value!r}")
    worker = api.runtime()
    request = worker.ask(CONTROL, GetActor, name, worker.namespace if namespace is None else namespace)
    worker.loop.wait(request)
    if request.ok:
        return _found(worker, *request.value)
    raise worker.broken or ValueError(str(request.value))


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """End an actor's process at once, whatever it does; calls without a result get an ActorDiedError.

    Args:
        actor: its handle.
        no_restart: False lets ``max_restarts`` bring it back.

    Raises:
        TypeError: it was given something else than a handle.
        ActorDiedError: the actor is of a cluster that this process has left.

    Example:
        >>> kill(counter)  # doctest: +SKIP
    """
    given: object = actor
    if not isinstance(given, ActorHandle):
        raise TypeError(f"kill() takes the handle of an actor, not a {type(given).__name__}: {given!r}")
    worker = api.runtime()
    if actor._zray_worker is not worker:
        raise _left_behind(actor)
    worker.loop.post((worker.owner.kill_actor, bytes(actor._actor_id), no_restart, actor._zray_handle_id))
    worker.loop.maybe_turn()


def exit_actor() -> NoReturn:
    """End the actor whose method calls this; later calls get an ActorDiedError. It is not restarted.

    Raises:
        TypeError: it was called outside of an actor.

    Example:
        >>> exit_actor()  # doctest: +SKIP
    """
    worker = api.connected()
    executor = worker.executor() if worker is not None else None
    if executor is None or executor.actor is None:
        raise TypeError("exit_actor() ends the actor that calls it: this is not an actor")
    raise ActorExit
