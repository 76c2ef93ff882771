"""FLINT's decision workflow (figure 9) as data, and the walk over it.

Here: nodes, gates, their edges; the walk, a pure function of the evidence. Not here: what a gate compares (`gates`),
who makes missing evidence (`pursue`). Invariants: a gate with missing evidence ends the walk as INCOMPLETE, it never
passes; a loop is walked at most as often as its gate allows; the same evidence walks the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fieldfare.assess.decide.thresholds import Threshold

Answer = Literal["yes", "no", "missing"]
Verdict = Literal["GO", "GO WITH CONDITIONS", "NO-GO", "INCOMPLETE"]


@dataclass(frozen=True, slots=True)
class Node:
    """A step of the work: `tool` makes the artefact of `kind` that is its evidence; `then` comes next."""

    id: str
    title: str
    then: str | None
    tool: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    """A question: where `yes` and `no` lead. `change` is what is changed before a loop back, at most `loops` times."""

    id: str
    title: str
    yes: str
    no: str
    change: Literal["", "model", "pet"] = ""
    loops: int = 5


START = "1"
NODES: Mapping[str, Node] = {
    one.id: one
    for one in (
        Node("1", "Client participation criteria", "2", "trace", "trace"),
        Node("2", "Generate device availability", "3", "trace", "trace"),
        Node("3", "Select a dataset for the proxy", "4", "proxy", "proxy"),
        Node("4", "Analyse feature locality", "G1", "features", "features"),
        Node("5a", "Realistic partition", "5h", "proxy", "proxy"),
        Node("5b", "Synthetic partition", "6", "proxy", "proxy"),
        Node("5h", "Analyse data heterogeneity", "6", "proxy", "proxy"),
        Node("6", "Select a model architecture", "7"),
        Node("7", "Benchmark on unlike devices", "G2", "bench", "bench"),
        Node("8", "Parameter search", "G3", "simulate", "simulation"),
        Node("9", "Privacy and security evaluation", "G5", "privacy", "privacy"),
        Node("10", "Production deployment", None),
    )
}
GATES: Mapping[str, Gate] = {
    one.id: one
    for one in (
        Gate("G1", "Is there a field to partition by?", "5a", "5b"),
        Gate("G2", "Are time and resources of a task acceptable?", "8", "6", "model"),
        Gate("G3", "Is the model good enough?", "G4", "6", "model"),
        Gate("G4", "Are the projections for the systems acceptable?", "9", "6", "model"),
        Gate("G5", "Is the privacy budget acceptable?", "10", "8", "pet"),
    )
}


@dataclass(frozen=True, slots=True)
class Check:
    """One number against its threshold: `value` None is missing; `kind` and `source`: the artefact's, its hash.

    `wanted`: where it is missing, or, being `advisory`, fails, that is a condition and not an answer.
    """

    name: str
    value: float | None
    threshold: Threshold
    kind: str = ""
    source: str = ""
    required: bool = True
    note: str = ""
    wanted: bool = False
    advisory: bool = False

    @property
    def ok(self) -> bool | None:
        if self.value is None:
            return None
        limit = self.threshold.value
        return self.value <= limit if self.threshold.most else self.value >= limit

    @property
    def used(self) -> float | None:
        """Share of the threshold that is used up: 1 is at the limit, above it fails."""
        limit = self.threshold.value
        if self.value is None:
            return None
        over, under = (self.value, limit) if self.threshold.most else (limit, self.value)
        return over / under if under else (0.0 if not over else float("inf"))


@dataclass(frozen=True, slots=True)
class Reply:
    """What a gate says of the evidence: its answer, the checks behind it, what is missing."""

    answer: Answer
    checks: tuple[Check, ...] = ()
    missing: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Try:
    """Which candidate model and which privacy technique the walk is at."""

    model: int = 0
    pet: int = 0


@dataclass(frozen=True, slots=True)
class Override:
    """A person's word in place of a gate's own yes or no (not of missing evidence): who, when as they wrote it, why."""

    gate: str
    by: str
    date: str
    reason: str
    answer: Literal["yes", "no"] = "yes"


@dataclass(frozen=True, slots=True)
class Step:
    """One place on the path: a node's or a gate's id, at which try, and a gate's reply."""

    id: str
    at: Try
    reply: Reply | None = None
    override: Override | None = None

    @property
    def answer(self) -> Answer | None:
        if self.override is not None:
            return self.override.answer
        return None if self.reply is None else self.reply.answer


@dataclass(frozen=True, slots=True)
class Walk:
    """The path walked, how it ended, and the step that decided it (the last gate that did not say yes)."""

    path: tuple[Step, ...]
    verdict: Verdict
    reason: str
    binding: Check | None = None
    missing: tuple[str, ...] = ()


Ask = Callable[[str, Try], Reply]
"""(gate's id, try) -> its reply, from the evidence there is."""


def walk(
    ask: Ask, present: Callable[[str, Try], bool], models: Sequence[str], pets: Sequence[str],
    overrides: Sequence[Override] = (), loops: Mapping[str, int] | None = None,
) -> Walk:  # fmt: skip
    """The path from node 1: `present(kind, try)` says whether the evidence of a node is there.

    A gate that says no and changes the model goes on with the next of `models`; with none left, or after as many loops
    as the gate allows, the verdict is NO-GO. Cost: one call per gate and try.
    """
    told = {one.gate: one for one in overrides}
    allowed = {gate.id: gate.loops for gate in GATES.values()} | dict(loops or {})
    gone: dict[str, int] = {}
    path: list[Step] = []
    at, here = Try(), START
    refused: Reply | None = None
    while True:
        if here in NODES:
            node = NODES[here]
            path.append(Step(here, at))
            if node.kind and not present(node.kind, at):
                words = f"{node.kind} of {models[at.model]}" if node.kind in ("bench", "simulation") else node.kind
                return Walk(tuple(path), "INCOMPLETE", f"{node.title}: no evidence yet ({words})", None, (words,))
            if node.then is None:
                return Walk(tuple(path), _of(path), _passed(path), tightest(path))
            here = node.then
            continue
        gate, reply = GATES[here], ask(here, at)
        word = told.get(here)
        step = Step(here, at, reply, word if word and reply.answer not in ("missing", word.answer) else None)
        path.append(step)
        if step.answer == "missing":
            return Walk(
                tuple(path), "INCOMPLETE", f"{gate.title} Missing: {', '.join(reply.missing)}", None, reply.missing
            )
        if step.answer == "yes":
            here = gate.yes
            continue
        if not gate.change:
            here = gate.no
            continue
        refused = reply
        gone[here] = gone.get(here, 0) + 1
        left = at.model + 1 < len(models) if gate.change == "model" else at.pet + 1 < len(pets)
        if not left or gone[here] > allowed[here]:
            what = (
                "no simpler model is left to try"
                if gate.change == "model"
                else "no other privacy technique is left to try"
            )
            why = what if not left else f"it was asked {gone[here]} times"
            said = f"{step.override.by}: {step.override.reason}" if step.override else refused.reason
            return Walk(tuple(path), "NO-GO", f"{gate.title} No: {said}; {why}", worst(reply))
        at = Try(at.model + 1, 0) if gate.change == "model" else Try(at.model, at.pet + 1)
        here = gate.no


def _passed(path: Sequence[Step]) -> str:
    human = [step.id for step in path if step.override is not None]
    return "every gate was passed" + (f", {' and '.join(human)} by a person's word" if human else "")


def worst(reply: Reply) -> Check | None:
    """The check of a reply that is farthest over its threshold."""
    failed = [one for one in reply.checks if one.ok is False and not one.advisory]
    return max(failed, key=lambda one: one.used or 0.0, default=None)


def tightest(path: Sequence[Step]) -> Check | None:
    """The check that came nearest to its threshold among those of the gates that were passed last."""
    last = {step.id: step for step in path if step.reply is not None}
    checks = [
        one for step in last.values() if step.reply and step.answer == "yes"
        for one in step.reply.checks if one.ok and not one.advisory
    ]  # fmt: skip
    return max(checks, key=lambda one: one.used or 0.0, default=None)


def _of(path: Sequence[Step]) -> Verdict:
    return "GO WITH CONDITIONS" if any(step.override is not None for step in path) else "GO"
