"""One paper per file: pure reducers over the vocabulary of `core`."""

from fieldfare.algorithms.bagging import Bagging
from fieldfare.algorithms.catalogue import ALGORITHMS, DECENTRALISED, OFFLOADING, Entry, RolesEntry, build, entry
from fieldfare.algorithms.check import check
from fieldfare.algorithms.compress import compress, freeze, low_rank, masked_heads, prune, quantise
from fieldfare.algorithms.deadline import CutOff, SemiSync, TiFL
from fieldfare.algorithms.depthfl import DepthFL
from fieldfare.algorithms.evaluate import Evaluate, EvaluateOnClients, StopAt, innermost
from fieldfare.algorithms.fedasync import FedAsync
from fieldfare.algorithms.fedavg import FedAvg, State
from fieldfare.algorithms.fedbuff import FedBuff
from fieldfare.algorithms.feddyn import FedDyn
from fieldfare.algorithms.fednova import FedNova
from fieldfare.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fieldfare.algorithms.fedprox import FedProx
from fieldfare.algorithms.fjord import FjORD
from fieldfare.algorithms.hadfl import (
    HADFL,
    AllReduce,
    DecentralisedFedAvg,
    GraphGossip,
    PacedRing,
    PairGossip,
)
from fieldfare.algorithms.heterofl import FedRolex, HeteroFL
from fieldfare.algorithms.keep import keep_optimizer
from fieldfare.algorithms.nested import NestedFL
from fieldfare.algorithms.personal import Ditto, FedBN, FedPer, FedRep
from fieldfare.algorithms.qfedavg import QFedAvg
from fieldfare.algorithms.robust import FedMedian, FedTrimmedMean, Krum
from fieldfare.algorithms.scaffold import Scaffold
from fieldfare.algorithms.secure_sum import SecureSum

__all__ = [
    "ALGORITHMS",
    "DECENTRALISED",
    "HADFL",
    "OFFLOADING",
    "AllReduce",
    "Bagging",
    "CutOff",
    "DecentralisedFedAvg",
    "DepthFL",
    "Ditto",
    "Entry",
    "Evaluate",
    "EvaluateOnClients",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedBuff",
    "FedDyn",
    "FedMedian",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedRolex",
    "FedTrimmedMean",
    "FedYogi",
    "FjORD",
    "GraphGossip",
    "HeteroFL",
    "Krum",
    "NestedFL",
    "PacedRing",
    "PairGossip",
    "QFedAvg",
    "RolesEntry",
    "Scaffold",
    "SecureSum",
    "SemiSync",
    "State",
    "StopAt",
    "TiFL",
    "build",
    "check",
    "compress",
    "entry",
    "freeze",
    "innermost",
    "keep_optimizer",
    "low_rank",
    "masked_heads",
    "prune",
    "quantise",
]  # fmt: skip
