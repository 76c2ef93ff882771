"""The command `fieldfare assess report`: the page of a decision once more, of the evidence it was made of."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from fieldfare.assess.options import as_json_


@click.command("report")
@click.argument("decision", type=click.Path(path_type=Path))
@click.argument("evidence", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="The page to write (default: in the decision).")
@as_json_
def command(decision: Path, evidence: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write the page of a DECISION again; EVIDENCE are its artefacts (default: folders beside it).

    A page in the decision's folder is written only where it is the one that belongs there, to the byte.
    """
    import hashlib
    import json

    from fieldfare.assess.artefact import read_artefact
    from fieldfare.assess.decide.decision import case_of, decide
    from fieldfare.assess.decide.page import report
    from fieldfare.core.errors import UsageError
    from fieldfare.store.files import write_atomic
    from fieldfare.store.text import dumps

    made = read_artefact(decision, "decision")
    wanted = {str(one["sha256"]): one for one in made.inputs}
    found = {one.sha256: one for one in map(read_artefact, evidence)} if evidence else _beside(made.path)
    missing = [f"{one['kind']} {one['path']} {sha[:8]}" for sha, one in wanted.items() if sha not in found]
    if missing:
        raise UsageError(f"{decision} was made of what is not here: {', '.join(missing)}; name the folders.")
    case = dict(made.params["case"])
    words = [dict(one) for one in case.pop("overrides", [])]
    decided = decide(case_of({**case, "override": words}), [found[sha] for sha in wanted])
    then = json.loads(made.file("decision.json").read_bytes())
    now = json.loads(dumps(decided.told))
    changed = sorted(name for name in {*then, *now} - {"tool_version"} if then.get(name) != now.get(name))
    if changed and out is None:
        raise UsageError(
            f"{decision} would not be decided so today ({', '.join(changed)} differ: limits or rules have changed): "
            "decide again, or give --out PAGE for a page of today's decision."
        )
    page = report(decided).encode()
    told = made.manifest["files"]["report.html"]
    if out is None and hashlib.sha256(page).hexdigest() != told["sha256"]:
        raise UsageError(f"{decision} has a page of another version of this program: give --out PAGE for one of this.")
    place = out or made.path / str(told["path"])
    write_atomic(place, [page])
    print(json.dumps({"report": str(place), "verdict": decided.verdict}) if as_json else f"report: {place}")


def _beside(decision: Path) -> dict[str, Any]:
    """Artefacts in the folder where a decision lies, by hash; what cannot be read is none."""
    from fieldfare.assess.artefact import read_artefact
    from fieldfare.core.errors import UsageError

    found: dict[str, Any] = {}
    for place in sorted(decision.resolve().parent.iterdir()):
        if (place / "manifest.json").is_file():
            with suppress(UsageError):
                one = read_artefact(place)
                found[one.sha256] = one
    return found
