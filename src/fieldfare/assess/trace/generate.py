"""Session logs made up where there is none: a week's template, log-normal lengths, devices by their shares.

Here: a log with the columns that criteria ask for, as a file. Sessions of a client begin as a non-homogeneous Poisson
process over a 168-hour template. The numbers are those of `fleet.templates` (FLINT's Fig. 2 and Table 1, FedScale's
charging traces; our choices are told there); models by FLINT's Fig. 1. Not here: fleets for the simulator
(`fleet.generate`). Invariant: client i has the same sessions whatever the number of clients, since all is drawn from
counters keyed by (seed, i).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.fleet.availability import DAY_S, WEEK_S
from fieldfare.fleet.columns import Array, Text, write_columns
from fieldfare.fleet.templates import PRESETS, ZONES

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

NAMES = ("flint-strict", "fedscale-charging")
START_S = 1_704_672_000.0
"""Second of UTC's epoch at which a log begins: Monday, 8 January 2024, 0 h."""

MODELS: dict[str, tuple[tuple[str, float], ...]] = {
    "ios-new": (("iPhone 12", 23.0), ("iPhone 13", 13.0)), "ios-mid": (("iPhone 11", 27.0), ("iPhone 10", 14.0)),
    "ios-old": (("iPhone 9", 11.0), ("iPhone 8", 5.0), ("iPhone 7", 2.0), ("iPhone 6", 4.6), ("iPad", 0.4)),
    "android-high": (("Galaxy S10", 2.0), ("Galaxy S21", 2.0)), "android-mid": (("Galaxy A51", 2.0),),
}  # fmt: skip
"""Models of a class and their shares (%) of their system: FLINT's Fig. 1; the flat tail of Android is made up."""

_TAIL = 16
_MONTHS = tuple((date(2016, 9, 1) + timedelta(days=round(30.4375 * i))).isoformat() for i in range(60))
_OLD_MONTHS = 36  # up to August 2019
_BLOCK = 1 << 14


@settings
@dataclass(frozen=True, slots=True)
class Recipe:
    """A log to make up: `preset`, how many `clients` and whole `weeks`.

    `known`: share of the clients whose Wi-Fi, battery and charging are told. `states`: "device": a client always or
    never is on Wi-Fi (battery likewise), our reading of Table 1; "session": drawn at each session, Wi-Fi likelier at
    night. `gap_share` of the sessions are interrupted by a short time in the background (two rows; our choice).
    """

    preset: str = "flint-strict"
    clients: int = 2000
    weeks: int = 2
    known: float = 1.0
    states: Literal["device", "session"] = "device"
    gap_share: float = 0.15

    def __post_init__(self) -> None:
        if self.preset not in NAMES:
            raise UsageError(f"no preset {self.preset!r} for a session log: use one of {', '.join(NAMES)}.")
        if self.clients < 1 or self.weeks < 1:
            raise UsageError(f"a log of {self.clients} clients over {self.weeks} weeks: use at least one of each.")
        for name in ("known", "gap_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"a log with {name} = {getattr(self, name):g}: use a share from 0 to 1.")


def generate_log(place: str | Path, recipe: Recipe | None = None, seed: int = 0) -> Path:
    """Write a session log, Parquet or (where the name ends so) CSV; about 60 sessions a client and week in
    "flint-strict", 14 in "fedscale-charging". Cost: about 1 us a session.
    """
    recipe = Recipe() if recipe is None else recipe
    out = Path(place)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_columns(out, blocks(recipe, seed))
    return out


def blocks(recipe: Recipe, seed: int) -> Iterator[dict[str, Array | Text]]:
    """The log's rows, some clients at a time, by (client, start)."""
    for at in range(0, recipe.clients, _BLOCK):
        yield _block(recipe, seed, np.arange(at, min(at + _BLOCK, recipe.clients)))


def template(preset: str) -> F64:
    """How fast sessions begin by local hour of the week, `[168]`, of mean 1."""
    made = PRESETS[preset]
    peaks = np.array(made["peaks"])[:, None]
    rate = (made["trough"] + (peaks - made["trough"]).clip(0) * np.array(made["day"])[None, :]).ravel()
    return rate / rate.mean()


def _block(recipe: Recipe, seed: int, ids: I64) -> dict[str, Array | Text]:
    made = PRESETS[recipe.preset]
    key = rng.keys(seed, ("assess", "trace", "log"), ids)

    def uniform(i: int) -> F64:
        return rng.uniforms(key, np.full(1, 2 * i))

    kinds = made["kinds"]
    kind = _pick([one[1] for one in kinds], uniform(0))
    zones = ZONES[made["zones"]]
    zone = _pick([share for _, share in zones], uniform(1))
    tz = np.array([hours * 3600.0 for hours, _ in zones])[zone]
    model, models = _models([one[0] for one in kinds], kind, uniform(2))
    recent = uniform(3) < np.array([one[5] for one in kinds])[kind]
    month = np.where(recent, _OLD_MONTHS + (uniform(4) * (len(_MONTHS) - _OLD_MONTHS)), uniform(4) * _OLD_MONTHS)
    row, start, end, u = _sessions(recipe, seed, ids, tz, uniform(5), rng.normals(key, np.full(1, 40)))
    wifi, full = _states(recipe, row, start + tz[row], uniform(6), uniform(7), u[0], u[1])
    told = (uniform(8) < recipe.known)[row]
    charging = np.ones(len(row)) if recipe.preset == "fedscale-charging" else (u[2] < 0.25).astype(np.float64)
    level = np.where(full, 0.8 + 0.2 * u[3], 0.05 + 0.74 * u[3])
    system = ["ios" if one[0].startswith("ios") else "android" for one in kinds]
    years = np.array([int(one[:4]) for one in _MONTHS])[month.astype(np.int64)]
    ios = np.array([one == "ios" for one in system])[kind]
    return {
        "client": ids[row], "start_s": START_S + start, "end_s": START_S + end,
        "wifi": np.where(told, wifi.astype(np.float64), np.nan), "battery": np.where(told, level.round(2), np.nan),
        "charging": np.where(told, charging, np.nan),
        "os": Text(np.where(ios, 0, 1).astype(np.int32)[row], ("ios", "android")),
        "os_version": Text((years - 2009 + 3 * ios).astype(np.int32)[row], tuple(str(i) for i in range(24))),
        "os_release_date": Text(month.astype(np.int32)[row], _MONTHS),
        "device_class": Text(kind.astype(np.int32)[row], tuple(str(one[0]) for one in kinds)),
        "device_model": Text(model.astype(np.int32)[row], models),
        "region": Text(zone.astype(np.int32)[row], tuple(f"utc{hours:+g}" for hours, _ in zones)),
        "tz_offset_s": tz[row], "account_age_days": np.floor(-900.0 * np.log1p(-uniform(9)))[row],
        "reputation": uniform(10).round(3)[row],
    }  # fmt: skip


def _sessions(recipe: Recipe, seed: int, ids: I64, tz: F64, load_u: F64, z: F64) -> tuple[I64, F64, F64, F64]:
    """(row of `ids`, start, end) in seconds from the log's beginning, and four uniform numbers each, `[4, k]`."""
    made = PRESETS[recipe.preset]
    a, b = made["load"]
    mean = made["session_s"] * np.exp(0.5 * made["session_sigma"] ** 2)
    load = made["most"] * (1.0 - (1.0 - load_u) ** (1.0 / b)) ** (1.0 / a)
    span = recipe.weeks * WEEK_S
    expected = load * span / mean
    most = np.ceil(expected + 6.0 * np.sqrt(expected) + 10.0).astype(np.int64)
    row = np.repeat(np.arange(len(ids)), most)
    turn = np.arange(len(row)) - np.repeat(np.cumsum(most) - most, most)

    def drawn(what: str) -> Any:
        return rng.keys(seed, ("assess", "trace", what), ids)[row]

    gaps = -np.log1p(-rng.uniforms(drawn("begin"), turn))
    total = np.cumsum(gaps)
    first = np.cumsum(most) - most
    clock = total - np.repeat(total[first] - gaps[first], most)
    kept = clock <= expected[row]
    row, turn, clock = row[kept], turn[kept], clock[kept]
    reading = np.concatenate([[0.0], np.cumsum(np.tile(template(recipe.preset), recipe.weeks))])
    local = np.interp(clock / expected[row] * reading[-1], reading, np.arange(len(reading)) * 3600.0)
    start = np.floor(np.mod(local - tz[row], span))
    longer = np.exp(made["device_sigma"] * z - 0.5 * made["device_sigma"] ** 2)[row]
    length = made["session_s"] * np.exp(made["session_sigma"] * rng.normals(drawn("length"), turn)) * longer
    end = np.minimum(start + np.clip(np.rint(length), 1.0, DAY_S), span)
    u = np.stack([rng.uniforms(drawn(f"u{i}"), turn) for i in range(5)])
    order = np.lexsort((start, row))
    row, start, end, u = row[order], start[order], end[order], u[:, order]
    apart = np.ones(len(row), np.bool_)
    apart[1:] = (row[1:] != row[:-1]) | (start[1:] > end[:-1] + 60.0)
    apart &= end > start
    row, start, end, u = row[apart], start[apart], end[apart], u[:, apart]
    return _interrupted(recipe, row, start, end, u)


def _interrupted(recipe: Recipe, row: I64, start: F64, end: F64, u: F64) -> tuple[I64, F64, F64, F64]:
    """Some sessions in two rows, with a time in the background between: of 12 s in the median, a fifth above 30 s."""
    cut = (u[4] < recipe.gap_share) & (end - start > 120.0)
    part = u[4] / max(recipe.gap_share, 1e-9)
    middle = np.floor(start + (0.1 + 0.7 * part) * (end - start))
    gap = np.floor(12.0 * np.exp(1.1 * np.sqrt(2.0) * (2.0 * u[3] - 1.0) * 1.3))
    again = np.minimum(middle + np.maximum(gap, 1.0), end - 1.0)
    order = np.argsort(np.concatenate([np.arange(len(row)), np.flatnonzero(cut) + 0.5]), kind="stable")
    return (
        np.concatenate([row, row[cut]])[order], np.concatenate([start, again[cut]])[order],
        np.concatenate([np.where(cut, middle, end), end[cut]])[order], np.concatenate([u, u[:, cut]], 1)[:, order],
    )  # fmt: skip


def _states(
    recipe: Recipe, row: I64, local_s: F64, wifi_u: F64, full_u: F64, wifi_each: F64, full_each: F64
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each session is on Wi-Fi, and charged to 80 % or more."""
    made = PRESETS[recipe.preset]
    wifi, full = made["wifi"], made["battery"]
    if recipe.states == "device":
        return (wifi_u < wifi)[row], (full_u < full)[row]
    hour = np.floor(np.mod(local_s, DAY_S) / 3600.0).astype(np.int64) % 24
    night = 1.0 + 0.3 * np.cos(2.0 * np.pi * (np.arange(24) - 3.0) / 24.0)
    weight = template(recipe.preset).reshape(7, 24).sum(0)
    night /= (night * weight).sum() / weight.sum()
    return wifi_each < np.minimum(wifi * night, 1.0)[hour], full_each < np.minimum(full * night, 1.0)[hour]


def _models(kinds: list[str], kind: I64, u: F64) -> tuple[I64, tuple[str, ...]]:
    names: list[str] = []
    out = np.zeros(len(kind), np.int64)
    for i, one in enumerate(kinds):
        listed = list(MODELS.get(one, ()))
        if not one.startswith("ios"):
            rest = {"android-high": 16.0, "android-mid": 38.0, "android-low": 40.0}.get(one, 40.0)
            listed += [(f"{one} {j + 1}", rest / _TAIL) for j in range(_TAIL)]
        shares = np.array([share for _, share in listed])
        mine = kind == i
        out[mine] = len(names) + _pick(shares / shares.sum(), u[mine])
        names += [name for name, _ in listed]
    return out, tuple(names)


def _pick(shares: Any, u: F64) -> I64:
    return np.minimum(np.searchsorted(np.cumsum(shares), u, "right"), len(shares) - 1)
