"""FedFly under faults: whatever is lost, late or twice, and whoever dies when, the bits are those of a quiet run."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from fedfly_net import FOR_EVER, Death, net
from fedfly_toy import LAYOUT, MODEL, SIZE

from fieldfare.algorithms.fedfly.central import Central
from fieldfare.algorithms.fedfly.device import Device
from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.merge import merged
from fieldfare.algorithms.fedfly.messages import Forward, Plan, Update
from fieldfare.algorithms.fedfly.policies import PreCopy, Restart, StopAndCopy
from fieldfare.core.effects import Send
from fieldfare.core.events import Gathered, Moved, Received
from fieldfare.core.params import Layout, Params

PLANS = {"device/0": Plan("first", SIZE, 3)}
CENTRAL = Central(1, PLANS, patience_s=20.0)
PATIENT = {"patience_s": 4.0, "retry_s": 6.0, "grant_s": 30.0}
DEVICE = Device(patience_s=4.0, tries=2, mark_every=1)
POLICIES = (
    Restart(),
    StopAndCopy(),
    StopAndCopy(compress=True),
    PreCopy(1),
    PreCopy(3),
    PreCopy(1, replay=False),
    StopAndCopy("relay"),
    PreCopy(2, route="relay"),
)
CARRIED = (StopAndCopy("carry"), PreCopy(1, route="carry"))
EDGES = ("edge/0", "edge/1", "edge/2")


@cache
def quiet(u=False):
    """What each version is when nothing moves and nothing goes wrong, as bytes; and what is told of each training."""
    end = net(u=u).run()
    assert end.reason == "rounds"
    return end.versions, end.updates


def move(device, at, old, new):
    return [(at, Moved(device, new), (node,)) for node in (device, old, new)]


def schedule(seed, u=False, policies=POLICIES):
    """A run by a seed: up to three moves of each device, losses, repeats, delays, and up to two deaths."""
    dice = random.Random(seed)
    moves = []
    for device in ("device/0", "device/1"):
        at, now = "edge/0", 0.0
        for _ in range(dice.randint(0, 3)):
            now, to = now + dice.uniform(0, 12), dice.choice([edge for edge in EDGES if edge != at])
            for when, event, who in move(device, now, at, to):
                moves.append((when + dice.choice([0.0, 0.0, 2.0]), event, who))
            at = to
    deaths = []
    for _ in range(dice.choice([0, 1, 1, 2])):
        node = dice.choice([*EDGES, "device/0", "device/1", "central"])
        how = dice.choice(["durable", "amnesia", "for ever"] if node in EDGES else ["durable", "amnesia"])
        how = "durable" if node == "central" else how
        after_s = FOR_EVER if how == "for ever" else dice.choice([0.5, 5.0, 60.0])
        at = dice.choice(["before", "journaled", "performed"])
        deaths.append(Death(node, dice.randint(2, 30), at, "amnesia" if how == "amnesia" else "durable", after_s))
    if len({death.node for death in deaths if death.after_s == FOR_EVER}) > 1:
        deaths = deaths[:1]
    edge = Edge(
        **PATIENT, policy=dice.choice(policies), replica_every=dice.choice([0, 1, 2]),
        arrivals=dice.choice([None, 1]), lanes=dice.choice([None, None, 1]), page_bytes=dice.choice([64, 1 << 17]),
        ttl_s=dice.choice([86400.0, 86400.0, 40.0]), capacity=dice.choice([None, None, 1]),
    )  # fmt: skip
    device = Device(patience_s=4.0, tries=2, mark_every=dice.choice([1, 2]))
    return net(
        moves, edge=edge, device=device, central=CENTRAL, dice=dice, lose=dice.choice([0.0, 0.05, 0.2]),
        repeat=dice.choice([0.0, 0.1]), spread_s=dice.choice([0.0, 0.5, 3.0]), deaths=deaths, until_s=3e4, u=u,
    )  # fmt: skip


def run_schedules(seeds, u=False, policies=POLICIES):
    """Run each; gives how often sessions changed hands."""
    changed = 0
    for seed in seeds:
        end = schedule(seed, u, policies).run()
        assert end.reason == "rounds", f"schedule {seed}: {end.reason} after {end.now:.0f} s"
        versions, updates = quiet(u)
        assert end.versions == versions, f"schedule {seed} ends in other bits"
        assert end.updates.items() <= updates.items(), f"schedule {seed} counts other losses"
        changed += sum(owner.epoch for owner in end.states["central"].owners.values())
    return changed


def test_seeded_schedules_of_faults_end_in_the_bits_of_a_quiet_run():
    assert run_schedules(range(40)) > 40


def test_the_same_in_a_u_where_labels_stay_on_the_device():
    assert run_schedules(range(30), u=True) > 30


def test_the_same_where_devices_carry_their_sealed_sessions():
    pytest.importorskip("cryptography")
    assert run_schedules(range(30), policies=CARRIED) > 30


@pytest.mark.slow
def test_ten_thousand_schedules_of_faults_lose_no_batch_apply_none_twice_and_have_one_owner():
    assert run_schedules(range(8_000)) > 8_000
    assert run_schedules(range(2_000), u=True) > 2_000


# Deaths at every state of the protocol: who, at which event, what it still knows, and the outcome that is promised.

SAME, DROPPED, HALF, NEVER = "same bits", "without the device", "its server half alone", "no model"
BACK, GONE, BLANK = ("durable", 5.0), ("durable", FOR_EVER), ("amnesia", 5.0)
LATER = ("durable", 200.0)
SOURCE, DEST, CENTRE, MOVER = "edge/0", "edge/1", "central", "device/0"
TABLE = [
    # prepare
    (SOURCE, "Moved", "before", GONE, SAME),
    (SOURCE, "Moved", "journaled", BLANK, SAME),
    (DEST, "Prep", "before", GONE, SAME),
    (DEST, "Prep", "performed", BLANK, SAME),
    (DEST, "Prep", "journaled", BACK, SAME),
    (SOURCE, "Accept", "before", GONE, SAME),
    (SOURCE, "Accept", "journaled", BACK, SAME),
    (SOURCE, "Accept", "performed", BLANK, SAME),
    (MOVER, "Moved", "before", BACK, SAME),
    # live copies
    (DEST, "Pre", "before", GONE, SAME),
    (DEST, "Pre", "performed", BLANK, SAME),
    (DEST, "Pre", "performed", GONE, SAME),
    (SOURCE, "Got", "before", GONE, SAME),
    (SOURCE, "Got", "journaled", BLANK, SAME),
    (SOURCE, "Got", "performed", BACK, SAME),
    # frozen
    (SOURCE, "freeze", "before", GONE, SAME),
    (SOURCE, "freeze", "journaled", GONE, SAME),
    (SOURCE, "freeze", "journaled", BACK, SAME),
    (SOURCE, "freeze", "performed", GONE, SAME),
    (SOURCE, "freeze", "performed", BLANK, SAME),
    (MOVER, "Freeze", "before", BACK, SAME),
    (MOVER, "Freeze", "performed", BLANK, SAME),
    (DEST, "Final", "before", GONE, SAME),
    (DEST, "Final", "journaled", BLANK, SAME),
    (DEST, "Final", "performed", GONE, SAME),
    (DEST, "Final", "performed", BACK, SAME),
    # commit
    (SOURCE, "Ready", "before", GONE, SAME),
    (SOURCE, "Ready", "journaled", BACK, SAME),
    (SOURCE, "Ready", "performed", GONE, SAME),
    (SOURCE, "Ready", "performed", BLANK, SAME),
    (CENTRE, "Commit", "before", BACK, SAME),
    (CENTRE, "Commit", "journaled", BACK, SAME),
    (CENTRE, "Commit", "performed", LATER, SAME),
    (CENTRE, "Commit", "before", GONE, NEVER),
    (CENTRE, "Commit", "performed", GONE, NEVER),
    (SOURCE, "Committed", "before", GONE, SAME),
    (SOURCE, "Committed", "performed", BLANK, SAME),
    (DEST, "Committed", "before", GONE, SAME),
    (DEST, "Committed", "journaled", BACK, SAME),
    (DEST, "Committed", "performed", BLANK, SAME),
    (DEST, "Committed", "performed", GONE, SAME),
    (MOVER, "Committed", "before", BACK, SAME),
    (MOVER, "Committed", "performed", BLANK, SAME),
    # attach and release
    (DEST, "Attach", "before", GONE, SAME),
    (DEST, "Attach", "journaled", BACK, SAME),
    (DEST, "Attach", "performed", BLANK, SAME),
    (SOURCE, "Release", "before", GONE, SAME),
    (SOURCE, "Release", "performed", GONE, SAME),
    (DEST, "finish", "before", GONE, SAME),
    (DEST, "finish", "performed", GONE, SAME),
    # a device that never comes back
    (MOVER, "Freeze", "before", GONE, DROPPED),
    (MOVER, "Committed", "performed", GONE, DROPPED),
    (MOVER, "Committed", "performed", GONE, HALF),
    (MOVER, "Moved", "before", GONE, HALF),
]
EVENTS = {"freeze": lambda e, out: isinstance(e, Gathered) and _sends(out, "Final"), "finish": "Finish"}


def _sends(out, kind):
    return any(isinstance(e, Send) and type(e.body).__name__ == kind for e in out)


def step_of(node, what, one):
    """Number of the first step of `node` that `what` names, in a run without deaths."""
    count, told = 0, EVENTS.get(what, what)
    one.keep = True
    for who, event, out in one.run().kept:
        count += who == node
        if who != node:
            continue
        kind = type(event.body).__name__ if isinstance(event, Received) else type(event).__name__
        if told(event, out) if callable(told) else kind == told:
            return count
    raise AssertionError(f"{node} never sees {what}")


def case(outcome, **more):
    late = {DROPPED: "drop", HALF: "half"}.get(outcome)
    plans = {"device/0": Plan("first", SIZE, 4)}
    central = Central(1, plans, patience_s=20.0, deadline_s=None if late is None else 120.0, late=late or "drop")
    edge = Edge(**PATIENT, policy=PreCopy(1), replica_every=2)
    return net(move("device/0", 2.5, "edge/0", "edge/1"), edge=edge, device=DEVICE, central=central, steps=4,
               until_s=5e3, **more)  # fmt: skip


@pytest.mark.parametrize(("node", "what", "at", "how", "outcome"), TABLE)
@pytest.mark.sampled(3)
def test_a_death_at_any_state_of_the_protocol_has_the_outcome_promised(node, what, at, how, outcome):
    step = step_of(node, what, case(outcome))
    end = case(outcome, deaths=[Death(node, step, at, *how)]).run()
    still = case(SAME).run()
    if outcome == SAME:
        assert end.reason == "rounds"
        assert end.versions == still.versions
    elif outcome == NEVER:
        assert end.reason != "rounds"
        assert not end.versions
    else:
        assert end.reason == "rounds"
        assert end.now > 120.0
        first = np.frombuffer(end.versions[1], np.float32)
        other = np.frombuffer(alone(("device/1",))[1], np.float32)
        np.testing.assert_array_equal(first[:SIZE], other[:SIZE])
        assert np.array_equal(first[SIZE:], other[SIZE:]) == (outcome == DROPPED)


@cache
def alone(devices):
    """The versions of a run in which only `devices` ever speak."""
    one = case(DROPPED, drop=lambda src, to, body: src.startswith("device/") and src not in devices)
    return one.run().versions


def test_the_table_has_thirty_cases_and_every_role():
    assert len(TABLE) >= 30
    assert len({row[:4] for row in TABLE}) >= 50
    assert {row[0] for row in TABLE} == {SOURCE, DEST, CENTRE, MOVER}


# Losses one by one: every kind of message is lost the first times it is sent


KINDS = (
    "Round", "Update", "Begin", "Forward", "Backward", "Finish", "Closed", "Move", "Prep", "Accept", "Pre", "Got",
    "Freeze", "Final", "Ready", "Commit", "Committed", "Attach", "Attached", "Release", "Replica",
)  # fmt: skip


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_any_one_kind_of_message_may_be_lost_again_and_again(kind, times):
    left = {}

    def drop(src, to, body):
        if type(body).__name__ != kind:
            return False
        key = src if times == 1 else (src, to)
        left[key] = left.get(key, 0) + 1
        return left[key] <= times

    end = case(SAME, drop=drop).run()
    if kind not in ("Attached",):
        assert left, f"no {kind} was ever sent"
    assert end.reason == "rounds"
    assert end.versions == case(SAME).run().versions


def test_a_batch_whose_bytes_were_altered_on_the_way_is_sent_again():
    one, spoilt = case(SAME), []
    send = one.send

    def altered(node, to, body):
        if isinstance(body, Forward) and len(spoilt) < 3:
            spoilt.append(body)
            body = replace(body, act=body.act + np.float32(1.0))
        send(node, to, body)

    one.send = altered
    assert one.run().versions == case(SAME).run().versions
    assert len(spoilt) == 3


# The mean


def update(device, vector, samples, only=None):
    return Update(device, 1, 0, np.asarray(vector, np.float32), samples, 0.0, only)


def test_the_mean_is_by_true_sample_counts_and_counts_a_half_for_itself():
    one, two = MODEL.vector + 1, MODEL.vector - 2
    both = merged(MODEL, {"a": update("a", one, 3.0), "b": update("b", two, 1.0)})
    np.testing.assert_allclose(both.vector, MODEL.vector + 0.25, atol=1e-6)
    half = merged(MODEL, {"a": update("a", one, 3.0, (SIZE, LAYOUT.size)), "b": update("b", two, 1.0)})
    np.testing.assert_allclose(half.vector[:SIZE], two[:SIZE], atol=1e-6)
    np.testing.assert_allclose(half.vector[SIZE:], MODEL.vector[SIZE:] + 0.25, atol=1e-6)
    wild = merged(MODEL, {"a": update("a", one, 3.0), "b": update("b", two * np.nan, 1.0)})
    np.testing.assert_array_equal(wild.vector, merged(MODEL, {"a": update("a", one, 3.0)}).vector)
    nobody = merged(MODEL, {"a": update("a", one, 3.0, (SIZE, LAYOUT.size))})
    np.testing.assert_array_equal(nobody.vector[:SIZE], MODEL.vector[:SIZE])


def test_counters_take_the_largest_of_those_that_count():
    layout = Layout.of({"norm.weight": (2,), "norm.num_batches_tracked": (1,)})
    rows = {"a": (1.0, 1.0, 4.0), "b": (3.0, 3.0, 6.0), "c": (np.inf, 0.0, 99.0)}
    made = merged(Params(np.zeros(3, np.float32), layout), {k: update(k, row, 2.0) for k, row in rows.items()})
    np.testing.assert_allclose(made.vector, [2.0, 2.0, 6.0])


# Every step of every node


@pytest.mark.slow
@pytest.mark.parametrize("policy", [PreCopy(1), StopAndCopy("relay")], ids=["pre", "stop relayed"])
def test_a_death_at_any_step_of_any_node_changes_no_bit(policy):
    """Not a choice of states: all steps of the source, the destination and the device, and of the centre, in turn."""
    edge = Edge(**PATIENT, policy=policy, replica_every=2, arrivals=1)
    central = Central(1, PLANS, patience_s=20.0)

    def one(**more):
        moves = move("device/0", 2.5, "edge/0", "edge/1")
        return net(moves, edge=edge, device=DEVICE, central=central, steps=4, rounds=1, until_s=5e3, **more)

    still = one().run()
    assert still.states["central"].owners["device/0"].edge == "edge/1"
    tried = 0
    for node in (SOURCE, DEST, CENTRE, MOVER):
        for step in range(2, still.steps[node] + 1):
            for at in ("before", "journaled", "performed"):
                for how in {CENTRE: (BACK,), MOVER: (BACK, BLANK)}.get(node, (BACK, BLANK, GONE)):
                    end = one(deaths=[Death(node, step, at, *how)]).run()
                    assert end.reason == "rounds", f"{node} dies in step {step}, {at}, {how}: {end.reason}"
                    assert end.versions == still.versions, f"{node} dies in step {step}, {at}, {how}"
                    assert end.updates == still.updates
                    tried += 1
    assert tried > 300
