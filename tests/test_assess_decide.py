"""Decisions as a user gets them: exit codes, one changed input that flips a verdict, a page of stable bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fieldfare.assess.artefact import Draft, Value, read_artefact
from fieldfare.assess.decide.decision import Case, case_of, decide
from fieldfare.assess.decide.page import report
from fieldfare.assess.decide.privacy import accounted, declare
from fieldfare.cli import EXIT, app
from fieldfare.core.errors import UsageError

KINDS = ("trace", "proxy", "features", "bench", "simulation", "forecast", "privacy")
VALUES: Mapping[str, Mapping[str, Value]] = {
    "trace": {"median_usable_s": Value(300.0, "s"), "eligible_share_devices": Value(0.22, "share")},
    "proxy": {"natural": Value(1.0)},
    "features": {"assets_bytes": Value(0.0, "B")},
    "bench": {"B.storage_bytes": Value(0.76e6), "B.p95_task_s": Value(3.0), "B.mem_bytes": Value(10.64e6)},
    "simulation": {"metric_loss_share": Value(0.0185, "share", 0.012, 0.022, "simulated"), "trials": Value(5.0),
                   "worst_group_gap": Value(1.1)},
    "forecast": {"time_to_target_s": Value(4.2 * 86_400, "s"), "ingress_bytes_per_s_peak": Value(2.68e6, "B/s"),
                 "device_h": Value(7.5, "h"), "waste_share": Value(0.1, "share"), "checkins_per_s_peak": Value(9.0)},
    "privacy": {"epsilon": Value(4.0), "delta": Value(1e-7), "population": Value(7e5), "attack_success": Value(0.05)},
}  # fmt: skip


def write(place: Path, **changes: Mapping[str, Value]) -> list[str]:
    """The folders of a case's evidence, with some artefacts' values changed."""
    for kind in KINDS:
        draft = Draft(kind, params={"mechanism": "tee", "source": "<b>dp</b> team"} if kind == "privacy" else {})
        draft.values |= {**VALUES[kind], **changes.get(kind, {})}
        if kind == "trace":
            t = np.arange(0, 604_800, 300.0)
            draft.table("weekly", {"t_s": t, "available": 50 + 40 * np.sin(t / 86_400 * 2 * np.pi)})
            draft.table("fairness", {"group": ["phone", "tablet"], "ratio": [1.0, 0.7]})
        draft.write(place / kind)
    return [str(place / kind) for kind in KINDS]


def run(*line: str) -> Any:
    return CliRunner().invoke(app, ["assess", *line], standalone_mode=False)


def decided(place: Path, *more: str, **changes: Mapping[str, Value]) -> tuple[int, dict[str, Any]]:
    line = ("--name", "ads", "--models", "B", "-o", str(place / "d"), "--json", *more)
    told = run("decide", *write(place / "e", **changes), *line)
    assert told.exception is None, told.exception
    return told.return_value, json.loads(told.output.splitlines()[-1])


def test_the_papers_ads_case_is_a_go_with_exit_code_0(tmp_path: Path) -> None:
    code, told = decided(tmp_path)
    assert (code, told["verdict"]) == (0, "GO")
    assert json.loads((tmp_path / "d" / "decision.json").read_text())["verdict"] == "GO"
    assert {8, 9} <= set(EXIT)


@pytest.mark.parametrize(
    ("threshold", "kind", "name", "worse"),
    [
        ("metric_loss_share=0.01", "simulation", "metric_loss_share", 0.03),
        ("time_to_target_s=300000", "forecast", "time_to_target_s", 9 * 86_400.0),
        ("epsilon=2", "privacy", "epsilon", 9.0),
        ("package_bytes=500000", "bench", "B.storage_bytes", 11e6),
        ("eligible_share_devices=0.3", "trace", "eligible_share_devices", 0.01),
    ],
)
def test_one_threshold_or_one_input_flips_the_verdict_in_both_directions(
    tmp_path: Path, threshold: str, kind: str, name: str, worse: float
) -> None:
    assert decided(tmp_path, "-t", threshold)[0] == 8
    code, told = decided(tmp_path, **{kind: {name: Value(worse, "", worse, worse)}})
    assert (code, told["verdict"]) == (8, "NO-GO")
    assert told["binding"]["value"] == worse
    limit = threshold.split("=")[0]
    eased = worse * (0.9 if limit == "eligible_share_devices" else 1.1)
    code, told = decided(tmp_path, "-t", f"{limit}={eased}", **{kind: {name: Value(worse, "", worse, worse)}})
    assert (code, told["verdict"]) == (0, "GO")


def test_missing_evidence_is_exit_code_9_and_named(tmp_path: Path) -> None:
    folders = write(tmp_path / "e")
    told = run("decide", *folders[:-1], "--models", "B", "-o", str(tmp_path / "d"), "--json")
    assert told.return_value == 9
    assert json.loads(told.output.splitlines()[-1])["missing"] == ["privacy"]
    code, found = decided(tmp_path, privacy={"attack_success": Value(None)})
    assert (code, found["missing"]) == (9, ["privacy: attack_success"])


def test_a_persons_word_is_a_condition_printed_in_red(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'models = ["B"]\n[[override]]\ngate = "G4"\nby = "R. Okafor"\ndate = "2026-03-01"\nreason = "<in> May"\n'
    )
    change = {"forecast": {"ingress_bytes_per_s_peak": Value(3.5e6)}}
    told = run("decide", *write(tmp_path / "e", **change), "-c", str(tmp_path / "c.toml"), "-o", str(tmp_path / "d"))
    assert told.return_value == 0
    page = (tmp_path / "d" / "report.html").read_text()
    assert '<p class="human">G4 was set to yes by R. Okafor on 2026-03-01: &lt;in&gt; May</p>' in page
    assert json.loads((tmp_path / "d" / "decision.json").read_text())["verdict"] == "GO WITH CONDITIONS"


def test_groups_left_behind_are_a_condition(tmp_path: Path) -> None:
    code, told = decided(tmp_path, trace={"flagged_groups": Value(2.0)})
    assert (code, told["verdict"]) == (0, "GO WITH CONDITIONS")
    assert "2 groups of devices" in told["conditions"][0]
    code, told = decided(tmp_path / "time", trace={"flagged_groups_device_s": Value(1.0)})
    assert (code, told["verdict"]) == (0, "GO WITH CONDITIONS")
    assert told["conditions"] == ["1 group of devices, by filter, keeps under 0.8 of their share of devices' time: see "
                                  "who is left out"]  # fmt: skip


def test_equal_inputs_give_equal_bytes_whenever_and_wherever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    first = decided(tmp_path / "a")[1]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000000000")
    second = decided(tmp_path / "somewhere" / "else")[1]
    assert first["sha256"] == second["sha256"]
    for name in ("decision.json", "report.html"):
        one, other = ((tmp_path / at / "d" / name).read_bytes() for at in ("a", "somewhere/else"))
        assert one == other


def test_every_number_of_the_page_links_to_an_artefact_on_it_and_texts_are_escaped(tmp_path: Path) -> None:
    decided(tmp_path)
    page = (tmp_path / "d" / "report.html").read_text()
    wanted = set(re.findall(r'class="src" href="#(a[0-9a-f]+)"', page))
    assert len(wanted) == 7
    assert wanted <= set(re.findall(r'id="(a[0-9a-f]+)"', page))
    assert "&lt;b&gt;dp" in page
    assert "<b>dp" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_the_page_is_written_again_from_the_evidence_beside_it(tmp_path: Path) -> None:
    decided(tmp_path / "e")
    place = tmp_path / "e" / "d"
    before = (place / "report.html").read_bytes()
    told = run(
        "report", str(place), *(str(tmp_path / "e" / "e" / kind) for kind in KINDS), "-o", str(tmp_path / "r.html")
    )
    assert told.exception is None, told.exception
    assert (tmp_path / "r.html").read_bytes() == before
    with pytest.raises(UsageError, match="made of what is not here: bench bench"):
        raise run("report", str(place)).exception


def test_a_model_that_is_too_much_gives_way_to_the_simpler_one(tmp_path: Path) -> None:
    folders = write(tmp_path / "e")
    (tmp_path / "e" / "bench").rename(tmp_path / "e" / "old")
    draft = Draft("bench", values={
        f"{m}.{name}": Value(value) for m, size in (("E", 12e6), ("B", 0.76e6))
        for name, value in (("storage_bytes", size), ("p95_task_s", 3.0), ("mem_bytes", 1e6))
    })  # fmt: skip
    draft.write(tmp_path / "e" / "bench")
    told = decide(Case("ads", ("E", "B")), [read_artefact(one) for one in folders])
    assert told.verdict == "GO"
    assert told.told["model"] == "B"
    assert "no, 1 time<" in report(told)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"name": "a", "models": ["B"], "override": [{"gate": "G4"}]}, "lacks by"),
        (
            {"name": "a", "models": ["B"], "override": [{"gate": "G9", "by": "x", "date": "d", "reason": "r"}]},
            "no gate 'G9'",
        ),
        ({"name": "a", "models": ["B"], "thresholds": {"epsilom": 1}}, "did you mean 'epsilon'"),
        ({"name": "a", "models": []}, "at least one model"),
        ({"name": "a", "models": ["B"], "modles": 1}, "modles"),
    ],
)
def test_a_case_that_cannot_be_is_one_line(told: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        decide(case_of(told), [])


def test_two_artefacts_for_one_place_are_refused(tmp_path: Path) -> None:
    folders = write(tmp_path / "a")
    other = write(tmp_path / "b", bench={"B.cpu_pct": Value(3.0)})
    with pytest.raises(UsageError, match="both bench evidence"):
        decide(Case("ads", ("B",)), [read_artefact(one) for one in (*folders, other[3])])


def test_privacy_that_nobody_measured_stays_missing_and_numbers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    made = declare(tmp_path / "p", mechanism="none", source="nobody")
    assert made.values["epsilon"].value is None
    with pytest.raises(UsageError, match="from 0 to 1"):
        declare(tmp_path / "p", mechanism="none", source="x", attack_success=2.0)
    with pytest.raises(UsageError, match="who says so"):
        declare(tmp_path / "p", mechanism="dp", source="")
    with pytest.raises(UsageError, match="noise above 0"):
        accounted(0.0, 1.0, 10, 1e-5)
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    assert accounted(5.0, 1.0, 10, 1e-5) == pytest.approx(2.594, abs=2e-3)
    assert accounted(1.0, 0.01, 1000, 1e-5) == pytest.approx(1.828, abs=2e-3)
