"""A device that moves ends with the bits of one that stays, whatever the policy, the instant and the links."""

from __future__ import annotations

import pytest
from fedfly_toy import bits, world
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.handover import Commit, Final, Pre
from fieldfare.algorithms.fedfly.policies import Cheapest, PreCopy, Restart, StopAndCopy
from fieldfare.core.effects import Run, Send
from fieldfare.core.events import Moved
from fieldfare.fleet.mobility import Mobility
from fieldfare.sim.simulator import Links
from fieldfare.testing import loop, simulate

POLICIES = {
    "restart": Restart(), "stop": StopAndCopy(), "stop packed": StopAndCopy(compress=True), "pre 0": PreCopy(0),
    "pre 1": PreCopy(1), "pre 3": PreCopy(3), "pre whole": PreCopy(2, replay=False),
    "stop relayed": StopAndCopy("relay"),
    "pre relayed": PreCopy(2, route="relay"),
    "stop carried": StopAndCopy("carry"), "pre carried": PreCopy(1, route="carry"), "cheapest": Cheapest(100.0),
}  # fmt: skip


def moves(device, *stops):
    """(seconds, edge) as events of the device and both edges; the device is told a second before its old edge."""
    out, at = [], "edge/0"
    for when, to in stops:
        who = tuple(dict.fromkeys((device, at, to)))
        out.append((when, Moved(device, to), who))
        at = to
    return out


STAYED = bits(simulate(world(devices=2, rounds=2)))
when = st.floats(0.0, 40.0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("at", [0.5, 4.5, 9.0, 14.0])
def test_a_move_changes_no_bit(policy, at):
    if "carried" in policy:
        pytest.importorskip("cryptography")
    end = simulate(world(moves("device/0", (at, "edge/1")), rounds=2, edge=Edge(policy=POLICIES[policy])), keep=True)
    assert bits(end) == STAYED
    commits = [e for *_, out in end.transcript.kept for e in out if isinstance(e, Send) and isinstance(e.body, Commit)]
    assert len(commits) == 1


def test_a_device_that_no_edge_reaches_for_a_while_goes_on_where_it_comes_out():
    names, edges = ["device/0", "device/1"], ["edge/0", "edge/1"]
    walk = Mobility.of([[(0, 0), (4.2, -1), (30, 1), (33.5, -1), (60, 0)], [(0, 1), (3, -1), (5, 1)]], edges=2)
    links = Links(0.01, 1e6, outages=walk.outages(names))
    for lead_s in (0.0, 3.0):
        for policy in ("restart", "stop", "pre 3"):
            one = world(
                walk.happenings(names, edges, lead_s), rounds=2, edge=Edge(policy=POLICIES[policy]), links=links
            )
            end = simulate(one, keep=True)
            assert bits(end) == STAYED
            assert end.driver.progress.now > 60.0
            assert end.driver.progress.states["central"].owners["device/0"].epoch == 2


def kinds(end):
    return [type(e.body).__name__ for *_, out in end.transcript.kept for e in out if isinstance(e, Send)]


def test_stop_and_copy_gives_the_pending_gradient_at_the_new_edge_and_computes_each_batch_once():
    end = simulate(world(moves("device/0", (4.5, "edge/1")), edge=Edge(policy=StopAndCopy())), keep=True)
    told = kinds(end)
    assert told.count("Final") == told.count("Release") == 1
    assert "Freeze" not in told
    works = [e.work for *_, out in end.transcript.kept for e in out if isinstance(e, Run)]
    assert all(works.count(work) == 8 for work in set(works))


def test_with_pre_copy_the_old_edge_gives_its_last_gradient_and_the_device_never_waits_for_the_state():
    end = simulate(world(moves("device/0", (4.5, "edge/1")), edge=Edge(policy=PreCopy(1, replay=False))), keep=True)
    told = kinds(end)
    assert told.count("Pre") == told.count("Freeze") == told.count("Final") == 1
    works = [e.work for *_, out in end.transcript.kept for e in out if isinstance(e, Run)]
    assert all(works.count(work) == 8 for work in set(works))


def test_a_restart_sends_no_state_and_repeats_the_batches():
    end = simulate(world(moves("device/0", (4.5, "edge/1")), edge=Edge(policy=Restart())), keep=True)
    assert not {"Final", "Pre", "Carry"} & {*kinds(end)}
    works = [e.work for *_, out in end.transcript.kept for e in out if isinstance(e, Run)]
    assert works.count("split/forward") > 8


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from([p for p in POLICIES if "carried" not in p]),
    first=when, second=when, third=when, latency=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    skew=st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(0.0, 3.0)), edges=st.sampled_from([2, 3]),
)  # fmt: skip
@pytest.mark.slow
def test_any_three_moves_of_each_device_change_no_bit(policy, first, second, third, latency, skew, edges):
    stops = [(t, f"edge/{(i + 1) % edges}") for i, t in enumerate(sorted((first, second, third)))]
    told = []
    for device in ("device/0", "device/1"):
        for at, event, who in moves(device, *stops):
            told += [(at + late, event, (node,)) for node, late in zip(who, skew, strict=False)]
    one = world(told, rounds=2, edges=edges, edge=Edge(policy=POLICIES[policy]), links=Links(latency, 1e5))
    assert bits(simulate(one)) == STAYED
    assert bits(loop(one)) == STAYED


def test_the_batches_since_the_last_copy_cross_where_they_are_shorter_and_are_trained_again():
    one = world(moves("device/0", (4.5, "edge/1")), edge=Edge(policy=PreCopy(1), page_bytes=100))
    end = simulate(one, keep=True)
    bodies = [e.body for *_, out in end.transcript.kept for e in out if isinstance(e, Send)]
    (final,) = [body for body in bodies if isinstance(body, Final)]
    pages = [body for body in bodies if isinstance(body, Pre)]
    works = [e.work for *_, out in end.transcript.kept for e in out if isinstance(e, Run)]
    assert works.count("split/step") == 8 + final.batches
    assert len(pages) == pages[0].pages > 3
    assert all(len(page.blob) <= 100 for page in pages)
    assert bits(end) == bits(simulate(world(rounds=1)))
