"""Progress bars as those of tqdm: in tasks, in actors and in the driver, all drawn below one another by the driver.

A bar tells how far it is at most ten times a second, whatever the number of its steps. On a terminal the bars stand below what
the job prints; elsewhere, in a file for example, each leaves one line at its end. tqdm need not be installed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, TypeVar

from zray.progress import show_bar

T = TypeVar("T")

_TEXT_MAX = 200  # characters of a description
_INTERVAL_S = 0.1


class tqdm(Generic[T]):
    """A progress bar.

    Args:
        iterable: its items are handed on and counted.
        desc: what stands before the bar.
        total: how many steps there will be; by default ``len(iterable)``, if it has one.
        leave: whether the bar stays when it has come to its end.
        unit: what a step is.
        initial: steps that were done before.
        disable: draw nothing.
        postfix: values by name that stand behind the bar.

    Example:
        >>> from zray.util.progress import tqdm
        >>> with tqdm(total=3, desc="load", disable=True) as bar:
        ...     bar.update(2)
        ...     bar.n
        2
    """

    def __init__(
        self,
        iterable: Iterable[T] | None = None,
        desc: str | None = None,
        total: float | None = None,
        leave: bool = True,
        *,
        unit: str = "it",
        initial: float = 0,
        disable: bool = False,
        postfix: Mapping[str, Any] | None = None,
    ) -> None:
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self.iterable = iterable
        self.desc = desc or ""
        self.total = total
        self.leave = leave
        self.unit = unit
        self.n = initial
        self.disable = disable
        self._id = os.urandom(6).hex()
        self._initial = initial
        self._postfix = ""
        self._started = time.monotonic()
        self._due = 0.0
        self._closed = disable
        if postfix:
            self.set_postfix(postfix)
        self._show()

    def __iter__(self) -> Iterator[T]:
        if self.iterable is None:
            raise TypeError("this bar was made without an iterable: count its steps with update()")
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def __len__(self) -> int:
        if self.total is None:
            raise TypeError("this bar has no total")
        return int(self.total)

    def __enter__(self) -> tqdm[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """So many more steps are done."""
        self.n += n
        if time.monotonic() >= self._due:
            self._show()

    def set_description(self, desc: str | None = None) -> None:
        """Change what stands before the bar."""
        self.desc = desc or ""
        self.update(0)

    def set_postfix(self, ordered_dict: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Change the values that stand behind the bar."""
        named = {**(ordered_dict or {}), **values}
        self.set_postfix_str(", ".join(f"{name}={_short(value)}" for name, value in named.items()))

    def set_postfix_str(self, text: str = "") -> None:
        """Change the text that stands behind the bar."""
        self._postfix = text
        self.update(0)

    def refresh(self) -> None:
        """Draw the bar now."""
        self._show()

    def reset(self, total: float | None = None) -> None:
        """Begin anew."""
        self.n = self._initial = 0
        self._started = time.monotonic()
        if total is not None:
            self.total = total
        self._show()

    def close(self) -> None:
        """The bar has come to its end. Does nothing the second time."""
        if not self._closed:
            self._closed = True
            self._send()

    def _show(self) -> None:
        if not self._closed:
            self._due = time.monotonic() + _INTERVAL_S
            self._send()

    def _send(self) -> None:
        show_bar(
            {
                "id": self._id,
                "desc": str(self.desc)[:_TEXT_MAX],
                "n": self.n,
                "initial": self._initial,
                "total": self.total,
                "unit": str(self.unit)[:_TEXT_MAX],
                "postfix": self._postfix[:_TEXT_MAX],
                "elapsed": time.monotonic() - self._started,
                "closed": self._closed,
                "leave": self.leave,
            }
        )


def trange(*arguments: int, **options: Any) -> tqdm[int]:
    """``tqdm(range(...), ...)``.

    Args:
        arguments: of ``range``.
        options: of ``tqdm``.

    Example:
        >>> [i for i in trange(3, disable=True)]
        [0, 1, 2]
    """
    return tqdm(range(*arguments), **options)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
