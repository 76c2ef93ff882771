"""The parts of a decision's page that compare settings: rounds beside a buffer, and how devices' tasks end.

Here: from a simulation's tables to pictures and their sentence. Not here: the charts (`plots`), the other parts
(`parts`). Invariants: only what was simulated is drawn, medians with their bands; what nobody simulated is said to be
missing, with the command that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.artefact import Artefact
from fieldfare.assess.artefact import words as texts
from fieldfare.assess.decide import plots
from fieldfare.assess.decide.words import source, words
from fieldfare.core.metrics import lower_is_better
from fieldfare.fleet.columns import Text
from fieldfare.report import page, style
from fieldfare.report.page import Section

F64 = NDArray[np.float64]
MODES = {"async": ("buffer (FedBuff)", plots.BLUE), "sync": ("rounds", plots.VERMILION)}
OUTCOMES: Mapping[str, tuple[str, str]] = {
    "tasks_ok": ("counted", style.LIGHT), "tasks_interrupted": ("interrupted", style.OUTCOMES["interrupted"]),
    "tasks_stale": ("too stale", style.OUTCOMES["stale"]), "tasks_timeout": ("timed out", style.OUTCOMES["timeout"]),
    "tasks_late": ("late", style.OUTCOMES["late"]),
}  # fmt: skip
AXES = ("concurrency", "buffer", "cohort", "staleness", "lr", "decay", "server_lr", "server_decay")
COMPARE = "--set compare=true"
SWEEP = ("--set train=false --set hours=3 --set design=cross --set 'concurrency=[120,60,180,240]' "
         "--set 'buffer=[50,20,40,80,120]' --set 'staleness=[10,1,20,30,40]'")  # fmt: skip
SUPPLY_ENDS = 0.1
"""Tasks an hour that grow by less than this share of what concurrency grows by are bound by supply."""


def sections(model: str, simulation: Artefact | None, sweep: Artefact | None) -> list[Section]:
    """Both parts, of the trained simulation and of the sweep over time alone, as far as they are there."""
    rounds = None if simulation is None else compared(simulation)
    if rounds is None:
        rounds = missing("Synchronous rounds were not simulated.", "simulation", model, COMPARE)
    shown = [one for one in (sweep, simulation) if one is not None]
    found = next((drawn for one in shown if (drawn := outcomes(one))), None)
    if found is None:
        found = missing("No sweep of settings was simulated.", "sweep", model, SWEEP)
    return [
        Section("modes", "Rounds or a buffer", "The same clients, model and seeds, once in synchronous rounds and once "
                "with a buffer: at equal time, and for what it costs devices.", rounds),
        Section("sweeps", "What settings do to devices", "FLINT's figures 7 and 8 on these devices: how long a version "
                "takes, and how tasks end.", found),
    ]  # fmt: skip


def missing(what: str, out: str, model: str, settings: str) -> str:
    """What is not there, and the command that makes it."""
    line = f"fieldfare assess simulate JOB.py --trace trace --bench bench --model {model} {settings} --out {out}"
    return (
        f"<p>{escape(what)} This makes it (in the place of what is there under the same name), to be given to "
        f"<code>decide</code>:</p><p><code>{escape(line)}</code></p>"
    )


def has(artefact: Artefact, name: str) -> bool:
    """Whether an artefact has a table of that name with rows in it."""
    return name in artefact.manifest["tables"] and artefact.manifest["tables"][name]["rows"] > 0


def from_(artefact: Artefact) -> str:
    """Where a part's numbers are from."""
    return f'<p class="lead from">From {escape(artefact.path.name)} {source(artefact.sha256)}</p>'


def figure(title: str, note: str, markup: str) -> str:
    """One picture with its heading and the sentence on how to read it."""
    words_ = f"<figcaption><b>{escape(title)}</b><span>{escape(note)}</span></figcaption>"
    return f'<figure>{words_}<div class="plot">{markup}</div></figure>'


def pictures(figures: Sequence[str]) -> str:
    """Pictures side by side, two where they fit; an odd last one has the width to itself."""
    if len(figures) % 2:
        figures = [*figures[:-1], figures[-1].replace("<figure>", '<figure class="alone">', 1)]
    return f'<div class="pictures">{"".join(figures)}</div><div class="gap"></div>' if figures else ""


# --- rounds beside a buffer


def compared(one: Artefact) -> str | None:
    """Quality at equal time and at equal devices' time in both modes; None where only one was played."""
    if not (has(one, "evals") and has(one, "compared")):
        return None
    mine = "async" if one.number("mode_async") else "sync"
    modes = {mine: "evals", ("sync" if mine == "async" else "async"): "compared"}
    search = one.params.get("search", {})
    metric, target = str(search.get("metric", "metric")), search.get("target")
    told = {mode: one.table(modes[mode]) for mode in MODES}
    hours = [line(told[mode], "t_s", *MODES[mode]) for mode in MODES]
    spent = [line(told[mode], "device_s", *MODES[mode]) for mode in MODES]
    trials = len(np.unique(np.asarray(told[mine]["trial"])))
    band = f"Medians of {trials} trials on the same seeds, and from the worst to the best of them."
    drawn = []
    for series, title, x_label in (
        (hours, "At equal time", "virtual hours"), (spent, "At equal devices' time", "hours of devices' time"),
    ):  # fmt: skip
        found = [s for s in series if s is not None]
        if len(found) == len(MODES):
            drawn.append(figure(title, band, plots.lines(
                found, label=f"{metric} over {x_label}, rounds and buffer", x_label=x_label, y_label=better(metric),
                target=None if target is None else float(target))))  # fmt: skip
    return _said(one) + pictures(drawn) + _both(one, mine, metric) + from_(one)


def line(table: Mapping[str, Any], axis: str, name: str, colour: str, points: int = 80) -> plots.Line | None:
    """Median and band over trials of `value` along `axis`, up to where the shortest trial ends, in hours."""
    x, value = np.asarray(table[axis], np.float64) / 3600, np.asarray(table["value"], np.float64)
    trial = np.asarray(table["trial"], np.int64)
    if not (np.isfinite(x).all() and np.isfinite(value).all()):
        return None
    each = [(x[trial == k], value[trial == k]) for k in np.unique(trial)]
    grid = np.linspace(max(one[0].min() for one in each), min(one[0].max() for one in each), points)
    at = np.stack([np.interp(grid, a, b) for a, b in each])
    return plots.Line(name, colour, grid, np.median(at, axis=0), at.min(axis=0), at.max(axis=0))


def _said(one: Artefact) -> str:
    """The finding in words: how much sooner, for how much more or less of devices' time."""
    ratio = one.values.get("speed_up")
    if ratio is None or ratio.value is None:
        return ""
    mine = "async" if one.number("mode_async") else "sync"
    spent = {mine: one.number("device_s_to_target")}
    other = "sync" if mine == "async" else "async"
    spent[other] = one.number(f"{other}_device_s_to_target")
    sooner, later = ("The buffer", "rounds") if ratio.value >= 1 else ("Synchronous rounds", "the buffer")
    times = ratio.value if ratio.value >= 1 else 1 / ratio.value
    ends = [end if ratio.value >= 1 else 1 / end for end in (ratio.low, ratio.high) if end]
    span = f" ({min(ends):.2g} to {max(ends):.2g} by seed)" if len(ends) == 2 else ""
    told = f"{sooner} reached the target {times:.2g} times as fast as {later}{span}"
    if spent["async"] and spent["sync"]:
        share = spent["async"] / spent["sync"] - 1
        share = share if ratio.value >= 1 else spent["sync"] / spent["async"] - 1
        told += f", for {100 * abs(share):.0f} % {'more' if share >= 0 else 'less'} of devices' time"
    return f"<p><b>{escape(told)}.</b> FLINT found 1.2 to 6 times for its three models.</p>"


def _both(one: Artefact, mine: str, metric: str) -> str:
    """The two modes' numbers side by side."""
    rows: list[list[str]] = []
    for name, title, unit in (
        ("time_to_target_s", "time to target", "s"), ("device_s_to_target", "devices' time to target", "device s"),
        ("metric_final", f"{metric} at the end", "1"), ("horizon_s", "time simulated", "s"),
        ("device_s", "devices' time in all", "device s"), ("waste_share", "share of tasks that did not count", "share"),
    ):  # fmt: skip
        cells = [page.cell(title, head=True)]
        for mode in MODES:
            value = one.values.get(name if mode == mine else f"{mode}_{name}")
            if value is None:
                cells.append(page.cell("not asked", number=True))
                continue
            scale, unit_ = (3600.0, "h") if unit == "device s" else (1.0, unit)
            low, high = value.low, value.high
            span = (
                ""
                if low is None or high is None or low == high
                else (f"{words(low / scale, unit_)} to {words(high / scale, unit_)}")
            )
            told = "not reached in all trials" if value.value is None else words(value.value / scale, unit_)
            cells.append(page.cell(told, number=True, under=span))
        rows.append(cells)
    head = [("median over trials, and range", False), *((name, True) for name, _ in MODES.values())]
    return page.table(head, rows, caption="rounds and buffer")


# --- figures 7 and 8


def outcomes(one: Artefact) -> str:
    """Seconds a version by buffer, outcomes by concurrency and by staleness; "" where nothing was varied."""
    if not has(one, "points"):
        return ""
    table = _played(one.table("points"))
    drawn = [made for made in (_versions(table), _tasks(table, "concurrency"), _tasks(table, "staleness")) if made]
    return pictures(drawn) + from_(one) if drawn else ""


def _played(table: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the points that were played whole: those stopped on the way ended sooner, and cannot be compared."""
    columns = {name: np.array(texts(v)) if isinstance(v, Text) else np.asarray(v) for name, v in table.items()}
    if "stopped_h" not in columns:
        return columns
    kept = ~np.isfinite(columns["stopped_h"].astype(np.float64))
    return {name: values[kept] for name, values in columns.items()}


def varied(table: Mapping[str, Any], axis: str) -> NDArray[np.int64]:
    """Rows that differ in `axis` alone, by its value: of all such sets the largest, of equal ones the first."""
    others = [n for n in (*AXES, "schedule", "server") if n in table and n != axis]
    sets: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(table["point"])):
        sets.setdefault(tuple(str(table[name][i]) for name in others), []).append(i)
    rows = max(sets.values(), key=len, default=[])
    values = np.asarray(table[axis], np.float64)
    return np.array(sorted(rows, key=lambda i: (values[i] < 0, values[i])), np.int64)


def _fixed(table: Mapping[str, Any], row: int, axis: str) -> str:
    """What else is set in the points of a picture."""
    names = {"concurrency": "at work", "buffer": "buffer", "staleness": "staleness limit"}
    found = {n: float(table[n][row]) for n in names if n != axis and n in table and float(table[n][row]) != 0}
    told = {n: "none" if v < 0 else f"{v:g}" for n, v in found.items()}
    return ", ".join(f"{told[n]} {names[n]}" if n == "concurrency" else f"{names[n]} {told[n]}" for n in told)


def _versions(table: Mapping[str, Any]) -> str:
    """FLINT's figure 7."""
    rows = varied(table, "buffer")
    if len(rows) < 2 or not np.isfinite(np.asarray(table["version_s"], np.float64)[rows]).all():
        return ""
    middle = np.asarray(table["version_s"], np.float64)[rows]
    low, high = (np.asarray(table.get(f"version_s_{q}", table["version_s"]), np.float64)[rows] for q in ("p10", "p90"))
    names = [f"{table['buffer'][i]:g}" for i in rows]
    markup = plots.ranges(names, low, middle, high, label="seconds a version by buffer", x_label="buffer, replies",
                          y_label="seconds a version")  # fmt: skip
    note = f"Median and 10 to 90 % of versions; {_fixed(table, int(rows[0]), 'buffer')}."
    return figure("How long a version takes (FLINT's figure 7)", note, markup)


def _tasks(table: Mapping[str, Any], axis: str) -> str:
    """FLINT's figure 8, left and right."""
    rows = varied(table, axis)
    if len(rows) < 2 or "tasks_ok" not in table:
        return ""
    hours = np.asarray(table["horizon_s"], np.float64)[rows] / 3600
    counts = {name: np.asarray(table[name], np.float64)[rows] / hours for name in OUTCOMES if name in table}
    counts = {name: values for name, values in counts.items() if values.any()}
    if not all(np.isfinite(values).all() for values in counts.values()):
        return ""
    total = np.sum(list(counts.values()), axis=0)
    lost = 1 - counts["tasks_ok"] / np.where(total > 0, total, 1)
    values = [float(table[axis][i]) for i in rows]
    names = ["none" if v < 0 else f"{v:g}" for v in values]
    title = {"concurrency": "clients at work", "staleness": "staleness limit, versions"}[axis]
    markup = plots.stacked(
        names, {OUTCOMES[n][0]: v for n, v in counts.items()}, {OUTCOMES[n][0]: OUTCOMES[n][1] for n in counts},
        [f"{100 * one:.1f} %" for one in lost], label=f"tasks by outcome and {axis}", x_label=title,
        y_label="tasks an hour",
    )  # fmt: skip
    note = f"Above each bar, the share that did not count; {_fixed(table, int(rows[0]), axis)}."
    if axis == "concurrency":
        note += _supply(values, total)
    return figure(f"How tasks end, by {axis} (FLINT's figure 8)", note, markup)


def _supply(at_work: Sequence[float], tasks: F64) -> str:
    """From where on more clients at work start hardly more tasks."""
    for (a, b), (few, many) in zip(pairwise(at_work), pairwise(tasks.tolist()), strict=True):
        if few > 0 and many / few - 1 < SUPPLY_ENDS * (b / a - 1):
            return f" Past {a:g} at work the devices there are bind, not concurrency."
    return ""


def better(metric: str) -> str:
    """A metric, and which way it gets better."""
    return f"{metric}, {'lower' if lower_is_better(metric) else 'higher'} is better"
