"""The client of ``train_flwr.py``, in a module of its own so that a Ray actor imports it once.

Which client's examples to train comes with the message: Flower's nodes have random ids, and the node that
answers is not the point. Model and data are kept between messages, which is this peer's best.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from workloads import WORKLOADS, data, torch_loss, torch_model

WORKLOAD = "FLWR_WORKLOAD"  # environment: the workload's name, read by the actors
app = ClientApp()


@cache
def _kept() -> Any:
    import torch

    torch.set_num_threads(1)
    name = os.environ[WORKLOAD]
    x, y = (torch.from_numpy(a) for a in data(name))
    return torch_model(name), torch_loss(name), x, y


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client's examples from the model in the message."""
    w = WORKLOADS[os.environ[WORKLOAD]]
    arrays = message.content["arrays"]
    if w.name != "W0":  # W0 stands for a round of nothing
        import torch

        model, loss, inputs, labels = _kept()
        model.load_state_dict(arrays.to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=w.rate)
        block = int(message.content["config"]["client"]) % w.distinct
        x, y = inputs[block], labels[block]
        for i in range(0, w.examples, w.batch):
            optimizer.zero_grad()
            loss(model(x[i : i + w.batch]), y[i : i + w.batch]).backward()
            optimizer.step()
        arrays = ArrayRecord(model.state_dict())
    metrics = MetricRecord({"num-examples": w.examples})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
