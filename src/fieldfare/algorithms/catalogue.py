"""The registered algorithms, and what may be combined with what: one table, checked before a run starts.

Here: `ALGORITHMS` for the command line, the documentation and the law tests; `DECENTRALISED` and `OFFLOADING`, those of
several nodes; `build`, by name. Not here: `check`, which refuses a job that could only go wrong; checks of one value,
made at construction.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from fieldfare.algorithms.bagging import Bagging
from fieldfare.algorithms.deadline import CutOff, SemiSync, TiFL
from fieldfare.algorithms.depthfl import DepthFL
from fieldfare.algorithms.fedasync import FedAsync
from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.algorithms.fedbuff import FedBuff
from fieldfare.algorithms.feddyn import FedDyn
from fieldfare.algorithms.fedfly.methods import FedFly
from fieldfare.algorithms.fednova import FedNova
from fieldfare.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fieldfare.algorithms.fedprox import FedProx
from fieldfare.algorithms.fjord import FjORD
from fieldfare.algorithms.hadfl.methods import (
    HADFL,
    AllReduce,
    DecentralisedFedAvg,
    GraphGossip,
    PacedRing,
    PairGossip,
)
from fieldfare.algorithms.heterofl import FedRolex, HeteroFL
from fieldfare.algorithms.nested import NestedFL
from fieldfare.algorithms.personal import Ditto, FedBN, FedPer, FedRep
from fieldfare.algorithms.qfedavg import QFedAvg
from fieldfare.algorithms.robust import FedMedian, FedTrimmedMean, Krum
from fieldfare.algorithms.scaffold import Scaffold
from fieldfare.core.effects import On
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Collect, Fold, Mean
from fieldfare.core.quorum import ALL


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered algorithm: `factory(rounds, cohort, **options)`, with `example` options that work on a model of
    tensors "body" and "head". `needs` is what it asks of the rest, in words of the documentation; `model`: whether it
    trains a vector, or grows a model of bytes. `cohort`: "any" `On`; a "number" of clients; or a number or `Sample`
    that are always at work ("stream"). Only the first take a quorum, and with FedBuff a view."""

    name: str
    summary: str
    paper: str
    factory: Callable[..., Any]
    example: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs: tuple[str, ...] = ()
    model: Literal["vector", "bytes"] = "vector"
    cohort: Literal["any", "number", "stream"] = "any"

    @property
    def options(self) -> dict[str, Any]:
        """Options besides rounds and cohort, with their defaults (`inspect.Parameter.empty`: must be given)."""
        found = list(inspect.signature(self.factory).parameters.values())[2:]
        own = {p.name: p.default for p in found if p.kind is not p.VAR_KEYWORD}
        if len(own) == len(found):  # takes no more than it names
            return own
        return own | {"quorum": ALL, "work": "train"} | ({"view": None} if self.model == "vector" else {})

    @property
    def folds(self) -> dict[str, Fold]:
        """The fold of every leaf its clients send."""
        made = self.factory(1, 1, **self.example)
        if isinstance(made, Bagging):
            return {made.leaf: Collect()}
        if isinstance(made, FedAsync):
            return {"model": Mean(weighted=False)}
        if isinstance(made, FedBuff):
            return {"delta": made.server.reduce()}
        return {"delta": made.server.reduce(), **made.rule.folds()}


@dataclass(frozen=True, slots=True)
class RolesEntry:
    """One registered algorithm of several nodes: `factory(cycles or rounds, **options)` gives `Roles`."""

    name: str
    summary: str
    paper: str
    factory: Callable[..., Any]
    needs: tuple[str, ...] = ()


_SGD = "plain SGD on the client"
_ANY_SGD = "SGD on the client"
_STATE = "client state"
_ROWS = "every row at the server"
_ASYNC = "devices of unlike speed"
_VIEW = "a view of `submodels(...)`"
_CUT = "an `nn.Module` that can be cut, such as `split_net(...)`"

ALGORITHMS: tuple[Entry, ...] = (
    Entry("fedavg", "average of the cohort's deltas", "McMahan et al., AISTATS 2017", FedAvg),
    Entry("fedavgm", "FedAvg with server momentum", "Hsu, Qi & Brown, 2019", FedAvgM),
    Entry("fedadam", "FedAvg with Adam on the server", "Reddi et al., ICLR 2021", FedAdam),
    Entry("fedyogi", "FedAvg with Yogi on the server", "Reddi et al., ICLR 2021", FedYogi),
    Entry("fedadagrad", "FedAvg with Adagrad on the server", "Reddi et al., ICLR 2021", FedAdagrad),
    Entry("fedprox", "clients are pulled to the global model", "Li et al., MLSys 2020", FedProx, {"mu": 0.1}),
    Entry("scaffold", "control variates against client drift", "Karimireddy et al., ICML 2020", Scaffold,
          needs=(_SGD, _STATE)),
    Entry("fednova", "deltas normalised by local work", "Wang et al., NeurIPS 2020", FedNova, needs=(_ANY_SGD,)),
    Entry("feddyn", "dynamic regularisation against client drift", "Acar et al., ICLR 2021", FedDyn, {"alpha": 0.5},
          needs=(_STATE,)),
    Entry("qfedavg", "clients with a large loss count more", "Li et al., ICLR 2020", QFedAvg, {"q": 1.0},
          needs=(_ANY_SGD,)),
    Entry("ditto", "a personal model beside the global one", "Li et al., ICML 2021", Ditto, {"lam": 0.5},
          needs=(_STATE,)),
    Entry("fedper", "personal layers stay on the device", "Arivazhagan et al., 2019", FedPer, {"personal": ("head",)},
          needs=(_STATE,)),
    Entry("fedrep", "personal head, trained before the body", "Collins et al., ICML 2021", FedRep,
          {"personal": ("head",)}, needs=(_STATE,)),
    Entry("fedbn", "normalisation layers stay on the device", "Li et al., ICLR 2021", FedBN, {"norms": ("head",)},
          needs=(_STATE,)),
    Entry("fedmedian", "median of each coordinate", "Yin et al., ICML 2018", FedMedian, needs=(_ROWS,)),
    Entry("fedtrimmedmean", "mean of each coordinate without its extremes", "Yin et al., ICML 2018", FedTrimmedMean,
          needs=(_ROWS,)),
    Entry("krum", "the delta nearest its neighbours, or several", "Blanchard et al., NeurIPS 2017", Krum,
          {"byzantine": 1}, needs=(_ROWS,)),
    Entry("semisync", "more clients are asked than waited for, with a deadline", "Bonawitz et al., MLSys 2019",
          SemiSync, cohort="number"),
    Entry("tifl", "cohorts of clients of like speed", "Chai et al., HPDC 2020", TiFL, cohort="number"),
    Entry("cutoff", "clients train for a fixed time, each as far as it comes", "Beutel et al., 2020", CutOff,
          {"budget_s": 60.0}),
    Entry("fedbuff", "asynchronous: a step for every so many replies", "Nguyen et al., AISTATS 2022", FedBuff,
          {"buffer": 3}, (_ASYNC,), cohort="stream"),
    Entry("fedasync", "asynchronous: every reply is mixed in", "Xie, Koyejo & Gupta, 2019", FedAsync, needs=(_ASYNC,),
          cohort="stream"),
    Entry("heterofl", "sub-models of the first channels, averaged where covered", "Diao, Ding & Tarokh, ICLR 2021",
          HeteroFL, needs=(_VIEW,)),
    Entry("fjord", "sub-models of several widths in each client, which may learn from the widest",
          "Horvath et al., NeurIPS 2021", FjORD, needs=(_VIEW,)),
    Entry("fedrolex", "sub-models that roll over the channels", "Alam et al., NeurIPS 2022", FedRolex,
          needs=("a view by `Rolling()`",)),
    Entry("depthfl", "sub-models of the first layers, with exits", "Kim et al., ICLR 2023", DepthFL,
          needs=("a view of a net with exits",)),
    Entry("nestedfl", "widths inside a client's own train with it and teach it; a patient server",
          "ours, after Horvath et al., NeurIPS 2021, and Yu & Huang, ICCV 2019", NestedFL, needs=(_VIEW,)),
    Entry("bagging", "clients add trees to one model", "Breiman, 1996; Flower's FedXgbBagging, 2023", Bagging,
          needs=("a model of bytes: opaque(...)", _ROWS), model="bytes"),
)  # fmt: skip

DECENTRALISED: tuple[RolesEntry, ...] = (
    RolesEntry("hadfl", "devices train by their own speed; a few, drawn by version, average in a ring",
               "Cao et al., DAC 2021", HADFL, (_ASYNC,)),
    RolesEntry("pacedring", "rings as often as links allow, of what each learnt per step; nothing is lost",
               "ours, after Cao et al., DAC 2021, and Wang et al., NeurIPS 2020", PacedRing, (_ASYNC,)),
    RolesEntry("decentralisedfedavg", "equal local work, then all average in one ring", "McMahan et al., AISTATS 2017",
               DecentralisedFedAvg),
    RolesEntry("allreduce", "lock step: all average after every step", "Li et al., VLDB 2020", AllReduce, (_SGD,)),
    RolesEntry("pairgossip", "nobody waits: averages with a random neighbour", "Lian et al., ICML 2018", PairGossip),
    RolesEntry("graphgossip", "averages with the neighbours on a fixed graph", "Lian et al., NeurIPS 2017",
               GraphGossip),
)  # fmt: skip

OFFLOADING: tuple[RolesEntry, ...] = (
    RolesEntry("fedfly", "devices train the first layers, edge servers the rest; sessions follow devices that move",
               "Ullah et al., IEEE Communications Magazine 2022", FedFly, (_CUT,)),
)  # fmt: skip
"""With edge servers beside the clients."""


def entry(name: str) -> Entry:
    """The entry called `name`; a name that is close to one is suggested."""
    for found in ALGORITHMS:
        if found.name == name.lower():
            return found
    for several in (*DECENTRALISED, *OFFLOADING):
        if several.name == name.lower():
            made, counted = several.factory.__name__, "cycles" if several in DECENTRALISED else "rounds"
            raise UsageError(
                f"{name} has no rounds over a cohort, it is of several nodes: make it by {made}({counted})."
            )
    names = [known.name for known in ALGORITHMS]
    close = get_close_matches(name.lower(), names, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(names)}."
    raise UsageError(f"no algorithm is called {name!r}: {hint}")


def build(name: str, rounds: int, cohort: int | On, **options: Any) -> Any:
    """The algorithm called `name`; an option it does not have, or one it lacks, is refused in one line."""
    found = entry(name)
    known = found.options
    for option in options:
        if option not in known:
            raise UsageError(f"{name} has no option {option!r}: it has {', '.join(known)}.")
    lacking = [option for option, default in known.items() if default is inspect.Parameter.empty]
    for option in lacking:
        if option not in options:
            raise UsageError(f"{name} needs {option}=: give it a value.")
    return found.factory(rounds, cohort, **options)
