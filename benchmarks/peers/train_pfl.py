"""pfl-research 0.6: its simulated backend, federated averaging and torch model, under torchrun.

Setting ``pN``: started by torchrun with N processes, one thread each. pfl does not shuffle a client's
examples. Its user sampler is replaced by one that reads the given cohorts; every process draws the same
users and keeps every N-th, so cohorts have to be a multiple of N. Validation is off.
"""

from __future__ import annotations

import itertools
import os
import time
import types
from typing import Any

import torch
from arm import Meter, read_orders
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from workloads import data, torch_loss, torch_model_at, torch_vector


class _Timer(TrainingProcessCallback):
    """Tells the meter of each central iteration; the first process decides for all when to stop."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *, model: Any) -> Metrics:
        self.meter.begin()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        stop = self.meter.end()
        if torch.distributed.is_initialized():
            flag = torch.tensor([int(stop)])
            torch.distributed.broadcast(flag, 0)
            stop = bool(flag.item())
        self.meter.begin()
        return stop, Metrics()


def main() -> None:
    """Run the arm."""
    torch.set_num_threads(1)
    orders = read_orders()
    w = orders.workload
    inputs, labels = (torch.from_numpy(a) for a in data(w.name))
    net, loss = torch_model_at(w.name, orders.start), torch_loss(w.name)
    net.loss = types.MethodType(lambda self, x, y, eval=False: loss(self(x), y), net)
    net.metrics = types.MethodType(lambda self, x, y, eval=False: {}, net)
    model = PyTorchModel(
        model=net,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), 1.0),
    )
    users = itertools.chain.from_iterable(orders.cohort(i) for i in itertools.count())
    federation = FederatedDataset(
        lambda user: Dataset(raw_data=[inputs[user % w.distinct], labels[user % w.distinct]], user_id=str(user)),
        lambda: next(users),
    )
    backend = SimulatedBackend(training_data=federation, val_data=federation, postprocessors=[WeightByDatapoints()])
    meter = Meter(orders, lambda: torch_vector(net), writes=os.environ.get("RANK", "0") == "0")
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=10_000,
            evaluation_frequency=10**9,
            train_cohort_size=w.cohort,
            val_cohort_size=0,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(local_learning_rate=w.rate, local_num_epochs=1, local_batch_size=w.batch),
        model_eval_params=NNEvalHyperParams(local_batch_size=10_000),
        callbacks=[_Timer(meter)],
    )
    if torch.distributed.is_initialized():  # torch aborts now and then as it takes its threads down
        torch.distributed.barrier()
        time.sleep(0.2)
        os._exit(0)


if __name__ == "__main__":
    main()
