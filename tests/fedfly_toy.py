"""Two dense layers in NumPy, cut between them: the three split works, for FedFly's roles.

The server's step uses all that a session holds: momentum in its slots, chance from its key, a learning rate by round.
A batch applied twice, left out, or in another order changes the bits of the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fieldfare.algorithms.fedfly.central import Central
from fieldfare.algorithms.fedfly.device import Device
from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.messages import Plan
from fieldfare.algorithms.fedfly.nodes import nodes, placed
from fieldfare.core import rng
from fieldfare.core.params import Layout, Params
from fieldfare.core.work import Cost, Output
from fieldfare.fleet.fleet import Fleet
from fieldfare.sim.simulator import Links
from fieldfare.testing import digest, quadratics

DIM, HIDDEN, BATCH = 4, 3, 2
SIZE = DIM * HIDDEN
LAYOUT = Layout.of({"first.weight": (DIM, HIDDEN), "second.weight": (HIDDEN,), "second.bias": (1,)})
MODEL = Params(np.linspace(-1, 1, LAYOUT.size).astype(np.float32), LAYOUT)
PROBLEM = quadratics(n=24, dim=DIM)
U_LAYOUT = Layout.of({"first.weight": (DIM, HIDDEN), "second.weight": (HIDDEN,), "third.weight": (HIDDEN,)})
U_MODEL = Params(np.linspace(-1, 1, U_LAYOUT.size).astype(np.float32), U_LAYOUT)
SECRET = b"a job's secret"


@dataclass(frozen=True)
class Part:
    """One of the works; `flops` per call. Devices train 4 batches of 2 unless the config says otherwise.

    In a U the server scales what comes, and the device has a third layer, and the labels.
    """

    part: str
    flops: float = 1e3
    batches: int = 4

    def __call__(self, cohort) -> Output:
        rows = [self.one(cohort, i) for i in range(cohort.n)]
        leaves = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        loss = np.array([row.pop("loss", 0.0) for row in rows])
        leaves.pop("loss", None)
        n = np.full(cohort.n, float(BATCH))
        metrics = {"steps": np.full(cohort.n, float(self.batches))} if self.part == "forward" else {"loss_sum": loss}
        return Output({k: np.asarray(v, np.float32) for k, v in leaves.items()}, n, metrics)

    def one(self, cohort, i):
        w = cohort.models[cohort.row[i]]
        told = {**cohort.config, **cohort.inputs, **cohort.each.get(i, {})}
        seq, key = int(told["seq"]), cohort.keys[i : i + 1]
        lr = np.float32(0.01) / np.float32(told["round"])
        slots = told.get("slots", np.zeros(len(w), np.float32))
        slots, u = slots if slots.size else np.zeros(len(w), np.float32), "tail" in told
        if self.part == "middle" or (self.part == "step" and u):
            keep = (rng.bits(key, np.arange(HIDDEN) + 100 * seq) % np.uint64(4) > 0).astype(np.float32)
            if self.part == "middle":
                return {"act": told["act"] * (w * keep)}
            speed = np.float32(0.9) * slots + (told["act"] * told["g"]).sum(axis=0) * keep
            return {"model": w - lr * speed, "slots": speed, "g": told["g"] * (w * keep)}
        if self.part == "step":
            keep = (rng.bits(key, np.arange(HIDDEN) + 100 * seq) % np.uint64(4) > 0).astype(np.float32)
            hidden = told["act"] * keep
            away = hidden @ w[:HIDDEN] + w[HIDDEN] - told["y"]
            speed = np.float32(0.9) * slots + np.append(hidden.T @ away, away.sum()).astype(np.float32)
            return {
                "model": w - lr * speed, "slots": speed, "g": np.outer(away, w[:HIDDEN]) * keep,
                "loss": float((away * away).sum()),
            }  # fmt: skip
        at = rng.bits(key, np.arange(BATCH) + 7 * seq) % np.uint64(cohort.data.sizes[i])
        x = cohort.data.client(i)["x"][at.astype(np.int64)]
        if self.part == "tail":
            away = told["act"] @ w[SIZE:] - x.sum(axis=1)
            speed = slots.copy()
            speed[SIZE:] = np.float32(0.9) * slots[SIZE:] + told["act"].T @ away
            new = w.copy()
            new[SIZE:] -= lr * speed[SIZE:]
            return {"model": new, "slots": speed, "g": np.outer(away, w[SIZE:]), "loss": float((away * away).sum())}
        if self.part == "forward" and u:
            return {"act": np.tanh(x @ w[:SIZE].reshape(DIM, HIDDEN))}
        if u:
            hidden = np.tanh(x @ w[:SIZE].reshape(DIM, HIDDEN))
            speed, new = slots.copy(), w.copy()
            speed[:SIZE] = np.float32(0.9) * slots[:SIZE] + (x.T @ (told["g"] * (1 - hidden * hidden))).reshape(-1)
            new[:SIZE] -= lr * speed[:SIZE]
            return {"model": new, "slots": speed}
        if self.part == "forward":
            return {"act": np.tanh(x @ w.reshape(DIM, HIDDEN)), "y": x.sum(axis=1)}
        hidden = np.tanh(x @ w.reshape(DIM, HIDDEN))
        speed = np.float32(0.9) * slots + (x.T @ (told["g"] * (1 - hidden * hidden))).reshape(-1)
        return {"model": w - lr * speed, "slots": speed}

    def cost(self, examples, layout, config) -> Cost:
        return Cost(self.flops, 0.0, 0.0)

    def slots(self, layout):
        return {}


WORKS = {f"split/{part}": Part(part) for part in ("forward", "step", "backward", "middle", "tail")}


def roles(devices=2, edges=2, rounds=1, steps=4, *, edge=Edge(), device=Device(), central=None, homes=None, u=False):
    """Nodes of a small run: devices begin at edge 0 and on, in turn, unless `homes` says otherwise."""
    plan = Plan("first", SIZE, steps, "second", SIZE + HIDDEN) if u else Plan("first", SIZE, steps)
    plans = {f"device/{i}": plan for i in range(devices)}
    central = replace(central or Central(rounds, plans), rounds=rounds, plans=plans, homes=homes, secret=SECRET)
    return nodes(central, edge, device, edges)


def world(moves=(), *, links=Links(0.01, 1e6), works=WORKS, seed=0, **more):
    """`moves`: (seconds, event, nodes) of the fleet."""
    made = roles(**more)
    fleet = Fleet(flops_per_s=1e3, overhead_s=0.0)
    model = U_MODEL if more.get("u") else MODEL
    return PROBLEM.world(
        made, model=model, works=works, placement=placed(made), happenings=tuple(moves), links=links, fleet=fleet,
        evaluations={}, seed=seed,
    )  # fmt: skip


def bits(end) -> str:
    """Digest of the last model published; the run must have come to its end."""
    assert end.reason == "rounds", end.reason
    return digest(end.model)
