"""Samples by engine, metric and round; medians, ratios, verdicts."""

import statistics

from benchmarks.case import CASES, Bound, Metric
from benchmarks.engine import SUBJECT

METRICS = {metric.key: metric for case in CASES for metric in case.metrics}


class Results:
    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self.failures: dict[tuple[str, str], str] = {}  # (engine, case): what went wrong
        self.warnings: list[str] = []
        self._samples: dict[tuple[str, str], dict[int, float]] = {}  # (engine, metric): value by round

    def add(self, engine: str, round_number: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._samples.setdefault((engine, key), {})[round_number] = value

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def samples(self, engine: str, metric: Metric) -> list[float]:
        return list(self._samples.get((engine, metric.key), {}).values())

    def median(self, engine: str, metric: Metric) -> float | None:
        samples = self.samples(engine, metric)
        return statistics.median(samples) if samples else None

    def ratio(self, peer: str, metric: Metric) -> float | None:
        """How many times better zray is: the median of the rounds' ratios, so that a drift of the machine cancels."""
        ours = self._samples.get((SUBJECT, metric.key), {})
        theirs = self._samples.get((peer, metric.key), {})
        ratios = []
        for number in ours.keys() & theirs.keys():
            a, b = ours[number], theirs[number]
            if metric.less_is_better:
                a, b = b, a
            if b > 0:
                ratios.append(a / b)
        return statistics.median(ratios) if ratios else None

    def verdict(self, metric: Metric, bound: Bound) -> bool | None:
        """Whether the requirement is met; None when there is nothing to tell from."""
        if bound.against is not None:
            ratio = self.ratio(bound.against, metric)
            return None if ratio is None else ratio >= bound.limit
        value = self.median(SUBJECT, metric)
        if value is None:
            return None
        return value <= bound.limit if metric.less_is_better else value >= bound.limit
