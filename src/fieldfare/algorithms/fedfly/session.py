"""A session: all that an edge knows of one device's training in a round, and its encoded form.

Here: the state and its tensors. Not here: who owns it (`held`) and how it crosses (`leave`, `arrive`). Invariant: a
session built from `blob` alone goes on to the same bits as the one it was made of; what training reads is in here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.algorithms.fedfly import tensors
from fieldfare.algorithms.fedfly.messages import Plan
from fieldfare.algorithms.fedfly.tensors import CAP_BYTES, Array, Lossy
from fieldfare.algorithms.fedfly.widths import layout_at
from fieldfare.core.errors import PeerError, UsageError
from fieldfare.core.params import Layout, Params, View

F32 = NDArray[np.float32]

NO_SLOTS = np.zeros(0, np.float32)
"""Optimiser slots of a session that has not taken a step: the work makes its own from nothing."""
_TEXTS = ("job", "device", "model_hash", "cut", "tail", "key")
_WHOLE = ("round", "epoch", "size", "stop", "steps", "next", "position")
_REAL = ("loss", "samples", "expires_s")


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """The server half of `device` in `round`, before batch number `next` of `steps`.

    `model_hash`: of the layout of the device's model, both halves; `cut`: where it is cut, by name: the server has
    parameters `size` to `stop`, in a U up to the `tail`. `level`: of the nodes' view, where that model is a part of the
    global one. `steps` is 0 until the device has said. `upper` float32 `[stop - size]`; `slots`
    float32 `[S]`, the optimiser's (empty: none yet); `position`: the round at which the schedule of the learning rate
    is; `key`: the randomness of the server half, of which every batch uses its own part. `grad`: gradient of batch
    `next - 1` as it went down, and in a U what came `between` (None: none, or left behind). `loss`: sum over the
    `samples` examples so far. `lower` float32 `[P - (stop - size)]`: the device half, once the device has finished.
    `epoch`: of ownership. `expires_s`: a parked session is dropped then (absolute seconds).
    """

    job: str
    device: str
    round: int
    epoch: int
    model_hash: str
    cut: str
    tail: str
    size: int
    stop: int
    steps: int
    next: int
    upper: F32
    slots: F32 = field(default_factory=lambda: NO_SLOTS)
    position: int = 0
    key: str = ""
    grad: Array | None = None
    between: Array | None = None
    loss: float = 0.0
    samples: float = 0.0
    lower: F32 | None = None
    expires_s: float = float("inf")
    level: int | None = None

    @property
    def finished(self) -> bool:
        return self.lower is not None

    @property
    def words(self) -> tuple[str, ...]:
        """The key of the randomness of the server half, as a `Run` takes it."""
        return tuple(self.key.split("\x1f"))

    def model(self, layout: Layout) -> Params:
        """The server half as a model; `layout` is that of both halves."""
        return Params(self.upper, halves(layout, self.size, self.stop)[1])


def layout_hash(layout: Layout) -> str:
    """16 hex digits of names and shapes: two nodes with the same have the same tensors at the same places."""
    text = ";".join(f"{n}{s}" for n, s in zip(layout.names, layout.shapes, strict=True))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def halves(layout: Layout, size: int, stop: int) -> tuple[Layout, Layout]:
    """The layouts of the device half, all but parameters `size` to `stop`, and of the server half.

    Errors: `UsageError` where a cut is within a tensor, or one half is empty.
    """
    if size not in layout.offsets[1:-1]:
        raise UsageError(
            f"a cut behind {size} parameters is within a tensor, or leaves one side empty: use a legal one."
        )
    if stop not in layout.offsets[1:] or stop <= size:
        raise UsageError(f"a tail from parameter {stop} on is within a tensor, or before the cut: use another.")
    a, b = layout.offsets.index(size, 1), layout.offsets.index(stop, 1)
    own = Layout((*layout.names[:a], *layout.names[b:]), (*layout.shapes[:a], *layout.shapes[b:]))
    return own, Layout(layout.names[a:b], layout.shapes[a:b])


def device_half(base: Params, size: int, stop: int) -> Params:
    """The device half of a whole model: both its ranges, one after the other."""
    vector = np.concatenate([base.vector[:size], base.vector[stop:]])
    return Params(vector, halves(base.layout, size, stop)[0])


def joined(session: Session, total: int) -> F32:
    """The whole vector `[total]` of a session that is finished; of one that is not, zeros stand for the device half."""
    lower = session.lower
    if lower is None:
        lower = np.zeros(total - len(session.upper), np.float32)
    return np.concatenate([lower[: session.size], session.upper, lower[session.size :]])


def opened(job: str, device: str, round_: int, epoch: int, base: Params, plan: Plan) -> Session:
    """A session at the start of a round, from `base`, the global model or the device's part of it.

    The optimiser begins anew.
    """
    key = "\x1f".join(("split", device, str(round_)))
    stop = plan.stop or base.size
    return Session(
        job, device, round_, epoch, layout_hash(base.layout), plan.cut, plan.tail, plan.size, stop, plan.steps, 0,
        base.vector[plan.size : stop], NO_SLOTS, round_, key, level=plan.level,
    )  # fmt: skip


def fields(session: Session, gradient: bool = True) -> dict[str, Array]:
    """Every field as a tensor, by name; absent where it is None, or where the `gradient` is to be left behind."""
    out: dict[str, Array] = {}
    for name in _TEXTS:
        out[name] = np.frombuffer(str(getattr(session, name)).encode(), np.uint8)
    for name in _WHOLE:
        out[name] = np.array(getattr(session, name), np.int64)
    for name in _REAL:
        out[name] = np.array(getattr(session, name), np.float64)
    if session.level is not None:
        out["level"] = np.array(session.level, np.int64)
    out["upper"], out["slots"] = session.upper, session.slots
    if session.lower is not None:
        out["lower"] = session.lower
    if gradient:
        out |= {name: value for name in ("grad", "between") if (value := getattr(session, name)) is not None}
    return out


def reference(base: Params, size: int, stop: int) -> dict[str, Array]:
    """What both edges know of every session of a round with that cut of `base`: the server half it started from."""
    return {"upper": base.vector[size:stop]}


def to_blob(
    session: Session, against: dict[str, Array] | None = None, lossy: Lossy = "none", gradient: bool = True,
    level: int = 1,
) -> bytes:  # fmt: skip
    """The session as bytes, as a difference from `against` (tensors) where given; `level` as in `tensors.encode`."""
    return tensors.encode(fields(session, gradient), against, lossy, level)


def from_blob(
    blob: bytes, layout: Layout, against: dict[str, Array] | None = None, cap_bytes: int = CAP_BYTES, src: str = "peer",
    view: View | None = None,
) -> Session:  # fmt: skip
    """The session behind `blob`, built from nothing else; `layout` is the job's whole model, `view` its levels.

    Errors: `PeerError` for bytes that are no session, or not one of this model.
    """
    found = tensors.decode(blob, against, cap_bytes, src)

    def wrong(reason: str) -> PeerError:
        return PeerError(src, "session", reason)

    named = (*_TEXTS, *_WHOLE, *_REAL, "upper", "slots")
    missing = [name for name in named if name not in found]
    if missing or set(found) - {*named, "lower", "grad", "between", *(("level",) if view is not None else ())}:
        raise wrong(f"fields {', '.join(missing) or 'unknown'} are missing or too many")
    values: dict[str, Any] = {}
    try:
        for name in _TEXTS:
            values[name] = _of(found[name], np.uint8, 1).tobytes().decode()
        for name in (*_WHOLE, "level"):
            if name in found:
                values[name] = int(_of(found[name], np.int64, 0))
        for name in _REAL:
            values[name] = float(_of(found[name], np.float64, 0))
        for name in ("upper", "slots", "lower"):
            if name in found:
                values[name] = _of(found[name], np.float32, 1)
        for name in ("grad", "between"):
            if name in found:
                values[name] = _of(found[name], np.float32, max(found[name].ndim, 1))
    except (UnicodeDecodeError, ValueError) as error:
        raise wrong(str(error)) from None
    session = Session(**values)
    try:
        layout = layout_at(view, session.level, layout)
    except (IndexError, KeyError, ValueError):
        raise wrong(f"there is no level {session.level}") from None
    if session.model_hash != layout_hash(layout):
        raise wrong(f"it is of another model ({session.model_hash} is not {layout_hash(layout)})")
    legal = session.size in layout.offsets[1:-1] and session.stop in layout.offsets[1:]
    if not legal or session.upper.shape != (session.stop - session.size,):
        raise wrong(f"a server half of {session.upper.shape} from {session.size} to {session.stop} of {layout.size}")
    if session.lower is not None and session.lower.shape != (layout.size - len(session.upper),):
        raise wrong(f"a device half of {session.lower.shape} before a cut at {session.size}")
    if session.next < 0 or (session.steps and session.next > session.steps):
        raise wrong(f"batch {session.next} of {session.steps}")
    return session


def digest(session: Session, gradient: bool = True) -> str:
    """32 hex digits of every field of the session."""
    return tensors.digest(fields(session, gradient)).hex()


def owned(session: Session, epoch: int) -> Session:
    """The same session under another epoch of ownership."""
    return replace(session, epoch=epoch)


def _of(value: Array, dtype: Any, ndim: int) -> Array:
    if value.dtype != np.dtype(dtype) or value.ndim != ndim:
        raise ValueError(f"{value.dtype} of {value.ndim} dimensions stands for {np.dtype(dtype)} of {ndim}")
    return value
