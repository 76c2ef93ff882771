"""Measuring models: on every client, after personalisation, and centrally.

Here: works whose only result is metrics `[n]`, and the central evaluation of a published model. Not here: training
recipes (`train`). Invariant: nothing here changes a model or client state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.effects import Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local, Personal, Twin
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Cost, Output
from fieldfare.work.net import Drift, Net, Training, naming
from fieldfare.work.plan import make_plan, passes_and_steps
from fieldfare.work.train import find, kept, own_models, settings, slots_of, threaded

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_METRICS_BYTES = 32.0


def _only_own(local: tuple[Local, ...]) -> tuple[Local, ...]:
    """The declarations that give a client a model of its own."""
    return tuple(one for one in local if isinstance(one, Personal | Twin))


def _models(net: Net, local: tuple[Local, ...], cohort: Cohort) -> tuple[F32, I64]:
    """What each client would predict with: its own model (`Twin`), its own part (`Personal`), or the one sent."""
    seen = kept(cohort, local, net.layout)
    personal = find(local, Personal)
    return own_models(cohort, seen, None if personal is None else net.layout.mask(personal.names))


def _examined(cohort: Cohort, held: bool) -> Block:
    if not held:
        return cohort.data
    if cohort.held is None:
        raise UsageError(
            "this evaluation uses the clients' held-out rows but the data has none: give the federated data set a "
            "held-out share, or use held=False."
        )
    return cohort.held


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Metrics per client `[n]` (`Work` without leaves: ask with `reduce={}`): `loss`, `accuracy`, `examples`.

    With `Personal` or `Twin` in `local` each client is measured with its own model, from its state slot (the model
    sent, while it has none); other declarations are ignored. `held=True` measures the held-out rows instead of the
    training rows. A client without examples has loss 0 and weight 0.
    """

    net: Net
    local: tuple[Local, ...] = ()
    held: bool = False

    @property
    def needs_held(self) -> bool:
        return self.held

    @property
    def threaded(self) -> bool:
        """Whether it is computed by threads of this process."""
        return threaded(self.net)

    def __call__(self, cohort: Cohort) -> Output:
        """Measure every client of `cohort`."""
        data = _examined(cohort, self.held)
        models, row = _models(self.net, _only_own(self.local), cohort)
        examples = data.sizes.astype(np.float64)
        with naming(cohort.clients):
            return Output({}, examples, {**self.net.evaluate(models, row, data), "examples": examples})

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """A forward pass over the training rows (also with `held`: their number is what is known), and the model."""
        vector = 4.0 * layout.size
        return Cost(self.net.flops() / 3 * np.asarray(examples, np.float64), vector, _METRICS_BYTES, vector)

    def slots(self, layout: Layout) -> Mapping[str, int]:
        """The slot read, never written."""
        return slots_of(_only_own(self.local), layout)


@dataclass(frozen=True, slots=True)
class FineTune:
    """Personalised evaluation: each client trains on its rows, then is measured on its held-out rows.

    Starts from the client's own model as `Evaluate` does. Metrics `[n]`: `loss`, `accuracy` after, `before_loss`,
    `before_accuracy` before, `examples` held out. What is trained is thrown away. Config as in `Train`.
    """

    net: Net
    training: Training = field(default_factory=Training)
    local: tuple[Local, ...] = ()
    needs_held: bool = field(default=True, init=False)

    @property
    def together(self) -> int:
        """How many clients are best trained in one call."""
        return int(getattr(self.net, "together", 1))

    def __call__(self, cohort: Cohort) -> Output:
        """Train, then measure, every client of `cohort`."""
        held = _examined(cohort, True)
        training, lr = settings(self.training, cohort.config)
        models, row = _models(self.net, _only_own(self.local), cohort)
        plan = make_plan(cohort.data, cohort.keys, training)
        with naming(cohort.clients):
            tuned = self.net.fit(models, row, cohort.data, plan, cohort.keys, training, lr, Drift()).params
            before = {f"before_{name}": value for name, value in self.net.evaluate(models, row, held).items()}
            after = self.net.evaluate(tuned, np.arange(cohort.n), held)
        examples = held.sizes.astype(np.float64)
        return Output({}, examples, {**after, **before, "examples": examples})

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """The training; the two evaluations on held-out rows, whose number is not known here, are left out."""
        training, _ = settings(self.training, config)
        taken = passes_and_steps(np.asarray(examples, np.int64), training)[2]
        vector = 4.0 * layout.size
        return Cost(self.net.flops() * taken.astype(np.float64), vector, _METRICS_BYTES, 2 * vector)

    def slots(self, layout: Layout) -> Mapping[str, int]:
        """The slot read, never written."""
        return slots_of(_only_own(self.local), layout)


def central_evaluation(
    net: Net, columns: Mapping[str, NDArray[Any]], batch: int = 4096
) -> Callable[[F32], dict[str, float]]:
    """A function from a model's vector `[P]` to its metrics on the rows of `columns`, each a mean over examples.

    Rows go through the net `batch` at a time, so memory does not grow with the data.
    """
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or 0 in lengths:
        told = ", ".join(f"{name}: {len(column)}" for name, column in columns.items()) or "none"
        raise UsageError(f"central evaluation needs columns of one length above 0: got {told}.")
    if batch < 1:
        raise UsageError(f"central_evaluation(batch={batch}): use at least 1.")
    rows = lengths.pop()
    edges = np.unique(np.append(np.arange(0, rows, batch), rows)).astype(np.int64)
    whole = Block(columns, np.arange(rows), edges)
    share = np.diff(edges) / rows

    def evaluate(vector: F32) -> dict[str, float]:
        totals: dict[str, float] = {}
        for i in range(whole.n):
            one = net.evaluate(np.asarray(vector, np.float32)[None], np.zeros(1, np.int64), whole.part(i, i + 1))
            for name, value in one.items():
                totals[name] = totals.get(name, 0.0) + float(value[0] * share[i])
        return totals

    return evaluate
