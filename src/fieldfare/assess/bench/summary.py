"""Records of devices become a bench artefact: Table 5's view, times over the population, who may take part.

Here: what is computed of records. Not here: measuring (`targets`), the paper's own numbers (`paper`). Invariants: equal
records, settings and population make an equal artefact, in whatever order they were measured; a number that nobody
measured is null. Formulas are those of FLINT's report, section 7; that a device's p95 is taken over its repeats, and
that every repeat has to end well, is our reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.bench.extrapolate import Line, drawn, line, noise
from fieldfare.assess.bench.population import Kind
from fieldfare.assess.bench.records import Record, flat, lines
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

F64 = NDArray[np.float64]

SIGMA, FEWEST = 0.65, 3
"""Spread of log time over devices where fewer were measured: Table 5 has 0.61 to 0.67, whatever the model."""
P95 = 1.6448536


@settings
@dataclass(frozen=True)
class Limits:
    """What a device's task may take (FLINT: under 10 MB in the own app, under 1 MB in a kit for others; else ours)."""

    storage_bytes: float = 10e6
    p95_task_s: float = 60.0
    cpu_pct: float = 10.0
    mem_bytes: float = 50e6
    battery_share_per_day: float = 0.01

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise UsageError(f"Limits({name}={value}): use a number above 0.")


@settings
@dataclass(frozen=True)
class Config:
    """What a task is: `records` of it (None: as many as were measured) times `epochs`, so many a day; its limits."""

    records: float | None = None
    epochs: float = 1.0
    tasks_per_day: float = 1.0
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("records", "epochs", "tasks_per_day"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"Config({name}={value}): use a number above 0.")


@dataclass(frozen=True, slots=True)
class Device:
    """What the repeats of one model on one device say; means over repeats that ended well, None where unknown."""

    model: str
    os: str
    os_version: str
    score: float | None
    each_s: float | None
    slow_s: float | None
    cpu_pct: float | None
    mem_bytes: float | None
    battery_each: float | None
    energy_each: float | None
    failed: str
    emulated: bool

    @property
    def name(self) -> str:
        return " ".join(one for one in (self.model, self.os, self.os_version) if one)


@dataclass(frozen=True, slots=True)
class Times:
    """T_m: a row per kind of device, `[n]` each: seconds per record, share of users, how it was come by; and the row's
    95 % quantile; `line` where one was drawn; how many `devices` were measured."""

    kinds: tuple[Kind, ...]
    each_s: F64
    p95_each_s: F64
    share: F64
    how: tuple[str, ...]
    line: Line | None
    devices: int

    def fit(self) -> tuple[float, float, float]:
        """(mean, mu, sigma) of seconds per record: sigma^2 = ln(1 + s^2 / m^2), mu = ln m - sigma^2 / 2."""
        mean, std = spread(self.each_s, self.share)
        sigma = SIGMA if self.devices < FEWEST else sqrt(log(1 + (std / mean) ** 2))
        return mean, log(mean) - sigma**2 / 2, sigma


def build(
    records: Sequence[Record], out: str | Path, config: Config | None = None, people: Sequence[Kind] = (),
    inputs: Sequence[Mapping[str, Any]] = (),
) -> Artefact:  # fmt: skip
    """The artefact of kind `bench` of records, over a population (default: the devices measured, alike in number)."""
    config = config or Config()
    if not records:
        raise UsageError("a bench artefact is made of records, and there are none: measure, or read some with --from.")
    ordered = sorted(records, key=lambda one: json.dumps(one, sort_keys=True))
    names = sorted({str(one["model"]["name"]) for one in ordered})
    packages = sorted({str(one["package"]) for one in ordered})
    draft = Draft("bench", seed=config.seed, params={**asdict(config), "packages": packages}, inputs=inputs)
    draft.files["records.jsonl"] = lines(ordered)
    draft.table("records", flat(ordered))
    parts = [_Part.of(name, [one for one in ordered if one["model"]["name"] == name], config, people) for name in names]
    for part in parts:
        draft.values |= part.values()
    draft.table("models", _columns([part.row() for part in parts]))
    draft.table("times", _columns([row for part in parts for row in part.times_rows()], TIMES))
    draft.table("eligible", _columns([row for part in parts for row in part.eligible_rows()]))
    return draft.write(out)


def spread(values: F64, share: F64) -> tuple[float, float]:
    """Mean and deviation of a sample `[n]` with weights `[n]` that add up to 1; deviation 0 of one.

    >>> spread(np.array([1.0, 3.0]), np.array([0.5, 0.5]))
    (2.0, 1.4142135623730951)
    """
    mean = float((share * values).sum())
    free = 1.0 - float((share**2).sum())
    return mean, 0.0 if free <= 1e-12 else sqrt(float((share * (values - mean) ** 2).sum()) / free)


def devices_of(records: Sequence[Record]) -> list[Device]:
    """One device per (model, system, version), of records of one model."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for one in records:
        device = one["device"]
        key = tuple(str(device[name] or "") for name in ("model", "os", "os_version"))
        found.setdefault((key[0] or "unknown", key[1], key[2]), []).append(one)
    return [_device(key, ones) for key, ones in sorted(found.items())]


def times_of(devices: Sequence[Device], people: Sequence[Kind], model: str, seed: int) -> Times | None:
    """T_m over the population: measured where a device was, else by its score, else drawn; None where none was."""
    measured = [one for one in devices if one.each_s is not None]
    if not measured:
        return None
    if not people:
        rest = 1.0 / len(measured)
        people = [Kind(one.model, one.os, one.os_version, one.score, rest) for one in measured]
    of = {kind: [one for one in measured if kind.holds(one.model, one.os, one.os_version)] for kind in people}
    scores = [one.score or next((k.score for k in people if one in of[k] and k.score), None) for one in measured]
    each = np.array([one.each_s for one in measured], np.float64)
    found = line(np.array([np.nan if one is None else one for one in scores]), each)
    failed = {kind for kind in people if not of[kind] and any(kind.holds(d.model, d.os, d.os_version) for d in devices)}
    kinds = tuple(kind for kind in people if kind not in failed)
    if not kinds:
        return None
    log_noise = dict(zip(kinds, noise(seed, model, [kind.name for kind in kinds]), strict=True))
    weights = np.array([sum(kind.share for kind in people if one in of[kind]) for one in measured])
    weights[weights == 0] = weights[weights > 0].mean() if weights.any() else 1.0  # measured, and not of the population
    draws = dict(zip(kinds, drawn(seed, model, [kind.name for kind in kinds], each, weights), strict=True))
    rows: list[tuple[float, float, str]] = []
    for kind in kinds:
        if of[kind]:
            mean = float(np.mean([one.each_s for one in of[kind] if one.each_s is not None]))
            rows.append((mean, max(one.slow_s for one in of[kind] if one.slow_s is not None), "measured"))
        elif found is not None and kind.score is not None:
            middle = found.log_time(kind.score)
            rows.append((exp(middle + found.sigma * float(log_noise[kind])), exp(middle + P95 * found.sigma), "score"))
        else:
            slow = float(np.quantile(each, 0.95))
            rows.append((float(draws[kind]), slow, "drawn"))
    share = np.array([kind.share for kind in kinds])
    return Times(
        kinds, np.array([one[0] for one in rows]), np.array([one[1] for one in rows]), share / share.sum(),
        tuple(one[2] for one in rows), found if any(one[2] == "score" for one in rows) else None, len(measured),
    )  # fmt: skip


TIMES = ("device_model", "os", "os_version", "model", "per_record_s", "p95_per_record_s", "share", "ai_score", "how")


@dataclass(frozen=True, eq=False)
class _Part:
    """One model's part of the artefact."""

    name: str
    about: Mapping[str, Any]
    devices: Sequence[Device]
    times: Times | None
    config: Config
    records: float

    @classmethod
    def of(cls, name: str, records: Sequence[Record], config: Config, people: Sequence[Kind]) -> _Part:
        about = {key: _same(records, key) for key in records[0]["model"]}
        devices = devices_of(records)
        told = [float(one["records"]) for one in records if one["status"] == "ok"]
        wanted = config.records if config.records is not None else max(told, default=0.0)
        return cls(name, about, devices, times_of(devices, people, name, config.seed), config, wanted)

    @property
    def task(self) -> float:
        """Records that a task goes through."""
        return self.records * (self.config.epochs if self.config.records is not None else 1.0)

    def row(self) -> dict[str, Any]:
        """Table 5's view: means over the devices measured, and the fit over the population."""
        each = [one.each_s for one in self.devices if one.each_s is not None]
        n = len(each)
        mean, std = spread(np.array(each), np.full(n, 1.0 / n)) if n else (None, None)
        fit = None if self.times is None else self.times.fit()
        battery = _mean([one.battery_each for one in self.devices])
        energy = _mean([one.energy_each for one in self.devices])
        first = ("params", "params_trainable", "storage_bytes", "wire_down_bytes", "wire_up_bytes")
        return {
            "model": self.name, **{key: self.about[key] for key in first},
            "mem_bytes": _mean([one.mem_bytes for one in self.devices]),
            "mean_s": None if mean is None else mean * self.task,
            "std_s": std * self.task if std is not None and n > 1 else None,
            "cpu_pct": _mean([one.cpu_pct for one in self.devices]),
            "per_record_s": fit and fit[0], "lognormal_mu": fit and fit[1], "lognormal_sigma": fit and fit[2],
            "n_devices": n, "p95_task_s": fit and exp(fit[1] + P95 * fit[2]) * self.task,
            "battery_share_per_day": None if battery is None else battery * self.task * self.config.tasks_per_day,
            "energy_j": None if energy is None else energy * self.task,
            **{key: self.about[key] for key in self.about if key not in (*first, "name")},
        }  # fmt: skip

    def values(self) -> dict[str, Value]:
        row, n = self.row(), sum(one.each_s is not None for one in self.devices)
        how, note = "measured", ""
        if any(one.emulated for one in self.devices):
            how, note = "simulated", "devices were played by this machine"
        found: dict[str, Value] = {}
        for name, unit in UNITS.items():
            found[name] = Value(row[name], unit, how=how, note=note)
            if 0 < n < FEWEST and name in _SPREAD:
                told = f"of {n} device{'s' if n > 1 else ''}: spread over devices assumed as in FLINT's table 5"
                found[name] = Value(row[name], unit, how="assumed", note=told)
            elif name in _EXACT or name in _OWN:
                found[name] = Value(row[name], unit, how="closed form" if name == "flops_per_record" else "measured")
        if self.records:
            found["records"] = Value(self.records, "records", how="declared", note="of the task that was measured")
        at = None if self.times is None else self.times.line
        if at is not None:
            word = f"log time on log score, {at.n} devices"
            found["extrapolation_r2"] = Value(at.r2, "1", how="closed form", note=word)
            found["extrapolation_sigma"] = Value(at.sigma, "1", how="closed form", note="of the residuals of log time")
            found["extrapolation_error"] = Value(
                exp(at.leave_one_out) - 1, "share", how="closed form",
                note="typical error of a device predicted from the others, as a share of its time",
            )  # fmt: skip
        return {f"{self.name}.{name}": one for name, one in found.items()}

    def times_rows(self) -> list[dict[str, Any]]:
        if self.times is None:
            return []
        t = self.times
        return [
            {"device_model": kind.model, "os": kind.os, "os_version": kind.os_version, "model": self.name,
             "per_record_s": float(t.each_s[i]), "p95_per_record_s": float(t.p95_each_s[i]),
             "share": float(t.share[i]), "ai_score": kind.score, "how": t.how[i]}
            for i, kind in enumerate(t.kinds)
        ]  # fmt: skip

    def eligible_rows(self) -> list[dict[str, Any]]:
        """A line per device measured, and per kind of the population that was not."""
        rows: list[dict[str, Any]] = []
        for one in self.devices:
            p95 = None if one.slow_s is None else one.slow_s * self.task
            rows.append(self._verdict(one.model, one.os, one.os_version, p95, one, "measured"))
        if self.times is not None:
            for i, kind in enumerate(self.times.kinds):
                if self.times.how[i] != "measured":
                    p95 = float(self.times.p95_each_s[i]) * self.task
                    rows.append(self._verdict(kind.model, kind.os, kind.os_version, p95, None, self.times.how[i]))
        return rows

    def _verdict(
        self, model: str, os: str, version: str, p95: float | None, one: Device | None, how: str
    ) -> dict[str, Any]:
        limits, battery = self.config.limits, None if one is None else one.battery_each
        checks = {
            "p95_task_s": (p95, limits.p95_task_s), "cpu_pct": (None if one is None else one.cpu_pct, limits.cpu_pct),
            "mem_bytes": (None if one is None else one.mem_bytes, limits.mem_bytes),
            "storage_bytes": (self.about["storage_bytes"], limits.storage_bytes),
            "battery_share_per_day": (
                None if battery is None else battery * self.task * self.config.tasks_per_day,
                limits.battery_share_per_day,
            ),
        }  # fmt: skip
        over = [
            f"{name} {value:.4g} is above {limit:g}"
            for name, (value, limit) in checks.items()
            if value is not None and value > limit
        ]
        if one is not None and one.failed:
            over.insert(0, one.failed)
        unknown = [name for name, (value, _) in checks.items() if value is None]
        good = "ok" + (f"; not measured: {', '.join(unknown)}" if unknown else "")
        by = {"score": "; time by its score", "drawn": "; time drawn from devices measured"}.get(how, "")
        return {
            "device_model": model, "os": os, "os_version": version, "model": self.name, "eligible": int(not over),
            "reason": ("; ".join(over) or good) + by, "p95_task_s": p95, "how": how,
        }  # fmt: skip


UNITS: Mapping[str, str] = {
    "mean_s": "s", "p95_task_s": "s", "per_record_s": "s", "lognormal_mu": "1", "lognormal_sigma": "1",
    "storage_bytes": "B", "wire_down_bytes": "B", "wire_up_bytes": "B", "mem_bytes": "B", "cpu_pct": "%",
    "battery_share_per_day": "share", "flops_per_record": "FLOP", "energy_j": "J",
}  # fmt: skip
_EXACT = ("storage_bytes", "wire_down_bytes", "wire_up_bytes", "flops_per_record")
_OWN = ("cpu_pct", "battery_share_per_day", "energy_j")  # which no device that is played tells
_SPREAD = ("lognormal_mu", "lognormal_sigma", "p95_task_s")
_TEXT = ("model", "version", "device_model", "os", "os_version", "reason", "how")


def _device(key: tuple[str, str, str], records: Sequence[Record]) -> Device:
    good = [one for one in records if one["status"] == "ok"]
    bad = [one for one in records if one["status"] != "ok"]
    each = [float(one["per_record_s"]) for one in good]
    memory = [float(one["mem_delta_bytes"]) for one in good if one["mem_delta_bytes"] is not None]
    told = f"{bad[0]['status']}" + (f": {bad[0]['note']}" if bad[0]["note"] else "") if bad else ""
    share = f" in {len(bad)} of {len(records)} repeats" if good and bad else ""
    return Device(
        *key,
        score=_mean([one["device"]["ai_score"] for one in records]),
        each_s=_mean(each),
        slow_s=float(np.quantile(each, 0.95)) if each else None,
        cpu_pct=_mean([one["cpu_pct_mean"] for one in good]),
        mem_bytes=max(memory, default=None),
        battery_each=_mean([_battery(one) for one in good]),
        energy_each=_mean([None if one["energy_j"] is None else one["energy_j"] / one["records"] for one in good]),
        failed=told + share,
        emulated=any(one["how"] == "emulated" for one in records),
    )


def _battery(one: Record) -> float | None:
    """Share of the battery an example takes: of its charge, else of the level shown; None where that did not fall."""
    if one["charge_mah"] is not None and one["battery_full_mah"]:
        spent = one["charge_mah"] / one["battery_full_mah"]
    elif one["battery_before"] is not None and one["battery_after"] is not None:
        spent = one["battery_before"] - one["battery_after"]
    else:
        return None
    return spent / one["records"] if spent > 0 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(one) for one in values if one is not None]
    return float(np.mean(known)) if known else None


def _same(records: Sequence[Record], key: str) -> Any:
    """What all records say of the model; sizes that differ are two models under one name, which is refused."""
    told = {json.dumps(one["model"][key]) for one in records}
    if len(told) > 1:
        name = records[0]["model"]["name"]
        raise UsageError(f"records call two models {name!r} ({key}: {', '.join(sorted(told))}): name them apart.")
    return records[0]["model"][key]


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in rows[0] if rows else names:
        values = [row[name] for row in rows]
        if name in _TEXT:
            found[name] = [one or "" for one in values]
        else:
            found[name] = np.array([np.nan if one is None else float(one) for one in values])
    return found
