"""How progress bars look."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.core.bars import columns, describe, scaled


def state(**changed: Any) -> dict[str, Any]:
    plain = {"desc": "", "n": 5, "initial": 0, "total": 10, "unit": "it", "postfix": "", "elapsed": 2.0}
    return {**plain, **changed}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"total": None}, "5it [00:02, 2.5it/s]"),
        ({"total": None, "n": 1, "unit": "B", "desc": "d", "postfix": "loss=1"}, "d: 1B [00:02, 2.00s/B, loss=1]"),
        ({}, " 50%|█████     | 5/10 [00:02<00:02, 2.5it/s]"),
        ({"n": 10, "elapsed": 4000.0}, "100%|███| 10/10 [1:06:40<00:00, 400.00s/it]"),
        ({"n": 0, "elapsed": 0.0}, "  0%|               | 0/10 [00:00<?, 0it/s]"),
        ({"n": 12}, "100%|████████████| 12/10 [00:02<?, 6it/s]"),
        ({"n": 8, "initial": 6, "elapsed": 1.0}, " 80%|████████  | 8/10 [00:01<00:01, 2it/s]"),
        ({"n": 1500, "total": 3e6, "divisor": 1000}, "  0%|     | 1.5k/3M [00:02<1:06:38, 750it/s]"),
        ({"n": 2048, "total": None, "unit": "B", "divisor": 1024}, "2kB [00:02, 1kB/s]"),
        ({"total": None, "desc": "\x1b[31mred\x1b[0m\nor\rnot"}, "red or not: 5it [00:02, 2.5it/s]"),
    ],
)
def test_a_bar_in_words(changed: dict[str, Any], text: str) -> None:
    drawn = describe(state(**changed), len(text))
    assert drawn == text


@given(
    st.integers(0, 1000), st.none() | st.integers(0, 1000), st.floats(0, 1e6), st.integers(1, 200), st.text(max_size=50)
)
def test_a_bar_never_leaves_its_line(n: int, total: int | None, elapsed: float, width: int, desc: str) -> None:
    drawn = describe(state(n=n, total=total, elapsed=elapsed, desc=desc), width)
    assert columns(drawn) <= width and drawn.isprintable()


def test_wide_characters_take_two_columns() -> None:
    assert columns("进度 e\u0301") == 6
    assert describe(state(desc="进度", total=None), 9) == "进度: 5it"


def test_large_numbers_are_short() -> None:
    assert [scaled(value, 1000) for value in (0, 7, 999.4, 999.6, 1_234_567, -2500)] == ["0", "7", "999", "1k", "1.23M", "-2.5k"]
    assert scaled(10**30, 1000).endswith("E") and scaled(1536, 1024) == "1.5k"
