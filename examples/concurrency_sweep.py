"""How many clients at once? A sweep of FedBuff without training, after FLINT (Zhang et al., MLSys 2023), figure 8.

Phones of which few may work at once, with unlike amounts of data: past a point devices are what lacks, and asking more
of them wastes more. Look at tasks per hour, and at how tasks end, in the report.
"""

import fieldfare as ff

data = ff.data.synthetic(
    clients=8000, classes=2, features=4, min_examples=1, max_examples=40_000, log_mean=2, log_sigma=1.85
)

job = ff.Job(
    model=ff.mlp(4, 2),
    data=data,
    algorithm=ff.FedBuff(rounds=1_000_000, cohort=120, buffer=50, stale=ff.Staleness(limit=10)),
    simulated=ff.Simulated(fleet=ff.fleet.generate("flint-strict", flops_per_s=2.0)),
)

sweep = ff.Sweep(
    job,
    over={"algorithm.cohort": (60, 120, 180, 240), "algorithm.buffer": (20, 50)},
    seeds=(0, 1),
    system_only=True,
    hours=12,
    name="concurrency",
)

if __name__ == "__main__":
    sweep.run()
