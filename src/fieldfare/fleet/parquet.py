"""Fleets as files: a folder of three tables and a small JSON file, in Parquet or CSV; see docs/fleet.md.

`devices`: one row a device. Columns, all optional: `device` (0, 1, ... in order), `flops_per_s`, `memory_bytes`,
`downlink_bytes_per_s`, `uplink_bytes_per_s`, `latency_s`, `overhead_s`, `compute_w`, `radio_w`, `timezone_s` (numbers),
`kind` (text: the device's class), `flag_NAME` (true or false), and, where devices share traces, `availability_trace`,
`availability_shift_s`, `network_trace`, `network_shift_s`.
`availability`: one row a session: `device` (or `trace`), `start_s`, `end_s`; ascending within a device, apart.
`network`: one row a step: `trace` (or `device`), `t_s`, `down_bytes_per_s`, `up_bytes_per_s`; optional `period_s`.
`fleet.json`, optional: what is one for all: name, note, noise, drop-out, the period of availability, plain columns.

Not here: tables of other makers (`traces`, `pickles`). Invariants: what was written reads back equal; the size of a
table is looked at before memory is taken; a column or value that is not understood is refused, never skipped.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import DAY_S, Availability, of_columns, of_log
from fieldfare.fleet.columns import MAX_BYTES, Columns, Text, read_columns, text_of, write_columns
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.network import Network, check_rates, of_steps, unit_of

Array = NDArray[Any]
I64 = NDArray[np.int64]

NUMBERS = (
    "flops_per_s", "memory_bytes", "downlink_bytes_per_s", "uplink_bytes_per_s", "latency_s", "overhead_s", "compute_w",
    "radio_w", "timezone_s",
)  # fmt: skip
SHARED = ("availability_trace", "availability_shift_s", "network_trace", "network_shift_s")
_TABLES = ("devices", "availability", "network")
_PLAUSIBLE = {  # median of a column: outside of it, another unit is likely
    "flops_per_s": (1e6, 1e15, "FLOP/s (1 GFLOP/s = 1e9)"),
    "memory_bytes": (1e6, 1e14, "bytes (1 GB = 1e9)"),
    "latency_s": (0.0, 10.0, "seconds (1 ms = 0.001)"),
    "overhead_s": (0.0, 300.0, "seconds (1 ms = 0.001)"),
    "compute_w": (0.0, 1e3, "watts (1 mW = 0.001)"),
    "radio_w": (0.0, 1e3, "watts (1 mW = 0.001)"),
}
_BLOCK = 1 << 20  # rows written at once


def read_tables(path: str | Path, max_bytes: float = MAX_BYTES) -> Fleet:
    """The fleet in a folder of this module's tables, or in one such table alone."""
    place = Path(path)
    if not place.is_dir():
        columns = read_columns(place, max_bytes)
        return fleet_of_tables({_kind_of(columns, place): columns}, {}, place.stem, max_bytes)
    found = {name: next((f for end in (".parquet", ".csv") if (f := place / (name + end)).is_file()), None)
             for name in _TABLES}  # fmt: skip
    tables = {name: read_columns(file, max_bytes) for name, file in found.items() if file is not None}
    meta = _read_meta(place / "fleet.json")
    if not tables and "devices" not in meta:
        raise UsageError(
            f"{place} holds no devices, availability or network table (.parquet or .csv); see docs/fleet.md."
        )
    return fleet_of_tables(tables, meta, place.name, max_bytes)


def fleet_of_tables(
    tables: Mapping[str, Columns], meta: Mapping[str, Any], name: str, max_bytes: float = MAX_BYTES
) -> Fleet:
    """A fleet from the columns of its tables (`devices`, `availability`, `network`) and `fleet.json`."""
    devices = tables.get("devices", {})
    _known("devices", devices, (*NUMBERS, *SHARED, "device", "kind"), "flag_")
    n = _count(tables, meta, max_bytes)
    if "device" in devices and not np.array_equal(devices["device"], np.arange(n)):
        raise UsageError(f"devices: the column device must be 0 to {n - 1} in order, one row each.")
    given: dict[str, Any] = {"name": str(meta.get("name", name)), "note": str(meta.get("note", ""))}
    for key in ("noise", "drop_out"):
        given[key] = _number(meta.get(key, 0.0), key)
    for column, value in meta.get("columns", {}).items():
        if column not in NUMBERS:
            raise UsageError(f"fleet.json: columns has {column!r}; it takes {', '.join(NUMBERS)}.")
        given[column] = _number(value, column)
    if meta.get("slow_links", False) is not False:
        if meta["slow_links"] is not True:
            raise UsageError(f"fleet.json: slow_links = {meta['slow_links']!r}; use true or false.")
        given["slow_links"] = True
    for column in NUMBERS:
        if column in devices:
            given[column] = _plausible(column, _numbers("devices", devices, column), "slow_links" in given)
    given["flags"] = {key[5:]: _bools(key, value) for key, value in devices.items() if key.startswith("flag_")}
    if "kind" in devices:
        given["kind"], given["kinds"] = _kinds(devices["kind"], meta.get("kinds"))
    if "availability" in tables:
        given["availability"], note = _availability(tables["availability"], devices, meta, n)
        given["note"] = "; ".join(part for part in (given["note"], note) if part)
    if "network" in tables:
        network = _network(tables["network"], devices, n)
        given["network"] = network
        for column, mean in zip(("downlink_bytes_per_s", "uplink_bytes_per_s"), network.means(), strict=True):
            given.setdefault(column, mean.astype(np.float32))
    if not any(np.ndim(given.get(column)) for column in NUMBERS) and given.keys().isdisjoint(
        ("availability", "network")
    ):
        given["flops_per_s"] = np.full(n, given.get("flops_per_s", Fleet().flops_per_s), np.float32)
    made = Fleet(**given)
    made.fit(n)
    return made


def write_fleet(
    fleet: Fleet, path: str | Path, n: int | None = None, format: Literal["parquet", "csv"] = "parquet"
) -> Path:
    """Write a fleet as a folder of tables, made if absent; `n`: its number of devices, where no column tells it.

    Parquet needs the extra `parquet`. Cost: a pass over the fleet, a million rows at a time.
    """
    from fieldfare.fleet.describe import size_of

    if format not in ("parquet", "csv"):
        raise UsageError(f"write_fleet(format={format!r}): use 'parquet' or 'csv'.")
    if fleet.drift is not None:
        raise UsageError(
            "write_fleet: no table holds a drift; write replace(fleet, drift=None), and add it after reading."
        )
    if fleet.memory is not None:
        raise UsageError(
            "write_fleet: no table holds memory that changes; write replace(fleet, memory=None), and add it after."
        )
    held = size_of(fleet)
    n = held if n is None else n
    fleet.fit(n)
    place = Path(path)
    place.mkdir(parents=True, exist_ok=True)
    for name in _TABLES:
        for end in (".parquet", ".csv"):
            (place / (name + end)).unlink(missing_ok=True)
    columns: dict[str, Array | Text] = {}
    for name in NUMBERS:
        value = getattr(fleet, name)
        if np.ndim(value):
            columns[name] = np.asarray(value)
    if fleet.kind is not None:
        columns["kind"] = Text(fleet.kind.astype(np.int32), fleet.kinds)
    columns |= {f"flag_{name}": flag for name, flag in fleet.flags.items()}
    for name, part in (("availability", fleet.availability), ("network", fleet.network)):
        if part is not None and part.row is not None:
            columns[f"{name}_trace"] = part.row
        if part is not None and part.shift_s is not None:
            columns[f"{name}_shift_s"] = part.shift_s
    meta: dict[str, Any] = {
        "format": "fieldfare fleet", "version": 1, "devices": n, "name": fleet.name, "note": fleet.note,
        "noise": fleet.noise, "drop_out": fleet.drop_out, "slow_links": fleet.slow_links,
        "columns": {name: float(getattr(fleet, name)) for name in NUMBERS if not np.ndim(getattr(fleet, name))},
    }  # fmt: skip
    if fleet.kinds:
        meta["kinds"] = list(fleet.kinds)
    if columns:
        write_columns(place / f"devices.{format}", _blocks(columns, n))
    if fleet.availability is not None:
        period = float(fleet.availability.period_s)
        meta["availability_period_s"] = period if np.isfinite(period) else None
        write_columns(place / f"availability.{format}", _sessions(fleet.availability))
    if fleet.network is not None:
        write_columns(place / f"network.{format}", _steps(fleet.network))
    (place / "fleet.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return place


def _kind_of(columns: Columns, place: Path) -> str:
    if {"start_s", "end_s"} <= columns.keys():
        return "availability"
    if "t_s" in columns:
        return "network"
    if not any(name in columns for name in (*NUMBERS, "kind")):
        for name in columns:
            _unknown("devices", name, NUMBERS)
        raise UsageError(f"{place} has no columns; see docs/fleet.md for those of a fleet.")
    return "devices"


def _known(table: str, columns: Columns, known: tuple[str, ...], prefix: str | None = None) -> None:
    for name in columns:
        if name not in known and not (prefix and name.startswith(prefix)):
            _unknown(table, name, known)


def _unknown(table: str, name: str, known: tuple[str, ...]) -> None:
    unit = unit_of(name)
    if unit is not None:
        close = difflib.get_close_matches(name, [one for one in known if "bytes_per_s" in one], 1, 0.0)
        raise UsageError(
            f"{table}: column {name!r} {unit}, in a column {close[0] if close else 'named in bytes_per_s'!r}."
        )
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}."
    raise UsageError(f"{table}: unknown column {name!r}: {hint}")


def _count(tables: Mapping[str, Columns], meta: Mapping[str, Any], max_bytes: float) -> int:
    """The number of devices: rows of `devices`, else what fleet.json says, else the highest number used."""
    if tables.get("devices"):
        n = len(next(iter(tables["devices"].values())))
    elif "devices" in meta:
        n = int(_number(meta["devices"], "devices"))
    elif "availability" in tables:
        n = int(_ids("availability", tables["availability"], "device").max(initial=-1)) + 1
    else:
        n = int(_ids("network", tables["network"], "trace", "device").max(initial=-1)) + 1
    if n < 1:
        raise UsageError("the fleet's tables hold no device: give at least one row.")
    if 64.0 * n > max_bytes:
        raise UsageError(f"the fleet's tables are about {n:,} devices, too many for max_bytes={max_bytes:.3g}.")
    return n


def _availability(columns: Columns, devices: Columns, meta: Mapping[str, Any], n: int) -> tuple[Availability, str]:
    _known("availability", columns, ("device", "trace", "start_s", "end_s"))
    key = "trace" if "trace" in columns else "device"
    row, shift = _shared("availability", devices)
    if (key == "trace") != (row is not None):
        raise UsageError(
            "availability by 'trace' goes with a column 'availability_trace' in devices; without that, name the column "
            "'device'."
        )
    device = _ids("availability", columns, key)
    start, end = (_numbers("availability", columns, name).astype(np.float64) for name in ("start_s", "end_s"))
    m = n if row is None else max(int(row.max(initial=-1)), int(device.max(initial=-1))) + 1
    if "availability_period_s" in meta:
        period = meta["availability_period_s"]
        made = of_columns(device, start, end, m, np.inf if period is None else _number(period, "availability_period_s"))
        note = ""
    else:
        first = start.min(initial=np.inf)
        made, note = of_log(device, start, end, m, 0.0 if 0.0 <= first < DAY_S else None)
    return (made if row is None and shift is None else replace(made, row=row, shift_s=shift)), note


def _network(columns: Columns, devices: Columns, n: int) -> Network:
    rates = ("down_bytes_per_s", "up_bytes_per_s")
    _known("network", columns, ("trace", "device", "t_s", *rates, "period_s"))
    trace = _ids("network", columns, "trace", "device")
    row, shift = _shared("network", devices)
    m = int(trace.max(initial=-1)) + 1
    if row is None and m != n:
        raise UsageError(f"network holds {m} traces for {n} devices: give one each, or network_trace in devices.")
    t_s, down, up = (_numbers("network", columns, name).astype(np.float64) for name in ("t_s", *rates))
    period = None
    if "period_s" in columns:
        each = _numbers("network", columns, "period_s").astype(np.float64)
        first = np.searchsorted(trace, np.arange(m))
        if (each != each[first[trace]]).any():
            raise UsageError("network: period_s must be the same in all rows of a trace.")
        period = each[first]
    return of_steps(trace, t_s, down, up, m, period, None, row, shift)


def _shared(name: str, devices: Columns) -> tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]:
    row = _ids("devices", devices, f"{name}_trace").astype(np.int32) if f"{name}_trace" in devices else None
    key = f"{name}_shift_s"
    return row, (_numbers("devices", devices, key).astype(np.float32) if key in devices else None)


def _ids(table: str, columns: Columns, *names: str) -> I64:
    name = next((one for one in names if one in columns), names[0])
    values = _numbers(table, columns, name)
    whole = values.astype(np.int64) if np.isfinite(values).all() and (np.abs(values) < 2**31).all() else None
    if whole is None or (whole != values).any() or (whole < 0).any():
        raise UsageError(f"{table}: column {name!r} must hold whole numbers from 0, one a row.")
    return whole


def _numbers(table: str, columns: Columns, name: str) -> Array:
    if name not in columns:
        raise UsageError(f"{table}: column {name!r} is missing; it has {', '.join(columns)}.")
    values = columns[name]
    if isinstance(values, Text) or values.dtype.kind not in "iuf":
        raise UsageError(f"{table}: column {name!r} must hold numbers.")
    return values


def _plausible(column: str, values: Array, slow_links: bool) -> Array:
    middle = float(np.median(values)) if len(values) else 1.0
    if column in ("downlink_bytes_per_s", "uplink_bytes_per_s"):
        if not slow_links:
            check_rates(column, values)
    elif column in _PLAUSIBLE and middle > 0:
        low, high, unit = _PLAUSIBLE[column]
        if not low <= middle <= high:
            raise UsageError(f"{column} has a median of {middle:.4g}, which looks like another unit: give {unit}.")
    return values.astype(np.float32)


def _kinds(column: Array | Text, kinds: Any) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    if not isinstance(column, Text):
        column = text_of(["" if value != value else str(value) for value in column.tolist()])
    if (column.codes < 0).any():
        raise UsageError(f"device {int(np.argmax(column.codes < 0))} has no kind: name its class.")
    names = tuple(str(name) for name in kinds) if isinstance(kinds, list) else tuple(sorted(set(column.names)))
    if len(names) > 32767:
        raise UsageError(f"devices: kind holds {len(names):,} different classes; use at most 32767.")
    place = {name: i for i, name in enumerate(names)}
    lost = [name for name in column.names if name not in place]
    if lost:
        raise UsageError(f"devices: kind {lost[0]!r} is not among the kinds of fleet.json.")
    return np.array([place[name] for name in column.names], np.int16)[column.codes], names


def _bools(name: str, column: Array | Text) -> NDArray[np.bool_]:
    if isinstance(column, Text):
        low = [word.lower() for word in column.names]
        if (column.codes >= 0).all() and set(low) <= {"true", "false"}:
            return np.array([word == "true" for word in low], np.bool_)[column.codes]
    elif column.dtype == np.bool_ or (np.isin(column, (0, 1)).all() and column.dtype.kind in "iuf"):
        return column.astype(np.bool_)
    raise UsageError(f"devices: column {name!r} must hold true or false (or 1 and 0), one a row.")


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float):
        raise UsageError(f"fleet.json: {name} must be a number.")
    return float(value)


def _read_meta(place: Path) -> dict[str, Any]:
    if not place.is_file():
        return {}
    if place.stat().st_size > 10_000_000:
        raise UsageError(f"{place} has more than 10 MB; it holds names and single numbers alone.")
    try:
        meta = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {str(error).splitlines()[0]}.") from None
    if not isinstance(meta, dict) or meta.get("version", 1) != 1 or not isinstance(meta.get("columns", {}), dict):
        raise UsageError(f"{place} is no description of a fleet of version 1; see docs/fleet.md.")
    return meta


def _blocks(columns: Columns, rows: int) -> Iterator[dict[str, Array | Text]]:
    for at in range(0, max(rows, 1), _BLOCK):
        part = slice(at, at + _BLOCK)
        yield {
            name: Text(value.codes[part], value.names) if isinstance(value, Text) else value[part]
            for name, value in columns.items()
        }


def _sessions(availability: Availability) -> Iterator[dict[str, Array | Text]]:
    key = "device" if availability.row is None else "trace"
    for at in range(0, max(len(availability.start), 1), _BLOCK):
        index = np.arange(at, min(at + _BLOCK, len(availability.start)))
        which = np.searchsorted(availability.offsets, index, "right") - 1
        yield {key: which.astype(np.int32), "start_s": availability.start[index], "end_s": availability.end[index]}


def _steps(network: Network) -> Iterator[dict[str, Array | Text]]:
    which = np.repeat(np.arange(len(network.period_s), dtype=np.int32), np.diff(network.offsets))
    columns = {"trace": which, "t_s": network.t_s, "down_bytes_per_s": network.down_bytes_per_s,
               "up_bytes_per_s": network.up_bytes_per_s, "period_s": network.period_s[which]}  # fmt: skip
    return _blocks(columns, len(which))
