"""How progress bars look."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.core.bars import describe


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
    ],
)
def test_a_bar_in_words(changed: dict[str, Any], text: str) -> None:
    drawn = describe(state(**changed), len(text))
    assert drawn == text


@given(
    st.integers(0, 1000), st.none() | st.integers(0, 1000), st.floats(0, 1e6), st.integers(1, 200), st.text(max_size=50)
)
def test_a_bar_never_leaves_its_line(n: int, total: int | None, elapsed: float, width: int, desc: str) -> None:
    assert len(describe(state(n=n, total=total, elapsed=elapsed, desc=desc), width)) <= width
