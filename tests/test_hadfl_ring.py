"""HADFL's ring as arithmetic: exact for any number of members and any chunking, whatever happens to frames."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.aggregate.gather import Gather
from fieldfare.algorithms.hadfl.messages import Select
from fieldfare.algorithms.hadfl.ring import (
    cuts,
    fingerprint,
    fits,
    hops,
    mean_of,
    quantise,
    ring_seconds,
    seal,
    sends,
    serial_mean,
    sound,
    step_for,
)
from fieldfare.algorithms.hadfl.session import again, begin, receive
from fieldfare.core.folds import Mean

RUN = 7


def ring_of(members, step, epoch=0, cycle=3) -> Select:
    return Select(cycle, epoch, tuple(members), (), (), step, 1.0, False)


def models(n: int, size: int, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"p{i}": (scale * rng.standard_normal(size)).astype(np.float32) for i in range(n)}


def unit(vectors) -> float:
    return step_for(max(float(np.abs(v).max(initial=0)) for v in vectors.values()), len(vectors))


def go_round(vectors, order=None, epoch=0, choose=lambda n: 0, spoil=lambda frame: [frame]):
    """Every member's session after all frames, delivered in the order that `choose` says, each through `spoil`."""
    order = list(order or vectors)
    ring = ring_of(order, unit(vectors), epoch)
    sessions, wires, sent = {}, deque(), []
    for name in order:
        sessions[name], out = begin(RUN, ring, name, vectors[name])
        wires += [(sessions[name].after, f) for frame in out for f in spoil(frame)]
        sent += out
    while wires:
        at = choose(len(wires))
        to, frame = wires[at]
        del wires[at]
        sessions[to], out = receive(sessions[to], frame)
        sent += out
        wires += [(sessions[to].after, f) for one in out for f in spoil(one)]
    return sessions, sent


@given(st.integers(2, 8), st.integers(0, 40), st.integers(0, 5), st.floats(1e-6, 1e6))
def test_every_member_gets_the_serial_mean_bit_for_bit(n, size, seed, scale):
    vectors = models(n, size, seed, scale)
    sessions, sent = go_round(vectors)
    expected = serial_mean(list(vectors.values()), unit(vectors))
    for session in sessions.values():
        assert session.result.tobytes() == expected.tobytes()
        assert session.digest == fingerprint(expected)
    true = np.mean(np.array(list(vectors.values()), np.float64), axis=0)
    peak = max(float(np.abs(v).max(initial=0)) for v in vectors.values())
    assert np.abs(expected - true).max(initial=0) <= 1e-6 * max(peak, 1e-9)
    assert len(sent) == n * hops(n)


@given(st.integers(2, 6), st.integers(1, 30))
def test_the_ring_is_the_exact_fold_of_all_members(n, size):
    vectors = models(n, size, seed=n)
    step = unit(vectors)
    gather = Gather({"x": Mean(weighted=False, step=step)}, n)
    gather.add(np.arange(n), {"x": np.array(list(vectors.values()))}, np.ones(n))
    folded = gather.finish()["x"].value
    assert go_round(vectors)[0]["p0"].result.tobytes() == np.asarray(folded, np.float32).tobytes()


@given(st.integers(2, 6), st.permutations(range(6)), st.data())
def test_neither_the_order_of_members_nor_of_frames_nor_repeats_change_a_bit(n, order, data):
    vectors = models(n, 11)
    plain = go_round(vectors)[0]["p0"].result.tobytes()
    members = [f"p{i}" for i in order if i < n]
    draw = data.draw(st.randoms(use_true_random=False))
    sessions, _ = go_round(vectors, members, choose=draw.randrange, spoil=lambda frame: [frame] * draw.randint(1, 2))
    assert {s.result.tobytes() for s in sessions.values()} == {plain}


def test_a_dropped_frame_stops_the_ring_and_sent_again_it_goes_on():
    vectors = models(4, 9)
    lost = []

    def spoil(frame):
        if frame.hop == 3 and frame.chunk == 2 and not lost:
            lost.append(frame)
            return []
        return [frame]

    sessions, _ = go_round(vectors, spoil=spoil)
    waiting = [name for name, s in sessions.items() if s.result is None]
    assert waiting
    giver = next(s for s in sessions.values() if s.sent[lost[0].hop] is lost[0])
    for name in waiting:
        assert sessions[name].hop <= hops(4)
    wires = deque((giver.after, f) for f in again(giver, 3))
    while wires:
        to, frame = wires.popleft()
        sessions[to], out = receive(sessions[to], frame)
        wires += [(sessions[to].after, f) for f in out]
    assert len({s.result.tobytes() for s in sessions.values()}) == 1
    assert again(giver, 99) == again(giver, -1) == []


@pytest.mark.parametrize(
    "change",
    [{"run": 8}, {"cycle": 2}, {"epoch": 1}, {"hop": 9}, {"phase": "gather"}, {"chunk": 0}, {"contributors": 3},
     {"payload": np.zeros(9, np.int32)}, {"payload": np.zeros(3, np.float32)}],
)  # fmt: skip
def test_a_frame_that_is_not_the_one_awaited_changes_nothing(change):
    vectors = models(3, 9)
    ring = ring_of(vectors, unit(vectors))
    mine, _ = begin(RUN, ring, "p1", vectors["p1"])
    _, (frame,) = begin(RUN, ring, "p0", vectors["p0"])
    change = {"contributors": 0b110} if "contributors" in change else {"chunk": 2} if "chunk" in change else change
    odd = seal(replace(frame, **change))
    assert receive(mine, odd)[0] is mine
    assert receive(mine, frame)[0].hop == 1


@given(st.integers(0, 8), st.integers(0, 31))
def test_a_flipped_bit_is_noticed(at, bit):
    vectors = models(1, 9) | {"p1": np.ones(9, np.float32)}
    _, (frame,) = begin(RUN, ring_of(vectors, unit(vectors)), "p0", vectors["p0"])
    payload = frame.payload.copy()
    payload[at % len(payload)] ^= np.int32(np.uint32(1 << bit).view(np.int32))
    assert sound(frame)
    assert not sound(replace(frame, payload=payload))


def test_after_a_death_at_any_hop_the_survivors_restart_from_their_own_models():
    vectors = models(5, 13)
    for hop in range(hops(5)):
        sessions, _ = go_round(vectors, spoil=lambda f, hop=hop: [] if f.hop >= hop else [f])
        assert not any(s.result is not None for s in sessions.values())
        left = {name: v for name, v in vectors.items() if name != "p2"}
        again_, _ = go_round(left, epoch=1)
        late = next(f for f in sessions["p2"].sent)
        assert receive(again_["p3"], late)[0] is again_["p3"]
        expected = serial_mean(list(left.values()), unit(left))
        assert {s.result.tobytes() for s in again_.values()} == {expected.tobytes()}


@given(st.integers(0, 1000), st.integers(1, 12))
def test_chunks_cover_the_model_and_differ_by_at_most_one(size, n):
    bounds = cuts(size, n)
    widths = np.diff(bounds)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, size, n + 1)
    assert widths.min() >= 0
    assert widths.max() - widths.min() <= 1


@given(st.integers(2, 12))
def test_what_one_sends_at_a_hop_it_has_finished_with_before(n):
    for place in range(n):
        mine = [sends(place, hop, n) for hop in range(hops(n))]
        assert sorted(mine[: n - 1]) == sorted(c for c in range(n) if c != (place + 1) % n)
        assert sorted(mine[n - 1 :]) == sorted(c for c in range(n) if c != (place + 2) % n)
        for hop in range(1, hops(n)):
            assert mine[hop] == sends((place - 1) % n, hop - 1, n)


@given(st.floats(1e-6, 1e12), st.integers(1, 200))
def test_sums_never_overflow_even_if_weights_grow_fourfold(peak, members):
    step = step_for(peak, members)
    vector = np.array([peak, -peak, 3.9 * peak], np.float32)
    assert fits(vector, step, members)
    assert abs(int(quantise(vector, step)[2])) * members < 2**31
    assert not fits(np.array([16 * peak], np.float32), step, members)
    assert not fits(np.array([np.nan], np.float32), step, members)
    assert not fits(np.array([np.inf], np.float32), step, members)


@given(st.integers(2, 8))
def test_a_member_sends_twice_the_model_less_two_chunks(n):
    size = 840
    vectors = models(n, size)
    _, sent = go_round(vectors)
    for name, share in ((name, 2 * (n - 1) / n) for name in vectors):
        place = list(vectors).index(name)
        mine = [f for f in sent if f.chunk == sends(place, f.hop, n)]
        assert sum(f.payload.nbytes for f in mine) == share * 4 * size


def test_a_ring_of_two_takes_two_latencies_and_one_model():
    assert ring_seconds(2, 100.0, 0.5, 10.0) == 2 * (0.5 + 5.0)
    assert mean_of(np.array([3], np.int32), 0.5, 3).tolist() == [0.5]
