"""Availability logs of real phones, made into sessions that repeat.

FLASH's intervals and state traces (Yang et al., WWW 2021), ExtraSensory's minutes (Vaizman et al., IEEE Pervasive
Computing 2017). Not here: who draws which trace (`traces`), FedScale's format (`pickles`). Invariant: a session is a
span in which the log says that all criteria hold; what a log does not say does not count, and what was cut or tiled is
told in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import DAY_S, WEEK_S, Availability, of_columns, of_log
from fieldfare.fleet.columns import Columns, Text
from fieldfare.fleet.measured import numbers

F64 = NDArray[np.float64]

FROM_S, TO_S = 43200.0, 475200.0
"""The part of FLASH's logs used: 12 h to 132 h, five whole days; before and after, logs start and stop."""

FLASH_NEEDS = ("locked", "charging", "wifi")
"""What FLASH asks of a phone that trains: screen locked, on a charger, on Wi-Fi."""


def flash_sessions(
    table: Columns, variant: str = "charging_wifi", censored: Literal["keep", "away", "leave-out"] = "keep",
    from_s: float = FROM_S, to_s: float = TO_S,
) -> tuple[Availability, str]:  # fmt: skip
    """(sessions in which FLASH's phones may train, what was done in words): intervals of state 2 within the window.

    `table`: `device`, `variant`, `start_s`, `end_s`, `state`, `censored`. Time 0 is `from_s`; repeats by the whole
    weeks, else days, of the window.
    """
    names = table["variant"] if isinstance(table.get("variant"), Text) else None
    if not isinstance(names, Text) or variant not in names.names:
        have = ", ".join(names.names) if isinstance(names, Text) else "no column 'variant'"
        raise UsageError(f"flash_intervals has no variant {variant!r}; it has {have}.")
    mine = names.mask(variant)
    device, start, end, state, cut = (
        numbers(table, name)[mine] for name in ("device", "start_s", "end_s", "state", "censored")
    )
    phones, number = np.unique(device, return_inverse=True)
    order = np.lexsort((start, number))
    number, start, end, state, cut = (one[order] for one in (number, start, end, state, cut))
    of_columns(number, start - min(0.0, start.min()), end - min(0.0, start.min()), len(phones))
    to_s = min(to_s, float(end.max()))
    known = np.full(len(phones), np.inf)
    known[number[cut == 1]] = start[cut == 1]
    short = known < to_s
    told = f"{int(short.sum())} of {len(phones)} logs end within it (censored: {censored})"
    able = state == 2
    if censored != "keep":
        able &= cut == 0
    if censored == "leave-out":
        if short.all():
            raise UsageError(f"censored='leave-out': every log ends before {to_s:g} s; use 'keep' or 'away'.")
        able &= ~short[number]
        phones, number = phones[~short], (np.cumsum(~short) - 1)[number]
    able &= (end > from_s) & (start < to_s)
    made, note = of_log(
        number[able], np.maximum(start[able], from_s), np.minimum(end[able], to_s), len(phones), from_s, to_s
    )
    return made, f"hours {from_s / 3600:g} to {to_s / 3600:g} of it, {note}; {told}"


def minute_sessions(
    table: Columns, needs: tuple[str, ...] = ("charging", "wifi"), hold_s: float = 600.0
) -> tuple[Availability, str]:
    """(sessions, what was done in words) from one row a recorded minute (ExtraSensory; Vaizman et al., 2017).

    A minute's state lasts until the next row, and at most `hold_s` (our choice: most gaps are a minute, some are of
    hours); what is unknown or not recorded does not count. Time is each phone's local time, from Monday 0 h; a log
    gives its first whole days, up to a week, tiled to fill one; phones with less than a day are left out.
    """
    able = np.ones(len(numbers(table, "t_s")), np.bool_)
    for need in needs:
        if need not in _MINUTES:
            raise UsageError(f"extrasensory_minutes knows no criterion {need!r}; use {', '.join(_MINUTES)}.")
        column, wanted = _MINUTES[need]
        able &= np.isin(numbers(table, column), wanted)
    user, t = numbers(table, "user"), numbers(table, "t_s")
    minute, weekday = numbers(table, "local_minute_of_day"), numbers(table, "local_weekday")
    found: list[tuple[F64, F64]] = []
    lost = 0
    for one in np.unique(user):
        rows = np.flatnonzero(user == one)
        at = t[rows] - t[rows[0]]
        if (np.diff(at) <= 0).any():
            raise UsageError(f"extrasensory_minutes: the rows of user {one:g} do not ascend in time.")
        days = min(7.0, at[-1] // DAY_S)
        if days < 1:
            lost += 1
            continue
        end = np.minimum(np.append(at[1:], at[-1] + 60.0), at + hold_s)
        kept = able[rows] & (at < days * DAY_S)
        begin, end = at[kept], np.minimum(end[kept], days * DAY_S)
        first = weekday[rows[0]] * DAY_S + minute[rows[0]] * 60.0
        found.append(_one_week(begin, end, days * DAY_S, first))
    if not found:
        raise UsageError("extrasensory_minutes: no phone has a log of a whole day (86400 s), so none can be repeated.")
    device = np.repeat(np.arange(len(found)), [len(begin) for begin, _ in found])
    start, end = (np.concatenate(part) for part in zip(*found, strict=True))
    note = "a week of local time, shorter logs tiled by whole days to fill it, unrecorded minutes away"
    return of_columns(device, start, end, len(found), WEEK_S), note + (
        f"; {lost} logs under a day left out" * (lost > 0)
    )


_MINUTES: dict[str, tuple[str, tuple[int, ...]]] = {
    "charging": ("charging", (1,)), "plugged": ("plugged", (1,)), "wifi": ("network", (1,)),
    "inactive": ("app_state", (1, 2)), "idle": ("app_state", (2,)), "sleeping": ("sleeping", (1,)),
    "table": ("phone_on_table", (1,)),
}  # fmt: skip


def flash_states(table: Mapping[str, Any], needs: tuple[str, ...] = FLASH_NEEDS) -> tuple[Availability, list[str], str]:
    """(sessions, phone models, what was done in words) from FLASH's `state_traces.json`: {guid: {"messages": "time \\t
    state" lines, "model"}}.

    A phone may train while all of `needs` hold: "charging", "wifi", "locked", "screen_off" or "battery_NN" (at least NN
    percent). Before its first event nothing holds; after its last nothing is known, and nothing counts. Lines are
    sorted by time (our reading; FLASH takes them as they come). Time 0 is midnight before the first event of all, and
    the whole repeats by whole weeks, else days (FLASH repeats each log by its own length).
    """
    for need in needs:
        level = need.removeprefix("battery_")
        if need not in ("charging", "wifi", "locked", "screen_off") and not (need != level and level.isdigit()):
            raise UsageError(f"FLASH's states have no {need!r}; use charging, wifi, locked, screen_off or battery_80.")
    logs = [_events(guid, entry) for guid, entry in table.items()]
    spans = [_able(events, needs) for events in logs]
    if not any(logs):
        raise UsageError("the state traces hold no event; each entry needs lines 'time <tab> state' in 'messages'.")
    first = min(events[0][0] for events in logs if events) // DAY_S * DAY_S
    device = np.repeat(np.arange(len(spans)), [len(one) for one in spans])
    times = np.array([pair for one in spans for pair in one], np.float64).reshape(-1, 2) - first
    last = max(events[-1][0] for events in logs if events) - first
    made, note = of_log(device, times[:, 0], times[:, 1], len(spans), 0.0, last)
    models = [str(entry.get("model", ""))[:100] for entry in table.values()]
    return made, models, f"FLASH's state traces, {' and '.join(needs)}, {note}"


def _one_week(begin: F64, end: F64, length: float, first: float) -> tuple[F64, F64]:
    """Intervals of [0, length], tiled to a week, then placed `first` seconds into it, those over its seam cut."""
    copies = np.arange(np.ceil(WEEK_S / length)) * length
    begin, end = (copies[:, None] + begin).ravel(), np.minimum((copies[:, None] + end).ravel(), WEEK_S)
    kept = begin < end
    begin, end = begin[kept] + first, end[kept] + first
    after = begin >= WEEK_S
    begin, end = np.where(after, begin - WEEK_S, begin), np.where(after, end - WEEK_S, end)
    over = end > WEEK_S
    begin, end = np.append(begin, np.zeros(over.sum())), np.append(np.minimum(end, WEEK_S), end[over] - WEEK_S)
    order = np.argsort(begin, kind="stable")
    return begin[order], end[order]


def _events(guid: str, entry: Any) -> list[tuple[float, str]]:
    text = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise UsageError(f"state trace {str(guid)[:40]!r} has no text under 'messages'.")
    out: list[tuple[float, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        when, _, state = line.strip().partition("\t")
        try:
            at = datetime.fromisoformat(when.strip()).replace(tzinfo=UTC).timestamp()
        except ValueError:
            at = np.nan
        state = state.strip().lower()
        level = state.endswith("%") and state[:-1].replace(".", "", 1).isdigit()
        if not np.isfinite(at) or not (state in _EVENTS or level):
            raise UsageError(
                f"state trace {str(guid)[:40]!r}, line {number}: {line.strip()[:60]!r} is not 'YYYY-MM-DD hh:mm:ss "
                "<tab> state' with a state of FLASH's (battery_charged_on, wifi, screen_lock, 80%, ...)."
            )
        out.append((at, state))
    return sorted(out, key=lambda event: event[0])


_EVENTS: dict[str, tuple[str, bool] | None] = {
    "battery_charged_on": ("charging", True), "battery_charged_off": ("charging", False), "wifi": ("wifi", True),
    "unknown": ("wifi", False), "2g": ("wifi", False), "3g": ("wifi", False), "4g": ("wifi", False),
    "5g": ("wifi", False),
    "screen_lock": ("locked", True), "screen_unlock": ("locked", False), "screen_off": ("screen_off", True),
    "screen_on": ("screen_off", False), "battery_low": None, "battery_okay": None, "phone_off": None, "phone_on": None,
}  # fmt: skip


def _able(events: list[tuple[float, str]], needs: tuple[str, ...]) -> list[tuple[float, float]]:
    """Spans in which all `needs` hold, from the first event to the last; a phone that is off holds nothing."""
    holds = dict.fromkeys(("charging", "wifi", "locked", "screen_off"), False)
    battery, since, out = 0.0, None, []
    for at, state in events:
        change = _EVENTS.get(state)
        if change is not None:
            holds[change[0]] = change[1]
        elif state.endswith("%"):
            battery = float(state[:-1])
        elif state == "phone_off":
            holds = dict.fromkeys(holds, False)
        able = all(holds[n] if n in holds else battery >= float(n.removeprefix("battery_")) for n in needs)
        if able and since is None:
            since = at
        elif not able and since is not None:
            if at > since:
                out.append((since, at))
            since = None
    if since is not None and events[-1][0] > since:
        out.append((since, events[-1][0]))
    return out
