"""What an adapter must offer to be trained: the seam between the federated recipe and an ML library.

Here: the settings of local training, the plan of batches, the affine drift, and the `Net` protocol. Not here: any
library. Invariant: batches come from `Plan` alone, so every adapter sees the same examples in the same order, and
row i of a result depends on client i's inputs only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.core.settings import settings

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class BadExamples(UsageError):
    """A client's examples do not fit the net; `place` is the client's row in what the net was given."""

    def __init__(self, said: str, place: int) -> None:
        super().__init__(said)
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.place)


@contextmanager
def naming(clients: I64) -> Iterator[None]:
    """Inside, examples that do not fit are told with the id of their client; `clients` `[n]`."""
    try:
        yield
    except BadExamples as error:
        raise UsageError(f"client {clients[error.place]}: {error}") from error


@settings
@dataclass(frozen=True, slots=True)
class Training:
    """How a client trains: optimiser, learning rate and its schedule over rounds, batches, epochs or steps.

    `steps` (if given) replaces `epochs`: that many batches, going round the data as often as needed.
    `schedule`: "constant", "cosine" (to zero at round `schedule_rounds`), "inverse_sqrt", or "step" (times `decay`
    every `schedule_rounds`). `clip_norm` clips each step's gradient to that norm. `shuffle=False` takes stored order.
    `precision="bfloat16"`: products of dense layers round their factors so, and add up in float32 (on the compiled
    core, where the processor can; weights stay float32).
    """

    lr: float = 0.1
    batch_size: int = 20
    epochs: int = 1
    steps: int | None = None
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    schedule: Literal["constant", "cosine", "inverse_sqrt", "step"] = "constant"
    schedule_rounds: int = 0
    decay: float = 1.0
    shuffle: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.lr < np.inf:
            raise UsageError(f"Training(lr={self.lr}): a learning rate is a number >= 0.")
        if self.batch_size < 1 or self.epochs < 1 or (self.steps is not None and self.steps < 1):
            raise UsageError(
                f"Training(batch_size={self.batch_size}, epochs={self.epochs}, steps={self.steps}): each must be >= 1."
            )
        for name in ("momentum", "weight_decay", "eps", "decay"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UsageError(f"Training({name}={getattr(self, name)}): use a number >= 0.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"Training(clip_norm={self.clip_norm}): use a number > 0, or None for no clipping.")
        if self.precision not in ("float32", "bfloat16"):
            raise UsageError(f"Training(precision={self.precision!r}): use 'float32' or 'bfloat16'.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"Training(betas={self.betas}): use two numbers in [0, 1).")
        if self.schedule in ("cosine", "step") and self.schedule_rounds < 1:
            raise UsageError(f"Training(schedule={self.schedule!r}) needs schedule_rounds >= 1.")

    @property
    def moments(self) -> int:
        """How many vectors the optimiser keeps from step to step: 0 (plain SGD), 1 (momentum) or 2 (Adam)."""
        return 2 if self.optimizer == "adam" else int(self.momentum > 0)

    def lr_at(self, round_: int) -> float:
        """The learning rate of round `round_` (counted from 1)."""
        t = max(round_ - 1, 0)
        match self.schedule:
            case "cosine":
                return self.lr * 0.5 * (1.0 + float(np.cos(np.pi * min(t / self.schedule_rounds, 1.0))))
            case "inverse_sqrt":
                return self.lr / float(np.sqrt(t + 1.0))
            case "step":
                return self.lr * self.decay ** (t // self.schedule_rounds)
            case _:
                return self.lr


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """The affine correction of every local gradient: g <- mask * (g + a + mu * (w - ref)).

    Order of a step: the loss's gradient (masked), `clip_norm` on it, plus weight decay, this correction, the optimiser.
    So control variates are never clipped, and coordinates outside `mask` stay as they are.
    `a` float32 `[n, P]` or None; `ref` float32 `[v, P]` with the cohort's `row` index (None: the start); `mask` bool
    `[P]` or None. With `a` None, `mu` 0 and `mask` None nothing is computed, so FedProx(0) is FedAvg bit for bit.
    """

    a: F32 | None = None
    mu: float = 0.0
    ref: F32 | None = None
    mask: NDArray[np.bool_] | None = None

    @property
    def idle(self) -> bool:
        return self.a is None and self.mu == 0.0 and self.mask is None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which examples every client takes at every step.

    `rows` int64 `[m]`: rows of the data columns, clients one after the other, steps one after the other; client i's
    are `rows[start[i]:start[i + 1]]`. Every step takes `batch_size` of them, but the last of an epoch, which takes
    what is left: step sizes of client i are `sizes[i]` examples per epoch cut into batches. `steps` int64 `[n]`.
    `step_sizes(i)` gives them.
    """

    rows: I64
    start: I64
    steps: I64
    batch_size: int
    per_epoch: I64

    def step_bounds(self, i: int) -> I64:
        """Bounds `[steps[i] + 1]` into `rows` of the batches of client i."""
        size, b = int(self.per_epoch[i]), self.batch_size
        per = max(-(-size // b), 1)
        k = np.arange(int(self.steps[i]) + 1)
        ends = (k // per) * size + np.minimum((k % per) * b, size)
        return self.start[i] + ends


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """A sum of deltas asked for in place of rows: weight * round(delta / step) in int64, exact, over the clients.

    `weights` int64 `[n]`. `clip`: the norm that `aggregate.rows.clip` shrinks each delta to first; 0 for none. A client
    with a loss or a number that is not finite, or a number above `cap` / weight (or above 2**51 steps) is left out, as
    `aggregate.gather` would refuse it.
    """

    step: float
    cap: float
    weights: I64
    clip: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Result of `Net.fit`: end parameters float32 `[n, P]` and the mean training loss over steps, `[n]`.

    `params` is a fresh array the caller may write to. A client without a step has loss 0. `moments`: the optimiser's,
    fresh too, where `fit` was given some. Where a `Folding` was asked for there are no rows (`params` `[0, P]`) but
    `total` int64 `[P]`, and `refused` `[n]`: who is not in it.
    """

    params: F32
    loss: F64
    extra: Mapping[str, F64]
    moments: F32 | None = None
    total: I64 | None = None
    refused: NDArray[np.bool_] | None = None


def moments_size(training: Training, size: int) -> int:
    """Numbers kept of the optimiser of a model of `size` parameters: P for momentum; for Adam 2P and its steps.

    The order is first moment, second moment, steps taken (exact up to 2^24).

    >>> [moments_size(one, 10) for one in (Training(), Training(momentum=0.9), Training(optimizer="adam"))]
    [0, 10, 21]
    """
    return training.moments * size + (training.moments == 2)


def measured(loss: F64, right: F64, counted: F64, labelled: bool) -> dict[str, F64]:
    """Metrics `[n]` of sums over examples: mean loss, and accuracy of labels; 0 where nothing was counted."""
    some = np.maximum(counted, 1)
    return {"loss": loss / some, "accuracy": right / some} if labelled else {"loss": loss / some}


class Net(Protocol):
    """A model as an adapter sees it. Names: float32 vectors in, float32 vectors out, no library types.

    A net with `keeps_moments = True` takes a last argument `moments` in `fit`: float32 `[n, moments_size(...)]`, the
    optimiser's at the start (zeros for a new one), and gives those at the end in `Fit.moments`. A net with a method
    `folds(training, drift)` that says True takes `fold=Folding(...)`, and sums deltas where they lie
    (or gives the rows after all, and no `total`).
    """

    layout: Layout

    def init(self, seed: int) -> Params:
        """The starting model, from (seed, "init")."""
        ...

    def fit(
        self, start: F32, row: I64, data: Block, plan: Plan, keys: NDArray[np.uint64], training: Training, lr: float,
        drift: Drift,
    ) -> Fit:  # fmt: skip
        """Train n clients from `start[row]` over `plan` at learning rate `lr`."""
        ...

    def evaluate(self, models: F32, row: I64, data: Block) -> Mapping[str, F64]:
        """Metrics `[n]` of each client's data under its model: at least `loss`; `accuracy` for classifiers."""
        ...

    def flops(self) -> float:
        """FLOPs of one training step on one example (forward and backward)."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Plain JSON for the run's configuration."""
        ...
