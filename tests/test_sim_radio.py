"""Joules of messages between nodes: by hand for one, and added up in a run's rows, summary, files and report."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.fleet.fleet import Fleet
from fieldfare.report.node_sections import node_sections
from fieldfare.report.read import read_run
from fieldfare.report.read_nodes import energy_j, read_nodes
from fieldfare.sim.carry import Carrier
from fieldfare.sim.links import Links
from fieldfare.sim.radio import radio_j
from fieldfare.sim.sessions import Sessions

FLEET = Fleet(
    flops_per_s=np.array([9e3, 3e3], np.float32), uplink_bytes_per_s=np.array([2e3, 1e3], np.float32),
    downlink_bytes_per_s=np.array([8e3, 4e3], np.float32), latency_s=np.array([0.5, 0.25], np.float32), overhead_s=0.0,
    compute_w=np.array([3.0, 5.0], np.float32), radio_w=np.array([1.0, 2.0], np.float32),
)  # fmt: skip
PLACED = {"a": 0, "b": 1}


def joules(links, size, src="a", dst="b", *, at=0.0, lost=False):
    """What the radios draw for one message that is alone on its way, of which the receiver gets all unless `lost`."""
    carrier = Carrier(links, PLACED, FLEET, Sessions(None), ["a", "b", "boss"])
    first, last = carrier.send(at, src, dst, size, {})
    arrives = nan if lost else carrier.land(first, last, src, dst, size, {})
    return radio_j(carrier.route(src, dst)[0], FLEET, size, first, last, arrives)


def test_both_radios_draw_their_power_while_a_message_is_on_its_way():
    assert joules(Links(0.5, 1000.0), 2000) == pytest.approx((2.5, 2 * 2.5))
    assert joules(Links(), 2000) == pytest.approx((1.75, 2 * 1.75))
    assert joules(Links(), 2000, "b", "a") == pytest.approx((2 * 2.75, 2.75))


def test_a_node_without_a_device_draws_nothing_and_a_lost_message_costs_its_sender():
    assert joules(Links(), 2000, "a", "boss") == pytest.approx((1.5, 0.0))
    assert joules(Links(), 2000, "boss", "b") == pytest.approx((0.0, 2 * 0.75))
    assert joules(Links(), 2000, lost=True) == pytest.approx((1.75, 0.0))
    route = Carrier(Links(), PLACED, FLEET, Sessions(None), ["a", "b"]).route("a", "b")[0]
    assert radio_j(route, FLEET, 9, nan, nan, nan) == (0.0, 0.0)
    assert radio_j(route, FLEET, 8000, 0.5, 4.5, inf)[1] == 0.0


def test_waiting_for_a_link_costs_nothing():
    carrier, up = Carrier(Links(0.0, 1000.0), PLACED, FLEET, Sessions(None), ["a", "b"]), {}
    route = carrier.route("a", "b")[0]
    for _ in range(3):
        first, last = carrier.send(0.0, "a", "b", 1000, up)
        assert radio_j(route, FLEET, 1000, first, last, last) == pytest.approx((1.0, 2.0))
    assert last == 3.0


METHODS = {"hadfl": ff.HADFL(3), "fedavg": ff.DecentralisedFedAvg(3), "pairs": ff.PairGossip(4)}


def job(algorithm, **links):
    fleet = replace(FLEET, latency_s=0.0)
    return ff.Job(
        model=ff.mlp(6, 5, 3), data=ff.data.synthetic(clients=2, classes=3, features=6, max_examples=60, seed=1),
        algorithm=algorithm, training=ff.Training(batch_size=5), seed=3,
        simulated=ff.Simulated(fleet=fleet, workers=1, links=Links(**links)),
    )  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_energy_of_messages_is_in_rows_summary_and_files_beside_that_of_computing(tmp_path, name):
    result = job(METHODS[name], latency_s=0.0, bytes_per_s=500.0).run(tmp_path, progress=False, report=False)
    nodes = read_nodes(result.path)
    computing, messages = energy_j(nodes)
    placed, rows = nodes.placed, nodes.messages
    assert result.summary["energy_j"] == pytest.approx(float(computing.sum() + messages.sum()), rel=1e-6)
    assert computing[placed] == pytest.approx(
        [w * (nodes.trainings(at)["ended_s"] - nodes.trainings(at)["begun_s"]).sum()
         for w, at in zip((3.0, 5.0), placed, strict=True)]
    )  # fmt: skip
    whole = np.zeros(len(nodes.names))
    for watts, at in zip((1.0, 2.0), placed, strict=True):
        mine = (rows["src"] == at) | ((rows["dst"] == at) & np.isfinite(rows["arrives_s"]))
        whole[at] = watts * rows["bytes"][mine].sum() / 500.0
    assert messages == pytest.approx(whole)
    assert messages.sum() > 0
    after = json.loads((result.path / "totals.json").read_text())["after"]["energy_j"]
    assert sum(row["energy_j"] for row in result.rounds) + after == pytest.approx(result.summary["energy_j"])


def test_links_without_end_cost_no_energy(tmp_path):
    result = job(ff.HADFL(3), latency_s=0.0, bytes_per_s=inf).run(tmp_path, progress=False, report=False)
    computing, messages = energy_j(read_nodes(result.path))
    assert messages.tolist() == [0.0, 0.0, 0.0]
    assert result.summary["energy_j"] == pytest.approx(float(computing.sum()))


def test_the_report_tells_the_energy_of_every_device(tmp_path):
    path = job(ff.HADFL(3), latency_s=0.0, bytes_per_s=500.0).run(tmp_path, progress=False, report=False).path
    (section, *_) = node_sections(read_run(path), draw=False)
    assert "energy computing" in section.body
    assert "energy of messages" in section.body
