"""Progress bars as those of tqdm: in tasks, in actors and in the driver, all drawn below one another by the driver.

A bar tells how far it is at most ten times a second, whatever the number of its steps. On a terminal the bars stand below what
the job prints; elsewhere, in a file for example, each leaves one line at its end. tqdm need not be installed.
"""

from __future__ import annotations

import math
import operator
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, TextIO, TypeVar

from zray.progress import show_bar

T = TypeVar("T")

_TEXT_MAX = 200  # characters of a description
_INTERVAL_S = 0.1
_NOT_USED = {  # of tqdm's arguments: the driver's terminal decides how bars look and where they are
    *("ascii", "bar_format", "colour", "delay", "dynamic_ncols", "file", "gui"),
    *("lock_args", "maxinterval", "miniters", "ncols", "nrows", "smoothing", "write_bytes"),
}


class tqdm(Generic[T]):
    """A progress bar.

    Args:
        iterable: its items are handed on and counted.
        desc: what stands before the bar.
        total: how many steps there will be; by default ``len(iterable)``, if it has one.
        leave: whether the bar stays when it has come to its end.
        unit: what a step is.
        unit_scale: show counts with three digits, in thousands, millions and so on.
        unit_divisor: what is a thousand then: 1000, or 1024 for bytes.
        initial: steps that were done before.
        position: bars with a smaller one stand above those with a larger.
        mininterval: seconds between two drawings.
        disable: draw nothing.
        postfix: values by name that stand behind the bar.
        not_used: the other arguments of tqdm, which change nothing here.

    Raises:
        TypeError: an argument is not one of tqdm's.

    Example:
        >>> from zray.util.progress import tqdm
        >>> with tqdm(total=3, desc="load", disable=True) as bar:
        ...     bar.update(2)
        ...     bar.n
        2
    """

    _closed = True  # until it is made

    def __init__(
        self,
        iterable: Iterable[T] | None = None,
        desc: str | None = None,
        total: float | None = None,
        leave: bool | None = True,
        *,
        unit: str = "it",
        unit_scale: bool = False,
        unit_divisor: float = 1000,
        initial: float = 0,
        position: int | None = None,
        mininterval: float = _INTERVAL_S,
        disable: bool | None = False,
        postfix: Mapping[str, Any] | None = None,
        **not_used: Any,
    ) -> None:
        for name in not_used:
            if name not in _NOT_USED:
                raise TypeError(f"tqdm() has no argument {name!r}")
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self.iterable = iterable
        self.desc = desc or ""
        self.total = None if total == math.inf else total
        self.leave = not position if leave is None else leave
        self.unit = unit
        self.unit_scale = unit_scale
        self.unit_divisor = unit_divisor
        self.n = initial
        self.initial = initial
        self.pos = position or 0
        self.mininterval = mininterval
        self.disable = bool(disable)
        self._id = os.urandom(6).hex()
        self._postfix = ""
        self._started = time.monotonic()
        self._due = math.inf  # when it may be drawn again
        if postfix:
            self.set_postfix(postfix, refresh=False)
        self._closed = self.disable
        self.refresh()

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

    def __bool__(self) -> bool:
        return self.total is None or self.total > 0

    def __enter__(self) -> tqdm[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and not sys.is_finalizing():
            self.close()

    @classmethod
    def write(cls, s: str, file: TextIO | None = None, end: str = "\n", nolock: bool = False) -> None:
        """Write something above the bars, as ``print`` does here too.

        Args:
            s: the text.
            file: where to; standard output by default.
            end: what comes after it.
            nolock: not used.
        """
        (sys.stdout if file is None else file).write(f"{s}{end}")

    def update(self, n: float | None = 1) -> None:
        """Tell that more steps are done.

        Args:
            n: how many.

        Example:
            >>> bar = tqdm(total=3, disable=True)
            >>> bar.update(2)
        """
        self.n += n or 0
        if time.monotonic() >= self._due or self.n == self.total:
            self.refresh()

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Change what stands before the bar.

        Args:
            desc: the text; None for nothing.
            refresh: draw it now, if ``mininterval`` is over since the last time; if not, it is drawn with a later step.
        """
        self.desc = desc or ""
        if refresh:
            self.update(0)

    set_description_str = set_description

    def set_postfix(self, ordered_dict: Mapping[str, Any] | None = None, refresh: bool | None = True, **values: Any) -> None:
        """Change the values that stand behind the bar.

        Args:
            ordered_dict: values by name.
            refresh: as of ``set_description``.
            values: more of them, as keywords.
        """
        named = {**(ordered_dict or {}), **values}
        self.set_postfix_str(", ".join(f"{name}={_short(value)}" for name, value in named.items()), refresh)

    def set_postfix_str(self, s: str = "", refresh: bool | None = True) -> None:
        """Change the text that stands behind the bar.

        Args:
            s: the text.
            refresh: as of ``set_description``.
        """
        self._postfix = str(s)
        if refresh:
            self.update(0)

    def refresh(self, *_: Any, **__: Any) -> None:
        """Draw the bar now. The arguments that tqdm has are not used."""
        if not self._closed:
            self._due = time.monotonic() + self.mininterval
            self._send()

    def reset(self, total: float | None = None) -> None:
        """Begin anew, at no steps.

        Args:
            total: how many steps there will be; None: as many as before.
        """
        self.n = self.initial = 0
        self._started = time.monotonic()
        if total is not None:
            self.total = total
        self.refresh()

    def close(self) -> None:
        """The bar has come to its end. Does nothing the second time."""
        if not self._closed:
            self._closed = True
            self._due = math.inf
            self._send()

    def _send(self) -> None:
        show_bar(
            {
                "id": self._id,
                "desc": str(self.desc)[:_TEXT_MAX],
                "n": _number(self.n),
                "initial": _number(self.initial),
                "total": None if self.total is None else _number(self.total),
                "unit": str(self.unit)[:_TEXT_MAX],
                "divisor": self.unit_divisor if self.unit_scale else None,
                "postfix": self._postfix[:_TEXT_MAX],
                "elapsed": time.monotonic() - self._started,
                "position": self.pos,
                "closed": self._closed,
                "leave": self.leave,
            }
        )


def trange(*arguments: int, **options: Any) -> tqdm[int]:
    """``tqdm(range(...), ...)``.

    Args:
        arguments: of ``range``.
        options: of ``tqdm``.

    Returns:
        The bar; iterate over it.

    Example:
        >>> [i for i in trange(3, disable=True)]
        [0, 1, 2]
    """
    return tqdm(range(*arguments), **options)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> float:
    """A number of any kind, those of numpy for example, as one that can be sent."""
    return operator.index(value) if hasattr(value, "__index__") else float(value)
