"""Where features live and what it costs a device to train on them: pull, cache, or compute on the device.

Here: a feature's options, their costs, and the cheapest that fits (FLINT, section 3.3; the choice is ours). Not here:
vocabularies (`vocabulary`). Invariants: costs are per device, in bytes and seconds; a feature that fits in no way is
named with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, cast

from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings

Option = Literal["on_device", "pull", "cache_at_inference"]
DAY_S = 86_400.0


@settings
@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: `bytes_per_record` of its values, its `vocabulary_bytes`, and the rules it is under.

    `source`: where values are born. `transform`: where they can be processed. `retention_days`: how long a device may
    keep them. `max_device_bytes`: the most a device may hold of it. `refresh_days`: how often vocabularies change.
    """

    name: str
    source: Literal["device", "cloud"] = "cloud"
    bytes_per_record: float = 4.0
    vocabulary_rows: int = 0
    vocabulary_bytes: float = 0.0
    retention_days: float = 90.0
    max_device_bytes: float = 1e6
    transform: Literal["device", "cloud"] = "device"
    refresh_days: float = 30.0

    def __post_init__(self) -> None:
        numbers = (self.bytes_per_record, self.vocabulary_bytes, self.max_device_bytes, self.vocabulary_rows)
        good = all(0 <= one < inf for one in numbers)
        if self.source not in ("device", "cloud") or self.transform not in ("device", "cloud") or not good:
            raise UsageError(
                f"feature {self.name!r}: source and transform are device or cloud, sizes are finite and not negative."
            )
        if not (0 < self.retention_days < inf and 0 < self.refresh_days < inf):
            raise UsageError(f"feature {self.name!r}: retention_days and refresh_days are above 0.")


@dataclass(frozen=True, slots=True)
class Choice:
    """How a feature gets to training: bytes held on the device, bytes a task, seconds it adds, assets to ship."""

    feature: str
    option: Option
    device_bytes: float
    task_bytes: float
    latency_s: float
    assets_bytes: float
    refused: str = ""


def options(
    one: Feature, records: float, tasks_per_day: float, link_bytes_per_s: float, rtt_s: float,
    window_days: float | None = None,
) -> list[Choice]:  # fmt: skip
    """What each option costs a device with so many records in its window, and why some are not possible.

    `pull`: values (already processed) are asked for when a task begins. `cache_at_inference`: what was sent for an
    inference is kept for training. `on_device`: values are born and processed there, which needs the vocabulary; so it
    does where pulled values are processed there. `window_days`: the records' window; of what a device holds only as
    many days as `retention_days` are left (None: the window is no longer than that).
    """
    values = one.bytes_per_record * records
    left = values if window_days is None else values * min(1.0, one.retention_days / window_days)
    vocabulary = one.vocabulary_bytes if one.transform == "device" else 0.0
    refresh = vocabulary / one.refresh_days / tasks_per_day if tasks_per_day else 0.0

    def fits(held: float, why: str) -> str:
        return f"{held:.3g} bytes {why}, {one.max_device_bytes:.3g} allowed" if held > one.max_device_bytes else ""

    born_there = one.source == "device"
    local = left + vocabulary
    return [
        Choice(one.name, "on_device", local, refresh, 0.0, vocabulary,
               "born in the cloud" if not born_there else "processed in the cloud" if one.transform == "cloud"
               else fits(local, "of values and vocabulary")),
        Choice(one.name, "cache_at_inference", local, refresh, 0.0, vocabulary,
               "born on the device" if born_there else fits(local, "of cached values and vocabulary")),
        Choice(one.name, "pull", vocabulary, values + (0.0 if vocabulary == 0 else refresh),
               rtt_s + values / link_bytes_per_s, vocabulary,
               "born on the device, and may not leave it" if born_there else fits(vocabulary, "of vocabulary")),
    ]  # fmt: skip


def choose(
    features: Sequence[Feature], *, records: float, tasks_per_day: float = 1.0, link_bytes_per_s: float = 1e6,
    rtt_s: float = 0.1, prefer: Sequence[Option] = ("on_device", "cache_at_inference", "pull"),
    device_bytes: float = float("inf"), window_days: float | None = None,
) -> list[Choice]:  # fmt: skip
    """For every feature the first option of `prefer` that is possible, held within `device_bytes` altogether.

    Features are taken in the order of what they save when cached, most first, until the device is full; the rest is
    pulled. One that is possible in no way comes back with the reasons in `refused`.
    """
    for name, value, least in (("records", records, 0.0), ("link_bytes_per_s", link_bytes_per_s, 0.0),
                               ("tasks_per_day", tasks_per_day, -1e-9), ("rtt_s", rtt_s, -1e-9),
                               ("device_bytes", device_bytes, -1e-9),
                               ("window_days", 1.0 if window_days is None else window_days, 0.0)):  # fmt: skip
        number: Any = value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > least:
            raise UsageError(f"choose({name}={value!r}): use a number {'above' if least == 0 else '>='} 0.")
    found: dict[str, Choice] = {}
    left = device_bytes
    for one in sorted(features, key=lambda f: (-f.bytes_per_record, f.name)):
        each = {c.option: c for c in options(one, records, tasks_per_day, link_bytes_per_s, rtt_s, window_days)}
        possible = [each[name] for name in prefer if not each[name].refused and each[name].device_bytes <= left]
        if possible:
            found[one.name] = possible[0]
            left -= possible[0].device_bytes
            continue
        why = "; ".join(f"{c.option}: {c.refused or 'no room left on the device'}" for c in each.values())
        found[one.name] = Choice(one.name, "pull", 0.0, 0.0, 0.0, 0.0, why)
    return [found[one.name] for one in features]


def read_features(told: Sequence[Mapping[str, Any]]) -> list[Feature]:
    """Features of plain tables, as in a TOML file's `[[feature]]`; unknown keys are refused by name."""
    out: list[Feature] = []
    given: Any = told
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, Mapping) for one in cast(list[Any], given)):
        raise UsageError(f"feature={given!r}: use tables [[feature]], each with a name.")
    for one in told:
        unknown = set(one) - set(Feature.__dataclass_fields__)
        if unknown or "name" not in one:
            what = f"knows no {sorted(unknown)[0]!r}" if unknown else "needs a name"
            raise UsageError(
                f"feature {one.get('name', '?')!r} {what}; it has {', '.join(Feature.__dataclass_fields__)}."
            )
        out.append(Feature(**one))
    if len({one.name for one in out}) < len(out):
        raise UsageError("two features have one name: names are different.")
    return out
