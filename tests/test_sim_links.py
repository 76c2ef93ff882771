"""Links between nodes: what is sent arrives once or is lost, in order, after the time that queues and outages give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isnan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.core import rng
from fieldfare.core.effects import Send, Stop, Wake
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Received, Started, Woke
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.network import Network
from fieldfare.sim.carry import Carrier
from fieldfare.sim.links import Links
from fieldfare.sim.observe import Sent
from fieldfare.sim.sessions import Sessions
from fieldfare.sim.simulator import Progress, Simulator
from fieldfare.store.codec import Codec, registry
from fieldfare.testing import loop, quadratics, simulate

PROBLEM = quadratics(n=4)
FLEET = Fleet(
    flops_per_s=1e3,
    uplink_bytes_per_s=np.array([10.0, 100.0, 1000.0, 50.0], np.float32),
    downlink_bytes_per_s=np.array([100.0, 10.0, 1000.0, 200.0], np.float32),
    slow_links=True,
    latency_s=np.array([0.5, 0.25, 0.0, 1.0], np.float32),
    overhead_s=0.0,
)
NAMES = ("a", "b", "c", "d")
PLACES = dict(zip(NAMES, range(4), strict=True))
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


@dataclass(frozen=True)
class Says:
    """Sends `what[i] = (at, to, bytes)` and stops the run at `until`."""

    what: tuple[tuple[float, str, int], ...] = ()
    until: float | None = None

    def init(self, model):
        return ()

    def step(self, state, event, ctx):
        match event:
            case Started():
                out = [Wake(at, number) for number, (at, _, _) in enumerate(self.what)]
                return state, (*out, *(() if self.until is None else (Wake(self.until, "stop"),)))
            case Woke("stop"):
                return state, (Stop("enough"),)
            case Woke(int(number)):
                _, to, size = self.what[number]
                return state, (Send(to, (number, np.zeros(size - 8, np.uint8))),)
            case Received(src, (number, _)):
                return (*state, (src, number, ctx.now)), ()
            case _:
                return state, ()


def world(what, links=Links(), fleet=FLEET, places=PLACES, until=None, names=NAMES):
    nodes = {
        name: ("r", Says(tuple((at, to, size) for at, src, to, size in what if src == name), until if not i else None))
        for i, name in enumerate(names)
    }
    return PROBLEM.world(nodes, placement=places, links=links, fleet=fleet)


def arrivals(what, driver=simulate, **more) -> list[float]:
    """When each of `what`, (at, from, to, bytes) in order of time per sender, arrived; nan: never."""
    end = driver(world(what, **more), keep=True)
    got = {}
    for node in NAMES:
        for step in end.transcript.of(node):
            if step.kind == "Received":
                got.setdefault(node, []).append(step.now)
    events = {(node, e.src, e.body[0]): now for node in NAMES for e, now in _received(end, node)}
    number, out = dict.fromkeys(NAMES, 0), []
    for _, src, to, _ in what:
        out.append(events.get((to, src, number[src]), float("nan")))
        number[src] += 1
    return out


def _received(end, node):
    when = [step.now for step in end.transcript.of(node) if step.kind == "Received"]
    return zip(end.transcript.events(Received, node), when, strict=True)


def sent(what, **more) -> list[Sent]:
    seen: list[Sent] = []
    simulate(world(what, **more), observer=lambda s: seen.append(s) if isinstance(s, Sent) else None)
    return seen


# Alone on the way


@both
@pytest.mark.parametrize(
    ("src", "dst", "seconds"),
    [
        ("a", "b", 20 / 10 + 0.75),
        ("b", "a", 20 / 100 + 0.75),
        ("b", "d", 20 / 100 + 1.25),
        ("c", "c", 0.0),
        ("d", "c", 20 / 50 + 1.0),
    ],
)
def test_a_message_alone_takes_its_size_over_the_slower_link_and_both_latencies(driver, src, dst, seconds):
    assert arrivals([(3.0, src, dst, 20)], driver) == [pytest.approx(3.0 + seconds)]


@both
def test_a_node_without_a_device_adds_nothing(driver):
    places = {"a": 0}
    said = [(0.0, "b", "c", 1000), (0.0, "b", "a", 200), (0.0, "a", "c", 20)]
    assert arrivals(said, driver, places=places) == [0.0, pytest.approx(2.5), pytest.approx(2.5)]


@both
def test_links_given_stand_for_those_of_the_devices_and_pairs_for_both(driver):
    links = Links(1.0, 20.0, pairs={("a", "b"): (2.0, 40.0), ("b", "a"): (0.0, inf)})
    said = [(0.0, "a", "b", 40), (0.0, "b", "a", 40), (10.0, "a", "c", 40), (20.0, "c", "d", 40)]
    assert arrivals(said, driver, links=links) == pytest.approx([3.0, 0.0, 13.0, 23.0])
    one_way = Links(1.0, 20.0, pairs={("a", "b"): (2.0, 40.0)})
    assert arrivals(said[:2], driver, links=one_way) == pytest.approx([3.0, 3.0])
    assert arrivals(said[2:], driver, links=Links(1, 20)) == pytest.approx([13.0, 23.0])


def test_links_that_change_in_time_take_the_exact_integral():
    steps = ([0.0, 4.0, 8.0], [1000.0, 1000.0, 1000.0], [1000.0, 0.0, 4000.0])
    network = Network.of([steps] * 4, period_s=20.0)
    fleet = replace(FLEET, network=network, latency_s=0.0)
    what = [(3.0, "a", "b", 5000)]
    expected = 3.0 + network.upload(3.0, 5000.0, np.array([0]))[0]
    assert arrivals(what, fleet=fleet) == [pytest.approx(expected)]
    out = Links(outages={"a": ((8.5, 9.5),)})
    assert arrivals(what, fleet=fleet, links=out) == [pytest.approx(expected + 1.0)]


# Queues


@both
def test_an_uplink_sends_one_message_after_the_other(driver):
    said = [(0.0, "a", "c", 20), (0.0, "a", "d", 30), (1.0, "a", "c", 10), (50.0, "a", "c", 10)]
    found = arrivals(said, driver)
    assert found == pytest.approx([2.0 + 0.5, 5.0 + 1.5, 6.0 + 0.5, 51.0 + 0.5])


@both
def test_a_downlink_takes_in_one_message_after_the_other(driver):
    said = [(0.0, "c", "b", 30), (0.0, "d", "b", 30)]
    assert arrivals(said, driver) == pytest.approx([3.25, 6.25])


@both
def test_slow_uplinks_share_a_fast_downlink(driver):
    said = [(0.0, "a", "c", 20), (0.0, "d", "c", 100)]
    assert arrivals(said, driver) == pytest.approx([2.5, 3.0])


@both
def test_who_waits_for_an_uplink_does_not_keep_others_from_the_downlink(driver):
    said = [(0.0, "a", "c", 1000), (0.0, "a", "b", 100), (0.5, "c", "b", 10)]
    assert arrivals(said, driver) == pytest.approx([100.5, 110.75, 1.75])


@both
def test_a_broadcast_takes_the_time_of_all_its_copies(driver):
    said = [(0.0, "a", to, 50) for to in "bcd"]
    assert arrivals(said, driver) == pytest.approx([5.75, 10.5, 16.5])


messages = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda t: t / 4), st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(8, 400)
    ),
    min_size=1,
    max_size=25,
).map(lambda found: sorted(found, key=lambda one: one[0]))
outages = st.dictionaries(
    st.sampled_from([*NAMES, ("a", "b"), ("c", "d"), ("b", "a")]),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=3).map(
        lambda found: tuple((float(100 * i + a), float(100 * i + a + b)) for i, (a, b) in enumerate(found))
    ),
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(messages, outages, st.sampled_from([Links(), Links(0.5, 20.0)]), st.floats(1.0, 60.0))
def test_what_is_sent_has_arrived_or_is_lost_or_under_way(said, out, links, until):
    seen: list[Sent] = []
    away = Availability.of([[(0.0, 7.0), (20.0, inf)], [(0.0, inf)], [(0.0, inf)], [(5.0, 30.0)]])
    it = world(said, replace(links, outages=out), replace(FLEET, availability=away), until=until)
    end = simulate(it, keep=True, observer=lambda s: seen.append(s) if isinstance(s, Sent) else None)
    effects = [e for _, _, told in end.transcript.kept for e in told if isinstance(e, Send)]
    assert len(seen) == len(effects)
    now = end.driver.progress.now
    arrived = [one for one in seen if one.arrives <= now]
    lost = [one for one in seen if isnan(one.arrives)]
    under_way = [one for one in seen if one.arrives > now]
    assert len(arrived) + len(lost) + len(under_way) == len(seen)
    got = sum(step.kind == "Received" for node in NAMES for step in end.transcript.of(node))
    assert len(arrived) - got in range(sum(one.arrives == now for one in arrived) + 1)
    assert end.driver.progress.bytes_between == sum(one.size for one in seen)


@settings(max_examples=40, deadline=None)
@given(messages, outages)
def test_links_lose_nothing_keep_order_and_are_never_faster_than_they_are(said, out):
    seen = sent(said, links=Links(outages=out))
    assert len(seen) == len(said)
    assert all(one.arrives < inf for one in seen)
    pairs: dict[tuple[str, str], list[Sent]] = {}
    for one in sorted(seen, key=lambda one: (one.now, one.body[0])):
        pairs.setdefault((one.src, one.dst), []).append(one)
    for found in pairs.values():
        assert [one.arrives for one in found] == sorted(one.arrives for one in found)
    for node, device in PLACES.items():
        mine = [one for one in seen if one.src == node != one.dst]
        if mine:
            begin, end = min(one.now for one in mine), max(one.arrives for one in mine)
            assert end - begin >= sum(one.size for one in mine) / FLEET.uplink_bytes_per_s[device] - 1e-6
        mine = [one for one in seen if one.dst == node != one.src]
        if mine:
            begin, end = min(one.now for one in mine), max(one.arrives for one in mine)
            assert end - begin >= sum(one.size for one in mine) / FLEET.downlink_bytes_per_s[device] - 1e-6


@settings(max_examples=25, deadline=None)
@given(messages, outages, st.sampled_from([Links(), Links(0.0, 30.0), Links(0.25, inf)]))
def test_simulator_and_loopback_time_messages_alike_to_the_last_bit(said, out, links):
    links = replace(links, outages=out)
    one, other = (driver(world(said, links)) for driver in (simulate, loop))
    assert one.transcript.lines() == other.transcript.lines()


# Outages


@both
@pytest.mark.parametrize("whom", ["a", "c", ("a", "c"), ("c", "a")])
@pytest.mark.parametrize(
    ("span", "later"),
    [((11.0, 14.0), 3.0), ((5.0, 10.5), 0.5), ((0.0, 9.0), 0.0), ((12.5, 20.0), 0.0), ((12.4, 13.4), 0.9)],
    ids=["amid", "at first", "before", "after", "at last"],
)
def test_an_outage_keeps_what_is_under_way_waiting_for_as_long_as_it_lasts(driver, whom, span, later):
    links = Links(outages={whom: (span,)})
    assert arrivals([(10.0, "a", "c", 20)], driver, links=links) == [pytest.approx(12.5 + later)]


def test_an_outage_of_others_changes_nothing_and_two_that_overlap_count_once():
    what = [(10.0, "a", "c", 20)]
    assert arrivals(what, links=Links(outages={"b": ((0.0, 99.0),), ("a", "b"): ((0.0, 99.0),)})) == [12.5]
    links = Links(outages={"a": ((10.5, 11.5),), "c": ((11.0, 12.5),), ("a", "c"): ((13.0, 13.25),)})
    assert arrivals(what, links=links) == [pytest.approx(12.5 + 2.0 + 0.25)]


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 20), st.integers(8, 300), outages)
def test_a_transfer_with_outages_moves_as_many_bytes_as_the_time_without_them_allows(at, size, out):
    carrier = Carrier(Links(0.0, 25.0, outages=out), PLACES, FLEET, Sessions(None), NAMES)
    first, last = carrier.send(at, "a", "b", size, {})
    spans = sorted({span for whom in ("a", "b", ("a", "b"), ("b", "a")) for span in out.get(whom, ())})
    points = sorted({first, last, *(t for span in spans for t in span if first < t < last)})
    free = sum(b - a for a, b in pairwise(points) if not any(s <= (a + b) / 2 < e for s, e in spans))
    assert free * 25.0 == pytest.approx(size, abs=1e-6)


# Going on


class Books:
    """Everything told of messages, as plain tuples."""

    def __init__(self):
        self.told: list[Any] = []

    def __call__(self, seen):
        if isinstance(seen, Sent):
            self.told.append((seen.now, repr(seen.arrives), seen.src, seen.dst, seen.size))


@settings(max_examples=15, deadline=None)
@given(messages, st.integers(0, 60), st.booleans())
def test_a_run_that_goes_on_from_what_was_stored_is_the_run_that_never_stopped(said, steps, leaving):
    away = Availability.of([[(0.0, 6.0), (9.0, 99.0)], [(2.0, 99.0)], [(0.0, inf)], [(0.0, inf)]])
    fleet = replace(FLEET, availability=away) if leaving else FLEET
    it = world(said, Links(outages={"b": ((3.0, 5.0),)}), fleet)
    whole, part, rest = Books(), Books(), Books()
    first = Simulator(it, None, whole)
    first.run()
    half = Simulator(it, None, part)
    half.start()
    for _ in range(min(steps, first.progress.steps)):
        if half.progress.heap:
            half.advance()
    codec = Codec(registry(*(algorithm for _, algorithm in it.nodes.values())))
    kept = {name: getattr(half.progress, name) for name in Progress.__dataclass_fields__ if name != "selected"}
    again = Simulator(it, None, rest)
    for name, value in codec.decode(*codec.encode({k: v for k, v in kept.items() if k != "at_work"})).items():
        setattr(again.progress, name, value)
    again.run()
    assert part.told + rest.told == whole.told
    assert (again.progress.now, again.progress.states) == (first.progress.now, first.progress.states)


# Refusals


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Links(-1.0), "latency of finite seconds"),
        (lambda: Links(0.0, 0.0), "bytes per second above 0"),
        (lambda: Links(pairs={("a", "b"): (0.0, -1.0)}), "bytes per second above 0"),
        (lambda: Links(pairs={"a": (0.0, 1.0)}), "latency_s, bytes_per_s"),
        (lambda: Links(outages={"a": ((2.0, 1.0),)}), "in order of time and apart"),
        (lambda: Links(outages={"a": ((0.0, 2.0), (1.0, 3.0))}), "in order of time and apart"),
        (lambda: Links(outages={"a": ((0.0, inf),)}), "in order of time and apart"),
        (lambda: simulate(world([], Links(pairs={("a", "z"): (0.0, 1.0)}))), "no node is called 'z'"),
        (lambda: simulate(world([], Links(outages={"y": ((0.0, 1.0),)}))), "no node is called 'y'"),
    ],
)
def test_links_that_cannot_be_are_refused_in_one_line(make, said):
    with pytest.raises(UsageError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_random_traffic_is_the_same_every_time():
    words = rng.bits(np.array([1], np.uint64), np.arange(90)) % np.uint64(97)
    said = sorted(
        (float(words[3 * i]) / 9, NAMES[int(words[3 * i + 1]) % 4], NAMES[int(words[3 * i + 2]) % 4], 8 + int(words[i]))
        for i in range(30)
    )
    assert [one.arrives for one in sent(said)] == [one.arrives for one in sent(said)]
