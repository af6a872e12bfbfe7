"""Threads: user code of simulated processes, which goes on from one wait to the next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from zray import object_ref
from zray.base.wire import Address

from .cancels import Interrupted
from .world import SimulationError

if TYPE_CHECKING:
    from .bodies import OwnerBody

Steps = Generator[tuple[Any, ...], Any, Any]


class Thread:
    """User code of one process."""

    def __init__(self, body: OwnerBody, steps: Steps, on_end: Callable[[Any, BaseException | None], None]) -> None:
        self.body = body
        self._steps = steps
        self._on_end = on_end
        self.borrowed: dict[bytes, Address] | None = None  # references that came with the arguments of a task, and later
        self.starting = False  # the arguments of a task are being read
        self.task_id = b""
        self.in_code = False  # of the user: it may be interrupted where it waits
        self._interrupted = False
        self._over = False
        self._waits_for: tuple[Any, ...] = ()
        body.threads.append(self)

    def step(self, value: Any = None) -> None:
        """Go on until the code waits for something."""
        body = self.body
        if not body.alive or self._over:
            return
        object_ref.connected = body
        body.current = self
        try:
            stopped = self._interrupted and self.in_code and self._waits_for[:1] in (("sleep",), ("wait",))
            request = self._steps.throw(Interrupted()) if stopped else self._steps.send(value)
        except StopIteration as stop:
            self._over = True
            body.threads.remove(self)
            self._on_end(stop.value, None)
        except (SimulationError, AssertionError, KeyError, AttributeError):
            raise
        except Exception as error:
            self._over = True
            body.threads.remove(self)
            if self._waits_for[:1] == ("wait",):
                self._waits_for[1].done = True
            self._on_end(None, error.with_traceback(None))
        else:
            self._waits_for = request[:2] if request[0] == "wait" else request[:1]
            body.perform(self, request)
        body.finish()

    def interrupt(self) -> None:
        """Have the user's code stopped where it waits, now or next time."""
        self._interrupted = True
        if self._waits_for[:1] in (("sleep",), ("wait",)):
            self.body.world.after(self.body.world.some(0.001), self.step)

    def close(self) -> None:
        self._steps.close()
