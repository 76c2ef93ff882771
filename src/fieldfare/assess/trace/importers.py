"""Others' availability logs as session logs.

FLASH's event lines and intervals (Yang et al., WWW 2021), ExtraSensory's minutes (Vaizman et al., IEEE Pervasive
Computing 2017), FedScale's pickle (Lai et al., ICML 2022). CSV `ID,start,end` needs no import: `sessions` reads it. Not
here: what is made of a log. Invariants: a row is a span in which the log tells the same states throughout; what it does
not tell stays unknown; a pickle is read without running anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fieldfare.assess.artefact import column
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.fleet import logs, pickles
from fieldfare.fleet.availability import DAY_S
from fieldfare.fleet.columns import Array, Columns, Text, is_parquet, read_columns, write_columns
from fieldfare.fleet.measured import numbers
from fieldfare.fleet.traces import load_json

HOLD_S = 600.0
"""How long a minute of ExtraSensory stands for what follows, at most (our choice, as in `fleet.logs`)."""

Table = dict[str, Array | Text]


def import_log(place: str | Path, out: str | Path, variant: str = "charging_wifi") -> Path:
    """Write the session log that a file of another maker holds, told by what is in it; Parquet, or CSV by `out`'s name.

    Known: FLASH's `state_traces.json` and its intervals (of `variant`), ExtraSensory's minutes, FedScale's
    `client_behave_trace`. Raises `UsageError` in one line for anything else.
    """
    target = Path(out)
    table = session_table(Path(place), variant)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_columns(target, iter([table]))
    return target


def is_foreign(place: str | Path) -> bool:
    """Whether a file is one that `import_log` reads, not a session log itself."""
    path = Path(place)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head[:1] in (b"\x80", b"{") or head[:3] == b"(dp":
        return True
    if is_parquet(path):
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingExtra.of("pyarrow", extra="assess") from None
        names = set(pq.read_schema(path).names)
    else:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            names = {name.strip() for name in file.readline(10_000).split(",")}
    return {"variant", "state", "censored"} <= names or {"local_weekday", "local_minute_of_day", "t_s"} <= names


def session_table(place: Path, variant: str = "charging_wifi") -> Table:
    """The columns of the session log that a file of another maker holds; see `import_log`."""
    if not place.is_file():
        raise UsageError(f"{place} does not exist; give FLASH's, ExtraSensory's or FedScale's file.")
    with place.open("rb") as file:
        head = file.read(64).lstrip()
    if head[:1] == b"\x80" or head[:3] == b"(dp":
        table = pickles.load_plain(place)
        if not pickles.is_behaviour(table):
            raise UsageError(
                f"{place} is no client_behave_trace: {{client: {{'active': [...], 'inactive': [...]}}}} is."
            )
        return of_fedscale(table)
    if head[:1] == b"{":
        return of_event_lines(load_json(place, pickles.MAX_BYTES))
    columns = read_columns(place)
    if {"device", "variant", "start_s", "end_s", "state"} <= columns.keys():
        return of_flash_intervals(columns, variant)
    if {"user", "t_s", "local_weekday", "local_minute_of_day"} <= columns.keys():
        return of_minutes(columns)
    raise UsageError(
        f"{place} is neither FLASH's, ExtraSensory's nor FedScale's: a table of client, start_s and end_s needs no "
        "import, give it to trace itself."
    )


def of_event_lines(table: Mapping[str, Any]) -> Table:
    """FLASH's `state_traces.json`, {guid: {"messages": "time \\t state" lines, "model"}}: a row between two events.

    Columns beside client, start and end: `wifi`, `charging`, `battery`, `screen` ("lock", "on", "off", "unlock"),
    `device_model`; unknown until a first event tells. A phone that is off has no rows. Client i is the i-th entry.
    """
    found: dict[str, list[Any]] = {name: [] for name in
                                   ("client", "start_s", "end_s", "wifi", "charging", "battery", "screen")}  # fmt: skip
    models: list[str] = []
    for client, (guid, entry) in enumerate(table.items()):
        events = logs._events(guid, entry)
        held: dict[str, Any] = {"wifi": None, "charging": None, "battery": None, "screen": None}
        on = True
        for (at, state), (then, _) in pairwise(events):
            on = _after(held, state, on)
            if on and then > at:
                for name, value in (("client", client), ("start_s", at), ("end_s", then), *held.items()):
                    found[name].append(value)
                models.append(str(entry.get("model", ""))[:100])
    if not models:
        raise UsageError("the state traces hold no span between two events: each phone needs lines 'time <tab> state'.")
    return {**{name: column(values) for name, values in found.items()}, "device_model": column(models),
            "os": column(["android"] * len(models))}  # fmt: skip


def _after(held: dict[str, Any], state: str, on: bool) -> bool:
    """Put what an event tells into `held`; gives whether the phone is on."""
    change = logs._EVENTS.get(state)
    if change is not None and change[0] in ("wifi", "charging"):
        held[change[0]] = float(change[1])
    elif state.startswith("screen_"):
        held["screen"] = state.removeprefix("screen_")
    elif state.endswith("%"):
        held["battery"] = min(1.0, float(state[:-1]) / 100.0)
    elif state == "phone_off":
        return False
    return True if state == "phone_on" else on


def of_flash_intervals(
    table: Columns, variant: str = "charging_wifi", censored: Literal["keep", "away"] = "keep"
) -> Table:
    """FLASH's intervals: state 2 is charging and on Wi-Fi; 1 is on Wi-Fi with the variant's charge; 0 neither.

    Our reading of 0: neither charging nor on Wi-Fi, since the table tells only that not both are so. Time 0 is taken
    for a Monday 0 h. `censored`: a phone's last interval, whose end is not known, counts as logged, or is left out.
    """
    names = table["variant"]
    if not isinstance(names, Text) or variant not in names.names:
        have = ", ".join(names.names) if isinstance(names, Text) else "no text"
        raise UsageError(f"flash_intervals has no variant {variant!r}; it has {have}.")
    mine = names.mask(variant)
    if censored == "away":
        mine &= numbers(table, "censored") == 0
    device, start, end, state = (numbers(table, one)[mine] for one in ("device", "start_s", "end_s", "state"))
    charge = float(variant.rpartition("batt")[2]) / 100.0 if "batt" in variant else np.nan
    return {
        "client": device.astype(np.int64), "start_s": start.astype(np.float64), "end_s": end.astype(np.float64),
        "wifi": (state >= 1).astype(np.float64), "charging": (state == 2).astype(np.float64),
        "battery": np.where(state == 1, charge, np.nan), "os": column(["android"] * len(device)),
    }  # fmt: skip


def of_minutes(table: Columns) -> Table:
    """ExtraSensory's minutes: a row lasts until the next of its phone, 600 s at most; -1 is unknown.

    Time is each phone's local time, from the Monday 0 h before its log began.
    """
    user, t = numbers(table, "user").astype(np.int64), numbers(table, "t_s").astype(np.float64)
    order = np.lexsort((t, user))
    user, t = user[order], t[order]
    first = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
    begins = (numbers(table, "local_weekday")[order] * DAY_S + numbers(table, "local_minute_of_day")[order] * 60.0)[
        first
    ]
    shift = np.repeat(begins - t[first], np.diff(np.append(first, len(user))))
    same = np.append(user[1:] == user[:-1], False)
    length = np.where(same, np.append(t[1:], 0.0) - t, 60.0)

    def told(name: str, able: Any) -> Array:
        value = numbers(table, name)[order]
        return np.where(value < 0, np.nan, able(value))

    return {
        "client": user, "start_s": t + shift, "end_s": t + shift + np.minimum(length, HOLD_S),
        "wifi": told("network", lambda v: v == 1), "charging": told("charging", lambda v: v == 1),
        "battery": told("battery_level", lambda v: np.clip(v, 0.0, 1.0)).round(4),
    }  # fmt: skip


def of_fedscale(table: Mapping[Any, Mapping[str, Any]]) -> Table:
    """FedScale's `client_behave_trace`: a row an active span, charging; traces of unlike lengths are tiled together.

    Clients keep whole numbers as ids, others are numbered in their order; time 0 is taken for a Monday 0 h.
    """
    available, _ = pickles.behaviour_of(table)
    order = pickles._ordered(table)
    ids = np.array(order if all(type(one) is int for one in order) else range(len(order)), np.int64)
    device = np.repeat(np.arange(len(ids)), np.diff(available.offsets))
    models = pickles.models_of(table)
    out: Table = {
        "client": ids[device], "start_s": available.start.astype(np.float64), "end_s": available.end.astype(np.float64),
        "charging": np.ones(len(device)),
    }  # fmt: skip
    if any(models):
        names = tuple(dict.fromkeys(one for one in models if one))
        place = {name: i for i, name in enumerate(names)} | {"": -1}
        out["device_model"] = Text(np.array([place[one] for one in models], np.int32)[device], names)
    return out
