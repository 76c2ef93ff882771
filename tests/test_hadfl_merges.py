"""What becomes of two models that meet: shares, versions, who tells the others, the middle of a pair."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fieldfare.algorithms.hadfl import gossip
from fieldfare.algorithms.hadfl.agreed import herald
from fieldfare.algorithms.hadfl.draw import Table, logits
from fieldfare.algorithms.hadfl.gossip import Gossip, Offer, Share
from fieldfare.algorithms.hadfl.holding import State
from fieldfare.algorithms.hadfl.messages import Broadcast, Decided, Select
from fieldfare.algorithms.hadfl.ring import step_for
from fieldfare.algorithms.hadfl.rules import Models
from fieldfare.algorithms.hadfl.session import begin, receive
from fieldfare.core.algorithm import Context
from fieldfare.core.events import Received
from fieldfare.testing import quadratics


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_outside_the_ring_the_mean_and_its_version_are_blended_in_by_the_share(share):
    mine, mean = np.array([0.0, 8.0, -4.0], np.float32), np.array([4.0, 0.0, 4.0], np.float32)
    model = quadratics(n=2, dim=3).model
    state = State(model.replace(mine), version=10.0, applied=1, incoming=Broadcast(2, 30.0, mean))
    after = Models(share).merged(state)
    assert after.model.vector.tolist() == (share * mean + (1.0 - share) * mine).tolist()
    assert after.version == share * 30.0 + (1.0 - share) * 10.0
    assert (after.applied, after.incoming) == (2, None)


def test_who_was_in_the_ring_takes_the_mean_of_the_members_versions():
    vectors = {"a": np.full(3, 2.0, np.float32), "b": np.full(3, 4.0, np.float32)}
    ring = Select(2, 0, ("a", "b"), (), (), step_for(8.0, 2), 1.0, False)
    (one, (there,)), (_, (here,)) = begin(7, ring, "a", vectors["a"]), begin(7, ring, "b", vectors["b"])
    other, (back,) = receive(begin(7, ring, "b", vectors["b"])[0], there)
    one, _ = receive(one, here)
    one, _ = receive(one, back)
    state = State(quadratics(n=2, dim=3).model, version=10.0, applied=1)
    decided = Decided(2, 0, one.digest, (10.0, 40.0), 1)
    after, out = Models(0.5).committed(state, one, decided, "a", False)
    assert after.model.vector.tolist() == [3.0] * 3
    assert (after.version, after.applied) == (25.0, 2)
    assert list(out) == []
    assert other.hop == 1


def test_by_examples_a_model_enters_its_ring_by_its_share_of_them():
    model = quadratics(n=2, dim=3).model
    state = State(model.replace(np.full(3, 2.0, np.float32)))
    ring = Select(2, 0, ("a", "b"), ("a", "b", "c"), (1.0,) * 3, 1.0, 1.0, False, examples=(1.0, 3.0, 9.0))
    assert [Models(0.5).offered(state, ring, name).tolist() for name in "ab"] == [[1.0] * 3, [3.0] * 3]


def test_by_age_a_weight_is_the_bell_times_the_age():
    versions, ages = (66.0, 50.0, 22.0), (1.0, 3.0, 7.0)
    table = Table(5, 2, ("a", "b", "c"), versions, ages)
    assert np.exp(table.weights) == pytest.approx(np.exp(logits(np.array(versions))) * np.array(ages))


def test_who_tells_the_others_is_any_member_by_the_seed():
    names = ("a", "b", "c")
    told = [herald(Select(cycle, 0, names, (), (), 1.0, 1.0, False), 5) for cycle in range(1, 601)]
    assert min(Counter(told).values()) > 150
    assert told == [herald(Select(cycle, 1, names, (), (), 1.0, 1.0, False), 5) for cycle in range(1, 601)]
    assert told != [herald(Select(cycle, 0, names, (), (), 1.0, 1.0, False), 6) for cycle in range(1, 601)]


def test_a_pair_meets_in_the_middle_and_a_push_moves_its_receiver_alone():
    model = quadratics(n=2, dim=3).model
    here, there = np.array([0.0, 8.0, -4.0], np.float32), np.array([4.0, 0.0, 4.0], np.float32)
    for how in ("pair", "push"):
        state = gossip.State(model.replace(here), ("a", "b"), round=1)
        after, (answer,) = Gossip(3, how=how).step(state, Received("a", Offer(1, there)), Context(0.0, "b", 0))
        assert after.model.vector.tolist() == ((here + there) / 2.0).tolist()
        assert answer.to == "a"
        asker = gossip.State(model.replace(there), ("a", "b"), round=1, offered=1, asked="b")
        asker, _ = Gossip(3, how=how).step(asker, Received("b", answer.body), Context(1.0, "a", 0))
        assert isinstance(answer.body, Share) == (how == "pair")
        assert asker.model.vector.tolist() == (after.model.vector if how == "pair" else there).tolist()
