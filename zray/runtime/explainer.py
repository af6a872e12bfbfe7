"""Explainer: asks on behalf of a user why objects are not there, and answers others who ask that.

Nobody waits for long: who gives no answer is named in its place.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from zray.base.ids import agent_of
from zray.base.wire import CONTROL, Address, Reply
from zray.base.wire_state import ExplainNode, ExplainObject
from zray.core.explain import Finding, of_object
from zray.runtime.client import Request, resolve

if TYPE_CHECKING:
    from zray.runtime.core_worker import CoreWorker
    from zray.runtime.executor import Executor

_ANSWER_S = 3.0
_LINES_MAX = 20
_Answer = tuple[str, tuple[tuple[bytes, Address], ...]]


class Explainer:
    """What a driver or worker knows of why something is not there; a handler of its messages."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker

    def explain(self, object_id: bytes, owner: Address) -> str:
        """Why an object is not there, and what it waits for, a line for each object."""
        lines: list[str] = []
        asked = {object_id: None}
        queue = [(object_id, owner, 0)]
        while queue and len(lines) < _LINES_MAX:
            wanted, whose, depth = queue.pop(0)
            text, waits_for = self._ask(wanted, whose)
            lines.append(f"{'  ' * depth}{wanted.hex()}: {text}")
            for inner, of in waits_for:
                if inner not in asked:
                    asked[inner] = None
                    queue.append((inner, of, depth + 1))
        return "\n".join(lines)

    def _ask(self, object_id: bytes, owner: Address) -> _Answer:
        worker = self._worker
        request = Request()
        if owner[0] == worker.me:
            worker.loop.post((self._answer, object_id, request))
        else:
            worker.loop.post((worker.transport.dial, *owner))
            request = worker.ask(owner[0], ExplainObject, object_id)
        if not worker.loop.wait(request, _ANSWER_S):
            return f"its owner {owner[0].hex()[:16]} gives no answer: it is stopped, busy, or can not be reached", ()
        if not request.ok:
            return str(request.value), ()
        answer: _Answer = request.value
        return answer

    def on_explain_object(self, now: float, peer: bytes, request_id: int, object_id: bytes) -> None:
        request = Request(lambda ok, value: self._worker.send(peer, Reply(request_id, ok, value)))
        self._answer(object_id, request)

    def _answer(self, object_id: bytes, request: Request) -> None:
        """In the loop: resolve a request with what this process and those it asks know of an object of its own."""
        worker = self._worker
        finding = of_object(worker.owner, time.monotonic(), object_id)
        if finding.ask is None:
            _resolve(request, (finding.text, finding.waits_for))
            return
        peer, message, fields = finding.ask
        later = Request(lambda ok, value: _resolve(request, (_joined(finding, value), finding.waits_for)))
        worker.execute(worker.owner)  # what was said before is known before
        worker._ask(later, peer, message, fields)
        worker.loop.add_timer(time.monotonic() + _ANSWER_S / 2, ("explain", request, finding))

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        """Who was asked has had its time: whoever watches its node may know why."""
        _, request, finding = key
        peer = finding.ask[0]
        text = f"{finding.text}; {peer.hex()[:16]} gives no answer when asked about it"
        if request.done or peer == CONTROL:
            _resolve(request, (text, finding.waits_for))
            return
        later = Request(lambda ok, value: _resolve(request, (f"{text}; {value}", finding.waits_for)))
        self._worker._ask(later, CONTROL, ExplainNode, (agent_of(peer),))


def _joined(finding: Finding, value: Any) -> str:
    return f"{finding.text}; {value}"


def _resolve(request: Request, value: _Answer) -> None:
    if not request.done:
        request.ok, request.value = True, value
        resolve(request)


def current_line(thread: int) -> str:
    """What a thread of this process is doing: the innermost line that is not zray's own."""
    frame = sys._current_frames().get(thread)
    inside = ""
    while frame is not None and frame.f_globals.get("__name__", "").startswith("zray."):
        inside = frame.f_code.co_name
        frame = frame.f_back
    if frame is None:
        return ""
    where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}()"
    return f"at {where}" + (f", waiting in zray's {inside}()" if inside else "")


def whereabouts(worker: Executor, task_id: bytes, waiting: list[bytes], ran_s: float) -> str:
    """What has become of a task or call that was sent to this worker, which has run something for ``ran_s``."""
    here = f"in process {os.getpid()} on node {worker.node_id.hex()[:8]}"
    doing = f"for {ran_s:.1f} s {here} {current_line(worker.thread)}".rstrip()
    if task_id in waiting:
        return f"it is number {waiting.index(task_id) + 1} of those that wait behind {worker.task_name}(), which runs {doing}"
    if task_id == worker.task_id and ran_s:
        return f"it runs {doing}"
    if worker.actor is not None:
        main = current_line(worker.thread)
        return f"it runs or waits {here}, where calls run in threads or coroutines; the main thread is {main}"
    return f"its result is on its way from there ({here})"
