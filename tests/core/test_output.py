"""What workers write: cut into lines, sent to their drivers, folded there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base.config import Config
from zray.base.ids import agent_id, driver_id, process_id
from zray.base.wire import CONTROL, Reply
from zray.base.wire_output import BAR, ERR, OUT, FindDriver, Output
from zray.core import effects as e
from zray.core.folding import OutputFold
from zray.core.output import HANG_UP_TIMER, OutputDesk, WorkerStream, mark
from zray.core.workers import Worker

NODE = bytes(range(16))
ME = agent_id(NODE)
DRIVER = driver_id(NODE)
JOB = b"job1"
ONE, TWO = process_id(NODE, b"\0\0\0\1"), process_id(NODE, b"\0\0\0\2")


class Desk:
    """A desk with two workers of one job."""

    def __init__(self, **limits: int) -> None:
        self.out: list[Any] = []
        self.workers = {}
        for number, worker_id in enumerate((ONE, TWO), start=1):
            worker = self.workers[worker_id] = Worker(worker_id)
            worker.pid = number
            worker.job_id = JOB
        self.desk = OutputDesk(CONTROL, Config.from_dict(limits), self.out, self.workers, ME)

    def found(self, driver: bytes = DRIVER, *, wants: bool = True) -> None:
        self.desk.on_driver_found(0.0, CONTROL, JOB, driver, "ipc://there", wants)

    def hear(self, data: bytes, kind: int = OUT, worker_id: bytes = ONE, now: float = 0.0) -> bytes:
        return self.desk.heard(now, worker_id, kind, data)

    def sent(self) -> list[Any]:
        """The messages since the last time, with their receivers."""
        effects, self.out[:] = list(self.out), []
        return [effect[1:] for effect in effects if effect[0] == e.SEND]

    def rows(self) -> list[Any]:
        return [row for _, message in self.sent() if isinstance(message, Output) for row in message.rows]

    def tick(self, now: float = 1.0) -> None:
        self.desk.on_timer(now, ("output.send", JOB))


def blocks(stream: WorkerStream, *chunks: bytes) -> list[bytes]:
    return [row[3] for chunk in chunks for row in stream.feed(chunk)[0]]


# -- one stream ---------------------------------------------------------------------------------------------------------


def test_a_line_is_handed_on_when_it_is_whole() -> None:
    stream = WorkerStream(OUT)
    assert blocks(stream, b"one\ntw", b"o", b"\nthree\n") == [b"one\n", b"two\nthree\n"]
    assert stream.end() == []


def test_a_line_without_end_comes_at_the_end() -> None:
    stream = WorkerStream(OUT)
    assert blocks(stream, b"half") == []
    assert [row[3] for row in stream.end()] == [b"half\n"]
    assert stream.end() == []


def test_a_line_that_never_ends_is_cut() -> None:
    stream = WorkerStream(OUT)
    found = blocks(stream, *[b"x" * 50_000] * 20)
    assert len(found) > 1 and all(block.endswith(b"\n") for block in found)
    assert sum(block.count(b"x") for block in found + [row[3] for row in stream.end()]) == 1_000_000


def test_what_was_drawn_over_is_not_kept() -> None:
    stream = WorkerStream(ERR)
    assert blocks(stream, *[b"\r%6d" % i + b"#" * 90 for i in range(20_000)]) == []
    assert stream.end()[0][3].endswith(b"\r 19999" + b"#" * 90 + b"\n")


def test_marks_give_names_and_bars_and_are_taken_out() -> None:
    stream = WorkerStream(OUT)
    rows, plain = stream.feed(mark("name", "f") + b"a\n" + mark("bar", "{}") + mark("name", "g") + b"b\n")
    assert [row[1:] for row in rows] == [("f", OUT, b"a\n"), ("f", BAR, b"{}"), ("g", OUT, b"b\n")]
    assert plain == b"a\nb\n"


def test_a_line_that_one_task_left_open_is_not_another_ones() -> None:
    stream = WorkerStream(OUT)
    rows, plain = stream.feed(mark("name", "f") + b"a" + mark("name", "f") + b"b" + mark("name", "g") + b"c\n")
    assert [row[1:] for row in rows] == [("f", OUT, b"ab\n"), ("g", OUT, b"c\n")]
    assert plain == b"abc\n"


@given(st.data())
def test_marks_may_be_cut_anywhere(data: Any) -> None:
    whole = b"".join(mark("name", name) + text for name, text in (("f", b"a\n"), ("g", b"\0b\n"), ("h", b"c")))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    stream = WorkerStream(OUT)
    rows, plain = [], b""
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found, text = stream.feed(whole[start:end])
        rows += found
        plain += text
    assert [row[1:] for row in rows + stream.end()] == [("f", OUT, b"a\n"), ("g", OUT, b"\0b\n"), ("h", OUT, b"c\n")]
    assert plain == b"a\n\0b\nc"


def test_a_mark_is_no_place_to_smuggle_another() -> None:
    stream = WorkerStream(OUT)
    rows, _ = stream.feed(mark("name", "x\0zray:bar:{}\0\ny") + b"a\n")
    assert [row[2] for row in rows] == [OUT]


# -- the desk -----------------------------------------------------------------------------------------------------------


def test_the_control_is_asked_once_and_nothing_is_lost_meanwhile() -> None:
    desk = Desk()
    desk.hear(b"one\n")
    desk.hear(b"two\n", worker_id=TWO)
    assert desk.sent() == [(CONTROL, FindDriver(JOB))]
    desk.found()
    assert desk.rows() == [(1, "", OUT, b"one\n"), (2, "", OUT, b"two\n")]


def test_a_worker_without_a_job_writes_for_its_file_alone() -> None:
    desk = Desk()
    desk.workers[ONE].job_id = None
    assert desk.hear(b"early\n") == b"early\n"
    assert desk.out == []


def test_a_driver_that_wants_nothing_is_sent_nothing() -> None:
    desk = Desk()
    desk.hear(b"one\n")
    desk.found(wants=False)
    assert desk.hear(b"two\n") == b"two\n"
    assert [message for peer, message in desk.sent() if peer == DRIVER] == []


def test_a_quiet_worker_is_heard_at_once_and_a_busy_one_a_few_times_a_second() -> None:
    desk = Desk()
    desk.hear(b"a\n")
    desk.found()
    desk.sent()
    desk.tick()
    desk.hear(b"b\n", now=2.0)
    assert desk.rows() == [(1, "", OUT, b"b\n")]
    for _ in range(10):
        desk.hear(b"c\n", now=2.0)
    assert desk.sent() == []
    desk.tick(2.05)
    assert len(desk.rows()) == 10


def test_errors_go_first() -> None:
    desk = Desk()
    desk.hear(b"word\n" * 1000)
    desk.hear(b"error\n", ERR)
    desk.found()
    assert [row[2] for row in desk.rows()] == [ERR, OUT]


def test_so_much_is_sent_at_a_time_and_what_finds_no_room_is_counted() -> None:
    desk = Desk(output_bytes_per_s=20_000, output_backlog_bytes_max=5000)
    desk.hear(b"a\n")
    desk.found()
    desk.sent()
    for _ in range(20):
        desk.hear(b"12345678\n" * 100)
    desk.hear(b"error\n", ERR)
    desk.tick()
    [(_, first)] = desk.sent()
    assert first.dropped == 1500 and first.rows[0][2] == ERR and len(first.rows) <= 3
    desk.tick()
    [(_, second)] = desk.sent()
    assert second.dropped == 0 and second.rows


def test_a_driver_that_leaves_gets_all_there_is_before_the_answer() -> None:
    desk = Desk(output_bytes_per_s=20)
    desk.hear(b"a\n" * 100)
    desk.hear(b"rest", worker_id=TWO)
    desk.found()
    desk.hear(b"b\n" * 100)
    desk.out.clear()
    desk.desk.on_flush_output(0.0, DRIVER, 7, JOB)
    [(verb, workers, *asked)] = desk.out
    assert verb == e.DRAIN and sorted(workers) == [ONE, TWO]
    desk.out.clear()
    desk.hear(b"c\n")  # by the body
    desk.desk.drained(0.0, workers, *asked)
    *outputs, (peer, answer) = desk.sent()
    assert (peer, answer) == (DRIVER, Reply(7, True, None))
    assert [row[3] for _, output in outputs for row in output.rows][-2:] == [b"c\n", b"rest\n"]


def test_a_worker_that_ends_takes_its_bars_with_it_and_leaves_its_last_words() -> None:
    desk = Desk()
    desk.hear(mark("bar", "{}"), ERR)
    desk.found()
    desk.hear(b"last words")
    desk.sent()
    desk.desk.ended(0.0, ONE)
    desk.tick()
    assert [row[2:] for row in desk.rows()] == [(BAR, b""), (OUT, b"last words\n")]


@pytest.mark.parametrize("here", [True, False])
def test_a_finished_job_hears_no_more(here: bool) -> None:
    desk = Desk()
    driver = DRIVER if here else driver_id(b"another node's i")
    desk.hear(b"a\n")
    desk.found(driver)
    desk.out.clear()
    desk.desk.job_finished(5.0, JOB)
    timers = [effect[2] for effect in desk.out if effect[0] == e.TIMER]
    assert timers == ([] if here else [(HANG_UP_TIMER, driver)])
    desk.hear(b"b\n")
    desk.tick()
    assert desk.sent() == []


# -- the driver ---------------------------------------------------------------------------------------------------------

WINDOW_S = 1.0


def take(fold: OutputFold, pid: int, text: str, now: float = 0.0, kind: int = OUT, node: str = "") -> list[str]:
    return [line for _, line in fold.take(now, b"agent" + node.encode(), node, [(pid, "f", kind, text.encode())])]


def test_a_line_says_who_wrote_it() -> None:
    fold = OutputFold(WINDOW_S)
    assert take(fold, 7, "a\nb\n") == ["(f pid=7) a\n", "(f pid=7) b\n"]
    assert take(fold, 7, "c\n", node="ab12cd34") == ["(f pid=7, node=ab12cd34) c\n"]


def test_the_same_line_of_several_workers_is_shown_once_and_then_its_number() -> None:
    fold = OutputFold(WINDOW_S)
    shown = [line for pid in range(1, 11) for line in take(fold, pid, "same\n", now=pid / 100)]
    assert shown == ["(f pid=1) same\n"]
    assert fold.due(0.5) == []
    assert fold.due(WINDOW_S + 0.5) == [(OUT, "(f pid=10) same [repeated 9x]\n")]
    assert fold.due(99.0) == [] and fold.next_at() is None
    assert take(fold, 3, "same\n", now=99.0) == ["(f pid=3) same\n"]


def test_only_the_very_same_line_is_folded() -> None:
    fold = OutputFold(WINDOW_S)
    assert len([line for pid in range(10) for line in take(fold, pid, f"step {pid}\n")]) == 10
    assert take(fold, 20, "x\n", kind=OUT) and take(fold, 21, "x\n", kind=ERR)


def test_one_worker_may_repeat_itself() -> None:
    assert len(take(OutputFold(WINDOW_S), 1, "again\n" * 5)) == 5


def test_of_a_line_that_was_drawn_over_the_last_part_is_shown() -> None:
    assert take(OutputFold(WINDOW_S), 1, "\r 10%\r 50%\r100%\n\r 9%\r\n") == ["(f pid=1) 100%\n", "(f pid=1)  9%\n"]


def test_bytes_that_are_no_text_are_shown_as_numbers() -> None:
    rows = [(1, "", OUT, b"\xff\xc3\xa4\n")]
    assert OutputFold(WINDOW_S).take(0.0, b"", "", rows) == [(OUT, "(pid=1) \\xff\u00e4\n")]
