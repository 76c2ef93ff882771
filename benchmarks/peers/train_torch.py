"""The loop one would write by hand with torch: two forked processes, a slice per batch, no DataLoader.

Setting ``pN``: N processes, one thread each; each trains its share of the cohort one client after another
in one model (set back in place, which beats a copy), sums weighted parameters, and the parent averages.
Not a straw man: this is the best of the hand-written loops that were tried.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import torch
from arm import Meter, Orders, read_orders, run_rounds
from workloads import data, torch_loss, torch_model_at


class Trainer:
    """Trains clients one after another and sums their parameters, weighted by examples."""

    def __init__(self, orders: Orders) -> None:
        self.workload = orders.workload
        self.inputs, self.labels = (torch.from_numpy(a) for a in data(orders.name))
        self.loss = torch_loss(orders.name)
        self.model = torch_model_at(orders.name, orders.start)
        self.parameters = list(self.model.parameters())

    def client(self, client: int) -> int:
        """Train the model on one client's examples; returns how many they were."""
        w = self.workload
        x, y = self.inputs[client % w.distinct], self.labels[client % w.distinct]
        optimizer = torch.optim.SGD(self.parameters, lr=w.rate)
        for i in range(0, w.examples, w.batch):
            optimizer.zero_grad()
            self.loss(self.model(x[i : i + w.batch]), y[i : i + w.batch]).backward()
            optimizer.step()
        return len(y)

    def share(self, vector: torch.Tensor, clients: list[int]) -> tuple[torch.Tensor, int]:
        """Weighted sum ``[P]`` of the clients' models, each trained from ``vector``, and the weights' sum."""
        total, weight = torch.zeros_like(vector), 0
        for client in clients:
            offset = 0
            with torch.no_grad():
                for p in self.parameters:
                    p.copy_(vector[offset : offset + p.numel()].view_as(p))
                    offset += p.numel()
            examples = self.client(client)
            with torch.no_grad():
                total.add_(torch.nn.utils.parameters_to_vector(self.parameters), alpha=examples)
            weight += examples
        return total, weight


def _work(trainer: Trainer, vector: torch.Tensor, sums: torch.Tensor, pipe: Connection) -> None:
    torch.set_num_threads(1)
    while (clients := pipe.recv()) is not None:
        total, weight = trainer.share(vector, clients)
        sums.copy_(total)
        pipe.send(weight)


def main() -> None:
    """Run the arm."""
    torch.set_num_threads(1)
    orders = read_orders()
    processes = int(orders.setting.removeprefix("p") or 2)
    trainer = Trainer(orders)
    vector = torch.from_numpy(orders.start.copy()).share_memory_()
    sums = torch.zeros(processes, len(vector)).share_memory_()
    fork = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    for k in range(processes):
        mine, theirs = fork.Pipe()
        fork.Process(target=_work, args=(trainer, vector, sums[k], theirs), daemon=True).start()
        pipes.append(mine)

    def one_round(cohort: list[int]) -> None:
        for k, pipe in enumerate(pipes):
            pipe.send(cohort[k::processes])
        weight = sum(pipe.recv() for pipe in pipes)
        vector.copy_(sums.sum(0) / weight)

    run_rounds(Meter(orders, lambda: vector.numpy().copy()), one_round)
    for pipe in pipes:
        pipe.send(None)


if __name__ == "__main__":
    main()
