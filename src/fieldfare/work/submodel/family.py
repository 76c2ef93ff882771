"""One object for the sub-models of a net: their levels, views, costs and exports.

Here: `submodels`. Not here: how channels are found (`axes`) and chosen (`rules`). Invariant: it trains and evaluates
as the net it was made of; the levels measured beside it change no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.work.evaluate import central_evaluation
from fieldfare.work.net import Drift, Fit, Net, Plan, Training
from fieldfare.work.submodel.axes import Axes, axes
from fieldfare.work.submodel.rules import Level, Prefix, SubModels, as_levels, view_of

if TYPE_CHECKING:
    from fieldfare.work.submodel.fitting import Fitting

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def submodels(
    model: Any, levels: Sequence[float | Level] = (1.0, 0.5, 0.25, 0.125), *, loss: Any = None,
    metrics: Any = None, example: Mapping[str, NDArray[Any]] | None = None, rule: Any = None,
) -> Family:  # fmt: skip
    """A model with the levels it can be cut to; give it to `Job(model=...)` to measure every level.

    `model`, `loss`, `metrics`: as for `torch_net`. `example`: at least two rows of the data's columns, with which a
    torch module is looked at (where the net has none). `levels`: rates, or `Level`s. `rule`: which channels a level
    has where it is measured or cut (None: the first). Errors: `UsageError` where layers cannot be seen.
    """
    from fieldfare.work.adapt import as_net

    rows = None if example is None else {name: column[:2] for name, column in example.items()}
    net = as_net(model, loss=loss, metrics=metrics, example=rows)
    if not hasattr(net, "of"):
        raise UsageError(f"sub-models of a {type(net).__name__}: use fieldfare.mlp(...) or an nn.Module.")
    return Family(net, as_levels(levels), rule or Prefix())


@dataclass(frozen=True, eq=False)
class Family:
    """A net (`work.net.Net`) that gives its sub-models; made by `submodels`."""

    net: Any
    levels: tuple[Level, ...]
    rule: Any = field(default_factory=Prefix)

    @cached_property
    def axes(self) -> Axes:
        """The channel groups of the net."""
        return axes(self.net)

    @property
    def layout(self) -> Layout:
        return self.net.layout

    @property
    def keeps_moments(self) -> bool:
        return getattr(self.net, "keeps_moments", False)

    @property
    def loss(self) -> Any:
        return self.net.loss

    @property
    def threaded(self) -> bool:
        return getattr(self.net, "threaded", False)

    @property
    def forks(self) -> bool:
        return bool(getattr(self.net, "forks", True))

    @property
    def together(self) -> int:
        return getattr(self.net, "together", 1)

    def folds(self, training: Training) -> bool:
        """Whether the net sums deltas where they lie."""
        able = getattr(self.net, "folds", None)
        return able is not None and able(training)

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parameters of the net cut behind each of its exits; none where it has no exits."""
        given = getattr(getattr(self.net, "_module", None), "stages_of", None)
        return () if given is None else given()

    def with_example(self, example: Mapping[str, NDArray[Any]]) -> Family:
        """This family, with rows to look at its net with (if it had none)."""
        net = self.net.with_example(example) if hasattr(self.net, "with_example") else self.net
        return self if net is self.net else replace(self, net=net)

    def view(self, rule: Any = None, assign: Sequence[int] | I64 | None = None) -> SubModels:
        """The view in which client i has level `assign[i % len(assign)]` (None: the levels in turn), by `rule` (None:
        the family's)."""
        return view_of(self.axes, self.levels, rule or self.rule, assign, self.stages)

    def fitting(self, rule: Any = None, *, deadline_s: float | None = None, prove: bool = True) -> Fitting:
        """The view in which a simulated job gives every device the largest level that fits it, and asks nobody else.

        Levels are planned (see `plan`) from the fleet's memory, and with `deadline_s` its speeds and links, and are
        planned again where memory (`Fleet.memory`) or speeds change: an ask goes by the time it is made. `prove`:
        before the first round a step of each level in use is taken, as the algorithm takes it, in the least memory of
        its devices (`dry_run`), and where it fails they get the next. Who fits none is told, and is in the run's
        `summary["plan"]`.
        """
        from fieldfare.work.submodel.fitting import Fitting

        return Fitting(self.view(rule), deadline_s, prove)

    def of(self, layout: Layout) -> Net:
        """The net of a sub-model's layout."""
        return self.net if layout == self.net.layout else self.net.of(layout)

    def at(self, level: Level | float) -> Net:
        """The net of a level."""
        return self.of(self._one(level).layout(0))

    def cut(self, model: Params, level: Level | float, rule: Any = None) -> Params:
        """The model of a level, as one that stands alone; with the channels that `rule`, or the family's, keeps."""
        view = self._one(level, rule).at(1, model)
        return Params(model.vector[view.index(0)], view.layout(0))

    def _one(self, level: Level | float, rule: Any = None) -> SubModels:
        return view_of(self.axes, (level,), rule or self.rule, None, self.stages)

    def init(self, seed: int) -> Params:
        return self.net.init(seed)

    def fit(
        self, start: F32, row: I64, data: Block, plan: Plan, keys: NDArray[np.uint64], training: Training, lr: float,
        drift: Drift, **more: Any,
    ) -> Fit:  # fmt: skip
        return self.net.fit(start, row, data, plan, keys, training, lr, drift, **more)

    def evaluate(self, models: F32, row: I64, data: Block) -> Mapping[str, F64]:
        return self.net.evaluate(models, row, data)

    def flops(self) -> float:
        return self.net.flops()

    def describe(self) -> Mapping[str, Any]:
        """The net's own, and the levels with the parameters each has."""
        sizes = {level.name: self._one(level).layout(0).size for level in self.levels}
        return {**self.net.describe(), "levels": sizes, "whole": dict(self.axes.whole)}

    def evaluate_levels(self, model: Params, columns: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, float]]:
        """Metrics of every level on the rows of `columns`: `{name of the level: {metric: value}}`."""
        return {
            level.name: central_evaluation(self.at(level), columns)(self.cut(model, level).vector)
            for level in self.levels
        }

    def central(self, test: Mapping[str, NDArray[Any]]) -> Callable[[Params], Mapping[str, float]]:
        """The central evaluation of a job: the net's metrics, and those of each smaller level as "accuracy@1/2"."""
        whole = central_evaluation(self.net, test)
        parts = [
            (level.name, central_evaluation(self.at(level), test), self._one(level))
            for level in self.levels if self._one(level).layout(0) != self.layout
        ]  # fmt: skip

        def measure(model: Params) -> Mapping[str, float]:
            out = dict(whole(model.vector))
            for name, of_level, view in parts:
                found = of_level(model.vector[view.at(1, model).index(0)])
                out |= {f"{metric}@{name}": value for metric, value in found.items()}
            return out

        return measure
