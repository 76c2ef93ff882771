"""Three algorithms with three seeds each: curves with bands, since one seed says little.

A seed changes the starting model, the cohorts and the batches, and here the partition as well.
"""

from pathlib import Path

import fieldfare as ff


def job(algorithm, seed):
    """One arm with one seed."""
    return ff.Job(
        model=ff.mlp(64, 32, 10),
        data=ff.data.digits(clients=60, partition=ff.dirichlet(0.3), seed=seed),
        algorithm=algorithm,
        training=ff.Training(lr=0.1, batch_size=10, epochs=2),
        seed=seed,
    )


arms = {
    "FedAvg": ff.FedAvg(rounds=30, cohort=12),
    "FedAvgM": ff.FedAvgM(rounds=30, cohort=12, beta=0.7),
    "SCAFFOLD": ff.Scaffold(rounds=30, cohort=12),
}
study = ff.Study(
    {name: {seed: job(algorithm, seed) for seed in (0, 1, 2)} for name, algorithm in arms.items()},
    claims=Path(__file__).with_suffix(".claims.toml"),
    name="seeds",
)

if __name__ == "__main__":
    study.run()
