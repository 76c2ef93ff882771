"""What crosses of a session, as bytes: live copies in pages, and the last part, whichever way is shortest.

Here: pure functions of sessions and batches. Not here: when they are sent (`leave`) and taken (`arrive`). Invariant:
whatever the form, the session that comes out has the digest of the one that went in, or it is not acknowledged.

The last part may be the session's difference from the copy before, or (ours) the batches trained since: the
destination trains them again, to the same bits. Every number of a session changes in every step, so a difference
stays large, while the batches are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldfare.algorithms.fedfly import serve, tensors
from fieldfare.algorithms.fedfly.held import Batch, Leave, State, checksum
from fieldfare.algorithms.fedfly.messages import Ends, Forward
from fieldfare.algorithms.fedfly.policies import PreCopy, StopAndCopy
from fieldfare.algorithms.fedfly.session import Session, fields, from_blob, reference, to_blob
from fieldfare.algorithms.fedfly.tensors import Array
from fieldfare.core.errors import PeerError

if TYPE_CHECKING:
    from fieldfare.algorithms.fedfly.edge import Edge

MOST_PAGES = 1 << 16


def pages_of(blob: bytes, page_bytes: int) -> int:
    """How many pages a blob has, at least one."""
    return max(1, -(-len(blob) // page_bytes))


def base_of(edge: Edge, state: State, leave: Leave, session: Session) -> dict[str, Array] | None:
    """What a copy may be a difference from: the round's global model, where both edges hold it."""
    if leave.against != session.round or state.base is None or state.round != session.round:
        return None
    return reference(serve.base_of(edge, state, session.level), session.size, session.stop)


def copy_of(edge: Edge, state: State, leave: Leave, session: Session) -> tuple[bytes, int]:
    """(a live copy, how many batches it is made of): a difference from the one before, or from the global model.

    Without the last gradient; 0 batches: the difference itself.
    """
    against = base_of(edge, state, leave, session) if leave.copied is None else fields(leave.copied, False)
    blob, batches = to_blob(session, against, gradient=False), batches_of(leave, session)
    return (batches, len(leave.log)) if batches is not None and len(batches) < len(blob) else (blob, 0)


def last_of(
    edge: Edge, state: State, leave: Leave, session: Session, gradient: bool, alone: bool = False
) -> tuple[bytes, Session]:
    """The frozen session as bytes, and as it will come out; `alone`: without anything the destination must hold."""
    policy, against = leave.policy, None
    packed = isinstance(policy, PreCopy) or (isinstance(policy, StopAndCopy) and policy.compress)
    if leave.copied is not None and leave.copied.round == session.round and not alone:
        against = fields(leave.copied, False)
    elif packed and not alone:
        against = base_of(edge, state, leave, session)
    lossy = policy.lossy if isinstance(policy, PreCopy) else "none"
    blob = to_blob(session, against, lossy, gradient, 1 if packed else 0)
    if lossy == "none":
        return blob, session
    return blob, from_blob(blob, state.model.layout, against, view=edge.view)


def batches_of(leave: Leave, session: Session) -> bytes | None:
    """The batches trained since the last copy as bytes; None where they are not all known, or the policy is another."""
    copied, policy = leave.copied, leave.policy
    if copied is None or not isinstance(policy, PreCopy) or policy.lossy != "none" or not policy.replay:
        return None
    seqs = [batch.forward.seq for batch in leave.log]
    if copied.round != session.round or seqs != list(range(copied.next, session.next)) or not seqs:
        return None
    out: dict[str, Array] = {"expires_s": np.array(session.expires_s), "first": np.array(seqs[0], np.int64)}
    for at, batch in enumerate(leave.log):
        out |= {f"act/{at}": batch.forward.act, f"y/{at}": batch.forward.y}
        out[f"steps/{at}"] = np.array(batch.forward.steps, np.int64)
        if batch.ends is not None and batch.between is not None:
            out |= {f"end/{at}": batch.ends.grad, f"between/{at}": batch.between}
            out[f"loss/{at}"] = np.array(batch.ends.loss)
    return tensors.encode(out, fields(copied, False))


def batches_in(blob: bytes, copied: Session, cap_bytes: int, src: str) -> tuple[tuple[Batch, ...], float]:
    """(batches to train behind `copied`, expiry of the session). Errors: `PeerError` for anything else."""
    found = tensors.decode(blob, fields(copied, False), cap_bytes, src)
    out: list[Batch] = []
    try:
        if _number(found, "first") != copied.next:
            raise ValueError(f"batches from {_number(found, 'first')} on, and the copy is before {copied.next}")
        while f"act/{len(out)}" in found:
            at = len(out)
            act, y, seq = found[f"act/{at}"], found[f"y/{at}"], copied.next + at
            steps = int(_number(found, f"steps/{at}"))
            up = Forward(copied.round, copied.epoch, seq, steps, act, y, checksum(act, y))
            ends = None
            if f"end/{at}" in found:
                grad = found[f"end/{at}"]
                loss = float(_number(found, f"loss/{at}"))
                ends = Ends(copied.round, copied.epoch, seq, grad, loss, checksum(grad))
            out.append(Batch(up, found.get(f"between/{at}"), ends))
        if not out:
            raise ValueError("there are no batches")
        return tuple(out), float(_number(found, "expires_s"))
    except (KeyError, ValueError, TypeError) as error:
        raise PeerError(src, "batches", str(error)) from None


def _number(found: dict[str, Array], name: str) -> Any:
    if found[name].ndim:
        raise ValueError(f"{name} is no number")
    return found[name][()]


def whole(pages: Sequence[bytes | None]) -> bytes | None:
    """The blob of all pages; None while one is missing."""
    parts = [page for page in pages if page is not None]
    return b"".join(parts) if len(parts) == len(pages) else None
