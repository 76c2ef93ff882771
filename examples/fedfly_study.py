"""FedFly's VGG-5 on four devices and two edge servers: what a move costs, by policy, by moment and by link.

CIFAR-10 where FIELDFARE_DATA names the folder that holds cifar10 (10,000 images; needs Pillow and pyarrow), else
digits and a small VGG-5, whose session has a tenth of the bytes and whose devices take a tenth of the time. Device 0
moves from edge 0 to edge 1 when a share of its round is over, and can reach the old edge until its session has crossed.
Learning rate, momentum and batches of 100 images (20 digits) are the paper's. `--quick`: one seed where there are two.
"""

import io
import os
from pathlib import Path

import numpy as np

import fieldfare as ff
from fieldfare.fleet.fleet import Fleet
from fieldfare.models import vgg5

FOLDER = Path(os.environ.get("FIELDFARE_DATA", "")) / "cifar10"
CIFAR = "FIELDFARE_DATA" in os.environ and FOLDER.is_dir()
SHARES, (BATCH, SLOW) = (10, 25, 50, 75, 90), (100, 1.0) if CIFAR else (20, 10.0)


def images(part, count):
    """The first images `[count, 3, 32, 32]` of a part of CIFAR-10 as bytes, and their labels."""
    from PIL import Image
    from pyarrow import parquet

    table = parquet.read_table(FOLDER / f"{part}.parquet", columns=["image", "label"]).slice(0, count)
    x = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in table["image"].to_pylist()])
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), table["label"].to_numpy().astype(np.int64)


if CIFAR:
    net = ff.split_net(lambda: vgg5(augment=True), transform="unit")
    (x, y), test = images("train_part1", 10_000), dict(zip("xy", images("test_part1", 1_000), strict=True))
else:
    net, whole = ff.split_net(lambda: vgg5((1, 8, 8), unflatten=True)), ff.data.digits(1, test_fraction=0.3)
    (x, y), test = (whole.columns[name][whole.rows] for name in "xy"), whole.test
net = net.with_example({"x": x[:2], "y": y[:2]})
cut = net.cut("pool2")
SPEED = BATCH * (cut.device_forward + cut.device_backward) / (1.7 / SLOW)
"""FLOP/s of a device that computes its part of a batch in 1.7 s (0.17 s of digits): a Raspberry Pi."""


def shared(shares, count, seed=0):
    """The first `count` examples, a share of them for each device; the mover is the first."""
    ends = np.round(np.cumsum(shares) / np.sum(shares) * count).astype(np.int64)
    rows = np.random.default_rng(seed).permutation(count)
    return ff.Federated({"x": x, "y": y}, np.append(0, ends), rows, classes=10, test=test, name="images")


EVEN, MORE = shared([1, 1, 1, 1], len(x)), shared([3, 1, 1, 1], len(x))
FEW, CROWD = shared([1, 1, 1, 1], 4_000 if CIFAR else len(x)), shared([1] * 20, len(x))
SEEDS = {seed: shared([1, 1, 1, 1], 1_000 if CIFAR else 800, seed) for seed in range(2)}


def job(policy, at=(), rate=75, data=EVEN, speeds=(1, 1, 1, 1), train=True, rounds=1, batch=BATCH, steps=None,
        seed=0, **more):  # fmt: skip
    """A job whose moves are `at` (device, round, share, edge), with links of `rate` Mbit/s between edges."""
    given = {"cut": "pool2", "homes": tuple(int(i >= len(speeds) / 2) for i in range(len(speeds))), **more}
    ways = {("device", "edge"): (0.002, 75), ("edge", "edge"): (0.005, rate), ("edge", "central"): (0.01, 1000),
            ("device", "central"): (0.012, 75)}  # fmt: skip
    links = ff.Links(roles={roles: (latency / SLOW, 125_000.0 * mbit) for roles, (latency, mbit) in ways.items()})
    fleet, mobility = Fleet(SPEED * np.array(speeds, np.float64), 1e15, 1e15, overhead_s=0.0), ff.MovesAt(tuple(at))
    simulated = ff.Simulated(fleet, train=train, links=links, mobility=mobility if at else None, workers=1)
    passes = {"steps": steps, "epochs": 1 if CIFAR or rounds > 1 else 2}
    training = ff.Training(lr=0.01, momentum=0.9, batch_size=batch, **passes)
    algorithm = ff.FedFly(rounds, policy=policy, patience_s=600.0, **given)
    return ff.Job(net, data, algorithm, training, seed=seed, simulated=simulated)


STOP, PRE, AGAIN = ff.StopAndCopy(), ff.PreCopy(), ff.Restart()
arms = {"still": job(PRE), "more still": job(PRE, data=MORE),
        "behind still": job(PRE, train=False, speeds=(1, 1, 0.4, 1))}  # fmt: skip
for share in SHARES:  # "more": the mover has half of the data; "behind": another device is slower than the mover
    at = [(0, 1, share / 100, 1)]
    for name, given in {"": {}, "more ": {"data": MORE}, "behind ": {"speeds": (1, 1, 0.4, 1)}}.items():
        arms[f"{name}restart {share}"] = job(AGAIN, at, train=False, **given)
        arms[f"{name}stop 75 {share}"] = job(STOP, at, train=False, **given)
        if not name or share in (50, 90):
            arms[f"{name}pre-copy 75 {share}"] = job(PRE, at, **given)
    arms |= {f"stop {rate} {share}": job(STOP, at, rate, train=False) for rate in (20, 5)}
    arms |= {f"pre-copy {rate} {share}": job(PRE, at, rate) for rate in (20, 5) if share in (10, 50, 90)}
half, slow = [(0, 1, 0.5, 1)], {"speeds": (0.5,) * 4, "rate": 5}  # time enough for state to cross at 5 Mbit/s
arms |= {"slow still": job(STOP, train=False, **slow), "slow stop": job(STOP, half, train=False, **slow),
         "slow pre-copy": job(PRE, half, **slow), "few still": job(PRE, data=FEW)}  # fmt: skip
# Other ways for the state to cross, and less of it: half way, at 20 Mbit/s, with fewer images.
others = {"stop packed": ff.StopAndCopy(compress=True), "stop relayed": ff.StopAndCopy("relay"),
          "stop carried": ff.StopAndCopy("carry"), "pre-copy relayed": ff.PreCopy(route="relay"),
          "pre-copy fp16": ff.PreCopy(lossy="fp16", replay=False),
          "pre-copy int8": ff.PreCopy(lossy="int8", replay=False),
          "pre-copy without replay": ff.PreCopy(replay=False), "pre-copy": PRE, "stop": STOP}  # fmt: skip
arms |= {f"few {name}": job(policy, half, 20, data=FEW) for name, policy in others.items()}
# Where a restart is better, and the policy that finds it: early, over a slow link.
arms |= {f"cheapest {f}": job(ff.Cheapest(5 * 125_000.0), [(0, 1, f / 100, 1)], 5, train=False) for f in (10, 50)}
# Twenty movers from one edge to one edge, at once; live copies three at a time, for all at once fill the link.
many = {"data": CROWD, "speeds": (1,) * 20, "batch": BATCH // 4, "steps": 40, "homes": (0,) * 20}
crowd = [(i, 1, 0.1, 1) for i in range(20)]
arms["crowd still"], arms["crowd pre-copy"] = job(PRE, **many), job(PRE, crowd, arrivals=3, **many)
arms["crowd stop"] = job(STOP, crowd, train=False, **many)
# Accuracy over ten rounds, without moves and with one in every round.
back = [(0, r, 0.5, r % 2) for r in range(1, 11)]
long = {"still": (PRE, ()), "restart": (AGAIN, back), "pre-copy": (PRE, back),
        "fp16": (others["pre-copy fp16"], back), "int8": (others["pre-copy int8"], back)}  # fmt: skip
for name, (policy, at) in long.items():
    jobs = {
        seed: job(policy, at, data=data, batch=BATCH // (10 if CIFAR else 1), rounds=10, seed=seed)
        for seed, data in SEEDS.items()
    }
    arms[f"rounds {name}"] = jobs
# Devices that train whole beside those that do not; labels that stay; cuts by the planner.
arms["two train whole"] = job(PRE, half, data=FEW, cut=("pool2", "pool2", None, None))
arms["labels stay"] = job(PRE, half, data=FEW, tail="relu4")
arms["planned cuts"] = job(PRE, half, data=FEW, cut="plan or whole", speeds=(1, 1, 4, 20))


def costs(title, kind="", rate=75, still="still", **more):
    """Moves at all shares, by policy, as the report tells of them."""
    ways = {"restart": f"{kind}restart", "stop-and-copy": f"{kind}stop {rate}", "pre-copy": f"{kind}pre-copy {rate}"}
    points = [(share / 100, policy, f"{arm} {share}") for share in SHARES for policy, arm in ways.items()]
    points = [point for point in points if point[2] in arms]
    return ff.Handovers(title, still, points, bytes_per_s=125_000.0 * rate, **more)


paper = {"published": ((0.5, 0.33), (0.9, 0.45))}
handovers = [costs("Equal data, 75 Mbit/s", **paper), costs("Equal data, 20 Mbit/s", rate=20),
             costs("Equal data, 5 Mbit/s", rate=5),
             costs("Half of the data at the mover", "more ", still="more still", **paper),
             costs("Another device is slower than the mover", "behind ", still="behind still")]  # fmt: skip
rounds = ff.Panel("Ten rounds, a move in each", {name: f"rounds {name}" for name in long}, 0.35 if CIFAR else 0.9)
study = ff.Study(arms, claims=Path(__file__).with_suffix(".claims.toml"), name="fedfly", quick=1, processes=2,
                 handovers=handovers, panels=[rounds],
                 shown={"pre-copy": "pre-copy 20 50", "stop-and-copy": "stop 20 50"})  # fmt: skip

if __name__ == "__main__":
    study.run()
