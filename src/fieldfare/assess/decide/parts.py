"""The parts of a decision's page that show one artefact each: who, data, devices, training, forecast, privacy.

Invariant: a part shows what its artefact has, and is left out where there is none; tables that an artefact may lack are
looked for, never assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from fieldfare.assess.artefact import Artefact
from fieldfare.assess.artefact import words as texts
from fieldfare.assess.decide import charts, fairness, plots, sweeps
from fieldfare.assess.decide.decision import Decided
from fieldfare.assess.decide.sweeps import figure, has, pictures
from fieldfare.assess.decide.words import cell, heading, source, title, words
from fieldfare.fleet.columns import Text
from fieldfare.report import page
from fieldfare.report.page import Section

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
SHOWN = 400
TABLE_5 = ("model", "title", "params", "storage_bytes", "wire_bytes", "wire_up_bytes", "mem_bytes", "mean_s", "std_s",
           "cpu_pct", "per_record_s", "lognormal_sigma", "n_devices")  # fmt: skip
SIMULATED = ("concurrency", "buffer", "staleness", "lr", "server_lr", "trials", "time_to_target_s",
             "device_s_to_target", "metric_final", "metric_central", "metric_loss_share", "worst_group_gap",
             "tasks_started", "tasks_ok", "waste_share", "bytes_down", "bytes_up", "updates_per_s_peak")  # fmt: skip
POINTS = ("point", "concurrency", "buffer", "cohort", "staleness", "lr", "schedule", "decay", "server", "server_lr",
          "server_decay", "trials", "chosen", "stopped_h", "time_to_target_s", "metric_seen", "metric_final",
          "version_s", "tasks_started", "waste_share")  # fmt: skip


def sections(decided: Decided) -> list[Section]:
    """The parts for which there is an artefact at the walk's last try, in the workflow's order."""
    last = decided.walk.path[-1].at
    out: list[Section] = []
    for kind, anchor, called, lead, draw in (
        ("trace", "who", "Who can take part", "Devices that meet the criteria, and when they are there.", _trace),
        ("proxy", "data", "The data they would hold", "Clients of the proxy data and how unlike they are.", _proxy),
        ("features", "features", "Where features live", "What a device must hold or be sent to train.", _features),
        ("bench", "devices", "What a task takes on a device", "As in the paper's table 5.", _bench),
        ("simulation", "training", "Training, over virtual time", "What was simulated on these devices.", _simulation),
        ("forecast", "forecast", "What it takes", "With ranges, and the closed form beside the simulation.", _forecast),
        ("drift", "drift", "Live against the forecast", "A run that went on since, laid beside the forecast.", _drift),
        ("privacy", "privacy", "Privacy and security", "What is known of the mechanism, and who says so.", _privacy),
    ):
        artefact = decided.evidence.of(kind, last)
        if artefact is not None:
            said = f"{_how(artefact)} {lead}" if kind == "bench" else lead
            out.append(Section(anchor, called, said, draw(artefact) + sweeps.from_(artefact)))
        if kind == "trace" and artefact is not None and (body := fairness.body(artefact)):
            out.append(Section("fairness", "Who is left out", fairness.LEAD, body))
        if kind == "simulation":
            out += sweeps.sections(decided.case.models[last.model], artefact, decided.evidence.of("sweep", last))
    return out


def _values(artefact: Artefact, names: Sequence[str] = (), *, skip: Sequence[str] = ()) -> str:
    """Named values of an artefact as a table; those without a number say so."""
    rows: list[list[str]] = []
    for name in names or artefact.values:
        one = artefact.values.get(name)
        if one is None or name in skip:
            continue
        scale, unit = (3600.0, "h") if "device_s" in name else (1.0, one.unit)
        value, low, high = (None if v is None else v / scale for v in (one.value, one.low, one.high))
        rows.append([
            page.cell(title(name), head=True, under=", ".join(filter(None, (name, one.note)))),
            page.cell(words(value, unit), number=True), page.cell(span(low, high, unit), number=True),
            page.cell("not known" if value is None else one.how), f"<td>{source(artefact.sha256)}</td>",
        ])  # fmt: skip
    head = [("number", False), ("value", True), ("range", True), ("how", False), ("from", False)]
    return page.table(head, rows, caption=artefact.kind)


def table_of(artefact: Artefact, name: str, columns: Sequence[str] = (), most: int = 40) -> str:
    """Rows of a table of an artefact, the first `most`."""
    found = artefact.table(name)
    chosen = [one for one in (columns or found) if one in found] or list(found)
    listed = {one: texts(v) if isinstance(v, Text) else v.tolist() for one in chosen for v in (found[one],)}
    rows = [
        [page.cell(cell(one, listed[one][i]), number=not isinstance(found[one], Text)) for one in chosen]
        for i in range(min(most, len(listed[chosen[0]])))
    ]
    return page.table([(heading(one), not isinstance(found[one], Text)) for one in chosen], rows, caption=name)


def span(low: float | None, high: float | None, unit: str) -> str:
    """A range in words; nothing where there is none, or it has no width."""
    if low is None or high is None or low == high or not (np.isfinite(low) and np.isfinite(high)):
        return ""
    return f"{words(low, unit)} to {words(high, unit)}"


def _trace(one: Artefact) -> str:
    figures: list[str] = []
    if has(one, "weekly"):
        weekly = one.table("weekly")
        t, there = np.asarray(weekly["t_s"], np.float64), np.asarray(weekly["available"], np.float64)
        keep = np.linspace(0, len(t) - 1, min(SHOWN, len(t))).astype(int)
        drawn = charts.curve(
            t[keep] / 86_400, there[keep], label="devices available over a week", x_label="day", y_label="devices",
            x_words=lambda v: DAYS[int(v) % 7], x_ticks=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], y_words="{:,.4g}".format,
        )  # fmt: skip
        figures.append(figure("Devices available over a week", "The forecast's peak is its highest.", drawn))
    if has(one, "heat"):
        table = one.table("heat")
        grid = np.zeros((7, 24))
        grid[np.asarray(table["weekday"], np.int64), np.asarray(table["hour"], np.int64)] = table["share"]  # type: ignore[call-overload]
        hours = [str(h) if h % 6 == 0 else "" for h in range(24)]
        figures.append(figure("By hour and day", "Dark: many devices.", charts.heat(
            grid, label="devices by hour and weekday", rows=DAYS, columns=hours)))  # fmt: skip
    shown = f"<h3>Criteria</h3>{table_of(one, 'criteria')}" if has(one, "criteria") else ""
    folded = ""
    if has(one, "intersections"):
        folded = page.details("Criteria together", table_of(one, "intersections", most=200))
    return pictures(figures) + shown + folded + page.details("All numbers of the trace", _values(one))


def _proxy(one: Artefact) -> str:
    figures: list[str] = []
    if has(one, "index"):
        n = np.sort(np.asarray(one.table("index")["n"], np.float64))
        keep = np.unique(np.linspace(0, len(n) - 1, min(SHOWN, len(n))).astype(int))
        drawn = charts.curve(
            np.log10(n[keep]), (keep + 1) / len(n), label="cumulative share of clients by records", x_label="records",
            y_label="share of clients", x_words=lambda v: f"{10**v:,.0f}", step=True,
            x_ticks=[float(v) for v in range(8) if np.log10(n[0]) <= v <= np.log10(n[-1])],
        )  # fmt: skip
        figures.append(figure("Records per client", "Share of clients with at most so many; logarithmic.", drawn))
    return pictures(figures) + page.details("All numbers of the proxy", _values(one))


def _features(one: Artefact) -> str:
    columns = ("name", "source", "option", "device_bytes", "task_bytes", "latency_s", "refused")
    told = table_of(one, "features", columns) if has(one, "features") else _values(one)
    told += f"<h3>Vocabularies</h3>{table_of(one, 'vocabulary')}" if has(one, "vocabulary") else ""
    return told + page.details("All numbers of the features", _values(one))


def _bench(one: Artefact) -> str:
    told = table_of(one, "models", TABLE_5) if has(one, "models") else _values(one)
    if has(one, "eligible"):
        told += f"<h3>Which devices may train</h3>{table_of(one, 'eligible', most=30)}"
    errors = [name for name in one.values if "extrapolat" in name or name.endswith(("r2", "_error"))]
    if errors:
        told += f"<h3>Devices that were not measured</h3>{_values(one, errors)}"
    return told + (page.details("All numbers of the bench", _values(one)) if has(one, "models") else "")


def _how(one: Artefact) -> str:
    """How a bench's numbers were come by, in a sentence."""
    ways = sorted({value.how for value in one.values.values() if value.value is not None})
    return f"{', '.join(ways).capitalize()}." if ways else "Nothing is known."


def _simulation(one: Artefact) -> str:
    figures: list[str] = []
    if has(one, "evals") and not has(one, "compared"):  # beside the other mode it is drawn in a part of its own
        metric = str(one.params.get("search", {}).get("metric", "metric"))
        drawn = sweeps.line(one.table("evals"), "t_s", *sweeps.MODES["async" if one.number("mode_async") else "sync"])
        if drawn is not None:
            markup = plots.lines(
                [drawn], label=f"{metric} over virtual time", x_label="virtual hours", y_label=sweeps.better(metric),
                target=one.params.get("search", {}).get("target"),
            )  # fmt: skip
            note = f"Median of {one.number('trials') or 1:.0f} trials, and from the worst to the best of them."
            figures.append(figure("Quality over virtual time", note, markup))
    told = pictures(figures) + _values(one, SIMULATED)
    if has(one, "points"):
        told += f"<h3>The search</h3>{_tried(one)}{table_of(one, 'points', POINTS)}"
    return told + page.details("All numbers of the simulation", _values(one))


def _tried(one: Artefact) -> str:
    """How points were compared, in a sentence."""
    search = one.params.get("search", {})
    n, best = one.manifest["tables"]["points"]["rows"], escape(str(one.params.get("best", "")))
    if n < 2:
        return "<p>One setting was played: nothing was chosen among.</p>"
    on = "seeds of their own, not those told here" if search.get("tune") else "the trials that are told here"
    told = f"{n} settings were compared by their medians over trials, on {on}; {best} was chosen."
    rungs = search.get("rungs_h")
    if rungs:
        told += f" At {' and '.join(f'{h:g}' for h in rungs)} h of virtual time the worse went no further."
    return f"<p>{told}</p>"


APART = 2.0
"""Where a number is over so many times its closed form, or under one so-manieth, the page says so."""


def _forecast(one: Artefact) -> str:
    rows: list[list[str]] = []
    if has(one, "quantities"):
        table = one.table("quantities")
        names, units, hows, formulas = (texts(table[c]) for c in ("name", "unit", "how", "formula"))
        value, low, high, closed = (np.asarray(table[c], np.float64) for c in ("value", "low", "high", "closed"))
        for i, name in enumerate(names):
            value_, closed_ = (page.cell(_words(x[i], units[i]), number=True) for x in (value, closed))
            called = "Staleness" if name == "staleness" else title(name)  # that of tasks, not the limit
            between = page.cell(span(float(low[i]), float(high[i]), units[i]), number=True)
            rows.append(
                [page.cell(called, head=True, under=formulas[i]), value_, between, closed_,
                 page.cell(hows[i], under=_apart(value[i], closed[i])), f"<td>{source(one.sha256)}</td>"]
            )  # fmt: skip
    head = [("quantity", False), ("value", True), ("range", True), ("closed form", True), ("how", False),
            ("from", False)]  # fmt: skip
    told = page.table(head, rows, caption="forecast") if rows else _values(one)
    figures = (
        []
        if not has(one, "sensitivity")
        else [f for q in ("time_to_target_s", "device_h", "cost") if (f := _tornado(one, q))]
    )
    told = pictures(figures) + told
    return told + (page.details("What was assumed", table_of(one, "assumed")) if has(one, "assumed") else "")


def _words(value: float, unit: str) -> str:
    return words(float(value) if np.isfinite(value) else None, unit)


def _apart(value: float, closed: float) -> str:
    """What to say of a number that its closed form does not bear out."""
    if not (np.isfinite(value) and np.isfinite(closed)) or value == closed:
        return ""
    ratio = value / closed if closed else np.inf
    return "" if 1 / APART <= ratio <= APART else f"{ratio:.2g} times its closed form: look why"


def _tornado(one: Artefact, quantity: str) -> str:
    """The eight inputs that move a quantity most."""
    table = one.table("sensitivity")
    mine = np.array([word == quantity for word in texts(table["quantity"])])
    names = [word for word, keep in zip(texts(table["input"]), mine, strict=True) if keep]
    low, high = (np.asarray(table[c], np.float64)[mine] for c in ("at_low", "at_high"))
    told = one.values.get(quantity)
    if told is None or told.value is None or not len(names):
        return ""
    middle, unit = told.value, told.unit
    low, high = (np.where(np.isfinite(end), end, middle) for end in (low, high))  # an end at which nothing is reached
    order = np.argsort(-np.maximum(abs(high - middle), abs(low - middle)), kind="stable")[:8]
    order = order[np.maximum(abs(high - middle), abs(low - middle))[order] > 1e-9 * abs(middle)]
    if not len(order):
        return ""
    markup = charts.tornado([names[i] for i in order], low[order], high[order], middle,
                            label=f"sensitivity of {quantity}", words=lambda v: words(v, unit))  # fmt: skip
    return figure(
        f"What moves it: {title(quantity)[:1].lower()}{title(quantity)[1:]}",
        "Light: an input at its low end; dark: at its high end; all else as it is.",
        markup,
    )


def _drift(one: Artefact) -> str:
    table = one.table("drift")
    names, units = (texts(table[c]) for c in ("quantity", "unit"))
    forecast, low, high, live, inside = (
        np.asarray(table[c], np.float64) for c in ("forecast", "low", "high", "live", "inside")
    )
    told = {1.0: "inside", 0.0: "outside"}
    rows = [
        [page.cell(name, head=True), page.cell(words(float(forecast[i]), units[i]), number=True),
         page.cell(span(float(low[i]), float(high[i]), units[i]), number=True),
         page.cell(words(float(live[i]), units[i]), number=True), page.cell(told.get(float(inside[i]), "no range"))]
        for i, name in enumerate(names)
    ]  # fmt: skip
    head = [("quantity", False), ("forecast", True), ("range", True), ("live", True), ("", False)]
    made, planned = (cell("", one.params.get(name, "?")) for name in ("versions", "planned"))
    said = f"{made} of the {planned} versions forecast were made; the run is {one.params.get('status', 'not told of')}."
    return f"<p>{escape(said)}</p>" + page.table(head, rows, caption="drift")


def _privacy(one: Artefact) -> str:
    mechanism, who = (escape(str(one.params.get(name))) for name in ("mechanism", "source"))
    return f"<p>Mechanism: <b>{mechanism}</b>; says: {who}</p>" + _values(one)
