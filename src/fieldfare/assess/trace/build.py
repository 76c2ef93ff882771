"""A trace from a log: looked over, counted, drawn, computed in parts, written as one artefact.

Here: `build_trace`, the whole pipeline, on this machine or on Ray. Not here: what a part does (`part`) and what is
told of it (`stats`). Invariant: the artefact depends on the log, the criteria and the seed alone, to the bit: not on
the number of parts, the threads or where they ran.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.assess.artefact import Artefact, Draft, Value, cite_file, read_artefact, words
from fieldfare.assess.platform.places import copies, is_url
from fieldfare.assess.steps import Tell, silent
from fieldfare.assess.trace import stats
from fieldfare.assess.trace.criteria import Criteria, TraceConfig
from fieldfare.assess.trace.generate import Recipe, generate_log
from fieldfare.assess.trace.importers import import_log, is_foreign
from fieldfare.assess.trace.joint import joint_of
from fieldfare.assess.trace.part import Counts, Done, Plan, count_part, finish_part, merged, share_out_here
from fieldfare.assess.trace.sessions import BIN_MS, WEEK_MS, Log, open_log
from fieldfare.assess.trace.spread import spread, steps
from fieldfare.assess.trace.sql import connected
from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.fleet.columns import Text

ROWS_A_PART = 10_000_000
PARTS_READ = 8
"""A log of more parts is first shared out to the disk, which costs about as much as reading it so many times."""


def build_trace(
    log: Recipe | str | Path | Sequence[str | Path], out: str | Path, config: TraceConfig | None = None, seed: int = 0,
    variant: str = "charging_wifi", tell: Tell = silent,
) -> Artefact:  # fmt: skip
    """The artefact `trace` of a session log, written to the folder `out`.

    `log`: Parquet or CSV (files or folders, or URLs of them, which are copied for as long as they are needed), one
    file of another maker (see `importers`; `variant` of FLASH's intervals), or a `Recipe` of a log to make up. FLINT's
    recipe (Wang et al., MLSys 2023, section 3.2) in SQL: see `gaps`, `joint`, `part`. `tell` is called with what is
    being done. Memory: what DuckDB is allowed, about 100 bytes a session of a part, and 80 bytes a session that meets
    the criteria. Raises `UsageError` in one line for a log or criteria that do not fit each other.
    """
    config = TraceConfig() if config is None else config
    criteria = config.criteria
    with tempfile.TemporaryDirectory(prefix="fieldfare-trace-", dir=config.spill_folder or None) as folder:
        paths, inputs, urls = _paths(log, Path(folder), config, seed, variant, tell)
        with connected(config.memory_bytes, config.threads, config.spill_folder) as con:
            tell("looking over the log")
            key = f"{rng.derive(seed, 'assess', 'trace', 'client'):016x}"
            seen = open_log(con, paths, config.columns, key, config.weeks, config.from_s, config.to_s)
        inputs = [cite_file(one, "session log") for one in seen.paths] if inputs is None else inputs
        origins = {
            one: (urls[one], told["sha256"]) for one, told in zip(seen.paths, inputs, strict=False) if one in urls
        }
        _check(seen, criteria)
        allow: tuple[tuple[str, str, str], ...] = ()
        if criteria.device_allow:
            bench = read_artefact(criteria.device_allow, "bench")
            allow = allowed_devices(bench)
            inputs.append(bench)
            config = replace(config, durations_s={**task_times(bench), **config.durations_s})
        parts = config.partitions or max(1, -(-seen.rows // ROWS_A_PART))
        plan = Plan(seen, criteria, seed, parts, allow, None, config.memory_bytes, config.threads, config.spill_folder)
        if config.on == "local":
            plan, done = _here(plan, tell)
        else:
            plan, done = spread(plan, config.on, origins, _with_chances, tell)
    tell("writing the artefact", steps(plan) - 1, steps(plan))
    made_up = {"made_up": asdict(log)} if isinstance(log, Recipe) else {}
    draft = _draft(plan, config, done, inputs, made_up)
    if made_up:
        draft.values = {name: replace(one, how="simulated") for name, one in draft.values.items()}
    return draft.write(out)


def _paths(
    log: Any, folder: Path, config: TraceConfig, seed: int, variant: str, tell: Tell
) -> tuple[list[str | Path], list[Any] | None, dict[str, str]]:
    """(files of the session log, inputs to cite; None: the files themselves, URLs of those that were fetched)."""
    end = ".parquet" if find_spec("pyarrow") else ".csv"
    if isinstance(log, Recipe):
        tell(f"making up a log of {log.clients:,} clients")
        return [generate_log(folder / f"{log.preset}{end}", log, seed)], [], {}
    paths: list[str | Path] = []
    urls: dict[str, str] = {}
    for i, one in enumerate([log] if isinstance(log, (str, Path)) else log):
        if is_url(one):
            tell(f"fetching {one}")
            fetched = copies(one, folder / f"fetched-{i}")
            urls |= {str(file): url for file, url in fetched.items()}
            paths += fetched
        else:
            paths.append(one)
    if len(paths) == 1 and is_foreign(paths[0]):
        tell(f"importing {paths[0]}")
        return [import_log(paths[0], folder / f"imported{end}", variant)], [cite_file(paths[0], "availability log")], {}
    return paths, None, urls


def allowed_devices(bench: Artefact) -> tuple[tuple[str, str, str], ...]:
    """(model, system, version) in lower case of the devices a `bench` artefact calls eligible; "" is any."""
    table = bench.table("eligible")
    rows = zip(words(table["device_model"]), words(table["os"]), words(table["os_version"]),
               np.asarray(table["eligible"]).tolist(), strict=True)  # fmt: skip
    found = tuple(sorted({(m.lower(), o.lower(), v.lower()) for m, o, v, able in rows if able}))
    if not found:
        raise UsageError(f"{bench.path} calls no device eligible: raise its limits, or leave device_allow out.")
    return found


def task_times(bench: Artefact) -> dict[str, float]:
    """The 95th percentile of each model's task time, of a `bench` artefact's values `MODEL.p95_task_s`."""
    found = {name.removesuffix(".p95_task_s"): one.value for name, one in bench.values.items()
             if name.endswith(".p95_task_s")}  # fmt: skip
    return {name: float(value) for name, value in sorted(found.items()) if value}


def _check(log: Log, criteria: Criteria) -> None:
    needs = {
        "wifi": ("wifi",), "battery": ("battery",), "charging": ("charging",), "os_released": ("os_release_date",),
        "device_allow": ("device_model",), "account_age": ("account_age_days",), "reputation": ("reputation",),
    }  # fmt: skip
    for one in criteria.asked():
        log.need(one, *needs.get(one, ()))


def _here(plan: Plan, tell: Tell) -> tuple[Plan, list[Done]]:
    with ExitStack() as stack:
        spill = stack.enter_context(tempfile.TemporaryDirectory(prefix="fieldfare-trace-", dir=plan.folder or None))
        if plan.parts > PARTS_READ:
            tell(f"sharing the log out by client, {plan.parts} parts", 1, steps(plan))
            plan = replace(plan, rows=str(Path(spill) / "rows"))
            share_out_here(plan)
        if plan.criteria.states():
            plan = replace(plan, spill=spill)
            counts = []
            for part in range(plan.parts):
                tell(f"sessions and what they tell, part {part + 1} of {plan.parts}", 1 + part, steps(plan))
                counts.append(count_part(plan, part))
            plan = _with_chances(plan, counts)
        done = []
        for part in range(plan.parts):
            over = steps(plan) - 1 - plan.parts + part
            tell(f"coins and criteria, part {part + 1} of {plan.parts}", over, steps(plan))
            done.append(finish_part(plan, part))
            (Path(spill) / f"sessions-{part}.parquet").unlink(missing_ok=True)
    return replace(plan, spill="", rows=""), done


def _with_chances(plan: Plan, counts: Sequence[Counts]) -> Plan:
    held = merged(counts)
    return replace(plan, joint=joint_of(plan.criteria.states(), held["states"], held["alike"]))


def _draft(
    plan: Plan, config: TraceConfig, done: Sequence[Done], inputs: list[Any], made_up: Mapping[str, Any]
) -> Draft:
    counts = merged(one.counts for one in done)
    log, criteria = plan.log, plan.criteria
    shares = stats.Shares(criteria.asked(), counts)
    if not shares.clients:
        raise UsageError(f"{log.paths[0]}: no session lies in the window of the trace; give other --from-s and --to-s.")
    first = (log.from_ms - log.origin_ms) // BIN_MS
    week = stats.folded(stats.curve(counts["starts"], counts["ends"], log.bins), first)
    every = stats.folded(stats.curve(counts["all starts"], counts["all ends"], log.bins), first)
    lengths = stats.Lengths(counts["lengths"])
    period_s = (log.to_ms - log.from_ms) / 1000.0
    told = asdict(criteria) | {"device_allow": "given" if criteria.device_allow else ""}
    params = {
        "criteria": told, "columns": dict(config.columns), "durations_s": dict(config.durations_s),
        "from_s": log.from_ms / 1000.0, "to_s": log.to_ms / 1000.0, "origin_s": log.origin_ms / 1000.0,
        "period_s": period_s, "unknown": "a criterion other than Wi-Fi, battery and charging is not met where unknown",
        **made_up,
    }  # fmt: skip
    draft = Draft("trace", plan.seed, params, inputs)
    kept = counts["usable"]
    values = stats.eligible_values(shares, counts, plan.joint)
    persons = sum(counts["participations"].values())
    values |= {
        "trough_over_peak": Value(stats.trough_over_peak(week), "share", note="hourly means of the mean week"),
        "sessions": Value(kept["sessions"], "", note="that meet the criteria"),
        "clients": Value(persons, "", note="with a session that meets the criteria"),
        "median_usable_s": Value(_known(lengths.quantile(0.5)), "s"),
        "supply_per_s": Value(kept["sessions"] / period_s, "1/s", note="sessions that begin"),
        "weeks": Value((log.to_ms - log.from_ms) / WEEK_MS, ""),
        "logged_sessions": Value(shares.sessions, ""), "logged_clients": Value(shares.clients, ""),
        "logged_device_s": Value(shares.ms / 1000.0, "s"), "eligible_device_s": Value(kept["usable_ms"] / 1000.0, "s"),
        "available_mean": Value(_known(float(np.nanmean(week))), "", note="clients at once"),
        "available_peak": Value(_known(float(np.nanmax(week))), "", note="clients at once, five minutes"),
        "participations_mean": Value(kept["sessions"] / persons if persons else None, "", note="sessions a client"),
        "drawn_sessions": Value(plan.joint.unknown if plan.joint else 0, "", note="whose states were drawn"),
        "thin_cells": Value(plan.joint.thin if plan.joint else 0, "", note="hours of the week and platforms with fewer "
                            "than 10 sessions to estimate from"),
    }  # fmt: skip
    for name, seconds in config.durations_s.items():
        values[f"p_usable.{name}"] = Value(
            _known(lengths.at_least(float(seconds))), "share", note=f"P(usable >= {seconds:g} s)"
        )
    draft.values |= values
    draft.table("sessions", _joined(done))
    draft.table("criteria", stats.criteria_table(shares, counts))
    draft.table("intersections", stats.intersections_table(shares))
    draft.table("weekly", stats.weekly_table(week, every))
    draft.table("heat", stats.heat_table(week))
    draft.table("lengths", lengths.table())
    draft.table("ccdf", lengths.ccdf())
    draft.table("participations", _pairs(counts["participations"], "sessions", "clients"))
    fairness = stats.fairness_table(shares)
    draft.table("fairness", fairness)
    for name, what in (("flagged", "devices"), ("flagged_device_s", "device-seconds")):
        note = f"groups and filters under 0.8 of their share of {what} before"
        draft.values[name.replace("flagged", "flagged_groups")] = Value(sum(fairness[name]), "", note=note)
    return draft


def _joined(done: Sequence[Done]) -> dict[str, Any]:
    """The sessions of all parts, by (start, client)."""
    columns = {name: [one.columns[name] for one in done] for name in done[0].columns}
    client, start = np.concatenate(columns["client"]), np.concatenate(columns["start_ms"])
    order = np.lexsort((client, start))
    return {
        "client": client[order].astype(np.int64), "start_s": start[order] / 1000.0,
        "end_s": np.concatenate(columns["end_ms"])[order] / 1000.0,
        "usable_s": np.concatenate(columns["usable_ms"])[order] / 1000.0,
        "device_class": _one_text(columns["tier"], order), "os": _one_text(columns["os"], order),
        "bw_class": _one_text(columns["bw_class"], order),
    }  # fmt: skip


def _one_text(parts: Sequence[Text], order: Any) -> Text:
    names = tuple(sorted({name for one in parts for name in one.names}))
    place = {name: i for i, name in enumerate(names)}
    codes = [np.array([place[name] for name in one.names] or [0], np.int32)[one.codes] for one in parts]
    return Text(np.concatenate(codes)[order], names)


def _pairs(counted: Any, key: str, count: str) -> dict[str, Any]:
    keys = sorted(counted)
    return {key: np.array(keys, np.int64), count: np.array([counted[one] for one in keys], np.int64)}


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
