"""HADFL and its rivals on CIFAR-10: 10,000 images on four devices, a net of three million multiply-adds an image.

As `hadfl_study.py`, on a harder task: three seeds, within an hour on two cores. FIELDFARE_DATA names the folder that
holds cifar10; needs Pillow, pyarrow and torch.
"""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image
from torch import nn

import fieldfare as ff
from fieldfare.fleet.fleet import Fleet
from fieldfare.work.adapt import as_net


def images(part, count):
    """The first images `[count, 3, 32, 32]` of a part in -1..1, and their labels."""
    file = Path(os.environ.get("FIELDFARE_DATA", "data")) / "cifar10" / f"{part}.parquet"
    if not file.is_file():
        raise ff.UsageError(f"{file} is not there: FIELDFARE_DATA is the folder that holds cifar10.")
    table = parquet.read_table(file, columns=["image", "label"]).slice(0, count)
    x = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in table["image"].to_pylist()])
    return x.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1, table["label"].to_numpy().astype(np.int64)


def net():
    """Three convolutions and two dense layers."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))


(x, y), test = images("train_part1", 10_000), dict(zip("xy", images("test_part1", 2_000), strict=True))
known = as_net(net, example={"x": x[:2], "y": y[:2]})
unlike = Fleet(32 * known.flops() * np.array([1, 1, 1 / 3, 1 / 3]), 1e15, 1e15, overhead_s=0.0)
links = ff.Links(latency_s=0.0, bytes_per_s=4.0 * known.init(0).size / 2)
# {method: (algorithm, exchanges between evaluations)}: each about 60 evaluations within about the same virtual time
methods = {"FedAvg": (ff.DecentralisedFedAvg(60), 1), "HADFL": (ff.HADFL(60), 1), "paced ring": (ff.PacedRing(240), 4),
           "AD-PSGD, 22 steps": (ff.PairGossip(180, steps=22), 3)}  # fmt: skip
splits = {"IID": (ff.iid(), 0.5), "Dirichlet 0.3": (ff.dirichlet(0.3), 0.4)}
arms = {f"{name} {method}": {} for name in splits for method in methods}
for (name, (partition, target)), seed in ((one, seed) for one in splits.items() for seed in range(3)):
    data = ff.data.from_numpy(x, y, partition=partition, clients=4, test=test, seed=seed, name="CIFAR-10")
    for method, (algorithm, every) in methods.items():
        arms[f"{name} {method}"][seed] = ff.Job(
            net, data, algorithm, ff.Training(lr=0.1, batch_size=32, steps=22), seed=seed,
            evaluate=ff.Evaluation(every=every), simulated=ff.Simulated(unlike, links=links),
            stop_at=ff.StopAt(at_least=target) if method.startswith("AD-PSGD") else None,
        )  # fmt: skip
panels = [ff.Panel(name, {one: f"{name} {one}" for one in methods}, at, "FedAvg") for name, (_, at) in splits.items()]
study = ff.Study(arms, name="hadfl-cifar", panels=panels, processes=2, quick=1)

if __name__ == "__main__":
    study.run()
