"""Actors that many tests use."""

from __future__ import annotations

import os
import threading
from typing import Any

import zray as ray

from .modes import held


class PlainCounter:
    """A counter."""

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        self.value = start
        self.step = step

    def add(self, times: int = 1) -> int:
        """Count on."""
        self.value += times * self.step
        return self.value

    def get(self) -> int:
        return self.value

    def pid(self) -> int:
        return os.getpid()


Counter = ray.remote(PlainCounter)


@ray.remote
class Box:
    """Keeps a value, and does what a test asks for."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def set(self, value: Any) -> None:
        self.value = value

    def set_myself(self) -> None:
        self.value = ray.get_runtime_context().current_actor

    def get(self) -> Any:
        return self.value

    def same(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def run(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def pid(self) -> int:
        return os.getpid()


@ray.remote(max_concurrency=10)
class Gate:
    """What waits for ``passed`` goes on when it is open."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def open(self) -> None:
        self.opened.set()

    def passed(self, value: Any = None) -> Any:
        assert held(self.opened)
        return value
