"""HADFL and its rivals on digits, at one target: how much sooner each is there, and why.

A second is one local step of the fastest device; `cost` is what a whole model takes over a link, in seconds. Everybody
trains with batches of 16 at a learning rate of 0.1, as published; in "best rates" each method has its best of six,
found on other seeds. `fieldfare run examples/hadfl_study.py --quick` runs one seed of each arm.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

import fieldfare as ff
from fieldfare.fleet.drift import Drift
from fieldfare.fleet.fleet import Fleet
from fieldfare.ring_deaths import RingDeaths
from fieldfare.work.adapt import as_net

NET, BATCH, FEW, MANY = ff.mlp(64, 96, 10), 16, range(5), range(20)
STEP_FLOPS, MODEL_BYTES = BATCH * as_net(NET).flops(), float(as_net(NET).init(0).bytes)
# {method: (algorithm, local steps of the slowest device (None: its own), exchanges between evaluations, seeds)}
METHODS = {
    "FedAvg": (ff.DecentralisedFedAvg(60), 22, 1, MANY), "HADFL": (ff.HADFL(60), 22, 1, MANY),
    "paced ring": (ff.PacedRing(300), 22, 4, MANY),
    "paced ring, overlap": (ff.PacedRing(300, overlap=True), 22, 4, FEW),
    "FedAvg, 5 steps": (ff.DecentralisedFedAvg(240), 5, 4, FEW), "all-reduce": (ff.AllReduce(1200), None, 22, FEW),
    "AD-PSGD": (ff.PairGossip(3000), None, 22, FEW), "AD-PSGD, 22 steps": (ff.PairGossip(180, steps=22), None, 1, FEW),
    "D-PSGD": (ff.GraphGossip(1200), None, 22, FEW), "gossip": (ff.PairGossip(180, 22, "push"), None, 1, FEW),
}  # fmt: skip
digits = cache(lambda n, partition, seed: ff.data.digits(n, partition, test_fraction=0.3, seed=seed))
arms, panels = {}, []


def fleet(*powers, **more):
    """Devices of these powers, the fastest of one local step a second."""
    speeds = STEP_FLOPS * np.array(powers) / max(powers)
    return Fleet(speeds, 1e15, 1e15, overhead_s=0.0, name=":".join(map(str, powers)), **more)


def arm(name, method, devices, cost, partition=ff.iid(), target=0.95, seeds=MANY, lr=0.1, whole=("FedAvg", "HADFL"),
        cycles=None):  # fmt: skip
    """One method in one situation, a job for every seed; it ends at the target unless it is wanted `whole`."""
    algorithm, steps, every, enough = METHODS[method]
    algorithm = replace(algorithm, cycles=cycles or algorithm.cycles)
    n, links = len(devices.flops_per_s), ff.Links(0.0, MODEL_BYTES / max(cost, 1e-9))
    arms[f"{name} {method}"] = {
        seed: ff.Job(
            model=NET, data=digits(n, partition, seed), algorithm=algorithm, seed=seed,
            training=ff.Training(lr=lr, batch_size=BATCH, steps=steps), evaluate=ff.Evaluation(every=every),
            stop_at=None if method in whole else ff.StopAt(at_least=target),
            simulated=ff.Simulated(fleet=devices, links=links),
        )
        for seed in seeds if seed in enough
    }  # fmt: skip
    return f"{name} {method}"


def situation(title, name, chosen, *where, **how):
    """Some methods in one situation, as arms and as a panel."""
    told = {method: arm(name, method, *where, **how) for method in chosen}
    panels.append(ff.Panel(title, told, how.get("target", 0.95), "FedAvg"))


ALL, RINGS, UNLIKE = list(METHODS), ["FedAvg", "HADFL", "paced ring"], fleet(3, 3, 1, 1)
for cost in (0, 2, 10):
    situation(f"IID, powers 3:3:1:1, cost {cost}", f"iid 3311 cost {cost}", ALL, UNLIKE, cost)
situation("IID, powers 4:2:2:1, cost 2", "iid 4221 cost 2", RINGS, fleet(4, 2, 2, 1), 2)
for skew in (0.1, 0.3):
    situation(f"Dirichlet {skew}, powers 3:3:1:1, cost 2", f"dirichlet {skew} cost 2", ALL, UNLIKE, 2,
              partition=ff.dirichlet(skew), target=0.9, whole=RINGS)  # fmt: skip
situation("Twenty devices whose speeds drift", "drifting", RINGS, fleet(*[4, 3, 2, 2, 1] * 4, drift=Drift(0.4)), 2,
          target=0.9, seeds=FEW, whole=RINGS, cycles=60)  # fmt: skip
for method, away_s in {"HADFL": 60.0, "paced ring": 15.0}.items():  # about a cycle of each
    fine = f"iid 3311 cost 2 {method}"
    arms[f"deaths {method}"] = {
        seed: replace(job, simulated=replace(job.simulated, fleet=RingDeaths(job, away_s=away_s)))
        for seed, one in arms[fine].items()
        for job in [replace(one, algorithm=replace(one.algorithm, cycles=60 if method == "HADFL" else 100))]
        if seed < 10
    }
    told = {"nobody dies": fine, "a member in ten cycles": f"deaths {method}"}
    panels.append(ff.Panel(f"A member dies in every tenth ring: {method}", told, 0.95, "nobody dies"))
RATES = {"IID": (ff.iid(), 0.95, (0.8, 0.6, 0.8)), "Dirichlet 0.3": (ff.dirichlet(0.3), 0.9, (0.4, 0.4, 0.4))}
for words, (partition, target, rates) in RATES.items():
    for method, lr in zip(RINGS, rates, strict=True):
        arm(f"{words} best rates", method, UNLIKE, 2, partition, target, range(10), lr, whole=())
    told = {method: f"{words} best rates {method}" for method in RINGS}
    panels.append(ff.Panel(f"{words}, each method at its best rate", told, target, "FedAvg"))


def curve(slow, costs, published):
    """HADFL over another method along the cost of communication."""
    points = []
    for cost in costs:
        pair = [f"iid 3311 cost {cost} {method}" for method in (slow, "HADFL")]
        for name, method in zip(pair, (slow, "HADFL"), strict=True):
            if name not in arms:
                arm(f"iid 3311 cost {cost}", method, UNLIKE, cost, seeds=FEW, whole=())
        points.append((float(cost), *pair))
    words = "cost: what sending a model takes, in steps of the fastest device"
    return ff.Curve(f"HADFL over {slow}, by the cost of communication", words, points, 0.95, {"published": published})


study = ff.Study(
    arms, claims=Path(__file__).with_suffix(".claims.toml"), name="hadfl", panels=panels, quick=1, processes=2,
    curves=[curve("all-reduce", (0, 1, 2, 4, 6, 10), 4.68), curve("FedAvg", (0, 2, 10, 40, 160), 3.15)],
    shown={"HADFL": "iid 3311 cost 2 HADFL/0", "HADFL, members die": "deaths HADFL/0",
           "paced ring, members die": "deaths paced ring/0", "all-reduce": "iid 3311 cost 2 all-reduce/0"},
)  # fmt: skip

if __name__ == "__main__":
    study.run()
