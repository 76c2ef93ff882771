"""A budget in seconds, turned into local steps: what each device can do of its task until a cut-off time.

Flower's cut-off tau per class of processor (Beutel et al., "Flower: a friendly federated learning framework", 2020,
section 5.3): whoever reaches tau sends the parameters it has. Ours stops at a whole step, at least one, and counts the
transfers in. Invariant: a limit depends on (device, cost, config) alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.effects import Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.work import Cost, Work
from fieldfare.fleet.fleet import Fleet, take

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_KEY = "budget_s"


def budgets(config: Mapping[str, Scalar], fleet: Fleet, devices: I64) -> F64 | None:
    """The budget of each device `[n]`: config "budget_s:<class>" for its class, else "budget_s", else infinite."""
    if not any(key == _KEY or key.startswith(_KEY + ":") for key in config):
        return None
    table = np.full(max(len(fleet.kinds), 1), float(config.get(_KEY, np.inf)))
    for key, value in config.items():
        if key.startswith(_KEY + ":"):
            kind = key.partition(":")[2]
            if kind not in fleet.kinds:
                raise UsageError(
                    f"a budget is given for device class {kind!r}: this fleet has {', '.join(fleet.kinds) or 'none'}."
                )
            table[fleet.kinds.index(kind)] = float(value)
    return table[np.zeros(len(devices), np.int64) if fleet.kind is None else fleet.kind[devices]]


def steps_within(
    config: Mapping[str, Scalar], fleet: Fleet, devices: I64, work: Work, examples: I64, cost: Cost,
    travels: bool = True,
) -> tuple[I64, Cost] | None:  # fmt: skip
    """(most local steps of each device `[n]`, the cost with so many); None where the config gives no budget.

    `travels`: whether the model is sent there and back, so that transfers and overhead count.
    """
    budget = budgets(config, fleet, devices)
    if budget is None:
        return None
    counted: Any = getattr(work, "steps", None)
    if counted is None:
        raise UsageError(
            f"the config gives a budget in seconds and {type(work).__name__} cannot stop after so many steps: leave "
            "the budget out, or train by Training(...)."
        )
    full: I64 = counted(examples, config)
    moved: Any = 0.0
    if travels:
        moved = fleet.durations(devices, replace(cost, flops=0.0))
    each = cost.flops / take(fleet.flops_per_s, devices) / np.maximum(full, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = np.where(each > 0, np.floor((budget - moved) / each), np.inf)
    most = np.minimum(np.maximum(fit, 1.0), full).astype(np.int64)
    return most, replace(cost, flops=cost.flops * most / np.maximum(full, 1))
