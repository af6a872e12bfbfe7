"""Effects: each verb has a number of its own."""

from __future__ import annotations

from collections import Counter

from zray.core import effects


def test_no_two_verbs_are_the_same() -> None:
    counts = Counter(value for name, value in vars(effects).items() if name.isupper())
    assert len(counts) > 20 and [number for number, count in counts.items() if count > 1] == []
