"""`iot_study.py` on pictures: Fashion-MNIST (6,000) and CIFAR-10 (10,000), with convolutional nets, unlike in labels.

FIELDFARE_DATA names the folder that holds fashion_mnist and cifar10; of what is not there nothing is run. Twenty
clients, ten a round, levels and devices as on digits; every net is cut by its channels, the convolutions' too.
`fieldfare run examples/iot_real.py --job fashion` (or cifar) runs one of them, `--quick` one seed of each arm.
Needs torch; CIFAR-10 also Pillow and pyarrow.
"""

import io
import os
from pathlib import Path

import numpy as np
from torch import nn

import fieldfare as ff
from fieldfare.fleet.fleet import Fleet
from fieldfare.work.submodel import Rolling, submodels

ROOT, LEVELS, CLIENTS = Path(os.environ.get("FIELDFARE_DATA", "data")), (1.0, 0.5, 0.25, 0.125), 20
MIXES = {"graded": (0, 1, 2, 3), "1:4": (0, 3, 3, 3, 3)}
SHOWN = {"whole": "accuracy", **{f"1/{n}": f"accuracy@1/{n}" for n in (2, 4, 8)}}
TRAINING = ff.Training(lr=0.1, batch_size=20, steps=10)


def fashion_mnist():
    """Images `[n, 1, 28, 28]` in -1..1 and labels: 6,000, and 2,000 for the test."""
    with np.load(ROOT / "fashion_mnist" / "fashion.npz", allow_pickle=False) as z:
        parts = [(z[f"x_{part}"][:count], z[f"y_{part}"][:count]) for part, count in (("train", 6000), ("test", 2000))]
    return [(x.reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1, y.astype(np.int64)) for x, y in parts]


def cifar10():
    """Images `[n, 3, 32, 32]` in -1..1 and labels: 10,000, and 2,000 for the test."""
    from PIL import Image
    from pyarrow import parquet

    found = []
    for part, count in (("train_part1", 10_000), ("test_part1", 2_000)):
        table = parquet.read_table(ROOT / "cifar10" / f"{part}.parquet", columns=["image", "label"]).slice(0, count)
        x = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in table["image"].to_pylist()])
        x = x.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        found.append((x, table["label"].to_numpy().astype(np.int64)))
    return found


def net(shape, share=1.0):
    """Convolutions of 16, 32 (and for CIFAR-10 64) channels, and two dense layers; a `share` of all of them."""

    def made():
        layers, before, side = [], shape[0], shape[1]
        for width in (16, 32) if side < 32 else (16, 32, 64):
            layers += [nn.Conv2d(before, int(share * width), 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            before, side = int(share * width), side // 2
        dense = int(share * 64)
        layers += [nn.Flatten(), nn.Linear(before * side**2, dense), nn.ReLU(), nn.Linear(dense, 10)]
        return nn.Sequential(*layers)

    return made


def methods(family, shape, assign, rounds, example):
    """{method: (model, algorithm, levels of the devices)}; as many rounds as time or bytes of `rounds` of prefixes."""
    nets = [family.at(level) for level in family.levels]
    bytes_of = np.array([one.layout.size for one in nets]) / np.mean([nets[level].layout.size for level in assign])
    view, whole, hold = family.view(assign=assign), int((assign == 0).sum()), int((assign <= 2).sum())
    small, quarter = (submodels(net(shape, share), (1.0,), example=example) for share in (0.125, 0.25))
    few = round(rounds / bytes_of[3])
    alone = rounds if (assign == 2).any() else round(rounds * nets[0].flops() / nets[2].flops())
    sent = ff.HeteroFL(round(1.6 * rounds), 10, view=view, scaled=False)
    return {
        "oracle": (family, ff.FedAvg(rounds, 10), 0 * assign),
        "smallest for all": (small, ff.FedAvg(few, 10), assign),
        "exclude the weak": (family, ff.FedAvg(rounds, ff.Sample(whole, "whole")), assign),
        "quarter alone": (quarter, ff.FedAvg(alone, ff.Sample(min(10, hold), "quarter")), assign),
        "HeteroFL": (family, ff.HeteroFL(rounds, 10, view=view), assign),
        "HeteroFL, no scaler": (family, ff.HeteroFL(rounds, 10, view=view, scaled=False), assign),
        "FedRolex": (family, ff.FedRolex(rounds, 10, view=family.view(Rolling(), assign)), assign),
        "FjORD": (family, ff.FjORD(rounds, 10, view=view, shares=LEVELS, distil=1.0), assign),
        "int8 replies": (family, ff.compress(sent, bits=8), assign),
        "ours": (family, ff.NestedFL(rounds, 10, view=view, shares=LEVELS, own_start=True), assign),
    }


def study_of(name, read, claims, rounds, seeds):
    """A study of one data set: its methods with devices of graded levels and with one whole to four of an eighth."""
    (x, y), (test_x, test_y) = read()
    example, test = {"x": x[:2], "y": y[:2]}, {"x": test_x, "y": test_y}
    family = submodels(net(x.shape[1:]), LEVELS, example=example)
    nets = [family.at(level) for level in family.levels]
    sizes, flops = np.array([4.0 * one.layout.size for one in nets]), np.array([20 * one.flops() for one in nets])
    split = {"partition": ff.dirichlet(0.3), "clients": CLIENTS, "test": test, "name": name}
    data = {seed: ff.data.from_numpy(x, y, seed=seed, **split) for seed in range(seeds)}
    arms, times, moved = {}, {}, {}
    for mix, levels in MIXES.items():
        assign, told = np.resize(levels, CLIENTS), {}
        for method, (model, algorithm, devices) in methods(family, x.shape[1:], assign, rounds, example).items():
            flags = {"whole": devices == 0, "quarter": devices <= 2}
            fleet = Fleet(flops[devices], sizes[devices], sizes[devices], 0.0, flags=flags, name="boards")
            told[method] = f"{mix} {method}"
            arms[told[method]] = {
                seed: ff.Job(
                    model, data[seed], algorithm, TRAINING, seed=seed, evaluate=ff.Evaluation(every=3),
                    simulated=ff.Simulated(fleet=fleet),
                )
                for seed in data
            }  # fmt: skip
        times[mix], moved[mix] = (11.0 * rounds, told), (18.0 * rounds * sizes[assign].mean(), told)
    costs = [ff.EqualCost("At equal virtual time", "virtual_s", times, SHOWN, "oracle"),
             ff.EqualCost("At equal bytes", "bytes", moved, SHOWN, "oracle")]  # fmt: skip
    claims = Path(__file__).with_name(claims)
    return ff.Study(arms, claims=claims, name=f"iot-{name}", costs=costs, quick=1, processes=2)


if (ROOT / "fashion_mnist").is_dir():
    fashion = study_of("Fashion-MNIST", fashion_mnist, "iot_real.fashion.claims.toml", rounds=40, seeds=3)
if (ROOT / "cifar10").is_dir():
    cifar = study_of("CIFAR-10", cifar10, "iot_real.cifar.claims.toml", rounds=80, seeds=2)
if not {"fashion", "cifar"} & set(globals()):
    raise ff.UsageError(f"{ROOT} has neither: FIELDFARE_DATA is the folder that holds fashion_mnist or cifar10.")
