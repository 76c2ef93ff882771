"""The sections of a page on the nodes of a run: how devices spent their time, what they sent, the ring over time.

Here: from `Nodes` to sections. Not here: reading and adding up (`read_nodes`), drawing (`plots_nodes`, `plots_rings`).
Kept: a run of one node has no such section.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fieldfare.report import page, plots_nodes, plots_rings, units
from fieldfare.report.draws import Draws, draws_of
from fieldfare.report.move_sections import move_sections
from fieldfare.report.page import Section
from fieldfare.report.read import Run
from fieldfare.report.read_nodes import Nodes, energy_j, read_nodes, steps_taken, traffic
from fieldfare.report.style import Picture


def nodes_of_run(run: Run) -> Nodes | None:
    """`read_nodes` of a run."""
    return read_nodes(run.path, run.table.total("virtual_s"))


def node_sections(run: Run, *, draw: bool, more: str = "") -> list[Section]:
    """Give the sections on devices and on rings; `more` is added to their anchors where a page has several runs."""
    nodes = nodes_of_run(run)
    if nodes is None or not nodes.placed:
        return []
    draws = draws_of(nodes.said)
    body = _devices_table(nodes, draws)
    if draws is not None:
        body += f"<p>{page.escape(plots_nodes.fit(draws))}</p>"
    if draw:
        body += page.GAP + page.pictures(_renamed(plots_nodes.node_pictures(nodes, draws), more))
    more_of = "what it sent and received" + (", and how often a ring was drawn with it" if draws is not None else "")
    lead = f"What every device did with its time, {more_of}."
    found = [Section(f"nodes{more}", "Nodes", lead, body)]
    if draw and (drawn := plots_rings.ring_pictures(nodes)):
        lead = "Who trained when, what went from whom to whom, what was lost, and when a result was committed."
        found.append(Section(f"rings{more}", "Rings", lead, page.pictures(_renamed(drawn, more))))
    return [*move_sections(run.path, nodes, draw=draw, more=more, named=_renamed), *found]


def _renamed(drawn: Sequence[Picture | None], more: str) -> list[Picture | None]:
    """Pictures whose identifiers differ from those of another run on the page."""
    names = re.compile(r"\b(ring|ring-close|node-times|node-bytes|draws|moves-[a-z]+)-(?=[A-Za-z0-9])")
    return [one and replace(one, markup=names.sub(rf"\1{more}-", one.markup)) if more else one for one in drawn]


def _devices_table(nodes: Nodes, draws: Draws | None) -> str:
    moved, steps, shares = traffic(nodes), steps_taken(nodes), plots_nodes.spent(nodes)
    head = [("device", False)]
    names = ["local steps", "trains", "waits for others", "waits for links", "idle", f"{nodes.carried} sent",
             "received", "control sent", "received", "lost on the way"]  # fmt: skip
    away = bool(shares[:, 3].max(initial=0.0) > 0)
    head += [(words, True) for words in [*names[:4], *(["away"] if away else []), *names[4:]]]
    joules = energy_j(nodes)
    if joules is not None:
        head += [("energy computing", True), ("energy of messages", True)]
    if draws is not None:
        head += [("drawn", True), ("by its chances", True)]
    rows = []
    for rank, at in enumerate(nodes.placed):
        there = max(1.0 - float(shares[rank, 3]), 1e-300)
        cells = [units.number(round(float(steps[at]))), *(units.share(float(one)) for one in shares[rank, :3])]
        cells += [units.share(float(shares[rank, 3]))] if away else []
        cells += [units.share(1.0 - float(shares[rank, 0]) / there)]
        cells += [units.size(float(one[at])) for one in (
            moved.model_out, moved.model_in, moved.control_out, moved.control_in, moved.lost)]  # fmt: skip
        cells += [units.energy(float(one[at])) for one in joules or ()]
        if draws is not None:
            found = np.flatnonzero(np.array(draws.names) == nodes.names[at])
            cells += (
                [f"{int(draws.drawn[found[0]])}", units.number(float(draws.expected[found[0]]), 3)]
                if found.size else [units.DASH, units.DASH]
            )  # fmt: skip
        rows.append([page.cell(nodes.names[at], head=True), *(page.cell(text, number=True) for text in cells)])
    return page.table(head, rows, caption="Devices of the run")
