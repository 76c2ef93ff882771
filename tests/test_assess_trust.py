"""What a decision may be trusted for: numbers that cannot be, foreign text, unlike origins, what nobody knows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import test_assess_decide as cases
import test_assess_workflow as flow
from click.testing import CliRunner

from fieldfare.assess.artefact import Artefact, Draft, Value, read_artefact
from fieldfare.assess.decide.decision import Case, case_of, decide
from fieldfare.assess.decide.gates import asker
from fieldfare.assess.decide.page import report
from fieldfare.assess.decide.privacy import declare
from fieldfare.assess.decide.thresholds import ASKED, DEFAULTS, Threshold, thresholds
from fieldfare.assess.decide.workflow import GATES, Override, Try
from fieldfare.cli import app
from fieldfare.core.errors import UsageError

EVIL = '<script>alert("1")</script>'


def evidence(place: Path, **changes: Mapping[str, Value]) -> list[Artefact]:
    return [read_artefact(one) for one in cases.write(place / "e", **changes)]


def of_kind(found: list[Artefact], kind: str, made: Draft, place: Path) -> list[Artefact]:
    """The evidence with another artefact in the place of the one of its kind."""
    old = next(one for one in found if one.kind == kind)
    made.values = {**old.values, **made.values}
    return [one for one in found if one.kind != kind] + [made.write(place / f"other-{kind}")]


def test_no_text_of_an_artefact_becomes_markup_of_the_page(tmp_path: Path) -> None:
    made: list[Artefact] = []
    for i, one in enumerate(evidence(tmp_path)):
        draft = Draft(one.kind, params=dict.fromkeys(("mechanism", "source", "best", "status"), EVIL))
        draft.params = {**draft.params, "versions": EVIL, "planned": EVIL}
        draft.inputs = [{"kind": EVIL, "path": EVIL, "sha256": f"{i:064x}"}]
        draft.values = {n: Value(v.value, EVIL, v.value, v.value, EVIL, v.value, EVIL) for n, v in one.values.items()}
        draft.values[EVIL] = Value(1.0)
        for name in ("models", "eligible", "criteria", "intersections", "features", "vocabulary", "assumed"):
            draft.table(name, {EVIL: [EVIL], "model": [EVIL]})
        draft.table("quantities", {n: [EVIL] if n in ("name", "unit", "how", "formula") else [1.0] for n in
                                   ("name", "unit", "how", "formula", "value", "low", "high", "closed")})  # fmt: skip
        draft.table("fairness", {"filter": ["all"], "by": [EVIL], "group": [EVIL], "share_before": [0.5],
                                 "share_after": [0.1], "ratio": [0.2], "flagged": [1]})  # fmt: skip
        made.append(draft.write(tmp_path / "<b>" / one.kind))
    drift = Draft("drift", params={"versions": EVIL, "planned": EVIL, "status": EVIL})
    drift.table("drift", {n: [EVIL] if n in ("quantity", "unit") else [1.0] for n in
                          ("quantity", "unit", "forecast", "low", "high", "live", "inside")})  # fmt: skip
    word = Override("G4", EVIL, EVIL, EVIL)
    case = Case(EVIL, ("B",), title=EVIL, compliance=EVIL, overrides=(word,))
    for limits in ({}, {"ingress_bytes_per_s": 1.0}):
        told = decide(case_of({"name": EVIL, "models": ["B"], "title": EVIL, "compliance": EVIL, "thresholds": limits,
                               "override": [{"gate": "G4", "by": EVIL, "date": EVIL, "reason": EVIL}]}),
                      [*made, drift.write(tmp_path / "drift")])  # fmt: skip
        assert told.verdict == "GO WITH CONDITIONS"
        page = report(told)
        assert "<script" not in page
        assert "&lt;script&gt;alert" in page
        assert "alert(&quot;" in page or "alert(&#" in page
    assert case.title == EVIL


@pytest.mark.parametrize(
    ("kind", "name", "value", "says"),
    [
        ("privacy", "epsilon", -5.0, "epsilon=-5"),
        ("privacy", "population", 0.0, "population=0"),
        ("privacy", "population", -5.0, "population=-5"),
        ("privacy", "delta", 1.5, "delta=1.5"),
        ("privacy", "attack_success", 1.5, "attack_success=1.5"),
        ("forecast", "waste_share", 1.5, "waste_share as 1.5"),
        ("forecast", "time_to_target_s", -1.0, "time_to_target_s as -1"),
        ("bench", "B.mem_bytes", -1.0, "memory_bytes as -1"),
        ("trace", "eligible_share_devices", 1.2, "eligible_share_devices as 1.2"),
        ("simulation", "worst_group_gap", -3.0, "worst_group_gap as -3"),
    ],
)
def test_numbers_that_cannot_be_are_refused_and_never_compared(
    tmp_path: Path, kind: str, name: str, value: float, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        decide(Case("ads", ("B",)), evidence(tmp_path, **{kind: {name: Value(value)}}))
    assert decide(Case("ads", ("B",)), evidence(tmp_path / "ok")).verdict == "GO"
    gain = Value(-0.01, "share", -0.02, 0.0)
    assert decide(Case("ads", ("B",)), evidence(tmp_path / "g", simulation={"metric_loss_share": gain})).verdict == "GO"


def test_privacy_is_declared_in_numbers_that_can_be_and_only_epsilon_is_computed(tmp_path: Path) -> None:
    for told, says in (
        ({"population": -5.0}, "population=-5"), ({"population": 0.0}, "population=0"),
        ({"population": float("inf")}, "population=inf"), ({"epsilon": True}, "epsilon=True"),
        ({"epsilon": "x"}, "epsilon=x"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            declare(tmp_path / "p", mechanism="dp", source="x", **told)
    with pytest.raises(UsageError, match="without a mechanism there is no epsilon"):
        declare(tmp_path / "p", mechanism="none", source="x", epsilon=0.0)
    forged = Draft("privacy", params={"mechanism": "None"}, values={"epsilon": Value(0.0)})
    with pytest.raises(UsageError, match="without a mechanism there is no epsilon"):
        decide(Case("ads", ("B",)), of_kind(evidence(tmp_path), "privacy", forged, tmp_path))
    made = declare(tmp_path / "p", mechanism="dp", source="x", epsilon=1.0, delta=1e-7, population=9.0,
                   attack_success=0.1, how="closed form")  # fmt: skip
    assert {name: one.how for name, one in made.values.items()} == {
        "epsilon": "closed form", "delta": "declared", "attack_success": "declared", "population": "declared"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["band_over_median", "worst_group_gap", "waste_share", "checkins_per_s"])
def test_what_the_gates_want_and_nobody_knows_is_a_named_condition(tmp_path: Path, name: str) -> None:
    kind, value = {
        "band_over_median": ("simulation", {"metric_loss_share": Value(0.0185)}),
        "worst_group_gap": ("simulation", {"worst_group_gap": Value(None)}),
        "waste_share": ("forecast", {"waste_share": Value(None)}),
        "checkins_per_s": ("forecast", {"checkins_per_s_peak": Value(None)}),
    }[name]
    told = decide(Case("ads", ("B",)), evidence(tmp_path, **{kind: value}))
    assert told.verdict == "GO WITH CONDITIONS"
    gate = "G3" if kind == "simulation" else "G4"
    assert told.conditions == (f"{gate}: {name} is not known: measure it, or say why it need not be",)
    assert f"{gate}: {name}" in told.told["not_known"]
    if kind == "forecast":  # one that was computed has them all
        draft = Draft("forecast", params={"job": {"versions": 1}}, values=dict(value))
        found = of_kind(evidence(tmp_path / "job"), "forecast", draft, tmp_path)
        assert decide(Case("ads", ("B",)), found).verdict == "INCOMPLETE"


def test_what_nobody_measured_and_no_gate_needs_is_told_in_the_decision_and_on_the_page(tmp_path: Path) -> None:
    told = decide(Case("ads", ("B",)), evidence(tmp_path))
    assert told.verdict == "GO"
    assert told.told["not_known"] == ["G2: cpu_pct", "G2: battery_share_per_day"]
    page = report(told)
    assert "Not known, and not needed by a gate" in page
    assert "G2: Battery a day" in page
    known = {"B.cpu_pct": Value(3.9), "B.battery_share_per_day": Value(0.001)}
    whole = decide(Case("ads", ("B",)), evidence(tmp_path / "k", bench=known))
    assert whole.told["not_known"] == []
    assert "Not known, and" not in report(whole)


def test_conditions_missing_evidence_and_what_binds_are_on_the_page(tmp_path: Path) -> None:
    few = decide(Case("ads", ("B",)), evidence(tmp_path / "few", simulation={"trials": Value(3.0)}))
    assert few.conditions == ("G3: trials: 3 is below 5",)
    assert "<h3>Conditions</h3>" in report(few)
    assert "3 is below 5" in report(few)
    missing = decide(Case("ads", ("B",)), evidence(tmp_path / "m", privacy={"attack_success": Value(None)}))
    assert "<h3>Missing</h3><ul class=list><li>privacy: attack_success</li>" in report(missing)
    slow = decide(Case("ads", ("B",)), evidence(tmp_path / "s", forecast={"time_to_target_s": Value(9 * 86_400.0)}))
    assert "<b>What binds:</b> Time to target: 9 days" in report(slow)


def test_one_trial_has_no_band_and_fewer_than_wanted_are_a_condition_not_a_no(tmp_path: Path) -> None:
    one = decide(Case("ads", ("B",)), evidence(tmp_path / "one", simulation={"trials": Value(1.0)}))
    assert one.verdict == "GO WITH CONDITIONS"
    assert [word.split(":")[1].strip() for word in one.conditions] == ["band_over_median is not known", "trials"]
    eased = decide(Case("ads", ("B",), thresholds={"trials": 3}), evidence(tmp_path, simulation={"trials": Value(3.0)}))
    assert eased.verdict == "GO"


def test_quality_that_was_simulated_without_the_techniques_noise_is_a_condition(tmp_path: Path) -> None:
    def verdict(mechanism: str, pet: str, pets: tuple[str, ...] = ("none",)) -> tuple[str, tuple[str, ...]]:
        place = tmp_path / f"{mechanism}-{pet}"
        found = of_kind(evidence(place), "privacy", Draft("privacy", params={"mechanism": mechanism}), place)
        found = of_kind(found, "simulation", Draft("simulation", params={"pet": pet}), place)
        told = decide(Case("ads", ("B",), pets=pets), found)
        return told.verdict, told.conditions

    assert verdict("secure aggregation", "") == ("GO", ())
    assert verdict("dp-fedavg", "dp", ("dp",)) == ("GO", ())
    for pet in ("", "none"):
        told, why = verdict("dp-fedavg", pet)
        assert told == "GO WITH CONDITIONS"
        assert "quality was simulated without dp-fedavg" in why[0]


def test_evidence_that_was_made_of_another_than_is_given_is_refused(tmp_path: Path) -> None:
    found = evidence(tmp_path)
    simulation = next(one for one in found if one.kind == "simulation")
    mine = of_kind(found, "forecast", Draft("forecast", inputs=[simulation]), tmp_path / "a")
    assert decide(Case("ads", ("B",)), mine).verdict == "GO"
    newer = of_kind(mine, "simulation", Draft("simulation", values={"metric_final": Value(0.5)}), tmp_path / "b")
    with pytest.raises(UsageError, match=f"was made of simulation {simulation.sha256[:8]}, given here is") as told:
        decide(Case("ads", ("B",)), newer)
    assert "make the forecast again" in str(told.value)
    assert "\n" not in str(told.value)


def test_each_candidate_may_have_a_bench_of_its_own(tmp_path: Path) -> None:
    found = evidence(tmp_path)
    large = {"E.storage_bytes": Value(12e6), "E.p95_task_s": Value(3.0), "E.mem_bytes": Value(1e6)}
    other = Draft("bench", values=large).write(tmp_path / "bench-E")
    told = decide(Case("ads", ("E", "B")), [*found, other])
    assert told.verdict == "GO"
    assert told.told["model"] == "B"
    assert report(told).count(f'id="a{other.sha256[:12]}"') == 1
    with pytest.raises(UsageError, match="both bench evidence of model E"):
        decide(Case("ads", ("E", "B")), [*found, other, Draft("bench", 1, values=large).write(tmp_path / "again")])


def test_a_persons_no_is_the_reason_and_two_words_for_a_gate_are_refused(tmp_path: Path) -> None:
    word = Override("G4", "R. Okafor", "2026-03-01", "the enclave is being moved", "no")
    told = decide(Case("ads", ("B",), overrides=(word,)), evidence(tmp_path))
    assert told.verdict == "NO-GO"
    assert "No: R. Okafor: the enclave is being moved; no simpler model" in told.told["reason"]
    with pytest.raises(UsageError, match="G4 is overridden twice"):
        Case("ads", ("B",), overrides=(word, Override("G4", "B", "x", "y")))


LIMITS: Mapping[str, tuple[str, str, float]] = {
    "package_bytes": ("bench", "B.storage_bytes", 10e6), "task_p95_s": ("bench", "B.p95_task_s", 60.0),
    "task_over_session": ("trace", "median_usable_s", 3.0), "cpu_pct": ("bench", "B.cpu_pct", 10.0),
    "memory_bytes": ("bench", "B.mem_bytes", 50e6), "battery_share_per_day": ("bench", "B.battery_share_per_day", 0.01),
    "eligible_share_devices": ("trace", "eligible_share_devices", 0.05),
    "metric_loss_share": ("simulation", "metric_loss_share", 0.02),
    "band_over_median": ("simulation", "metric_loss_share", 0.04),
    "worst_group_gap": ("simulation", "worst_group_gap", 1.5), "trials": ("simulation", "trials", 5.0),
    "time_to_target_s": ("forecast", "time_to_target_s", 604_800.0),
    "ingress_bytes_per_s": ("forecast", "ingress_bytes_per_s_peak", 3e6),
    "waste_share": ("forecast", "waste_share", 0.2), "device_h": ("forecast", "device_h", 5000.0),
    "checkins_per_s": ("forecast", "checkins_per_s_peak", 1000.0), "epsilon": ("privacy", "epsilon", 8.0),
    "delta_times_population": ("privacy", "delta", 1 / 7e5), "attack_success": ("privacy", "attack_success", 0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_is_compared_just_inside_it_passes_and_just_outside_it_binds(tmp_path: Path, name: str) -> None:
    kind, value, limit = LIMITS[name]
    least = name in ("eligible_share_devices", "trials", "task_over_session")

    def told(number: float) -> Any:
        one = Value(number, "", number, number) if name != "band_over_median" else Value(0.01, "", 0.0, number)
        return decide(Case("ads", ("B",)), evidence(tmp_path / f"{number}", **{kind: {value: one}}))

    inside, outside = (limit * (1 + sign * 1e-3 * (-1 if least else 1)) for sign in (-1, 1))
    assert told(inside).verdict == "GO", told(inside).conditions
    found = told(outside)
    if name == "trials":
        assert found.verdict == "GO WITH CONDITIONS"
        return
    assert found.verdict == "NO-GO"
    assert found.walk.binding.name == name


def test_no_limit_stays_unread(tmp_path: Path) -> None:
    of = flow.evidence(tmp_path, flow.ADS)
    limits = thresholds(dict.fromkeys(ASKED, 1.0))
    asked = {one.name for gate in GATES for one in asker(of, limits)(gate, Try()).checks}
    assert asked == set(limits) == set(DEFAULTS) | set(ASKED)
    assert set(LIMITS) == set(DEFAULTS)


def test_cost_and_carbon_are_compared_where_somebody_limits_them(tmp_path: Path) -> None:
    priced = {"cost": Value(500.0, "money"), "carbon_g": Value(2e6, "g")}
    for limits, verdict in (({}, "GO"), ({"cost": 501}, "GO"), ({"cost": 499}, "NO-GO"), ({"carbon_g": 1e6}, "NO-GO")):
        told = decide(Case("ads", ("B",), thresholds=limits), evidence(tmp_path / str(limits), forecast=priced))
        assert told.verdict == verdict
    assert decide(Case("ads", ("B",), thresholds={"cost": 1}), evidence(tmp_path)).verdict == "INCOMPLETE"


def test_of_two_limits_that_are_passed_over_the_one_farther_out_binds(tmp_path: Path) -> None:
    far = {"time_to_target_s": Value(9 * 86_400.0), "ingress_bytes_per_s_peak": Value(9e6)}
    told = decide(Case("ads", ("B",)), evidence(tmp_path, forecast=far))
    assert told.walk.binding is not None
    assert told.walk.binding.name == "ingress_bytes_per_s"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["-s", "thresholds=3", "-t", "epsilon=1"], "thresholds=3"),
        (["-s", "thresholds=3"], "thresholds=3"),
        (["-s", "override=1"], r"use tables \[\[override\]\]"),
        (["-s", "override=[1]"], r"use tables \[\[override\]\]"),
        (["-s", "loops=2"], "loops=2"),
        (["-s", "loops.G2=a"], "G2"),
        (["-s", "loops.G2=-1"], "loops.G2=-1: use a whole number"),
        (["-t", "epsilon=true"], "epsilon"),
    ],
)
def test_a_bad_setting_of_a_decision_is_one_line(tmp_path: Path, line: list[str], says: str) -> None:
    told = cases.run("decide", *cases.write(tmp_path / "e"), "--models", "B", "-o", str(tmp_path / "d"), *line)
    assert isinstance(told.exception, UsageError), told.exception
    assert re.search(says, str(told.exception))


def test_markup_in_a_title_is_printed_as_it_is(tmp_path: Path) -> None:
    line = ["assess", "decide", *cases.write(tmp_path / "e"), "--models", "B", "-o", str(tmp_path / "d")]
    told = CliRunner().invoke(app, [*line, "-s", "title=[/bold] [red]ads"], standalone_mode=False)
    assert told.exception is None, told.exception
    assert "[/bold] [red]ads" in told.output
    assert json.loads((tmp_path / "d" / "decision.json").read_text())["title"] == "[/bold] [red]ads"


def decision_in(place: Path) -> Path:
    line = [*cases.write(place), "--models", "B", "-o", str(place / "d")]
    told = cases.run("decide", *line)
    assert told.exception is None, told.exception
    return place / "d"


def test_a_page_is_written_again_only_where_it_would_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = decision_in(tmp_path)
    before = (made / "report.html").read_bytes()
    (made / "report.html").unlink()
    assert cases.run("report", str(made)).exception is None
    assert (made / "report.html").read_bytes() == before
    limits = {**DEFAULTS, "device_h": Threshold(6.0, "h", "ours, since")}
    monkeypatch.setattr("fieldfare.assess.decide.thresholds.DEFAULTS", limits)
    refused = cases.run("report", str(made)).exception
    assert isinstance(refused, UsageError)
    assert "would not be decided so today" in str(refused)
    assert "verdict" in str(refused)
    assert (made / "report.html").read_bytes() == before
    assert read_artefact(made).file("report.html").is_file()
    assert cases.run("report", str(made), "-o", str(tmp_path / "now.html")).exception is None
    assert "NO-GO" in (tmp_path / "now.html").read_text()


def test_a_damaged_folder_beside_a_decision_does_not_stop_its_page(tmp_path: Path) -> None:
    made = decision_in(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text('{"values": []}')
    assert cases.run("report", str(made), "-o", str(tmp_path / "r.html")).exception is None
    named = [str(tmp_path / kind) for kind in cases.KINDS]
    assert cases.run("report", str(made), *named, "-o", str(tmp_path / "r.html")).exception is None
    told = cases.run("report", str(made), *named, str(tmp_path / "broken"), "-o", str(tmp_path / "r.html"))
    assert isinstance(told.exception, UsageError)


def test_tiles_and_rows_of_numbers_link_to_what_they_are_from_and_say_where_closed_form_and_simulation_part(
    tmp_path: Path,
) -> None:
    more = {"cost": Value(12.5, "money"), "carbon_g": Value(300.0, "g"), "energy_j": Value(9e6, "J")}
    found = evidence(tmp_path, forecast=more)
    cast_ = next(one for one in found if one.kind == "forecast")
    draft = Draft("forecast", values=dict(cast_.values))
    names = ("time_to_target_s", "waste_share", "bytes_down", "staleness")
    draft.table("quantities", {
        "name": names, "unit": ["s", "share", "B", "versions"], "value": [362_880.0, 0.1, 8e9, None], "low": [1.0] * 4,
        "high": [2.0] * 4, "closed": [300_000.0, 0.001, 7e9, 1.0], "how": ["simulated"] * 4, "formula": ["f"] * 4,
    })  # fmt: skip
    made = draft.write(tmp_path / "f")
    page = report(decide(Case("ads", ("B",)), [*(one for one in found if one.kind != "forecast"), made]))
    link = f'href="#a{made.sha256[:12]}"'
    tiles = page.split('<dl class="tiles">')[1].split("</dl>")[0]
    for name in ("Time to target", "Cost", "Carbon", "Energy"):
        tile = next(one for one in tiles.split('<div class="tile">') if f"<dt>{name}" in one)
        assert link in tile, name
    rows = page.split('aria-label="forecast"')[1].split("</table>")[0].split("<tr>")[2:]
    assert len(rows) == 4
    assert all(link in row for row in rows)
    assert [("look why" in row) for row in rows] == [False, True, False, False]
    assert "1e+02 times its closed form" in rows[1]
    assert "missing" in rows[3]
    values = page.split("All numbers of the trace")[1].split("</table>")[0]
    assert values.count('class="src"') == values.count("<tr>") - 1 > 0


def test_the_page_says_how_a_benchs_numbers_were_come_by(tmp_path: Path) -> None:
    told = {"B.storage_bytes": Value(0.76e6, "B", how="declared"), "B.p95_task_s": Value(3.0, "s", how="declared"),
            "B.mem_bytes": Value(1e6, "B", how="declared"), "B.extrapolation_error": Value(0.31, "share")}  # fmt: skip
    page = report(decide(Case("ads", ("B",)), evidence(tmp_path, bench=told)))
    assert "Declared, measured. As in the paper" in page
    assert "Measured on devices" not in page
    assert "Devices that were not measured" in page


def test_a_limit_of_nothing_is_shown_as_passed_over(tmp_path: Path) -> None:
    case = Case("ads", ("B",), thresholds={"waste_share": 0})
    page = report(decide(case, evidence(tmp_path)))
    row = page.split("waste_share</small>")[1].split("</tr>")[0]
    assert "over</td>" in row
    assert "100%" in row
