"""Your own table: a CSV whose rows name their hospital becomes a federation of hospitals."""

import csv
import tempfile
from pathlib import Path

import fieldfare as ff
from fieldfare.core import rng


def write_patients(path):
    """Eight hospitals of unlike size and population; one age in twenty is missing, as in real records."""
    g = rng.stream(0, "patients")
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["hospital", "age", "pressure", "smokes", "ill"])
        for hospital in ["Aarau", "Baden", "Chur", "Davos", "Entlebuch", "Frauenfeld", "Genf", "Hinwil"]:
            mean_age = g.uniform(35, 75)
            for _ in range(g.integers(60, 240)):
                age, smokes = g.normal(mean_age, 12), g.random() < 0.3
                pressure = 100 + 0.5 * age + g.normal(0, 12)
                risk = 0.08 * (age - 55) + 0.05 * (pressure - 128) + 1.5 * smokes - 0.5
                told = "" if g.random() < 0.05 else round(age)
                rows.writerow([hospital, told, round(pressure), "yes" if smokes else "no", int(g.logistic() < risk)])


with tempfile.TemporaryDirectory() as folder:
    write_patients(Path(folder) / "patients.csv")
    data = ff.data.from_csv(
        Path(folder) / "patients.csv",
        id_column="hospital",
        label="ill",
        one_hot=["smokes"],
        fill="mean",
        standardise=True,
        test_fraction=0.2,
    )

job = ff.Job(
    model=ff.mlp(data.columns["x"].shape[1], 2),  # logistic regression
    data=data.holdout(0.2),
    algorithm=ff.FedAvg(rounds=30, cohort=ff.Everyone()),
    training=ff.Training(lr=0.1, batch_size=16),
    evaluate=ff.Evaluation(clients=ff.Everyone(), clients_every=10),
    name="hospitals",
)

if __name__ == "__main__":
    result = job.run()
    print(data, result.final, sep="\n")
