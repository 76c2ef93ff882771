"""A client's side of secure sums: its keys, shares of them, its training as masked words, and what it tells of others.

Here: `Masked`, which stands in the place of local training and does what the ask's phase says. Not here: the phases
(`algorithms.secure_sum`), the arithmetic (`aggregate.masking`). Invariant: what is trained is what would be trained
without masks, and an ask of no phase is answered by training as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.masking import PRIME, Sums, masked, public, shares, width, words_of
from fieldfare.core import rng
from fieldfare.core.effects import Scalar
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Cost, Output, Work

I64 = NDArray[np.int64]
_WORD = 8.0


@dataclass(frozen=True, slots=True)
class Masked:
    """`train` under masks: leaf "out" in the phases "keys" uint64 `[1]`, "shares" `[2, n]` and "unmask" `[n]`, of n
    clients who take part; leaf "masked" uint64 `[W]` in the phase of that name.

    `reduce`: the folds of the sums, by leaf; `size`: P of the whole model. Secrets are of (client, sum) and drawn anew
    where they are needed, so that a device has nothing to keep (a real one would).
    """

    train: Any
    reduce: Mapping[str, Sums]
    size: int

    @property
    def net(self) -> Any:
        """What is trained."""
        return self.train.net

    @property
    def together(self) -> int:
        """How many clients are best trained in one call."""
        return int(getattr(self.train, "together", 1))

    def __call__(self, cohort: Cohort) -> Output:
        match cohort.config.get("secure"):
            case None:
                return self.train(cohort)
            case "masked":
                return self._masked(cohort)
            case phase:
                rows = [self._row(str(phase), int(c), cohort, at) for at, c in enumerate(cohort.clients)]
                return Output({"out": rows}, np.ones(cohort.n))

    def _row(self, phase: str, me: int, cohort: Cohort, at: int) -> NDArray[np.uint64]:
        of = str(cohort.config["sum"])
        if phase == "keys":
            return np.array([public(_secret(me, of, "key"))], np.uint64)
        if phase == "shares":
            ids, need = cohort.inputs["ids"].tolist(), int(cohort.config["need"])
            return np.array(
                [
                    shares(_secret(me, of, what), ids, need, rng.derive(me, "shares", of, what))
                    for what in ("key", "own")
                ],
                np.uint64,
            )
        held: Mapping[str, NDArray[np.uint64]] = cohort.each[at]
        gone: NDArray[np.bool_] = cohort.inputs["gone"]
        return np.where(gone, held["key"], held["own"])

    def _masked(self, cohort: Cohort) -> Output:
        out, of, bits = self.train(cohort), str(cohort.config["sum"]), int(cohort.config["bits"])
        keys = dict(zip(cohort.inputs["ids"].tolist(), cohort.inputs["keys"].tolist(), strict=True))
        weight = np.where(out.diverged, np.nan, out.weight)
        words = words_of(out.leaves, weight, self.reduce, cohort.index, self.size, bits, len(keys))
        rows = np.stack([
            masked(row, me, _secret(me, of, "key"), _secret(me, of, "own"), keys, bits)
            for row, me in zip(words, cohort.clients.tolist(), strict=True)
        ])  # fmt: skip
        return Output({"masked": rows}, np.ones(cohort.n), {}, out.state)

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """Training's FLOPs; bytes of whole models down and words up, of keys and shares both ways."""
        among = _WORD * int(config.get("among", 0))
        match config.get("secure"):
            case None:
                return self.train.cost(examples, layout, config)
            case "keys":
                return Cost(0.0, 0.0, _WORD)
            case "shares":
                return Cost(0.0, among, 2.0 * among)
            case "masked":
                own, whole = self.train.cost(examples, layout, config), 4.0 * (self.size - layout.size)
                words = sum(width(fold, self._numbers(leaf)) for leaf, fold in self.reduce.items())
                up = float(config["bits"]) / 8.0 * words
                return Cost(own.flops, own.bytes_down + whole + 2.0 * among, up, own.memory_bytes)
            case _:
                return Cost(0.0, 2.25 * among, among)

    def _numbers(self, leaf: str) -> int:
        return self.size if leaf in ("delta", "dc") else 1

    def steps(self, examples: I64, config: Mapping[str, Scalar]) -> I64:
        """Local steps, in the phase that trains."""
        steps = self.train.steps(examples, config)
        return steps if config.get("secure") in (None, "masked") else np.zeros_like(steps)

    def alike(self, config: Mapping[str, Scalar]) -> Any:
        """What of a config matters here."""
        phase = tuple(config.get(name) for name in ("secure", "sum", "among", "need", "bits"))
        return (*phase, self.train.alike(config))

    def slots(self, layout: Layout) -> Mapping[str, int]:
        """Training's own."""
        return self.train.slots(layout)


def _secret(client: int, of: str, what: str) -> int:
    """What a device draws for itself, for one sum."""
    return rng.derive(client, "secure", what, of) % PRIME


def secured(algorithm: Any, works: Mapping[str, Work], size: int) -> dict[str, Work]:
    """`works` with the training of an algorithm inside a `SecureSum` put under masks; else as they are."""
    inner, secure = algorithm, getattr(algorithm, "secure", False)
    while hasattr(inner, "inner"):
        inner = inner.inner
        secure = secure or getattr(inner, "secure", False)
    if not secure:
        return dict(works)
    reduce = {"delta": inner.server.reduce(), **inner.rule.folds()}
    return {**works, inner.work: Masked(works[inner.work], reduce, size)}
