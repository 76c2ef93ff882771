"""Flower 1.41: its simulation (Ray) with the message API and the FedAvg strategy.

Setting ``rayN``: N actors of one core, one thread each. The strategy draws nodes as ever; each message
names the client of the given cohort whose examples that node is to train.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
from arm import Meter, Orders, read_orders
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from flwr_client import WORKLOAD, app
from workloads import Floats


class _Stop(Exception):
    """Raised inside Flower's loop when enough rounds were timed."""


def _arrays(orders: Orders) -> ArrayRecord:
    if orders.name == "W0":
        return ArrayRecord([orders.start])
    from workloads import torch_model_at

    return ArrayRecord(torch_model_at(orders.name, orders.start).state_dict())


class _Given(FedAvg):
    """FedAvg on the given cohorts, with the meter around each round."""

    def __init__(self, orders: Orders) -> None:
        w = orders.workload
        super().__init__(
            fraction_train=w.cohort / w.population,
            fraction_evaluate=0.0,
            min_train_nodes=w.cohort,
            min_available_nodes=w.population,
        )
        self.latest: ArrayRecord = _arrays(orders)
        self.meter = Meter(orders, self._vector)

    def _vector(self) -> Floats:
        return np.concatenate([a.ravel() for a in self.latest.to_numpy_ndarrays()])

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.meter.begin()
        drawn = super().configure_train(server_round, arrays, config, grid)
        nodes = [message.metadata.dst_node_id for message in drawn]
        cohort = self.meter.orders.cohort(self.meter.round)
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client})}),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for node, client in zip(nodes, cohort, strict=True)
        ]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        failed = [r for r in replies if r.has_error()]
        if failed:
            raise RuntimeError(f"{len(failed)} clients failed, the first: {failed[0].error.reason}")
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.latest = arrays
        if self.meter.end():
            raise _Stop
        return arrays, metrics


def main() -> None:
    """Run the arm."""
    orders = read_orders()
    os.environ[WORKLOAD] = orders.name
    actors = int(orders.setting.removeprefix("ray") or 2)
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = _Given(orders)
        with contextlib.suppress(_Stop):
            strategy.start(grid=grid, initial_arrays=strategy.latest, num_rounds=10_000, timeout=3600)

    run_simulation(
        server,
        app,
        orders.workload.population,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": actors},
        },
    )


if __name__ == "__main__":
    main()
