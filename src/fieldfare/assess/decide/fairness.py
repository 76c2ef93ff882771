"""The part of a decision's page on fairness: every group's share before and after each filter, in devices and time.

Here: from a trace's table `fairness` to a picture and tables. Not here: the shares (`trace.stats`). Invariant: a group
that lost more than a fifth of its share, of devices or of device-seconds, is named in the first sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from fieldfare.assess.artefact import Artefact
from fieldfare.assess.artefact import words as texts
from fieldfare.assess.decide import plots
from fieldfare.assess.decide.sweeps import figure, from_, has, pictures
from fieldfare.assess.trace.stats import UNFAIR
from fieldfare.fleet.columns import Text
from fieldfare.report import page

LEAD = "Each group's share of those who can take part, against its share before: in devices, and in devices' time."
KINDS = {"": "devices", "_device_s": "devices' time"}
BY = {"tier": "device class", "os": "system", "region": "region"}
MOST = 14
"""Groups in a picture, the largest first."""


def body(trace: Artefact) -> str:
    """The part's markup; "" where the trace says nothing of groups before and after."""
    if not has(trace, "fairness"):
        return ""
    found = trace.table("fairness")
    if not {"filter", "by", "group", "share_before", "share_after"} <= set(found):
        return ""
    table = {name: np.array(texts(v)) if isinstance(v, Text) else np.asarray(v) for name, v in found.items()}
    kinds = {kind: name for kind, name in KINDS.items() if f"ratio{kind}" in table}
    figures = [made for by in BY if (made := _picture(table, by, kinds))]
    whole = page.details("All filters together", _table(table, table["filter"] == "all", kinds), opened=not figures)
    each = page.details("Before and after every filter", _table(table, table["filter"] != "all", kinds))
    return _said(table, kinds) + pictures(figures) + whole + each + from_(trace)


def _said(table: Mapping[str, Any], kinds: Mapping[str, str]) -> str:
    """Who is flagged, of all filters together, in a sentence."""
    at = table["filter"] == "all"
    out: list[str] = []
    for kind, name in kinds.items():
        groups = table["group"][at & (table[f"flagged{kind}"] > 0)].tolist()
        few = ", ".join(groups[:6]) + (f" and {len(groups) - 6} more" if len(groups) > 6 else "")
        out.append(f"of {name}: {few}" if groups else f"of {name}: none")
    told = "; ".join(out)
    return f"<p>Groups left with less than {UNFAIR:g} of the share they had before all filters, {escape(told)}.</p>"


def _picture(table: Mapping[str, Any], by: str, kinds: Mapping[str, str]) -> str:
    at = np.flatnonzero((table["filter"] == "all") & (table["by"] == by))
    at = at[np.argsort(-table["share_before"][at], kind="stable")][:MOST]
    if len(at) < 2 or not any(np.isfinite(table[f"ratio{kind}"][at]).any() for kind in kinds):
        return ""
    names = [f"{table['group'][i]} ({100 * table['share_before'][i]:.2g} %)" for i in at]
    markup = plots.ratios(
        names, {name: np.asarray(table[f"ratio{kind}"][at], np.float64) for kind, name in kinds.items()},
        label=f"shares after over before by {BY[by]}", limit=UNFAIR,
    )  # fmt: skip
    note = "Share after all filters over the share before; in brackets, the share of devices before."
    return figure(f"By {BY[by]}", note, markup)


def _table(table: Mapping[str, Any], rows: Any, kinds: Mapping[str, str]) -> str:
    """Rows by filter and group, with both shares before and after; what is flagged stands out."""
    out: list[list[str]] = []
    for i in np.flatnonzero(rows).tolist():
        cells = [page.cell(str(table["group"][i]), head=True, under=BY.get(str(table["by"][i]), "")),
                 page.cell(str(table["filter"][i]))]  # fmt: skip
        for kind in kinds:
            names = ("share_before", "share_after", "ratio")
            before, after, ratio = (float(table[f"{name}{kind}"][i]) for name in names)
            told = f"{ratio:.2f}" if np.isfinite(ratio) else "nobody left" if before else "none before"
            look = "no" if table[f"flagged{kind}"][i] else ""
            cells += [page.cell(_percent(before), number=True), page.cell(_percent(after), number=True),
                      page.cell(told, number=True, kind=look)]  # fmt: skip
        out.append(cells)
    head = [("group", False), ("filter", False)]
    for name in kinds.values():
        head += [(f"{name}, before", True), ("after", True), ("ratio", True)]
    return page.table(head, out, caption="fairness before and after")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if np.isfinite(share) else "missing"
