"""Waiting or not on measured phones: MNIST by writer over the logs of FLASH's users.

Sessions, speeds and links are tables of real phones (in FIELDFARE_DATA), sampled independently. Schedules wait for all,
or ask 30 % more and wait for the fastest, or do not wait; settings are the best found on other seeds.
"""

import os
from pathlib import Path

import numpy as np
from torch import nn

import fieldfare as ff

DATA = Path(os.environ.get("FIELDFARE_DATA", "data"))


def images(part):
    """Images `[n, 1, 28, 28]` in 0..1, labels and writers of a part."""
    file = DATA / "mnist_by_writer" / f"{part}.npz"
    if not file.is_file():
        raise ff.UsageError(f"{file} is not there: set FIELDFARE_DATA to the folder that holds mnist_by_writer.")
    z = np.load(file, allow_pickle=False)
    return (z["x"][:, None] / np.float32(255)).astype(np.float32), z["y"].astype(np.int64), z["writer"]


def net():
    """The network FLASH timed on phones, for ten classes: 72 MFLOP an example in training."""
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10))


x, y, writer = images("train")
test = dict(zip("xy", (part[::3] for part in images("test")), strict=False))
data = ff.data.from_numpy(x, y, client=writer, test=test, name="MNIST by writer")
phones = ff.fleet.phones_of(str(DATA), days="shuffled", noise=0.2)


def arm(algorithm, seed):
    """One schedule with one seed, until the test accuracy is 0.95."""
    return ff.Job(
        model=net, data=data, algorithm=algorithm, training=ff.Training(lr=0.2, batch_size=10), seed=seed,
        stop_at=ff.StopAt(at_least=0.95), simulated=ff.Simulated(fleet=phones),
    )  # fmt: skip


arms = {
    "do not wait": ff.FedBuff(rounds=120, cohort=60, buffer=20),
    "do not wait, 12 at work": ff.FedBuff(rounds=150, cohort=12, buffer=6),
    "wait for the fastest": ff.SemiSync(rounds=60, cohort=10, over=1.3),
    "wait for all of 10": ff.FedAvg(rounds=60, cohort=10),
    "wait for all of 60": ff.FedAvg(rounds=40, cohort=60),
}
study = ff.Study(
    {name: {seed: arm(algorithm, seed) for seed in range(5)} for name, algorithm in arms.items()},
    claims=Path(__file__).with_suffix(".claims.toml"), name="flash-mnist",
)  # fmt: skip

if __name__ == "__main__":
    study.run()
