"""Your own client computation: federated k-means, in NumPy alone, under FedAvg as it is.

The model is the statistics of the clusters: per example, how much falls into each cluster and the sum of what does. A
client sends its own statistics minus those it was sent, so FedAvg's mean is Lloyd's algorithm on all the data at once.
"""

import numpy as np

import fieldfare as ff
from fieldfare.core import rng
from fieldfare.core.work import Cost, Output


class KMeans:
    """What `Job(model=...)` needs (`init` to `describe`), and the work it binds (the rest)."""

    k, features = 5, 2

    def init(self, seed):
        centres = rng.stream(seed, "centres").uniform(-4, 4, (self.k, self.features))
        return ff.Params.pack({"sum": centres / self.k, "mass": np.full(self.k, 1 / self.k)})

    def works(self, training, local):
        return {"train": self}

    def central(self, test):
        return lambda model: {"loss": float(self.assign(model, test["x"])[1].mean())}

    def describe(self):
        return {"model": "k-means", "k": self.k}

    def __call__(self, cohort):
        sent, rows, loss = ff.Params(cohort.models[0], cohort.layout), [], []
        for x in (cohort.data.client(i)["x"] for i in range(cohort.n)):
            cluster, squared = self.assign(sent, x)
            share = np.eye(self.k)[cluster] / len(x)
            rows.append(np.concatenate([(share.T @ x).ravel(), share.sum(axis=0)]) - sent.vector)
            loss.append(squared.mean())
        return Output({"delta": np.array(rows)}, cohort.data.sizes.astype(float), {"loss": np.array(loss)})

    def cost(self, examples, layout, config):
        return Cost(flops=3.0 * layout.size * examples, bytes_down=4.0 * layout.size, bytes_up=4.0 * layout.size)

    def slots(self, layout):
        return {}  # nothing is kept on a client between rounds

    def assign(self, model, x):
        """The nearest centre of every row, and the squared distance to it, `[n]` each."""
        centres = model.tensor("sum") / np.maximum(model.tensor("mass"), 1e-6)[:, None]  # an empty one is at 0
        squared = ((x[:, None] - centres) ** 2).sum(axis=2)
        return squared.argmin(axis=1), squared.min(axis=1)


g = rng.stream(0, "points")
points = g.uniform(-4, 4, (5, 2))[g.integers(5, size=1200)] + 0.4 * g.normal(size=(1200, 2))
data = ff.federate({"x": points[:1000]}, ff.iid(clients=20), test={"x": points[1000:]})
job = ff.Job(model=KMeans(), data=data, algorithm=ff.FedAvg(rounds=15, cohort=ff.Everyone()))

if __name__ == "__main__":
    print(job.run().final)
