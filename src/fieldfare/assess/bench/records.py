"""Records of a device benchmark: a line of JSON per device, model and repeat (FLINT's report, section 7).

Here: reading and checking them (they come from other machines), what a target adds, and the flat table. Not here:
statistics (`summary`). Invariants: what was not measured is None, never 0; a record that is not `ok` has no times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fieldfare.assess.artefact import digest, read_artefact
from fieldfare.core.errors import UsageError

Record = Mapping[str, Any]

STATUS = ("ok", "op_missing", "oom", "crash", "timeout")
DEVICE_TEXT = ("vendor", "model", "soc", "os", "os_version", "os_release_date")
DEVICE_NUMBERS = ("ram_bytes", "cores", "ai_score")
MODEL_NUMBERS = (
    "params", "params_trainable", "storage_bytes", "assets_bytes", "wire_down_bytes", "wire_up_bytes",
    "flops_per_record",
)  # fmt: skip
NUMBERS = (
    "repeat", "start_ns", "steps", "records", "wall_s", "first_step_s", "cpu_s", "cpu_pct_mean", "cpu_pct_max",
    "mem_peak_bytes", "mem_delta_bytes", "runtime_bytes", "battery_before", "battery_after", "charge_mah",
    "battery_full_mah", "energy_j", "temp_c_max", "freq_min_hz", "freq_max_hz", "throttled",
)  # fmt: skip
QUANTILES = ("p5", "p50", "p95", "max")
TIMES = ("wall_s", "per_record_s")
_SIGNED = ("charge_mah", "temp_c_max")
_MOST, _MOST_BYTES, _MOST_TEXT = 1e30, 256 << 20, 500


def parse(text: str | bytes, source: str, package: str | None = None) -> list[Record]:
    """Records of JSON lines; a line that is none, or of another `package`, is a `UsageError` naming its number."""
    if len(text) > _MOST_BYTES:
        raise UsageError(f"{source} has {len(text)} bytes: records of a benchmark are smaller than {_MOST_BYTES}.")
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    found: list[Record] = []
    for place, line in enumerate(words.splitlines(), 1):
        if line.strip():
            found.append(_checked(line, f"{source}, line {place}", package))
    return found


def read_records(place: str | Path) -> list[Record]:
    """The records of a file that a target, or an artefact of kind `bench`, has written."""
    path = Path(place)
    if path.is_dir():
        made = read_artefact(path, "bench")
        path = made.file("records.jsonl")
        if digest(path) != made.manifest["files"]["records.jsonl"]["sha256"]:
            raise UsageError(f"{path} was changed since it was written: measure again.")
    if not path.is_file():
        raise UsageError(f"there is no file of records {place}: give a bench artefact, or its records.jsonl.")
    return parse(path.read_bytes(), path.name)


def lines(records: Iterable[Record]) -> bytes:
    """Records as JSON lines, the same for equal records."""
    return b"".join(json.dumps(one, sort_keys=True, allow_nan=False).encode() + b"\n" for one in records)


def failed(package: str, model: Mapping[str, Any], device: Mapping[str, Any], status: str, note: str) -> Record:
    """The record of a repeat that a device never told of."""
    line = {"package": package, "model": dict(model), "device": dict(device), "status": status, "note": note}
    return _checked(json.dumps(line), "a failure", package)


def with_device(records: Iterable[Record], **told: Any) -> list[Record]:
    """Records whose device is what a target knows of it; what it does not know (None) stays as the probe has it."""
    known = {name: value for name, value in told.items() if value is not None}
    return [{**one, "device": {**one["device"], **known}} for one in records]


def filled_battery(
    records: Sequence[Record], before: Mapping[str, float | None] | None, after: Mapping[str, float | None] | None
) -> list[Record]:
    """Records with the battery as the target saw it before the first and after the last repeat.

    Only where the probe saw none. Of several repeats each has its part of the charge that was spent, and of its energy
    at the voltage shown. On a cable nothing is known of what was spent: None. Heat is that at the end.
    """
    if before is None or after is None:
        return list(records)
    done = sum(one["status"] == "ok" for one in records)
    seen: dict[str, Any] = {"temp_c_max": after["temp_c"]}
    each: dict[str, Any] = {}
    if not before["plugged"] and not after["plugged"]:
        had, has = before["charge_mah"], after["charge_mah"]
        full = had / before["share"] if had and before["share"] else None
        seen |= {"battery_before": before["share"], "battery_after": after["share"], "battery_full_mah": full}
        if had is not None and has is not None and had > has and done:
            each["charge_mah"] = (had - has) / done
            if before["volts"]:
                each |= {"energy_j": each["charge_mah"] * 3.6 * before["volts"], "energy_source": "battery charge"}
    made: list[Record] = []
    for one in records:
        more = {**seen, **(each if one["status"] == "ok" else {})}
        if one["energy_j"] is not None:
            more = {name: value for name, value in more.items() if not name.startswith("energy")}
        made.append({**one, **{name: value for name, value in more.items() if one[name] is None}})
    return made


def flat(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The table `records`: a column per name of the schema, nested names joined by "_"."""
    device = (*DEVICE_TEXT, *DEVICE_NUMBERS)
    table: dict[str, list[Any]] = {f"device_{name}": [one["device"][name] for one in records] for name in device}
    table["model"] = [one["model"]["name"] for one in records]
    table["model_version"] = [one["model"]["version"] for one in records]
    table |= {f"model_{name}": [one["model"][name] for one in records] for name in MODEL_NUMBERS}
    for name in ("status", "note", "package", "energy_source", "how"):
        table[name] = [one[name] for one in records]
    table |= {name: [one[name] for one in records] for name in (*NUMBERS, "per_record_s")}
    table |= {f"step_s_{name}": [one["step_s"][name] for one in records] for name in QUANTILES}
    table["net_down_bytes"] = [one["model"]["wire_down_bytes"] for one in records]
    table["net_up_bytes"] = [one["model"]["wire_up_bytes"] for one in records]
    text = ("status", "note", "package", "energy_source", "how", "model", "model_version",
            *(f"device_{n}" for n in DEVICE_TEXT))  # fmt: skip
    return {
        name: [one or "" if name in text else float("nan") if one is None else float(one) for one in found]
        for name, found in table.items()
    }


def _checked(line: str, where: str, package: str | None) -> Record:
    """A record of every name of the schema; names it does not know are left out."""
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is no JSON: records are a line of JSON per repeat; measure again.") from None
    one = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    if not all(isinstance(one.get(name), dict) for name in ("model", "device")):
        raise UsageError(f"{where} is no record of a benchmark: it needs device, model and status.")
    status, model, device = one.get("status"), one["model"], one["device"]
    if status not in STATUS:
        raise UsageError(f"{where}: status {_text(status)!r} is none of {', '.join(STATUS)}.")
    if package is not None and one.get("package") != package:
        raise UsageError(
            f"{where} is of package {_text(one.get('package'))!r}, not {package!r}: it was measured with another model "
            "or plan; put results of this package there."
        )
    if not _text(model.get("name")):
        raise UsageError(f"{where} does not name its model.")
    numbers = {name: _number(one, name, where) for name in NUMBERS}
    steps = cast(dict[str, Any], one["step_s"]) if isinstance(one.get("step_s"), dict) else {}
    made: dict[str, Any] = {
        "package": _text(one.get("package")), "status": status, "note": _text(one.get("note")),
        "how": _text(one.get("how")) or "measured", "energy_source": _text(one.get("energy_source")),
        "device": {**{name: _text(device.get(name)) for name in DEVICE_TEXT},
                   **{name: _number(device, name, where) for name in DEVICE_NUMBERS}},
        "model": {"name": _text(model["name"]), "version": _text(model.get("version")),
                  **{name: _number(model, name, where) for name in MODEL_NUMBERS}},
        **numbers, "step_s": {name: _number(steps, name, where) for name in QUANTILES}, "per_record_s": None,
    }  # fmt: skip
    if status == "ok":
        if not made["wall_s"] or not made["records"]:
            raise UsageError(f"{where} is ok without wall_s and records above 0: measure again.")
        made["per_record_s"] = made["wall_s"] / made["records"]
    if made["energy_j"] is None:
        made["energy_source"] = None
    return made


def _text(value: Any) -> str | None:
    return value[:_MOST_TEXT] if isinstance(value, str) and value else None


def _number(of: Mapping[str, Any], name: str, where: str) -> float | int | None:
    value = of.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _MOST:
        raise UsageError(f"{where}: {name}={str(value)[:40]!r} is no number of less than {_MOST:g}.")
    if value < 0 and name not in _SIGNED:
        raise UsageError(f"{where}: {name}={value!r} is below 0.")
    return value
