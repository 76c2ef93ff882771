"""When a device may train, as data: criteria of state, device and user, read from TOML and changed by KEY=VALUE.

FLINT's three classes of criteria (Wang et al., MLSys 2023, section 3.2): device state (Wi-Fi, battery, charging,
foreground), computing capability (age of the OS, the list of a device benchmark), user attributes (account age,
reputation, time since the last participation). Not here: how they are tested on a log (`part`). Invariant: a criterion
that is not given asks nothing, and the order of `ORDER` is that of the filters in every table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.overrides import override

ORDER = (
    "wifi", "battery", "charging", "os_released", "device_allow", "account_age", "reputation", "min_session",
)  # fmt: skip
"""All criteria that a session meets or not; `min_gap` comes after them, since it looks at other sessions, too."""

STATES = ("wifi", "battery", "charging")
"""Criteria of state: known for some sessions only, elsewhere drawn by the session's coin."""


@settings
@dataclass(frozen=True, slots=True)
class Criteria:
    """What a session must meet; None, "" and 0 ask nothing.

    `wifi`, `charging`: must be so. `battery_min`: charge in [0, 1]. `foreground`: background time within a session does
    not count. `os_released_after`: ISO date, the OS was released on it or later. `device_allow`: folder of a `bench`
    artefact, whose table `eligible` lists devices. `account_age_min_days`, `reputation_min`. Sessions begin at least
    `min_gap_between_participation_s` after the end of the client's last that counted (our reading). Gaps of at most
    `gap_merge_s` are taken off a session's usable time, longer ones split it (the paper names no threshold; 30 s is
    ours). `min_session_s`: of usable time.
    """

    wifi: bool | None = None
    battery_min: float | None = None
    charging: bool | None = None
    foreground: bool = True
    os_released_after: str = ""
    device_allow: str = ""
    account_age_min_days: float | None = None
    reputation_min: float | None = None
    min_gap_between_participation_s: float = 0.0
    gap_merge_s: float = 30.0
    min_session_s: float = 0.0

    def __post_init__(self) -> None:
        if self.battery_min is not None and not 0.0 <= self.battery_min <= 1.0:
            raise UsageError(f"criteria: battery_min = {self.battery_min:g}; give a share of the charge from 0 to 1.")
        for name in ("min_gap_between_participation_s", "gap_merge_s", "min_session_s"):
            if not 0.0 <= getattr(self, name) < 1e9:
                raise UsageError(f"criteria: {name} = {getattr(self, name):g}; give seconds, 0 or more.")
        if self.os_released_after:
            try:
                date.fromisoformat(self.os_released_after)
            except ValueError:
                raise UsageError(
                    f"criteria: os_released_after = {self.os_released_after!r}; give a date such as 2019-09-01."
                ) from None

    def asked(self) -> tuple[str, ...]:
        """Names of the criteria that ask something, in the order of `ORDER`.

        >>> Criteria(wifi=True, battery_min=0.8).asked()
        ('wifi', 'battery')
        """
        given = {
            "wifi": self.wifi is not None, "battery": self.battery_min is not None,
            "charging": self.charging is not None, "os_released": bool(self.os_released_after),
            "device_allow": bool(self.device_allow), "account_age": self.account_age_min_days is not None,
            "reputation": self.reputation_min is not None, "min_session": self.min_session_s > 0,
        }  # fmt: skip
        return tuple(name for name in ORDER if given[name])

    def states(self) -> tuple[str, ...]:
        """Those of state among `asked`."""
        return tuple(name for name in self.asked() if name in STATES)


STRICT = Criteria(wifi=True, battery_min=0.8, os_released_after="2019-09-01")
"""A and B and C of FLINT's Table 1: Wi-Fi, battery of 80 %, an OS released in September 2019 or later: 22 %."""


@settings
@dataclass(frozen=True, slots=True)
class TraceConfig:
    """Settings of a trace: its criteria, the span of the log used, and how it is computed.

    `weeks`: as many whole weeks of the log, from `from_s` (default: its first session) on; a log shorter than a week
    gives its whole days. `columns`: what columns of the log are called here, e.g. {"battery": "charge_level"}.
    `durations_s`: task times by name whose share of long enough sessions is told, beside those of the `bench` artefact
    in `device_allow`. `partitions`: the log is computed in so many parts by client (0: one per 10,000,000 rows); `on`:
    "local", or "ray[://HOST:PORT]", to the same bits.
    `memory_bytes` and `threads`: what DuckDB may use (0: its own choice); the rest goes to `spill_folder`.
    """

    criteria: Criteria = field(default_factory=Criteria)
    weeks: int = 2
    from_s: float | None = None
    to_s: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    durations_s: Mapping[str, Any] = field(default_factory=dict)
    partitions: int = 0
    on: str = "local"
    memory_bytes: float = 0.0
    threads: int = 0
    spill_folder: str = ""

    def __post_init__(self) -> None:
        if self.weeks < 1:
            raise UsageError(f"trace: weeks = {self.weeks}; use at least one whole week.")
        if not 0 <= self.partitions <= 100_000:
            raise UsageError(f"trace: partitions = {self.partitions}; use 0 (by size) to 100000.")
        if self.from_s is not None and self.to_s is not None and not self.from_s < self.to_s:
            raise UsageError(f"trace: from_s = {self.from_s:g} and to_s = {self.to_s:g}; the first must be smaller.")
        for name, value in self.durations_s.items():
            if type(value) not in (int, float) or not 0 < value < 1e9:
                raise UsageError(f"trace: durations_s.{name} = {value!r}; give seconds above zero.")


def read_config(place: str | Path | None, changes: Sequence[str] = ()) -> TraceConfig:
    """The settings in a TOML file, or the default ones, changed by KEY=VALUE texts.

    The file's table [criteria] holds `Criteria`, its other keys `TraceConfig`; "any" asks nothing; a date may be one.
    """
    return with_changes(TraceConfig() if place is None else _of_toml(Path(place)), changes)


def with_changes(config: TraceConfig, changes: Sequence[str]) -> TraceConfig:
    """Settings with KEY=VALUE texts applied, e.g. "criteria.battery_min=0.8" or "battery_min=any"."""
    for pair in changes:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r}: write KEY=VALUE, for example --set criteria.battery_min=0.8.")
        config = override(config, key.split("."), "none" if value.strip() == "any" else value, key)
    return config


def _of_toml(place: Path) -> TraceConfig:
    if not place.is_file():
        raise UsageError(f"{place} is not a file: give a TOML file of a trace's settings.")
    try:
        given: dict[str, Any] = tomllib.loads(place.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{place} is not TOML: {str(error).splitlines()[0]}; mend it.") from None
    criteria: Any = given.pop("criteria", {})
    if not isinstance(criteria, dict):
        raise UsageError(f"{place}: criteria is no table; write [criteria] above its keys.")
    values = {name: _plain(value) for name, value in criteria.items() if value != "any"}
    return TraceConfig(criteria=Criteria(**values), **given)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value
