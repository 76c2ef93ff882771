"""One part of a log, computed: what the joint chances are counted from, and then its sessions and all counts.

Here: two passes over the clients of one part, in SQL. Not here: what the counts say (`stats`), who computes which part
(`build`). Invariant: everything counted is a whole number, and each client is in one part, so that counts of parts add
up to those of the whole, to the bit, however the log is cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.assess.trace.criteria import Criteria
from fieldfare.assess.trace.gaps import pieces_of, sessions_of
from fieldfare.assess.trace.joint import DEVICES, SCALE, Joint
from fieldfare.assess.trace.sessions import BIN_MS, HOUR_MS, WEEK_MS, Log, Piece
from fieldfare.assess.trace.sql import connected, text, told, with_coin
from fieldfare.fleet.columns import Text

Counts = dict[str, Counter[Any]]
GROUPS = ("tier", "os", "region")


@dataclass(frozen=True)
class Plan:
    """What a part needs to know: the log, the criteria, the seed, the list of devices allowed and what DuckDB may use.

    `spill`: a folder for what the first pass leaves for the second; "" computes it again. `rows`: a folder in which
    the log's rows lie by part (`share_out_here`); "" reads the whole log for each.
    """

    log: Log
    criteria: Criteria
    seed: int
    parts: int
    allow: tuple[tuple[str, str, str], ...] = ()
    joint: Joint | None = None
    memory_bytes: float = 0.0
    threads: int = 0
    folder: str = ""
    spill: str = ""
    rows: str = ""


@dataclass
class Done:
    """What a part gave: its counts, and its sessions that meet the criteria as columns, by start."""

    counts: Counts
    columns: dict[str, Any] = field(default_factory=dict[str, Any])


def share_out(plan: Plan, pieces: Sequence[Piece]) -> list[Any]:
    """The rows of some pieces of the log's files, an Arrow table a part: what `count_part` and `finish_part` take."""
    with connected(plan.memory_bytes, plan.threads, plan.folder) as con, told("the log cannot be computed"):
        rows = pieces_of(plan.log.of(pieces), plan.criteria)
        con.execute(f"CREATE TEMP TABLE cut AS SELECT *, {_part_of(plan)} AS part FROM ({rows})")
        query = "SELECT * EXCLUDE (part) FROM cut WHERE part = {}"
        return [con.sql(query.format(part)).to_arrow_table() for part in range(plan.parts)]


def share_out_here(plan: Plan) -> None:
    """The log's rows by part, as Parquet in `plan.rows`: the log is read once, whatever the number of parts."""
    with connected(plan.memory_bytes, plan.threads, plan.folder) as con, told("the log cannot be computed"):
        rows = f"SELECT *, {_part_of(plan)} AS part FROM ({pieces_of(plan.log, plan.criteria)})"
        con.execute(f"COPY ({rows}) TO {text(plan.rows)} (FORMAT parquet, PARTITION_BY (part), OVERWRITE_OR_IGNORE)")


def count_part(plan: Plan, part: int, shares: Sequence[Any] = ()) -> Counts:
    """The first pass: sessions by (hour of the week, platform, code). `shares`: this part's rows, of `share_out`."""
    with connected(plan.memory_bytes, plan.threads, plan.folder) as con, told("the log cannot be computed"):
        con.execute(f"CREATE TEMP TABLE made AS {_sessions(plan, part, con, shares)}")
        if plan.spill:
            con.execute(f"COPY made TO {text(str(_spilled(plan, part)))} (FORMAT parquet)")
        states = _counter(con, f"SELECT {_hour(plan)}, {_platform()}, code, count(*) FROM made GROUP BY ALL")
        return {"states": states, "alike": _alike(con, len(plan.criteria.states()))}


def finish_part(plan: Plan, part: int, shares: Sequence[Any] = ()) -> Done:
    """The second pass: each session's coin and criteria, all counts, and the sessions that are kept."""
    criteria = plan.criteria
    with connected(plan.memory_bytes, plan.threads, plan.folder) as con, told("the log cannot be computed"):
        place = _spilled(plan, part) if plan.spill else None
        spilled = place is not None and place.is_file()
        made = f"SELECT * FROM read_parquet({text(str(place))})" if spilled else _sessions(plan, part, con, shares)
        _allowed(con, plan)
        _chances(con, plan)
        con.execute(f"CREATE TEMP TABLE done AS {_done(plan, made)}")
        counts = _counts(con, plan)
        kept = "eligible"
        if criteria.min_gap_between_participation_s > 0:
            for name, where in (("every", "true"), ("kept", "eligible")):
                _thin(con, where, round(criteria.min_gap_between_participation_s * 1000), name)
                query = (
                    f"SELECT count(*), sum(usable_ms), count(DISTINCT client) FROM done SEMI JOIN {name} USING (row)"
                )
                counts[f"thin {name}"] = _totals(con, query, ("sessions", "usable_ms", "clients"))
            counts["thin groups"] = _counter(con, " UNION ALL ".join(
                f"SELECT '{group}', p.{group}, 'clients', count(DISTINCT d.client) FROM done d SEMI JOIN kept USING "
                f"(row) JOIN person p USING (client) GROUP BY ALL UNION ALL SELECT '{group}', {group}, 'ms', "
                "sum(usable_ms) FROM done SEMI JOIN kept USING (row) GROUP BY ALL"
                for group in GROUPS))  # fmt: skip
            kept = "row IN (SELECT row FROM kept)"
        counts |= _of_kept(con, plan, kept)
        return Done(counts, _columns(con, kept))


def _alike(con: Any, states: int) -> Counter[Any]:
    """Sums over clients of n, k, n n, n k and k k: n sessions whose states are known, k of them with all met."""
    known = " AND ".join(f"code // {3**i} % 3 < 2" for i in range(states))
    met = (3**states - 1) // 2
    return _totals(
        con, "SELECT sum(n), sum(k), sum(n * n), sum(n * k), sum(k * k) FROM (SELECT count(*)::HUGEINT AS n, "
        f"count(*) FILTER (WHERE code = {met})::HUGEINT AS k FROM made WHERE {known} GROUP BY client)",
        ("n", "k", "nn", "nk", "kk"),
    )  # fmt: skip


def merged(parts: Iterable[Counts]) -> Counts:
    """Counts of parts added up."""
    out: Counts = {}
    for one in parts:
        for name, counted in one.items():
            held = out.setdefault(name, Counter())
            for key, n in counted.items():
                held[key] += n
    return out


def _part_of(plan: Plan) -> str:
    """The part that a row's client is in."""
    return f"hash(client) % {plan.parts}"


def _sessions(plan: Plan, part: int, con: Any, shares: Sequence[Any]) -> str:
    if shares:
        for i, one in enumerate(shares):
            con.register(f"share_{i}", one)
        rows = " UNION ALL ".join(f"SELECT * FROM share_{i}" for i in range(len(shares)))
    elif plan.rows:
        mine = Path(plan.rows) / f"part={part}"
        if mine.is_dir():
            rows = f"SELECT * FROM read_parquet({text(f'{mine}/*.parquet')}, hive_partitioning = false)"
        else:  # nobody is in it
            rows = pieces_of(plan.log, plan.criteria, "false")
    else:
        rows = pieces_of(plan.log, plan.criteria, "true" if plan.parts == 1 else f"{_part_of(plan)} = {part}")
    return sessions_of(rows, plan.criteria)


def _spilled(plan: Plan, part: int) -> Path:
    return Path(plan.spill) / f"sessions-{part}.parquet"


def _hour(plan: Plan) -> str:
    """Local hour of the week of a session's start, UTC where its offset is unknown; 0 is Monday 0 h."""
    return f"(((start_ms + coalesce(tz_ms, 0) - {plan.log.origin_ms - WEEK_MS}) // {HOUR_MS}) % 168)::INTEGER"


def _platform() -> str:
    return "lower(coalesce(os, ''))"


def _allowed(con: Any, plan: Plan) -> None:
    con.execute("CREATE TEMP TABLE allow (model VARCHAR, os VARCHAR, version VARCHAR)")
    if plan.allow:
        con.executemany("INSERT INTO allow VALUES (?, ?, ?)", [list(one) for one in plan.allow])


def _chances(con: Any, plan: Plan) -> None:
    steps = ", ".join(f"t{i} DOUBLE" for i in range(1, 8))
    con.execute(
        f"CREATE TEMP TABLE chance (hour INTEGER, platform VARCHAR, code INTEGER, {steps}, packed INTEGER, "
        "g_mean BIGINT, p_low BIGINT, g_high BIGINT)"
    )
    rows = plan.joint.rows() if plan.joint else []
    for at in range(0, len(rows), 500):
        block = rows[at : at + 500]
        values = ", ".join(
            "(" + ", ".join(text(one) if isinstance(one, str) else repr(one) for one in row) + ")" for row in block
        )
        con.execute(f"INSERT INTO chance VALUES {values}")


def _done(plan: Plan, made: str) -> str:
    """A query of all sessions with the criteria they meet, `mask`: a bit for each that is asked, in their order."""
    criteria = plan.criteria
    asked, states = criteria.asked(), criteria.states()
    drawn = with_coin(f"SELECT *, {_hour(plan)} AS hour, {_platform()} AS platform FROM ({made})", plan.seed)
    index = " + ".join(f"(coin >= t{i})::INTEGER" for i in range(1, 8))
    joined = (
        f"SELECT d.*, (packed >> (3 * ({index}))) & 7 AS drawn, coalesce(g_mean, 0) AS g_mean, "
        "coalesce(p_low, 0) AS p_low, coalesce(g_high, 0) AS g_high "
        f"FROM ({drawn}) d LEFT JOIN chance c ON d.hour = c.hour AND d.platform = c.platform AND d.code = c.code"
    )
    bits: dict[str, str] = {}
    for i, name in enumerate(states):
        digit = f"((code // {3**i}) % 3)"
        bits[name] = f"CASE WHEN {digit} = 2 THEN (drawn >> {i}) & 1 ELSE {digit} END"
    match = "lower(coalesce(device_model, '')), lower(coalesce(os, ''))"
    bits |= {
        "os_released": f"os_release_date >= DATE '{criteria.os_released_after or '1970-01-01'}'",
        "device_allow": f"({match}, lower(coalesce(os_version, ''))) IN (SELECT (model, os, version) FROM allow) OR "
        f"({match}) IN (SELECT (model, os) FROM allow WHERE version = '') OR lower(coalesce(device_model, '')) IN "
        "(SELECT model FROM allow WHERE version = '' AND os = '')",
        "account_age": f"account_age_days >= {criteria.account_age_min_days}",
        "reputation": f"reputation >= {criteria.reputation_min}",
        "min_session": f"usable_ms >= {round(criteria.min_session_s * 1000)}",
    }
    mask = " + ".join(f"{1 << i} * coalesce(({bits[one]})::INTEGER, 0)" for i, one in enumerate(asked)) or "0"
    full, rest = (1 << len(asked)) - 1, (1 << len(asked)) - (1 << len(states))
    masked = f"SELECT *, ({mask})::INTEGER AS mask FROM ({joined})"
    on_wifi = f"(mask >> {asked.index('wifi')}) & 1 = {int(bool(criteria.wifi))}" if "wifi" in asked else "wifi"
    return (
        "SELECT row_number() OVER () AS row, client, start_ms, end_ms, usable_ms, last_ms, code, hour, platform, mask, "
        f"mask = {full} AS eligible, mask & {rest} = {rest} AS rest, g_mean, p_low, g_high, "
        "coalesce(device_class, device_model, 'unknown') AS tier, coalesce(os, 'unknown') AS os, "
        "coalesce(region, 'unknown') AS region, "
        f"coalesce(bw_class, CASE WHEN {on_wifi} THEN 'wifi' WHEN NOT ({on_wifi}) THEN 'cellular' ELSE 'unknown' END) "
        f"AS bw_class, {_unknown(plan)} FROM ({masked})"
    )


def _unknown(plan: Plan) -> str:
    """A column for each criterion that is asked: whether the session does not tell it."""
    states = plan.criteria.states()
    column = {"os_released": "os_release_date", "account_age": "account_age_days", "reputation": "reputation",
              "device_allow": "device_model"}  # fmt: skip
    told_ = {one: f"(code // {3**i}) % 3 = 2" for i, one in enumerate(states)}
    told_ |= {one: f"{name} IS NULL" for one, name in column.items()}
    return ", ".join(f"{told_.get(one, 'false')} AS unknown_{one}" for one in plan.criteria.asked()) or "false AS none_"


def _counts(con: Any, plan: Plan) -> Counts:
    """Of all sessions, kept or not."""
    asked = plan.criteria.asked()
    con.execute(
        "CREATE TEMP TABLE person AS SELECT client, arg_min(tier, start_ms) AS tier, arg_min(os, start_ms) AS os, "
        "arg_min(region, start_ms) AS region, "
        "bit_or(CASE WHEN mask < 128 THEN 1::UHUGEINT << mask::UHUGEINT ELSE 0::UHUGEINT END) AS low, "
        "bit_or(CASE WHEN mask >= 128 THEN 1::UHUGEINT << (mask - 128)::UHUGEINT ELSE 0::UHUGEINT END) AS high, "
        "bool_or(eligible AND g_mean = 0) AS sure, sum(CASE WHEN rest THEN g_mean ELSE 0 END) AS g_mean, "
        "sum(CASE WHEN rest THEN p_low ELSE 0 END) // count(*) AS p_low, "
        "sum(CASE WHEN rest THEN g_high ELSE 0 END) AS g_high "
        "FROM done GROUP BY client"
    )
    unknown = "".join(f", count(*) FILTER (WHERE unknown_{one})" for one in asked)
    out = {
        "masks": _counter(con, "SELECT 'sessions', mask, count(*) FROM done GROUP BY mask UNION ALL "
                               "SELECT 'usable_ms', mask, sum(usable_ms) FROM done GROUP BY mask"),
        "persons": _counter(con, " UNION ALL ".join(
            f"SELECT '{group}' AS by, {group} AS who, low::VARCHAR, high::VARCHAR, count(*) FROM person GROUP BY ALL"
            for group in GROUPS)),
        "groups": _counter(con, " UNION ALL ".join(
            f"SELECT '{group}' AS by, {group} AS who, mask, sum(usable_ms) FROM done GROUP BY ALL"
            for group in GROUPS)),
        "heads": _totals(con, "SELECT count(*), count(DISTINCT client), "
                         f"sum(usable_ms) FILTER (WHERE eligible AND g_mean = 0){unknown} FROM done",
                         ("sessions", "clients", "sure_ms", *(f"unknown {one}" for one in asked))),
        "cells": _counter(con, "SELECT hour, platform, code, sum(usable_ms) FROM done "
                               "WHERE rest AND g_mean > 0 GROUP BY ALL"),
        "all starts": _bins(con, plan, "start_ms", "true"), "all ends": _bins(con, plan, "end_ms", "true"),
    }  # fmt: skip
    any_ = f"round((1 - exp(-{{}}::DOUBLE / {SCALE})) * {DEVICES})::BIGINT"
    chances = {"mean": any_.format("g_mean"), "low": "p_low", "high": any_.format("g_high")}
    expected = ", ".join(f"sum(CASE WHEN sure THEN {DEVICES} ELSE {one} END)" for one in chances.values())
    out["expected"] = _totals(con, f"SELECT {expected} FROM person", ("mean", "low", "high"))
    return out


def _of_kept(con: Any, plan: Plan, kept: str) -> Counts:
    return {
        "starts": _bins(con, plan, "start_ms", kept), "ends": _bins(con, plan, "end_ms", kept),
        "lengths": _counter(con, f"SELECT usable_ms // 100, count(*) FROM done WHERE {kept} GROUP BY ALL"),
        "participations": _counter(con, "SELECT n, count(*) FROM (SELECT count(*) AS n FROM done "
                                        f"WHERE {kept} GROUP BY client) GROUP BY n"),
        "usable": _totals(con, f"SELECT count(*), sum(usable_ms) FROM done WHERE {kept}", ("sessions", "usable_ms")),
    }  # fmt: skip


def _bins(con: Any, plan: Plan, column: str, where: str) -> Counter[Any]:
    """By spans of five minutes: how many times fall into each, and the milliseconds from them to its end."""
    at = f"({column} - {plan.log.from_ms}) // {BIN_MS}"
    rest = f"({at} + 1) * {BIN_MS} - ({column} - {plan.log.from_ms})"
    return _counter(
        con, f"SELECT 'n', {at} AS bin, count(*) FROM done WHERE {where} GROUP BY ALL UNION ALL "
        f"SELECT 'ms', {at} AS bin, sum({rest}) FROM done WHERE {where} GROUP BY ALL"
    )  # fmt: skip


def _thin(con: Any, where: str, gap_ms: int, name: str) -> None:
    """A table `name` of the rows that are left when a client rests `gap_ms` after each session that counts."""
    rows = con.execute(
        f"SELECT row, client, start_ms, end_ms, coalesce(last_ms, -1000000000000) AS last_ms FROM done WHERE {where} "
        "ORDER BY client, start_ms"
    ).fetchnumpy()
    client, start, end = rows["client"], rows["start_ms"].astype(np.int64), rows["end_ms"].astype(np.int64)
    kept = rested(np.asarray(client), np.asarray(start), np.asarray(end), gap_ms, np.asarray(rows["last_ms"]))
    con.execute(f"CREATE TEMP TABLE {name} (row BIGINT)")
    chosen = {"row": np.asarray(rows["row"])[kept].astype(np.int64)}
    con.register("chosen", chosen)
    con.execute(f"INSERT INTO {name} SELECT row FROM chosen")
    con.unregister("chosen")


def rested(client: Any, start: Any, end: Any, gap_ms: int, last_ms: Any = None) -> Any:
    """Which sessions count, bool `[n]`, of rows by (client, start): the earliest, then each that begins at least
    `gap_ms` after the end of the one before that counted (`last_ms`: of one before the log, by a client's first row).

    >>> rested(np.zeros(3), np.array([0, 50, 200]), np.array([10, 60, 210]), 100).tolist()
    [True, False, True]
    """
    keep = np.zeros(len(client), np.bool_)
    if not len(client):
        return keep
    first = np.flatnonzero(np.append(True, client[1:] != client[:-1]))
    stop = np.append(first[1:], len(client))
    rank = np.repeat(np.arange(len(first)), stop - first)
    base = int(start.min())
    width = int(end.max()) - base + 1
    key = rank * width + (start - base)
    due = np.zeros(len(first), np.int64) if last_ms is None else last_ms[first] + gap_ms - base
    alive = np.arange(len(first))
    while len(alive):
        at = np.searchsorted(key, alive * width + np.clip(due[alive], 0, width - 1))
        at = at + ((due[alive] >= width) * len(key))
        inside = at < stop[alive]
        alive, at = alive[inside], at[inside]
        keep[at] = True
        due[alive] = end[at] + gap_ms - base
    return keep


def _columns(con: Any, kept: str) -> dict[str, Any]:
    for name in ("tier", "os", "bw_class"):
        con.execute(
            f"CREATE TEMP TABLE names_{name} AS SELECT word, (row_number() OVER (ORDER BY word) - 1)::INTEGER AS code "
            f"FROM (SELECT DISTINCT {name} AS word FROM done WHERE {kept})"
        )
    rows = con.execute(
        "SELECT client, start_ms, end_ms, usable_ms, a.code AS tier, b.code AS os, c.code AS bw_class FROM "
        f"(SELECT * FROM done WHERE {kept}) d JOIN names_tier a ON d.tier = a.word JOIN names_os b ON d.os = b.word "
        "JOIN names_bw_class c ON d.bw_class = c.word ORDER BY start_ms, client"
    ).fetchnumpy()
    out: dict[str, Any] = {name: np.asarray(rows[name]) for name in ("client", "start_ms", "end_ms", "usable_ms")}
    for name in ("tier", "os", "bw_class"):
        words = con.execute(f"SELECT word FROM names_{name} ORDER BY code").fetchall()
        out[name] = Text(np.asarray(rows[name], np.int32), tuple(str(one) for (one,) in words))
    return out


def _counter(con: Any, query: str) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for *key, n in con.execute(query).fetchall():
        found[key[0] if len(key) == 1 else tuple(key)] += int(n or 0)
    return found


def _totals(con: Any, query: str, names: tuple[str, ...]) -> Counter[Any]:
    return Counter({name: int(n or 0) for name, n in zip(names, con.execute(query).fetchone(), strict=True)})
