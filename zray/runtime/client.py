"""Client: a process that asks others questions and waits for the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.base.wire import CONTROL
from zray.core.waiters import Waiter
from zray.exceptions import RayError, RaySystemError
from zray.runtime.process import Process

_DRAIN_S = 1.0


class Request:
    """A question to another process, until its Reply comes."""

    __slots__ = ("done", "ok", "question", "signal", "then", "value")

    def __init__(self, then: Callable[[bool, Any], None] | None = None) -> None:
        self.then = then  # called in the loop with the answer
        self.question: Any = None  # what the control is asked, which may have to be asked again
        self.done = False
        self.ok = False
        self.value: Any = None
        self.signal: Any = None


class Client(Process):
    """What drivers and workers have in common with anybody who asks the node agent or the control something."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.agent = b""  # of the node this process lives on
        self.broken: RayError | None = None  # why nothing can be done any more
        self._requests: dict[int, Request] = {}
        self._lasting: list[tuple[Any, ...]] = []  # what every control must know
        self.transport.on_broken = self._on_broken
        self._next_request = 1

    # -- the loop's calls -----------------------------------------------------------------------------------------

    def on_reply(self, now: float, peer: bytes, request_id: int, ok: bool, value: Any) -> None:
        """An answer came."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            request.ok = ok
            request.value = value
            resolve(request)

    def fail(self, error: RayError) -> None:
        """Nobody will answer any more: everybody who waits is told, and everybody who comes."""
        self.broken = error
        for request in self._requests.values():
            request.value = str(error)
            resolve(request)
        self._requests.clear()

    def _on_broken(self, peer: bytes) -> None:
        """Somebody else is where a peer was."""
        for message in self.open_words() if peer == CONTROL else ():
            self.send(CONTROL, message)

    # -- questions ------------------------------------------------------------------------------------------------

    def ask(self, peer: bytes, message: type, *fields: Any) -> Request:
        """Send a message whose first field is a request id; its Reply will resolve what is returned."""
        request = Request()
        self.loop.post((self._ask, request, peer, message, fields))
        return request

    def call(self, peer: bytes, message: type, *fields: Any) -> Any:
        """Ask and wait for the answer.

        Raises:
            RaySystemError: the answer is an error, or there is nobody to answer.
        """
        request = self.ask(peer, message, *fields)
        self.loop.wait(request)
        if not request.ok:
            raise self.broken or RaySystemError(str(request.value))
        return request.value

    def ask_then(self, then: Callable[[bool, Any], None], message: type, *fields: Any) -> None:
        """In the loop: ask the agent, and call ``then`` with what it answers."""
        self._ask(Request(then), self.agent, message, fields)

    def count_down(self, waiter: Waiter) -> None:
        """In the loop: one of the things a waiter waits for is there."""
        waiter.remaining -= 1
        if waiter.remaining <= 0:
            resolve(waiter)

    def tell(self, peer: bytes, message: tuple[Any, ...]) -> None:
        """Send a message that has no answer."""
        self.loop.post((self.send, peer, message))

    def tell_control(self, message: tuple[Any, ...]) -> None:
        """Tell the control something that one which is started later must know as well."""
        self._lasting.append(message)
        self.tell(CONTROL, message)

    def drain(self) -> None:
        """Have the loop take and send all that was posted so far: the last thing before ``close``."""
        waiter = Waiter(1)
        self.loop.post((finish, waiter))
        self.loop.wait(waiter, _DRAIN_S)

    def _ask(self, request: Request, peer: bytes, message: type, fields: tuple[Any, ...]) -> None:
        if self.broken is not None:
            request.value = str(self.broken)
            resolve(request)
            return
        request_id = self._next_request
        self._next_request += 1
        self._requests[request_id] = request
        question = message(request_id, *fields)
        if peer == CONTROL:
            request.question = question
        self.send(peer, question)

    def open_words(self) -> list[Any]:
        """What a control that does not know this process must be told: the questions without an answer, and what lasts."""
        return [*self._lasting, *[request.question for request in self._requests.values() if request.question is not None]]


def finish(waiter: Waiter) -> None:
    """In the loop: all that was posted before has been taken."""
    waiter.done = True
    resolve(waiter)


def resolve(waiter: Any) -> None:
    """Wake whoever waits for it."""
    waiter.done = True
    if type(waiter) is Request and waiter.then is not None:
        waiter.then(waiter.ok, waiter.value)
    if waiter.signal is not None:
        try:
            waiter.signal.release()
        except RuntimeError:
            pass  # it is awake already
    if type(waiter) is Waiter and waiter.callback is not None:
        callback, waiter.callback = waiter.callback, None
        callback()


def shut_down() -> RaySystemError:
    """What those hear who wait for something when this process leaves the cluster."""
    return RaySystemError("zray.shutdown() was called while this waited")
