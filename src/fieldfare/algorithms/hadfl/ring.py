"""The arithmetic of a ring: chunks, who sends which at which hop, exact sums of integers, and frames.

n members cut their models in n chunks; n - 1 hops of reduce-scatter leave member i with the sum of chunk i + 1, and
n - 1 of all-gather hand the sums on. Here: all of that as functions. Not here: waiting, faults, agreement (`session`).
Invariant: sums are of integers in units of one `step` that all members share, so the mean depends on the members alone,
not on their order, the number of chunks, or who added first.

On integers: of 32 bits as many bytes as float32, and finer than it for the larger weights; the step is a power of two,
chosen so that no sum can overflow (`step_for`). The paper's ring adds floats; ours is exact, which is what lets
survivors of a restarted ring compare one checksum. Of 16 or 8 bits (ours) a value is one of 2 floor(most / n) + 1
levels, so that sums fit as well and both phases carry 2 or 1 bytes a value; what rounding and clipping leave out stays
with the member, for its next contribution.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

F32 = NDArray[np.float32]
Ints = NDArray[np.signedinteger[Any]]
Wire = Literal["int32", "int16", "int8"]

_ROOM = 4.0
_LEAST, _MOST = -60, 60


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One chunk on its way to the next member: `reduce` carries sums of some members, `gather` those of all.

    `run` and `cycle` name the ring, `epoch` its restart, `hop` counts 0 .. 2 (n - 1) - 1 over both phases.
    `contributors`: bitmap over the ring's members whose shares are in. `checksum` covers all of it; the length is the
    payload's. 62 bytes beside the payload. `counts`: in rings of unlike widths how many members are in the sums of each
    band, 8 bytes each; the payload is of the coordinates that one of them has.
    """

    run: int
    cycle: int
    epoch: int
    phase: str
    hop: int
    chunk: int
    contributors: int
    checksum: int
    payload: NDArray[Any]
    counts: tuple[int, ...] = ()


def hops(n: int) -> int:
    """Hops of a whole ring of n members, 2 (n - 1)."""
    return 2 * (n - 1)


def phase_of(hop: int, n: int) -> str:
    """Whether a hop belongs to reduce-scatter or all-gather."""
    return "reduce" if hop < n - 1 else "gather"


def sends(place: int, hop: int, n: int) -> int:
    """The chunk that the member at `place` sends at `hop`; it receives `sends(place - 1, hop, n)`.

    >>> [sends(0, hop, 3) for hop in range(4)], [sends(2, hop, 3) for hop in range(4)]
    ([0, 2, 1, 0], [2, 1, 0, 2])
    """
    return (place - hop) % n if hop < n - 1 else (place + n - hop) % n


def cuts(size: int, n: int) -> tuple[int, ...]:
    """Bounds `[n + 1]` of n chunks of a vector, sizes differing by at most one; some empty where size < n."""
    return tuple(size * i // n for i in range(n + 1))


def step_for(peak: float, members: int) -> float:
    """The unit of the sums of `members` models whose values are at most `peak`: a power of two.

    It leaves room for values four times as large, since peaks are told before the training that precedes the ring.
    Resolution: 2**-29 of the peak times the members, against 2**-24 of each value in float32.
    """
    if not peak > 0.0:
        return 2.0**_LEAST
    power = math.ceil(math.log2(members * _ROOM * peak)) - 31
    return 2.0 ** min(max(power, _LEAST), _MOST)


def levels(wire: Wire, members: int) -> int:
    """The largest integer that each of `members` may contribute, so that any sum fits in `wire`.

    >>> levels("int8", 2), levels("int8", 8), levels("int16", 8)
    (63, 15, 4095)
    """
    most = int(np.iinfo(wire).max) // members
    if most < 3:
        raise UsageError(f"{wire} for a ring of {members}: at most {int(np.iinfo(wire).max) // 3} members; use int16.")
    return most


def step_of(wire: Wire, peak: float, members: int) -> float:
    """The unit of the sums: `step_for` of 32 bits, and of fewer as coarse as takes `peak` to the last level."""
    if wire == "int32":
        return step_for(peak, members)
    return max(peak, 2.0**_LEAST) / levels(wire, members)


def fits(vector: F32, step: float, members: int, wire: Wire = "int32") -> bool:
    """Whether `members` vectors of this peak can be summed in units of `step`; fewer bits than 32 clip what cannot.

    No vector with a NaN or an infinity fits.
    """
    peak = float(np.abs(vector).max(initial=np.float32(0)))
    return math.isfinite(peak) and (wire != "int32" or (peak / step + 1.0) * members < 2.0**31)


def quantise(vector: F32, step: float, wire: Wire = "int32", members: int = 1) -> Ints:
    """Whole multiples of `step` `[P]`, each value rounded by at most half of it, and clipped below 32 bits."""
    whole = np.rint(vector.astype(np.float64) / step)
    if wire != "int32":
        most = levels(wire, members)
        whole = np.clip(whole, -most, most)
    return whole.astype(wire)


def mean_of(total: Ints, step: float, members: int | NDArray[np.float64]) -> F32:
    """The mean `[P]` behind a sum of `members` quantised vectors; of so many each, `[P]`, where widths are unlike."""
    return (total.astype(np.float64) * step / members).astype(np.float32)


def serial_mean(vectors: list[F32], step: float, wire: Wire = "int32") -> F32:
    """What a ring of these members gives, bit for bit, computed in one place."""
    total = np.zeros(len(vectors[0]), wire)
    for vector in vectors:
        total += quantise(vector, step, wire, len(vectors))
    return mean_of(total, step, len(vectors))


def seal(frame: Frame) -> Frame:
    """`frame` with the checksum of its header and payload."""
    return replace(frame, checksum=_sum(frame))


def sound(frame: Frame) -> bool:
    """Whether a frame is what its sender sealed."""
    return frame.checksum == _sum(frame)


def _sum(frame: Frame) -> int:
    f = frame
    head = f"{f.run} {f.cycle} {f.epoch} {f.phase} {f.hop} {f.chunk} {f.contributors} {f.payload.dtype.str}"
    head += f" {f.counts}" if f.counts else ""
    return zlib.crc32(np.ascontiguousarray(f.payload).tobytes(), zlib.crc32(head.encode()))


def fingerprint(vector: F32) -> str:
    """Sixteen hex digits by which members compare results."""
    return hashlib.blake2b(np.ascontiguousarray(vector).tobytes(), digest_size=8).hexdigest()


def ring_seconds(n: int, model_bytes: float, latency_s: float, bytes_per_s: float) -> float:
    """Time of a ring of n members over equal links, 2 (n - 1) (a + M / (n B))."""
    return hops(n) * (latency_s + model_bytes / (n * bytes_per_s))
