"""Waiting or not on measured phones: CIFAR-10, 10,000 images on 400 phones of FLASH's users, unlike in their labels.

As `flash_mnist.py`, on a harder task, with a network of three million multiply-adds an image; settings are the best
found on another seed. A quarter of an hour on one core; needs Pillow and pyarrow.
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
    """Three convolutions and a dense layer, 34,000 parameters: 17 MFLOP an example in training."""
    layers = []
    for a, b in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


x, y = images("train_part1", 10_000)
test = dict(zip("xy", images("test_part1", 1_000), strict=True))
data = ff.data.from_numpy(x, y, partition=ff.dirichlet(0.5), clients=400, test=test, name="CIFAR-10")
phones = ff.fleet.phones_of(str(DATA), days="shuffled", noise=0.2)


def arm(algorithm, lr, seed):
    """One schedule with one seed, until the test accuracy is 0.4."""
    how = ff.Training(lr=lr, batch_size=10, epochs=4)
    often, stop, on = ff.Evaluation(every=5), ff.StopAt(at_least=0.4), ff.Simulated(fleet=phones)
    return ff.Job(net, data, algorithm, how, evaluate=often, stop_at=stop, seed=seed, simulated=on)


buff, semi = (ff.FedBuff(200, cohort=60, buffer=20), 0.1), (ff.SemiSync(300, cohort=10, over=1.3), 0.05)
arms = {"do not wait": buff, "wait for the fastest": semi, "wait for all of 10": (ff.FedAvg(300, cohort=10), 0.1)}
arms |= {"wait for all of 60": (ff.FedAvg(100, cohort=60), 0.1)}
study = ff.Study({name: {seed: arm(*one, seed) for seed in range(3)} for name, one in arms.items()},
                 claims=Path(__file__).with_suffix(".claims.toml"), name="flash-cifar")  # fmt: skip

if __name__ == "__main__":
    study.run()
