"""FedJAX 0.0.17 on jax 0.4.30: its federated averaging over in-memory federated data.

One process; XLA uses the cores as it likes, which is this peer's best. ``skip_shuffle`` keeps batches in
stored order; its client sampler is replaced by the given cohorts.
"""

from __future__ import annotations

from typing import Any

import fedjax
import jax
from arm import Meter, read_orders, run_rounds
from jax_models import from_vector, jax_data, loss, to_vector


def main() -> None:
    """Run the arm."""
    orders = read_orders()
    w = orders.workload
    x, y = jax_data(w.name)
    federation = fedjax.InMemoryFederatedData(
        {b"%06d" % i: {"x": x[i % w.distinct], "y": y[i % w.distinct]} for i in range(w.population)}
    )
    of_batch = loss(w.name)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.grad(lambda parameters, batch, key: of_batch(parameters, batch["x"], batch["y"])),
        fedjax.optimizers.sgd(w.rate),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=w.batch, num_epochs=1, skip_shuffle=True),
    )
    state: Any = algorithm.init(from_vector(w.name, orders.start))
    meter = Meter(orders, lambda: to_vector(w.name, state.params))

    def one_round(cohort: list[int]) -> None:
        nonlocal state
        keys = jax.random.split(jax.random.PRNGKey(meter.round), len(cohort))
        clients = federation.get_clients(b"%06d" % i for i in cohort)
        state, _ = algorithm.apply(state, [(*c, key) for c, key in zip(clients, keys, strict=True)])
        jax.block_until_ready(state.params)

    run_rounds(meter, one_round)


if __name__ == "__main__":
    main()
