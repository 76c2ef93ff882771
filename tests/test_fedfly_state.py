"""A session's encoded form: exact, complete, built from nothing else, and closed to bytes from strangers."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import fields as dataclass_fields
from dataclasses import replace

import numpy as np
import pytest
from fedfly_toy import BATCH, HIDDEN, LAYOUT, MODEL, SIZE, WORKS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fieldfare.algorithms.fedfly import seal, session, tensors, tickets
from fieldfare.algorithms.fedfly.messages import Plan
from fieldfare.algorithms.fedfly.session import Session
from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import PeerError, UsageError
from fieldfare.core.work import Cohort

KINDS = (np.float32, np.float64, np.int64, np.int32, np.uint64, np.uint8, np.bool_, np.float16)
arrays = st.sampled_from(KINDS).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40))
)


def same(one, other):
    assert {*one} == {*other}
    for name, value in one.items():
        assert (value.dtype, value.shape) == (other[name].dtype, other[name].shape)
        assert value.tobytes() == other[name].tobytes()


@settings(max_examples=150, deadline=None)
@given(one=arrays, near=st.booleans(), level=st.sampled_from([0, 1, 6]))
def test_tensors_come_out_in_every_bit_alone_and_as_a_difference(one, near, level):
    reference = {"x": np.roll(one, 1) if near else np.zeros(3), "z": np.ones(2)}
    held = {"x": one, "y": np.float32([1, np.nan, -0.0, np.inf])}
    same(held, tensors.decode(tensors.encode(held, None, level=level)))
    same(held, tensors.decode(tensors.encode(held, reference, level=level), reference))


def test_a_difference_from_a_near_model_is_far_smaller_than_the_model():
    made = np.random.default_rng(0)
    base = made.standard_normal(100_000).astype(np.float32)
    near = base + np.float32(1e-4) * made.standard_normal(100_000).astype(np.float32)
    whole, step = tensors.encode({"w": near}), tensors.encode({"w": near}, {"w": base})
    assert len(step) < 0.7 * near.nbytes < len(whole)


@pytest.mark.parametrize(("lossy", "share", "error"), [("fp16", 0.51, 1e-3), ("int8", 0.27, 2e-2)])
def test_lossy_rows_are_small_and_near(lossy, share, error):
    made = np.random.default_rng(0)
    w, base = made.standard_normal((2, 5000)).astype(np.float32)
    blob = tensors.encode({"w": w, "i": np.arange(3)}, {"w": base}, lossy)
    out = tensors.decode(blob, {"w": base})
    assert len(blob) < share * w.nbytes + 200
    assert 0 < np.abs(out["w"] - w).max() < error * np.abs(w - base).max()
    np.testing.assert_array_equal(out["i"], np.arange(3))


def test_what_is_too_large_to_be_rounded_crosses_whole():
    w, base = np.float32([1.5, 1e5, 2.0]), np.zeros(3, np.float32)
    for lossy in ("fp16", "int8"):
        for bad in (w, np.float32([1.5, np.nan, 2.0])):
            np.testing.assert_array_equal(
                tensors.decode(tensors.encode({"w": bad}, {"w": base}, lossy), {"w": base})["w"], bad
            )


def test_the_reader_refuses_another_reference_other_bytes_and_sizes_beyond_its_cap():
    held = {"w": np.arange(1000, dtype=np.float32)}
    blob = tensors.encode(held, {"w": np.ones(1000, np.float32)})
    with pytest.raises(PeerError, match="does not hold"):
        tensors.decode(blob, {"w": np.zeros(1000, np.float32)})
    with pytest.raises(PeerError, match="does not hold"):
        tensors.decode(blob)
    with pytest.raises(PeerError, match="checksum"):
        tensors.decode(blob[:40] + b"\x01" + blob[41:], {"w": np.ones(1000, np.float32)})
    many = b"\x01w" + bytes([1, 0, 3]) + (2**32 - 1).to_bytes(4, "little") * 3 + (8).to_bytes(8, "little") + bytes(8)
    with pytest.raises(PeerError, match="larger than"):
        tensors.decode(resigned(tensors._HEAD.pack(b"FFTN", 1, 1, bytes(16)) + many))
    with pytest.raises(PeerError, match="larger than"):
        tensors.decode(tensors.encode({"w": np.zeros(1 << 20, np.float32)}), cap_bytes=1 << 20)
    with pytest.raises(UsageError, match="cannot be sent"):
        tensors.encode({"w": np.array(["text"])})


def resigned(body):
    return body + hashlib.blake2b(body, digest_size=16).digest()


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 400), put=st.binary(max_size=12), at=st.integers(0, 400))
def test_a_blob_altered_anywhere_and_signed_anew_is_read_or_refused_never_more(cut, put, at):
    blob = tensors.encode({"w": np.arange(50, dtype=np.float32), "n": np.array(7), "v": np.zeros(30)})[:-16]
    bent = resigned(blob[:at] + put + blob[at + len(put) : len(blob) - cut % 40])
    try:
        out = tensors.decode(bent, cap_bytes=1 << 16)
    except PeerError:
        return
    assert sum(value.nbytes for value in out.values()) <= 1 << 16


def test_a_packed_tensor_that_would_unfold_beyond_its_shape_is_refused_before_it_takes_memory():
    head = tensors._HEAD.pack(b"FFTN", 1, 1, bytes(16))
    bomb = zlib.compress(bytes(10_000_000))
    body = head + b"\x01w" + bytes([0, 1, 1]) + (16).to_bytes(4, "little") + len(bomb).to_bytes(8, "little") + bomb
    tracemalloc.start()
    try:
        with pytest.raises(PeerError, match="does not hold 64 bytes"):
            tensors.decode(resigned(body))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Sessions


def trained(steps=2):
    """A session some steps into a round: every field away from its default."""
    one = session.opened("job", "device/0", 3, 5, MODEL, Plan("first", SIZE, 6))
    for _ in range(steps):
        one = after(one)
    rest = {"lower": np.arange(SIZE, dtype=np.float32), "between": np.ones((BATCH, 2), np.float32)}
    return replace(one, expires_s=900.0, **rest)


def batch(seq):
    made = np.random.default_rng(seq)
    return made.standard_normal((BATCH, HIDDEN)).astype(np.float32), made.standard_normal(BATCH).astype(np.float32)


def after(one: Session) -> Session:
    """The session one batch later: all that training reads comes from its fields."""
    act, y = batch(one.next)
    inputs = {"act": act, "y": y} | ({"slots": one.slots} if one.slots.size else {})
    key = rng.keys(0, ("client", *one.words), np.zeros(1, np.int64))
    config = {"seq": one.next, "round": one.position, "cut": one.cut, "steps": one.steps}
    data = Block({"x": np.zeros((1, 4), np.float32)}, np.zeros(1, np.int64), np.array([0, 1]))
    out = WORKS["split/step"](
        Cohort(one.upper[None], np.zeros(1, np.int64), LAYOUT, np.zeros(1, np.int64), key, data, config, inputs)
    )
    loss = one.loss + float(out.metrics["loss_sum"][0])
    return replace(one, next=one.next + 1, upper=out.leaves["model"][0], slots=out.leaves["slots"][0],
                   grad=out.leaves["g"][0], loss=loss, samples=one.samples + BATCH)  # fmt: skip


def test_a_session_comes_out_whole_and_goes_on_to_the_same_bits():
    one = trained()
    for against in (None, session.reference(MODEL, SIZE, LAYOUT.size), session.fields(trained(1), False)):
        other = session.from_blob(session.to_blob(one, against), LAYOUT, against)
        assert session.digest(other) == session.digest(one)
        assert session.digest(after(other)) == session.digest(after(one))


OTHER = {
    "job": "other", "device": "device/1", "round": 4, "epoch": 6, "cut": "second", "steps": 7, "next": 3, "position": 4,
    "tail": "third", "key": "split\x1fdevice/1\x1f3", "loss": 1.0, "samples": 5.0, "expires_s": 1.0,
    "level": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in dataclass_fields(Session)])
def test_a_session_with_any_one_field_corrupted_is_refused_or_not_the_same(name):
    one = trained()
    value = OTHER.get(name)
    if name in ("upper", "slots", "grad", "lower", "between"):
        value = getattr(one, name).copy()
        value.reshape(-1).view(np.uint32)[0] ^= 1 << 20
    bent = replace(one, **{name: {"size": SIZE + 3, "stop": SIZE + 3, "model_hash": "0" * 16}.get(name, value)})
    if name in ("size", "stop", "model_hash", "level"):
        with pytest.raises(PeerError):
            session.from_blob(session.to_blob(bent), LAYOUT)
        return
    out = session.from_blob(session.to_blob(bent), LAYOUT)
    assert session.digest(out) != session.digest(one)
    if name in ("next", "upper", "slots", "position", "key"):
        assert after(out).upper.tobytes() != after(one).upper.tobytes(), f"training does not read {name}"


def test_no_byte_of_an_encoded_session_is_without_meaning():
    one = trained()
    blob = session.to_blob(one, level=0)
    for at in range(len(blob)):
        flipped = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        with pytest.raises(PeerError):
            session.from_blob(flipped, LAYOUT)
        if at >= len(blob) - 16:
            continue
        try:
            out = session.from_blob(resigned(flipped[:-16]), LAYOUT)
        except PeerError:
            continue
        assert session.digest(out) != session.digest(one), f"byte {at} may be anything"


def test_a_session_of_missing_strange_or_misshapen_fields_is_refused():
    good = session.fields(trained())
    for name in ("upper", "next", "key"):
        with pytest.raises(PeerError, match="fields"):
            session.from_blob(tensors.encode({k: v for k, v in good.items() if k != name}), LAYOUT)
    for change in (
        {"more": np.zeros(1)}, {"upper": np.zeros(2, np.float32)}, {"upper": np.zeros((4,), np.float64)},
        {"next": np.array(9)}, {"next": np.array(-1)}, {"round": np.array([1])}, {"lower": np.zeros(3, np.float32)},
        {"key": np.frombuffer(b"\xff\xfe", np.uint8)}, {"grad": np.zeros((2, 3))}, {"between": np.array(1)},
    ):  # fmt: skip
        with pytest.raises(PeerError):
            session.from_blob(tensors.encode({**good, **change}), LAYOUT)


CHILD = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from fedfly_toy import LAYOUT
from test_fedfly_state import after
from fieldfare.algorithms.fedfly import session
one = session.from_blob(sys.stdin.buffer.read(), LAYOUT)
sys.stdout.write(session.digest(after(after(one))))
"""


@pytest.mark.slow
def test_a_fresh_process_goes_on_from_the_bytes_alone_to_the_same_bits(request):
    one, here = trained(), str(request.path.parent)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, here], input=session.to_blob(one), capture_output=True, check=True
    )
    assert done.stdout.decode() == session.digest(after(after(one)))


# Tickets and seals


TICKET = tickets.Ticket("job", "device/0", "edge/0", "edge/1", 4, 2, "handover", "ab" * 16, 100.0)
CHANGES = {
    "job": "other", "device": "device/1", "src": "edge/2", "dst": "edge/2", "epoch": 5, "round": 3, "kind": "restart",
    "digest": "cd" * 16, "expires_s": 1e9, "withheld": True,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_ticket_with_any_field_changed_is_neither_signed_nor_countersigned(name):
    source, dest = tickets.key_of(b"secret", "edge/0"), tickets.key_of(b"secret", "edge/1")
    good = tickets.countersigned(tickets.signed(TICKET, source), dest)
    assert tickets.is_signed(good, source)
    assert tickets.is_countersigned(good, dest)
    assert not tickets.is_countersigned(good, source)
    own = tickets.key_of(b"secret", "device/0")
    assert tickets.is_told(tickets.told(good, own), own)
    assert not tickets.is_told(tickets.told(good, dest), own)
    bent = replace(good, **{name: CHANGES[name]})
    assert not tickets.is_signed(bent, source)
    assert not tickets.is_countersigned(bent, dest)
    assert not tickets.is_told(replace(tickets.told(good, own), **{name: CHANGES[name]}), own)


def test_the_signature_of_a_source_is_no_countersignature():
    key = tickets.key_of(b"secret", "edge/1")
    assert not tickets.is_countersigned(replace(TICKET, countersigned=tickets.signed(TICKET, key).signed), key)


def test_a_sealed_session_opens_for_its_receiver_alone_and_unaltered():
    pytest.importorskip("cryptography")
    mine, other = (seal.private_of(tickets.key_of(b"secret", f"edge/{i}")) for i in (1, 2))
    key, blob = tickets.key_of(b"secret", "edge/0"), session.to_blob(trained())
    sealed = seal.seal(blob, seal.public_of(mine), key, b"about")
    assert (
        sealed
        == seal.seal(blob, seal.public_of(mine), key, b"about")
        != seal.seal(blob, seal.public_of(mine), key, b"")
    )
    assert blob not in sealed
    assert len(sealed) == len(blob) + 48
    assert seal.unseal(sealed, mine, b"about") == blob
    bent = bytearray(sealed)
    bent[50] ^= 1
    for wrong in (
        (sealed, other, b"about"),
        (sealed, mine, b"else"),
        (bytes(bent), mine, b"about"),
        (b"", mine, b"about"),
    ):
        with pytest.raises(PeerError, match="sealed"):
            seal.unseal(*wrong)
