"""Fieldfare: federated learning in the field, simulated first, priced beforehand.

The names a user needs are here and are imported when first used, so that `import fieldfare` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Job": "job", "Evaluation": "job", "Links": "sim.links", "Simulated": "job", "StopAt": "job", "Study": "study",
    "Panel": "study", "Curve": "study", "Handovers": "study", "EqualCost": "study",
    "Sweep": "sweep", "Result": "run", "resume_run": "resume", "UsageError": "core.errors", "PeerError": "core.errors",
    "Sample": "core.quorum", "Everyone": "core.quorum", "Quorum": "core.quorum", "Params": "core.params",
    "Training": "work.net", "mlp": "work.dense", "DenseNet": "work.dense", "torch_net": "work.torch_net",
    "jax_net": "work.jax_net", "split_net": "work.split.net",
    "opaque": "work.opaque", "flower_client": "work.flower_client",
    "FedAvg": "algorithms.fedavg",
    "FedBuff": "algorithms.fedbuff", "FedAsync": "algorithms.fedasync", "SemiSync": "algorithms.deadline",
    "TiFL": "algorithms.deadline", "CutOff": "algorithms.deadline", "Staleness": "core.quorum",
    "keep_optimizer": "algorithms.keep", "FedAvgM": "algorithms.fedopt", "FedAdam": "algorithms.fedopt",
    "FedYogi": "algorithms.fedopt", "FedAdagrad": "algorithms.fedopt", "FedProx": "algorithms.fedprox",
    "Scaffold": "algorithms.scaffold", "SecureSum": "algorithms.secure_sum",
    "FedNova": "algorithms.fednova", "FedDyn": "algorithms.feddyn",
    "QFedAvg": "algorithms.qfedavg", "Ditto": "algorithms.personal", "FedPer": "algorithms.personal",
    "FedRep": "algorithms.personal", "FedBN": "algorithms.personal", "FedMedian": "algorithms.robust",
    "FedTrimmedMean": "algorithms.robust", "Krum": "algorithms.robust", "Bagging": "algorithms.bagging",
    "HADFL": "algorithms.hadfl", "PacedRing": "algorithms.hadfl", "DecentralisedFedAvg": "algorithms.hadfl",
    "AllReduce": "algorithms.hadfl", "PairGossip": "algorithms.hadfl", "GraphGossip": "algorithms.hadfl",
    "FedFly": "algorithms.fedfly.methods", "PreCopy": "algorithms.fedfly.policies",
    "StopAndCopy": "algorithms.fedfly.policies", "Restart": "algorithms.fedfly.policies",
    "Cheapest": "algorithms.fedfly.policies", "MovesAt": "moves_at", "waypoints": "fleet.mobility",
    "Mobility": "fleet.mobility",
    "HeteroFL": "algorithms.heterofl", "FedRolex": "algorithms.heterofl", "FjORD": "algorithms.fjord",
    "DepthFL": "algorithms.depthfl", "NestedFL": "algorithms.nested", "compress": "algorithms.compress",
    "quantise": "algorithms.compress", "low_rank": "algorithms.compress", "prune": "algorithms.compress",
    "freeze": "algorithms.compress", "masked_heads": "algorithms.compress",
    "submodels": "work.submodel", "Level": "work.submodel", "exits": "work.submodel.exits",
    "Federated": "data", "federate": "data", "digits": "data", "synthetic": "data", "iid": "data", "dirichlet": "data",
    "shards": "data", "labels_per_client": "data", "lognormal_quantity": "data", "dirichlet_quantity": "data",
    "natural": "data", "joint": "data",
}  # fmt: skip
_MODULES = ("aggregate", "algorithms", "core", "data", "fleet", "models", "report", "sim", "store", "testing", "work")

__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from fieldfare import aggregate as aggregate
    from fieldfare import algorithms as algorithms
    from fieldfare import core as core
    from fieldfare import data as data
    from fieldfare import fleet as fleet
    from fieldfare import models as models
    from fieldfare import report as report
    from fieldfare import sim as sim
    from fieldfare import store as store
    from fieldfare import testing as testing
    from fieldfare import work as work
    from fieldfare.algorithms.bagging import Bagging as Bagging
    from fieldfare.algorithms.compress import compress as compress
    from fieldfare.algorithms.compress import freeze as freeze
    from fieldfare.algorithms.compress import low_rank as low_rank
    from fieldfare.algorithms.compress import masked_heads as masked_heads
    from fieldfare.algorithms.compress import prune as prune
    from fieldfare.algorithms.compress import quantise as quantise
    from fieldfare.algorithms.deadline import CutOff as CutOff
    from fieldfare.algorithms.deadline import SemiSync as SemiSync
    from fieldfare.algorithms.deadline import TiFL as TiFL
    from fieldfare.algorithms.depthfl import DepthFL as DepthFL
    from fieldfare.algorithms.fedasync import FedAsync as FedAsync
    from fieldfare.algorithms.fedavg import FedAvg as FedAvg
    from fieldfare.algorithms.fedbuff import FedBuff as FedBuff
    from fieldfare.algorithms.feddyn import FedDyn as FedDyn
    from fieldfare.algorithms.fedfly.methods import FedFly as FedFly
    from fieldfare.algorithms.fedfly.policies import Cheapest as Cheapest
    from fieldfare.algorithms.fedfly.policies import PreCopy as PreCopy
    from fieldfare.algorithms.fedfly.policies import Restart as Restart
    from fieldfare.algorithms.fedfly.policies import StopAndCopy as StopAndCopy
    from fieldfare.algorithms.fednova import FedNova as FedNova
    from fieldfare.algorithms.fedopt import FedAdagrad as FedAdagrad
    from fieldfare.algorithms.fedopt import FedAdam as FedAdam
    from fieldfare.algorithms.fedopt import FedAvgM as FedAvgM
    from fieldfare.algorithms.fedopt import FedYogi as FedYogi
    from fieldfare.algorithms.fedprox import FedProx as FedProx
    from fieldfare.algorithms.fjord import FjORD as FjORD
    from fieldfare.algorithms.hadfl import HADFL as HADFL
    from fieldfare.algorithms.hadfl import AllReduce as AllReduce
    from fieldfare.algorithms.hadfl import DecentralisedFedAvg as DecentralisedFedAvg
    from fieldfare.algorithms.hadfl import GraphGossip as GraphGossip
    from fieldfare.algorithms.hadfl import PacedRing as PacedRing
    from fieldfare.algorithms.hadfl import PairGossip as PairGossip
    from fieldfare.algorithms.heterofl import FedRolex as FedRolex
    from fieldfare.algorithms.heterofl import HeteroFL as HeteroFL
    from fieldfare.algorithms.keep import keep_optimizer as keep_optimizer
    from fieldfare.algorithms.nested import NestedFL as NestedFL
    from fieldfare.algorithms.personal import Ditto as Ditto
    from fieldfare.algorithms.personal import FedBN as FedBN
    from fieldfare.algorithms.personal import FedPer as FedPer
    from fieldfare.algorithms.personal import FedRep as FedRep
    from fieldfare.algorithms.qfedavg import QFedAvg as QFedAvg
    from fieldfare.algorithms.robust import FedMedian as FedMedian
    from fieldfare.algorithms.robust import FedTrimmedMean as FedTrimmedMean
    from fieldfare.algorithms.robust import Krum as Krum
    from fieldfare.algorithms.scaffold import Scaffold as Scaffold
    from fieldfare.algorithms.secure_sum import SecureSum as SecureSum
    from fieldfare.core.errors import PeerError as PeerError
    from fieldfare.core.errors import UsageError as UsageError
    from fieldfare.core.params import Params as Params
    from fieldfare.core.quorum import Everyone as Everyone
    from fieldfare.core.quorum import Quorum as Quorum
    from fieldfare.core.quorum import Sample as Sample
    from fieldfare.core.quorum import Staleness as Staleness
    from fieldfare.data import Federated as Federated
    from fieldfare.data import digits as digits
    from fieldfare.data import dirichlet as dirichlet
    from fieldfare.data import dirichlet_quantity as dirichlet_quantity
    from fieldfare.data import federate as federate
    from fieldfare.data import iid as iid
    from fieldfare.data import joint as joint
    from fieldfare.data import labels_per_client as labels_per_client
    from fieldfare.data import lognormal_quantity as lognormal_quantity
    from fieldfare.data import natural as natural
    from fieldfare.data import shards as shards
    from fieldfare.data import synthetic as synthetic
    from fieldfare.fleet.mobility import Mobility as Mobility
    from fieldfare.fleet.mobility import waypoints as waypoints
    from fieldfare.job import Evaluation as Evaluation
    from fieldfare.job import Job as Job
    from fieldfare.job import Simulated as Simulated
    from fieldfare.job import StopAt as StopAt
    from fieldfare.moves_at import MovesAt as MovesAt
    from fieldfare.resume import resume_run as resume_run
    from fieldfare.run import Result as Result
    from fieldfare.sim.links import Links as Links
    from fieldfare.study import Curve as Curve
    from fieldfare.study import EqualCost as EqualCost
    from fieldfare.study import Handovers as Handovers
    from fieldfare.study import Panel as Panel
    from fieldfare.study import Study as Study
    from fieldfare.sweep import Sweep as Sweep
    from fieldfare.work.dense import DenseNet as DenseNet
    from fieldfare.work.dense import mlp as mlp
    from fieldfare.work.flower_client import flower_client as flower_client
    from fieldfare.work.jax_net import jax_net as jax_net
    from fieldfare.work.net import Training as Training
    from fieldfare.work.opaque import opaque as opaque
    from fieldfare.work.split.net import split_net as split_net
    from fieldfare.work.submodel import Level as Level
    from fieldfare.work.submodel import submodels as submodels
    from fieldfare.work.submodel.exits import exits as exits
    from fieldfare.work.torch_net import torch_net as torch_net


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"fieldfare.{_WHERE[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fieldfare.{name}")
    else:
        import difflib

        close = difflib.get_close_matches(name, [*_WHERE, *_MODULES], 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise AttributeError(f"module 'fieldfare' has no attribute {name!r}{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
