"""A `Run` on nodes: the gather that their `Answer`s fill. Invariant: one `Gathered` per `Run`, possibly empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fieldfare.aggregate.gather import Gather
from fieldfare.core.effects import Answer, Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Collect, Folded


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
        """Fold what has come, in order of position."""
        run, order = self.run, sorted(self.replies)
        gather = Gather(run.reduce, len(self.on))
        for at in order:
            answer = self.replies[at]
            gather.add(np.array([at]), _row(answer), np.array([answer.weight]))
        output = gather.finish()
        for leaf, fold in run.reduce.items():
            if isinstance(fold, Collect) and leaf in output:
                output[leaf] = Folded({self.on[at]: v for at, v in output[leaf].value.items()}, output[leaf].weight)
        weights = np.array([self.replies[at].weight for at in order])
        names = sorted({name for at in order for name in self.replies[at].metrics})
        metrics = {name: np.array([self.replies[at].metrics.get(name, float("nan")) for at in order]) for name in names}
        absent = tuple(self.on[at] for at in range(len(self.on)) if at not in self.replies)
        return Gathered(
            run.tag, output, float(weights.sum()), tuple(self.on[at] for at in order), weights, metrics,
            {"late": absent} if absent else {},
        )  # fmt: skip


def _row(answer: Answer) -> dict[str, object]:
    """Leaves of one answer as a stack of one."""
    out: dict[str, object] = {}
    for leaf, value in answer.output.items():
        if isinstance(value, Folded):
            raise UsageError(f"Answer({leaf!r}) holds a Folded: answer with its value.")
        out[leaf] = value[None] if isinstance(value, np.ndarray) else [value]
    return out
