"""Many movers at once, admission, other ways for state to cross, and everything that must be refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fedfly_net import Net, net
from fedfly_toy import SECRET, SIZE, bits, world

from fieldfare.algorithms.fedfly.central import Central
from fieldfare.algorithms.fedfly.device import Device
from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.handover import (
    Attach,
    Commit,
    Committed,
    Denied,
    Final,
    Move,
    Pre,
    Prep,
    Reject,
    Relay,
    Release,
    Turn,
)
from fieldfare.algorithms.fedfly.messages import Forward, Plan, Unknown, Update
from fieldfare.algorithms.fedfly.policies import Cheapest, PreCopy, Restart, StopAndCopy
from fieldfare.algorithms.fedfly.tickets import countersigned, key_of
from fieldfare.core.effects import Run, Send
from fieldfare.core.events import Left, Moved, Received
from fieldfare.testing import simulate

CENTRAL = Central(1, {"device/0": Plan("first", SIZE, 3)}, patience_s=20.0)
PATIENT = {"patience_s": 4.0, "retry_s": 6.0, "grant_s": 30.0}
DEVICE = Device(patience_s=4.0, tries=2, mark_every=1)


def crowd(n, deadlines=None, **more):
    """`n` devices of edge 0 that all move to edge 1 at once; a message of each deadline comes from the device."""
    moves = [(2.5, Moved(f"device/{i}", "edge/1"), (f"device/{i}",)) for i in range(n)]
    one = net(moves, devices=n, edges=2, steps=6, rounds=1, central=CENTRAL, keep=True, **more)
    if deadlines is not None:
        send = one.send

        def timed(node, to, body):
            body = Move(body.to, deadlines[int(node.split("/")[1])]) if isinstance(body, Move) else body
            send(node, to, body)

        one.send = timed
    return one


def said(end, kind, src=None):
    return [(node, e.body) for node, _, out in end.kept for e in out
            if isinstance(e, Send) and isinstance(e.body, kind) and src in (None, node)]  # fmt: skip


def test_movers_to_one_edge_send_one_after_the_other_those_with_the_earliest_deadlines_first():
    deadlines = [90.0, 30.0, 60.0, 40.0]
    end = crowd(4, deadlines, edge=Edge(**PATIENT, arrivals=1, policy=StopAndCopy()), device=DEVICE, spread_s=0.0).run()
    assert end.reason == "rounds"
    order = [body.device for _, body in said(end, Turn, "edge/1")]
    first, *rest = order
    left = sorted((deadlines[i], f"device/{i}") for i in range(4) if f"device/{i}" != first)
    assert rest == [device for _, device in left]
    open_, most = set(), 0
    for _, _, out in end.kept:
        for effect in out:
            body = effect.body if isinstance(effect, Send) else None
            if isinstance(body, Turn) and effect.to == "edge/0":
                open_.add(body.device)
            if type(body).__name__ == "Ready":
                open_.discard(body.device)
            most = max(most, len(open_))
    assert most == 1
    assert end.versions == crowd(4, edge=Edge(**PATIENT)).run().versions


@pytest.mark.slow
def test_twenty_movers_to_one_edge_all_come_and_no_bit_changes():
    stayed = net((), devices=20, edges=2, steps=6, rounds=1, central=CENTRAL).run().versions
    for policy in (StopAndCopy(), PreCopy(), Restart()):
        end = crowd(20, edge=Edge(**PATIENT, arrivals=2, policy=policy), device=DEVICE).run()
        assert end.versions == stayed
        assert {owner.edge for owner in end.states["central"].owners.values()} == {"edge/1"}


def test_an_edge_that_is_full_refuses_and_the_session_stays_where_it_is():
    end = crowd(3, edge=Edge(**PATIENT, capacity=1), device=DEVICE).run()
    assert end.reason == "rounds"
    owners = [owner.edge for owner in end.states["central"].owners.values()]
    assert sorted(owners) == ["edge/0", "edge/0", "edge/1"]
    assert {body.reason for _, body in said(end, Reject)} == {"full"}


def test_a_session_that_cannot_come_by_its_deadline_is_refused():
    edge = Edge(**PATIENT, ingress_bytes_per_s=10.0, retries=0)
    end = crowd(2, [4.0, 900.0], edge=edge, device=DEVICE).run()
    assert end.reason == "rounds"
    assert {(body.device, body.reason) for _, body in said(end, Reject)} == {("device/0", "late")}
    owners = end.states["central"].owners
    assert (owners["device/0"].edge, owners["device/1"].edge) == ("edge/0", "edge/1")


def moving(policy, drop=None, **more):
    moves = [(2.5, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1"))]
    edge = Edge(**{**PATIENT, "policy": policy, **more})
    return net(moves, edge=edge, device=DEVICE, central=CENTRAL, steps=5, rounds=1, drop=drop, keep=True).run()


STAYED = net((), steps=5, rounds=1).run().versions


def between_edges(src, to, body):
    return src.startswith("edge/") and to.startswith("edge/")


@pytest.mark.parametrize("policy", [StopAndCopy("relay"), PreCopy(2, route="relay")])
def test_where_edges_cannot_reach_each_other_state_goes_through_the_centre(policy):
    end = moving(policy, between_edges)
    assert end.versions == STAYED
    assert end.states["central"].owners["device/0"].edge == "edge/1"
    assert said(end, Relay, "central")


def test_an_edge_that_does_not_answer_is_asked_again_through_the_centre():
    end = moving(StopAndCopy(), between_edges, tries=1, patience_s=1.0)
    assert end.versions == STAYED
    assert end.states["central"].owners["device/0"].edge == "edge/1"
    stays = moving(StopAndCopy(), between_edges, tries=1, patience_s=1.0, relays=False)
    assert stays.versions == STAYED
    assert stays.states["central"].owners["device/0"].edge == "edge/0"


@pytest.mark.parametrize("policy", [StopAndCopy("carry"), PreCopy(1, route="carry")])
def test_a_device_carries_a_sealed_session_where_edges_cannot_reach_each_other(policy):
    pytest.importorskip("cryptography")
    end = moving(policy, between_edges)
    assert end.versions == STAYED
    assert not said(end, Final)
    carried = [body for _, body in said(end, Attach) if body.carried]
    assert carried
    assert end.states["central"].owners["device/0"].edge == "edge/1"


def test_a_carried_session_that_the_device_has_altered_is_not_taken():
    pytest.importorskip("cryptography")
    moves = [(2.5, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1"))]
    edge = Edge(**PATIENT, policy=StopAndCopy("carry"))
    one = net(moves, edge=edge, device=DEVICE, central=CENTRAL, steps=5, rounds=1)
    send = one.send

    def bent(node, to, body):
        if isinstance(body, Attach) and body.carried:
            body = replace(body, carried=body.carried[:-1] + bytes([body.carried[-1] ^ 1]))
        send(node, to, body)

    one.send = bent
    assert one.run().versions == STAYED


@pytest.mark.parametrize("lossy", ["fp16", "int8"])
def test_a_lossy_handover_ends_near_the_bits_of_a_quiet_run_and_not_at_them(lossy):
    end = moving(PreCopy(1, lossy=lossy))
    assert end.reason == "rounds"
    one, other = (np.frombuffer(v[1], np.float32) for v in (end.versions, STAYED))
    assert 0 < np.abs(one - other).max() < 0.05
    again = moving(PreCopy(1, lossy=lossy))
    assert again.versions == end.versions


def test_the_cheapest_policy_restarts_early_in_a_round_and_migrates_late_in_it():
    early = [(4.0, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1"))]
    late = [(13.0, *early[0][1:])]
    for moves, kind in ((early, "restart"), (late, "handover")):
        end = net(moves, steps=8, rounds=1, edge=Edge(**PATIENT, policy=Cheapest(10.0)), keep=True).run()
        tickets = [body.ticket for _, body in said(end, Committed, "central")]
        assert {ticket.kind for ticket in tickets} == {kind}
        assert end.versions == net((), steps=8, rounds=1).run().versions


def test_an_edge_that_leaves_has_its_sessions_given_to_another():
    moves = [(3.3, Left("edge/0"), ("central",))]
    dead = net(
        moves, steps=5, rounds=1, edge=Edge(**PATIENT, replica_every=1), device=DEVICE, central=CENTRAL, keep=True
    )
    dead.drop = lambda src, to, body: dead.now >= 3.3 and "edge/0" in (src, to)
    end = dead.run()
    assert end.versions == STAYED
    assert {owner.edge for owner in end.states["central"].owners.values()} == {"edge/1"}
    assert end.now < 60.0


def test_a_device_goes_back_to_where_the_replica_is_and_no_further():
    def forwards(**more):
        one = net((), devices=1, steps=9, rounds=1, device=Device(patience_s=4.0, tries=2, mark_every=2), keep=True,
                  edge=Edge(**PATIENT, replica_every=2), central=CENTRAL, **more)  # fmt: skip
        end = one.run()
        runs = [dict(e.config)["seq"] for node, _, out in end.kept for e in out
                if isinstance(e, Run) and e.work == "split/forward"]  # fmt: skip
        return end, runs

    quiet, once = forwards()
    died, again = forwards(drop=lambda src, to, body: "edge/0" in (src, to) and getattr(body, "seq", 0) >= 7)
    assert once == list(range(9))
    assert died.versions == quiet.versions
    assert again == [*range(8), 6, 7, 8]


def test_a_device_that_returns_before_the_commit_keeps_its_session():
    moves = [(2.5, Moved("device/0", "edge/1"), ("device/0",)), (2.6, Moved("device/0", "edge/0"), ("device/0",))]
    end = net(moves, edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1, keep=True).run()
    assert end.versions == STAYED
    assert end.states["central"].owners["device/0"].epoch == 0
    assert not said(end, Commit)


# What must be refused


def frozen_moment(kind):
    """A run up to the first time a message of this kind was sent: the net, the message, who sent it."""
    moves = [(2.5, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1"))]
    one = net(moves, edge=Edge(**PATIENT, policy=PreCopy(1)), device=DEVICE, central=CENTRAL, steps=5, rounds=1)
    found, send = [], Net.send

    def watched(node, to, body):
        if isinstance(body, kind) and not found:
            found.append((node, to, body))
        send(one, node, to, body)

    one.send = watched
    one.run()
    assert found
    return one, *found[0]


def answer(one, to, src, body):
    """What a node says to a message, at the end of its run."""
    from fieldfare.core.algorithm import Context

    state, out = one.nodes[to][1].step(one.states[to], Received(src, body), Context(one.now, to, 0))
    return state is one.states[to], [e.body for e in out if isinstance(e, Send)]


def test_a_commit_that_is_replayed_is_answered_as_before_and_one_for_an_old_epoch_is_denied():
    one, node, _, body = frozen_moment(Commit)
    same, told = answer(one, "central", node, body)
    assert same
    assert [type(reply) for reply in told] == [Committed, Committed]
    other = Commit(replace(body.ticket, dst="edge/2"))
    same, told = answer(one, "central", node, other)
    assert same
    assert [type(reply) for reply in told] == [Denied]


def test_a_commit_signed_by_somebody_else_is_denied():
    one, *_ = frozen_moment(Commit)
    owner = one.states["central"].owners["device/0"]
    ticket = replace(owner.ticket, src=owner.edge, dst="edge/2", epoch=owner.epoch + 1, countersigned=b"")
    for bad in (ticket, replace(ticket, signed=bytes(32))):
        same, told = answer(one, "central", owner.edge, Commit(bad))
        assert same
        assert [type(reply) for reply in told] == [Denied]


def test_an_attach_with_a_ticket_made_up_or_expired_is_refused_and_changes_nothing():
    one, *_ = frozen_moment(Attach)
    real = one.states["central"].owners["device/0"].ticket
    forged = replace(real, dst="edge/2", epoch=real.epoch + 1, countersigned=bytes(32))
    mine = countersigned(forged, key_of(b"another secret", "edge/2"))
    old = countersigned(replace(forged, expires_s=0.0), key_of(SECRET, "edge/2"))
    for ticket in (forged, mine, old):
        same, told = answer(one, "edge/2", "device/0", Attach(ticket, 1, 0, (0,)))
        assert same
        assert [type(reply) for reply in told] == [Unknown]


def test_frames_of_an_older_epoch_are_redirected_and_train_nothing():
    one, *_ = frozen_moment(Committed)
    batch = Forward(1, 0, 2, 5, np.ones((2, 3), np.float32), np.ones(2, np.float32), 0)
    from fieldfare.algorithms.fedfly.held import checksum

    batch = replace(batch, crc=checksum(batch.act, batch.y))
    for edge in ("edge/0", "edge/1"):
        _, told = answer(one, edge, "device/0", batch)
        assert [type(reply) for reply in told] == [Committed]
    assert answer(one, "edge/1", "device/0", replace(batch, crc=1)) == (True, [])


def test_an_update_of_an_older_epoch_or_from_no_owner_does_not_count():
    one, *_ = frozen_moment(Committed)
    state = replace(one.states["central"], round=1, updates={})
    one.states["central"] = state
    for src, epoch in (("edge/0", 0), ("edge/0", 1), ("edge/2", 1), ("edge/1", 0), ("edge/1", 2)):
        body = Update("device/0", 1, epoch, state.model.vector, 10.0, 0.0)
        assert answer(one, "central", src, body) == (True, [])


def test_copies_nobody_asked_for_are_refused_and_strangers_are_not_heard():
    one, *_ = frozen_moment(Final)
    stray = Pre("device/9", 0, 1, 0, 0, 1, b"bytes")
    same, told = answer(one, "edge/2", "edge/0", stray)
    assert same
    assert [(type(reply), reply.reason) for reply in told] == [(Reject, "unknown")]
    for src, body in (
        ("device/1", stray),
        ("device/1", Release("device/0", 9)),
        ("nobody", Prep("d", 0, 1, 1, 1, 1.0, "")),
    ):
        assert answer(one, "edge/2", src, body) == (True, [])


def test_in_the_simulator_a_lane_at_a_time_makes_no_bit_differ():
    many = simulate(world(devices=3, edges=1, rounds=1, edge=Edge(lanes=1)))
    assert bits(many) == bits(simulate(world(devices=3, edges=1, rounds=1)))
    assert many.driver.progress.now > simulate(world(devices=3, edges=1, rounds=1)).driver.progress.now
