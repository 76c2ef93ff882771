"""Fieldfare: federated learning in the field, simulated first, priced beforehand.

The names a user needs are here and are imported when first used, so that `import fieldfare` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Job": "job", "Evaluation": "job", "Simulated": "job", "StopAt": "job", "Study": "study", "run": "run",
    "Result": "run", "resume_run": "resume", "UsageError": "core.errors", "PeerError": "core.errors",
    "Sample": "core.quorum", "Everyone": "core.quorum", "Quorum": "core.quorum", "Params": "core.params",
    "Training": "work.net", "mlp": "work.dense", "DenseNet": "work.dense", "torch_net": "work.torch_net",
    "jax_net": "work.jax_net", "opaque": "work.opaque", "flower_client": "work.flower_client",
    "FedAvg": "algorithms.fedavg", "FedAvgM": "algorithms.fedopt", "FedAdam": "algorithms.fedopt",
    "FedYogi": "algorithms.fedopt", "FedAdagrad": "algorithms.fedopt", "FedProx": "algorithms.fedprox",
    "Scaffold": "algorithms.scaffold", "FedNova": "algorithms.fednova", "FedDyn": "algorithms.feddyn",
    "QFedAvg": "algorithms.qfedavg", "Ditto": "algorithms.personal", "FedPer": "algorithms.personal",
    "FedRep": "algorithms.personal", "FedBN": "algorithms.personal", "FedMedian": "algorithms.robust",
    "FedTrimmedMean": "algorithms.robust", "Krum": "algorithms.robust", "Bagging": "algorithms.bagging",
    "Federated": "data", "federate": "data", "digits": "data", "synthetic": "data", "iid": "data", "dirichlet": "data",
    "shards": "data", "labels_per_client": "data", "lognormal_quantity": "data", "dirichlet_quantity": "data",
    "natural": "data", "joint": "data",
}  # fmt: skip
_MODULES = ("aggregate", "algorithms", "core", "data", "fleet", "report", "sim", "store", "testing", "work")

__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from fieldfare import aggregate, algorithms, core, data, fleet, report, sim, store, work
    from fieldfare.job import Evaluation, Job, Simulated, StopAt
    from fieldfare.study import Study


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
