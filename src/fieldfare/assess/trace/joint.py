"""Chances of Wi-Fi, battery and charging together, by hour of the week and platform, for sessions that do not tell.

States are known for a part of the sessions; the others are drawn with the shares found there (FLINT, section 3.2: "a
weighted coin flip"). They are estimated jointly: phones on Wi-Fi are charged more often. Here: the estimate, its
uncertainty, and what one coin makes of it. Not here: counting (`part`), the coin (`sql`). Invariants: the chance that
all asked states hold has a Beta(1, 1) prior; what is known of a session is never drawn, but the rest is drawn given it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import log1p, sqrt
from typing import Any

from fieldfare.core.errors import UsageError

SCALE = 1 << 20
"""Logarithms of chances are counted in these parts, so that their sums are exact."""

DEVICES = 1 << 30
"""Expected numbers of devices are counted in these parts."""

_Z90 = 1.6448536269514722
Counted = Mapping[tuple[Any, ...], int]


@dataclass(frozen=True, slots=True)
class Chance:
    """What the coin does to a session of one (hour, platform, code).

    `steps`: chances up to and with each outcome, ascending, the first that all unknown states hold. `packed`: outcomes
    as three bits each. `mean`, `low`, `high`: of the chance that all asked states hold, posterior mean and 5th to 95th
    percentile (normal approximation); `variance` of the posterior.
    """

    steps: tuple[float, ...]
    packed: int
    mean: float
    low: float
    high: float
    variance: float


@dataclass(frozen=True)
class Joint:
    """Chances by (hour of the week, platform, code), and what they rest on.

    `known` sessions told all that is asked, `unknown` did not; `thin`: hours and platforms with fewer than 10 known.
    `clustered`: variance of the share of known sessions that meet all, between clients: one's sessions are alike, so
    that it is far above that of so many tosses.
    """

    states: tuple[str, ...]
    chances: Mapping[tuple[int, str, int], Chance]
    known: int
    unknown: int
    thin: int
    clustered: float = 0.0

    def rows(self) -> list[tuple[Any, ...]]:
        """As rows of a table: hour, platform, code, seven steps (2 beyond the last), packed; -log(1 - mean) in parts of
        `SCALE`, low in parts of `DEVICES`, -log(1 - high) in parts of `SCALE`."""
        return [
            (*key, *one.steps, *(2.0,) * (7 - len(one.steps)), one.packed, _parts(one.mean),
             round(one.low * DEVICES), _parts(one.high))
            for key, one in self.chances.items()
        ]  # fmt: skip


def joint_of(states: tuple[str, ...], counted: Counted, alike: Mapping[str, int] | None = None) -> Joint:
    """From the number of sessions by (hour, platform, code) and `alike`, sums over clients (see `part`).

    Raises `UsageError` where sessions leave states open and none tells all that is asked.
    """
    known = sum(n for (*_, code), n in counted.items() if 2 not in digits(code, len(states)))
    unknown = sum(counted.values()) - known
    if unknown and not known:
        raise UsageError(
            f"no session of the log tells {' and '.join(states)}: how often that holds cannot be estimated; leave the "
            "criterion out, or log it for some sessions."
        )
    cells: dict[tuple[int, str], dict[tuple[int, ...], int]] = {}
    codes: dict[tuple[int, str], set[int]] = {}
    for (hour, platform, code), n in counted.items():
        held = digits(code, len(states))
        cell = cells.setdefault((int(hour), str(platform)), {})
        if 2 in held:
            codes.setdefault((int(hour), str(platform)), set()).add(int(code))
        else:
            cell[held] = cell.get(held, 0) + int(n)
    chances = {
        (*where, code): _chance(cells[where], digits(code, len(states)))
        for where, held in sorted(codes.items())
        for code in sorted(held)
    }
    thin = sum(sum(cells[where].values()) < 10 for where in codes)
    return Joint(states, chances, known, unknown, thin, _clustered(alike or {}))


def _clustered(sums: Mapping[str, int]) -> float:
    """Variance of the ratio of sums k / n over clients: sum (k - p n)^2 / (sum n)^2."""
    n = sums.get("n", 0)
    if not n:
        return 0.0
    p = sums["k"] / n
    return max(0.0, (sums["kk"] - 2.0 * p * sums["nk"] + p * p * sums["nn"]) / float(n) ** 2)


def digits(code: int, k: int) -> tuple[int, ...]:
    """The outcome of each of `k` states in a code.

    >>> digits(7, 2)
    (1, 2)
    """
    return tuple(code // 3**i % 3 for i in range(k))


def _chance(cell: Mapping[tuple[int, ...], int], held: tuple[int, ...]) -> Chance:
    """A Dirichlet posterior over all outcomes: 1 where all hold, 1 shared by the others, plus the counts."""
    k = len(held)
    prior = {out: 1.0 if all(out) else 1.0 / (2**k - 1) for out in product((0, 1), repeat=k)}
    able = [out for out in prior if all(h in (2, o) for h, o in zip(held, out, strict=True))]
    able.sort(key=lambda out: tuple(-o for o in out))
    weight = [prior[out] + cell.get(out, 0) for out in able]
    total = sum(weight)
    steps, at = [], 0.0
    for one in weight[:-1]:
        at += one / total
        steps.append(at)
    packed = sum(sum(o << i for i, o in enumerate(out)) << (3 * rank) for rank, out in enumerate(able))
    mean = weight[0] / total if all(able[0]) else 0.0
    variance = mean * (1.0 - mean) / (total + 1.0)
    wide = _Z90 * sqrt(variance)
    return Chance(tuple(steps), packed, mean, max(0.0, mean - wide), min(1.0, mean + wide), variance)


def _parts(chance: float) -> int:
    return round(-log1p(-min(chance, 1.0 - 1e-12)) * SCALE)
