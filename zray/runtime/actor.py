"""Actor: the instance that lives in a worker, and the threads or the event loop that run its calls.

Calls go to *groups*, each with a limit of its own: the default group, and those that the class names (concurrency groups). A
plain actor, which has one group of one call at a time, runs its calls in the worker's main thread. Any other has threads for
each group, started as they are needed. The groups of an asynchronous actor, one that has any ``async def`` method, share one
event loop in one thread; a limit is then the number of coroutines at once.

Where calls run side by side, one of them may end the actor while others run or wait for their turn. Calls are numbered as they
come: those that came before the one that ends the actor are finished, those after it are not started.
"""

from __future__ import annotations

import functools
import inspect
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from zray.base.wire import STORED, Address, Entry
from zray.runtime.generator_runner import GeneratorRunner

if TYPE_CHECKING:
    import asyncio

    from zray.runtime.executor import Executor

_LAST_WORDS_S = 1.0

# The task id and name of the call that runs in this thread or coroutine, where that is not the main thread.
current_call: ContextVar[tuple[bytes, str] | None] = ContextVar("current_call", default=None)


class ActorExit(SystemExit):
    """Raised by ``exit_actor``: the actor ends when what it runs is done."""

    def __init__(self) -> None:
        super().__init__(0)


class Group(Protocol):
    """Where calls run."""

    def submit(self, peer: bytes, spec: Any) -> None:
        """In the loop: a call, in its order."""

    def cancel(self, task_id: bytes) -> bool | None:
        """In the loop: a call is not wanted any more. Whether it runs; None if it is not of this group."""

    def stop(self) -> None:
        """In the loop: have threads end that have nothing to do."""


class MainGroup:
    """The worker's main thread."""

    def __init__(self, worker: Executor) -> None:
        self.submit = worker.enqueue
        self._worker = worker

    def cancel(self, task_id: bytes) -> bool | None:
        cancellation = self._worker.cancellation
        if cancellation.take_out(task_id):
            return False
        cancellation.cancelled[task_id] = False  # the main thread has it, or has had it and forgets this soon
        return self._worker.task_id == task_id

    def stop(self) -> None:
        """That is for the worker to do."""


_Call = tuple[int, bytes, Any]


class NumberedGroup:
    """Calls that others overtake: each has a number, by which the actor knows which are over."""

    def __init__(self, worker: Executor, actor: Actor) -> None:
        self._worker = worker
        self._actor = actor
        self._waiting: dict[bytes, _Call] = {}  # by task; who takes a call out of here has it
        self._running: dict[bytes, Any] = {}

    def submit(self, peer: bytes, spec: Any) -> None:
        number = self._actor.received()
        if number:
            call = self._waiting[spec[0]] = (number, peer, spec)
            self._take(call)

    def cancel(self, task_id: bytes) -> bool | None:
        call = self._waiting.pop(task_id, None)
        if call is not None:
            self._actor.cancelled(*call)
            return False
        if task_id not in self._running:
            return None
        self._actor.flag(task_id)
        self._interrupt(task_id)
        return True

    def stop(self) -> None:
        """Who runs the calls belongs to the worker, or to the actor."""

    def _take(self, call: _Call) -> None:
        """A call has come."""
        raise NotImplementedError

    def _interrupt(self, task_id: bytes) -> None:
        """Threads that run a call are left alone: it is told if it asks."""


class ThreadGroup(NumberedGroup):
    """Threads, started as they are needed up to the limit."""

    def __init__(self, worker: Executor, actor: Actor, name: str, limit: int) -> None:
        super().__init__(worker, actor)
        self._name = name
        self._limit = limit
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads = 0
        self._idle = threading.Semaphore(0)

    def stop(self) -> None:
        for _ in range(self._threads):
            self._calls.put(None)

    def _take(self, call: _Call) -> None:
        self._calls.put(call)
        if not self._idle.acquire(blocking=False) and self._threads < self._limit:
            self._threads += 1
            name = f"zray-{self._name}-{self._threads}"
            threading.Thread(target=self._worker.run_thread, args=(self._work,), name=name, daemon=True).start()

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            task_id = call[2][0]
            self._running[task_id] = None
            try:
                if self._waiting.pop(task_id, None) is not None:  # else it was cancelled
                    self._worker.run_user_code(self._actor.run, *call)
            except BaseException as error:
                self._worker.crash(error)
            self._running.pop(task_id, None)  # tried again, it may have begun in another thread already
            del call
            self._idle.release()


class MainThreadGroup(NumberedGroup):
    """The worker's main thread, of an actor that has other threads besides: signals and some libraries insist on it."""

    def _take(self, call: _Call) -> None:
        _, peer, spec = call
        self._worker.enqueue_run(peer, (spec[0], self._run, call))

    def _run(self, call: _Call) -> None:
        task_id = call[2][0]
        self._running[task_id] = None
        if self._waiting.pop(task_id, None) is not None:
            self._actor.run(*call)
        self._running.pop(task_id, None)


class AsyncGroup(NumberedGroup):
    """Coroutines in the actor's event loop, so many at once."""

    def __init__(self, worker: Executor, actor: Actor, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        super().__init__(worker, actor)
        self._loop = loop
        self._limit = limit
        self._calls: deque[_Call] = deque()
        self._context = Context()  # not that of whichever thread turns the loop
        self._called = False

    def _take(self, call: _Call) -> None:
        self._calls.append(call)
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._start, context=self._context)

    def _interrupt(self, task_id: bytes) -> None:
        self._loop.call_soon_threadsafe(self._stop, task_id)

    def _stop(self, task_id: bytes) -> None:
        """In the event loop: cancel what runs."""
        task = self._running.get(task_id)
        if task is not None:
            task.cancel()

    def _start(self) -> None:
        """In the event loop: start what may run."""
        self._called = False
        calls, running = self._calls, self._running
        while calls and len(running) < self._limit:
            call = calls.popleft()
            task_id = call[2][0]
            running[task_id] = None
            if self._waiting.pop(task_id, None) is None:  # it was cancelled
                del running[task_id]
                continue
            task = running[task_id] = self._loop.create_task(self._actor.run_async(*call))
            task.add_done_callback(functools.partial(self._ended, call))

    def _ended(self, call: _Call, task: asyncio.Task[None]) -> None:
        self._running.pop(call[2][0], None)
        if task.cancelled():  # by another call, before it had begun
            self._actor.cancelled(*call)
        else:
            error = task.exception()
            if error is not None:
                self._worker.crash(error)
        if self._calls:
            self._start()


class Actor:
    """The actor that a worker has become.

    Args:
        worker: the worker.
        cls: its class.
        id: its id.
        owner: the process that created it.
        incarnation: 1 for its first process, and one more for each restart.
        extra: what its owner said of it: ``class_name``, ``name``, ``asyncio``, ``max_concurrency``, ``groups`` (limits by name),
            ``handle``.
    """

    def __init__(
        self,
        worker: Executor,
        cls: Callable[..., Any],
        id: bytes,
        owner: Address,
        incarnation: int,
        extra: dict[str, Any],
    ) -> None:
        self.owner = owner
        self._worker = worker
        self._cls = cls
        self.id = id
        self.incarnation = incarnation
        self.extra = extra
        self.name: str = extra["name"]
        self.instance: Any = None
        self.closing = False  # it was told to end, or wants to: nothing is started any more
        self._exit: SystemExit | None = None
        self._received = 0  # calls that do not run in the main thread
        self._active = 0  # ... of which are not over
        self._last = 0.0  # ... those from this number on are not started, once it is closing
        self._lock = threading.Lock()
        self._methods: dict[bytes, Callable[..., Any]] = {}
        limit = extra["max_concurrency"]
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        self._groups: dict[str, Group] = {}
        self._default: Group
        if extra["asyncio"]:
            loop = self._event_loop = _new_event_loop(worker)
            self._default = AsyncGroup(worker, self, loop, limit)
            self._groups = {name: AsyncGroup(worker, self, loop, most) for name, most in extra["groups"].items()}
        else:
            if limit > 1:
                self._default = ThreadGroup(worker, self, "actor", limit)
            else:
                self._default = MainThreadGroup(worker, self) if extra["groups"] else MainGroup(worker)
            self._groups = {name: ThreadGroup(worker, self, name, most) for name, most in extra["groups"].items()}

    def construct(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Make the instance; that of an asynchronous actor inside its event loop, so that it can create tasks there."""
        if self._event_loop is None:
            self.instance = self._cls(*args, **kwargs)
            return
        import asyncio

        asyncio.set_event_loop(self._event_loop)
        threading.Thread(target=self._run_event_loop, name="zray-asyncio", daemon=True).start()

        async def construct() -> BaseException | None:
            self._worker.enter()
            try:
                self.instance = self._cls(*args, **kwargs)
            except BaseException as error:  # sys.exit() would end the loop, and nobody would hear of it
                return error
            return None

        error = asyncio.run_coroutine_threadsafe(construct(), self._event_loop).result()
        if error is not None:
            raise error

    def submit(self, peer: bytes, spec: Any) -> None:
        """In the loop: a call whose turn it is."""
        extra = spec[7]
        name = extra.get("concurrency_group") if extra is not None else None
        if name is None:
            self._default.submit(peer, spec)
        elif name in self._groups:
            self._groups[name].submit(peer, spec)
        else:
            known = ", ".join(map(repr, self._groups)) or "none"
            error = ValueError(f"{spec[6]}() has no concurrency group {name!r}: the actor's groups are {known}")
            self._finish(peer, spec, (self._worker.error_entry(error, spec[6], extra, spec[0]),) * abs(spec[4]), 0.0)

    def method(self, name: bytes) -> Callable[..., Any]:
        """A method of the instance, or one that every actor has."""
        known = self._methods.get(name)
        if known is not None:
            return known
        text = name.decode()
        own: dict[str, Callable[..., Any]] = {
            "__ray_ready__": _ready,
            "__ray_call__": self._apply,
            "__ray_terminate__": _terminate,
        }
        method: Callable[..., Any] = own[text] if text in own else getattr(self.instance, text)
        self._methods[name] = method
        return method

    def received(self) -> int:
        """In the loop: a call came that will not run in the main thread. Its number; 0 if it will not run at all."""
        with self._lock:
            if self.closing:
                return 0  # its caller learns of the actor's end
            self._received += 1
            self._active += 1
            return self._received

    def run(self, number: int, peer: bytes, spec: Any) -> None:
        """Run a call in a thread of its own group. Its result must live until it is posted, as in ``Executor._execute``."""
        if not self._may_run(number):
            return
        task_id, function_id, payload, slots, num_returns, _, name, extra = spec
        current_call.set((task_id, name))
        worker = self._worker
        worker.enter()
        started = time.monotonic()
        try:
            args, kwargs = worker.arguments(payload, slots)
            result = self.method(function_id)(*args, **kwargs)
            del args, kwargs
            if num_returns < 0:
                entries = worker.streamed(peer, spec, GeneratorRunner(worker, peer, spec).run(result))
            else:
                self._check_wanted(task_id)
                entries = worker.entries(peer, spec, result)
        except SystemExit as error:
            self._end(error, number)
            return
        except BaseException as error:
            entries = (worker.error_entry(error, name, extra, task_id),) * abs(num_returns)
        self._finish(peer, spec, entries, started)
        self._end()

    async def run_async(self, number: int, peer: bytes, spec: Any) -> None:
        """Run a call in the event loop."""
        if not self._may_run(number):
            return
        task_id, function_id, payload, slots, num_returns, _, name, extra = spec
        current_call.set((task_id, name))
        worker = self._worker
        worker.enter()
        started = time.monotonic()
        refs: dict[bytes, Any] = {}
        try:
            if any(entry[0] == STORED for _, _, _, entry in slots):  # they may have to come from disk
                import asyncio

                args, kwargs, refs = await asyncio.to_thread(self._read, payload, slots)
            else:
                args, kwargs, refs = self._read(payload, slots)
            result = self.method(function_id)(*args, **kwargs)
            del args, kwargs
            if num_returns < 0:
                entries = worker.streamed(peer, spec, await GeneratorRunner(worker, peer, spec).run_async(result))
            else:
                if inspect.isasyncgen(result):
                    result = [value async for value in result]
                elif inspect.isawaitable(result):
                    result = await result
                self._check_wanted(task_id)
                entries = worker.entries(peer, spec, result)
        except SystemExit as error:
            self._end(error, number)
            return
        except BaseException as error:
            entries = (worker.error_entry(error, name, extra, task_id),) * abs(num_returns)
        self._finish(peer, spec, entries, started, refs)
        self._end()

    def cancelled(self, number: int, peer: bytes, spec: Any) -> None:
        """A call was cancelled before it had begun."""
        self._worker.cancellation.answer(peer, spec)
        self._end()

    def cancel(self, task_id: bytes) -> bool:
        """In the loop: a call is not wanted any more; whether it runs."""
        for group in (self._default, *self._groups.values()):
            running = group.cancel(task_id)
            if running is not None:
                return running
        return False  # it is over

    def flag(self, task_id: bytes) -> None:
        """A call that runs is cancelled."""
        self._worker.cancellation.cancelled[task_id] = False

    def _check_wanted(self, task_id: bytes) -> None:
        """A call that was cancelled is cancelled, whatever it returns."""
        if task_id in self._worker.cancellation.cancelled:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """In the loop: start no more calls, and end threads. For a worker that ends without the end of a process."""
        with self._lock:
            stopped, self._stopped = self._stopped, True
            self.closing = True
            self._last = 0.0
        if stopped:
            return
        for group in (self._default, *self._groups.values()):
            group.stop()
        if self._event_loop is not None:
            self._event_loop.call_soon_threadsafe(self._event_loop.stop)

    def forget(self) -> None:
        """Let go of the instance."""
        self.instance = None
        self._methods.clear()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _read(self, payload: Any, slots: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any], dict[bytes, Any]]:
        """The arguments of a call, and the references among them."""
        args, kwargs = self._worker.arguments(payload, slots)
        return args, kwargs, self._worker.adopted()

    def _finish(
        self, peer: bytes, spec: Any, entries: tuple[Entry, ...], started: float, refs: dict[bytes, Any] | None = None
    ) -> None:
        ended = time.monotonic()
        self._worker.cancellation.cancelled.pop(spec[0], None)
        self._worker.note(spec[6], started, ended)
        refs = self._worker.adopted() if refs is None else refs
        self._worker.finish(peer, 0, (spec[0], entries, int((ended - started) * 1e6), refs))

    def _may_run(self, number: int) -> bool:
        self._worker.end_if_forked()
        with self._lock:
            if not self.closing or number < self._last:
                return True
        self._end()
        return False

    def _end(self, error: SystemExit | None = None, number: int = 0) -> None:
        """A call is over; with ``error`` it wants the actor to end, which happens when the others are over too."""
        with self._lock:
            self._active -= 1
            if error is not None:
                self._close(error, number)
            self._leave_if_done()

    def _close(self, error: SystemExit, last: float) -> None:
        """Start no call from number ``last`` on; the lock is held."""
        if not self.closing:
            self.closing = True
            self._exit = error
            self._last = last
            self._worker.announce_exit(error)

    def _leave_if_done(self) -> None:
        """End the process if the actor is closing and the last call is over; the lock is held."""
        if self._exit is not None and self._active == 0:
            self._worker.end_soon(self._exit)

    def _apply(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    def _run_event_loop(self) -> None:
        import asyncio

        loop = self._event_loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        self._worker.event_loop_thread = threading.get_ident()
        try:
            while not self._stopped:  # what else stops the loop is a task of the user's own: the calls must go on, or hear of it
                try:
                    loop.run_forever()
                except KeyboardInterrupt:
                    continue
                except SystemExit as error:
                    with self._lock:
                        self._close(error, float("inf"))
                        self._leave_if_done()
        finally:
            _close_event_loop(loop)


def _new_event_loop(worker: Executor) -> asyncio.AbstractEventLoop:
    """An event loop that a fork does not use: it would take away what wakes the actor's."""
    import asyncio  # other actors do without it
    import selectors

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            worker.end_if_forked()
            return super().select(timeout)

    return asyncio.SelectorEventLoop(Selector())


def _close_event_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what runs in a loop, give it a moment for its last words, and close it."""
    import asyncio

    loop.run_until_complete(asyncio.sleep(0))  # what was called meanwhile becomes a task
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_LAST_WORDS_S))
    loop.close()


def _ready() -> bool:
    return True


def _terminate() -> None:
    raise ActorExit
