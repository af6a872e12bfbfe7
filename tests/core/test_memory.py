"""When memory is short the newest task that can run again goes first, and as many as it takes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from zray.core.memory import Candidate, choose_victims, report
from zray.io import memory


def candidate(name: str, rss: int, granted: int, *, retriable: bool = True) -> Candidate:
    return Candidate(name.encode(), rss, granted, retriable=retriable)


def test_the_newest_task_that_can_run_again_goes_first() -> None:
    old, new, precious = candidate("old", 9, 1), candidate("new", 5, 2), candidate("precious", 50, 3, retriable=False)
    assert choose_victims(1, [old, new, precious]) == [new]
    assert choose_victims(6, [old, new, precious]) == [new, old]
    assert choose_victims(15, [old, new, precious]) == [new, old, precious], "what must not be retried goes last"


def test_nobody_is_ended_while_there_is_room() -> None:
    assert choose_victims(0, [candidate("a", 9, 1)]) == []


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=8))
def test_no_victim_is_one_too_many(excess: int, workers: list[tuple[int, bool]]) -> None:
    candidates = [candidate(str(i), rss, i, retriable=again) for i, (rss, again) in enumerate(workers)]
    victims = choose_victims(excess, candidates)
    assert sum(v.rss_bytes for v in victims[:-1]) < excess
    assert sum(v.rss_bytes for v in victims) >= excess or len(victims) == len(candidates)


def test_the_report_names_the_largest() -> None:
    text = report(2 << 30, 3 << 30, [candidate("a", 5 << 20, 1), candidate("b", 700 << 20, 2)], {b"a": 11, b"b": 12})
    assert "2048 of 3072 MiB" in text
    assert text.index("pid 12: 700 MiB") < text.index("pid 11: 5 MiB")


def write(folder: Path, **files: str) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


MEMINFO = "MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\n"


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    v2 = write(tmp_path / "v2", memory__max="max\n", memory__current="5\n")
    assert memory.usage(v2, str(tmp_path / "none"), str(tmp_path / "meminfo")) == (600 * 1024, 1000 * 1024)


def test_the_limit_of_a_container_counts_and_cache_that_can_be_dropped_does_not(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    meminfo = str(tmp_path / "meminfo")
    v2 = write(tmp_path / "v2", memory__max="5000", memory__current="4000", memory__stat="anon 1\ninactive_file 1500\n")
    assert memory.usage(v2, str(tmp_path / "none"), meminfo) == (2500, 5000)
    v1 = write(
        tmp_path / "v1",
        memory__limit_in_bytes="6000",
        memory__usage_in_bytes="3000",
        memory__stat="total_inactive_file 500\n",
    )
    assert memory.usage(str(tmp_path / "none"), v1, meminfo) == (2500, 6000)


def test_the_memory_of_a_process_that_is_gone_is_nothing() -> None:
    assert memory.private_bytes(2**22 + 1) == 0
