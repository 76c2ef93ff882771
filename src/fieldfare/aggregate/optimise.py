"""Transforms behind the fold: server momentum, the adaptive methods of FedOpt, learning rates and their decay.

What flows is an update u, added to the model; a paper's pseudo-gradient is -u, so its minus signs are gone here.
Not here: bias correction. FedOpt (Reddi et al., ICLR 2021, alg. 2) has none and starts the second moment at tau**2.
Invariant: arguments are left untouched, and a coordinate of weight 0 keeps its slots and gets update 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.chain import Weight, unheard
from fieldfare.core.errors import UsageError

F32 = NDArray[np.float32]
Moments: TypeAlias = tuple[F32, F32]


@dataclass(frozen=True, slots=True)
class Scale:
    """u <- factor * u; see `scale`."""

    factor: float

    def init(self, size: int) -> None:
        return None

    def update(self, u: F32, state: None, weight: Weight) -> tuple[F32, None]:
        return u * np.float32(self.factor), None


@dataclass(frozen=True, slots=True)
class Decay:
    """u <- rate ** (t // every) * u at update t = 0, 1, ...; see `decay`."""

    rate: float
    every: int

    def init(self, size: int) -> int:
        return 0

    def update(self, u: F32, state: int, weight: Weight) -> tuple[F32, int]:
        return u * np.float32(self.rate ** (state // self.every)), state + 1


@dataclass(frozen=True, slots=True)
class Bound:
    """u <- u * min(1, max_norm / ||u||); see `bound`."""

    max_norm: float

    def init(self, size: int) -> None:
        return None

    def update(self, u: F32, state: None, weight: Weight) -> tuple[F32, None]:
        length = float(np.sqrt(np.square(u, dtype=np.float64).sum()))
        return (u if length <= self.max_norm else u * np.float32(self.max_norm / length)), None


@dataclass(frozen=True, slots=True)
class Momentum:
    """v <- beta v + u; see `momentum`."""

    beta: float
    nesterov: bool

    def init(self, size: int) -> F32:
        return np.zeros(size, np.float32)

    def update(self, u: F32, state: F32, weight: Weight) -> tuple[F32, F32]:
        velocity = state * np.float32(self.beta)
        velocity += u
        out = velocity
        if self.nesterov:
            out = velocity * np.float32(self.beta)
            out += u
        still = unheard(weight)
        if still is None:
            return out, velocity
        out = np.where(still, np.float32(0), out)
        np.copyto(velocity, state, where=still)
        return out, velocity


@dataclass(frozen=True, slots=True)
class Patient:
    """Momentum by coverage; see `patient`."""

    beta: float
    power: float

    def init(self, size: int) -> F32:
        return np.zeros(size, np.float32)

    def update(self, u: F32, state: F32, weight: Weight) -> tuple[F32, F32]:
        most = float(np.max(weight, initial=0.0)) if np.ndim(weight) else 0.0
        if not self.power or not most > 0:
            return Momentum(self.beta, False).update(u, state, weight)
        share = (np.asarray(weight, np.float64) / most) ** self.power
        velocity = state * (1.0 - (1.0 - self.beta) * share).astype(np.float32)
        velocity += u
        still = unheard(weight)
        if still is None:
            return velocity.copy(), velocity
        np.copyto(velocity, state, where=still)
        return np.where(still, np.float32(0), velocity), velocity


@dataclass(frozen=True, slots=True)
class Adaptive:
    """m <- b1 m + (1 - b1) u; v by `rule`; u <- m / (sqrt(v) + eps); see `adam`, `yogi`, `adagrad`."""

    rule: str
    b1: float
    b2: float
    eps: float
    v0: float

    def init(self, size: int) -> Moments:
        return np.zeros(size, np.float32), np.full(size, self.v0, np.float32)

    def update(self, u: F32, state: Moments, weight: Weight) -> tuple[F32, Moments]:
        m, v = state
        rest = np.float32(1.0 - self.b2)
        first = m * np.float32(self.b1)
        work = u * np.float32(1.0 - self.b1)
        first += work
        np.square(u, out=work)
        match self.rule:
            case "adam":
                second = v * np.float32(self.b2)
                work *= rest
                second += work
            case "yogi":
                second = v - work
                np.sign(second, out=second)
                second *= work
                second *= -rest
                second += v
            case _:
                second = v + work
        np.sqrt(second, out=work)
        work += np.float32(self.eps)
        np.divide(first, work, out=work)
        still = unheard(weight)
        if still is not None:
            for new, old in ((first, m), (second, v), (work, 0.0)):
                np.copyto(new, old, where=still)
        return work, (first, second)


def scale(factor: float) -> Scale:
    """Multiply the update by `factor`, the server learning rate (eta in FedOpt).

    >>> scale(0.5).update(np.ones(2, np.float32), None, 1.0)[0].tolist()
    [0.5, 0.5]
    """
    _finite("scale", factor=factor)
    return Scale(factor)


def decay(rate: float, every: int = 1) -> Decay:
    """Multiply update number t = 0, 1, ... by `rate ** (t // every)`: a server learning rate that falls in steps."""
    if not 0 < rate <= 1 or every < 1:
        raise UsageError(f"decay(rate={rate}, every={every}): use a rate in (0, 1] and every >= 1.")
    return Decay(rate, every)


def bound(max_norm: float) -> Bound:
    """Shrink the folded update to a norm of at most `max_norm` (a guard on the server; per client use `clip`)."""
    if not 0 < max_norm < np.inf:
        raise UsageError(f"bound({max_norm}): a norm bound is a finite positive number.")
    return Bound(max_norm)


def momentum(beta: float = 0.9, nesterov: bool = False) -> Momentum:
    """Server momentum, v <- beta v + u, u <- v (FedAvgM: Hsu, Qi & Brown, 2019, sec. 4.3).

    With `nesterov` u <- u + beta v. State: v float32 `[P]`, zero at first. Undamped, as in the paper: in the long run
    a constant u is multiplied by 1 / (1 - beta).
    """
    _unit("momentum", beta=beta)
    return Momentum(beta, nesterov)


def patient(beta: float = 0.5, power: float = 0.5) -> Patient:
    """Server momentum that lasts longer where fewer clients report: v <- b v + u, u <- v, with b by coordinate.

    Ours, behind `coverage()`: b_i = 1 - (1 - beta) (m_i / max m) ** power, m the weight behind coordinate i; who
    everybody has gets `momentum(beta)`, rarer ones a longer memory and, since it is undamped, as much more of a
    constant u. `power` 0, or one weight for all, is `momentum(beta)`. State: v float32 `[P]`.

    >>> patient(0.5, 1.0).update(np.ones(2, np.float32), np.ones(2, np.float32), np.array([4.0, 1.0]))[0].tolist()
    [1.5, 1.875]
    """
    _unit("patient", beta=beta)
    if not 0 <= power <= 1:
        raise UsageError(f"patient(power={power}): use a number from 0 to 1.")
    return Patient(beta, power)


def adam(b1: float = 0.9, b2: float = 0.99, eps: float = 1e-3, v0: float | None = None) -> Adaptive:
    """FedAdam's step: v <- b2 v + (1 - b2) u**2 (Reddi et al., ICLR 2021, alg. 2; eps is their tau).

    No bias correction, as in the paper. `v0` fills v before the first update; the paper asks for v0 >= tau**2 and
    we take tau**2. Defaults are the paper's. State: (m, v), float32 `[P]` each; three arrays `[P]` are made per update.
    """
    return _adaptive("adam", b1, b2, eps, v0)


def yogi(b1: float = 0.9, b2: float = 0.99, eps: float = 1e-3, v0: float | None = None) -> Adaptive:
    """FedYogi's step: v <- v - (1 - b2) u**2 sign(v - u**2); the rest as in `adam`."""
    return _adaptive("yogi", b1, b2, eps, v0)


def adagrad(b1: float = 0.0, eps: float = 1e-3, v0: float | None = None) -> Adaptive:
    """FedAdagrad's step: v <- v + u**2; the rest as in `adam`. The paper runs it with b1 = 0, our default."""
    return _adaptive("adagrad", b1, 0.0, eps, v0)


def _adaptive(rule: str, b1: float, b2: float, eps: float, v0: float | None) -> Adaptive:
    _unit(rule, b1=b1, b2=b2)
    if not 0 < eps < np.inf or (v0 is not None and not 0 <= v0 < np.inf):
        raise UsageError(f"{rule}(eps={eps}, v0={v0}): use a positive eps and v0 >= 0 (None for eps**2).")
    return Adaptive(rule, b1, b2, eps, eps * eps if v0 is None else v0)


def _unit(name: str, **values: float) -> None:
    for what, value in values.items():
        if not 0 <= value < 1:
            raise UsageError(f"{name}({what}={value}): a decay parameter lies in [0, 1).")


def _finite(name: str, **values: Any) -> None:
    for what, value in values.items():
        if not np.isfinite(value):
            raise UsageError(f"{name}({what}={value}): use a finite number.")
