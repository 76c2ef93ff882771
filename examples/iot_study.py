"""Sub-models of unlike sizes on digits: who may take part, how models are cut, and what that gives at equal cost.

Twenty clients, ten a round; a device of level q has memory for a model of q of the channels, and speed and links in
proportion to that model, so that a round of HeteroFL takes all of them 12 s. `graded`: levels 1, 1/2, 1/4, 1/8 in turn;
`1:4`: one whole model to four of an eighth. The oracle's devices all have the level 1. Accuracy is compared at equal
virtual time (120 rounds of HeteroFL) and at equal bytes (115 of them, both ways), in the claims; settings of ours were
chosen on other seeds. `fieldfare run examples/iot_study.py --quick` runs one seed of each arm.
"""

from functools import cache
from pathlib import Path

import numpy as np

import fieldfare as ff
from fieldfare.fleet.fleet import Fleet
from fieldfare.work.submodel import Rolling, declared, submodels

LEVELS, CLIENTS, BATCH, STEPS, SEEDS = (1.0, 0.5, 0.25, 0.125), 20, 20, 10, range(10)
TRAINING = ff.Training(lr=0.1, batch_size=BATCH, steps=STEPS)
FAMILY = submodels(ff.mlp(64, 64, 64, 10), LEVELS)
MIXES = {"graded": (0, 1, 2, 3), "1:4": (0, 3, 3, 3, 3)}
DATA = {"IID": ff.iid(), "Dirichlet 0.3": ff.dirichlet(0.3), "two classes": ff.labels_per_client(2)}
TARGETS = {"IID": 0.93, "Dirichlet 0.3": 0.9, "two classes": 0.75}
digits = cache(lambda partition, seed: ff.data.digits(CLIENTS, DATA[partition], test_fraction=0.3, seed=seed))


def fleet(levels):
    """Devices of these levels: a local step of the level's model, and sending it either way, take each a second."""
    nets = [FAMILY.at(FAMILY.levels[level]) for level in levels]
    sizes = np.array([4.0 * net.layout.size for net in nets])
    speeds, memory = np.array([BATCH * net.flops() for net in nets]), [declared(net, TRAINING) for net in nets]
    flags = {"whole": levels == 0, "quarter": levels <= 2}
    return Fleet(speeds, sizes, sizes, 0.0, memory_bytes=np.array([one.memory_bytes for one in memory], float),
                 flags=flags, name="boards", slow_links=True)  # fmt: skip


def alone(*widths):
    """A net of its own for those who can hold it."""
    return submodels(ff.mlp(64, *widths, 10), (1.0,))


def methods(mix):
    """{method: (model, algorithm, levels of the devices, rounds between evaluations)}."""
    assign = np.resize(MIXES[mix], CLIENTS)
    view, whole, hold = FAMILY.view(assign=assign), int((assign == 0).sum()), int((assign <= 2).sum())
    tiny, quarter = {"graded": (700, 150), "1:4": (450, 900)}[mix]  # rounds in the time, or the bytes, of the others
    return {
        "oracle": (FAMILY, ff.FedAvg(150, 10), 0 * assign, 10),
        "smallest for all": (alone(8, 8), ff.FedAvg(tiny, 10), assign, 10),
        "exclude the weak": (FAMILY, ff.FedAvg(150, ff.Sample(whole, "whole")), assign, 10),
        "quarter alone": (alone(16, 16), ff.FedAvg(quarter, ff.Sample(min(10, hold), "quarter")), assign, 10),
        "HeteroFL": (FAMILY, ff.HeteroFL(150, 10, view=view), assign, 10),
        "HeteroFL, no scaler": (FAMILY, ff.HeteroFL(150, 10, view=view, scaled=False), assign, 10),
        "FjORD": (FAMILY, ff.FjORD(150, 10, view=view, shares=LEVELS), assign, 10),
        "FedRolex": (FAMILY, ff.FedRolex(150, 10, view=FAMILY.view(Rolling(), assign)), assign, 10),
        "ours": (FAMILY, ff.NestedFL(150, 10, view=view, shares=LEVELS), assign, 10),
    }  # fmt: skip


arms, panels = {}, []
for partition in DATA:
    for mix in MIXES:
        told = {}
        for method, (model, algorithm, levels, every) in methods(mix).items():
            told[method] = f"{partition} {mix} {method}"
            arms[told[method]] = {
                seed: ff.Job(
                    model=model, data=digits(partition, seed), algorithm=algorithm, training=TRAINING, seed=seed,
                    evaluate=ff.Evaluation(every=every), simulated=ff.Simulated(fleet=fleet(levels)),
                )
                for seed in SEEDS
            }  # fmt: skip
        panels.append(ff.Panel(f"{partition}, {mix}", told, TARGETS[partition], "HeteroFL"))

study = ff.Study(
    arms, claims=Path(__file__).with_suffix(".claims.toml"), name="iot", panels=panels, quick=1, processes=2,
    shown={"HeteroFL": "IID graded HeteroFL/0", "ours": "IID graded ours/0"},
)  # fmt: skip

if __name__ == "__main__":
    study.run()
