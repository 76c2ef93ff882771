"""SCAFFOLD's client state when replies are late, repeated, lost or refused.

The server's c is the mean of all c_i whenever what was committed is what was counted (c <- c + sum(dc) / N and
c_i <- c_i + dc), so one c_i committed for a reply that did not count, or counted twice, shows at once.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldfare.algorithms import Scaffold
from fieldfare.core.events import Gathered
from fieldfare.core.quorum import Everyone, Quorum
from fieldfare.testing import Crash, Fault, Spoilt, digest, loop, quadratics, simulate

PROBLEM = quadratics(n=6)
PATIENT = Quorum(deadline_s=20.0)


def balanced(end) -> bool:
    """Whether c is the mean of the c_i of all clients (zero for those never counted)."""
    node = end.driver.nodes["central"].state if hasattr(end.driver, "nodes") else end.driver.progress.states["central"]
    total = np.sum([row.astype(np.float64) for row in end.slots.rows.get("c", {}).values()], axis=0)
    return np.allclose(node.rule, total / PROBLEM.data.n_clients, atol=1e-5)


def world(rounds: int = 4, on=None, quorum: Quorum = PATIENT, **more):
    return PROBLEM.world(Scaffold(rounds, Everyone() if on is None else on, quorum=quorum), **more)


@pytest.mark.parametrize("driver", [simulate, loop])
@pytest.mark.parametrize("on", [None, 3])
def test_the_servers_variate_is_the_mean_of_the_clients(driver, on):
    assert balanced(driver(world(on=on)))


def test_a_late_reply_leaves_its_client_as_if_it_had_never_been_asked():
    late = loop(world(1), [Fault("delay", "reply", 30.0, client=2)], keep=True)
    (event,) = late.transcript.events(Gathered)
    assert event.missing["late"].tolist() == [2]
    assert 2 not in late.slots.rows["c"]
    assert balanced(late)
    lost = loop(world(1), [Fault("lose", "ask", client=2)])
    assert digest(late.slots.rows) == digest(lost.slots.rows)
    assert digest(late.model) == digest(lost.model)


def test_the_next_round_of_a_late_client_starts_from_its_last_committed_state():
    late = loop(world(3), [Fault("delay", "reply", 30.0, client=2, tag=2)])
    never = loop(world(3), [Fault("lose", "ask", client=2, tag=2)])
    assert digest(late.slots.rows) == digest(never.slots.rows)
    assert balanced(late)


def test_a_repeated_reply_counts_once_and_a_repeated_ask_is_not_computed_again():
    plain = loop(world())
    for fault in (Fault("repeat", "reply", 0.0, times=99), Fault("repeat", "ask", 0.1, times=99)):
        end = loop(world(), [fault])
        assert end.transcript.lines() == plain.transcript.lines()
        assert set(end.driver.devices.computed.values()) == {1}
        assert end.slots.puts == plain.slots.puts == 24


def test_a_retried_ask_gives_the_cached_reply_though_the_state_has_moved_on_meanwhile():
    end = loop(world(2), [Fault("lose", "reply", 1.0, client=4, times=5), Fault("repeat", "ask", 15.0, client=1)])
    assert digest(end.slots.rows) == digest(loop(world(2)).slots.rows)
    assert set(end.driver.devices.computed.values()) == {1}


def test_a_refused_reply_commits_nothing():
    spoilt = PROBLEM.world(Scaffold(3, Everyone())).works["train"]
    end = loop(world(3, works={"train": Spoilt(spoilt, (1, 5))}))
    assert sorted(end.slots.rows["c"]) == [0, 2, 3, 4]
    assert balanced(end)


fault = st.builds(
    Fault,
    st.sampled_from(["lose", "delay", "repeat"]),
    st.sampled_from(["ask", "reply"]),
    st.sampled_from([0.0, 0.3, 5.0, 25.0, 100.0]),
    client=st.sampled_from([None, 0, 3]),
    tag=st.sampled_from([None, 1, 2]),
    times=st.integers(1, 9),
)
crash = st.builds(Crash, st.just("central"), st.integers(1, 4), st.sampled_from(["before", "journaled", "performed"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(fault, max_size=4), st.lists(crash, max_size=2), st.sampled_from([None, 4]), st.integers(1, 4))
def test_whatever_befalls_the_messages_what_is_committed_is_what_was_counted(faults, crashes, need, every):
    quorum = Quorum(need=need, deadline_s=20.0)
    end = loop(world(3, quorum=quorum), faults, crashes, keep=True, snapshot_every=every)
    assert end.reason == "rounds"
    assert balanced(end)
    assert end.slots.puts == sum(len(event.clients) for event in end.transcript.events(Gathered))
    assert set(end.driver.devices.computed.values()) <= {0, 1}
