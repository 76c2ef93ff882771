"""Plain JAX functions: a small network on real digits, trained by optax's Adam.  pip install 'fieldfare[digits,jax]'

The step is compiled for one client's batch and runs in a loop; optax's state is new whenever a client is asked.
"""

import jax
import jax.numpy as jnp
import optax

import fieldfare as ff


def init(key):
    """Weights from the job's seed; any pytree of float32 arrays will do."""
    first, second = jax.random.split(key)
    return {
        "hidden": {"w": jax.random.normal(first, (64, 32)) / 8.0, "b": jnp.zeros(32)},
        "output": {"w": jax.random.normal(second, (32, 10)) / 6.0, "b": jnp.zeros(10)},
    }


def predict(params, x):
    h = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return h @ params["output"]["w"] + params["output"]["b"]


def loss(params, x, y):
    """One number per example; a mean over the batch would do, too, but compiles once for every size of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, x), y)


job = ff.Job(
    model=ff.jax_net(init, loss, predict, optimizer=optax.adam),
    data=ff.data.digits(clients=30, partition=ff.dirichlet(0.3)),
    algorithm=ff.FedAvg(rounds=15, cohort=10),
    training=ff.Training(lr=0.005, batch_size=16, epochs=2),
    name="jax-mlp",
)

if __name__ == "__main__":
    print(job.run().final)
