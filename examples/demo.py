"""The demo: real handwritten digits over 100 unlike devices, four algorithms on the same federation."""

from pathlib import Path

import fieldfare as ff

data = ff.data.digits(clients=100, partition=ff.dirichlet(0.3)).holdout(0.2)

devices = ff.fleet.phones(drop_out=0.05, overhead_s=0.5, downlink_bytes_per_s=1e5, uplink_bytes_per_s=2e4)


def arm(algorithm, lr=0.3):
    """One algorithm, everything else equal."""
    return ff.Job(
        model=ff.mlp(64, 64, 10),
        data=data,
        algorithm=algorithm,
        training=ff.Training(lr=lr, batch_size=10, epochs=2),
        evaluate=ff.Evaluation(clients=ff.Everyone(), clients_every=25),
        simulated=ff.Simulated(fleet=devices),
    )


study = ff.Study(
    {
        "FedAvg": arm(ff.FedAvg(rounds=100, cohort=20)),
        "FedAdam": arm(ff.FedAdam(rounds=100, cohort=20, lr=0.03)),
        "FedProx": arm(ff.FedProx(rounds=100, cohort=20, mu=0.1)),
        "SCAFFOLD": arm(ff.Scaffold(rounds=100, cohort=20)),
    },
    claims=Path(__file__).with_suffix(".claims.toml"),
    name="demo",
)

if __name__ == "__main__":
    study.run()
