"""A tiny job for every cell of the table of pairs: a method, or plain FedAvg, with one or two things around it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

import fieldfare as ff
from fieldfare.aggregate import chain, coverage
from fieldfare.algorithms.secure_sum import SecureSum
from fieldfare.core.local import Nested, Scaled
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet
from fieldfare.work.submodel import MultiRate, Prefix, RandomWindow, Rolling, TopNorm, submodels

CLIENTS, SHARES = 6, (1.0, 0.5, 0.25)
DATA = ff.data.digits(CLIENTS, ff.iid(), test_fraction=0.95, seed=0)
RULES = {
    "prefix": Prefix(), "rolling": Rolling(), "random": RandomWindow(), "topnorm": TopNorm(), "multirate": MultiRate()
}  # fmt: skip
IN_RINGS = ("hadfl", "pacedring", "decentralisedfedavg", "allreduce")
GOSSIP = ("pairgossip", "graphgossip")
NODES = (*IN_RINGS, *GOSSIP, "fedfly")
ROUNDS = 2
SESSIONS = [[(0.0, np.inf)]] * 4 + [[(0.0, 0.8), (2.0, np.inf)], [(0.5, np.inf)]]


@dataclass(frozen=True)
class Draft:
    """A job on its way: what its method is made with, what is put around it, and what it trains."""

    method: str
    rule: Any = None
    deep: bool = False
    local: tuple[Any, ...] = ()
    wraps: tuple[Any, ...] = ()
    loss: str = "cross_entropy"
    module: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    fleet: dict[str, Any] = field(default_factory=dict)
    on: str = "local"
    assign: tuple[int, ...] | None = None
    planned: bool = False


METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fedavg": (ff.FedAvg, {}),
    "fedavgm": (ff.FedAvgM, {}),
    "fedadam": (ff.FedAdam, {}),
    "fedyogi": (ff.FedYogi, {}),
    "fedadagrad": (ff.FedAdagrad, {}),
    "fedprox": (ff.FedProx, {"mu": 0.1}),
    "scaffold": (ff.Scaffold, {}),
    "fednova": (ff.FedNova, {}),
    "feddyn": (ff.FedDyn, {"alpha": 0.5}),
    "qfedavg": (ff.QFedAvg, {"q": 1.0}),
    "ditto": (ff.Ditto, {"lam": 0.5}),
    "fedper": (ff.FedPer, {"personal": ("2",)}),
    "fedrep": (ff.FedRep, {"personal": ("2",)}),
    "fedbn": (ff.FedBN, {"norms": ("2",)}),
    "fedmedian": (ff.FedMedian, {}),
    "fedtrimmedmean": (ff.FedTrimmedMean, {}),
    "krum": (ff.Krum, {"byzantine": 1}),
    "semisync": (ff.SemiSync, {"over": 1.2}),
    "tifl": (ff.TiFL, {}),
    "cutoff": (ff.CutOff, {"budget_s": 60.0}),
    "fedbuff": (ff.FedBuff, {"buffer": 2}),
    "fedasync": (ff.FedAsync, {}),
    "heterofl": (ff.HeteroFL, {}),
    "fjord": (ff.FjORD, {"shares": SHARES}),
    "fedrolex": (ff.FedRolex, {}),
    "depthfl": (ff.DepthFL, {}),
    "nestedfl": (ff.NestedFL, {"shares": SHARES}),
    "hadfl": (ff.HADFL, {}),
    "pacedring": (ff.PacedRing, {}),
    "decentralisedfedavg": (ff.DecentralisedFedAvg, {}),
    "allreduce": (ff.AllReduce, {}),
    "pairgossip": (ff.PairGossip, {"steps": 2}),
    "graphgossip": (ff.GraphGossip, {"steps": 2}),
    "fedfly": (ff.FedFly, {"cut": 1, "patience_s": 5.0}),
}


def _local(one: Any) -> Any:
    return lambda draft: replace(draft, local=(*draft.local, one))


def _wrap(wrap: Any) -> Any:
    return lambda draft: replace(draft, wraps=(*draft.wraps, wrap))


AROUND: dict[str, Any] = {
    **{name: (lambda draft, rule=rule: replace(draft, rule=rule)) for name, rule in RULES.items()},
    "depth": lambda draft: replace(draft, deep=True, rule=draft.rule or Prefix()),
    "fitting": lambda draft: replace(
        draft,
        planned=True,
        rule=draft.rule or (Rolling() if draft.method == "fedrolex" else Prefix()),
        deep=draft.deep or draft.method == "depthfl",
    ),
    "nested": _local(Nested((1.0, 0.5), back=0.3)),
    "scaled": _local(Scaled()),
    "masked loss": lambda draft: replace(draft, loss="masked_cross_entropy"),
    "masked_heads": _wrap(ff.masked_heads),
    "compress": _wrap(lambda a: ff.compress(a, share=0.5, bits=8, feedback=False)),
    "feedback": _wrap(lambda a: ff.compress(a, share=0.5, feedback=True)),
    "quantise": _wrap(lambda a: ff.quantise(a, bits=8)),
    "low_rank": _wrap(lambda a: ff.low_rank(a, rank=2)),
    "prune": _wrap(lambda a: ff.prune(a, share=0.5)),
    "freeze": lambda draft: _wrap(lambda a: ff.freeze(a, names=("stages.0.0" if draft.deep else "0",)))(draft),
    "keep": lambda draft: replace(
        draft, wraps=(*draft.wraps, ff.keep_optimizer), training={**draft.training, "momentum": 0.5}
    ),
    "module": lambda draft: replace(draft, module=True),
    "secure": _wrap(SecureSum),
    "sessions": lambda draft: replace(draft, fleet={"availability": Availability.of(SESSIONS)}),
    "ray": lambda draft: replace(draft, on="ray"),
}


IDLE: dict[str, Any] = {
    **{
        name: (lambda draft, rule=rule: replace(draft, rule=rule, assign=(0,) * CLIENTS))
        for name, rule in RULES.items() if name != "multirate"
    },
    "nested": _local(Nested((1.0,))),
    "scaled": _local(Scaled()),
    "compress": _wrap(lambda a: ff.compress(a, share=1.0, bits=32, feedback=False)),
    "feedback": _wrap(lambda a: ff.compress(a, share=1.0, bits=32, feedback=True)),
    "prune": _wrap(lambda a: ff.prune(a, share=1.0)),
    "freeze": _wrap(lambda a: ff.freeze(a, names=())),
    "secure": AROUND["secure"],
    "sessions": lambda draft: replace(draft, fleet={"availability": Availability.of([[(0.0, np.inf)]] * CLIENTS)}),
}  # fmt: skip
"""The same things so that they do nothing: whole models for all, no numbers left out, masks that come off."""


@cache
def module() -> Any:
    """Two linear layers as an `nn.Module`."""
    import torch
    from torch import nn

    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def model_of(draft: Draft) -> Any:
    """The net of a draft, in the form its method takes."""
    loss = {} if draft.loss == "cross_entropy" else {"loss": draft.loss}
    if draft.method == "fedfly":
        net, levels = ff.split_net(module(), **loss), SHARES if not draft.deep else (ff.Level(1, 2), ff.Level(1, 1))
        return net if draft.rule is None else submodels(net, levels, example=DATA.columns)
    if draft.deep:
        import torch

        from fieldfare.work.submodel.exits import exit_loss, exits

        torch.manual_seed(4)
        net = exits(module(), ("1",), torch.zeros(2, 64))
        levels = (ff.Level(1, 2), ff.Level(1, 1))
        return submodels(net, levels, loss=loss.get("loss") or exit_loss(0.3), metrics=("accuracy",),
                         example=DATA.columns)  # fmt: skip
    if draft.module:
        return submodels(ff.torch_net(module(), **loss), SHARES, example=DATA.columns)
    return submodels(ff.mlp(64, 8, 10, **loss), SHARES)


def job_of(draft: Draft) -> ff.Job:
    """The job; every refusal of its making is raised here."""
    make, given = METHODS[draft.method]
    given, model = dict(given), model_of(draft)
    if draft.deep and draft.method in ("fedper", "fedrep", "fedbn"):
        given[next(iter(given))] = ("heads",)
    if draft.rule is not None:
        if draft.method == "fedfly":
            width = "plan" if draft.planned else draft.assign or ((0, 1) * 3 if draft.deep else (0, 1, 2) * 2)
            given |= {"width": width, "rule": draft.rule}
        else:
            given["view"] = model.fitting(draft.rule) if draft.planned else model.view(draft.rule, draft.assign)
        if draft.method in ("fedavg", "fedprox", "tifl", "cutoff", "semisync", "ditto", "fedper", "fedrep", "fedbn",
                            "scaffold", "fednova", "feddyn"):  # fmt: skip
            given["server"] = chain(coverage())
        if draft.method == "fedbuff":
            given["server"] = chain(coverage(weighted=False))
    if draft.local and draft.method not in ("fedavg", "fedbuff"):
        if draft.method in NODES or draft.method == "fedasync":
            given["local"] = draft.local
            algorithm = make(ROUNDS, **given) if draft.method in NODES else make(ROUNDS, 5, **given)
        else:
            algorithm = make(ROUNDS, 5, **given)
            algorithm = replace(algorithm, local=(*algorithm.local, *draft.local))
    else:
        given |= {"local": draft.local} if draft.local else {}
        algorithm = make(ROUNDS, **given) if draft.method in NODES else make(ROUNDS, 5, **given)
    for wrap in draft.wraps:
        algorithm = wrap(algorithm)
    training = {"lr": 0.1, "batch_size": 5, **draft.training}
    fleet = Fleet(np.array([3, 3, 1, 1, 2, 2], np.float32) * np.float32(1e4), 1e6, 1e6, 0.1, **draft.fleet)
    workers = 1 if draft.on == "local" else 2
    simulated = ff.Simulated(fleet, workers=workers, on=draft.on)
    return ff.Job(model, DATA, algorithm, ff.Training(**training), simulated=simulated)


def draft_of(first: str, second: str) -> Draft:
    """The draft of a cell: a method and what is around it, or FedAvg with both around it."""
    draft = Draft(first) if first in METHODS else AROUND[first](Draft("fedavg"))
    return AROUND[second](draft)
