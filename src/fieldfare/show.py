"""What commands print for people: tables and trees on a terminal. Nothing here computes a result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from fieldfare.core.errors import UsageError
from fieldfare.progress import duration
from fieldfare.report.table import check_whole
from fieldfare.store.runs import RunFolder


def _console() -> Console:
    return Console(highlight=False)


_WAYS = (("down", "down"), ("up", "up"), ("between", "between nodes"))


def show_summary(summary: Mapping[str, Any], path: Path | None) -> None:
    """A finished run in a small table, and where its report is."""
    table = Table(show_header=False, box=None, pad_edge=False)
    algorithm = escape(str(summary["algorithm"]))
    table.add_row("run", f"[bold]{escape(summary['run'] or '-')}[/]  ({algorithm}, seed {summary['seed']})")
    for name, value in summary["final"].items():
        text = number(value)
        table.add_row(escape(name), f"[bold]{text}[/]" if name == "accuracy" else text)
    table.add_row("rounds", f"{summary['rounds']}  ({escape(str(summary['stopped']))})")
    table.add_row("virtual time", duration(summary["virtual_s"]))
    moved = [(summary[f"bytes_{way}"], words) for way, words in _WAYS if f"bytes_{way}" in summary]
    told = [f"{size(count)} {words}" for count, words in moved if count or "bytes_between" not in summary]
    table.add_row("bytes", ", ".join(told) or "none")
    took = summary.get("all_runs", summary)
    runs = f", {took['runs']} runs together" if "runs" in took else ""
    table.add_row("wall time", f"{duration(took['wall_s'])}  ({took['clients_per_s']:,.0f} clients/s{runs})")
    console = _console()
    console.print(table)
    if summary.get("claims"):
        show_claims(summary["claims"])
    if path is not None:
        console.print(f"report: {path / 'report.html'}", soft_wrap=True, markup=False)


def number(value: float | None) -> str:
    """A metric with four decimals; one that is not finite was stored as null.

    >>> number(0.51234), number(None)
    ('0.5123', 'not finite')
    """
    return "not finite" if value is None or value != value else f"{value:.4f}"


def size(count: float) -> str:
    """Bytes as a person says them.

    >>> size(1234), size(2.5e9)
    ('1.2 kB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.1f} TB"


def show_claims(claims: Sequence[Mapping[str, Any]]) -> None:
    """One line per claim: ours, target, published, and whether it holds or why it cannot."""
    if not claims:
        _console().print("this run makes no claims")
        return
    table = Table("claim", "ours", "target", "published", "holds")
    for claim in claims:
        ours = f"missing: {claim.get('why') or 'no value'}" if claim["ours"] is None else f"{claim['ours']:.4g}"
        published = claim.get("published")
        told = "[green]yes[/]" if claim["holds"] else "[red]no[/]"
        table.add_row(
            escape(claim["name"]), ours, _target(claim), "-" if published is None else str(published),
            f"{told} so far" if claim.get("preliminary") else told,
        )  # fmt: skip
    _console().print(table)


def _target(claim: Mapping[str, Any]) -> str:
    if claim.get("target") is None:
        return "-"
    spare = "" if claim.get("tolerance") is None else f" ± {claim['tolerance']}"
    return f"{claim.get('sense') or ''} {claim['target']}{spare}".strip()


def finals_table(finals: Mapping[str, Mapping[str, float]]) -> None:
    """Final metrics of several runs: a number for each run, then a line per metric; never cut, whatever the width."""
    for place, run in enumerate(finals, start=1):
        print(f"{place}: {run}")
    rows = {name: [number(final[name]) if name in final else "-" for final in finals.values()]
            for name in dict.fromkeys(name for final in finals.values() for name in final)}  # fmt: skip
    rows = {"": [str(place) for place in range(1, len(finals) + 1)], **rows}
    first = max(map(len, rows))
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    for name, values in rows.items():
        cells = (value.rjust(width) for value, width in zip(values, widths, strict=True))
        print(f"{name:{first}}  {'  '.join(cells)}")


def catalogue(what: str, entries: Sequence[Any], as_json: bool) -> None:
    """Names, one line each, and the paper."""
    rows = [
        {"name": e.name, "use": f"ff.{getattr(e.factory, '__name__', e.name)}", "summary": e.summary, "paper": e.paper}
        for e in entries
    ]
    if as_json:
        print(json.dumps({what: rows}))
        return
    table = Table()
    for column in ("name", "use", "what it does", "paper"):
        table.add_column(column, no_wrap=column in ("name", "use"))
    for row in rows:
        table.add_row(f"[bold]{row['name']}[/]", row["use"], row["summary"], row["paper"])
    _console().print(table)


def inspect_run(which: str, runs: str | Path) -> dict[str, Any]:
    """Facts of a run folder: status, configuration, how far it came, final metrics, what became of its tasks."""
    from fieldfare.report.read_tasks import facts_of_run

    folder = RunFolder.find(which, runs)
    check_whole(folder.path)
    facts: dict[str, Any] = {"run": folder.id, "status": folder.status, "path": str(folder.path)}
    rows = folder.read_lines("rounds.jsonl")
    facts["rounds_recorded"] = len(rows)
    if rows:
        facts["last_round"] = rows[-1]
    if folder.complete:
        facts["summary"] = folder.read_json("summary.json")
    if (work := facts_of_run(folder.path)) is not None:
        facts["work"] = work
    facts["config"] = folder.read_json("config.json")
    return facts


def inspect_job(path: str, job_name: str | None = None) -> dict[str, Any]:
    """Facts of a job file without running it: model, how it will be computed, data, algorithm."""
    from fieldfare.config import describe_job
    from fieldfare.load import load_job
    from fieldfare.run import assemble
    from fieldfare.study import Study

    loaded = load_job(path, job_name)
    jobs = loaded.jobs() if isinstance(loaded, Study) else [("job", loaded)]
    facts: dict[str, Any] = {}
    for name, job in jobs:
        bound = assemble(job)
        model = bound.world.model
        tensors = dict(zip(model.layout.names, model.layout.shapes, strict=True))
        facts[name] = {
            **describe_job(job, bound.net)["job"], "parameters": model.size, "model_bytes": model.bytes,
            "tensors": {tensor: list(shape) for tensor, shape in tensors.items()},
            "client_state_bytes": {slot: 4 * length for slot, length in bound.slots.items()},
        }  # fmt: skip
    return facts


def show_tree(facts: Mapping[str, Any]) -> None:
    """Nested facts as a tree."""
    tree = Tree("[bold]facts[/]", hide_root=True)
    _grow(tree, facts)
    _console().print(tree)


def _grow(tree: Tree, value: Mapping[str, Any]) -> None:
    for key, inside in value.items():
        if isinstance(inside, Mapping) and inside:
            _grow(tree.add(f"[bold]{escape(str(key))}[/]"), inside)
        else:
            text = f"{inside:.6g}" if isinstance(inside, float) else str(inside)
            tree.add(escape(f"{key}: {text if len(text) < 200 else text[:200] + '...'}"))


def data_of(path: str | Path, name: str | None) -> Any:
    """The data of a job file (of a study: its first arm's)."""
    from fieldfare.load import load_job
    from fieldfare.study import Study

    loaded = load_job(path, name)
    return loaded.jobs()[0][1].data if isinstance(loaded, Study) else loaded.data


_LONG = ("label_counts", "client_sizes", "client_names")


def show_data(facts: Mapping[str, Any]) -> None:
    """Statistics of a federation without its long lists, and a strip of the first clients' labels."""
    short = {key: value for key, value in facts.items() if key not in _LONG}
    show_tree(short)
    counts = facts.get("label_counts")
    if counts:
        shades = " .:-=+*#%@"
        top = max(max(row) for row in counts) or 1
        names = facts.get("client_names") or range(len(counts))
        width = max(len(str(name)) for name, _ in zip(names, counts[:20], strict=False))
        console = _console()
        console.print(f"labels (columns 0..{len(counts[0]) - 1}) of the first clients, darker is more:")
        for name, row in zip(names, counts[:20], strict=False):
            cells = "".join(shades[min(9, round(9 * (n / top) ** 0.5))] * 2 for n in row)
            console.print(f"  client {name!s:>{width}} |{cells}|  {sum(row)} examples", markup=False)


def draw_partition(facts: Mapping[str, Any], out: Path) -> None:
    """The label map as a picture."""
    if out.suffix not in (".png", ".svg"):
        raise UsageError(f"--picture {out}: use a name that ends in .png or .svg.")
    from fieldfare.report.plots import save_label_map

    save_label_map(facts, out)
