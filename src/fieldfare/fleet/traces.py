"""Fleets from tables of real phones: availability logs, speeds, links, radio power; and files of other makers.

`phones_of` is the recipe that combines a folder of such tables; `read_fleet` and `from_file` take one file, whatever
its form. Not here: how logs become sessions (`logs`) and numbers speeds and rates (`measured`), our own schema
(`parquet`), FedScale's pickles (`pickles`). Invariants: device i of a recipe is the same device whatever the size of
the fleet; what is sampled independently, cut, tiled or assumed is told in `Fleet.note`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import settings
from fieldfare.fleet import measured
from fieldfare.fleet.availability import DAY_S, Availability
from fieldfare.fleet.columns import MAX_BYTES, Columns, Text, is_parquet, read_columns
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.logs import flash_sessions, flash_states, minute_sessions

I64 = NDArray[np.int64]

CAPACITY_SOURCES = ("fcc_mba2016", "norway_hsdpa", "lumos5g", "ucc_5g_download")
"""Sources of throughput traces that show a link's capacity (a video stream shows what it asked for)."""

NOT_MMWAVE = ("4G-LTE", "5G-NSA-Low-Band", "5G-SA-Low-Band")
"""Radio types of speed tests taken unless told otherwise: half of the tests are of mmWave, which few phones have."""

_FOLDERS = {
    "flash_intervals.parquet": "traces_availability", "extrasensory_minutes.parquet": "traces_availability",
    "flash_batch_train_time.csv": "traces_devices", "flash_device_totals.parquet": "traces_devices",
    "ai_benchmark_2020_phones.parquet": "traces_devices", "ai_benchmark_2025_socs.parquet": "traces_devices",
    "speedtests_5g_4g.parquet": "traces_network", "throughput_traces.parquet": "traces_network",
    "flash_wifi_19_devices.csv": "traces_network", "radio_power_5g.parquet": "traces_power",
}  # fmt: skip


_NO_FLEETS = (
    {"task_model", "device_class", "mean_ms_per_batch"}, {"model_code", "ai_score"}, {"model", "ai_score", "ram_gb"},
    {"processor", "cpu_f_score"}, {"radio_power_mW"},
)  # fmt: skip
"""Columns of tables of which `phones_of` makes speeds and power: one row is no device."""


@settings
@dataclass(frozen=True, slots=True)
class Measured:
    """A recipe for a fleet of measured phones (see `phones_of`)."""

    folder: str
    availability: Literal["flash", "extrasensory", "always"]
    variant: str
    devices: Literal["flash", "flash-classes", "ai-benchmark-2020", "ai-benchmark-2025"]
    network: Literal["speedtests", "replay", "flash-wifi"]
    censored: Literal["keep", "away", "leave-out"]
    days: Literal["as-logged", "shuffled"]
    sources: tuple[str, ...]
    radio_types: tuple[str, ...]
    uplink_ratio: float
    overhead_s: float
    compute_w: float
    noise: float
    drop_out: float

    def build(self, n: int, seed: int) -> Fleet:
        """The fleet of `n` devices: each draws a trace, a speed and a link by counters keyed by its number."""
        if n < 1:
            raise UsageError(f"a fleet of {n} devices: use at least one.")
        ids = np.arange(n)
        flops, kind, memory, told_speed = self._speeds(rng.keys(seed, ("fleet", "speed"), ids))
        links, told_links = self._links(rng.keys(seed, ("fleet", "link"), ids))
        available, told = self._availability(rng.keys(seed, ("fleet", "availability"), ids))
        return Fleet(
            flops_per_s=flops, kind=kind, kinds=measured.KINDS, memory_bytes=memory, availability=available,
            overhead_s=self.overhead_s, compute_w=self.compute_w, noise=self.noise, drop_out=self.drop_out,
            **links, name="phones",
            note=f"measured phones, seed {seed}; availability, speed and link sampled independently, as no table has "
                 f"them together. Availability: {told}. Speed: {told_speed}. Links: {told_links}. Power of computing: "
                 f"{self.compute_w:g} W, assumed",
        )  # fmt: skip

    def _table(self, name: str) -> Columns:
        return read_columns(find(self.folder, name))

    def _speeds(self, key: Any) -> tuple[Any, Any, Any, str]:
        classes = measured.class_speeds(self._table("flash_batch_train_time.csv"))
        told = (
            f"from the measured seconds of a batch of FLASH's FEMNIST CNN, read as {measured.FEMNIST_BATCH} examples "
            f"of {measured.FEMNIST_FLOPS:.3g} FLOPs"
        )
        if self.devices == "flash":
            speeds = measured.phone_speeds(
                self._table("flash_device_totals.parquet"), classes, self._table("ai_benchmark_2020_phones.parquet")
            )
            told += ", scaled by the AI score of FLASH's phones where known, else by class"
        elif self.devices == "flash-classes":
            speeds = classes
            told += ", by FLASH's three classes"
        else:
            phones = self.devices == "ai-benchmark-2020"
            name = "ai_benchmark_2020_phones.parquet" if phones else "ai_benchmark_2025_socs.parquet"
            speeds = measured.benchmark_speeds(self._table(name), classes)
            told += f", scaled by the score of each {'phone of 2020' if phones else 'chip of 2025'}, all as likely"
        return *speeds.draw(key), told

    def _links(self, key: Any) -> tuple[dict[str, Any], str]:
        n = len(key)
        if self.network == "replay":
            net, fast = measured.replayed(self._table("throughput_traces.parquet"), self.sources, self.uplink_ratio)
            row = measured.pick_even(net.size, rng.uniforms(key, np.zeros(1, np.int64)))
            shift = rng.uniforms(key, np.ones(1, np.int64)) * net.period_s[row]
            network = net.take(row, shift.astype(np.float32))
            down, up = network.means()
            late, mmwave = np.zeros(n), fast[row]
            told = (
                f"{net.size} throughput traces replayed, each begun at a random second ({', '.join(self.sources)}); "
                f"uplink {self.uplink_ratio:g} of the downlink, assumed; no latency"
            )
        else:
            if self.network == "speedtests":
                rows = measured.speedtest_links(self._table("speedtests_5g_4g.parquet"), self.radio_types)
                told = f"{len(rows.down):,} speed tests, down, up and latency together"
                told += f" ({', '.join(self.radio_types)})" if self.radio_types else ""
            else:
                rows = measured.wifi_links(self._table("flash_wifi_19_devices.csv"))
                told = f"{len(rows.down)} Wi-Fi links of FLASH by mean and deviation, drawn once a device; no latency"
            network = None
            down, up, late, mmwave = rows.draw(key)
        if self.network == "flash-wifi":
            watts: Any = measured.WIFI_RADIO_W
            told += f". Radio: {watts:g} W, assumed"
        else:
            power = self._table("radio_power_5g.parquet")
            watts = measured.radio_watts(power, down, mmwave).astype(np.float32)
            told += ". Radio power: measured on 5G, by rate"
        return {
            "network": network, "downlink_bytes_per_s": down.astype(np.float32),
            "uplink_bytes_per_s": up.astype(np.float32), "latency_s": late.astype(np.float32), "radio_w": watts,
        }, told  # fmt: skip

    def _availability(self, key: Any) -> tuple[Availability | None, str]:
        if self.availability == "always":
            return None, "always"
        if self.availability == "flash":
            log, told = flash_sessions(self._table("flash_intervals.parquet"), self.variant, self.censored)
            told = f"FLASH's log, {self.variant}, {told}"
        else:
            needs = tuple(self.variant.split("_"))
            log, told = minute_sessions(self._table("extrasensory_minutes.parquet"), needs)
            told = f"ExtraSensory's minutes with {' and '.join(needs)}, {told}"
        traces = len(log.offsets) - 1
        row = measured.pick_even(traces, rng.uniforms(key, np.zeros(1, np.int64))).astype(np.int32)
        shift = None
        if self.days == "shuffled":
            whole = int(log.period_s // DAY_S)
            shift = (DAY_S * measured.pick_even(whole, rng.uniforms(key, np.ones(1, np.int64)))).astype(np.float32)
            told += ", each device begun on a random day of it"
        return replace(log, row=row, shift_s=shift), f"{told}; {traces} traces shared by {len(key):,} devices"


@settings
def phones_of(
    folder: str,
    availability: Literal["flash", "extrasensory", "always"] = "flash",
    variant: str = "charging_wifi",
    devices: Literal["flash", "flash-classes", "ai-benchmark-2020", "ai-benchmark-2025"] = "flash",
    network: Literal["speedtests", "replay", "flash-wifi"] = "speedtests",
    *,
    censored: Literal["keep", "away", "leave-out"] = "keep",
    days: Literal["as-logged", "shuffled"] = "as-logged",
    sources: tuple[str, ...] = CAPACITY_SOURCES,
    radio_types: tuple[str, ...] = NOT_MMWAVE,
    uplink_ratio: float = measured.UPLINK_RATIO,
    overhead_s: float = 1.0,
    compute_w: float = 3.0,
    noise: float = 0.0,
    drop_out: float = 0.0,
) -> Measured:
    """Phones as measured, from the tables in `folder` (or its subfolders `traces_availability`, ...): a recipe.

    `availability`: "flash" (five whole days of logs; `variant` is one of the table's), "extrasensory" (a week of local
    time; `variant` joins criteria with "_": charging, plugged, wifi, inactive, idle, sleeping, table) or "always".
    `censored`: the last interval of a log, whose end is not known, counts as logged ("keep"), as away, or its phone is
    left out where it ends within the five days. `days`: "shuffled" lets each device begin on its own day of the log, so
    that devices that share a trace are not in step. `devices`: FLASH's phones, its three classes, or every phone (2020)
    or chip (2025) of AI-Benchmark's tables. `network`: speed tests (of `radio_types`, () for all), throughput traces of
    `sources` replayed, or FLASH's Wi-Fi links. Availability, speed and link are sampled independently of one another,
    since no table has them together: `Fleet.note` says so. Tables are described in docs/fleet.md.
    """
    return Measured(
        str(folder), availability, variant, devices, network, censored, days, sources, radio_types, uplink_ratio,
        overhead_s, compute_w, noise, drop_out,
    )  # fmt: skip


@settings
@dataclass(frozen=True, slots=True)
class FromFile:
    """A recipe for the fleet in a file (see `from_file`)."""

    path: str
    variant: str = "charging_wifi"

    def build(self, n: int, seed: int) -> Fleet:
        """The file's fleet, if it holds `n` devices; else `n` devices sampled from it, one as likely as another."""
        from fieldfare.fleet.describe import size_of

        fleet = read_fleet(self.path, self.variant)
        held = size_of(fleet)
        if n == held:
            return fleet
        if n < 1:
            raise UsageError(f"a fleet of {n} devices: use at least one.")
        drawn = rng.uniforms(rng.keys(seed, ("fleet", "file"), np.arange(n)), np.zeros(1, np.int64))
        told = f"{n:,} devices sampled, with repeats and seed {seed}, from {held:,}"
        return replace(take_devices(fleet, measured.pick_even(held, drawn)), note=f"{told}; {fleet.note}".rstrip("; "))


def from_file(path: str, variant: str = "charging_wifi") -> FromFile:
    """The fleet in a file or folder, of any form `read_fleet` knows: a recipe, which samples where sizes differ."""
    return FromFile(str(path), variant)


def take_devices(fleet: Fleet, devices: I64) -> Fleet:
    """The fleet of `devices` `[n']` of another, which may repeat; traces are shared, not copied."""
    columns: dict[str, Any] = {
        name: value[devices]
        for name in fleet.__dataclass_fields__
        if isinstance(value := getattr(fleet, name), np.ndarray)
    }
    if fleet.availability is not None:
        old = fleet.availability
        row = (devices if old.row is None else old.row[devices]).astype(np.int32)
        shift = None if old.shift_s is None else old.shift_s[devices]
        columns["availability"] = replace(old, row=row, shift_s=shift)
    if fleet.network is not None:
        columns["network"] = fleet.network.take(devices)
    return replace(fleet, flags={name: flag[devices] for name, flag in fleet.flags.items()}, **columns)


def find(folder: str | Path, name: str) -> Path:
    """The table `name` in `folder` or in the subfolder it comes in; one line where there is none."""
    place = Path(folder)
    for one in (place / _FOLDERS.get(name, "") / name, place / name):
        if one.is_file():
            return one
    raise UsageError(
        f"{name} is neither in {place} nor in {place / _FOLDERS.get(name, '')}: give the folder that holds the "
        "tables of traces, or choose another source."
    )


def read_fleet(path: str | Path, variant: str = "charging_wifi", max_bytes: float = MAX_BYTES) -> Fleet:
    """The fleet in a file or folder, told by what it holds; each device once.

    Known: our own tables (`parquet`), FedScale's `client_behave_trace` and `client_device_capacity`, FLASH's
    `state_traces.json` and `speed_distri.json`, its intervals (of `variant`) and Wi-Fi links, ExtraSensory's minutes,
    speed tests, throughput traces. Columns a file does not have are those of `Fleet()`. Pickles are read without
    running anything. Raises `UsageError` in one line for anything else; tables of scores, seconds of a batch and radio
    power are no fleet of their own, but what `phones_of` works one out from.
    """
    from fieldfare.fleet import parquet, pickles

    place = Path(path)
    if place.is_dir():
        return parquet.read_tables(place, max_bytes)
    if not place.is_file():
        raise UsageError(f"{place} does not exist; give a table of devices or traces, or a folder of them.")
    with place.open("rb") as file:
        head = file.read(64).lstrip()
    limit = min(max_bytes, pickles.MAX_BYTES)
    if head[:1] == b"\x80" or head[:3] in (b"(dp", b"}q\x00"):
        return replace(_of_pickle(pickles.load_plain(place, limit), place), name=place.stem)
    if head[:1] == b"{" or head[:1] == b"[":
        return replace(_of_json(load_json(place, limit), place), name=place.stem)
    if not is_parquet(place) and b"\x00" in head:
        raise UsageError(f"{place} is neither Parquet, CSV, JSON nor a pickle; see docs/fleet.md for what is read.")
    columns = read_columns(place, max_bytes)
    if any(columns.keys() >= held for held in _NO_FLEETS):
        raise UsageError(
            f"{place} is a table for fleet.phones_of(FOLDER), which works a fleet out from several; it is none itself."
        )
    known = _of_columns(columns, variant)
    return parquet.read_tables(place, max_bytes) if known is None else replace(known, name=place.stem)


def load_json(path: str | Path, max_bytes: float) -> Any:
    """A JSON file of at most `max_bytes`."""
    from fieldfare.fleet.pickles import sized

    place = sized(path, max_bytes)
    try:
        return json.loads(place.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {str(error).splitlines()[0][:100]}.") from None


def _of_pickle(table: Any, place: Path) -> Fleet:
    from fieldfare.fleet import pickles

    if pickles.is_behaviour(table):
        available, note = pickles.behaviour_of(table)
        return Fleet(availability=available, note=f"FedScale's client_behave_trace: {note}")
    if pickles.is_capacity(table):
        return pickles.capacity_of(table)
    raise UsageError(
        f"{place} is no table of FedScale's: {{client: {{'active': [...], 'inactive': [...], 'finish_time': s}}}} or "
        "{client: {'computation': ms, 'communication': kbps}} is read."
    )


def _of_json(table: Any, place: Path) -> Fleet:
    one = next(iter(table.values()), None) if isinstance(table, dict) else None
    if isinstance(one, dict) and "messages" in one:
        available, _, note = flash_states(table)
        return Fleet(availability=available, note=note)
    if isinstance(one, dict) and {"down_u", "up_u"} <= one.keys():
        rates = np.array([[_rate(entry, name) for name in ("down_u", "up_u")] for entry in table.values()]) * 1e3
        return Fleet(
            downlink_bytes_per_s=rates[:, 0].astype(np.float32), uplink_bytes_per_s=rates[:, 1].astype(np.float32),
            note="mean rates of FLASH's speed_distri.json, read as kB/s",
        )  # fmt: skip
    raise UsageError(
        f"{place} is neither FLASH's state_traces.json ({{guid: {{'messages': ...}}}}) nor its speed_distri.json "
        "({guid: {'down_u': ..., 'up_u': ...}})."
    )


def _rate(entry: Any, name: str) -> float:
    value = entry.get(name) if isinstance(entry, dict) else None
    if type(value) not in (int, float) or not 0 < value < 1e9:
        raise UsageError(f"speed_distri.json: {name} must be a number of kB/s above zero in every entry.")
    return float(value)


def _of_columns(table: Columns, variant: str) -> Fleet | None:
    """The fleet of a known table of another maker; None for other columns."""
    if {"device", "variant", "start_s", "end_s", "state", "censored"} <= table.keys():
        available, told = flash_sessions(table, variant)
        return Fleet(availability=available, note=f"FLASH's log, {variant}, {told}")
    if {"user", "t_s", "local_weekday", "local_minute_of_day"} <= table.keys():
        available, told = minute_sessions(table)
        return Fleet(availability=available, note=f"ExtraSensory's minutes with charging and wifi, {told}")
    if {"source", "trace", "t_s", "down_Bps"} <= table.keys():
        sources = table["source"].names if isinstance(table["source"], Text) else ()
        net, _ = measured.replayed(table, sources, measured.UPLINK_RATIO)
        down, up = (mean.astype(np.float32) for mean in net.means())
        told = f"{net.size} throughput traces replayed; uplink {measured.UPLINK_RATIO:g} of the downlink, assumed"
        return Fleet(downlink_bytes_per_s=down, uplink_bytes_per_s=up, network=net, note=told)
    if {"radio_type", "down_Bps", "up_Bps", "latency_ms"} <= table.keys():
        links, told = measured.speedtest_links(table), "speed tests that moved bytes both ways, one a device"
    elif {"down_mean_Bps", "up_mean_Bps"} <= table.keys():
        links, told = measured.wifi_links(table), "FLASH's Wi-Fi links, mean rates"
    else:
        return None
    return Fleet(
        downlink_bytes_per_s=links.down.astype(np.float32), uplink_bytes_per_s=links.up.astype(np.float32),
        latency_s=links.latency_s.astype(np.float32), note=told,
    )  # fmt: skip
