"""The sections of a study that compares arms when each has spent the same: one table over situations, and what each
arm was good for in every one of them, by metric (of sub-models: by size).

Here: a study's `costs` (`config.json`) as numbers and sections. Not here: drawing (`plots_costs`). Kept: a value is the
last that a run had measured at or before the point, as in claims; a run that did not come so far has none, and its arm
says how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldfare.report import page, plots_costs, units
from fieldfare.report.page import Section
from fieldfare.report.read import Run
from fieldfare.report.table import Table

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
"""Student's t for 95 %, of 1 to 30 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over `n` seeds, of `asked`, and half of its 95 % interval (Student's t; 0 for one seed)."""

    value: float
    half: float
    n: int
    asked: int


def mean_of(values: Sequence[float], asked: int) -> Mean:
    """The mean of what some of `asked` seeds have, nan where none has.

    >>> mean_of([0.90, 0.92, 0.94], 3)
    Mean(value=0.92, half=0.0496868, n=3, asked=3)
    """
    n = len(values)
    if n == 0:
        return Mean(math.nan, 0.0, 0, asked)
    middle = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n - 1) / n) if n > 1 else 0.0
    t = T_95[n - 2] if 2 <= n <= len(T_95) + 1 else 1.96 + 2.4 / max(n - 1, 1)
    return Mean(round(middle, 12), round(t * spread, 7), n, asked)


def value_at(table: Table, metric: str, axis: str, point: float) -> float | None:
    """The last value of `metric` at or before `point` on `axis`; None for a run that ended before it."""
    x, y = table.series(metric, axis)
    before = x <= point
    return float(y[before][-1]) if before.any() and x[-1] >= point else None


@dataclass(frozen=True)
class Situation:
    """What the arms of one situation were good for at one point: `means` `{label: {heading: Mean}}`."""

    title: str
    point: float
    means: Mapping[str, Mapping[str, Mean]]


def situations_of(run: Run, told: Mapping[str, Any]) -> list[Situation]:
    """The situations of one entry of `costs`, without arms that are missing."""
    metrics = {heading: [one] if isinstance(one, str) else list(one) for heading, one in told["metrics"].items()}
    found: list[Situation] = []
    for title, (point, arms) in told["situations"].items():
        means: dict[str, dict[str, Mean]] = {}
        for label, arm in arms.items():
            tables = [one.table for one in run.arms.get(arm, ())]
            if tables:
                means[label] = {
                    heading: _mean(tables, names, str(told["axis"]), float(point)) for heading, names in metrics.items()
                }
        found.append(Situation(str(title), float(point), means))
    return [one for one in found if one.means]


def _mean(tables: Sequence[Table], metrics: Sequence[str], axis: str, point: float) -> Mean:
    name = next((one for one in metrics if any(np.isfinite(table.column(one)).any() for table in tables)), "")
    values = [value_at(table, name, axis, point) for table in tables] if name else []
    return mean_of([value for value in values if value is not None], len(tables) if name else 0)


def cost_sections(run: Run, *, draw: bool) -> list[Section]:
    """Give a section for every entry of a study's `costs`."""
    listed = run.config.get("costs")
    entries = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    found: list[Section] = []
    for rank, told in enumerate(entries):
        situations = situations_of(run, told)
        if situations:
            found.append(_section(situations, told, rank, draw=draw))
    return found


def _section(situations: Sequence[Situation], told: Mapping[str, Any], rank: int, *, draw: bool) -> Section:
    metrics = {heading: one if isinstance(one, str) else one[0] for heading, one in told["metrics"].items()}
    first, metric = next(iter(metrics.items()))
    axis = str(told["axis"])
    reference = told.get("reference")
    body = summary_table(situations, first, metric, axis, str(told["title"]), reference)
    several = len(metrics) > 1
    if draw:
        drawn = [plots_costs.dots(one, metrics, f"costs-{rank}-{at}") for at, one in enumerate(situations)]
        body += page.GAP + page.pictures(drawn)
    if several:
        for one in situations:
            body += page.details(f"{one.title}: a table", metrics_table(one, metrics, reference))
    lead = str(told.get("note") or "") or (
        f"Each arm when it had spent as much: {first} in the table, means over seeds with their 95 % interval below; "
        f"the best{'' if reference is None else f' but {reference}'} of a column is bold."
    )
    return Section(f"costs-{rank}", str(told["title"]), lead, body)


def summary_table(
    situations: Sequence[Situation], heading: str, metric: str, axis: str, caption: str, reference: str | None = None
) -> str:
    """A row per label, a column per situation; the best but `reference` in bold."""
    head = [("method", False), *((f"{one.title} [{units.measured(axis, one.point)}]", True) for one in situations)]
    labels = dict.fromkeys(label for one in situations for label in one.means)
    columns = [{label: told[heading] for label, told in one.means.items()} for one in situations]
    best = [_best(metric, column, reference) for column in columns]
    rows = [
        [page.cell(label, head=True),
         *(_cell(metric, column.get(label), top == label) for column, top in zip(columns, best, strict=True))]
        for label in labels
    ]  # fmt: skip
    return page.table(head, rows, kind="values", caption=caption)


def metrics_table(one: Situation, metrics: Mapping[str, str], reference: str | None = None) -> str:
    """A row per label, a column per metric; the best but `reference` in bold."""
    head = [("method", False), *((heading, True) for heading in metrics)]
    best = {
        heading: _best(metric, {label: means[heading] for label, means in one.means.items()}, reference)
        for heading, metric in metrics.items()
    }
    rows = [
        [page.cell(label, head=True), *(_cell(name, means[h], best[h] == label) for h, name in metrics.items())]
        for label, means in one.means.items()
    ]
    return page.table(head, rows, kind="values", caption=one.title)


def _best(metric: str, column: Mapping[str, Mean], reference: str | None) -> str | None:
    """The label of the best value of a column, of those that are compared; None where there are no two."""
    rivals = {label: mean.value for label, mean in column.items() if mean.n and label != reference}
    pick = min if units.lower_is_better(metric) else max
    return pick(rivals, key=lambda label: rivals[label]) if len(rivals) > 1 else None


def _cell(metric: str, mean: Mean | None, is_best: bool) -> str:
    if mean is None or not mean.n:
        why = "" if mean is None or not mean.asked else "did not come so far"
        return page.cell(units.DASH, number=True, under=why)
    low, high = mean.value - mean.half, mean.value + mean.half
    if units.unit_of(metric) == "share":
        low, high = max(low, 0.0), min(high, 1.0)
    under = units.span(metric, low, high) if mean.n > 1 else ""
    if mean.n < mean.asked:
        under += f"; {mean.n} of {mean.asked} seeds"
    kind = "best" if is_best else ""
    return page.cell(units.measured(metric, mean.value), kind=kind, number=True, under=under.lstrip("; "))
