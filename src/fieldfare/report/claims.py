"""What a study claims, recomputed from its stored tables alone.

Here: `claims.toml` read and checked, the measures, `compute_claims`. Not here: how a claim is shown (`html`). Kept: a
claim is computed from the tables of the arms: ``rounds.jsonl``, and for totals what ``totals.json`` adds to its last
row; ``summary.json`` is only what they must agree with. A claim whose inputs are missing, cut short, unreadable or at
odds with each other, whose threshold was never reached, or that is gone from the claims file, has no value of ours and
does not hold; none holds under a claims file that is not the one the run was made with.

A claims file::

    [[claim]]
    name = "half the rounds of FedAvg to 90 %"
    measure = "ratio"
    of = { measure = "time_to", arm = "ours", metric = "accuracy", threshold = 0.9, axis = "round" }
    to = { measure = "time_to", arm = "fedavg", metric = "accuracy", threshold = 0.9, axis = "round" }
    sense = "<="
    target = 0.5
    published = 0.43
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.report import claims_moves, claims_nodes, units
from fieldfare.report.claims_nodes import TAKEN
from fieldfare.report.claims_nodes import Missing as _Missing
from fieldfare.report.decompose import crossing
from fieldfare.report.table import (
    RUNNING,
    SUMMED,
    Table,
    arm_folders,
    is_cut_off,
    is_number,
    is_run,
    listed_arms,
    load,
    read_table,
    summed,
)

AGGREGATES = ("median", "mean", "min", "max")
AXES = ("round", "virtual_s", "wall_s", "bytes", "bytes_up", "bytes_down", "bytes_between", "device_s", "energy_j")

_OWN = {"name", "sense", "target", "tolerance", "published", "note"}
_SIMPLE = {"measure", "arm", "metric", "aggregate", "seeds"}
_NEEDS: Mapping[str, set[str]] = {
    "final": {"metric"},
    "best": {"metric"},
    "best_at": {"metric"},
    "at": {"metric", "axis", "point"},
    "time_to": {"metric", "threshold"},
    "total": {"axis"},
    "ratio": {"of", "to"},
    "difference": {"of", "to"},
    "paired": {"of", "to"},
    "number": {"value"},
    "factor": {"arm", "over", "factor", "metric", "threshold"},
    "curve": {"points", "level", "metric", "threshold"},
    "idle": {"arm"},
    "bytes_sent": {"arm", "kind"},
    "draws": {"arm"},
    "restarts": {"arm"},
    "move": {"arm", "figure"},
    "moves": {"arm"},
    "same_model": {"arm", "to"},
}
_MAY: Mapping[str, set[str]] = {
    "final": {"window"},
    "best": {"goal"},
    "best_at": {"goal", "axis"},
    "at": set(),
    "time_to": {"axis", "reach", "between"},
    "total": set(),
    "ratio": {"aggregate"},
    "difference": {"aggregate"},
    "paired": {"take", "how", "seeds"},
    "number": set(),
    "factor": {"seeds"},
    "curve": {"seeds"},
    "idle": {"seeds", "device"},
    "bytes_sent": {"seeds"},
    "draws": {"seeds"},
    "restarts": {"seeds"},
    "move": {"still", "restart", "aggregate", "seeds"},
    "moves": {"seeds"},
    "same_model": {"seeds"},
}
_OF_FILES = {**claims_nodes.MEASURES, **claims_moves.MEASURES}
_COMPOSED = ("ratio", "difference", "paired")
_BARE = ("number", *_OF_FILES)


_CHANGED = "claims.toml was changed since the run was made"


def compute_claims(run_dir: str | Path, claims_toml: str | Path | None = None) -> list[dict[str, Any]]:
    """Recompute every claim of a study from the tables of its arms.

    ``claims_toml`` defaults to the run's own ``claims.toml``; without either there are no claims: ``[]``. Each entry
    has ``name``, ``ours`` (None when it cannot be computed), ``target``, ``sense`` (``>=``, ``<=``, or ``=`` for no
    further from the target than ``tolerance``), ``tolerance`` and ``published`` (or None), ``holds``, ``unit`` (see
    `units.in_unit`), ``measure`` (in words), ``preliminary`` (whether it was computed from fewer seeds than it asks
    for, which only a study run with ``--quick`` does) and ``why`` (the reason when it can not hold, as ``ours`` is None
    or the run's own ``claims.toml`` was changed, see `claims_changed`). A claim that the run made and that its
    ``claims.toml`` holds no more is listed too, and does not hold. Measures, each taken per seed and then aggregated
    (``aggregate``: median unless stated):

    - ``final``: the last value of ``metric``, or the mean of its last ``window`` values;
    - ``best``: its highest value; its lowest for a loss or with ``goal = "min"``;
    - ``best_at``: the ``axis`` (default ``round``) at which it first was there, each run at a level of its own;
    - ``at``: its last value at or before ``point`` on ``axis``;
    - ``time_to``: the first ``axis`` (default ``round``) at which it is at least ``threshold``; at most for a loss or
      with ``reach = "<="``; with ``between = true`` where the line between two evaluations crosses it;
    - ``total``: what the whole run came to on ``axis``, the evaluations after its last round included;
    - ``ratio``, ``difference``: of the two measures ``of`` and ``to``;
    - ``paired``: the same seed by seed (``how``: ratio, or difference), of which ``take`` is the median, or the ``low``
      or ``high`` limit of its 95 % interval (bootstrap);
    - ``number``: ``value``, to put beside another measure;
    - of runs of several nodes, ``factor``: one of ``speedup``, ``utilisation``, ``communication``, ``statistics`` of
      ``arm`` over the arm ``over`` at ``threshold`` of ``metric`` (see `decompose`); ``curve``: the x at which the
      speed-up along ``points`` ``[[x, slower arm, faster arm], ...]`` comes to ``level``; ``idle``: the share of time
      in which ``device`` (all: their mean) stood idle; ``bytes_sent``: bytes of messages of ``kind`` in a cycle;
      ``draws``: the probability of draws as far from their chances; ``restarts``: rings that were begun again, called
      off or had too few members, of the run that had most;
    - of devices that move, ``move``: ``figure`` (see `claims_moves.FIGURES`) of the moves of ``arm``, the largest or as
      ``aggregate`` says, beside the arms ``still`` without them and ``restart``; ``moves``: how many there were;
      ``same_model``: the share of seeds in which ``arm`` and ``to`` end in the same bytes.

    ``arm`` names an arm (its seeds, or ``name/seed`` for one of them); without it the run itself is meant. ``seeds``
    asks for at least so many. Raises `UsageError` for a claims file that cannot mean anything; a damaged table is not
    an error but a claim that does not hold.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise UsageError(f"there is no run at {folder}: give the path of a run folder, runs/<id>.")
    source = Path(claims_toml) if claims_toml is not None else folder / "claims.toml"
    tables = _Tables(folder)
    written = read_claims(source) if claims_toml is not None or source.is_file() else []
    names = {claim["name"] for claim in written}
    made = claims_made(folder) if claims_toml is None else {}
    judged = [_judge(claim, tables) for claim in written]
    if claims_toml is None and claims_changed(folder):
        judged = [{**claim, "holds": False, "why": _CHANGED} for claim in judged]
    return judged + [_gone(name, told) for name, told in made.items() if name not in names]


def digest(claims_toml: Path) -> str | None:
    """Give the SHA-256 of a claims file in hexadecimal; None where there is none."""
    return hashlib.sha256(claims_toml.read_bytes()).hexdigest() if claims_toml.is_file() else None


def claims_changed(run_dir: str | Path) -> str | None:
    """Say in one line that a run's ``claims.toml`` is not the one it was made with, to the byte; None where it is.

    Compared with ``claims_sha256`` of ``config.json`` (written when the run begins) and of ``summary.json`` (at its
    end); a run that kept neither is not checked.
    """
    folder = Path(run_dir)
    now = digest(folder / "claims.toml")
    for name in ("config.json", "summary.json"):
        try:
            kept = load(folder / name)
        except UsageError:
            continue
        if kept.get("claims_sha256", now) != now:
            return (
                f"{_CHANGED} (its SHA-256 is not that in {name}), so none of its claims holds: put the file back as it "
                "was, or run the study again."
            )
    return None


def claims_made(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Name the claims that a run was started with, or was told to hold at its end: ``{name: what was told}``."""
    made: dict[str, Mapping[str, Any]] = {}
    for name in ("config.json", "summary.json"):
        try:
            listed = load(folder / name).get("claims")
        except UsageError:
            continue
        for one in listed if isinstance(listed, list) else []:
            told = one if isinstance(one, Mapping) else {"name": one}
            if isinstance(told.get("name"), str):
                made[told["name"]] = told
    return made


def _gone(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: told.get(key) for key in ("target", "sense", "tolerance", "published")}
    words = {key: told.get(key) or "" for key in ("unit", "measure")}
    return {"name": name, "ours": None, **kept, "holds": False, **words, "why": "its entry in claims.toml is gone"}


def read_claims(path: str | Path) -> list[dict[str, Any]]:
    """Read and check a claims file; every fault is a `UsageError` that names the claim."""
    source = Path(path)
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the claims file {source} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} is no TOML ({error}): write [[claim]] tables.") from None
    claims = raw.get("claim", [])
    if not isinstance(claims, list) or set(raw) - {"claim"} or not all(isinstance(one, dict) for one in claims):
        raise UsageError(f"{source} holds {', '.join(raw) or 'nothing'}: write every claim as a [[claim]] table.")
    for claim in claims:
        _check_claim(claim, source)
    return claims


def _check_claim(claim: Mapping[str, Any], source: Path) -> None:
    name = claim.get("name")
    if not isinstance(name, str) or not name:
        raise UsageError(f'{source}: a claim has no name: write name = "what is claimed".')
    where = f"{source}, claim {name!r}"
    if not is_number(claim.get("target")):
        raise UsageError(f"{where}: target is {claim.get('target')!r}, a number is needed.")
    if claim.get("sense") not in (">=", "<=", "="):
        raise UsageError(f'{where}: sense is {claim.get("sense")!r}, write ">=", "<=" or "=".')
    tolerance = claim.get("tolerance")
    if (tolerance is None) == (claim["sense"] == "=") or (
        tolerance is not None and not (is_number(tolerance) and 0 <= tolerance < math.inf)
    ):
        raise UsageError(f'{where}: tolerance is {tolerance!r}, sense "=" needs a number from 0 on, no other takes it.')
    if "published" in claim and not is_number(claim["published"]):
        raise UsageError(f"{where}: published is {claim['published']!r}, write a number or leave it out.")
    _check_measure({key: value for key, value in claim.items() if key not in _OWN}, where)


def _check_measure(measure: Mapping[str, Any], where: str) -> None:
    kind = measure.get("measure", "final")
    if kind not in _NEEDS:
        raise UsageError(f"{where}: measure is {kind!r}, one of {', '.join(_NEEDS)} is needed.")
    composed = kind in _COMPOSED
    may = _NEEDS[kind] | _MAY[kind] | (set() if composed or kind in _BARE else _SIMPLE) | {"measure"}
    if absent := _NEEDS[kind] - set(measure):
        raise UsageError(f"{where}: measure {kind!r} needs {', '.join(sorted(absent))}.")
    if extra := set(measure) - may:
        raise UsageError(
            f"{where}: {', '.join(sorted(extra))} means nothing to measure {kind!r}, it takes {', '.join(sorted(may))}."
        )
    choices = {"aggregate": AGGREGATES, "axis": AXES, "goal": ("max", "min"), "reach": (">=", "<="),
               "take": TAKEN, "how": ("ratio", "difference"), "between": (True, False)}  # fmt: skip
    for key, allowed in choices.items():
        if key in measure and measure[key] not in allowed:
            raise UsageError(f"{where}: {key} is {measure[key]!r}, one of {', '.join(allowed)} is needed.")
    for key in ("threshold", "point", "window", "seeds", "value", "level", "device"):
        if key in measure and not (is_number(measure[key]) and math.isfinite(measure[key])):
            raise UsageError(f"{where}: {key} is {measure[key]!r}, a finite number is needed.")
    if measure.get("window", 1) < 1:
        raise UsageError(f"{where}: window is {measure['window']}, at least 1 is needed.")
    about = claims_moves if kind in claims_moves.MEASURES else claims_nodes
    if kind in _OF_FILES and (told := about.fault(measure)):
        raise UsageError(f"{where}: {told}.")
    for side in ("of", "to") if composed else ():
        if not isinstance(measure[side], Mapping):
            raise UsageError(f"{where}: {side} is {measure[side]!r}, write a measure: {side} = {{ measure = ... }}.")
        if kind == "paired" and measure[side].get("measure", "final") in (*_COMPOSED, *_BARE):
            raise UsageError(
                f"{where}: {side} is taken seed by seed: use a final, best, at, time_to or total of an arm."
            )
        _check_measure(measure[side], f"{where}, {side}")


class _Tables:
    """The tables of a study, read once each; what cannot be read is a `_Missing` that says why."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, Table] = {}
        self._arms: dict[str, list[Path]] | None = None
        self._listed: list[str] = []
        self.quick = self._quick()
        self.short = ""

    def _quick(self) -> bool:
        try:
            return load(self.folder / "config.json").get("quick") is True
        except UsageError:
            return False

    def of(self, arm: str | None) -> dict[str, Table]:
        """Give the tables of an arm by seed."""
        return {path.name: self._table(path) for path in self.folders(arm)}

    def enough(self, arm: str | None, measure: Mapping[str, Any]) -> None:
        """Ask an arm for the ``seeds`` of a measure; where a quick study has fewer, remember that it is preliminary."""
        seeds, asked = len(self.folders(arm)), measure.get("seeds", 1)
        if seeds < asked and not self.quick:
            raise _Missing(f"{arm or 'the run'} has {seeds} seeds, {asked} are asked for")
        if seeds < asked:
            self.short = self.short or f"preliminary: from {seeds} of {asked} seeds"

    def checked(self, arm: str) -> list[Path]:
        """Give the folders of an arm whose tables are whole."""
        return [path for path in self.folders(arm) if self._table(path).n]

    def folders(self, arm: str | None) -> list[Path]:
        """Give the runs of an arm, one per seed."""
        if arm is None:
            listed = listed_arms(self.folder)  # a study's own records are its first arm's
            return [self.folder / "arms" / listed[0] if listed else self.folder]
        if self._arms is None:
            self._arms = arm_folders(self.folder)
            self._listed = listed_arms(self.folder)
        if arm in self._arms:
            folders = self._arms[arm]
            there = {path.relative_to(self.folder / "arms").as_posix() for path in folders}
            if lost := [one for one in self._listed if one.startswith(f"{arm}/") and one not in there]:
                raise _Missing(f"of arm {arm} the seeds {', '.join(one.split('/', 1)[1] for one in lost)} are missing")
            return folders
        single = self.folder / "arms" / arm
        if ".." not in arm.split("/") and is_run(single):
            return [single]
        raise _Missing(f"there is no arm {arm}")

    def _table(self, folder: Path) -> Table:
        if folder not in self._read:
            self._read[folder] = self._whole(folder)
        return self._read[folder]

    def _whole(self, folder: Path) -> Table:
        """Read a table that holds every round its run had and comes to the totals that the run came to."""
        name = (folder / "rounds.jsonl").relative_to(self.folder).as_posix()
        beside = (folder / "summary.json").relative_to(self.folder).as_posix()
        try:
            table = read_table(folder)
        except UsageError:
            bad = beside.replace("summary", "totals") if _damaged(folder / "totals.json") else name
            raise _Missing(f"{bad} cannot be read") from None
        if not table.n:
            raise _Missing(f"{name} is missing or empty")
        if is_cut_off(folder / "rounds.jsonl"):
            raise _Missing(f"the last line of {name} is cut off")
        try:
            summary = load(folder / "summary.json")
        except UsageError:
            raise _Missing(f"{beside} cannot be read") from None
        if not summary:
            raise _Missing(f"{beside} is missing: the run has not ended")
        rounds = table.column("round")
        several = "bytes_between" in table.columns  # where a cycle nobody agreed on is no row
        if not (np.diff(rounds) >= 1).all() if several else rounds[0] > 1 or np.any(np.diff(rounds) != 1):
            raise _Missing(f"{name} lacks rounds")
        if summary.get("rounds") != rounds[-1]:
            told = units.number(float(rounds[-1]))
            raise _Missing(f"{name} ends with round {told}, {beside} says {summary.get('rounds')}")
        for axis in RUNNING:
            column = table.column(axis)
            if np.any(np.diff(column[np.isfinite(column)]) < 0):
                raise _Missing(f"{axis} falls in {name}, and it is a running total")
        for axis in (*RUNNING, *SUMMED):
            whole, told = table.total(axis), summed(summary.get(axis))
            if told is not None and (whole is None or not math.isclose(whole, told, rel_tol=1e-9, abs_tol=1e-6)):
                ours = "nothing" if whole is None else f"{whole:.10g}"
                raise _Missing(f"{name} comes to {ours} {axis}, {beside} says {told:.10g}")
        return table


def _damaged(path: Path) -> bool:
    try:
        load(path)
    except UsageError:
        return True
    return False


def _judge(claim: Mapping[str, Any], tables: _Tables) -> dict[str, Any]:
    measure = {key: value for key, value in claim.items() if key not in _OWN}
    ours: float | None
    tables.short = ""
    try:
        ours, why = _value(measure, tables, "median"), tables.short or None
    except _Missing as missing:
        ours, why = None, str(missing)
    target = float(claim["target"])
    holds = ours is not None and _meets(ours, claim["sense"], target, claim.get("tolerance"))
    return {
        "name": claim["name"],
        "ours": ours,
        "target": claim["target"],
        "sense": claim["sense"],
        "tolerance": claim.get("tolerance"),
        "published": claim.get("published"),
        "holds": holds,
        "preliminary": ours is not None and bool(tables.short),
        "unit": _unit(measure),
        "measure": in_words(measure),
        "why": why,
    }


def _meets(ours: float, sense: str, target: float, tolerance: float | None) -> bool:
    match sense:
        case ">=":
            return ours >= target
        case "<=":
            return ours <= target
        case _:
            return abs(ours - target) <= (tolerance or 0.0)


def _value(measure: Mapping[str, Any], tables: _Tables, aggregate: str) -> float:
    """Give the value of a measure, always finite; `_Missing` says why there is none."""
    kind = measure.get("measure", "final")
    aggregate = measure.get("aggregate", aggregate)
    if kind in ("ratio", "difference"):
        of, to = (_value(measure[side], tables, aggregate) for side in ("of", "to"))
        if kind == "ratio" and to == 0:
            raise _Missing(f"{in_words(measure['to'])} is 0 and nothing can be divided by it")
        return of / to if kind == "ratio" else of - to
    if kind == "number":
        return float(measure["value"])
    if kind == "paired":
        both = [_by_seed({**measure[side], "seeds": measure.get("seeds", 1)}, tables) for side in ("of", "to")]
        return claims_nodes.pair(both[0], both[1], measure, in_words(measure))
    arm = measure.get("arm")
    if kind in _OF_FILES:
        beside = [measure.get(name) for name in ("over", "still", "restart", "to")]
        for one in [arm, *beside, *(name for point in measure.get("points", []) for name in point[1:])]:
            if one is not None:
                tables.enough(one, measure)
        return _OF_FILES[kind](measure, tables.checked)
    values = list(_by_seed(measure, tables).values())
    whole = _aggregate(aggregate, values)
    if not math.isfinite(whole):
        reached = f"never reached {measure.get('metric')} {measure.get('threshold')}"
        raise _Missing(f"{arm or 'the run'} {reached}" + (" with enough seeds" if len(values) > 1 else ""))
    return whole


def _by_seed(measure: Mapping[str, Any], tables: _Tables) -> dict[str, float]:
    """A simple measure of every seed of its arm."""
    tables.enough(measure.get("arm"), measure)
    kind = measure.get("measure", "final")
    return {seed: _take(kind, measure, table) for seed, table in tables.of(measure.get("arm")).items()}


def _aggregate(how: str, values: Sequence[float]) -> float:
    """Aggregate over seeds; inf (never reached) sorts last, so a median stands while more than half did reach."""
    ordered = sorted(values)
    match how:
        case "median":
            low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
            return (low + high) / 2
        case "mean":
            return math.fsum(ordered) / len(ordered)
        case "min":
            return ordered[0]
        case _:
            return ordered[-1]


def _take(kind: str, measure: Mapping[str, Any], table: Table) -> float:
    """Take a simple measure from one table; inf means: the threshold was never reached."""
    arm, metric = measure.get("arm") or "the run", measure.get("metric", "")
    axis = measure.get("axis", "round")
    if kind == "total":
        whole = table.total(axis)
        if whole is None:
            raise _Missing(f"{arm} has no {axis}")
        return whole
    recorded = table.column(metric)
    if not (~np.isnan(recorded)).any():
        raise _Missing(f"{arm} has no {metric}")
    x, y = table.series(metric, axis)
    if kind == "final":
        last = recorded[~np.isnan(recorded)][-int(measure.get("window", 1)) :]
        if not np.isfinite(last).all():
            raise _Missing(f"the last {metric} of {arm} is not finite")
        return float(last.mean())
    if not y.size:
        raise _Missing(f"{arm} has no finite {metric} with {axis}")
    if kind in ("best", "best_at"):
        goal = measure.get("goal", "min" if units.lower_is_better(metric) else "max")
        at = int(np.argmax(y) if goal == "max" else np.argmin(y))
        return float(y[at] if kind == "best" else x[at])
    if kind == "at":
        before = np.flatnonzero(x <= measure["point"])
        if not before.size or float(x[-1]) < measure["point"]:
            raise _Missing(f"{arm} did not come as far as {axis} {units.number(measure['point'])}")
        return float(y[before[-1]])
    reach = measure.get("reach", "<=" if units.lower_is_better(metric) else ">=")
    if measure.get("between"):
        return crossing(x, y, float(measure["threshold"]), lower=reach == "<=")
    there = y >= measure["threshold"] if reach == ">=" else y <= measure["threshold"]
    return float(x[np.argmax(there)]) if there.any() else math.inf


def _unit(measure: Mapping[str, Any]) -> str:
    kind = measure.get("measure", "final")
    if kind in claims_moves.MEASURES:
        return claims_moves.unit(measure)
    if kind in ("idle", "bytes_sent"):
        return {"idle": "share", "bytes_sent": "bytes"}[kind]
    if kind in ("curve", "draws", "number", "restarts"):
        return ""
    if kind in ("ratio", "factor") or (kind == "paired" and measure.get("how", "ratio") == "ratio"):
        return "times"
    if kind in ("difference", "paired"):
        unit = _unit(measure["of"])
        return "points" if unit == "share" else unit
    on_axis = kind in ("time_to", "total", "best_at")
    return units.unit_of(measure.get("axis", "round") if on_axis else measure["metric"])


def in_words(measure: Mapping[str, Any]) -> str:
    """Say what a measure measures.

    >>> in_words({"measure": "time_to", "arm": "fedavg", "metric": "accuracy", "threshold": 0.9})
    'rounds of fedavg to accuracy ≥ 90 %'
    """
    kind = measure.get("measure", "final")
    metric, axis = measure.get("metric", ""), measure.get("axis", "round")
    arm = f" of {measure['arm']}" if measure.get("arm") else ""
    taken = f" ({measure['aggregate']} over seeds)" if "aggregate" in measure else ""
    plain = units.short_label(metric)
    if kind in _OF_FILES:
        return (claims_moves if kind in claims_moves.MEASURES else claims_nodes).in_words(measure)
    match kind:
        case "number":
            return units.number(float(measure["value"]))
        case "paired":
            sign = "÷" if measure.get("how", "ratio") == "ratio" else "−"
            taken = {"median": "median", "low": "lower 95 % limit", "high": "upper 95 % limit"}
            what = f"{in_words(measure['of'])} {sign} {in_words(measure['to'])}"
            return f"{taken[measure.get('take', 'median')]} over paired seeds of {what}"
        case "ratio":
            return f"{in_words(measure['of'])} ÷ {in_words(measure['to'])}"
        case "difference":
            return f"{in_words(measure['of'])} − {in_words(measure['to'])}"
        case "time_to":
            reach = measure.get("reach", "<=" if units.lower_is_better(metric) else ">=")
            words = "rounds" if axis == "round" else units.label(axis)
            level = float(measure["threshold"])
            told = f"{100 * level:g} %" if units.unit_of(metric) == "share" else units.measured(metric, level)
            return f"{words}{arm} to {plain} {'≥' if reach == '>=' else '≤'} {told}{taken}"
        case "best_at":
            words = "round" if axis == "round" else units.label(axis)
            return f"{words}{arm} of its own best {plain}{taken}"
        case "total":
            return f"total {units.label(axis)}{arm}{taken}"
        case "at":
            return f"{plain}{arm} at {units.label(axis)} {units.number(float(measure['point']))}{taken}"
        case "final" if "window" in measure:
            return f"mean of the last {measure['window']} values of {plain}{arm}{taken}"
        case _:
            return f"{kind} {plain}{arm}{taken}"
