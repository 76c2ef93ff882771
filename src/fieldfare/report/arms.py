"""Several runs side by side: which belong together, what each reaches, and where they differ.

Here: `Arm`, arms from a study or from loose runs, the numbers of the table of final values, and the markup of both
comparison sections. Not here: drawing (`plots_arms`). Kept: arms keep their order, hence their colours, on a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fieldfare.report import page, plots_arms, settings, units
from fieldfare.report.page import Section, Tile
from fieldfare.report.plots_clients import Served, accuracy_histogram, accuracy_sorted, served
from fieldfare.report.read import Run
from fieldfare.report.style import Picture
from fieldfare.report.table import Table, metrics_of

_FIRST = ("accuracy", "loss", "train_loss", "federated_accuracy_mean", "federated_accuracy_worst_decile",
          "personal_accuracy_mean", "personal_accuracy_worst_decile")  # fmt: skip


HISTOGRAMS_UP_TO = 3
"""Arms whose histograms over clients can be told apart in one picture."""


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: a name and its runs, which differ in nothing but the seed."""

    name: str
    runs: tuple[Run, ...]

    @property
    def tables(self) -> list[Table]:
        return [run.table for run in self.runs]


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Give the arms of loose runs: a study's own arms, and runs that differ in the seed alone as one arm.

    Each is called by what tells it from the others: its name, else with it the settings that differ, else with it
    the end of its folder's name. One that has not ended says so.
    """
    found: list[Arm] = []
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.arms:
            found += [
                Arm(f"{_called(run)}/{name}" if len(runs) > 1 else name, seeds) for name, seeds in run.arms.items()
            ]
        else:
            key = settings.same_but_seed(run.job) if run.job else run.path.as_posix()
            groups.setdefault(key, []).append(run)
    for group in groups.values():
        if len({str(_seed(run)) for run in group}) < len(group):  # the same job twice: shown as it is, one arm each
            found += [Arm(_called(run), (run,)) for run in group]
        else:
            found.append(Arm(_called(group[0]), tuple(group)))
    return [
        arm if all(run.summary for run in arm.runs) else replace(arm, name=f"{arm.name} (incomplete)")
        for arm in _told_apart(_by_settings(found))
    ]


def _called(run: Run) -> str:
    stated = run.job.get("algorithm")
    algorithm = (stated.get("name") or stated.get("is")) if isinstance(stated, Mapping) else stated
    for name in (run.summary.get("name"), run.job.get("name"), run.summary.get("algorithm"), algorithm):
        if isinstance(name, str) and name:
            return name
    return run.name


def _seed(run: Run) -> object:
    return run.summary.get("seed", run.job.get("seed"))


def _by_settings(arms: list[Arm]) -> list[Arm]:
    """Add to equal names the settings, at most two, in which their jobs differ."""
    named: list[Arm] = []
    for arm in arms:
        alike = [other for other in arms if other.name == arm.name]
        differ = settings.differing([{k: v for k, v in one.runs[0].job.items() if k != "name"} for one in alike])
        if any(len(one.runs) > 1 for one in alike):
            differ.pop("seed", None)
        mine = next(rank for rank, one in enumerate(alike) if one is arm)
        everywhere = {name: values[mine] for name, values in differ.items() if settings.ABSENT not in values}
        told = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in everywhere.items()]
        short = [words for words in told if len(words) <= 20][:2]
        named.append(replace(arm, name=f"{arm.name} {', '.join(short)}") if short and len(alike) > 1 else arm)
    return named


def _told_apart(arms: list[Arm]) -> list[Arm]:
    """Make equal names differ, by the end of the folder's name where that helps, else by a number."""
    names: list[str] = []
    for arm in arms:
        alike = [other for other in arms if other.name == arm.name]
        name = arm.name
        if len(alike) > 1:
            tails = {_tail(other) for other in alike}
            above = arm.runs[0].path.resolve().parent.name
            name = f"{name} {_tail(arm)}" if len(tails) == len(alike) else f"{above}/{name}"
        plain, count = name, 2
        while name in names:
            name, count = f"{plain} ({count})", count + 1
        names.append(name)
    return [replace(arm, name=name) for name, arm in zip(names, arms, strict=True)]


def _tail(arm: Arm) -> str:
    path = arm.runs[0].path.resolve()
    for folder in path.parents:  # an arm of a study is told by the study's folder
        if folder.name == "arms":
            path = folder.parent
            break
    return path.name.rsplit("-", 1)[-1]


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name of each run folder: its own, and as much of the path to it as tells it from the others.

    >>> names_of([Path("a/arms/wait/0"), Path("a/arms/go/0"), Path("b")])
    ['wait/0', 'go/0', 'b']
    """
    parts = [folder.resolve().parts for folder in folders]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(one[-n:]) for one, n in zip(parts, depth, strict=True)]
        alike = [names.count(name) > 1 and n < len(one) for name, one, n in zip(names, parts, depth, strict=True)]
        if not any(alike):
            return names
        depth = [n + more for n, more in zip(depth, alike, strict=True)]


def shared_metrics(arms: Sequence[Arm]) -> list[str]:
    """Name the metrics of any arm, the usual ones first."""
    present = dict.fromkeys(name for arm in arms for table in arm.tables for name in metrics_of(table))
    return [name for name in _FIRST if name in present] + [name for name in present if name not in _FIRST]


def common_level(arms: Sequence[Arm], metric: str) -> float | None:
    """Give the best level that every seed of every arm reaches: whole percent for shares, two digits otherwise."""
    lower = units.lower_is_better(metric)
    best = []
    for table in (table for arm in arms for table in arm.tables):
        _, y = table.series(metric)
        if not y.size:
            return None
        best.append(float(y.min() if lower else y.max()))
    if not best:
        return None
    level = max(best) if lower else min(best)
    if units.unit_of(metric) == "share":
        return float(np.floor(100 * level + 1e-9) / 100) if not lower else level
    digits = 1 - int(np.floor(np.log10(abs(level)))) if level else 0
    step = 10.0**-digits
    return float((np.ceil if lower else np.floor)(level / step) * step)


def first_at(table: Table, metric: str, level: float, axis: str) -> float | None:
    """Give where on ``axis`` a run first reaches ``level``; None when it does not or has no such axis."""
    x, y = table.series(metric, axis)
    there = y <= level if units.lower_is_better(metric) else y >= level
    return float(x[np.argmax(there)]) if there.any() else None


def values_table(arms: Sequence[Arm], word: str = "arm") -> str:
    """Give the table of final values: the median over seeds, their range under it, the best of a column in bold."""
    metrics = [name for name in shared_metrics(arms) if not name.startswith("train_") or name == "train_loss"][:8]
    columns = [
        (units.short_label(metric), metric, [_all(table.last(metric) for table in arm.tables) for arm in arms])
        for metric in metrics
    ]
    return told_table(arms, columns, f"Final values of every {word}", word)


def effort_table(arms: Sequence[Arm], word: str = "arm") -> str:
    """Give what it took each arm to the best level that all of them reach; empty when there is none."""
    columns: list[Column] = []
    main = next(iter(shared_metrics(arms)), None)
    level = common_level(arms, main) if main and len(arms) > 1 else None
    if main and level is not None:
        goal = f"to {_level(main, level)} {units.short_label(main)}"
        for axis, words in COSTS:
            found = [_all(first_at(table, main, level, axis) for table in arm.tables) for arm in arms]
            if axis == "round" or any(value > 0 for seeds in found for value in seeds):
                columns.append((f"{words} {goal}", f"to:{axis}", found))
    return told_table(arms, columns, f"What every {word} took", word) if columns else ""


def totals_table(arms: Sequence[Arm], word: str = "arm") -> str:
    """Give what each arm came to in all; empty when nothing is known."""
    columns: list[Column] = []
    for axis, words in TOTALS:
        found = [_all(table.total(axis) for table in arm.tables) for arm in arms]
        if any(value > 0 for seeds in found for value in seeds):
            columns.append((words, axis, found))
    return told_table(arms, columns, f"What every {word} came to in all", word) if columns else ""


def equal_table(arms: Sequence[Arm], word: str = "arm") -> str:
    """Give what the main metric of each arm was when each had spent the same; empty where there is nothing to compare.

    The budget on each axis is what the run that spent least came to: its last round that measured the metric.
    """
    main = next(iter(shared_metrics(arms)), None)
    if main is None or len(arms) < 2:
        return ""
    columns: list[Column] = []
    for axis, _ in COSTS[1:]:
        series = [[table.series(main, axis) for table in arm.tables] for arm in arms]
        ends = [float(x[-1]) if x.size else 0.0 for seeds in series for x, _ in seeds]
        if not ends or min(ends) <= 0:
            continue
        budget = min(ends)
        found = [[float(y[x <= budget][-1]) for x, y in seeds if (x <= budget).any()] for seeds in series]
        columns.append((f"after {units.measured(axis, budget)}{_OF.get(axis, '')}", main, found))
    caption = f"{units.label(main)} of every {word} at equal cost"
    return told_table(arms, columns, caption, word) if columns else ""


COSTS = (("round", "rounds"), ("virtual_s", "time"), ("device_s", "device time"), ("bytes", "bytes"),
         ("energy_j", "energy"))  # fmt: skip
TOTALS = (("round", "rounds"), ("virtual_s", "virtual time"), ("device_s", "device time"), ("bytes_down", "down"),
          ("bytes_up", "up"), ("energy_j", "energy"))  # fmt: skip
_OF = {"virtual_s": " of virtual time", "bytes": " moved"}


def _level(metric: str, level: float) -> str:
    return f"{100 * level:g} %" if units.unit_of(metric) == "share" else units.measured(metric, level)


Column = tuple[str, str, list[list[float]]]


def told_table(arms: Sequence[Arm], columns: Sequence[Column], caption: str, word: str) -> str:
    """Give a row per arm: the median over seeds of each column's values by arm, their range under it."""
    several = any(len(arm.runs) > 1 for arm in arms)
    head = [(word, False), *([("seeds", True)] if several else []), *((words, True) for words, _, _ in columns)]
    middles = [[float(np.median(seeds)) for seeds in found if seeds] for _, _, found in columns]
    rows = []
    for rank, arm in enumerate(arms):
        row = [named(rank, arm.name), *([page.cell(str(len(arm.runs)), number=True)] if several else [])]
        cells = zip(columns, middles, strict=True)
        rows.append(row + [_value_cell(metric, found, middle, rank) for (_, metric, found), middle in cells])
    return page.table(head, rows, kind="values", caption=caption)


def named(rank: int, name: str) -> str:
    """Give the head cell of an arm's row: its name after a piece of its line."""
    return page.cell(name, head=True).replace(">", f">{page.swatch(*plots_arms.look(rank))}", 1)


def _all(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _value_cell(metric: str, found: Sequence[Sequence[float]], middle: Sequence[float], rank: int) -> str:
    """The cell of arm `rank`; `middle`: the medians of all arms that have values."""
    values = found[rank]
    if not values:
        return page.cell(units.DASH, number=True)
    name = metric.removeprefix("to:")
    mine = float(np.median(values))
    ranked = metric.startswith("to:") or any(word in name for word in ("accuracy", "loss"))
    best = min(middle) if metric.startswith("to:") or units.lower_is_better(name) else max(middle)
    kind = "best" if ranked and len(middle) > 1 and mine == best and max(middle) > min(middle) else ""

    plain = name == "round"
    told = units.number(mine) if plain else units.measured(name, mine)
    low, high = min(values), max(values)
    ends = f"{units.number(low)}–{units.number(high)}" if plain else units.span(name, low, high)
    under = ends if high > low else ""
    return page.cell(told, kind=kind, number=True, under=under)


def comparison_section(arms: Sequence[Arm], *, draw: bool, word: str = "arm") -> Section:
    """Give the table of final values and, with ``draw``, the aligned curves of all arms."""
    main = units.short_label(next(iter(shared_metrics(arms)), "value"))
    body = values_table(arms, word)
    for words, table in (
        (f"What it took to the best level that all {word}s reach:", effort_table(arms, word)),
        (f"{main[0].upper() + main[1:]} when all {word}s had spent the same:", equal_table(arms, word)),
        ("What it came to in all:", totals_table(arms, word)),
    ):
        body += f"<p>{page.escape(words)}</p>{table}" if table else ""
    if draw:
        body += page.GAP + page.pictures(comparison_pictures(arms))
    several = any(len(arm.runs) > 1 for arm in arms)
    lead = f"Final values, and what it took to the best level that all {word}s reach; the best of a column is bold."
    if several:
        lead += " Numbers are medians over seeds, the range under them."
    return Section("comparison", "Comparison", lead, body)


def comparison_pictures(arms: Sequence[Arm]) -> list[Picture | None]:
    """Draw the main metric against what it cost and at the end; six others on rounds, loss also on time."""
    tables = {arm.name: arm.tables for arm in arms}
    metrics = [name for name in shared_metrics(arms) if any(t.series(name)[0].size > 1 for a in arms for t in a.tables)]
    if not metrics:
        return []
    main, others = metrics[0], metrics[1:7]
    drawn = [plots_arms.comparison(tables, main, axis) for axis, _ in COSTS]
    drawn.append(plots_arms.final_values(tables, main))
    for metric in others:
        drawn.append(plots_arms.comparison(tables, metric, "round"))
        if metric == "loss":
            drawn.append(plots_arms.comparison(tables, metric, "virtual_s"))
    return drawn


def served_section(arms: Sequence[Arm], *, draw: bool, word: str = "arm") -> Section | None:
    """Give how evenly each arm serves its clients, from the first seed that has an evaluation over clients."""
    body = ""
    order = {arm.name: rank for rank, arm in enumerate(arms)}
    drawn: list[Picture | None] = []
    for kind, words in (("federated", "shared model"), ("personal", "personal models")):
        groups = _groups(arms, kind)
        if not groups:
            continue
        rows = [
            [named(order[g.name], g.name), *(page.cell(text, number=True) for text in served_row(g))] for g in groups
        ]
        body += page.GAP if body else ""
        body += page.table([(f"{word}, {words}", False), *SERVED_HEAD], rows, caption=f"Accuracy over clients, {words}")
        if draw:
            pair = [accuracy_sorted(groups), accuracy_histogram(groups) if len(groups) <= HISTOGRAMS_UP_TO else None]
            drawn += [_renamed(one, kind, words) for one in pair]
    if drawn:
        body += page.GAP + page.pictures(drawn)
    if not body:
        return None
    lead = "How even the accuracy is over clients, each on its own test data and each counted once."
    return Section("clients", "Clients", lead, body)


def _groups(arms: Sequence[Arm], kind: str) -> list[Served]:
    groups = []
    for rank, arm in enumerate(arms):
        colour, dash = plots_arms.look(rank)
        for run in arm.runs:
            if kind in run.evaluations and (one := served({kind: run.evaluations[kind]})):
                groups.append(Served(arm.name, colour, one[0].accuracy, dash))
                break
    return groups


def _renamed(drawn: Picture | None, kind: str, words: str) -> Picture | None:
    if drawn is None:
        return None
    markup = re.sub(r"\bclients-(sorted|histogram)-", rf"clients-\1-{kind}-", drawn.markup)
    return Picture(f"{drawn.title}: {words}", drawn.note, drawn.alt, markup, drawn.wide)


SERVED_HEAD = [(words, True) for words in ("clients", "mean", "worst decile", "median", "worst", "best", "std")]


def served_row(group: Served) -> list[str]:
    """Write the numbers of `SERVED_HEAD` for one group of clients."""
    values = group.accuracy
    told = (group.mean, group.worst_decile, float(np.median(values)), float(values.min()), float(values.max()))
    return [f"{values.size:,}", *(units.share(value) for value in told), units.share(float(values.std()))]


def differences_section(arms: Sequence[Arm], shared: Mapping[str, object], word: str = "arm") -> Section:
    """Give where the configurations differ, and what they share folded away."""
    differ = settings.differing([{k: v for k, v in arm.runs[0].job.items() if k != "name"} for arm in arms])
    if any(len(arm.runs) > 1 for arm in arms):
        differ.pop("seed", None)
    head = [("setting", False), *((arm.name, False) for arm in arms)]
    rows = []
    for name, values in differ.items():
        usual = max(set(values), key=values.count)
        cells = [
            page.cell(value, kind="differs" if values.count(usual) == 1 or value != usual else "") for value in values
        ]
        rows.append([page.cell(name, head=True), *cells])
    body = page.table(head, rows, caption="Settings that differ") if rows else "<p>All settings are alike.</p>"
    same = {k: v for k, v in settings.flatten(shared).items() if k not in differ and k not in ("seed", "name")}
    if same:
        body += page.details(f"The {len(same)} settings that all {word}s share", settings_table(same))
    return Section("configuration", "Configuration", f"Where the {word}s differ; an unusual value is marked.", body)


def settings_table(flat: Mapping[str, object]) -> str:
    """Give flat settings as a table, in groups of their first name, those that stand alone before the groups."""
    groups: dict[str, list[tuple[str, object]]] = {}
    for name, value in flat.items():
        group = re.split(r"[.\[]", name, maxsplit=1)[0]
        rest = name[len(group) :].lstrip(".").replace(".", " ")
        groups.setdefault(group, []).append((rest or name, value))
    rows: list[list[str]] = []
    for group, inside in sorted(groups.items(), key=lambda item: len(item[1]) > 1):
        if len(inside) > 1:
            rows.append([f'<th colspan="2" scope="rowgroup">{page.escape(group)}</th>'])
        rows += [[page.cell(name, head=True), page.cell(settings.shown(value))] for name, value in inside]
    body = page.table([], rows, kind="settings", caption="Configuration")
    return body.replace('<tr><th colspan="2"', '<tr class="group"><th colspan="2"')


def headline(arms: Sequence[Arm], word: str = "arm") -> list[Tile]:
    """Give the tiles of a comparison: how many arms and seeds, the best of them, how long all took to compute."""
    seeds = sorted({len(arm.runs) for arm in arms})
    n_seeds = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"
    tiles = [Tile(f"{word.title()}s", str(len(arms)), f"{n_seeds} seed{'' if seeds == [1] else 's'} each")]
    for metric in shared_metrics(arms)[:1]:
        ends = {arm.name: _all(table.last(metric) for table in arm.tables) for arm in arms}
        ends = {name: seeds for name, seeds in ends.items() if seeds}
        if ends:
            pick = min if units.lower_is_better(metric) else max
            best = pick(ends, key=lambda name: float(np.median(ends[name])))
            value = units.measured(metric, float(np.median(ends[best])))
            tiles.append(Tile(f"Best final {metric.replace('_', ' ')}", value, best))
    runs = [run for arm in arms for run in arm.runs]
    rounds = [run.table.axis("round")[-1] for run in runs if run.table.n]
    if rounds:
        low, high = units.number(float(min(rounds))), units.number(float(max(rounds)))
        tiles.append(Tile("Rounds", high if low == high else f"{low}–{high}", "of each run"))
    wall = [run.summary.get("wall_s") for run in runs]
    told = [float(value) for value in wall if isinstance(value, (int, float))]
    if told:
        tiles.append(Tile("Computed in", units.duration(sum(told)), f"{len(runs)} runs together"))
    return tiles
