"""The table for people and the JSON for programs."""

import os
import platform
import time

from benchmarks.case import Bound, Case, Metric
from benchmarks.engine import CPUS, ENGINES, PEERS, SUBJECT
from benchmarks.results import Results

LEGEND = f"""\
Medians over rounds that alternate between the engines; num_cpus={CPUS}. Every ratio says how many times better zray is than
the peer (more a second, or less of a cost), taken round by round, median of the rounds. "-": the engine has no such thing."""


def render(results: Results, cases: list[Case]) -> str:
    ratio_titles = [f"x {peer}" for peer in PEERS]
    rows = [["", "unit", *ENGINES, *ratio_titles, "required", ""]]
    for case in cases:
        rows += [_row(results, case, metric) for metric in case.metrics]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left_aligned = {0, 1, len(widths) - 1, len(widths) - 2}
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i in left_aligned else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([_heading(results), LEGEND, "", *lines, *_footnotes(results)])


def _row(results: Results, case: Case, metric: Metric) -> list[str]:
    values = [_cell(results, engine, case, metric) for engine in ENGINES]
    ratios = [_ratio(results.ratio(peer, metric)) for peer in PEERS]
    required = ", ".join(_requirement(metric, bound) for bound in metric.required)
    verdicts = [results.verdict(metric, bound) for bound in metric.required]
    verdict = "MISSED" if False in verdicts else "ok" if verdicts and None not in verdicts else ""
    return [metric.title, metric.unit, *values, *ratios, required, verdict]


def _cell(results: Results, engine: str, case: Case, metric: Metric) -> str:
    if engine in results.absent:
        return "absent"
    value = results.median(engine, metric)
    if value is not None:
        return _figure(value)
    return "failed" if (engine, case.name) in results.failures else "-"


def _figure(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _requirement(metric: Metric, bound: Bound) -> str:
    if bound.against is not None:
        return f">= {bound.limit:g}x {bound.against}"
    return f"{'<=' if metric.less_is_better else '>='} {bound.limit:g}"


def _heading(results: Results) -> str:
    engines = ", ".join(
        f"{engine} {results.versions[engine]}" if engine in results.versions else f"{engine} absent"
        for engine in ENGINES
        if engine in results.versions or engine in results.absent
    )
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d %H:%M')}: {engines}"


def _footnotes(results: Results) -> list[str]:
    lines = [f"{engine} is absent: {why}" for engine, why in results.absent.items()]
    lines += [f"{engine} {case}: {why}" for (engine, case), why in results.failures.items()]
    lines += results.warnings
    return ["", *lines] if lines else []


def as_json(results: Results, cases: list[Case]) -> dict:
    metrics = {}
    for case in cases:
        for metric in case.metrics:
            metrics[metric.key] = {
                "case": case.name,
                "title": metric.title,
                "unit": metric.unit,
                "less_is_better": metric.less_is_better,
                "median": {engine: results.median(engine, metric) for engine in ENGINES},
                "samples": {engine: results.samples(engine, metric) for engine in ENGINES},
                "times_better": {peer: results.ratio(peer, metric) for peer in PEERS},
                "required": [
                    {**bound._asdict(), "met": results.verdict(metric, bound)} for bound in metric.required
                ],
            }
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "time": time.time(),
        "subject": SUBJECT,
        "versions": results.versions,
        "absent": results.absent,
        "failures": [{"engine": e, "case": c, "why": why} for (e, c), why in results.failures.items()],
        "warnings": results.warnings,
        "metrics": metrics,
    }
