"""The three cases: like FLINT's ads, messaging and search models, on data made up from its table 2.

Here: what differs between them, and the central table each begins with. Not here: the walk (`walk`). Invariant: all is
drawn from the seed; nothing here was measured on people. Which letter of table 2 belongs to which case is likely, not
certain (the paper does not say); verdicts are of these made-up inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.decide.workflow import Override
from fieldfare.assess.features.locality import Feature
from fieldfare.assess.proxy.presets import preset, sizes
from fieldfare.assess.simulate.search import Search
from fieldfare.assess.trace.criteria import Criteria
from fieldfare.core import rng

Array = NDArray[Any]
FEATURES = 24
TEST_ROWS = 4_000
SWEEP_H = 2.0


@dataclass(frozen=True)
class Privacy:
    """What is declared of a technique: `epsilon` at `delta`, and the share of attacks that succeed."""

    mechanism: str
    epsilon: float
    attack_success: float
    delta: float = 1e-8
    source: str = "declared for the demonstration"


@dataclass(frozen=True)
class DemoCase:
    """One case: table-2 `preset` with so many `clients`, candidate models of table 5, criteria, limits, privacy.

    `sweep`: settings whose time alone is simulated, for the pictures of FLINT's figures 7 and 8.
    """

    name: str
    title: str
    preset: str
    clients: int
    models: tuple[str, ...]
    features: tuple[Feature, ...]
    criteria: Criteria
    search: Search
    privacy: Mapping[str, Privacy]
    thresholds: Mapping[str, float] = field(default_factory=dict[str, float])
    compliance: str = ""
    package: str = "own app"
    overrides: tuple[Override, ...] = ()
    sweep: Search | None = None


def table(case: DemoCase, seed: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """The central table (`member`, `label`, `x0`, ...) and rows of members who are not in it, for the test.

    A member's rows lie around a centre of its own; the label is a noisy function of a row, alike for all, with
    the preset's share of ones.
    """
    shape = preset(case.preset)
    n = sizes(shape, case.clients, seed)
    gen = rng.stream(seed, "assess", "demo", case.name)
    way, bend = gen.standard_normal(FEATURES), gen.standard_normal((FEATURES, 6))

    def rows(member: Array) -> tuple[Array, Array]:
        centre = 0.5 * gen.standard_normal((int(member.max()) + 1, FEATURES))
        x = centre[member] + gen.standard_normal((len(member), FEATURES))
        score = x @ way / np.sqrt(FEATURES) + 0.8 * np.tanh(x @ bend / np.sqrt(FEATURES)).sum(axis=1)
        return x.astype(np.float32), score + gen.logistic(0, 0.5, len(member))

    member = np.repeat(np.arange(len(n)), n)
    x, score = rows(member)
    bar = np.quantile(score, 1 - (shape.label_ratio or 0.5))
    order = gen.permutation(len(member))
    columns: dict[str, Any] = {"member": member[order], "label": (score > bar).astype(np.int64)[order]}
    columns |= {f"x{i}": x[order, i] for i in range(FEATURES)}
    x_test, score_test = rows(np.arange(TEST_ROWS) // 4)
    return columns, {"x": x_test, "y": (score_test > bar).astype(np.int64)}


def timed(concurrency: tuple[int, ...], buffer: tuple[int, ...]) -> Search:
    """A sweep over time alone: from the first value of each, one setting at a time is varied."""
    return Search(concurrency=concurrency, buffer=buffer, staleness=(10, 1, 3, 20), design="cross", train=False,
                  hours=SWEEP_H, versions=10**6, trials=1)  # fmt: skip


AUDIT = "made up for the demonstration: the epsilon that an audit by attacks found, not a proof"
STRICT = Criteria(wifi=True, battery_min=0.8, foreground=True)
CASES: Mapping[str, DemoCase] = {
    one.name: one
    for one in (
        DemoCase(
            "ads", "Click model of an advertising kit in other makers' apps", "A", 600, ("E", "B"),
            (Feature("ad_id", "cloud", 8, 60_000, 1.28e6, max_device_bytes=2e6, transform="cloud"),
             Feature("member", "device", 16), Feature("page", "device", 12)),
            Criteria(wifi=True, battery_min=0.8),
            Search(concurrency=(20,), buffer=(20,), lr=(0.3, 0.1), versions=500, trials=5, tune=3, rungs_h=(5.0,),
                   compare=True, metric="loss", target=0.28, every=10, passes=8),
            {"secure-aggregation": Privacy("secure aggregation", 4.0, 0.05, source=AUDIT)},
            {"package_bytes": 1e6, "worst_group_gap": 2.0}, "members' clicks may no longer leave the device",
            "kit for other apps",
            sweep=timed((40, 10, 20, 80), (10, 5, 20, 40)),
        ),
        DemoCase(
            "messaging", "Abuse filter of an encrypted messenger", "C", 6_000, ("D", "C"),
            (Feature("words", "device", 20, 50_000, 4e5, max_device_bytes=5e6),), STRICT,
            Search(concurrency=(60,), buffer=(30,), lr=(0.3,), versions=400, trials=3, compare=True, metric="loss",
                   target=0.18, every=10, passes=10),
            {"secure-aggregation": Privacy("secure aggregation", 30.0, 0.31),
             "dp-fedavg": Privacy("dp-fedavg, at the noise the model bears", 7.0, 0.18)},
            {"metric_loss_share": 0.05, "worst_group_gap": 2.0},
            sweep=timed((60, 15, 30, 120), (15, 8, 30, 60)),
        ),
        DemoCase(
            "search", "Query ranking in the app", "B", 400, ("B",),
            (Feature("query", "device", 24), Feature("profile", "cloud", 64, max_device_bytes=1e6, transform="cloud")),
            Criteria(wifi=True, battery_min=0.5, os_released_after="2020-06-01"),
            Search(concurrency=(30,), buffer=(15,), lr=(0.2,), versions=600, trials=3, metric="loss", target=0.123,
                   every=10, passes=6),
            {"dp-fedavg": Privacy("dp-fedavg with secure aggregation", 6.0, 0.06)},
            {"metric_loss_share": 0.05, "worst_group_gap": 2.0},
            overrides=(Override("G3", "the owner of search (made up)", "2026-01-15",
                                "a ranking as fresh as today's queries gains more than it loses here"),),
            sweep=timed((30, 8, 15, 60), (8, 4, 15, 30)),
        ),
    )
}  # fmt: skip
