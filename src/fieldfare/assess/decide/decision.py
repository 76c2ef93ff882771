"""The decision: a case and its evidence, walked; as plain JSON for programs, and the artefact that holds it.

Here: what a case is, which artefact is evidence of what, the decision's JSON. Not here: the walk (`workflow`), the page
(`page`). Invariants: equal inputs give equal bytes (no time of day, no path of this machine); every number names the
artefact it is from, by hash; a condition is something a person must see to, never a number that failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from fieldfare import __version__
from fieldfare.assess.artefact import Artefact, Draft
from fieldfare.assess.decide.gates import ANY, PER_MODEL, PER_PET, Evidence, asker, told
from fieldfare.assess.decide.privacy import noisy
from fieldfare.assess.decide.thresholds import Threshold, thresholds
from fieldfare.assess.decide.workflow import GATES, NODES, Check, Override, Step, Verdict, Walk, walk
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

EXIT: Mapping[Verdict, int] = {"GO": 0, "GO WITH CONDITIONS": 0, "NO-GO": 8, "INCOMPLETE": 9}
KINDS = ("trace", "proxy", "features", "bench", "simulation", "forecast", "privacy", "drift")


@settings
@dataclass(frozen=True)
class Case:
    """What is to be decided: a `name`, the candidate `models` (the preferred first, simpler ones after it), `pets`.

    `pets`: privacy techniques in the order in which they are tried. `compliance`: a reason to bear a larger loss.
    `thresholds`: changes by name. `loops`: how often a gate may lead back, by gate. `overrides`: people's words.
    """

    name: str
    models: tuple[str, ...]
    title: str = ""
    pets: tuple[str, ...] = ("none",)
    compliance: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict[str, float])
    loops: Mapping[str, int] = field(default_factory=dict[str, int])
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if not self.models or not self.pets:
            raise UsageError(f"Case({self.name!r}): name at least one model and one privacy technique (none).")
        wrong = [one.gate for one in self.overrides if one.gate not in GATES] + [
            g for g in self.loops if g not in GATES
        ]
        if wrong:
            raise UsageError(f"Case({self.name!r}): there is no gate {wrong[0]!r}: gates are {', '.join(GATES)}.")
        gates = [one.gate for one in self.overrides]
        twice = next((one for one in gates if gates.count(one) > 1), None)
        if twice:
            raise UsageError(f"Case({self.name!r}): {twice} is overridden twice: say one word a gate.")
        for gate, times in self.loops.items():
            if isinstance(times, bool) or not isinstance(times, int) or times < 0:
                raise UsageError(f"Case({self.name!r}): loops.{gate}={times!r}: use a whole number >= 0.")


@dataclass(frozen=True, eq=False)
class Decided:
    """A case with its evidence, walked: `told` is decision.json."""

    case: Case
    evidence: Evidence
    limits: Mapping[str, Threshold]
    walk: Walk
    verdict: Verdict
    conditions: tuple[str, ...]
    told: Mapping[str, Any]


def case_of(told: Mapping[str, Any]) -> Case:
    """A case of plain values, as a TOML file holds them: overrides are tables `[[override]]`."""
    found = dict(told)
    listed: Any = found.pop("override", [])
    if not isinstance(listed, (list, tuple)) or not all(isinstance(one, Mapping) for one in cast(list[Any], listed)):
        raise UsageError(f"override={listed!r}: use tables [[override]] with gate, by, date and reason.")
    for name in ("thresholds", "loops"):
        if not isinstance(found.get(name, {}), Mapping):
            raise UsageError(f"{name}={found[name]!r}: use {name}.NAME=NUMBER, or a table [{name}].")
    words = cast(Sequence[Mapping[str, Any]], listed)
    for one in words:
        missing = {"gate", "by", "date", "reason"} - set(one)
        unknown = set(one) - set(Override.__dataclass_fields__)
        if missing or unknown:
            what = f"lacks {sorted(missing)[0]}" if missing else f"knows no {sorted(unknown)[0]}"
            raise UsageError(f"an override {what}: it says gate, by, date and reason (and answer: yes or no).")
        if one.get("answer", "yes") not in ("yes", "no"):
            raise UsageError(f"the override of {one['gate']} answers {one['answer']!r}: yes or no.")
    lists = {name: tuple(found[name]) for name in ("models", "pets") if isinstance(found.get(name), list)}
    overrides = tuple(Override(**{name: str(value) for name, value in one.items()}) for one in words)
    return Case(**{**found, **lists, "overrides": overrides})


def evidence_of(case: Case, artefacts: Sequence[Artefact]) -> Evidence:
    """Which artefact is evidence of what: by kind, and by the model and technique in its parameters."""
    found: dict[tuple[str, str, str], Artefact] = {}
    benches = {one.sha256 for one in artefacts if one.kind == "bench"}
    for one in artefacts:
        if one.kind not in KINDS:
            raise UsageError(f"{one.path} is a {one.kind} artefact: evidence is of kinds {', '.join(KINDS)}.")
        kind = _role(one)
        pet = str(one.params.get("pet") or ANY) if kind in PER_PET else ANY
        models = [str(one.params.get("model") or ANY) if kind in PER_MODEL else ANY]
        if kind == "bench" and models == [ANY] and len(benches) > 1:  # one for each model, told apart by their numbers
            models = [m for m in case.models if any(name.startswith(f"{m}.") for name in one.values)] or models
        for model in models:
            key = (kind, model, pet)
            if key in found and found[key].sha256 != one.sha256:
                raise UsageError(
                    f"{one.path} and {found[key].path} are both {kind} evidence of model {model} with {pet}: give one."
                )
            found[key] = one
    evidence = Evidence(case.models, case.pets, found)
    evidence.check()
    _one_origin(list(found.values()))
    return evidence


def _one_origin(given: Sequence[Artefact]) -> None:
    """Refuse an artefact that was made of another trace, bench, simulation, ... than the one that is given here."""
    there: dict[str, list[str]] = {}
    for one in given:
        there.setdefault(one.kind, []).append(one.sha256)
    for one in given:
        for made_of in one.inputs:
            kind, sha256 = str(made_of["kind"]), str(made_of["sha256"])
            if kind in there and sha256 not in there[kind]:
                others = " and ".join(each[:8] for each in there[kind])
                raise UsageError(
                    f"{one.path} was made of {kind} {sha256[:8]}, given here is {others}: make the "
                    f"{one.kind} again, or give the {kind} it was made of."
                )


def _role(one: Artefact) -> str:
    """A simulation of time alone is a `sweep`: no gate reads it, the page draws it."""
    timed = one.kind == "simulation" and one.params.get("search", {}).get("train") is False
    return "sweep" if timed else one.kind


def decide(case: Case, artefacts: Sequence[Artefact]) -> Decided:
    """Walk the workflow over the artefacts. Pure but for reading manifests; cost: microseconds."""
    evidence = evidence_of(case, artefacts)
    limits = thresholds(case.thresholds, case.compliance or None)
    found = walk(asker(evidence, limits), evidence.present, case.models, case.pets, case.overrides, case.loops)
    conditions = _conditions(evidence, found) if found.verdict in ("GO", "GO WITH CONDITIONS") else ()
    verdict: Verdict = "GO WITH CONDITIONS" if conditions else found.verdict
    return Decided(
        case, evidence, limits, found, verdict, conditions, _told(case, evidence, limits, found, verdict, conditions)
    )


def write(decided: Decided, out: str | Path, page: str) -> Artefact:
    """The artefact of kind `decision`, and beside its tables the two files people open."""
    from fieldfare.store.text import dumps

    used = [one for _, one in sorted(decided.evidence.found.items())]
    draft = Draft("decision", params={"case": asdict(decided.case)}, inputs=used)
    draft.files |= {"decision.json": dumps(decided.told, indent=1) + b"\n", "report.html": page.encode()}
    return draft.write(out)


def _conditions(evidence: Evidence, found: Walk) -> tuple[str, ...]:
    out: list[str] = []
    for step in found.path:
        if step.override is not None:
            word = step.override
            out.append(f"{step.id} was overridden by {word.by} on {word.date}: {word.reason}")
    last = found.path[-1].at
    trace = evidence.of("trace", last)
    for name, what in (("flagged_groups", "devices"), ("flagged_groups_device_s", "devices' time")):
        flagged = None if trace is None else trace.number(name)
        if flagged:
            many = f"{flagged:.0f} groups of devices, by filter, keep"
            who = "1 group of devices, by filter, keeps" if flagged == 1 else many
            out.append(f"{who} under 0.8 of their share of {what}: see who is left out")
    features = evidence.of("features", last)
    refused = None if features is None else features.number("features_refused")
    if refused:
        out.append(f"{refused:.0f} features cannot reach the device: train without them, or change where they live")
    for gate, one in _last_checks(found):
        if one.ok is None and one.wanted:
            out.append(f"{gate}: {one.name} is not known: measure it, or say why it need not be")
        elif one.ok is False and one.advisory:
            out.append(f"{gate}: {told(one)}")
    privacy, simulation = evidence.of("privacy", last), evidence.of("simulation", last)
    mechanism = "" if privacy is None else str(privacy.params.get("mechanism", ""))
    if simulation is not None and noisy(mechanism) and simulation.params.get("pet", "") in ("", "none", ANY):
        out.append(
            f"quality was simulated without {mechanism}: simulate the job with its clipping and noise, --pet NAME"
        )
    return tuple(out)


def _last_checks(found: Walk) -> list[tuple[str, Check]]:
    """Every gate's checks as it was asked last."""
    last = {step.id: step.reply for step in found.path if step.reply is not None}
    return [(gate, one) for gate, reply in last.items() for one in reply.checks]


def not_known(found: Walk) -> list[str]:
    """Numbers that gates would compare, that nobody measured, and that no gate needs."""
    return [f"{gate}: {one.name}" for gate, one in _last_checks(found) if one.ok is None and not one.required]


def _told(
    case: Case, evidence: Evidence, limits: Mapping[str, Threshold], found: Walk, verdict: Verdict,
    conditions: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    last = found.path[-1].at
    return {
        "verdict": verdict,
        "case": case.name,
        "title": case.title or case.name,
        "model": case.models[last.model],
        "pet": case.pets[last.pet],
        "reason": found.reason,
        "binding": None if found.binding is None else _check(found.binding),
        "conditions": list(conditions),
        "not_known": not_known(found),
        "missing": list(found.missing),
        "path": [_step(case, step) for step in found.path],
        "overrides": [asdict(step.override) for step in found.path if step.override is not None],
        "thresholds": {name: {"value": one.value, "unit": one.unit, "at": "most" if one.most else "least",
                              "source": one.source} for name, one in limits.items()},
        "artefacts": [{"kind": one.kind, "path": one.path.name, "sha256": one.sha256, "model": key[1], "pet": key[2]}
                      for key, one in sorted(evidence.found.items())],
        "tool_version": __version__,
    }  # fmt: skip


def _step(case: Case, step: Step) -> dict[str, Any]:
    title = NODES[step.id].title if step.id in NODES else GATES[step.id].title
    out: dict[str, Any] = {
        "id": step.id,
        "title": title,
        "model": case.models[step.at.model],
        "pet": case.pets[step.at.pet],
    }
    if step.reply is not None:
        out |= {
            "answer": step.answer,
            "reason": step.reply.reason,
            "values": [_check(one) for one in step.reply.checks],
        }
    if step.override is not None:
        out["override"] = asdict(step.override)
    return out


def _check(one: Check) -> dict[str, Any]:
    return {
        "name": one.name, "value": one.value, "threshold": one.threshold.value, "unit": one.threshold.unit,
        "at": "most" if one.threshold.most else "least", "ok": one.ok, "required": one.required, "kind": one.kind,
        "source_sha256": one.source or None, "note": one.note,
    }  # fmt: skip
