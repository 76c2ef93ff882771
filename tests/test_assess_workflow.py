"""FLINT's figure 9 walked over evidence: every gate, every loop, missing evidence, a person's word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.decide.gates import Evidence, asker
from fieldfare.assess.decide.thresholds import thresholds
from fieldfare.assess.decide.workflow import Override, Walk, walk
from fieldfare.core.errors import UsageError

Key = tuple[str, str, str]
PASSED = ["1", "2", "3", "4", "G1", "5a", "5h", "6", "7", "G2", "8", "G3", "G4", "9", "G5", "10"]
ADS: Mapping[Key, Mapping[str, float]] = {
    ("trace", "any", "any"): {"median_usable_s": 300.0, "eligible_share_devices": 0.22},
    ("proxy", "any", "any"): {"natural": 1.0},
    ("features", "any", "any"): {"assets_bytes": 0.0},
    ("bench", "B", "any"): {"B.storage_bytes": 0.76e6, "B.p95_task_s": 3.0, "B.mem_bytes": 10.64e6, "B.cpu_pct": 3.91},
    ("simulation", "B", "any"): {"metric_loss_share": 0.0185},
    ("forecast", "B", "any"): {
        "time_to_target_s": 4.2 * 86_400, "ingress_bytes_per_s_peak": 2.68e6, "device_h": 7.5, "waste_share": 0.1,
    },
    ("privacy", "B", "any"): {"epsilon": 4.0, "delta": 1e-7, "population": 700_000.0, "attack_success": 0.05},
}  # fmt: skip


def evidence(
    tmp_path: Path, told: Mapping[Key, Mapping[str, float]], models: tuple[str, ...] = ("B",),
    pets: tuple[str, ...] = ("none",),
) -> Evidence:  # fmt: skip
    found: dict[Key, Artefact] = {}
    for number, (key, values) in enumerate(told.items()):
        made = Draft(key[0], values={name: Value(value) for name, value in values.items()})
        found[key] = made.write(tmp_path / f"{number}")
    return Evidence(models, pets, found)


def walked(of: Evidence, **changes: float) -> Walk:
    return walk(asker(of, thresholds(changes)), of.present, of.models, of.pets)


def ids(of: Walk) -> list[str]:
    return [step.id for step in of.path]


def with_(key: Key, **values: float) -> dict[Key, Mapping[str, float]]:
    return {**ADS, key: {**ADS.get(key, {}), **values}}


def test_the_papers_ads_inputs_are_a_go(tmp_path: Path) -> None:
    found = walked(evidence(tmp_path, ADS))
    assert found.verdict == "GO"
    assert ids(found) == PASSED
    assert found.binding is not None
    assert found.binding.name == "metric_loss_share"


def test_without_a_field_to_partition_by_clients_are_made_up_and_the_walk_goes_on(tmp_path: Path) -> None:
    found = walked(evidence(tmp_path, with_(("proxy", "any", "any"), natural=0.0)))
    assert found.verdict == "GO"
    assert ids(found) == [*PASSED[:5], "5b", *PASSED[7:]]


@pytest.mark.parametrize(
    ("key", "name", "value", "gate"),
    [
        (("bench", "B", "any"), "B.storage_bytes", 11e6, "G2"),
        (("simulation", "B", "any"), "metric_loss_share", 0.06, "G3"),
        (("forecast", "B", "any"), "ingress_bytes_per_s_peak", 3.1e6, "G4"),
    ],
)
def test_a_gate_that_says_no_goes_back_to_the_models_and_on_with_the_next(
    tmp_path: Path, key: Key, name: str, value: float, gate: str
) -> None:
    alone = walked(evidence(tmp_path / "alone", with_(key, **{name: value})))
    assert alone.verdict == "NO-GO"
    assert alone.path[-1].id == gate
    assert alone.binding is not None
    assert alone.binding.value == value
    more: dict[Key, Mapping[str, float]] = with_(key, **{name: value})
    for kind in ("bench", "simulation", "forecast", "privacy"):
        more[kind, "A", "any"] = {k.replace("B.", "A."): v for k, v in ADS[kind, "B", "any"].items()}
    found = walked(evidence(tmp_path / "two", more, ("B", "A")))
    at = ids(found).index(gate)
    assert found.verdict == "GO"
    assert ids(found) == [*PASSED[: PASSED.index(gate) + 1], *PASSED[PASSED.index("6") :]]
    assert [found.path[at].at.model, found.path[-1].at.model] == [0, 1]


def test_a_privacy_budget_that_is_not_kept_goes_back_to_the_search_with_the_next_technique(tmp_path: Path) -> None:
    told = {**ADS, ("privacy", "B", "any"): {}, ("privacy", "B", "none"): {"epsilon": 1e3, "delta": 1e-7},
            ("privacy", "B", "dp"): ADS["privacy", "B", "any"]}  # fmt: skip
    found = walked(evidence(tmp_path, told, pets=("none", "dp")))
    assert found.verdict == "GO"
    assert ids(found) == [*PASSED[:-1], *PASSED[PASSED.index("8") :]]
    assert found.path[-1].at.pet == 1
    alone = walked(evidence(tmp_path / "alone", told, pets=("none",)))
    assert alone.verdict == "NO-GO"
    assert "no other privacy technique" in alone.reason


@pytest.mark.parametrize("key", list(ADS))
def test_missing_evidence_is_incomplete_and_never_a_pass(tmp_path: Path, key: Key) -> None:
    found = walked(evidence(tmp_path, {k: v for k, v in ADS.items() if k != key}))
    assert found.verdict == "INCOMPLETE"
    assert any(key[0] in word for word in found.missing)
    assert "10" not in ids(found)


def test_a_number_nobody_measured_is_missing_too(tmp_path: Path) -> None:
    values = dict(ADS["privacy", "B", "any"])
    del values["attack_success"]
    found = walked(evidence(tmp_path, {**ADS, ("privacy", "B", "any"): values}))
    assert found.verdict == "INCOMPLETE"
    assert found.missing == ("privacy: attack_success",)


def test_a_persons_word_turns_a_no_into_conditions_but_not_missing_evidence(tmp_path: Path) -> None:
    word = Override("G4", "R. Okafor", "2026-03-01", "the enclave is doubled in May")
    of = evidence(tmp_path / "a", with_(("forecast", "B", "any"), ingress_bytes_per_s_peak=3.5e6))
    found = walk(asker(of, thresholds()), of.present, of.models, of.pets, [word])
    assert found.verdict == "GO WITH CONDITIONS"
    assert [step.override for step in found.path if step.id == "G4"] == [word]
    of = evidence(tmp_path / "b", {k: v for k, v in ADS.items() if k[0] != "forecast"})
    assert walk(asker(of, thresholds()), of.present, of.models, of.pets, [word]).verdict == "INCOMPLETE"


def test_loops_end(tmp_path: Path) -> None:
    models = tuple(f"m{i}" for i in range(9))
    told = {k: v for k, v in ADS.items() if k[0] != "bench"}
    bench = {
        f"{m}.{name}": v
        for m in models
        for name, v in {"storage_bytes": 20e6, "p95_task_s": 3.0, "mem_bytes": 1e6}.items()
    }
    of = evidence(tmp_path, {**told, ("bench", "any", "any"): bench}, models)
    of = Evidence(models, of.pets, {k if k[1] != "B" else (k[0], "any", "any"): v for k, v in of.found.items()})
    found = walked(of)
    assert found.verdict == "NO-GO"
    assert ids(found).count("G2") == 6


@pytest.mark.parametrize(
    ("name", "passes", "fails"), [("metric_loss_share", 0.02, 0.01), ("time_to_target_s", 4e5, 3e5)]
)
def test_one_threshold_flips_the_verdict_in_both_directions(
    tmp_path: Path, name: str, passes: float, fails: float
) -> None:
    of = evidence(tmp_path, ADS)
    assert walked(of, **{name: passes}).verdict == "GO"
    assert walked(of, **{name: fails}).verdict == "NO-GO"


def test_unknown_thresholds_and_evidence_of_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'epsilon'"):
        thresholds({"epsilom": 1.0})
    with pytest.raises(UsageError, match="finite number"):
        thresholds({"epsilon": float("nan")})
    with pytest.raises(UsageError, match="bench evidence of 'B'"):
        evidence(tmp_path, ADS, models=("C",)).check()
