"""Progress bars: of tasks, actors and the driver, on a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from zray.util import progress
from zray.util.progress import tqdm, trange

from .driving import PATIENCE_S, Script

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

BARS = """
import sys
import zray as ray
from zray.util.progress import tqdm
ray.init(num_cpus=3, object_store_memory=1 << 24)
@ray.remote
class Gate:
    def __init__(self, wanted):
        import asyncio
        self.left, self.open = wanted, asyncio.Event()
    async def passed(self):
        self.left -= 1
        if not self.left:
            self.open.set()
        await self.open.wait()
gate = Gate.options(num_cpus=0).remote(2)
@ray.remote
def work(k):
    for i in tqdm(range(100), desc=f"task {k}"):
        if i == 50:
            print("half of", k)
            ray.get(gate.passed.remote())
for _ in tqdm(range(3), desc="driver"):
    pass
ray.get([work.remote(k) for k in range(2)])
"""


def on_terminal(program: str) -> str:
    """What a program shows on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    with open(os.devnull, "rb") as nothing:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import os; os.environ['COLUMNS'] = '100'\n{program}"],
            stdin=nothing,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + PATIENCE_S
    try:
        with contextlib.suppress(OSError):  # nobody has the other end any more
            while time.monotonic() < deadline:
                if select.select([ours], [], [], 1.0)[0]:
                    shown += os.read(ours, 65536)
        assert process.wait(PATIENCE_S) == 0, shown.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown.decode()


def left_standing(shown: str) -> list[str]:
    """The lines of the terminal at the end."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\d*[AJ]|\r|\n|[^\x1b\r\n]+", shown):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            continue
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[J":
            del lines[row:]
            lines.append("")
        else:
            lines[row] += part
    return [line for line in lines if line]


def test_bars_of_several_processes_are_drawn_below_each_other_and_lines_above() -> None:
    shown = on_terminal(BARS)
    assert re.search(r"task 0: [^\n]*\r\n[^\n]*task 1: ", shown) or re.search(r"task 1: [^\n]*\r\n[^\n]*task 0: ", shown)
    standing = left_standing(shown)
    assert sorted(line.split("%")[0] for line in standing if "%" in line) == ["driver: 100", "task 0: 100", "task 1: 100"]
    assert sum("half of" in line for line in standing) == 2
    assert len(standing) == 5


def test_what_the_program_prints_itself_stands_above_its_bars() -> None:
    shown = on_terminal(
        """
import sys
from zray.util.progress import tqdm
before = sys.stdout
low, high = (tqdm(total=2, desc=name, position=position) for position, name in ((1, "low"), (0, "high")))
print("printed")
tqdm.write("written")
print("an error", file=sys.stderr)
sys.stdout.write("in two ")
low.update()
high.refresh()
sys.stdout.writelines(["parts", "\\n"])
low.close()
print("begun", end="")
high.update(2)
assert sys.stdout is not before and sys.stdout.fileno() == before.fileno()
high.close()
assert sys.stdout is before
print("at last")
"""
    )
    texts = ["printed", "written", "an error", "in two parts", "low:  50%", "begun", "high: 100%", "at last"]
    assert [line.partition("|")[0] for line in left_standing(shown)] == texts


def test_a_fork_prints_while_its_parent_has_bars() -> None:
    shown = on_terminal(
        """
import os
from zray.util.progress import tqdm
with tqdm(total=1, desc="bar"):
    child = os.fork()
    if not child:
        print("from the fork")
        os._exit(0)
    os.waitpid(child, 0)
"""
    )
    assert shown.count("from the fork") == 1


def test_a_short_terminal_shows_some_bars_and_counts_the_others() -> None:
    shown = on_terminal(
        """
import fcntl, struct, sys, termios
from zray.util.progress import tqdm
fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("4H", 5, 100, 0, 0))
bars = [tqdm(total=1, desc=f"bar {i}", leave=False) for i in range(8)]
print("printed")
for bar in bars:
    bar.close()
"""
    )
    assert "... and 5 more" in shown and max(map(int, re.findall(r"\x1b\[(\d)A", shown))) == 3
    assert left_standing(shown) == ["printed"]


def test_elsewhere_a_bar_is_one_line_at_its_end(script: Callable[..., Script]) -> None:
    code, out, errors = script(BARS).finish()
    assert code == 0
    assert sorted(line.split("%")[0] for line in errors.splitlines()) == ["driver: 100", "task 0: 100", "task 1: 100"]
    assert out.count("half of") == 2 and len(out.splitlines()) == 2


def test_a_bar_of_a_million_steps_says_little(script: Callable[..., Script]) -> None:
    program = script(
        """
        import json
        start()
        @ray.remote
        def work():
            from zray.util import progress
            told = []
            progress.show_bar = told.append
            for _ in progress.trange(1_000_000):
                pass
            return len(told), told[-1]["n"], told[-1]["elapsed"]
        say("told", json.dumps(ray.get(work.remote())))
        """
    )
    told, n, elapsed = eval(program.until("told"))
    assert n == 1_000_000 and told <= 3 + elapsed / 0.1


def test_the_bar_of_a_worker_that_dies_stays_where_it_was(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        from zray.util.progress import tqdm
        @ray.remote(max_retries=0)
        def dies():
            bar = tqdm(total=10, desc="dying")
            bar.update(3)
            bar.refresh()
            os._exit(1)
        ray.wait([dies.remote()])
        """
    )
    code, _, errors = program.finish()
    assert code == 0 and re.search(r"^dying:  30%", errors, re.MULTILINE)


@pytest.mark.parametrize("local_mode", [True, False])
def test_bars_need_neither_cluster_nor_tqdm(script: Callable[..., Script], local_mode: bool) -> None:
    program = script(
        f"""
        sys.modules["tqdm"] = None
        from zray.util.progress import tqdm
        if {local_mode}:
            ray.init(local_mode=True)
            ray.get(ray.remote(lambda: [0 for _ in tqdm(range(3), desc="bar")]).remote())
        else:
            list(tqdm(range(3), desc="bar"))
        """
    )
    code, out, errors = program.finish()
    assert (code, out) == (0, "") and re.fullmatch(r"bar: 100%.* 3/3 .*\n", errors)


def test_what_a_bar_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(progress, "show_bar", told.append)
    bar = tqdm(total=float("inf"), mininterval=1000, unit_scale=True, ncols=80, ascii=True, colour="red")
    bar.set_description("desc", refresh=False)
    bar.set_postfix({"a": 1}, refresh=False, b=0.12345)
    bar.update(numpy.int64(3))
    bar.update(numpy.float32(0.5))
    assert len(told) == 1
    bar.refresh()
    bar.total = numpy.int32(5)
    bar.update(1.5)
    del bar
    seen = [(state["n"], state["total"], state["closed"]) for state in told[1:]]
    assert seen == [(3.5, None, False), (5, 5, False), (5, 5, True)]
    last = json.loads(json.dumps(told[-1]))
    assert (last["desc"], last["postfix"], last["divisor"], last["position"]) == ("desc", "a=1, b=0.123", 1000, 0)
    assert tqdm(position=1, leave=None).leave is False
    with pytest.raises(TypeError, match="no argument 'descr'"):
        tqdm(descr="x")


def test_tqdm_write(capsys: Any) -> None:
    tqdm.write("a line")
    tqdm.write("a", file=sys.stderr, end="|")
    assert capsys.readouterr() == ("a line\n", "a|")


def test_the_interface_of_tqdm() -> None:
    with tqdm(total=10, disable=True, initial=2, postfix={"a": 1.23456}) as bar:
        assert bar.update(3) is None
        bar.set_description("x")
        bar.set_postfix(loss=0.5)
        assert (bar.n, bar.total, bar.desc, len(bar)) == (5, 10, "x", 10)
        bar.reset(total=20)
        assert (bar.n, bar.total) == (0, 20)
        assert bool(bar) and not tqdm(total=0, disable=True)
    assert list(trange(2, 8, 3, disable=True)) == [2, 5]
    assert len(tqdm("abc", disable=True)) == 3
    with pytest.raises(TypeError, match="without an iterable"):
        next(iter(tqdm(total=1, disable=True)))
    with pytest.raises(TypeError, match="no total"):
        len(tqdm(disable=True))
