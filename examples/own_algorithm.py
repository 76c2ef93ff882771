"""Your own algorithm: FedAsync (Xie et al., 2019) folds each reply when it comes; a round is `cohort` replies."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

import fieldfare as ff
from fieldfare.core.effects import Publish, Run, Stop
from fieldfare.core.events import Gathered, Started
from fieldfare.core.folds import Mean


@dataclass(frozen=True, eq=False)
class State:
    model: ff.Params
    folded: int = 0  # replies so far
    began: Mapping[int, int] = field(default_factory=dict)  # ask in flight -> `folded` when it was asked


@dataclass(frozen=True)
class FedAsync:
    rounds: int
    cohort: int
    mix: float = 0.6

    def init(self, model):
        return State(model)

    def step(self, state, event, ctx):
        match event:
            case Started() if not state.began:
                began = dict.fromkeys(range(self.cohort), 0)
                return replace(state, began=began), [self.ask(state.model, tag) for tag in began]
            case Gathered(tag=tag) if tag in state.began:
                began, folded, model = dict(state.began), state.folded + 1, state.model
                stale = state.folded - began.pop(tag)  # replies folded since it was asked
                if len(event.clients):  # none if the client dropped out
                    model = model.replace(model.vector + self.mix * (1 + stale) ** -0.5 * event.output["delta"].value)
                done = [Publish(model, folded // self.cohort)] if folded % self.cohort == 0 else []
                if folded == self.rounds * self.cohort:
                    return State(model, folded), [*done, Stop("rounds")]
                tag = folded + self.cohort - 1
                return State(model, folded, {**began, tag: folded}), [*done, self.ask(model, tag)]
        return state, []

    def ask(self, model, tag):
        return Run("train", ff.Sample(1), tag, model, reduce={"delta": Mean()})


one_in_ten_is_slow = ff.fleet.uniform(overhead_s=np.where(np.arange(100) % 10, 1.0, 20.0))
job = ff.Job(
    model=ff.mlp(64, 64, 10), data=ff.data.digits(clients=100, partition=ff.dirichlet(0.3)),
    algorithm=FedAsync(rounds=60, cohort=20), training=ff.Training(lr=0.1, batch_size=10, epochs=2),
    simulated=ff.Simulated(fleet=one_in_ten_is_slow),
)  # fmt: skip
study = ff.Study({"FedAsync": job, "FedAvg": replace(job, algorithm=ff.FedAvg(rounds=60, cohort=20))}, name="async")

if __name__ == "__main__":
    study.run()
