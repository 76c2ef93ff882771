"""The table of pairs: which methods go with what can be put around them, and why others do not.

Here: the table as data, what a job is made of in its words (`around`), the refusal before launch (`refuse`), the table
as a page (`markdown`). Not here: refusals of a single value, or of numbers that do not fit (`check`, constructors).
Invariant: every cell is either "runs" or names one of `REASONS`; each is tested by a job of its own.

To change a cell, take the thing's name out of its row's reason, or put it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fieldfare.algorithms.evaluate import innermost
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Frozen, Heads, Keep, LowRank, Nested, Pruned, Rounded, Scaled, Sent

RUNS = "runs"

AROUND: Mapping[str, str] = {
    "prefix": "sub-models, `Prefix()`",
    "rolling": "sub-models, `Rolling()`",
    "random": "sub-models, `RandomWindow()`",
    "topnorm": "sub-models, `TopNorm()`",
    "multirate": "sub-models, `MultiRate()`",
    "depth": "sub-models by depth, a net with `exits`",
    "fitting": "levels that the job plans, `family.fitting()`",
    "nested": "`Nested(...)`",
    "scaled": "`Scaled()`",
    "masked loss": 'loss "masked_cross_entropy"',
    "masked_heads": "`masked_heads(...)`",
    "compress": "`compress(...)` without feedback",
    "feedback": "`compress(...)` with feedback",
    "quantise": "`quantise(...)`",
    "low_rank": "`low_rank(...)`",
    "prune": "`prune(...)`",
    "freeze": "`freeze(...)`",
    "keep": "`keep_optimizer(...)`",
    "module": "an `nn.Module`",
    "secure": "`SecureSum(...)`",
    "sessions": "devices that come and go",
    "ray": "Ray",
}
"""What can be put around a method, or around FedAvg together with another of these."""

REASONS: Mapping[str, str] = {
    "whole": "it keeps, or replies with, more than a delta, of the whole model; use FedAvg, or one made of it without",
    "rows": "its rule compares whole rows of all clients; use FedAvg(server=chain(coverage(), ...))",
    "slot": "one ask has one slot of client state, and both keep something there; use one of them, or feedback=False",
    "same": "both say what becomes of the same weights; use one of them",
    "already": "it does so by itself; leave that out",
    "first": "the paper keeps the first channels; use family.view(), or FedRolex for others",
    "rolls": "the paper's channels move on every round; use family.view(Rolling())",
    "deep": "the paper's levels have all channels; use levels such as Level(depth=1)",
    "moves": "without a server a device trains the same part in every cycle; use family.view()",
    "server": "devices average among themselves, and no server asks for something else; use FedAvg",
    "neighbours": "two neighbours of unlike parts have no mean of the whole between them; use HADFL or PacedRing",
    "models": "it mixes in whole models, one after the other; use FedBuff",
    "halves": "a device and an edge server train a half of a net each, as it is; use FedAvg",
    "drawn": "a cut is planned for one level, and every round would draw another; use Prefix(), or Rolling()",
    "uncut": "levels of depth need a net with exits, and a split net has none; use levels of width",
    "moments": "its norm is known for moments that begin at zero; use FedAvg",
    "early": "a client begins again before it is known whether its last reply counted; use FedAvg",
    "together": "masks cancel among those who mask together, and without rounds nobody does; use FedAvg",
    "nobody": "there is no server that sums; use FedAvg",
    "here": 'moves and sessions are computed in one process; use Simulated(on="local")',
    "exits": "a net with exits has a loss of its own; use exit_loss(...)",
}
"""Why a pair is refused, and what would be right."""

_RULES = "prefix rolling random topnorm multirate"
_SUBS = f"{_RULES} depth fitting"
_LOCAL = "nested scaled masked_heads compress feedback quantise low_rank prune freeze keep"
_MOVING = "rolling random topnorm multirate"


def _row(**refused: str) -> Mapping[str, str]:
    """A row: reason = the things it refuses; all others run."""
    out = dict.fromkeys(AROUND, RUNS)
    for reason, things in refused.items():
        words = f" {things} "
        for thing in AROUND:
            if f" {thing} " in words:
                out[thing] = reason
                words = words.replace(f" {thing} ", " ")
        if words.strip() or reason not in REASONS:
            raise KeyError(f"{reason}: {words.strip()}")
    return out


_PERSONAL = _row(whole=_SUBS, same="masked_heads low_rank prune freeze", slot="feedback keep")
_ROBUST = _row(rows=f"{_SUBS} masked_heads secure")
_RING = _row(moves=_MOVING, server=_LOCAL, nobody="secure")
_GOSSIP = _row(neighbours=_SUBS, server=_LOCAL, nobody="secure")

METHODS: Mapping[str, Mapping[str, str]] = {
    "fedavg": _row(),
    "fedavgm": _row(),
    "fedadam": _row(),
    "fedyogi": _row(),
    "fedadagrad": _row(),
    "fedprox": _row(),
    "scaffold": _row(whole=f"{_SUBS} masked_heads", slot="feedback keep", same="low_rank"),
    "fednova": _row(whole=f"{_SUBS} masked_heads", moments="keep"),
    "feddyn": _row(whole=f"{_SUBS} masked_heads", slot="feedback keep", same="low_rank"),
    "qfedavg": _row(whole=f"{_SUBS} masked_heads"),
    "ditto": _row(whole=_SUBS, slot="feedback keep", same="low_rank"),
    "fedper": _PERSONAL,
    "fedrep": _PERSONAL,
    "fedbn": _PERSONAL,
    "fedmedian": _ROBUST,
    "fedtrimmedmean": _ROBUST,
    "krum": _ROBUST,
    "semisync": _row(),
    "tifl": _row(),
    "cutoff": _row(),
    "fedbuff": _row(early="feedback keep", together="secure"),
    "fedasync": _row(models=f"{_SUBS} {_LOCAL}", together="secure"),
    "heterofl": _row(first="rolling random topnorm"),
    "fjord": _row(first="rolling random topnorm", already="nested", same="scaled low_rank"),
    "fedrolex": _row(rolls="prefix multirate depth"),
    "depthfl": _row(deep=_RULES),
    "nestedfl": _row(first="rolling random topnorm", already="nested", same="scaled low_rank"),
    "hadfl": _RING,
    "pacedring": _RING,
    "decentralisedfedavg": _RING,
    "allreduce": _RING,
    "pairgossip": _GOSSIP,
    "graphgossip": _GOSSIP,
    "fedfly": _row(drawn="multirate", uncut="depth", halves=_LOCAL, nobody="secure", here="ray"),
}
"""A row per method."""

BESIDE: Mapping[str, Mapping[str, str]] = {
    **{rule: _row(whole="keep") for rule in _RULES.split()},
    "depth": _row(exits="masked loss", whole="keep"),
    "fitting": _row(whole="keep"),
    "nested": _row(same="scaled low_rank"),
    "scaled": _row(),
    "masked loss": _row(),
    "masked_heads": _row(),
    "compress": _row(already="feedback"),
    "feedback": _row(slot="keep"),
    "quantise": _row(),
    "low_rank": _row(same="prune keep"),
    "prune": _row(),
    "freeze": _row(),
    "keep": _row(),
    "module": _row(),
    "secure": _row(),
    "sessions": _row(),
}
"""Two things around FedAvg: a row for the one that stands first in `AROUND`."""

_OWN = {"fjord": "nested", "nestedfl": "nested", "heterofl": "scaled"}
_DECLARED: Mapping[type[Any], str] = {
    Nested: "nested", Scaled: "scaled", Heads: "masked_heads", Rounded: "quantise", LowRank: "low_rank",
    Pruned: "prune", Frozen: "freeze", Keep: "keep",
}  # fmt: skip
_BY_RULE = {
    "Prefix": "prefix", "Rolling": "rolling", "RandomWindow": "random", "TopNorm": "topnorm", "MultiRate": "multirate"
}  # fmt: skip


def cell(first: str, second: str) -> str:
    """ "runs", or the word in `REASONS` why not, of a method and a thing, or of two things in any order."""
    if first in METHODS:
        return METHODS[first][second]
    names = list(AROUND)
    one, other = sorted((first, second), key=names.index)
    return BESIDE[one][other] if one != other else RUNS


def pairs() -> tuple[tuple[str, str], ...]:
    """All pairs of the table."""
    names = list(AROUND)
    beside = [(one, other) for at, one in enumerate(names) for other in names[at + 1 :]]
    return (*((method, thing) for method in METHODS for thing in names), *beside)


def around(algorithm: Any) -> tuple[str, ...]:
    """The things of `AROUND` that an algorithm, with all that wraps it, is made with; not what its method brings."""
    inner, out = innermost(algorithm), list[str]()
    view = getattr(inner, "view", None)
    if view is not None:
        rule, levels = _BY_RULE.get(type(getattr(view, "rule", None)).__name__), getattr(view, "levels", ())
        deep = any(getattr(one, "depth", None) for one in levels)
        narrow = any(getattr(one, "rate", 1.0) != 1.0 for one in levels)
        out += [rule] if rule is not None and (narrow or not deep) else []
        out += ["depth"] if deep else []
        out += ["fitting"] if hasattr(view, "prove") else []
    for local in getattr(inner, "local", ()):
        if isinstance(local, Sent):
            out.append("feedback" if local.feedback else "compress")
        elif type(local) in _DECLARED:
            out.append(_DECLARED[type(local)])
    if (own := _OWN.get(_method(inner) or "")) in out:
        out.remove(own)
    layer = algorithm
    while layer is not inner:
        out += ["secure"] if getattr(layer, "secure", False) else []
        layer = layer.inner
    return tuple(out)


def refuse(algorithm: Any, more: Iterable[str] = ()) -> None:
    """Refuse a job whose pairs the table does not let run: one line, what was given, why, and what would be right.

    `more`: what a job puts around its algorithm ("module", "masked loss", "sessions", "ray"). An algorithm that is not
    in the table is not refused. Errors: `UsageError`.
    """
    inner = innermost(algorithm)
    method = _method(inner)
    if method is None:
        return
    things = [*around(algorithm), *more]
    found = [(method, thing) for thing in things]
    found += [(one, other) for at, one in enumerate(things) for other in things[at + 1 :] if one != other]
    for one, other in found:
        if (word := cell(one, other)) != RUNS:
            name = AROUND.get(one, type(inner).__name__ if one == method else one)
            called = getattr(inner, "name", name) if one == method else name
            raise UsageError(f"{called} does not go with {AROUND[other]}: {REASONS[word]}.")


def _method(inner: Any) -> str | None:
    name = getattr(inner, "name", "")
    return name if isinstance(name, str) and name in METHODS else None


def markdown() -> str:
    """The table as a page holds it: what is refused, by method and by pair of things; all else runs."""
    lines = ["| method | runs with | does not run with |", "| --- | --- | --- |"]
    for method, row in METHODS.items():
        lines.append(f"| `{method}` | {_told(row, True)} | {_told(row, False)} |")
    lines += ["", "| with FedAvg | and not |", "| --- | --- |"]
    for thing, row in BESIDE.items():
        if refused := _told(row, False):
            lines.append(f"| {AROUND[thing]} | {refused} |")
    lines += ["", "| word | reason |", "| --- | --- |"]
    lines += [f"| {word} | {reason} |" for word, reason in REASONS.items()]
    return "\n".join(lines)


def _told(row: Mapping[str, str], runs: bool) -> str:
    """The things that run, or the others with their reasons."""
    if runs:
        names = [thing for thing in AROUND if row[thing] == RUNS]
        return "all" if len(names) == len(AROUND) else ", ".join(names)
    by: dict[str, list[str]] = {}
    for thing in AROUND:
        if row[thing] != RUNS:
            by.setdefault(row[thing], []).append(thing)
    return "; ".join(f"{', '.join(things)} (*{word}*)" for word, things in by.items())


if __name__ == "__main__":
    print(markdown())
