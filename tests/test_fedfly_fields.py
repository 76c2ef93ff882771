"""What crosses is bytes alone, and every field of them counts: one that is altered is refused, or ends otherwise."""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from dataclasses import replace

import numpy as np
import pytest
from fedfly_net import net
from fedfly_toy import LAYOUT, SIZE, U_LAYOUT

from fieldfare.algorithms.fedfly import copies
from fieldfare.algorithms.fedfly.central import Central
from fieldfare.algorithms.fedfly.device import Device
from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.handover import Carry, Committed, Final, Pre, Ready, Reject, Relay
from fieldfare.algorithms.fedfly.messages import Backward, Forward, Plan
from fieldfare.algorithms.fedfly.policies import PreCopy, Restart, StopAndCopy
from fieldfare.algorithms.fedfly.session import Session, from_blob, to_blob
from fieldfare.algorithms.fedfly.tickets import Ticket
from fieldfare.core.effects import Run, Send
from fieldfare.core.events import Moved, Received

CENTRAL = Central(1, {"device/0": Plan("first", SIZE, 3)}, patience_s=20.0)
EDGE = Edge(policy=StopAndCopy(), patience_s=4.0, retry_s=6.0, grant_s=30.0, tries=8, retries=0)
DEVICE = Device(patience_s=4.0, tries=2, mark_every=1)
MOVE = [(6.5, Moved("device/0", "edge/1"), ("device/0", "edge/0", "edge/1"))]
FIELDS = [field.name for field in dataclass_fields(Session)]


def one_move(u=False, edge=EDGE, steps=5, **more):
    return net(
        MOVE, edge=edge, device=DEVICE, central=CENTRAL, steps=steps, rounds=1, keep=True, u=u, until_s=5e3, **more
    )


def bent(session: Session, name: str) -> Session:
    """The session with one field altered, in its last bit or to another value that could be."""
    value = getattr(session, name)
    match value:
        case np.ndarray():
            value = value.copy()
            value.reshape(-1).view(np.uint32)[0] ^= 1 << 20
        case str():
            value = "second" if name == "cut" else f"{value}x"
        case float():
            value = 1.0 if name == "expires_s" else value + 1.0
        case int():
            value += 3 if name in ("size", "stop") else 1
        case None if name == "level":
            value = 1
        case None:
            value = np.ones((2, 3) if name != "lower" else LAYOUT.size - len(session.upper), np.float32)
    return replace(session, **{name: value})


def sent(end, kind):
    return [
        (node, e.body) for node, _, out in end.kept for e in out if isinstance(e, Send) and isinstance(e.body, kind)
    ]


# On the way


def altered(name, u=False):
    """A run in which the session crosses with this field altered the first time, its checksum put right."""
    one, spoilt = one_move(u), []
    layout, send = U_LAYOUT if u else LAYOUT, one.send

    def through(node, to, body):
        if isinstance(body, Final) and not spoilt:
            session = from_blob(body.blob, layout)
            spoilt.append(session if name is None else bent(session, name))
            body = replace(body, blob=to_blob(spoilt[0], level=0))
        send(node, to, body)

    one.send = through
    return one.run()


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("u", [False, True], ids=["two parts", "a u"])
def test_a_session_altered_in_any_one_field_on_the_way_is_not_acknowledged_and_comes_again(name, u):
    end, quiet = altered(name, u), one_move(u).run()
    assert [body.reason for _, body in sent(end, Reject)] == ["reference"]
    assert len(sent(end, Final)) == 2
    assert end.versions == quiet.versions
    assert end.states["central"].owners["device/0"].edge == "edge/1"


def test_one_that_is_not_altered_is_acknowledged_at_once():
    end = altered(None)
    assert not sent(end, Reject)
    assert len(sent(end, Final)) == len(sent(end, Ready)) == 1
    assert end.states["edge/0"].of("device/0").session is None, "released, and kept all the same"


def test_an_acknowledgement_of_something_else_commits_nothing():
    one, spoilt = one_move(), []
    send = one.send

    def through(node, to, body):
        if isinstance(body, Ready) and not spoilt:
            spoilt.append(one.now)
            body = replace(body, digest="0" * 32)
        send(node, to, body)

    one.send = through
    end = one.run()
    assert len(sent(end, Final)) == 2
    assert end.versions == one_move().run().versions


def test_a_gradient_that_is_withheld_comes_from_the_new_edge_alone_however_often_the_batch_is_sent():
    one = one_move(latency_s=0.4)
    send = one.send

    def twice(node, to, body):
        send(node, to, body)
        if isinstance(body, Forward):
            one.push(one.now + 2.2, to, Received(node, body))

    one.send = twice
    end = one.run()
    committed = next(at for at, (node, event, _) in enumerate(end.kept) if node == "edge/1" and _is(event, Committed))
    batch = _frozen_at(end)
    before = [e.body.seq for node, _, out in end.kept[:committed] for e in out
              if isinstance(e, Send) and isinstance(e.body, Backward) and e.to == "device/0"]  # fmt: skip
    assert batch not in before
    assert batch - 1 in before
    assert end.versions == one_move().run().versions


def _is(event, kind):
    return isinstance(event, Received) and isinstance(event.body, kind)


def _frozen_at(end):
    """The batch whose gradient was withheld: the last the old edge has trained."""
    trained = [dict(e.config)["seq"] for node, _, out in end.kept if node == "edge/0" for e in out
               if isinstance(e, Run) and e.key[1] == "device/0"]  # fmt: skip
    return max(trained)


# At the source: what a field decides


def outcome(monkeypatch, name, u=False, **more):
    """All that is to be seen of a run in which the source itself has this field wrong, and signs for it."""
    last = copies.last_of

    def lies(edge, state, leave, session, gradient, alone=False):
        session = bent(session, name) if name else session
        return last(edge, state, leave, session, gradient, alone)

    monkeypatch.setattr(copies, "last_of", lies)
    one = one_move(u, replace(EDGE, patience_s=8.0, tries=1), **more)
    try:
        end = one.run()
    except Exception as error:  # whatever a work says of what cannot be computed
        return type(error).__name__
    finally:
        monkeypatch.setattr(copies, "last_of", last)
    owners = {device: (owner.epoch, owner.edge) for device, owner in end.states["central"].owners.items()}
    asked = [(e.work, sorted(e.config.items()), e.key) for _, _, out in end.kept for e in out if isinstance(e, Run)]
    return end.versions, end.updates, owners, asked, end.reason


DEAD_LETTERS = ("steps", "between")
"""The device says the steps with every batch; what came between is read where a device goes back, see below."""


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in DEAD_LETTERS])
def test_a_source_that_has_any_one_field_wrong_does_not_end_as_one_that_has_it_right(monkeypatch, name):
    right = outcome(monkeypatch, None)
    assert right == outcome(monkeypatch, None)
    assert right[2]["device/0"] == (1, "edge/1")
    assert outcome(monkeypatch, name) != right


def test_what_came_between_is_read_where_the_device_has_to_go_back_to_it(monkeypatch):
    def found(name):
        gone = []

        def drop(src, to, body):
            gone.extend([body] if isinstance(body, Ready) else [])
            return bool(gone) and "edge/0" in (src, to)

        return outcome(monkeypatch, name, u=True, drop=drop)

    right = found(None)
    assert right == found(None)
    assert right[0] == outcome(monkeypatch, None, u=True)[0]
    assert right[4] == "rounds"
    assert found("between")[0] != right[0]


# Bytes alone

PLAIN = (bytes, str, int, float)


@pytest.mark.parametrize(
    "policy",
    [Restart(), StopAndCopy(), PreCopy(2), PreCopy(2, replay=False), StopAndCopy("relay"), StopAndCopy("carry")],
)
def test_between_edges_nothing_crosses_but_bytes_text_and_numbers(policy):
    if policy.route == "carry":
        pytest.importorskip("cryptography")
    end = one_move(edge=replace(EDGE, policy=policy), drop=None if policy.route == "direct" else apart).run()
    assert end.states["central"].owners["device/0"].edge == "edge/1"
    said = [(node, e.to, e.body) for node, _, out in end.kept for e in out if isinstance(e, Send)]
    crossing = [body for src, to, body in said if apart(src, to, body)]
    crossing += [body.body for src, _, body in said if isinstance(body, Relay) and src == "central"]
    crossing += [body for _, _, body in said if isinstance(body, Carry | Committed)]
    assert len(crossing) > 3
    for body in crossing:
        for field in dataclass_fields(body):
            value = getattr(body, field.name)
            parts = [getattr(value, f.name) for f in dataclass_fields(Ticket)] if isinstance(value, Ticket) else [value]
            assert all(isinstance(part, PLAIN) for part in parts), f"{type(body).__name__}.{field.name}"
    if isinstance(policy, PreCopy):
        assert any(isinstance(body, Pre) for body in crossing)


def apart(src, to, body):
    return src.startswith("edge/") and to.startswith("edge/")


@pytest.mark.parametrize("kind", [Pre, Final])
def test_batches_that_do_not_come_to_the_session_that_was_meant_are_not_acknowledged(kind):
    """They cross instead of what they have changed; here they come to something else than the source has said."""
    most = 4 if kind is Pre else 1  # all pages of the first copy
    edge, spoilt = replace(EDGE, policy=PreCopy(3), page_bytes=60), []
    one = one_move(edge=edge, latency_s=0.4, steps=9)
    send = one.send

    def through(node, to, body):
        if isinstance(body, kind) and body.batches and len(spoilt) < most:
            spoilt.append(body)
            body = replace(body, digest="0" * 32)
        send(node, to, body)

    one.send = through
    end = one.run()
    assert len(spoilt) == most
    assert [body.reason for _, body in sent(end, Reject)] == ["reference"]
    assert end.versions == one_move(edge=edge, steps=9).run().versions
    assert end.states["central"].owners["device/0"].edge == "edge/1"
