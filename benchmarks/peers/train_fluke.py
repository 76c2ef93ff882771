"""fluke 0.8: its FedAVG, one process, one thread.

Its FastDataLoader does not shuffle when told so. The server's choice of clients is replaced by the given
cohorts; evaluation, which it would do every round, is off. What fluke imports but does not train with
(torchvision, trackers, opacus) is stubbed, so that its environment needs no CUDA packages.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from arm import Meter, read_orders
from fluke_stubs import install
from workloads import data, torch_loss, torch_model_at, torch_vector


class _Stop(Exception):
    """Raised inside fluke's loop when enough rounds were timed."""


def main() -> None:
    """Run the arm."""
    install()  # before anything of fluke is imported
    from fluke import DDict, FlukeENV
    from fluke.algorithms.fedavg import FedAVG
    from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
    from fluke.evaluation import ClassificationEval

    torch.set_num_threads(1)
    orders = read_orders()
    w = orders.workload
    inputs, labels = (torch.from_numpy(a) for a in data(w.name))
    environment = FlukeENV()
    environment.set_seed(0)
    environment.set_device("cpu")
    environment.set_eval_cfg(
        task="classification", eval_every=10**6, pre_fit=False, post_fit=False, server=False, locals=False
    )
    environment.set_evaluator(ClassificationEval(eval_every=10**6, n_classes=w.classes))
    loaders = [
        FastDataLoader(
            inputs[i % w.distinct],
            labels[i % w.distinct],
            num_labels=w.classes,
            batch_size=w.batch,
            shuffle=False,
        )
        for i in range(w.population)
    ]
    nothing = [None] * w.population
    splitter = DataSplitter(
        dataset=DummyDataContainer(loaders, nothing, None, w.classes), distribution="iid", client_split=0.0
    )
    splitter.assign = lambda clients, batch: ((loaders, nothing), None)
    of_batch = torch_loss(w.name)

    class Loss(torch.nn.Module):
        def forward(self, out: Any, y: Any) -> Any:
            return of_batch(out, y)

    federation = FedAVG(
        w.population,
        splitter,
        DDict(
            client=DDict(
                batch_size=w.batch,
                local_epochs=1,
                loss=Loss,
                optimizer=DDict(name=torch.optim.SGD, lr=w.rate),
                scheduler=DDict(name=torch.optim.lr_scheduler.StepLR, step_size=1, gamma=1.0),
                persistency=False,
            ),
            server=DDict(weighted=True, loss=Loss),
            model=torch_model_at(w.name, orders.start),
        ),
    )
    by_index = {client.index: client for client in federation.clients}
    meter = Meter(orders, lambda: torch_vector(federation.server.model))

    def choose(_: float) -> Any:
        meter.begin()
        return [by_index[i] for i in orders.cohort(meter.round)]

    def evaluate(*_: Any, **__: Any) -> None:
        if meter.end():
            raise _Stop

    federation.server.get_eligible_clients = choose
    federation._compute_evaluation = evaluate
    with contextlib.suppress(_Stop):
        federation.run(10_000, (w.cohort + 0.5) / w.population, finalize=False)


if __name__ == "__main__":
    main()
