"""FedScale's two pickle files, read without ever running what a pickle may ask for, and written.

Here: `load_plain`, an unpickler that knows numbers, text, lists and dictionaries alone and refuses every class
and function by name; FedScale's `client_behave_trace` and `client_device_capacity` (Lai et al., ICML 2022; file formats
from its public code). Not here: other formats (`traces`, `parquet`). Invariant: nothing of a file is imported, called
or built but plain data, and its size is looked at before it is read.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import DAY_S, WEEK_S, Availability, of_columns
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.network import check_rates

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MAX_BYTES = 400_000_000
"""The largest pickle or JSON file read unless told otherwise; in memory it takes about ten times as much."""

MOBILENET_FLOPS = 0.6e9
"""FLOPs of a forward pass of MobileNet-V2 at 224 x 224 (300 M multiply-adds; Sandler et al., CVPR 2018)."""

_MOST_INTERVALS = 400_000_000
_PLAIN = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
)  # fmt: skip


class PlainUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Python's own unpickler in Python, cut down to plain data: any other opcode is refused before it does anything.

    (The one in C would build classes it is allowed, and reserve memory for sizes a file claims; this one keeps its
    memo in a dictionary. Cost: about 1 us an item.)
    """

    dispatch: ClassVar[dict[int, Any]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]  # type: ignore[attr-defined]
        for name in _PLAIN
    }

    def find_class(self, module: str, name: str) -> NoReturn:
        _refuse_class(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        _refuse_class("a persistent id")

    def _global(self) -> NoReturn:
        module, name = self.readline()[:100], self.readline()[:100]
        _refuse_class(f"{module.decode('ascii', 'replace').strip()}.{name.decode('ascii', 'replace').strip()}")

    def _stacked(self) -> NoReturn:
        told = [str(part)[:100] for part in self.stack[-2:] if isinstance(part, str)]
        _refuse_class(".".join(told) or "a class")

    def _other(self) -> NoReturn:
        _refuse_class("an object")

    for _name in ("GLOBAL", "INST"):
        dispatch[getattr(pickle, _name)[0]] = _global
    dispatch[pickle.STACK_GLOBAL[0]] = _stacked
    for _name in ("REDUCE", "BUILD", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4",
                  "EMPTY_SET", "ADDITEMS", "FROZENSET", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "BINBYTES",
                  "SHORT_BINBYTES", "BINBYTES8", "BINUNICODE8", "LONG4",
                  "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):  # fmt: skip
        dispatch[getattr(pickle, _name)[0]] = _other
    del _name


def load_plain(path: str | Path, max_bytes: float = MAX_BYTES) -> Any:
    """The numbers, text, lists and dictionaries of a pickle file; anything else in it is refused, never run.

    Raises `UsageError` in one line for a file that is absent, larger than `max_bytes`, not a pickle, or that asks for
    a class.
    """
    place = sized(path, max_bytes)
    with place.open("rb") as file:
        data = file.read(int(max_bytes) + 1)
    try:
        return PlainUnpickler(io.BytesIO(data)).load()
    except _Class as asked:
        raise UsageError(
            f"{place} is a pickle that asks for {asked}: only numbers, text, lists and dictionaries are read; nothing "
            "was run. Convert it with the library that wrote it."
        ) from None
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, ValueError, TypeError, AttributeError,
            OverflowError, MemoryError, struct.error, RecursionError) as error:  # fmt: skip
        raise UsageError(f"{place} cannot be read as a pickle of plain data: {_brief(error)}.") from None


def sized(path: str | Path, max_bytes: float = MAX_BYTES) -> Path:
    """`path`, if it is a file of at most `max_bytes`."""
    place = Path(path)
    if not place.is_file():
        raise UsageError(f"{place} is not a file; give the path of a table of devices.")
    held = place.stat().st_size
    if held > max_bytes:
        raise UsageError(
            f"{place} has {held:,} bytes, more than the {int(max_bytes):,} that are read: pass max_bytes= if memory "
            "allows (about ten times the file), or use the Parquet form."
        )
    return place


def is_behaviour(table: Any) -> bool:
    """Whether plain data looks like FedScale's `client_behave_trace`."""
    one = _first(table)
    return isinstance(one, Mapping) and {"active", "inactive", "finish_time"} <= one.keys()


def is_capacity(table: Any) -> bool:
    """Whether plain data looks like FedScale's `client_device_capacity`."""
    one = _first(table)
    return isinstance(one, Mapping) and {"computation", "communication"} <= one.keys()


def behaviour_of(table: Mapping[Any, Mapping[str, Any]]) -> tuple[Availability, str]:
    """(availability, how it repeats in words) from `client_behave_trace`: {client: {"active": [s], "inactive": [s],
    "finish_time": s, ...}}; clients in ascending order of id become devices 0, 1, ...

    A client is active from `active[i]` to `inactive[i]` and repeats after its own `finish_time`. Where these differ,
    the fleet repeats by the whole weeks (else whole days) of the longest, and shorter traces are tiled up to that by
    their own length, as FedScale does. Intervals without length are none.
    """
    entries = [table[key] for key in _ordered(table)]
    _count(sum(len(entry["active"]) for entry in entries if isinstance(entry.get("active"), list)))
    starts = [_column(entry, "active", i) for i, entry in enumerate(entries)]
    ends = [_column(entry, "inactive", i) for i, entry in enumerate(entries)]
    finish = _numbers(entries, "finish_time")
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if len(start) != len(end):
            raise UsageError(f"FedScale client {i}: {len(start)} active times and {len(end)} inactive; give pairs.")
    if not (np.isfinite(finish).all() and (finish > 0).all()):
        raise UsageError(f"FedScale client {int(np.argmin(finish > 0))}: finish_time must be seconds above zero.")
    n, longest = len(entries), float(finish.max())
    device = np.repeat(np.arange(n), [len(start) for start in starts])
    total = len(device)
    try:
        start = np.fromiter(chain.from_iterable(starts), np.float64, total)
        end = np.fromiter(chain.from_iterable(ends), np.float64, total)
    except OverflowError:
        raise UsageError("a time in the FedScale table is too large a number; give seconds.") from None
    kept = start != end
    device, start, end = device[kept], start[kept], end[kept]
    of_columns(device, start, end, n)  # refuses what overlaps or runs backwards, by device
    end = np.minimum(end, finish[device])
    kept = start < end
    device, start, end = device[kept], start[kept], end[kept]
    if (finish == longest).all():
        return of_columns(device, start, end, n, longest), f"repeats after {longest:.15g} s"
    period = longest // WEEK_S * WEEK_S or longest // DAY_S * DAY_S
    if not period:
        raise UsageError(
            f"FedScale traces of unlike lengths, the longest {longest:.15g} s: to repeat them together one must hold a "
            "whole day (86400 s)."
        )
    times = np.ceil(period / finish)
    _count(float(times[device].sum()))
    repeats = times[device].astype(np.int64)
    which = np.repeat(np.arange(len(device)), repeats)
    cycle = np.arange(len(which)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    device, base = device[which], cycle * finish[device[which]]
    start, end = start[which] + base, np.minimum(end[which] + base, period)
    order = np.lexsort((start, device))
    device, start, end = device[order], start[order], end[order]
    kept = start < end
    note = (
        f"traces of {finish.min():.15g} to {longest:.15g} s, each tiled by its own length, repeat after {period:.0f} s"
    )
    return of_columns(device[kept], start[kept], end[kept], n, period), note


def models_of(table: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """The phone model of each client of a `client_behave_trace`, "" where it has none."""
    return [str(table[key].get("model", ""))[:100] for key in _ordered(table)]


def capacity_of(table: Mapping[Any, Mapping[str, Any]], forward_flops: float = MOBILENET_FLOPS) -> Fleet:
    """A fleet from `client_device_capacity`: {client: {"computation": ms a sample, "communication": kbit/s}}.

    FedScale takes 3 x `computation` for a training sample of whatever model. Our reading: its milliseconds are those of
    a forward pass of MobileNet-V2 (`forward_flops`), and training costs three forward passes, so a device does
    `forward_flops` / (ms / 1000) FLOP/s. Both links get `communication` (kbit/s x 125).
    """
    entries = [table[key] for key in _ordered(table)]
    ms, kbps = _numbers(entries, "computation"), _numbers(entries, "communication")
    for name, values in (("computation", ms), ("communication", kbps)):
        good = np.isfinite(values) & (values > 0)
        if not good.all():
            i = int(np.argmin(good))
            raise UsageError(
                f"FedScale client {i}: {name} = {values[i]:.6g}; a device needs a finite number above zero."
            )
    rate = kbps * 125.0
    check_rates("FedScale's communication, read as kbit/s,", rate)
    return Fleet(
        flops_per_s=(forward_flops / ms * 1e3).astype(np.float32), downlink_bytes_per_s=rate.astype(np.float32),
        uplink_bytes_per_s=rate.astype(np.float32), name="fedscale",
        note=f"{len(entries)} devices of FedScale's client_device_capacity; FLOP/s from its ms a sample, read as a "
             f"forward pass of {forward_flops:.3g} FLOPs; one rate for both links",
    )  # fmt: skip


def behaviour_table(availability: Availability, models: Sequence[str] | None = None) -> dict[int, dict[str, Any]]:
    """`client_behave_trace` of an availability that repeats: {device: {"duration", "inactive", "finish_time",
    "active", "model"}}, times as whole numbers where they are.

    A device without sessions gets one without length at the period's end, since FedScale's reader needs one. Shifts
    are applied. `behaviour_of` of the result is an equal availability.
    """
    period = float(availability.period_s)
    if not np.isfinite(period):
        raise UsageError("FedScale's format repeats: give an availability with a finite period_s.")
    shifts = np.zeros(availability.size) if availability.shift_s is None else availability.shift_s.astype(np.float64)
    out: dict[int, dict[str, Any]] = {}
    for device in range(availability.size):
        row = device if availability.row is None else int(availability.row[device])
        held = slice(int(availability.offsets[row]), int(availability.offsets[row + 1]))
        start, end = availability.start[held].astype(np.float64), availability.end[held].astype(np.float64)
        start, end = _shifted(start, end, shifts[device] % period, period)
        out[device] = {
            "duration": _plain(float((end - start).sum())),
            "inactive": [_plain(t) for t in end.tolist()] or [_plain(period)],
            "finish_time": _plain(period),
            "active": [_plain(t) for t in start.tolist()] or [_plain(period)],
            "model": "" if models is None else models[device],
        }
    return out


def capacity_table(fleet: Fleet, n: int, forward_flops: float = MOBILENET_FLOPS) -> dict[int, dict[str, float]]:
    """`client_device_capacity` of a fleet of `n` devices; `communication` is the downlink, the format has but one."""
    speed = np.broadcast_to(np.asarray(fleet.flops_per_s, np.float64), (n,))
    rate = np.broadcast_to(np.asarray(fleet.downlink_bytes_per_s, np.float64), (n,))
    ms, kbps = (forward_flops / speed * 1e3).tolist(), (rate / 125.0).tolist()
    return {i: {"computation": ms[i], "communication": kbps[i]} for i in range(n)}


def write_fedscale(path: str | Path, table: Mapping[int, Mapping[str, Any]]) -> Path:
    """Write `behaviour_table` or `capacity_table` as FedScale's pickle (protocol 4, plain data)."""
    place = Path(path)
    place.write_bytes(pickle.dumps(dict(table), protocol=4))
    return place


class _Class(Exception):
    """A pickle asked for a class or function."""


def _refuse_class(name: str) -> NoReturn:
    raise _Class(name)


def _first(table: Any) -> Any:
    return next(iter(table.values()), None) if isinstance(table, dict) else None


def _ordered(table: Mapping[Any, Any]) -> list[Any]:
    if not all(isinstance(entry, Mapping) for entry in table.values()):
        raise UsageError("a FedScale table maps each client to a dictionary; another value is in this one.")
    try:
        return sorted(table)
    except TypeError:
        return sorted(table, key=str)


def _count(intervals: float) -> None:
    if intervals > _MOST_INTERVALS:
        raise UsageError(
            f"the FedScale table makes {intervals:.3g} intervals, more than {_MOST_INTERVALS:,}: leave clients out, or "
            "those whose finish_time is far shorter than the others'."
        )


def _column(entry: Mapping[str, Any], name: str, client: int) -> Sequence[float]:
    values = entry.get(name)
    if not isinstance(values, list) or not all(type(t) in (int, float) for t in values):
        raise UsageError(f"FedScale client {client}: {name!r} must be a list of seconds.")
    return values


def _numbers(entries: Sequence[Mapping[str, Any]], name: str) -> F64:
    values = [entry.get(name) for entry in entries]
    for i, value in enumerate(values):
        if type(value) not in (int, float):
            raise UsageError(f"FedScale client {i}: {name!r} must be a number.")
    if not values:
        raise UsageError("the FedScale table holds no client.")
    try:
        return np.array(values, np.float64)
    except OverflowError:
        raise UsageError(f"a FedScale client's {name!r} is too large a number.") from None


def _shifted(start: F64, end: F64, shift: float, period: float) -> tuple[F64, F64]:
    """Intervals as seen by a device that looks `shift` ahead, cut where they cross the period's seam."""
    if not shift or not len(start):
        return start, end
    start, end = start - shift, end - shift
    moved = end <= 0
    start, end = np.where(moved, start + period, start), np.where(moved, end + period, end)
    cross = start < 0
    start, end = np.append(np.maximum(start, 0), start[cross] + period), np.append(end, np.full(cross.sum(), period))
    order = np.argsort(start, kind="stable")
    return start[order], end[order]


def _plain(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _brief(error: BaseException) -> str:
    told = str(error).splitlines()
    return f"{type(error).__name__}{': ' + told[0][:100] if told else ''}".rstrip(".")
