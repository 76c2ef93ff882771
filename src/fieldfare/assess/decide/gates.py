"""What each gate compares, from the artefacts there are.

Here: the evidence of a case, and the reply of every gate. Not here: where a reply leads (`workflow`), the numbers
compared with (`thresholds`). Invariants: a reply is a function of artefacts' values and thresholds; a number that a
gate needs and that nobody measured makes it "missing"; a number that cannot be is refused, never compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, isnan

from fieldfare.assess.artefact import Artefact
from fieldfare.assess.decide.privacy import checked
from fieldfare.assess.decide.thresholds import ASKED, Threshold
from fieldfare.assess.decide.words import words
from fieldfare.assess.decide.workflow import Check, Reply, Try
from fieldfare.core.errors import UsageError

PER_MODEL = ("bench", "simulation", "sweep", "forecast", "privacy")
PER_PET = ("simulation", "forecast", "privacy")
ANY = "any"


@dataclass(frozen=True, eq=False)
class Evidence:
    """The artefacts of one case, by (kind, model, privacy technique); "any" where it does not matter which."""

    models: tuple[str, ...]
    pets: tuple[str, ...] = ("none",)
    found: Mapping[tuple[str, str, str], Artefact] = field(default_factory=dict[tuple[str, str, str], Artefact])

    def of(self, kind: str, at: Try) -> Artefact | None:
        """The artefact of a kind for the model and technique of `at`."""
        model = self.models[at.model] if kind in PER_MODEL else ANY
        pet = self.pets[at.pet] if kind in PER_PET else ANY
        keys = ((model, pet), (model, ANY), (ANY, pet), (ANY, ANY))
        return next((one for key in keys if (one := self.found.get((kind, *key))) is not None), None)

    def present(self, kind: str, at: Try) -> bool:
        return self.of(kind, at) is not None

    def check(self) -> None:
        """Refuse evidence of a model or a technique that the case does not have."""
        for kind, model, pet in self.found:
            if model not in (*self.models, ANY) or pet not in (*self.pets, ANY):
                raise UsageError(
                    f"there is {kind} evidence of {model!r} with {pet!r}; the case has the models "
                    f"{', '.join(self.models)} and the techniques {', '.join(self.pets)}: name one of these."
                )


def asker(evidence: Evidence, limits: Mapping[str, Threshold]) -> Callable[[str, Try], Reply]:
    """The function `walk` asks: every gate's reply at a try."""
    gates: Mapping[str, Callable[[Evidence, Try, Mapping[str, Threshold]], Reply]] = {
        "G1": partition_gate, "G2": task_gate, "G3": model_gate, "G4": systems_gate, "G5": privacy_gate,
    }  # fmt: skip
    return lambda gate, at: gates[gate](evidence, at, limits)


def partition_gate(evidence: Evidence, at: Try, limits: Mapping[str, Threshold]) -> Reply:
    """G1: yes where the proxy's clients are those of a field of the table."""
    proxy = evidence.of("proxy", at)
    natural = None if proxy is None else proxy.number("natural")
    if natural is None:
        return Reply("missing", (), ("proxy: natural",))
    return Reply("yes", reason="clients are those of a field") if natural else Reply("no", reason="clients are made up")


def task_gate(evidence: Evidence, at: Try, limits: Mapping[str, Threshold]) -> Reply:
    """G2: size, time, memory, processor and battery of one task, and who may take part (spec: thresholds are ours).

    Time and battery are of a task of as many records as a client of the proxy has, in proportion to those measured.
    """
    model, bench, trace = evidence.models[at.model], evidence.of("bench", at), evidence.of("trace", at)
    features = evidence.of("features", at)
    package = _sum(_of(bench, f"{model}.storage_bytes"), _of(features, "assets_bytes") or 0.0)
    asked, held = _of(bench, f"{model}.records"), _of(evidence.of("proxy", at), "records_mean")
    share = held / asked if asked and held else 1.0
    scaled = "" if share == 1.0 else f"a client has {held:,.4g} records, {asked:,.4g} were measured: in proportion"
    p95, day = (_times(_of(bench, f"{model}.{name}"), share) for name in ("p95_task_s", "battery_share_per_day"))
    session = _of(trace, "median_usable_s")
    checks = (
        _check("package_bytes", package, limits, "bench", bench, note="model file and assets"),
        _check("task_p95_s", p95, limits, "bench", bench, note=scaled),
        _check("task_over_session", None if p95 is None or not session else p95 / session, limits, "trace", trace,
               note="95 % quantile of the task's time over the median usable session"),
        _check("memory_bytes", _of(bench, f"{model}.mem_bytes"), limits, "bench", bench),
        _check("cpu_pct", _of(bench, f"{model}.cpu_pct"), limits, "bench", bench, required=False),
        _check("battery_share_per_day", day, limits, "bench", bench, required=False, note=scaled),
        _check("eligible_share_devices", _of(trace, "eligible_share_devices"), limits, "trace", trace),
    )  # fmt: skip
    return reply(checks)


def model_gate(evidence: Evidence, at: Try, limits: Mapping[str, Threshold]) -> Reply:
    """G3: what is lost against the central model, its band over trials, how many these are, and the worst group.

    One trial has no band. Fewer trials than wanted are a condition, as is a band or a worst group nobody knows.
    """
    sim = evidence.of("simulation", at)
    loss = None if sim is None else sim.values.get("metric_loss_share")
    median = None if loss is None else loss.value
    limit = limits["metric_loss_share"].value
    trials = _of(sim, "trials")
    known = loss is not None and loss.high is not None and (trials is None or trials > 1)
    high = 0.0 if loss is None or loss.high is None else max(loss.high, 0.0)
    band = None if not known else high / limit if limit else 0.0 if not high else float("inf")
    checks = (
        _check("metric_loss_share", median, limits, "simulation", sim,
               note="of the central model's metric, median of trials"),
        _check("band_over_median", band, limits, "simulation", sim, required=False, wanted=True,
               note="worse end of the band over the limit"),
        _check("trials", trials, limits, "simulation", sim, required=False, advisory=True),
        _check("worst_group_gap", _of(sim, "worst_group_gap"), limits, "simulation", sim, required=False, wanted=True),
    )  # fmt: skip
    return reply(checks)


def systems_gate(evidence: Evidence, at: Try, limits: Mapping[str, Threshold]) -> Reply:
    """G4: time to the target, the enclave's ingress, waste, devices' hours, check-ins at the peak; cost and carbon
    where somebody limits them. A forecast that was computed has them all: one of them missing is INCOMPLETE.
    """
    cast_ = evidence.of("forecast", at)
    computed = cast_ is not None and "job" in cast_.params
    checks = (
        _check("time_to_target_s", _of(cast_, "time_to_target_s"), limits, "forecast", cast_),
        _check("ingress_bytes_per_s", _of(cast_, "ingress_bytes_per_s_peak"), limits, "forecast", cast_,
               note="at the peak"),
        _check("waste_share", _of(cast_, "waste_share"), limits, "forecast", cast_, required=computed, wanted=True),
        _check("device_h", _of(cast_, "device_h"), limits, "forecast", cast_),
        _check("checkins_per_s", _of(cast_, "checkins_per_s_peak"), limits, "forecast", cast_, required=computed,
               wanted=True, note="at the peak"),
        *(_check(name, _of(cast_, name), limits, "forecast", cast_) for name in ASKED if name in limits),
    )  # fmt: skip
    return reply(checks)


def privacy_gate(evidence: Evidence, at: Try, limits: Mapping[str, Threshold]) -> Reply:
    """G5: epsilon, delta against the population, and how often an attack succeeds."""
    told = evidence.of("privacy", at)
    if told is not None:
        numbers = {name: told.number(name) for name in ("epsilon", "delta", "attack_success", "population")}
        try:
            checked(str(told.params.get("mechanism", "")), **numbers)
        except UsageError as error:
            raise UsageError(f"{told.path.name}: {error}") from None
    delta, people = _of(told, "delta"), _of(told, "population")
    product = None if delta is None or people is None else delta * people
    checks = (
        _check("epsilon", _of(told, "epsilon"), limits, "privacy", told),
        _check("delta_times_population", product, limits, "privacy", told),
        _check("attack_success", _of(told, "attack_success"), limits, "privacy", told),
    )
    return reply(checks)


def reply(checks: tuple[Check, ...]) -> Reply:
    """Yes, no or missing: a required number that fails is a no even where another is missing."""
    failed = [one for one in checks if one.ok is False and not one.advisory]
    missing = tuple(f"{one.kind}: {one.name}" for one in checks if one.ok is None and one.required)
    if failed:
        return Reply("no", checks, missing, "; ".join(told(one) for one in failed))
    if missing:
        return Reply("missing", checks, missing)
    return Reply("yes", checks)


def told(one: Check) -> str:
    """A check that fails, in words.

    >>> told(Check("epsilon", 9.0, Threshold(8.0, "1", "ours"), "privacy"))
    'epsilon: 9 is above 8'
    """
    side = "above" if one.threshold.most else "below"
    return (
        f"{one.name}: {words(one.value, one.threshold.unit)} is {side} {words(one.threshold.value, one.threshold.unit)}"
    )


def _of(artefact: Artefact | None, name: str) -> float | None:
    return None if artefact is None else artefact.number(name)


def _times(value: float | None, share: float) -> float | None:
    return None if value is None else value * share


def _sum(first: float | None, second: float) -> float | None:
    return None if first is None else first + second


SIGNED = frozenset({"metric_loss_share"})
"""Numbers that may be below 0: a gain over the central model is one."""
PARTS = frozenset({"eligible_share_devices", "waste_share"})
"""Shares of a whole."""


def _check(
    name: str, value: float | None, limits: Mapping[str, Threshold], kind: str, source: Artefact | None, *,
    required: bool = True, note: str = "", wanted: bool = False, advisory: bool = False,
) -> Check:  # fmt: skip
    """The number beside its limit; `UsageError` where it cannot be."""
    if value is not None and source is not None:
        low, high = (-inf if name in SIGNED else 0.0), (1.0 if name in PARTS else inf)
        if isnan(value) or not low <= value <= high:
            most = "" if high == inf else f" to {high:g}"
            raise UsageError(f"{source.path.name} tells {name} as {value}: it is a number from 0{most}; make it again.")
    sha256 = "" if source is None else source.sha256
    return Check(name, value, limits[name], kind, sha256, required, note, wanted, advisory)
