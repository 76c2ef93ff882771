"""Waiting or not on measured phones: CIFAR-10, 10,000 images on 100 phones of FLASH's users, unlike in their labels.

As `flash_mnist.py`, on a harder task, with a network of eight million multiply-adds an image. Takes hours on two cores;
needs Pillow and pyarrow.
"""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image
from torch import nn

import fieldfare as ff

DATA = Path(os.environ.get("FIELDFARE_DATA", "data"))


def images(part, count):
    """The first images `[count, 3, 32, 32]` of a part in -1..1, and their labels."""
    file = DATA / "cifar10" / f"{part}.parquet"
    if not file.is_file():
        raise ff.UsageError(f"{file} is not there: FIELDFARE_DATA is the folder that holds cifar10.")
    table = parquet.read_table(file, columns=["image", "label"]).slice(0, count)
    pixels = [np.asarray(Image.open(io.BytesIO(one))) for one in table["image"].to_pylist()]
    x = np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32)
    return x / np.float32(127.5) - np.float32(1), table["label"].to_numpy().astype(np.int64)


def net():
    """Three convolutions and two dense layers."""
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))


x, y = images("train_part1", 10_000)
test_x, test_y = images("test_part1", 1_000)
test = {"x": test_x, "y": test_y}
data = ff.data.from_numpy(x, y, partition=ff.dirichlet(0.5), clients=100, test=test, name="CIFAR-10")
phones = ff.fleet.phones_of(str(DATA), days="shuffled", noise=0.2)


def arm(algorithm, seed):
    """One schedule with one seed, until the test accuracy is 0.5."""
    stop, training = ff.StopAt(at_least=0.5), ff.Training(lr=0.1, batch_size=10, epochs=2)
    return ff.Job(net, data, algorithm, training, stop_at=stop, seed=seed, simulated=ff.Simulated(fleet=phones))


arms = {
    "do not wait": ff.FedBuff(rounds=400, cohort=15, buffer=5),
    "wait for the fastest": ff.SemiSync(rounds=150, cohort=10, over=1.3),
    "wait for all": ff.FedAvg(rounds=150, cohort=10),
}
study = ff.Study({k: {s: arm(a, s) for s in range(5)} for k, a in arms.items()}, name="flash-cifar")

if __name__ == "__main__":
    study.run()
