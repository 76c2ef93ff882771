"""The privacy artefact: mechanism, epsilon, delta, how often an attack succeeds, and who says so.

Here: writing what was declared, or computed by an accounting library. Not here: noise (a run's), attacks. Invariant:
what nobody measured is missing, not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.core.errors import MissingExtra, UsageError


def declare(
    out: str | Path, *, mechanism: str, source: str, epsilon: float | None = None, delta: float | None = None,
    attack_success: float | None = None, population: float | None = None, model: str = "", pet: str = "",
    how: str = "declared",
) -> Artefact:  # fmt: skip
    """Write what is known; None stays missing, so that the gate says INCOMPLETE and not yes. `how`: of epsilon."""
    checked(mechanism, epsilon, delta, attack_success, population)
    if not mechanism or not source:
        raise UsageError(
            "privacy needs a mechanism (none, dp-fedavg, secure-aggregation, ...) and a source: who says so."
        )
    numbers = {"epsilon": epsilon, "delta": delta, "attack_success": attack_success, "population": population}
    values = {
        name: Value(value, "1" if name != "population" else "clients", how=how if name == "epsilon" else "declared")
        for name, value in numbers.items()
    }
    params = {"mechanism": mechanism, "source": source, "model": model, "pet": pet}
    return Draft("privacy", params=params, values=values).write(out)


LIMITS: Mapping[str, tuple[float, float]] = {
    "epsilon": (0.0, 1e9), "delta": (0.0, 1.0), "attack_success": (0.0, 1.0), "population": (1.0, 1e12),
}  # fmt: skip
NOISELESS = frozenset({"", "none", "secure-aggregation", "secure-sum", "tee", "enclave"})
"""Mechanisms that leave the sum of updates as it is."""


def checked(
    mechanism: str, epsilon: float | None = None, delta: float | None = None, attack_success: float | None = None,
    population: float | None = None,
) -> None:  # fmt: skip
    """Refuse numbers of a mechanism that cannot be; None is not known and never refused."""
    told = {"epsilon": epsilon, "delta": delta, "attack_success": attack_success, "population": population}
    for name, value in told.items():
        least, most = LIMITS[name]
        number: Any = value
        good = isinstance(number, (int, float)) and not isinstance(number, bool) and isfinite(number)
        if value is not None and not (good and least <= value <= most):
            raise UsageError(f"privacy({name}={value}): use a number from {least:g} to {most:g}.")
    if mechanism.strip().lower() == "none" and epsilon is not None:
        raise UsageError(f"privacy(mechanism='none', epsilon={epsilon:g}): without a mechanism there is no epsilon.")


def noisy(mechanism: str) -> bool:
    """Whether a mechanism changes the sum of updates, as noise and clipping do; what is not known to leave it does.

    >>> noisy("dp-fedavg with secure aggregation"), noisy("secure aggregation"), noisy("none")
    (True, False, False)
    """
    return mechanism.strip().lower().replace(" ", "-") not in NOISELESS


def accounted(noise_multiplier: float, sampling: float, rounds: int, delta: float) -> float:
    """Epsilon of `rounds` rounds of the sampled Gaussian mechanism, by dp-accounting's PLD accountant.

    Valid where clients are sampled by chance; where devices come when they like, amplification by sampling does not
    hold (Kairouz et al., ICML 2021): pass sampling=1. Needs the extra `privacy`.
    """
    if not (noise_multiplier > 0 and 0 < sampling <= 1 and rounds >= 1 and 0 < delta < 1):
        raise UsageError(
            f"accounted(noise_multiplier={noise_multiplier}, sampling={sampling}, rounds={rounds}, delta={delta}): use "
            "noise above 0, a share in (0, 1], at least one round, delta in (0, 1)."
        )
    try:
        from dp_accounting import dp_event
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise MissingExtra(
            "dp-accounting is not installed: it is needed here; run pip install dp-accounting."
        ) from None
    one = dp_event.GaussianDpEvent(noise_multiplier)
    each = one if sampling == 1 else dp_event.PoissonSampledDpEvent(sampling, one)
    return float(PLDAccountant().compose(dp_event.SelfComposedDpEvent(each, rounds)).get_epsilon(delta))
