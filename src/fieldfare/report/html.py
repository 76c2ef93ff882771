"""From a run folder to one self-contained page that people read.

Here: `write_report` for a run or a study, `write_comparison` for several runs, and the sections of a single run. Not
here: reading (`read`), drawing (`plots*`), markup (`page`). Kept: the page is written whole or not at all, shows
stored numbers only, and is written without matplotlib too, with tables in place of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare import __version__
from fieldfare.core.errors import UsageError
from fieldfare.report import arms as side_by_side
from fieldfare.report import page, plots, plots_clients, plots_data, plots_time, settings, style, units
from fieldfare.report.arms import Arm
from fieldfare.report.arms_work import read_arms, task_sections, tasks_section
from fieldfare.report.claims import compute_claims
from fieldfare.report.costs import cost_sections
from fieldfare.report.handovers import handover_sections
from fieldfare.report.node_sections import node_sections
from fieldfare.report.page import Section, Tile
from fieldfare.report.read import Participation, Run, read_participation, read_run
from fieldfare.report.read_tasks import Work, work_of_run
from fieldfare.report.speedups import speedup_sections
from fieldfare.report.sweep import is_sweep, write_sweep_report
from fieldfare.report.table import Table, is_number, metrics_of
from fieldfare.report.work_sections import participation_body, participation_tiles, waste_section, work_section
from fieldfare.store.files import write_atomic

NO_PLOTS = "Pictures are left out: matplotlib is not installed. Get them with: pip install 'fieldfare[report]'"
ROUNDS_SHOWN = 60


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run, or of a study with its arms, and give its path.

    ``out`` defaults to ``report.html`` in the run folder. Claims are recomputed from the stored tables. Cost: a few
    seconds and one pass over ``clients.jsonl``. Raises `UsageError` for a folder that is no run or cannot be read.
    """
    if is_sweep(run_dir):
        return write_sweep_report(run_dir, out)
    run = read_run(run_dir)
    path = Path(out) if out is not None else run.path / "report.html"
    with _drawing() as draw:
        text = _study_page(run, draw=draw) if run.arms else _run_page(run, draw=draw)
    return _write(path, text)


def write_comparison(run_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one page that lays several runs over each other, and give its path.

    Runs that differ in nothing but the seed become one arm with a band; the arms of a study are taken apart. Raises
    `UsageError` for no runs, the same one twice, or for a folder that is no run.
    """
    folders = [Path(one).resolve() for one in run_dirs]
    if not folders:
        raise UsageError("write_comparison got no run folders: name at least one, better two.")
    if twice := [folder.name for folder in folders if folders.count(folder) > 1]:
        raise UsageError(f"{twice[0]} is named twice: a run says nothing beside itself, name different ones.")
    runs = [read_run(one) for one in folders]
    arms = side_by_side.arms_of(runs)
    with _drawing() as draw:
        text = page.document(
            title=" vs. ".join(arm.name for arm in arms) if len(arms) <= 3 else f"{len(arms)} runs compared",
            eyebrow="Comparison of runs",
            subtitle=f"{len(runs)} run folder{'s' if len(runs) > 1 else ''}, aligned",
            tiles=side_by_side.headline(arms, "run"),
            sections=_arm_sections(arms, draw=draw, word="run"),
            notes=[note for run in runs for note in _notes(run, named=True)] + ([] if draw else [NO_PLOTS]),
            footer=f"Written by fieldfare {__version__} from {', '.join(side_by_side.names_of(folders))}.",
        )
    return _write(Path(out), text)


class _drawing(AbstractContextManager[bool]):
    """Gives whether pictures can be drawn, and opens `style.drawing` when they can."""

    def __enter__(self) -> bool:
        try:
            able = find_spec("matplotlib") is not None
        except (ValueError, ImportError):
            able = False
        self._inner: AbstractContextManager[None] = style.drawing() if able else nullcontext()
        self._inner.__enter__()
        return able

    def __exit__(self, *told: Any) -> None:
        self._inner.__exit__(*told)


def _write(path: Path, text: str) -> Path:
    if not path.parent.is_dir():
        raise UsageError(f"the report cannot be written to {path}: there is no folder {path.parent}; make it first.")
    write_atomic(path, [text.encode("utf-8")])
    return path


def _run_page(run: Run, *, draw: bool) -> str:
    part, work = read_participation(run.path), work_of_run(run)
    sections = [
        _claims(_claims_of(run)),
        _learning(run, draw=draw),
        *node_sections(run, draw=draw),
        _clients(run, draw=draw),
        _data(run, draw=draw),
        work_section(work, draw=draw),
        _participation(run, part, work, draw=draw),
        waste_section(work, draw=draw),
        _cost(run, part, draw=draw),
        _configuration(run),
        _rounds(run, opened=not draw),
    ]
    about = [str(run.summary.get("algorithm") or "")]
    if run.data is not None:
        about += [run.data.name, f"{run.data.n_clients:,} clients" if run.data.n_clients else ""]
    else:
        about += [str(run.job["data"]) if isinstance(run.job.get("data"), str) else ""]
    return page.document(
        title=_title(run),
        eyebrow=_eyebrow("Federated run", run),
        subtitle=" · ".join(word for word in about if word),
        tiles=_headline(run),
        sections=[one for one in sections if one is not None],
        notes=_notes(run) + ([work.note] if work is not None and work.note else []) + ([] if draw else [NO_PLOTS]),
        footer=_foot(run),
    )


def _study_page(run: Run, *, draw: bool) -> str:
    arms = [Arm(name, seeds) for name, seeds in run.arms.items()]
    told = _claims_of(run)
    tiles = side_by_side.headline(arms)
    if told:
        held = sum(bool(claim.get("holds")) for claim in told)
        early = sum(bool(claim.get("preliminary")) for claim in told)
        under = f"{early} preliminary, from too few seeds" if early else "recomputed from the tables"
        tiles.insert(1, Tile("Claims that hold", f"{held} of {len(told)}", under))
    compared = [*cost_sections(run, draw=draw), *handover_sections(run, draw=draw), *speedup_sections(run, draw=draw)]
    sections = [_claims(told), *(compared or _arm_sections(arms, draw=draw, shown=run.config.get("shown")))]
    full = _shown(run, draw=draw)
    if not compared:
        sections[-1:-1] = full
    else:
        sections += [*full, _all_arms(arms), *filter(None, [_configuration(arms[0].runs[0])])]
    first = next((one for arm in arms for one in arm.runs if one.data is not None), None)
    if first is not None and (data := _data(first, draw=draw)) is not None:
        sections.insert(len(sections) - 1, data)
    if len(arms) == 1 and arms[0].runs and not compared:
        sections[-1:-1] = _headline_arm(arms[0], draw=draw)
    notes = [note for arm in arms for one in arm.runs for note in _notes(one, named=True)]
    few = ", ".join(arm.name for arm in arms) if len(arms) <= 8 else f"{len(arms)} arms"
    about = [f"a study of {few}"]
    if first is not None and first.data is not None:
        about += [first.data.name, f"{first.data.n_clients:,} clients" if first.data.n_clients else ""]
    return page.document(
        title=_title(run),
        eyebrow=_eyebrow("Study", run),
        subtitle=" · ".join(word for word in about if word),
        tiles=tiles,
        sections=[one for one in sections if one is not None],
        notes=notes[:8] + ([] if draw else [NO_PLOTS]),
        footer=_foot(run),
    )


def _shown(run: Run, *, draw: bool) -> list[Section]:
    """The devices and rings of the runs that a study wants told in full."""
    told = run.config.get("shown")
    found: list[Section] = []
    for rank, (heading, which) in enumerate(told.items() if isinstance(told, Mapping) else ()):
        arm, _, seed = str(which).partition("/")
        runs = [one for one in run.arms.get(arm, ()) if not seed or one.path.name == seed]
        for one in runs[:1]:
            more = node_sections(one, draw=draw, more=f"-{rank}")
            found += [replace(section, title=f"{section.title}: {heading}") for section in more]
    return found


def _all_arms(arms: Sequence[Arm]) -> Section:
    body = page.details(f"All {len(arms)} arms", side_by_side.values_table(arms) + side_by_side.totals_table(arms))
    return Section("arms", "Arms", "Where every arm ended, and what it came to in all: medians over seeds.", body)


def _headline_arm(arm: Arm, *, draw: bool) -> list[Section]:
    """Who worked, took part and was lost, and what was moved, in a study's only arm."""
    run = arm.runs[0]
    part, work = read_participation(run.path), work_of_run(run)
    found = (
        work_section(work, draw=draw),
        _participation(run, part, work, draw=draw),
        waste_section(work, draw=draw),
        _cost(run, part, draw=draw),
    )
    return [replace(one, title=f"{one.title}: {arm.name}") for one in found if one is not None]


def _arm_sections(arms: Sequence[Arm], *, draw: bool, word: str = "arm", shown: Any = None) -> list[Section]:
    works = read_arms(arms, shown if isinstance(shown, Mapping) else None)
    sections = [
        side_by_side.comparison_section(arms, draw=draw, word=word),
        side_by_side.served_section(arms, draw=draw, word=word),
        tasks_section(arms, works, word),
        *(task_sections(works, draw=draw, word=word) if len(arms) > 1 else ()),
        side_by_side.differences_section(arms, arms[0].runs[0].job, word),
    ]
    return [one for one in sections if one is not None]


def _title(run: Run) -> str:
    return str(run.summary.get("name") or run.name)


def _eyebrow(kind: str, run: Run) -> str:
    return kind if run.name == _title(run) else f"{kind} · {run.name}"


def _foot(run: Run) -> str:
    by = run.config.get("fieldfare") or run.summary.get("fieldfare")
    ran = f"The run was made by fieldfare {by}. " if by and by != __version__ else ""
    return f"{ran}Report written by fieldfare {__version__} from the files of {run.path.resolve().name}; nothing else."


def _notes(run: Run, *, named: bool = False) -> list[str]:
    """Say what a reader must know first: a run that did not end, values that are not finite, a half-read file."""
    who = f"{run.path.name}: " if named else ""
    notes = []
    if not run.summary:
        notes.append(f"{who}this run has not ended: the report shows the {run.table.n} rounds written so far.")
    if run.table.n and not np.nansum(run.table.column("clients")) and run.table.missing:
        why = ", ".join(f"{reason} {units.number(float(n.sum()))}" for reason, n in run.table.missing.items())
        notes.append(f"{who}no update of any client counted ({why}): the model is the one the run began with.")
    for metric in metrics_of(run.table):
        broken = np.isinf(run.table.column(metric))
        if broken.any():
            since = units.number(float(run.table.column("round")[int(np.argmax(broken))]))
            notes.append(f"{who}{units.label(metric)} was not a finite number from round {since} on; not drawn there.")
    plan = run.summary.get("plan") if isinstance(run.summary, Mapping) else None
    if isinstance(plan, Mapping) and plan.get("outside"):
        count, why = int(plan["outside"]), " ".join(str(line) for line in plan.get("why") or ())
        left = "1 device was" if count == 1 else f"{count} devices were"
        notes.append(f"{who}{left} left out of training at the start. {why}")
    return notes


def _headline(run: Run) -> list[Tile]:
    summary, table, final = run.summary, run.table, run.final()
    tiles: list[Tile] = []
    for metric in ("accuracy", "loss", "train_loss"):
        if metric not in final:
            continue
        name = "Final " + {"accuracy": "accuracy", "loss": "loss", "train_loss": "train loss"}[metric]
        x, y = table.series(metric)
        under = "central test" if metric != "train_loss" else "weighted over clients"
        if y.size > 1:
            at = int(np.argmin(y) if units.lower_is_better(metric) else np.argmax(y))
            under = f"best {units.measured(metric, y[at])}, round {units.number(x[at])}"
        tiles.append(Tile(name, units.measured(metric, final[metric]), under))
        break
    if (worst := final.get("federated_accuracy_worst_decile")) is not None:
        tiles.append(Tile("Worst decile", units.share(worst), "mean of its clients, shared model"))
    rounds = summary.get("rounds", table.n)
    stopped = summary.get("stopped")
    counted = table.column("clients")
    under = f"{units.number(float(np.nanmean(counted)), 3)} clients each" if np.isfinite(counted).any() else ""
    told = units.number(rounds) if is_number(rounds) else units.DASH
    tiles.append(
        Tile(
            "Rounds",
            told,
            f"stopped: {stopped}" if isinstance(stopped, str) and stopped not in ("", "rounds") else under,
        )
    )

    tiles.append(Tile("Virtual time", units.duration(table.total("virtual_s")), "on the simulated fleet's clock"))
    down, up = table.total("bytes_down"), table.total("bytes_up")
    between = table.total("bytes_between")
    if between is not None:
        sides = f", {units.size(down)} down, {units.size(up)} up" if (down or 0.0) + (up or 0.0) > 0 else ""
        tiles.append(Tile("Bytes moved", units.size(table.total("bytes") or between), f"between nodes{sides}"))
    elif down is not None or up is not None:
        under = f"{units.size(down)} down, {units.size(up)} up"
        tiles.append(Tile("Bytes moved", units.size((down or 0.0) + (up or 0.0)), under))
    speed, wall = summary.get("clients_per_s"), summary.get("wall_s")
    under = f"computed in {units.duration(wall)}" if is_number(wall) else ""
    tiles.append(Tile("Clients per second", units.number(speed, 3) if is_number(speed) else units.DASH, under))
    seed = summary.get("seed", run.job.get("seed"))
    tiles.append(Tile("Seed", str(seed) if seed is not None else units.DASH, "same seed, same run"))
    return tiles


def _claims_of(run: Run) -> list[Mapping[str, Any]]:
    """Recompute the claims that the run makes, those gone from its file included."""
    return list(compute_claims(run.path))


def _claims(claims: Sequence[Mapping[str, Any]]) -> Section | None:
    if not claims:
        return None
    rows = []
    for claim in claims:
        unit = str(claim.get("unit") or "")

        def write(key: str, claim: Mapping[str, Any] = claim, unit: str = unit) -> str:
            value = claim.get(key)
            return units.in_unit(unit, float(value)) if is_number(value) else units.DASH

        holds = claim.get("holds") is True
        sense = {">=": "≥ ", "<=": "≤ "}.get(str(claim.get("sense")), "")
        spare = f" ± {units.number(claim['tolerance'])}" if claim.get("tolerance") is not None else ""
        why = str(claim.get("why") or "")
        early = " so far" if claim.get("preliminary") else ""
        told = f"✓ holds{early}" if holds else f"✗ does not hold{early}"
        verdict = page.cell(told, kind="yes" if holds else "no", under=why)
        rows.append(
            [
                page.cell(str(claim.get("name", "")), head=True, under=str(claim.get("measure") or "")),
                verdict,
                page.cell(write("ours"), number=True),
                page.cell(sense + write("target") + spare, number=True),
                page.cell(write("published"), number=True),
            ]
        )
    head = [("claim", False), ("verdict", False), ("ours", True), ("target", True), ("published", True)]
    lead = "Each claim against its target, next to the published value. A claim without its inputs does not hold."
    return Section("claims", "Claims", lead, page.table(head, rows, kind="claims", caption="Claims"))


def _learning(run: Run, *, draw: bool) -> Section | None:
    if not draw or not run.table.n:
        return None
    table = run.table
    both = (("Accuracy", plots.ACCURACY), ("Loss", plots.LOSS))
    axes = ["round"] if _priced(table) else ["round", "virtual_s"]
    drawn = [plots.learning_curve(table, lines, axis, what=what) for what, lines in both for axis in axes]
    if _priced(table):
        drawn += [plots_time.costs(table, lines, what=what) for what, lines in both]
    drawn += plots.other_metrics(table)
    body = page.pictures(drawn)
    if not body:
        return None
    return Section("learning", "Learning", "What the shared model had learnt by each round and by each hour.", body)


def _priced(table: Table) -> bool:
    """Whether the rounds tell what devices spent, so that the costs of learning stand in one picture."""
    return "device_s" in table.columns


def _clients(run: Run, *, draw: bool) -> Section | None:
    groups = plots_clients.served(run.evaluations)
    if not groups:
        return None
    rows = [
        [page.cell(g.name, head=True), *(page.cell(text, number=True) for text in side_by_side.served_row(g))]
        for g in groups
    ]
    body = page.table([("model", False), *side_by_side.SERVED_HEAD], rows, caption="Accuracy over clients")
    if draw:
        drawn = [
            plots_clients.accuracy_histogram(groups),
            plots_clients.accuracy_sorted(groups),
            plots_clients.personal_gain(run.evaluations),
        ]
        body += page.GAP + page.pictures(drawn)
    at = next((one.round for one in run.evaluations.values() if one.round is not None), None)
    when = f" after round {at}" if at is not None else ""
    lead = f"Who is served well and who is left behind: accuracy on each client's own test data{when}."
    return Section("clients", "Clients", lead, body)


def _data(run: Run, *, draw: bool) -> Section | None:
    data = run.data
    if data is None:
        return None
    tiles = []
    if data.n_clients is not None:
        tiles.append(Tile("Clients", f"{data.n_clients:,}", _effective(data.effective_clients)))
    if data.rows is not None:
        tiles.append(Tile("Examples", f"{data.rows:,}", f"{len(data.classes):,} classes" if data.classes else ""))
    sizes = data.sizes[np.isfinite(data.sizes)] if data.sizes is not None else np.empty(0)
    median = data.sizes_quantiles.get("median", data.sizes_quantiles.get("q50", data.sizes_quantiles.get("0.5")))
    if sizes.size:
        under = f"from {units.number(float(sizes.min()))} to {units.number(float(sizes.max()))}"
        tiles.append(Tile("Median client", units.number(float(np.median(sizes))), f"examples, {under}"))
    elif median is not None:
        ends = [data.sizes_quantiles.get(name) for name in ("min", "max")]
        under = f", from {units.number(ends[0])} to {units.number(ends[1])}" if None not in ends else ""
        tiles.append(Tile("Median client", units.number(median), f"examples{under}"))
    if data.gini is not None:
        tiles.append(Tile("Gini of sizes", units.number(data.gini, 3), "0: all alike, 1: one holds all"))
    if data.label_skew_js is not None:
        tiles.append(Tile("Label skew", f"{units.number(data.label_skew_js, 3)} bit", "Jensen-Shannon, 0: all alike"))
    body = page.tile_row(tiles)
    if draw:
        drawn = [plots_data.label_map(data), plots_data.client_sizes(data), plots_data.size_curve(data)]
        body += page.GAP + page.pictures(drawn)
    return Section(
        "data", "Data", "How the data is spread over clients" + (f": {data.name}." if data.name else "."), body
    )


def _effective(value: float | None) -> str:
    return f"count like {units.number(value, 3)} equal ones" if value is not None else ""


def _participation(run: Run, part: Participation | None, work: Work | None, *, draw: bool) -> Section | None:
    n_clients = run.data.n_clients if run.data is not None else None
    missing = {reason: float(counts.sum()) for reason, counts in run.table.missing.items()}
    counted = float(np.nansum(run.table.column("clients"))) if run.table.n else 0.0
    if part is not None and not counted:
        counted = float(part.answered.sum())
    tiles = []
    if counted:
        tiles.append(Tile("Updates that counted", units.number(counted), _per_round(counted, run.table.n)))
    if part is not None:
        of = f"of {n_clients:,}, {units.share(part.times.size / n_clients)}" if n_clients else "distinct"
        tiles.append(Tile("Clients reached", f"{part.times.size:,}", of))
    for reason, count in sorted(missing.items(), key=lambda item: -item[1])[:4]:
        share = units.share(count / max(counted + sum(missing.values()), 1.0))
        tiles.append(Tile(f"Missing: {reason}", units.number(count), f"{share} of those asked"))
    if work is not None and (told := participation_tiles(work)):
        tiles = [tile for tile in tiles if not tile.name.startswith(("Missing", "Clients reached"))] + told
    if not tiles:
        return None
    body = page.tile_row(tiles)
    if draw:
        drawn = [plots.turnout(run.table, part)]
        if part is not None:
            drawn += [plots.reach(part, n_clients), plots.times_taken_part(part, n_clients)]
        body += page.GAP + page.pictures(drawn)
    body += participation_body(work, draw=draw)
    return Section("participation", "Participation", "Who took part, how often, and who was asked in vain.", body)


def _per_round(count: float, rounds: int) -> str:
    return f"{units.number(count / rounds, 3)} per round" if rounds else ""


def _cost(run: Run, part: Participation | None, *, draw: bool) -> Section | None:
    if not draw:
        return None
    drawn = [plots.bytes_moved(run.table)]
    if part is not None:
        drawn.append(plots.client_time(part))
    if not _priced(run.table):
        drawn.append(plots.learning_curve(run.table, plots.ACCURACY, "bytes", what="Accuracy"))
    body = page.pictures(drawn)
    return Section("cost", "Cost", "What the run moved over the network and asked of clients.", body) if body else None


def _configuration(run: Run) -> Section | None:
    flat = settings.flatten(run.job)
    if not flat:
        return None
    lead = f"Every setting of the job, as it is kept beside the results.{_trained(run)}"
    return Section("configuration", "Configuration", lead, side_by_side.settings_table(flat))


def _trained(run: Run) -> str:
    """A sentence on what computed the local training, and why that."""
    model = run.job.get("model")
    if not isinstance(model, dict) or not model.get("path"):
        return ""
    core = f" ({model['core']})" if model.get("core") else ""
    return f" Local training went by the path “{model['path']}”{core}: {model.get('why') or 'no reason is kept'}."


def _rounds(run: Run, *, opened: bool) -> Section | None:
    table = run.table
    if not table.n:
        return None
    shown = np.unique(np.linspace(0, table.n - 1, min(table.n, ROUNDS_SHOWN)).round().astype(int))
    metrics = [name for name in metrics_of(table) if np.isfinite(table.column(name)).any()]
    names = ["round", "virtual_s", *metrics, "clients", "bytes_down", "bytes_up", "bytes_between"]
    names = [name for name in names if np.isfinite(table.column(name)).any()]

    def write(name: str, value: float) -> str:
        return units.number(value) if name == "round" else units.measured(name, value)

    rows = []
    for index in shown:
        row = [page.cell(write(name, float(table.column(name)[index])), number=True) for name in names]
        lost = [f"{units.number(float(n[index]))} {reason}" for reason, n in table.missing.items() if n[index]]
        rows.append(row + ([page.cell(", ".join(lost) or units.DASH)] if table.missing else []))
    head = [(units.short_label(name), True) for name in names] + ([("missing", False)] if table.missing else [])
    words = f"{len(shown)} of {table.n} rounds" if len(shown) < table.n else f"All {table.n} rounds"
    body = page.details(words, page.table(head, rows, kind="rounds", caption="Rounds"), opened=opened)
    lead = "The numbers behind the pictures; all of them are in rounds.jsonl. Bytes are running totals."
    return Section("rounds", "Rounds", lead, body)
