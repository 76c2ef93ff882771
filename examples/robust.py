"""Some clients lie: eight of forty have poisoned data, and robust rules fold around what they send.

The liars' pixels are thirty times too large and their labels shifted by one: their updates are large, and wrong.
"""

from pathlib import Path

import numpy as np

import fieldfare as ff

LIARS = 8
honest = ff.data.digits(clients=40, partition=ff.iid())
poisoned = {name: column.copy() for name, column in honest.columns.items()}
theirs = honest.block(np.arange(LIARS)).rows
poisoned["x"][theirs] *= 30
poisoned["y"][theirs] = (poisoned["y"][theirs] + 1) % 10
data = ff.Federated(poisoned, honest.offsets, honest.rows, classes=10, test=honest.test, name="poisoned digits")


def arm(algorithm):
    """The test set is clean: `accuracy` is what the honest would get."""
    training = ff.Training(lr=0.1, batch_size=10, epochs=2)
    return ff.Job(model=ff.mlp(64, 32, 10), data=data, algorithm=algorithm, training=training)


everyone = ff.Everyone()
study = ff.Study(
    {
        "mean": arm(ff.FedAvg(rounds=20, cohort=everyone)),
        "median": arm(ff.FedMedian(rounds=20, cohort=everyone)),
        "trimmed-mean": arm(ff.FedTrimmedMean(rounds=20, cohort=everyone, fraction=0.25)),
        "multi-Krum": arm(ff.Krum(rounds=20, cohort=everyone, byzantine=LIARS, keep=20)),
    },
    claims=Path(__file__).with_suffix(".claims.toml"),
    name="robust",
)

if __name__ == "__main__":
    study.run()
