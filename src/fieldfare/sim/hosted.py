"""A `Run` on nodes: the gather that their `Answer`s fill. Invariant: one `Gathered` per `Run`, possibly empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fieldfare.aggregate.gather import Gather
from fieldfare.core.effects import Answer, Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Asked, Gathered
from fieldfare.core.folds import Collect, Folded, Total
from fieldfare.sim.population import cohort_key

MOST_NODES = 100_000
"""Nodes one `Run` may ask; an `Asked.id` is the gather's number times this, plus the position in `run.on`."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A hosted gather's time is up."""

    gather: int


@dataclass(frozen=True, slots=True, eq=False)
class Hosted:
    """An outstanding `Run` on nodes, and the replies so far by position in `run.on`."""

    node: str
    run: Run
    issued: float
    replies: Mapping[int, Answer] = field(default_factory=dict[int, Answer])

    @property
    def on(self) -> tuple[str, ...]:
        assert isinstance(self.run.on, tuple)
        return self.run.on

    def with_reply(self, at: int, answer: Answer) -> Hosted:
        return replace(self, replies={**self.replies, at: answer})

    @property
    def complete(self) -> bool:
        need = self.run.quorum.need
        return len(self.replies) >= (len(self.on) if need is None else need)

    def finish(self) -> Gathered:
        """Fold what has come, in order of position; answers that cannot be folded are refused and named."""
        run, refused = self.run, set[int]()
        gather = Gather(run.reduce, len(self.on))
        for at in sorted(self.replies):
            if not _fold(gather, at, self.replies[at]):
                refused.add(at)
        output = gather.finish()
        for leaf, fold in run.reduce.items():
            if isinstance(fold, Collect) and leaf in output:
                output[leaf] = Folded({self.on[at]: v for at, v in output[leaf].value.items()}, output[leaf].weight)
        order = [at for at in sorted(self.replies) if at not in refused]
        weights = np.array([self.replies[at].weight for at in order], np.float64)
        names = sorted({name for at in order for name in self.replies[at].metrics})
        metrics = {name: np.array([self.replies[at].metrics.get(name, float("nan")) for at in order]) for name in names}
        missing = {"late": [at for at in range(len(self.on)) if at not in self.replies], "refused": sorted(refused)}
        return Gathered(
            run.tag, output, float(weights.sum()), tuple(self.on[at] for at in order), weights, metrics,
            {reason: tuple(self.on[at] for at in places) for reason, places in missing.items() if places},
        )  # fmt: skip


def check_nodes(run: Run) -> None:
    """Refuse a `Run` on nodes that could never be answered, or counted, as it stands."""
    assert isinstance(run.on, tuple)
    n, need = len(run.on), run.quorum.need
    if len(set(run.on)) < n or n >= MOST_NODES:
        raise UsageError(f"a Run asks {n} nodes, {len(set(run.on))} different: name each once, below {MOST_NODES}.")
    if need is not None and need > n:
        raise UsageError(f"Quorum(need={need}) can never be met by {n} nodes: use need <= {n}.")
    if run.quorum.late == "next":
        raise UsageError("Quorum(late='next') is not offered for nodes: use late='drop'.")
    if run.view is not None:
        raise UsageError("a Run on nodes cannot have a view: the nodes choose sub-models for their own clients.")


def asked_of(node: str, run: Run, gather: int, at: int) -> Asked:
    """What the node at position `at` of `run.on` is asked by `node`."""
    assert isinstance(run.on, tuple)
    inputs = {**run.inputs, **run.each.get(run.on[at], {})}
    return Asked(gather * MOST_NODES + at, node, run.work, run.model, inputs, run.config, cohort_key(run))


def _fold(gather: Gather, at: int, answer: Answer) -> bool:
    """Add one answer as a stack of one, or its exact totals; False (and nothing added) when it must be refused."""
    row: dict[str, object] = {}
    totals: dict[str, Total] = {}
    for leaf, value in answer.output.items():
        match value:
            case Folded():
                raise UsageError(f"Answer({leaf!r}) holds a Folded: answer with its value, or its total.")
            case Total():
                totals[leaf] = value
            case np.ndarray():
                row[leaf] = value[None]
            case _:
                row[leaf] = [value]
    weight = np.array([answer.weight], np.float64)
    trial = Gather({leaf: fold for leaf, fold in gather.reduce.items() if leaf not in totals}, gather.cohort)
    totals = {leaf: total for leaf, total in totals.items() if leaf in gather.reduce}
    if trial.check(row, weight).any() or not all(gather.fits(leaf, total) for leaf, total in totals.items()):
        return False
    trial.add(np.array([at]), row, weight)
    for leaf, part in trial.partials.items():
        mine = gather.partials[leaf].sum
        if mine is not None and part.sum is not None and mine.total.shape != part.sum.total.shape:
            return False
    gather.merge(trial.partials)
    for leaf, total in totals.items():
        gather.add_total(leaf, total)
    return True
