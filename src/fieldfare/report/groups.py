"""Groups of devices, and how far each came: in the fleet, available, asked, counted. Who is left out of a model.

Here: groups by class of device and by tenths of data size, and their numbers. Not here: how they are drawn
(`plots_tasks`). Kept: every device kept of the fleet is in exactly one group of each kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.report.table import Floats

if TYPE_CHECKING:
    from fieldfare.report.read_tasks import Work

MOST_CLASSES = 9
"""Classes shown by name, those with most devices; the others are one group."""
TENTHS = 10


@dataclass(frozen=True)
class Groups:
    """Groups of devices, ``[g]`` each.

    ``devices`` in the fleet, ``available`` those that could work at all before the run ended (None: not known),
    ``asked`` those that began a task, ``reached`` those with a task that counted; ``begun`` tasks, ``counted`` tasks
    that counted; ``examples`` held, ``learnt`` examples of the tasks that counted, each time they did.
    """

    kind: str
    names: tuple[str, ...]
    devices: Floats
    available: Floats | None
    asked: Floats
    reached: Floats
    begun: Floats
    counted: Floats
    examples: Floats
    learnt: Floats

    def stages(self) -> list[tuple[str, Floats]]:
        """Shares of each group's devices, ``[g]``, that came so far and no further, furthest first; their sum is 1."""
        whole = np.maximum(self.devices, 1.0)
        found = [("counted", self.reached / whole), ("asked in vain", (self.asked - self.reached) / whole)]
        if self.available is None:
            return [*found, ("never asked", 1.0 - self.asked / whole)]
        able = np.maximum(self.available, self.asked)
        return [
            *found,
            ("available, never asked", (able - self.asked) / whole),
            ("never available", 1.0 - able / whole),
        ]

    def ratio(self) -> Floats:
        """Each group's share of the updates that counted over its share of the devices, ``[g]``: 1 is fair."""
        updates, devices = share_of(self.counted), share_of(self.devices)
        return np.where(devices > 0, updates / np.where(devices > 0, devices, 1.0), np.nan)


def share_of(values: Floats) -> Floats:
    """Values as shares of their sum; zeros where that is zero."""
    total = float(values.sum())
    return values / total if total > 0 else np.zeros(len(values))


def groups_of(work: Work) -> list[Groups]:
    """By class and by data size; a kind with fewer than two groups is left out, as it would say nothing."""
    found = [by_class(work), by_examples(work)]
    return [one for one in found if one is not None and len(one.names) > 1]


def everyone(work: Work) -> Groups | None:
    """All devices as one group; None where none are kept."""
    if work.devices is None or not len(work.devices):
        return None
    return _sums(work, "devices", ("all",), np.zeros(len(work.devices), np.int64))


def by_class(work: Work) -> Groups | None:
    """By class of device, in the fleet's own order; of many the `MOST_CLASSES` largest, and one group of all others."""
    if work.devices is None or not work.kinds:
        return None
    kind = work.devices["kind"].astype(np.int64)
    counts = np.bincount(kind + 1, minlength=len(work.kinds) + 1)
    order = [int(one) for one in np.argsort(-counts[1:], kind="stable") if counts[one + 1]]
    shown = order if len(order) <= MOST_CLASSES + 1 and not counts[0] else order[:MOST_CLASSES]
    shown = sorted(shown)
    names = [work.kinds[one] for one in shown]
    place = np.full(len(work.kinds) + 1, len(names), np.int64)
    place[np.array(shown, np.int64) + 1] = np.arange(len(shown))
    group = place[kind + 1]
    if (group == len(names)).any():
        names.append("other")
    return _sums(work, "class", tuple(names), group) if names else None


def by_examples(work: Work) -> Groups | None:
    """By tenths of the devices in order of how many examples they hold; equal counts are in one group."""
    if work.devices is None or not len(work.devices):
        return None
    examples = work.devices["examples"].astype(np.int64)
    tops = np.unique(np.quantile(examples, np.arange(1, TENTHS + 1) / TENTHS, method="inverted_cdf"))
    group = np.searchsorted(tops, examples)
    lows = [int(examples[group == one].min()) for one in range(len(tops))]
    names = [f"{low:,}" if low == top else f"{low:,}–{int(top):,}" for low, top in zip(lows, tops, strict=True)]
    return _sums(work, "examples", tuple(names), group)


def _sums(work: Work, kind: str, names: tuple[str, ...], group: NDArray[np.int64]) -> Groups:
    devices = work.devices
    assert devices is not None
    examples = devices["examples"].astype(np.float64)
    begun, counted = work.begun[: len(devices)], work.counted[: len(devices)]
    add: Callable[..., Floats] = lambda weights=None: np.bincount(group, weights, len(names)).astype(np.float64)  # noqa: E731
    able = devices["available"] > 0
    told = not able.all() and bool((devices["available"] >= 0).all())
    return Groups(
        kind, names, add(), add(able) if told else None, add(begun > 0), add(counted > 0), add(begun), add(counted),
        add(examples), add(examples * counted),
    )  # fmt: skip


def gini(values: Floats) -> float:
    """Gini index of values not below zero: 0 all alike, near 1 one holds all.

    >>> gini(np.array([1.0, 1.0])), gini(np.array([0.0, 0.0, 0.0, 4.0]))
    (0.0, 0.75)
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n, total = len(ordered), float(ordered.sum())
    if not n or total <= 0:
        return 0.0
    return float((2.0 * np.dot(np.arange(1, n + 1), ordered) / (n * total)) - (n + 1) / n)


def groups_facts(work: Work) -> dict[str, Any]:
    """Who took part, as plain JSON: of all devices kept, then by class and by data size."""
    whole = everyone(work)
    if whole is None:
        return {}
    facts = {"every": work.every, **_row(whole, 0), "gini_updates": gini(work.counted)}
    held = whole.examples[0]
    assert work.devices is not None
    reached = work.devices["examples"][work.counted[: len(work.devices)] > 0].sum()
    facts["examples_reached_share"] = float(reached / held) if held else 0.0
    for groups in groups_of(work):
        ratio = groups.ratio()
        facts[f"by_{groups.kind}"] = [
            {"group": name, **_row(groups, at), "updates_over_devices": float(ratio[at])}
            for at, name in enumerate(groups.names)
        ]
    return facts


def _row(groups: Groups, at: int) -> dict[str, Any]:
    row = {"devices": int(groups.devices[at])}
    if groups.available is not None:
        row["available"] = int(groups.available[at])
    row |= {"asked": int(groups.asked[at]), "reached": int(groups.reached[at]), "tasks": int(groups.begun[at])}
    return {**row, "counted": int(groups.counted[at]), "examples": int(groups.examples[at])}
