"""One model for all, or one for each? Everyone is measured on its own held-out digits, with its own model.

Each client writes two digits only. FedAvg's single model serves all ten; FedRep keeps the last layer ("2") on the
device; Ditto trains a second, personal model beside the global one.
"""

from pathlib import Path

import fieldfare as ff

data = ff.data.digits(clients=50, partition=ff.labels_per_client(2)).holdout(0.3)


def arm(algorithm):
    """One algorithm; `personal_accuracy_mean` in the result is what its clients would see on their own data."""
    return ff.Job(
        model=ff.mlp(64, 32, 10),
        data=data,
        algorithm=algorithm,
        training=ff.Training(lr=0.1, batch_size=10, epochs=2),
        evaluate=ff.Evaluation(every=10, clients=ff.Everyone(), clients_every=20, personal=True),
    )


study = ff.Study(
    {
        "FedAvg": arm(ff.FedAvg(rounds=40, cohort=20)),
        "FedRep": arm(ff.FedRep(rounds=40, cohort=20, personal=["2"], head_epochs=3)),
        "Ditto": arm(ff.Ditto(rounds=40, cohort=20, lam=0.1)),
    },
    claims=Path(__file__).with_suffix(".claims.toml"),
    name="personalised",
)

if __name__ == "__main__":
    study.run()
