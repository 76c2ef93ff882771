"""Waiting for all, waiting for the fastest, or not waiting: three schedules on the same unlike phones.

The phones are made up to match a published log (they charge at night, a sixth may work at once); compare the curves
over virtual time, and over device-hours, in the report.
"""

from pathlib import Path

import fieldfare as ff

data = ff.data.digits(clients=200, partition=ff.dirichlet(0.3), seed=1)


def arm(algorithm, seed):
    """One schedule with one seed, everything else equal."""
    return ff.Job(
        model=ff.mlp(64, 32, 10),
        data=data,
        algorithm=algorithm,
        training=ff.Training(lr=0.1, batch_size=10, epochs=5),
        seed=seed,
        simulated=ff.Simulated(fleet=ff.fleet.generate("flash-charging", flops_per_s=3e4)),
    )


arms = {
    "wait for all": ff.FedAvg(rounds=60, cohort=10),
    "wait for the fastest": ff.SemiSync(rounds=60, cohort=10, over=1.3),
    "do not wait": ff.FedBuff(rounds=120, cohort=20, buffer=5),
}
study = ff.Study(
    {name: {seed: arm(algorithm, seed) for seed in (0, 1, 2)} for name, algorithm in arms.items()},
    claims=Path(__file__).with_suffix(".claims.toml"),
    name="asynchronous",
)

if __name__ == "__main__":
    study.run()
