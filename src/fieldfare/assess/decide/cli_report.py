"""The command `fieldfare assess report`: the page of a decision once more, of the evidence it was made of."""

from __future__ import annotations

from pathlib import Path

import click

from fieldfare.assess.options import as_json_


@click.command("report")
@click.argument("decision", type=click.Path(path_type=Path))
@click.argument("evidence", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="The page to write (default: in the decision).")
@as_json_
def command(decision: Path, evidence: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write the page of a DECISION again; EVIDENCE are its artefacts (default: folders beside it)."""
    import json

    from fieldfare.assess.artefact import read_artefact
    from fieldfare.assess.decide.decision import case_of, decide
    from fieldfare.assess.decide.page import report
    from fieldfare.core.errors import UsageError
    from fieldfare.store.files import write_atomic

    made = read_artefact(decision, "decision")
    wanted = {str(one["sha256"]): one for one in made.inputs}
    beside = [one for one in decision.resolve().parent.iterdir() if (one / "manifest.json").is_file()]
    found = {one.sha256: one for one in (read_artefact(place) for place in evidence or beside)}
    missing = [f"{one['kind']} {one['path']} {sha[:8]}" for sha, one in wanted.items() if sha not in found]
    if missing:
        raise UsageError(f"{decision} was made of what is not here: {', '.join(missing)}; name the folders.")
    case = dict(made.params["case"])
    words = [dict(one) for one in case.pop("overrides", [])]
    decided = decide(case_of({**case, "override": words}), [found[sha] for sha in wanted])
    place = out or made.file("report.html")
    write_atomic(place, [report(decided).encode()])
    print(json.dumps({"report": str(place), "verdict": decided.verdict}) if as_json else f"report: {place}")
