"""Time and room run out: parked sessions, deadlines that come late, copies nobody comes for, and words of strangers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fedfly_net import Death, net
from fedfly_toy import MODEL, SECRET, SIZE

from fieldfare.algorithms.fedfly.central import Central
from fieldfare.algorithms.fedfly.device import Device
from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.handover import (
    Attach,
    Attached,
    Committed,
    Move,
    Pre,
    Prep,
    Reject,
    Replica,
    Stored,
    Turn,
)
from fieldfare.algorithms.fedfly.held import Arrive
from fieldfare.algorithms.fedfly.messages import Plan, Round, Unknown
from fieldfare.algorithms.fedfly.policies import StopAndCopy
from fieldfare.algorithms.fedfly.session import digest, to_blob
from fieldfare.algorithms.fedfly.tickets import Ticket, countersigned, key_of, told
from fieldfare.core.algorithm import Context
from fieldfare.core.effects import Send
from fieldfare.core.events import Gathered, Moved, Received

CENTRAL = Central(1, {"device/0": Plan("first", SIZE, 3)}, patience_s=20.0)
PATIENT = {"patience_s": 4.0, "retry_s": 6.0, "grant_s": 30.0}
DEVICE = Device(patience_s=4.0, tries=2, mark_every=1)
STAYED = net((), steps=5, rounds=1).run()


def said(end, kind):
    return [(node, e.to, e.body) for node, _, out in end.kept for e in out
            if isinstance(e, Send) and isinstance(e.body, kind)]  # fmt: skip


def heard(one, node, src, body):
    """(state after, what is said) when a node at the end of its run gets a message."""
    state, out = one.nodes[node][1].step(one.states[node], Received(src, body), Context(one.now, node, 0))
    return state, [e.body for e in out if isinstance(e, Send)]


def test_a_session_whose_device_is_away_longer_than_it_is_kept_begins_anew():
    edge = Edge(**PATIENT, ttl_s=50.0)

    def away(after_s):
        deaths = [Death("device/0", 8, "performed", "durable", after_s)]
        return net((), edge=edge, device=DEVICE, central=CENTRAL, steps=5, rounds=1, keep=True, until_s=3e3,
                   deaths=deaths).run()  # fmt: skip

    gone, back = away(200.0), away(20.0)
    assert gone.reason == "rounds"
    assert (gone.versions, gone.updates) == (STAYED.versions, STAYED.updates)
    assert [(src, to) for src, to, _ in said(gone, Unknown)] == [("edge/0", "device/0")]
    assert gone.states["central"].owners["device/0"].epoch == 1
    steps = [node for node, event, _ in gone.kept if isinstance(event, Gathered) and node.startswith("edge")]
    assert len(steps) > 10
    assert not said(back, Unknown)


@pytest.mark.parametrize("later", [0.0, 0.015])
def test_the_deadline_of_the_device_counts_though_its_edges_see_the_move_for_themselves(later):
    deadlines = [90.0, 30.0, 60.0, 40.0]
    moves = [(2.5, Moved(f"device/{i}", "edge/1"), (f"device/{i}",)) for i in range(4)]
    moves += [(2.5 + later, Moved(f"device/{i}", "edge/1"), ("edge/0", "edge/1")) for i in range(4)]
    edge = Edge(**PATIENT, arrivals=1, policy=StopAndCopy())
    one = net(moves, devices=4, edges=2, steps=6, rounds=1, central=CENTRAL, keep=True, edge=edge, device=DEVICE)
    send = one.send

    def timed(node, to, body):
        if isinstance(body, Move):
            body = Move(body.to, deadlines[int(node.split("/")[1])])
        send(node, to, body)

    one.send = timed
    end = one.run()
    first, *rest = [body.device for src, _, body in said(end, Turn) if src == "edge/1"]
    left = sorted((deadlines[i], f"device/{i}") for i in range(4) if f"device/{i}" != first)
    assert rest == [device for _, device in left]
    assert end.versions == net((), devices=4, edges=2, steps=6, rounds=1).run().versions


def test_a_copy_nobody_has_come_for_makes_room_when_the_next_round_begins():
    edge = Edge(**PATIENT, capacity=1)
    one = net((), edge=edge, device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    state = one.states["edge/2"]
    session = one.states["edge/0"].held["device/0"].session
    left = Arrive("edge/0", 0, 1, 1, 10, 9.0, 0.0, ready=session)
    one.states["edge/2"] = state.put("device/0", replace(state.of("device/0"), arrive=left))
    prep = Prep("device/1", 0, 1, 1, 10, float("inf"), session.model_hash)
    assert [type(body) for body in heard(one, "edge/2", "edge/1", prep)[1]] == [Reject]
    one.states["edge/2"], _ = heard(one, "edge/2", "central", Round(2, MODEL, {}, {}))
    assert [type(body).__name__ for body in heard(one, "edge/2", "edge/1", prep)[1]] == ["Accept"]


def test_a_copy_larger_than_an_edge_takes_is_refused_page_by_page():
    one = net((), edge=Edge(**PATIENT, cap_bytes=1000), device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    hash_ = one.states["edge/0"].held["device/0"].session.model_hash
    one.states["edge/2"], _ = heard(one, "edge/2", "edge/0", Prep("d", 0, 1, 1, 10, float("inf"), hash_))
    for page in range(3):
        pre = Pre("d", 0, 1, 0, page, 4, bytes(400))
        state, (reply,) = heard(one, "edge/2", "edge/0", pre)
        assert isinstance(reply, Reject) == (page == 2)
        one.states["edge/2"] = state
    kept = [part for part in one.states["edge/2"].of("d").arrive.pages if part is not None]
    assert sum(map(len, kept)) == 800


def test_a_device_follows_no_ticket_that_the_centre_has_not_told_it():
    moves = [(2.5, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1"))]
    one = net(moves, edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    real = one.states["central"].owners["device/0"].ticket
    forged = replace(real, dst="edge/2", epoch=real.epoch + 1)
    for ticket in (forged, told(forged, key_of(b"another", "device/0")), told(forged, key_of(SECRET, "device/1"))):
        for src in ("edge/2", "edge/1", "central"):
            state, replies = heard(one, "device/0", src, Committed(ticket, 1))
            assert (state.edge, state.epoch, replies) == ("edge/1", real.epoch, [])
    state, _ = heard(one, "device/0", "central", Committed(told(forged, key_of(SECRET, "device/0")), 1))
    assert (state.edge, state.epoch) == ("edge/2", real.epoch + 1)


def test_an_edge_owns_by_a_countersigned_ticket_alone_and_goes_on_from_what_the_ticket_says_alone():
    one = net((), edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    held = one.states["edge/0"].held["device/0"]
    came = replace(held.session, lower=None)
    state = one.states["edge/2"]
    arrive = Arrive("edge/0", 0, 1, 1, 10, 9.0, 0.0, ready=came)
    one.states["edge/2"] = state.put("device/0", replace(state.of("device/0"), arrive=arrive))
    right = Ticket("fedfly", "device/0", "edge/0", "edge/2", 1, 1, "handover", digest(came, False), 1e9)
    other = replace(right, digest="0" * 32)
    for key, ticket, owns, whole in (
        (b"another", right, False, False), (SECRET, right, True, True), (SECRET, other, True, False),
    ):  # fmt: skip
        ticket = countersigned(ticket, key_of(key, "edge/2"))
        after, replies = heard(one, "edge/2", "central", Committed(ticket, 1))
        now = after.of("device/0")
        assert (now.owner, now.owner and now.session is not None) == (owns, whole)
        assert [type(body).__name__ for body in replies].count("Fetch") == 2 * (owns and not whole)


def test_what_a_source_sends_later_is_taken_only_if_it_is_what_the_ticket_says():
    one = net((), edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    gone = replace(one.states["edge/0"].held["device/0"].session, lower=None)
    ticket = Ticket("fedfly", "device/0", "edge/0", "edge/2", 1, 1, "handover", digest(gone, False), 1e9)
    ticket = countersigned(ticket, key_of(SECRET, "edge/2"))
    one.states["edge/2"], _ = heard(one, "edge/2", "central", Committed(ticket, 1))
    for session, taken in (
        (replace(gone, loss=1.0), False), (replace(gone, device="device/1"), False), (replace(gone, round=2), False),
        (gone, True),
    ):  # fmt: skip
        for src in ("edge/1", "edge/0"):
            after, _ = heard(one, "edge/2", src, Stored("device/0", 1, 1, to_blob(session)))
            assert (after.of("device/0").session is not None) == (taken and src == "edge/0")
    mine = one.states["edge/2"].put("device/0", replace(after.of("device/0"), session=replace(gone, grad=None)))
    one.states["edge/2"] = mine
    grad = np.ones((2, 3), np.float32)
    for device, taken in (("device/1", False), ("device/0", True)):
        body = Stored("device/0", 1, 1, to_blob(replace(gone, device=device, grad=grad)))
        after, _ = heard(one, "edge/2", "edge/0", body)
        assert (after.of("device/0").session.grad is not None) == taken


def test_a_session_that_a_device_has_sealed_itself_is_taken_only_if_it_is_what_the_ticket_says():
    pytest.importorskip("cryptography")
    from fieldfare.algorithms.fedfly.seal import private_of, public_of, seal

    one = net((), edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    gone, key = replace(one.states["edge/0"].held["device/0"].session, lower=None), key_of(SECRET, "edge/2")
    ticket = Ticket("fedfly", "device/0", "edge/0", "edge/2", 1, 1, "handover", digest(gone, False), 1e9)
    ticket = countersigned(ticket, key)
    for session, about, taken in (
        (replace(gone, samples=1e6), b"fedfly device/0 0", False), (gone, b"fedfly device/1 0", False),
        (gone, b"fedfly device/0 1", False), (gone, b"fedfly device/0 0", True),
    ):  # fmt: skip
        blob = seal(to_blob(session), public_of(private_of(key)), b"the device's own", about)
        after, _ = heard(one, "edge/2", "device/0", Attach(ticket, 1, session.next, (0,), None, blob))
        assert (after.of("device/0").session is not None) == taken


def test_the_centre_keeps_the_newest_replica_of_the_owner_in_whatever_order_they_come():
    one = net((), edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    for src, epoch, seq, kept in (
        ("edge/0", 0, 4, 4), ("edge/0", 0, 2, 4), ("edge/1", 0, 5, 4), ("edge/0", 1, 5, 4), ("edge/0", 0, 5, 5),
    ):  # fmt: skip
        one.states["central"], _ = heard(one, "central", src, Replica("device/0", 1, epoch, seq, b"blob"))
        assert one.states["central"].replicas["device/0"].seq == kept


def test_a_round_that_is_told_again_makes_an_edge_that_waits_for_a_session_ask_no_more():
    """The centre answers each such question with the round: they would ask and answer each other for ever."""
    one = net((), edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    ticket = Ticket("fedfly", "device/0", "edge/0", "edge/2", 1, 1, "handover", "ab" * 16, 1e9)
    ticket = countersigned(ticket, key_of(SECRET, "edge/2"))
    one.states["edge/2"], asked = heard(one, "edge/2", "device/0", Attach(ticket, 1, 3, (0,)))
    assert [type(body).__name__ for body in asked].count("Fetch") >= 2
    assert one.states["edge/2"].of("device/0").waiting is not None
    again = Round(1, MODEL, {}, {})
    for _ in range(3):
        one.states["edge/2"], asked = heard(one, "edge/2", "central", again)
        assert [type(body).__name__ for body in asked] == ["Alive"]


def test_an_answer_to_where_a_device_was_before_moves_it_no_more():
    moves = [(2.5, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1"))]
    one = net(moves, edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1).run()
    state = one.states["device/0"]
    waits = replace(state, stage="attach", attached=False, seq=3)
    one.states["device/0"] = waits
    for applied, epoch, moved in ((2, state.epoch, False), (3, state.epoch - 1, False), (3, state.epoch, True)):
        after, _ = heard(one, "device/0", "edge/1", Attached(1, epoch, 3, applied))
        assert (after is not waits) == moved


def test_a_device_with_an_old_ticket_is_told_who_has_its_session():
    moves = [(2.5, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1")),
             (9.5, Moved("device/0", "edge/2"), ("device/0", "edge/1", "edge/2"))]  # fmt: skip
    one = net(moves, edge=Edge(**PATIENT), device=DEVICE, central=CENTRAL, steps=5, rounds=1, keep=True).run()
    tickets = {
        body.ticket.epoch: body.ticket for _, _, body in said(one, Committed) if body.ticket.device == "device/0"
    }
    assert sorted(tickets) == [1, 2]
    before = one.states["edge/1"]
    after, replies = heard(one, "edge/1", "device/0", Attach(tickets[1], 1, 3, (0,)))
    assert after is before
    assert [body.ticket for body in replies] == [tickets[2]]
