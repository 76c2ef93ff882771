"""The gap rule: rows of a log made into sessions.

Here: two queries. Background time is cut out of a row; then rows of a client that are at most `gap_merge_s` apart are
one session, whose usable time lacks the gap; a longer gap splits (FLINT, section 3.2; the threshold is ours). Where the
outcome of a criterion of state changes, a new session begins, too (our reading: one coin cannot stand for two states).
Rows of one client that overlap count once. Not here: what is tested (`part`). Invariant: a session's usable time is the
time that at least one of its rows covers, and sessions of a client do not overlap.
"""

from __future__ import annotations

from fieldfare.assess.trace.criteria import STATES, Criteria
from fieldfare.assess.trace.sessions import ATTRIBUTES, Log

KEPT = (*(one for one in ATTRIBUTES if one != "tz_offset_s"), "tz_ms", "last_ms")


def pieces_of(log: Log, criteria: Criteria, where: str = "true") -> str:
    """A query of the foreground spans of the log within its window: `client`, `s`, `e`, `code` and attributes.

    `code`: in base 3 a digit for each criterion of state that is asked, in their order: 0 not met, 1 met, 2 unknown.
    """
    kept = ", ".join(KEPT)
    rows = f"SELECT * FROM ({log.select}) WHERE {where} AND end_ms > {log.from_ms} AND start_ms < {log.to_ms}"
    spans = "start_ms AS s, end_ms AS e"
    if criteria.foreground and "background" in log.has:
        inside = "coalesce(background, [])"
        spans = (
            f"unnest(list_concat([start_ms], [x.e for x in {inside}])) AS s, "
            f"unnest(list_concat([x.s for x in {inside}], [end_ms])) AS e"
        )
    cut = f"SELECT client, {spans}, {code_of(criteria)} AS code, {kept}, start_ms, end_ms FROM ({rows})"
    low, high = f"greatest(s, start_ms, {log.from_ms})", f"least(e, end_ms, {log.to_ms})"
    return f"SELECT client, {low} AS s, {high} AS e, code, {kept} FROM ({cut}) WHERE {low} < {high}"


def sessions_of(pieces: str, criteria: Criteria) -> str:
    """A query of the sessions that `pieces` make: `client`, `start_ms`, `end_ms`, `usable_ms`, `code`, attributes.

    Attributes are those of a session's first row; of rows with the same times and code the first is the one whose
    attributes have the smallest hash, wherever it stands in the log. Cost: two sorts by client, outside of memory where
    need be.
    """
    gap = round(criteria.gap_merge_s * 1000)
    kept = ", ".join(KEPT)
    order = f"PARTITION BY client ORDER BY s, e, code, hash({kept})"
    seen = (
        "SELECT *, max(e) OVER past AS before, lag(code) OVER turn AS code_before, row_number() OVER turn AS place "
        f"FROM ({pieces}) WINDOW turn AS ({order}), past AS ({order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    )
    fresh = (
        f"SELECT *, greatest(s, coalesce(before, s)) AS begins, "
        f"(before IS NULL OR s - before > {gap} OR code <> code_before) AS fresh FROM ({seen})"
    )
    numbered = (
        "SELECT *, sum(fresh::BIGINT) OVER (PARTITION BY client ORDER BY place ROWS UNBOUNDED PRECEDING) "
        f"AS island FROM ({fresh})"
    )
    firsts = ", ".join(f"any_value({one}) FILTER (WHERE fresh) AS {one}" for one in KEPT)
    grouped = (
        f"SELECT client, island, min(begins) FILTER (WHERE begins < e) AS start_ms, max(e) AS end_ms, "
        f"sum(greatest(0, e - begins))::BIGINT AS usable_ms, any_value(code) AS code, {firsts} "
        f"FROM ({numbered}) GROUP BY client, island"
    )
    return f"SELECT client, start_ms, end_ms, usable_ms, code, {kept} FROM ({grouped}) WHERE usable_ms > 0"


def code_of(criteria: Criteria) -> str:
    """The expression of `code`: 0 where no criterion of state is asked."""
    met = {
        "wifi": f"wifi = {str(criteria.wifi).lower()}", "charging": f"charging = {str(criteria.charging).lower()}",
        "battery": f"battery >= {criteria.battery_min}",
    }  # fmt: skip
    asked = [one for one in STATES if one in criteria.states()]
    terms = [
        f"{3**i} * (CASE WHEN {one} IS NULL THEN 2 WHEN {met[one]} THEN 1 ELSE 0 END)" for i, one in enumerate(asked)
    ]
    return f"({' + '.join(terms) or '0'})"
