"""The section on moves: spans of where devices were, sessions by edge, standstill, the table and the pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_folders import make_run, write_lines

from fieldfare.report import move_sections, plots_moves, style
from fieldfare.report.html import write_report
from fieldfare.report.node_sections import node_sections
from fieldfare.report.read import read_run
from fieldfare.report.read_moves import moves_of
from fieldfare.report.read_nodes import read_nodes, traffic
from fieldfare.report.whereabouts import (
    Span,
    home,
    owners,
    sessions,
    standstill_s,
    stays,
    steps_at_once,
    usual_interval_s,
)
from fieldfare.store.nodes import MESSAGE, WORKED

KINDS = ("Round", "Begin", "Forward", "Backward", "Pre", "Final", "Commit", "Update", "Carry")
NAMES = ("central", "edge/0", "edge/1", "device/0", "device/1", "device/2")
SPAN_S = 30.0
MOVES = [[6.0, "device/0", "edge/0", "edge/1", 1.5], [11.0, "device/1", "edge/0", "edge/1", 0.0],
         [40.0, "device/1", "edge/1", "edge/0", 12.0]]  # fmt: skip
COMMITS = [("device/0", 6.25, "PreCopy", "handover"), ("device/1", 11.25, "PreCopy", "restart")]


def make_moving_run(folder: Path, *, mobility: bool = True, commits=COMMITS, sealed: bool = False) -> Path:
    """One round of twenty batches, one a second; device 0 loses half a second to its move, device 1 begins anew."""
    make_run(folder, rounds=1, clients=3, cohort=3, round_s=SPAN_S, personal=False, algorithm="fedfly")
    at = {kind: rank for rank, kind in enumerate(KINDS)}
    number = {name: rank for rank, name in enumerate(NAMES)}
    messages, work = [(0.0, 0.0, 0, edge, at["Round"], 1e6, 1, -1, -1) for edge in (1, 2)], []
    said = []

    def down(edge, device, when, batch):
        messages.append((when - 0.5, when - 0.4, number[device], number[edge], at["Forward"], 4e5, 1, 0, batch))
        messages.append((when - 0.1, when, number[edge], number[device], at["Backward"], 4e5, 1, 0, batch))
        work.append((number[edge], when - 0.3, when - 0.1, 1, 0, 1))
        work.append((number[device], when, when + 0.4, 1, 0, 1))

    for device in NAMES[3:]:
        messages.append((0.0, 0.1, 1, number[device], at["Begin"], 2e5, 1, 0, -1))
        lost = {"device/0": 0.5}.get(device, 0.0)
        for batch in range(20):
            changed = commits and device != "device/2" and batch >= (6 if device == "device/0" else 0)
            if device == "device/1" and commits:
                if batch < 11:
                    down("edge/0", device, 1.0 + batch, batch)
                down("edge/1", device, 12.0 + 0.5 * batch, batch)
                continue
            edge = "edge/1" if changed else "edge/0"
            down(edge, device, 1.0 + batch + (lost if changed else 0.0), batch)
    for rank, (device, when, policy, kind) in enumerate(commits):
        said.append({"virtual_s": when - 0.2, "what": "prep", "device": device, "epoch": 0, "attempt": 1, "round": 1,
                     "policy": policy, "size_bytes": 9, "batches": 6})  # fmt: skip
        if kind == "handover":
            to = number[device] if sealed else 2
            messages.append((when - 0.1, when, 1, to, at["Carry" if sealed else "Final"], 3e5, 1, 0, -1))
        messages.append((when, when, 1, 0, at["Commit"], 300.0, 1, -1, -1))
        said.append({"virtual_s": when, "what": "commit", "device": device, "epoch": 1, "round": 1, "src": "edge/0",
                     "dst": "edge/1", "kind": kind, "withheld": False})  # fmt: skip
        assert rank < 3
    roles = ["central", "edge", "edge", "device", "device", "device"]
    devices = [None, 3, 4, 0, 1, 2]
    told = {"nodes": [{"node": n, "role": r, "device": d} for n, r, d in zip(NAMES, roles, devices, strict=True)],
            "kinds": list(KINDS)}  # fmt: skip
    if mobility:
        walk = {"times_s": [0.0, 10.0, 20.0, 30.0, 90.0], "edges_m": [[0.0, 0.0], [100.0, 0.0]],
                "x_m": [[0, 40, 80, 90, 95]] * 3, "y_m": [[k, k + 5, k, k, k] for k in range(3)]}  # fmt: skip
        homes = dict.fromkeys(NAMES[3:], "edge/0")
        told["mobility"] = {"edges": 2, "homes": homes, "moves": MOVES, "walk": walk}
    (folder / "nodes.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "messages.bin").write_bytes(np.array(messages, MESSAGE).tobytes())
    (folder / "work.bin").write_bytes(np.array(work, WORKED).tobytes())
    write_lines(folder / "said.jsonl", said)
    return folder


@pytest.fixture
def moved(tmp_path):
    folder = make_moving_run(tmp_path / "run")
    nodes, mobility = read_nodes(folder, SPAN_S), move_sections.mobility_of(folder)
    return folder, nodes, mobility, moves_of(nodes, mobility)


def test_a_device_is_at_its_home_in_a_gap_and_at_the_next_edge_up_to_the_end_of_the_run(moved):
    _, nodes, mobility, _ = moved
    assert stays(nodes, mobility, "device/0") == [
        Span(0.0, 4.5, "edge/0"), Span(4.5, 6.0, ""), Span(6.0, 30.0, "edge/1"),
    ]  # fmt: skip
    assert stays(nodes, mobility, "device/1")[-2:] == [Span(11.0, 28.0, "edge/1"), Span(28.0, 30.0, "")]
    assert stays(nodes, mobility, "device/2") == [Span(0.0, 30.0, "edge/0")]
    gaps = {"gaps": [["device/2", 10.0, 12.0], ["device/0", 4.5, 6.0], ["device/2", 29.0, None]]}
    assert stays(nodes, {**mobility, **gaps}, "device/2") == [
        Span(0.0, 10.0, "edge/0"), Span(10.0, 12.0, ""), Span(12.0, 29.0, "edge/0"), Span(29.0, 30.0, ""),
    ]  # fmt: skip
    assert stays(nodes, {**mobility, **gaps}, "device/0") == stays(nodes, mobility, "device/0")
    assert home(nodes, {}, "device/2") == "edge/0"
    assert stays(nodes, {}, "device/0") == [Span(0.0, 30.0, "edge/0")]


def test_a_session_has_one_owner_at_a_time_and_edges_have_all_of_them(moved):
    _, nodes, mobility, moves = moved
    assert owners(nodes, mobility, moves, "device/0") == [Span(0.0, 6.25, "edge/0"), Span(6.25, 30.0, "edge/1")]
    one, other = (sessions(nodes, mobility, moves, edge) for edge in ("edge/0", "edge/1"))
    assert (one[0].tolist(), one[1].tolist()) == ([0.0, 6.25, 11.25], [3, 2, 1])
    assert (other[0].tolist(), other[1].tolist()) == ([0.0, 6.25, 11.25], [0, 1, 2])


def test_steps_under_way_add_up_to_all_that_was_computed(moved):
    _, nodes, _, _ = moved
    edges = plots_moves.edges_of(nodes)
    borders, at_once = steps_at_once(nodes, edges)
    total = (at_once * np.diff(borders)).sum(axis=1)
    for edge, found in zip(edges, total, strict=True):
        work = nodes.trainings(nodes.names.index(edge))
        assert found == pytest.approx((work["ended_s"] - work["begun_s"]).sum())
    assert at_once[1, 0] == 0.0 < at_once[1].max()


def test_a_device_stands_still_for_what_a_gap_is_longer_than_its_batches_are(moved):
    _, nodes, _, moves = moved
    by_hand, again = moves
    assert usual_interval_s(nodes, "device/2", moves) == pytest.approx(1.0)
    assert by_hand.raw_gap_s == pytest.approx(1.5)
    assert standstill_s(nodes, by_hand, 1.0) == pytest.approx(0.5)
    assert move_sections.standstills(nodes, moves)[0] == pytest.approx(0.5)
    assert again.repeated == 11
    assert np.isnan(usual_interval_s(replace(nodes, messages=nodes.messages[:2]), "device/2", moves))


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_table_says_when_from_where_to_where_how_and_at_what_price(moved):
    _, nodes, _, moves = moved
    head, first, second = cells(move_sections.moves_table(moves, move_sections.standstills(nodes, moves)))
    told = dict(zip(head, first, strict=True))
    assert told == {
        "device": "device/0", "moved at": "6 s", "round": "1", "from": "edge/0", "to": "edge/1", "policy": "PreCopy",
        "given away at": "6.25 s", "bytes crossed": "300 kB", "raw gap": "1.5 s", "stood still": "500 ms",
        "batches repeated": "0",
    }  # fmt: skip
    assert dict(zip(head, second, strict=True))["policy"] == "Restart"
    assert dict(zip(head, second, strict=True))["batches repeated"] == "11"


def test_a_session_that_a_device_carries_is_told_as_such(tmp_path):
    folder = make_moving_run(tmp_path / "run", sealed=True)
    moves = moves_of(read_nodes(folder, SPAN_S))
    assert "300 kB<small>by the device</small>" in move_sections.moves_table(moves, [0.1, 0.1])


def test_the_pictures_say_in_words_what_they_show_and_an_edge_has_one_colour(moved):
    _, nodes, mobility, moves = moved
    with style.drawing():
        drawn = plots_moves.move_pictures(nodes, mobility, moves, move_sections.standstills(nodes, moves))
    titles = {one.title: one for one in drawn if one is not None}
    assert len(titles) == 5
    places = titles["Devices over edges"]
    assert "2 sessions changed hands" in places.note
    assert "no edge" in places.markup
    assert "500 ms" in places.markup
    for words in ("PreCopy", "Restart"):
        assert words in places.markup
    for name in ("Sessions by edge", "What edges compute", "Where devices went"):
        for colour in plots_moves.colours_of(nodes).values():
            assert colour in titles[name].markup
    assert "Most sessions at once has edge/0, 3" in titles["Sessions by edge"].alt
    state, total = 3e5, float(nodes.messages["bytes"].sum())
    assert f"{100 * state / total:.1f} %" in titles["Bytes by kind of message"].note


def test_a_page_has_the_section_once_and_a_run_without_edges_has_none(moved, tmp_path):
    folder, nodes, *_ = moved
    text = write_report(folder).read_text(encoding="utf-8")
    assert text.count('<section id="moves"') == 1
    assert "Devices over edges" in text
    assert len(re.findall(r'id="moves-places-[^"]*"', text)) > 3
    moved_bytes = traffic(nodes)
    assert moved_bytes.control_out.sum() == 2 * 300.0
    assert "tensors sent" in text
    assert "models sent" not in text
    plain = replace(nodes, roles=("coordinator", *["peer"] * 5))
    assert move_sections.move_sections(folder, plain, draw=False, named=lambda drawn, more: drawn) == []


def test_where_nothing_moved_and_nothing_was_scheduled_the_section_says_so(tmp_path):
    folder = make_moving_run(tmp_path / "run", mobility=False, commits=())
    nodes = read_nodes(folder, SPAN_S)
    with style.drawing():
        drawn = plots_moves.move_pictures(nodes, {}, (), ())
    titles = {one.title: one for one in drawn if one is not None}
    assert "Where devices went" not in titles
    assert "No session changed hands." in titles["Devices over edges"].note
    text = write_report(folder).read_text(encoding="utf-8")
    assert '<section id="moves"' in text
    assert "Sessions that changed hands" not in text


def test_two_runs_on_one_page_share_no_identifier(moved):
    folder, *_ = moved
    run = read_run(folder)
    with style.drawing():
        pages = ["".join(one.body for one in node_sections(run, draw=True, more=more)) for more in ("-0", "-1")]
    names = [{*re.findall(r'\bid="([^"]+)"', page)} for page in pages]
    assert len(names[0]) > 20
    assert not names[0] & names[1]
