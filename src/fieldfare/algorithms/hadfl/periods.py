"""How many local steps each device takes between two synchronisations, from how long one takes it.

HADFL aligns devices on a hyperperiod, the least common multiple of their times (a term of real-time scheduling). Here:
that (`hyperperiod`), and the deadline that replaces it where real timings have no small multiple (`deadline`, our
default). Not here: measuring. Invariant: every device takes at least one step, and idle shares are those of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from fieldfare.core.errors import UsageError

Mode = Literal["deadline", "lcm", "even"]


@dataclass(frozen=True, slots=True)
class Period:
    """A period of `seconds`; `counts[k]` steps (or local epochs) by device k; how it was found."""

    seconds: float
    counts: tuple[int, ...]
    mode: Mode

    def idle(self, times: Sequence[float]) -> tuple[float, ...]:
        """Planned idle share of each device, 1 - e_k c_k / H; negative for one that needs longer than the period."""
        return tuple(1.0 - e * c / self.seconds for e, c in zip(self.counts, times, strict=True))


def _check(times: Sequence[float]) -> None:
    if not times or not all(0.0 < t < math.inf for t in times):
        raise UsageError(f"times of {list(times)} seconds: each device needs a finite time above zero.")


def hyperperiod(times: Sequence[float], most: int = 16, rho: float = 0.1, misfit: float = 0.25) -> Period | None:
    """The hyperperiod H = d lcm(q_k) with E_k = lcm / q_k, q_k = max(1, round(T_k / d)); None where none fits.

    The multiple explodes for real timings (7, 11, 13 give 1001). Our reading takes the base d that makes
    max_k |E_k T_k - H| / H + rho lcm / most least, of all d = T_k / i with i <= `most`, and refuses multiples above
    `most` and plans whose first term is above `misfit`.

    >>> hyperperiod([1.0, 1.0, 3.0, 3.0]).counts, hyperperiod([1.0, 2.0, 2.0, 4.0]).counts
    ((3, 3, 1, 1), (4, 2, 2, 1))
    """
    _check(times)
    best: tuple[float, float, Period] | None = None
    for base in sorted({t / i for t in times for i in range(1, most + 1)}):
        q = [max(1, round(t / base)) for t in times]
        multiple = 1
        for one in q:
            multiple = math.lcm(multiple, one)
            if multiple > most:
                break
        else:
            seconds = base * multiple
            counts = tuple(multiple // one for one in q)
            off = max(abs(e * t - seconds) / seconds for e, t in zip(counts, times, strict=True))
            score = off + rho * multiple / most
            if off <= misfit and (best is None or (score, seconds) < best[:2]):
                best = (score, seconds, Period(seconds, counts, "lcm"))
    return None if best is None else best[2]


def deadline(step_s: Sequence[float], epoch_steps: Sequence[int]) -> Period:
    """H = the slowest local epoch, max_k c_k n_k; e_k = floor(H / c_k) steps of c_k = `step_s[k]` seconds.

    >>> deadline([1.0, 3.0], [22, 22]).counts
    (66, 22)
    """
    _check(step_s)
    return within(step_s, max(c * max(n, 1) for c, n in zip(step_s, epoch_steps, strict=True)))


def within(step_s: Sequence[float], seconds: float) -> Period:
    """As many steps of each device as end within `seconds`.

    >>> within([1.0, 3.0], 10.0).counts
    (10, 3)
    """
    _check(step_s)
    return Period(seconds, tuple(max(1, fitting(seconds, c)) for c in step_s), "deadline")


def fitting(seconds: float, step_s: float) -> int:
    """Whole steps of `step_s` seconds within `seconds`; a hair more counts as whole.

    >>> fitting(3.0, 0.1), fitting(-1.0, 0.1)
    (30, 0)
    """
    return max(0, math.floor(seconds / step_s * (1.0 + 1e-9)))


def plan(step_s: Sequence[float], epoch_steps: Sequence[int], mode: Mode = "deadline", most: int = 16) -> Period:
    """Local steps of every device: by the deadline, by the hyperperiod of local epochs (by the deadline where none is
    found), or "even": one local epoch each however long it takes, as decentralised FedAvg has it.

    >>> plan([1.0, 3.0], [22, 22], "even").counts
    (22, 22)
    """
    _check(step_s)
    epoch_steps = [max(n, 1) for n in epoch_steps]
    epochs = [c * n for c, n in zip(step_s, epoch_steps, strict=True)]
    if mode == "even":
        return Period(max(epochs), tuple(epoch_steps), "even")
    if mode == "lcm":
        found = hyperperiod(epochs, most)
        if found is not None:
            counts = tuple(e * n for e, n in zip(found.counts, epoch_steps, strict=True))
            return Period(found.seconds, counts, "lcm")
    return deadline(step_s, epoch_steps)


def reach(counts: Sequence[float], shares: Sequence[float], most: float | None) -> float:
    """How many local steps a mean of deltas per step is worth, of `counts` steps and `shares` b_k that sum to 1.

    None: their mean, as FedNova's tau_eff with even shares (Wang et al., NeurIPS 2020, section 4). Ours: the number of
    steps in the cycle of a mean step, sum(b e**2) / sum(b e), which is what averaging by steps moves; yet at most
    `most` times the harmonic mean, for a slow device's few steps are stretched to that length, and training diverged in
    all our trials with twice the harmonic mean, long periods and unlike devices, in none with 1.75 times.

    >>> reach([66, 66, 22, 22], [0.25] * 4, None), reach([66, 66, 22, 22], [0.25] * 4, 1.75)
    (44.0, 55.0)
    """
    mean = sum(b * e for b, e in zip(shares, counts, strict=True))
    if most is None:
        return mean
    harmonic = 1.0 / sum(b / e for b, e in zip(shares, counts, strict=True))
    return min(sum(b * e * e for b, e in zip(shares, counts, strict=True)) / mean, most * harmonic)


def typical(pieces: Sequence[float]) -> tuple[float, float]:
    """The median of some timings and their median absolute deviation from it.

    >>> typical([1.0, 1.1, 9.0])
    (1.1, 0.10000000000000009)
    """
    middle = median(pieces)
    return middle, median(abs(one - middle) for one in pieces)


def drifted(planned_s: float, measured_s: float, share: float = 0.2) -> bool:
    """Whether a step takes a device more than `share` longer or shorter than planned."""
    return abs(measured_s - planned_s) > share * planned_s


def utilisation_bound(powers: Sequence[float]) -> float:
    """The most that unlike step counts can gain over lock-step with equal shards, sum(p) / (K min p).

    >>> utilisation_bound([3, 3, 1, 1]), utilisation_bound([4, 2, 2, 1])
    (2.0, 2.25)
    """
    return sum(powers) / (len(powers) * min(powers))
