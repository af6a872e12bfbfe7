"""The short form of ``scripts/chaos``."""

from __future__ import annotations

from .storm import Storm


def test_work_under_faults_is_right_and_nothing_is_left() -> None:
    report = Storm(seed=1, seconds=12.0, period_s=1.0).run()
    assert not report.problems, str(report)
    assert report.faults.total() >= 8 and report.rounds.total() >= 5, str(report)
    assert report.outcomes["exact"] > 0
