"""Fairness of a trace's filters in devices and in device-seconds: by hand on small logs, and as the page tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fieldfare.assess.artefact import Artefact, Draft, words
from fieldfare.assess.decide import fairness
from fieldfare.assess.trace import stats

pytest.importorskip("duckdb")
DAY = 86_400


@pytest.fixture(autouse=True)
def _small_logs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs by hand have few devices: here groups of any size are flagged, but where a test is about that."""
    if "limit" not in request.node.name:
        monkeypatch.setattr(stats, "LEAST_DEVICES", 1)


def trace(place: Path, rows: list[dict[str, Any]], **criteria: Any) -> Artefact:
    from fieldfare.assess.trace import Criteria, TraceConfig, build_trace

    names = sorted({name for row in rows for name in row})
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    place.mkdir(parents=True, exist_ok=True)
    (place / "log.csv").write_text("\n".join(lines) + "\n")
    return build_trace(place / "log.csv", place / "trace", TraceConfig(criteria=Criteria(**criteria)))


def table(made: Artefact) -> dict[tuple[str, str, str], dict[str, float]]:
    """Rows by (filter, by, group)."""
    found = made.table("fairness")
    keys = zip(words(found["filter"]), words(found["by"]), words(found["group"]), strict=True)
    numbers = [name for name in found if name not in ("filter", "by", "group")]
    return {key: {name: float(found[name][i]) for name in numbers} for i, key in enumerate(keys)}


def log() -> list[dict[str, Any]]:
    """Ten new phones with two hours on Wi-Fi each, ten old ones with ten minutes of their two; a week's end."""
    rows: list[dict[str, Any]] = []
    for client in range(20):
        tier, start = ("new", "old")[client % 2], 10_000 * client
        on = 7200 if tier == "new" else 600
        one = {"client": client, "device_class": tier, "os": "android", "battery": 0.9}
        rows.append(one | {"start_s": start, "end_s": start + on, "wifi": "true"})
        if tier == "old":
            rows.append(one | {"start_s": start + 1200, "end_s": start + 1200 + 6600, "wifi": "false"})
    return [*rows, rows[0] | {"start_s": 7 * DAY - 7200, "end_s": 7 * DAY}]


def test_a_group_that_keeps_its_devices_may_lose_its_time_and_is_flagged_for_that(tmp_path: Path) -> None:
    found = table(trace(tmp_path, log(), wifi=True))
    old, new = found["wifi", "tier", "old"], found["wifi", "tier", "new"]
    assert (old["share_before"], old["share_after"], old["flagged"]) == (0.5, 0.5, 0)
    assert old["share_before_device_s"] == pytest.approx(10 * 7200 / (21 * 7200))
    assert old["share_after_device_s"] == pytest.approx(10 * 600 / (11 * 7200 + 10 * 600))
    assert old["flagged_device_s"] == 1
    assert new["flagged_device_s"] == 0
    assert new["share_before_device_s"] + old["share_before_device_s"] == pytest.approx(1.0)
    assert found["all", "tier", "old"] == old
    assert old["ratio_device_s"] == pytest.approx(old["share_after_device_s"] / old["share_before_device_s"])


@pytest.mark.parametrize(("devices", "left", "flagged"), [(30, 20, 1), (30, 26, 0), (29, 5, 0), (1, 0, 0), (60, 47, 1)])
def test_the_limit_is_eight_tenths_of_a_groups_share_and_thirty_devices(
    tmp_path: Path, devices: int, left: int, flagged: int
) -> None:
    """Of a thousand others nobody is left out, so that the ratio is a little over left / devices."""
    rows = [{"client": i, "start_s": 10 * i, "end_s": 10 * i + 600, "device_class": "few" if i < devices else "many",
             "wifi": str(i >= devices or i < left).lower()}
            for i in range(1000 + devices)]  # fmt: skip
    rows.append(rows[-1] | {"start_s": 7 * DAY - 600, "end_s": 7 * DAY})
    made = trace(tmp_path, rows, wifi=True)
    assert table(made)["all", "tier", "few"]["flagged"] == flagged
    assert made.number("flagged_groups") == 2 * flagged


def test_both_counts_of_flagged_groups_are_values(tmp_path: Path) -> None:
    made = trace(tmp_path, log(), wifi=True)
    assert made.number("flagged_groups") == 0
    assert made.number("flagged_groups_device_s") == 2  # of Wi-Fi, and of all


def test_resting_between_sessions_is_the_last_filter_and_takes_time_from_those_who_come_often(tmp_path: Path) -> None:
    rows = [{"client": i, "device_class": "often" if i < 5 else "seldom", "start_s": t + 700 * i,
             "end_s": t + 700 * i + 600, "wifi": "true"}
            for i in range(10) for t in range(0, 6 * DAY, DAY if i >= 5 else 20_000)]  # fmt: skip
    rows.append(rows[0] | {"start_s": 7 * DAY - 600, "end_s": 7 * DAY})
    found = table(trace(tmp_path, rows, wifi=True, min_gap_between_participation_s=float(2 * DAY)))
    names = [name for name, by, group in found if by == "tier" and group == "often"]
    assert names == ["wifi", "min_gap", "all"]
    rested = found["min_gap", "tier", "often"]
    before = found["wifi", "tier", "often"]["share_after_device_s"]
    assert rested["share_before_device_s"] == before > 0.7
    assert rested["share_after_device_s"] == pytest.approx(16 / 26)  # three times each and once more, against twice
    assert rested["flagged_device_s"] == 1
    assert (rested["share_after"], rested["flagged"]) == (0.5, 0)
    assert found["all", "tier", "often"]["share_after_device_s"] == rested["share_after_device_s"]


def test_the_table_is_the_same_in_any_number_of_parts(tmp_path: Path) -> None:
    from fieldfare.assess.trace import Criteria, Recipe, TraceConfig, build_trace

    criteria = Criteria(wifi=True, battery_min=0.5, min_gap_between_participation_s=3600.0)
    made = [
        build_trace(Recipe(clients=200, weeks=1), tmp_path / f"{n}", TraceConfig(criteria=criteria, partitions=n), 3)
        for n in (1, 3)
    ]
    assert ("min_gap", "os", "android") in table(made[0])
    assert made[0].sha256 == made[1].sha256


def test_the_page_names_who_is_left_out_of_what_and_shows_every_filter(tmp_path: Path) -> None:
    body = fairness.body(trace(tmp_path, log(), wifi=True))
    assert "of devices: none; of devices&#x27; time: old" in body
    assert body.count("<svg") == 1  # classes of devices; there is one system, and nobody told a region
    assert "Before and after every filter" in body
    assert ">0.15<" in body  # 0.070 of the time after 0.476 before
    with_no_groups = Draft("trace").write(tmp_path / "bare")
    assert fairness.body(with_no_groups) == ""
