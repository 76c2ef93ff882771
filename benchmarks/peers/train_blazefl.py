"""BlazeFL 2.0.3: its contributed FedAvg.

Setting ``serial`` or ``tN`` (N threads; one torch thread each). A DataLoader that does not shuffle keeps
batches in stored order; cohorts are given to the trainer instead of being drawn by the server.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch
from arm import Meter, Orders, read_orders, run_rounds
from blazefl.contrib.fedavg import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgThreadPoolClientTrainer,
)
from torch.utils.data import DataLoader, TensorDataset
from workloads import Workload, data, torch_model_at


class _Selector:
    """Builds the model; W4's logits are turned to what plain cross-entropy wants."""

    def __init__(self, orders: Orders) -> None:
        self.start = orders.start

    def select_model(self, name: str) -> Any:
        model = torch_model_at(name, self.start)
        if name == "W4":
            forward = model.forward
            model.forward = lambda x: forward(x).transpose(1, 2)
        return model


class _Federation:
    """The partitioned data set BlazeFL asks for."""

    def __init__(self, workload: Workload) -> None:
        self.distinct = workload.distinct
        self.inputs, self.labels = (torch.from_numpy(a) for a in data(workload.name))

    def get_dataset(self, type_: str, cid: int | None) -> TensorDataset:
        block = (cid or 0) % self.distinct
        return TensorDataset(self.inputs[block], self.labels[block])

    def get_dataloader(self, type_: str, cid: int | None, batch_size: int | None = None, generator: Any = None) -> Any:
        return DataLoader(self.get_dataset(type_, cid), batch_size=batch_size, shuffle=False)

    def set_dataset(self, *_: Any, **__: Any) -> None:
        """Nothing is ever replaced."""


def main() -> None:
    """Run the arm."""
    torch.set_num_threads(1)
    orders = read_orders()
    w = orders.workload
    selector, federation = _Selector(orders), _Federation(w)
    server = FedAvgBaseServerHandler(
        selector, w.name, federation, 10**6, w.population, w.cohort / w.population, "cpu", w.batch, 0
    )
    common: dict[str, Any] = {
        "model_selector": selector,
        "model_name": w.name,
        "dataset": federation,
        "device": "cpu",
        "num_clients": w.population,
        "epochs": 1,
        "batch_size": w.batch,
        "lr": w.rate,
        "seed": 0,
    }
    if orders.setting == "serial":
        trainer = FedAvgBaseClientTrainer(**common)
    else:
        trainer = FedAvgThreadPoolClientTrainer(**common, num_parallels=int(orders.setting.removeprefix("t")))

    def one_round(cohort: list[int]) -> None:
        trainer.local_process(server.downlink_package(), cohort)
        for package in trainer.uplink_package():
            server.load(package)

    def model() -> Any:
        return server.downlink_package().model_parameters.detach().numpy().copy()

    run_rounds(Meter(orders, model), one_round)


if __name__ == "__main__":
    main()
