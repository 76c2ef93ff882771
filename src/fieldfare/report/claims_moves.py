"""Measures of claims about devices that move: how long they stand still, what is saved, whether a bit has changed.

Here: from the folders of an arm's runs to one number; `Missing` says why there is none. Not here: what became of the
moves (`read_moves`), claims files and verdicts (`claims`). Kept: a number comes from the files of the runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.algorithms.fedfly.policies import saving
from fieldfare.report.claims_nodes import Missing
from fieldfare.report.read_moves import Move, downtime_s, moves_of, round_s, span_s
from fieldfare.report.read_nodes import Nodes, read_nodes
from fieldfare.report.table import load, read_table
from fieldfare.store.nodes import NODES

Folders = Callable[[str], Sequence[Path]]
Taken = Callable[["Seen"], float]
MODEL = "model.safetensors"
_TAKE: Mapping[str, Callable[[Any], Any]] = {"max": np.max, "min": np.min, "mean": np.mean, "median": np.median}


class Seen:
    """One move of a run, beside the runs it is compared with: `still`, without it, and `restart`, the other way."""

    def __init__(self, nodes: Nodes, move: Move, still: Nodes | None, restart: Nodes | None) -> None:
        self.nodes, self.move, self.still, self.restart = nodes, move, still, restart

    def against(self, which: str) -> Nodes:
        found: Nodes | None = getattr(self, which)
        if found is None:
            raise Missing(f"the claim names no arm for {which}")
        return found

    @property
    def times(self) -> tuple[float, float]:
        """Seconds of the mover's round: with the move, and without."""
        one = (self.move.device, self.move.round)
        return round_s(self.nodes, *one), round_s(self.against("still"), *one)

    @property
    def share(self) -> float:
        """The share of its round that was over when the device moved."""
        begin, end = span_s(self.against("still"), self.move.device, self.move.round)
        return (self.move.moved_s - begin) / (end - begin)

    @property
    def saved(self) -> float:
        """Share of the mover's round saved against restarting it."""
        return 1.0 - self.times[0] / round_s(self.against("restart"), self.move.device, self.move.round)


FIGURES: Mapping[str, tuple[str, str, Taken]] = {
    "downtime_s": ("s", "downtime of the mover", lambda seen: downtime_s(seen.move, seen.against("still"))),
    "raw_gap_s": ("s", "gap between the last gradient of the old edge and the first of the new one",
                  lambda seen: seen.move.raw_gap_s),
    "overhead_s": ("s", "what a move adds to the mover's round", lambda seen: seen.times[0] - seen.times[1]),
    "saving": ("share", "share of the mover's round saved against a restart", lambda seen: seen.saved),
    "saving_off": ("share", "how far that is from (f - o / T) / (1 + f)", lambda seen: abs(
        seen.saved - saving(seen.share, (seen.times[0] - seen.times[1]) / seen.times[1]))),
    "repeated": ("", "batches trained twice", lambda seen: float(seen.move.repeated)),
    "state_bytes": ("bytes", "state that crossed between edges", lambda seen: seen.move.state_bytes),
    "restarts": ("share", "share of moves answered by a restart", lambda seen: float(seen.move.kind == "restart")),
}  # fmt: skip


def move(measure: Mapping[str, Any], folders: Folders) -> float:
    """A figure of an arm's moves: the largest of all moves and seeds, or as `aggregate` says."""
    arm, values = str(measure["arm"]), list[float]()
    _, words, figure = FIGURES[str(measure["figure"])]
    others = {
        name: {path.name: path for path in folders(str(measure[name]))}
        for name in ("still", "restart")
        if name in measure
    }
    for path in folders(arm):
        nodes, mobility = _read(path)
        beside = {name: _read(_like(found, path))[0] for name, found in others.items()}
        for one in moves_of(nodes, mobility):
            values.append(figure(Seen(nodes, one, beside.get("still"), beside.get("restart"))))
    if not values:
        raise Missing(f"in {arm} no session changed hands")
    if not all(math.isfinite(one) for one in values):
        raise Missing(f"{words} of {arm} cannot be told: a gradient, or the time of a move, was never seen")
    return float(_TAKE[str(measure.get("aggregate", "max"))](values))


def moves(measure: Mapping[str, Any], folders: Folders) -> float:
    """How many sessions changed hands in an arm, all seeds together."""
    return float(sum(len(moves_of(*_read(path))) for path in folders(str(measure["arm"]))))


def same_model(measure: Mapping[str, Any], folders: Folders) -> float:
    """Share of the seeds in which two arms end in a model of the same bytes."""
    ours, theirs = ({path.name: path for path in folders(str(measure[arm]))} for arm in ("arm", "to"))
    pairs = [(path, _like(theirs, path)) for path in ours.values()]
    for path in (path for pair in pairs for path in pair):
        if not (path / MODEL).is_file():
            raise Missing(f"{path.name} keeps no model")
    return float(np.mean([(a / MODEL).read_bytes() == (b / MODEL).read_bytes() for a, b in pairs]))


def _read(path: Path) -> tuple[Nodes, Mapping[str, Any] | None]:
    nodes = read_nodes(path, read_table(path).total("virtual_s"))
    if nodes is None:
        raise Missing(f"{path.name} keeps no nodes: it is a run of one")
    return nodes, load(path / NODES).get("mobility")


def _like(found: Mapping[str, Path], path: Path) -> Path:
    """The run of the same seed, or the only one."""
    if path.name in found:
        return found[path.name]
    if len(found) != 1:
        raise Missing(f"there is no seed {path.name} to compare with")
    return next(iter(found.values()))


MEASURES: Mapping[str, Callable[[Mapping[str, Any], Folders], float]] = {
    "move": move, "moves": moves, "same_model": same_model,
}  # fmt: skip


def fault(measure: Mapping[str, Any]) -> str | None:
    """What is wrong with a measure of this file, in words; None where it can be taken."""
    if measure["measure"] == "move" and measure["figure"] not in FIGURES:
        return f"figure is {measure['figure']!r}, one of {', '.join(FIGURES)} is needed"
    return None


def unit(measure: Mapping[str, Any]) -> str:
    """The unit of a measure of this file."""
    kind = measure["measure"]
    return FIGURES[str(measure["figure"])][0] if kind == "move" else "share" if kind == "same_model" else ""


def in_words(measure: Mapping[str, Any]) -> str:
    """Say what a measure of this file measures."""
    arm = measure["arm"]
    match measure["measure"]:
        case "move":
            taken = measure.get("aggregate", "max")
            return f"{FIGURES[str(measure['figure'])][1]}, {arm}" + ("" if taken == "max" else f" ({taken} of moves)")
        case "moves":
            return f"sessions that changed hands, {arm}"
        case _:
            return f"share of seeds in which {arm} and {measure['to']} end in the same bytes"
