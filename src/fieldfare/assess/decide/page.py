"""The report of a decision: one self-contained page, for a meeting; every number named by the artefact it is from.

Here: the page and its parts that are the decision's own. Not here: parts that show one artefact each (`parts`).
Invariants: equal inputs give equal bytes; what is missing is said to be missing; a person's word is in red.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import inf
from typing import Any

from fieldfare.assess.decide import parts
from fieldfare.assess.decide.decision import Decided
from fieldfare.assess.decide.diagram import COLOURS, diagram
from fieldfare.assess.decide.words import plainly, source, title, words
from fieldfare.report import page
from fieldfare.report.page import Section, Tile

STYLE = """<style>
.verdict{border-left:8px solid var(--tone);background:color-mix(in srgb,var(--tone) 8%,#fff);border-radius:8px;
padding:18px 22px;margin:0 0 18px}
.verdict b{font-size:30px;color:var(--tone);letter-spacing:-.01em;display:block;line-height:1.2}
.verdict p{margin:6px 0 0;max-width:80ch}
.human{color:#b00020;font-weight:600}
.flow{overflow-x:auto;border:1px solid var(--line);border-radius:10px;padding:14px}
.flow svg{min-width:900px;width:100%;height:auto;display:block}
a.src{font:12px ui-monospace,monospace;color:var(--muted)}
dl.tiles a.src{font-size:11px;font-weight:400}
dl.tiles>div{flex:1 1 22%}
.bar{display:inline-block;width:110px;height:9px;background:var(--soft);border:1px solid var(--line);border-radius:5px;
position:relative;vertical-align:middle;margin-right:6px;overflow:hidden}
.bar i{position:absolute;left:0;top:0;bottom:0;background:var(--tone)}
td.used{white-space:nowrap}
td.sha{font:12px ui-monospace,monospace;overflow-wrap:anywhere}
p.from{margin:12px 0 0}
ul.list{margin:6px 0 0;padding-left:20px}
</style>"""
TONES = {"GO": "#00704f", "GO WITH CONDITIONS": "#8a6d00", "NO-GO": "#b23a00", "INCOMPLETE": "#586776"}
WORDS = {
    "GO": "Deploy: every gate was passed on evidence.",
    "GO WITH CONDITIONS": "Deploy once the conditions below are seen to.",
    "NO-GO": "Do not deploy: a gate was not passed, and nothing is left to try.",
    "INCOMPLETE": "No decision yet: evidence is missing.",
}


def report(decided: Decided) -> str:
    """The whole page as text."""
    told = decided.told
    flow = f'<div class="flow">{diagram(told["path"], told["verdict"])}</div>'
    sections = [
        Section("decision", "The decision", "What was decided, and what has to be seen to.", _verdict(told)),
        Section("path", "The path that was walked", "FLINT's workflow; blue is where this case went.", flow),
        Section("gates", "What the gates compared", "Each number against its limit, and the artefact it is from.",
                _gates(told["path"])),
        *parts.sections(decided),
        Section("thresholds", "Limits", "What the gates compare with, and who chose it; all can be set.",
                _thresholds(told["thresholds"])),
        Section("evidence", "Evidence", "Artefacts this page was made of, by the hash of their content.",
                _evidence(decided)),
    ]  # fmt: skip
    return page.document(
        title=str(told["title"]), eyebrow="Should this model go federated?",
        subtitle=f"{told['verdict']}: {plainly(str(told['reason']))}", tiles=_tiles(decided), sections=sections,
        notes=list(told["conditions"]), footer=f"Written by fieldfare {told['tool_version']}.",
    )  # fmt: skip


def _tiles(decided: Decided) -> list[Tile]:
    told = decided.told
    last = decided.walk.path[-1].at
    out = [Tile("Verdict", str(told["verdict"])), Tile("Model", str(told["model"]), str(told["pet"]))]
    cast_, sim = decided.evidence.of("forecast", last), decided.evidence.of("simulation", last)
    for artefact, name, label, unit in (
        (cast_, "time_to_target_s", "Time to target", "s"), (cast_, "device_h", "Devices' time", "h"),
        (sim, "metric_loss_share", "Loss of quality", "share"), (cast_, "cost", "Cost, in the prices' money", "1"),
        (cast_, "energy_j", "Energy", "J"), (cast_, "carbon_g", "Carbon", "g"),
    ):  # fmt: skip
        one = None if artefact is None else artefact.values.get(name)
        if artefact is not None and one is not None and one.value is not None:
            span = "" if one.low is None or one.high is None else f"{words(one.low, unit)} to {words(one.high, unit)}"
            out.append(Tile(label, words(one.value, unit), span, source(artefact.sha256)))
    return out


def _verdict(told: Mapping[str, Any]) -> str:
    tone = TONES[told["verdict"]]
    plain = told["verdict"] == "GO"  # its reason says no more than the words
    reason = "" if plain else f"<p>{escape(plainly(str(told['reason'])))}</p>"
    out = [STYLE, f'<div class="verdict" style="--tone:{tone}"><b>{escape(told["verdict"])}</b>'
           f"<p>{escape(WORDS[told['verdict']])}</p>{reason}</div>"]  # fmt: skip
    binding = told["binding"]
    if binding:
        what = "What binds" if told["verdict"] == "NO-GO" else "Nearest to its limit"
        value, limit = (escape(words(binding[name], binding["unit"])) for name in ("value", "threshold"))
        told_ = f"{escape(title(binding['name']))}: {value}, where at {binding['at']} {limit} is allowed"
        out.append(f"<p><b>{what}:</b> {told_} {source(binding['source_sha256'])}</p>")
    out += _list("Conditions", told["conditions"])
    out += _list("Missing", told["missing"])
    out += _list("Not known, and not needed by a gate", [plainly(f" {one}: ")[1:-2] for one in told["not_known"]])
    for one in told["overrides"]:
        said = f"{one['gate']} was set to {one['answer']} by {one['by']} on {one['date']}: {one['reason']}"
        out.append(f'<p class="human">{escape(said)}</p>')
    return "".join(out)


def _list(title: str, said: Sequence[str]) -> list[str]:
    items = "".join(f"<li>{escape(one)}</li>" for one in said)
    return [f"<h3>{escape(title)}</h3><ul class=list>{items}</ul>"] if said else []


def _gates(path: Sequence[Mapping[str, Any]]) -> str:
    rows: list[list[str]] = []
    for step in path:
        if "answer" not in step:
            continue
        answer = {"yes": "yes", "no": "no", "missing": "evidence is missing"}[step["answer"]]
        human = step.get("override")
        said = f'<small class="human">{escape(human["by"])}: {escape(human["reason"])}</small>' if human else ""
        rows.append([
            page.cell(f"{step['id']} {step['title']}", head=True, under=f"{step['model']}, {step['pet']}"),
            f'<td class="n"><b style="color:{COLOURS[step["answer"]]}">{escape(answer)}</b>{said}</td>',
            page.cell("" if step["values"] else step["reason"]), page.cell(""), page.cell(""),
        ])  # fmt: skip
        rows += [_check(one) for one in step["values"]]
    head = [("gate, and what it compares", False), ("number", True), ("used of the limit", False), ("limit", True),
            ("from", False)]  # fmt: skip
    return page.table(head, rows, caption="Gates")


def _check(one: Mapping[str, Any]) -> list[str]:
    value, limit = one["value"], one["threshold"]
    used = None
    if value is not None:
        over, under = (value, limit) if one["at"] == "most" else (limit, value)
        used = over / under if under else inf if over else 0.0
    tone = COLOURS["missing" if value is None else "yes" if one["ok"] else "no"]
    filled = "" if used is None else f'<i style="width:{min(100.0, 100 * used):.0f}%"></i>'
    share = "" if used is None else "over" if used == inf else f"{100 * used:.0f} %"
    bar = "" if used is None else f'<span class="bar" style="--tone:{tone}">{filled}</span>{share}'
    side = "at most" if one["at"] == "most" else "at least"
    told = words(value, one["unit"]) if value is not None or one["required"] else "not known (not required)"
    return [
        page.cell(title(one["name"]), under=", ".join(filter(None, (one["name"], one["note"])))),
        page.cell(told, number=True), f'<td class="used">{bar}</td>',
        page.cell(f"{side} {words(limit, one['unit'])}", number=True), f"<td>{source(one['source_sha256'])}</td>",
    ]  # fmt: skip


def _thresholds(told: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [page.cell(title(name), head=True, under=name),
         page.cell(f"at {one['at']} {words(one['value'], one['unit'])}", number=True), page.cell(one["source"])]
        for name, one in told.items()
    ]  # fmt: skip
    return page.table([("limit", False), ("value", True), ("who says so", False)], rows, caption="Limits")


def _evidence(decided: Decided) -> str:
    rows: list[list[str]] = []
    own = {one.sha256 for one in decided.evidence.found.values()}
    shown: set[str] = set()
    for key, one in sorted(decided.evidence.found.items()):
        of = ", ".join(word for word in key[1:] if word != "any")
        if one.sha256 in shown:  # the same artefact of another model
            continue
        shown.add(one.sha256)
        rows.append(_artefact(one.kind, of, one.path.name, one.sha256, [str(i["sha256"]) for i in one.inputs]))
    for one in decided.evidence.found.values():
        for inside in one.inputs:
            if str(inside["sha256"]) not in own | shown:
                shown.add(str(inside["sha256"]))
                rows.append(
                    _artefact(str(inside["kind"]), "made into others", str(inside["path"]), str(inside["sha256"]), [])
                )
    head = [("artefact", False), ("folder or file", False), ("made of", False), ("SHA-256 of its content", False)]
    return page.table(head, rows, caption="Evidence")


def _artefact(kind: str, of: str, path: str, sha256: str, made_of: Sequence[str]) -> list[str]:
    return [
        f'<th scope="row" id="a{escape(sha256[:12])}">{escape(kind)}<small>{escape(of)}</small></th>', page.cell(path),
        f"<td>{' '.join(source(one) for one in made_of)}</td>", f'<td class="sha">{escape(sha256)}</td>',
    ]  # fmt: skip
