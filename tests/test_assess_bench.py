"""The device benchmark: records to an artefact, fits, who may take part, devices nobody measured, the command."""

from __future__ import annotations

import itertools
import json
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.assess.artefact import Artefact, read_artefact, words
from fieldfare.assess.bench.extrapolate import drawn, line, noise
from fieldfare.assess.bench.paper import TABLE_5, declared
from fieldfare.assess.bench.population import Kind, population, read_population
from fieldfare.assess.bench.records import Record, flat, lines, parse, read_records
from fieldfare.assess.bench.summary import SIGMA, Config, Limits, build, spread
from fieldfare.cli import app
from fieldfare.core.errors import UsageError

MODEL = {
    "name": "B", "version": "1", "params": 189_000, "params_trainable": 189_000, "storage_bytes": 756_500,
    "assets_bytes": None, "wire_down_bytes": 756_400, "wire_up_bytes": 756_300, "flops_per_record": 1.1e6,
}  # fmt: skip


def record(
    phone: str = "Pixel 6", wall_s: float | None = 50.0, repeat: int = 0, score: float | None = None, **more: Any
) -> Record:
    told = {"vendor": "V", "model": phone, "os": "android", "os_version": "14", "ai_score": score}
    one = {
        "package": "p", "repeat": repeat, "status": "ok", "wall_s": wall_s, "steps": 250, "records": 5000,
        "cpu_pct_mean": 4.0, "mem_delta_bytes": 10e6, "device": told,
        "model": {**MODEL, **more.pop("model", {})}, **more,
    }  # fmt: skip
    return parse(json.dumps(one), "made up")[0]


def spread_out(n: int, sigma: float = 0.642, middle: float = 50.3) -> list[Record]:
    """Phones whose times are the quantiles of a log-normal."""
    from statistics import NormalDist

    at = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    return [record(f"phone {i}", middle * exp(sigma * z)) for i, z in enumerate(at)]


def made(folder: Path, records: list[Record], *words: Any, **more: Any) -> Artefact:
    return build(records, folder / "bench", *words, **more)


# ---- table 5 ---------------------------------------------------------------------------------------------------------


def test_table_5_has_the_papers_arithmetic(tmp_path: Path):
    assert TABLE_5["A"].mean_s / 5_000 == pytest.approx(0.996e-3)
    made_ = declared(tmp_path / "paper")
    sigmas = [made_.number(f"{name}.lognormal_sigma") for name in TABLE_5]
    assert sigmas == pytest.approx([0.614, 0.642, 0.620, 0.650, 0.666], abs=1e-3)
    middles = [exp(made_.number(f"{name}.lognormal_mu") or 0) for name in TABLE_5]
    assert middles == pytest.approx([0.825e-3, 10.06e-3, 0.538e-3, 11.36e-3, 38.19e-3], rel=1e-3)
    for name, row in TABLE_5.items():
        assert made_.number(f"{name}.per_record_s") == pytest.approx(row.mean_s / 5_000)
    assert (made_.number("D.wire_up_bytes") or 0) * 2 == pytest.approx(2 * 4 * 390_000)


def test_records_with_the_tables_mean_and_deviation_give_its_fit(tmp_path: Path):
    # 27 devices of which 26 spread evenly about the mean so that mean and deviation are those of model A
    half = 3.37 * np.sqrt(26 / 27) * np.array([-1, 1] * 13 + [0]) * np.sqrt(27 / 26)
    found = made(tmp_path, [record(f"d{i}", 4.98 + x, model={"name": "A"}) for i, x in enumerate(half)])
    table = found.table("models")
    assert float(table["mean_s"][0]) == pytest.approx(4.98)
    assert float(table["std_s"][0]) == pytest.approx(3.37, rel=1e-3)
    assert found.number("A.per_record_s") == pytest.approx(0.996e-3)
    assert found.number("A.lognormal_sigma") == pytest.approx(TABLE_5["A"].sigma, rel=1e-3)
    assert found.number("A.lognormal_mu") == pytest.approx(TABLE_5["A"].mu, rel=1e-3)
    assert found.number("A.p95_task_s") == pytest.approx(TABLE_5["A"].p95_s(5000), rel=2e-3)


def test_devices_as_unlike_as_the_papers_give_a_sigma_like_the_papers(tmp_path: Path):
    found = made(tmp_path, spread_out(400))
    assert found.number("B.lognormal_sigma") == pytest.approx(0.642, abs=0.01)
    assert 0.61 <= (found.number("B.lognormal_sigma") or 0) <= 0.67
    assert exp(found.number("B.lognormal_mu") or 0) == pytest.approx(50.3 / 5000, rel=0.02)


# ---- the artefact ----------------------------------------------------------------------------------------------------


def test_an_artefact_has_the_values_and_tables_others_rely_on(tmp_path: Path):
    more = {"charge_mah": 4.0, "battery_full_mah": 4000.0, "energy_j": 20.0, "energy_source": "battery current"}
    found = made(tmp_path, [record(f"d{i}", 40.0 + i, repeat, **more) for i in range(4) for repeat in range(2)])
    assert set(found.values) == {f"B.{name}" for name in (
        "mean_s", "p95_task_s", "per_record_s", "lognormal_mu", "lognormal_sigma", "storage_bytes", "wire_down_bytes",
        "wire_up_bytes", "mem_bytes", "cpu_pct", "battery_share_per_day", "flops_per_record", "energy_j", "records",
    )}  # fmt: skip
    assert found.number("B.mean_s") == pytest.approx(41.5)
    assert found.number("B.battery_share_per_day") == pytest.approx(0.001)
    assert found.number("B.energy_j") == pytest.approx(20.0)
    assert (found.number("B.wire_down_bytes"), found.number("B.wire_up_bytes")) == (756_400, 756_300)
    assert set(found.manifest["tables"]) == {"records", "models", "times", "eligible"}
    columns = set(found.table("records"))
    assert columns >= {"device_vendor", "device_model", "device_os", "device_os_version", "device_ram_bytes",
                       "device_cores", "device_ai_score", "model", "status", "wall_s", "per_record_s", "cpu_pct_mean",
                       "cpu_pct_max", "mem_delta_bytes", "net_down_bytes", "net_up_bytes", "battery_before",
                       "battery_after", "energy_j", "energy_source"}  # fmt: skip
    assert set(found.table("models")) >= {"params", "params_trainable", "assets_bytes", "std_s", "n_devices"}
    assert found.table("times")["share"].sum() == pytest.approx(1.0)
    assert read_artefact(found.path, "bench").sha256 == found.sha256


def test_what_no_sensor_told_is_null_and_never_0(tmp_path: Path):
    found = made(tmp_path, [record(cpu_pct_mean=None, mem_delta_bytes=None)])
    for name in ("battery_share_per_day", "energy_j", "cpu_pct", "mem_bytes"):
        assert found.number(f"B.{name}") is None
    table = found.table("records")
    for name in ("battery_before", "energy_j", "temp_c_max", "freq_max_hz", "cpu_pct_mean", "device_ai_score"):
        assert np.isnan(table[name]).all()
    assert words(table["energy_source"]) == [""]


def test_equal_records_in_any_order_make_an_equal_artefact_and_others_do_not(tmp_path: Path):
    records = spread_out(6)
    people = population([Kind("phone 1", share=3), Kind("new", score=100.0), Kind("phone 5")])
    first = build(records, tmp_path / "a", people=people)
    assert build(records[::-1], tmp_path / "b", people=people).sha256 == first.sha256
    assert read_records(tmp_path / "a") == read_records(tmp_path / "b")
    assert build(read_records(tmp_path / "a"), tmp_path / "c", people=people).sha256 == first.sha256
    assert build(records[1:], tmp_path / "d", people=people).sha256 != first.sha256
    assert build(records, tmp_path / "e", Config(seed=1), people).sha256 != first.sha256


def test_records_that_were_changed_since_are_refused(tmp_path: Path):
    found = made(tmp_path, spread_out(3))
    place = found.file("records.jsonl")
    place.write_bytes(place.read_bytes().replace(b"phone 1", b"phone 9"))
    with pytest.raises(UsageError, match="was changed since"):
        read_records(found.path)
    with pytest.raises(UsageError, match="neither table nor file"):
        read_records(declared(tmp_path / "paper").path)


def test_of_fewer_than_three_devices_the_spread_is_the_papers_and_says_so(tmp_path: Path):
    found = made(tmp_path, spread_out(2))
    assert found.number("B.lognormal_sigma") == SIGMA
    assert found.values["B.lognormal_sigma"].how == "assumed"
    assert "of 2 devices" in found.values["B.p95_task_s"].note
    assert found.values["B.mean_s"].how == "measured"
    assert found.number("B.p95_task_s") == pytest.approx(
        exp((found.number("B.lognormal_mu") or 0) + 1.6448536 * SIGMA) * 5000
    )


def test_a_task_of_other_records_takes_its_part_of_the_time(tmp_path: Path):
    whole = build(spread_out(5), tmp_path / "a")
    part = build(spread_out(5), tmp_path / "b", Config(records=100, epochs=2.0, tasks_per_day=3.0))
    assert part.number("B.mean_s") == pytest.approx((whole.number("B.mean_s") or 0) * 200 / 5000)
    assert part.number("B.per_record_s") == whole.number("B.per_record_s")


def test_devices_that_were_played_are_simulated_not_measured(tmp_path: Path):
    found = made(tmp_path, [record(f"d{i}", 10.0 + i, how="emulated") for i in range(3)])
    assert found.values["B.mean_s"].how == "simulated"
    assert found.values["B.storage_bytes"].how == "measured"
    assert found.values["B.flops_per_record"].how == "closed form"


def test_two_models_under_one_name_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="two models 'B'"):
        made(tmp_path, [record(), record("other", model={"params": 3})])
    with pytest.raises(UsageError, match="there are none"):
        made(tmp_path, [])


@given(st.lists(st.floats(0.1, 1e4), min_size=2, max_size=30), st.floats(0.1, 100))
def test_mean_and_deviation_with_equal_weights_are_a_samples_and_scale(values: list[float], factor: float):
    x = np.array(values)
    share = np.full(len(x), 1 / len(x))
    mean, std = spread(x, share)
    assert mean == pytest.approx(x.mean())
    assert std == pytest.approx(x.std(ddof=1), abs=1e-6)
    assert spread(x * factor, share) == pytest.approx((mean * factor, std * factor), abs=1e-5)


# ---- who may take part -----------------------------------------------------------------------------------------------


def eligible(artefact: Artefact) -> dict[str, tuple[int, str]]:
    table = artefact.table("eligible")
    rows = zip(words(table["device_model"]), table["eligible"].tolist(), words(table["reason"]), strict=True)
    return {name: (int(able), why) for name, able, why in rows}


def test_devices_are_left_out_for_reasons_that_are_told(tmp_path: Path):
    records = [
        record("good", 50.0), record("slow", 80.0), record("busy", 50.0, cpu_pct_mean=20.0),
        record("small", 50.0, mem_delta_bytes=60e6), record("old", None, status="op_missing", note="no conv2d"),
        record("dying", 50.0), record("dying", None, 1, status="oom", note="Killed"),
        record("hungry", 50.0, battery_before=0.9, battery_after=0.85),
        record("blind", 50.0, cpu_pct_mean=None, mem_delta_bytes=None),
    ]  # fmt: skip
    found = eligible(made(tmp_path, records))
    assert found == {
        "good": (1, "ok; not measured: battery_share_per_day"),
        "slow": (0, "p95_task_s 80 is above 60"), "busy": (0, "cpu_pct 20 is above 10"),
        "small": (0, "mem_bytes 6e+07 is above 5e+07"), "old": (0, "op_missing: no conv2d"),
        "dying": (0, "oom: Killed in 1 of 2 repeats"),
        "hungry": (0, "battery_share_per_day 0.05 is above 0.01"),
        "blind": (1, "ok; not measured: cpu_pct, mem_bytes, battery_share_per_day"),
    }  # fmt: skip


def test_a_devices_95_per_cent_is_over_its_repeats(tmp_path: Path):
    found = made(tmp_path, [record("one", wall, place) for place, wall in enumerate((50.0, 58.0, 64.0))])
    assert float(found.table("eligible")["p95_task_s"][0]) == pytest.approx(np.quantile([50, 58, 64], 0.95))
    assert eligible(found)["one"][0] == 0


def test_a_limit_changes_who_is_eligible_in_both_directions(tmp_path: Path):
    records = [record("a", 50.0), record("b", 80.0)]
    able = []
    for limit in (40.0, 60.0, 100.0):
        one = build(records, tmp_path / str(limit), Config(limits=Limits(p95_task_s=limit)))
        able.append(sum(good for good, _ in eligible(one).values()))
    assert able == [0, 1, 2]
    kit = build(records, tmp_path / "kit", Config(limits=Limits(storage_bytes=0.5e6, p95_task_s=100)))
    assert {why for _, why in eligible(kit).values()} == {"storage_bytes 7.565e+05 is above 500000"}


def test_the_trace_takes_the_list_and_the_times_of_a_bench(tmp_path: Path):
    from fieldfare.assess.trace.build import allowed_devices, task_times

    found = made(tmp_path, [record("Pixel 6", 50.0), record("Old One", 500.0), record("Third", 55.0)])
    assert allowed_devices(found) == (("pixel 6", "android", "14"), ("third", "android", "14"))
    assert task_times(found) == {"B": found.number("B.p95_task_s")}


# ---- devices nobody measured -----------------------------------------------------------------------------------------


def scored(n: int, sigma: float, seed: int = 3) -> list[Record]:
    draw = np.random.default_rng(seed)
    scores = np.exp(draw.uniform(0, 3, n)) * 10
    times = 2000 * scores**-0.8 * np.exp(sigma * draw.normal(size=n))
    return [record(f"d{i}", float(times[i]), score=float(scores[i])) for i in range(n)]


def test_the_line_and_its_errors_are_those_of_least_squares():
    draw = np.random.default_rng(0)
    x = np.exp(draw.uniform(0, 4, 12))
    y = 5 * x**-0.7 * np.exp(0.3 * draw.normal(size=12))
    found = line(x, y)
    assert found is not None
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    assert (found.slope, found.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    left = np.log(y) - slope * np.log(x) - intercept
    assert found.sigma == pytest.approx(np.sqrt((left**2).sum() / 10))
    assert found.r2 == pytest.approx(np.corrcoef(np.log(x), np.log(y))[0, 1] ** 2)
    alone = []
    for i in range(12):
        keep = np.arange(12) != i
        a, b = np.polyfit(np.log(x[keep]), np.log(y[keep]), 1)
        alone.append(np.log(y[i]) - a * np.log(x[i]) - b)
    assert found.leave_one_out == pytest.approx(np.sqrt(np.mean(np.square(alone))))
    assert found.leave_one_out > found.sigma * np.sqrt(10 / 12)
    assert line(x[:3], y[:3]) is None
    assert line(np.full(12, 2.0), y) is None
    assert line(np.where(np.arange(12) < 9, np.nan, x), y) is None


def test_unmeasured_devices_get_the_time_of_their_score_with_noise_and_the_error_is_shown(tmp_path: Path):
    people = [Kind(f"d{i}", share=1.0) for i in range(30)] + [Kind(f"new {i}", score=80.0) for i in range(300)]
    found = made(tmp_path, scored(30, 0.3), Config(), population(people))
    table = found.table("times")
    how, each = words(table["how"]), np.asarray(table["per_record_s"])
    new = np.log(each[[one == "score" for one in how]])
    assert (how.count("measured"), how.count("score")) == (30, 300)
    assert new.std() == pytest.approx(found.number("B.extrapolation_sigma") or 0, rel=0.1)
    assert new.mean() == pytest.approx(log(2000 * 80**-0.8 / 5000), abs=0.15)
    assert found.number("B.extrapolation_sigma") == pytest.approx(0.3, abs=0.1)
    assert (found.number("B.extrapolation_r2") or 0) > 0.6
    assert found.number("B.extrapolation_error") == pytest.approx(exp(0.3) - 1, abs=0.15)
    why = eligible(found)["new 0"][1]
    assert why.endswith("time by its score")
    kind = build(scored(30, 0.3), tmp_path / "b", Config(limits=Limits(p95_task_s=200)), population(people))
    assert eligible(kind)["new 0"] == (
        1, "ok; not measured: cpu_pct, mem_bytes, battery_share_per_day; time by its score",
    )  # fmt: skip


def test_a_wide_population_of_weak_phones_is_slower_than_those_measured(tmp_path: Path):
    weak = population([Kind("d0", share=0.05), Kind("weak", score=5.0, share=0.95)])
    found = build(scored(12, 0.1), tmp_path / "a", people=weak)
    assert (found.number("B.per_record_s") or 0) * 5000 > 2 * (found.number("B.mean_s") or 0)


def test_without_scores_times_are_drawn_from_those_measured(tmp_path: Path):
    records = spread_out(5)
    people = population([Kind("phone 2"), *(Kind(f"new {i}") for i in range(200))])
    found = made(tmp_path, records, Config(), people)
    table = found.table("times")
    each = set(np.asarray(table["per_record_s"]).tolist())
    assert each == {one["per_record_s"] for one in records}
    assert "B.extrapolation_r2" not in found.values
    assert eligible(found)["new 0"][1].endswith("time drawn from devices measured")


def test_a_devices_draw_does_not_depend_on_who_else_is_drawn():
    names = [f"d{i}" for i in range(50)]
    every = noise(1, "B", names)
    assert noise(1, "B", names[10:12]).tolist() == every[10:12].tolist()
    assert noise(2, "B", names).tolist() != every.tolist()
    assert abs(every.mean()) < 0.5
    times = drawn(1, "B", names, np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    assert set(times.tolist()) == {2.0}


def test_devices_that_failed_have_no_time_and_are_not_drawn(tmp_path: Path):
    records = [*spread_out(4), record("dead", None, status="oom")]
    found = made(tmp_path, records, Config(), population([Kind("phone 0"), Kind("dead"), Kind("phone 1")]))
    assert words(found.table("times")["device_model"]) == ["phone 0", "phone 1"]
    assert eligible(found)["dead"][0] == 0


def test_if_all_fail_there_are_no_times_and_nobody_is_eligible(tmp_path: Path):
    found = made(tmp_path, [record("a", None, status="crash"), record("b", None, status="timeout")])
    assert found.number("B.p95_task_s") is None
    assert found.number("B.storage_bytes") == 756_500
    assert len(found.table("times")["share"]) == 0
    assert [able for able, _ in eligible(found).values()] == [0, 0]


def test_a_population_is_read_and_shares_add_up(tmp_path: Path):
    (tmp_path / "p.csv").write_text("device_model,os,os_version,ai_score,share\nPixel 6,android,14,50,3\nold,,,,1\n")
    found = read_population(tmp_path / "p.csv")
    assert found[0] == Kind("Pixel 6", "android", "14", 50.0, 0.75)
    assert found[1] == Kind("old", "", "", None, 0.25)
    assert found[0].holds("pixel 6", "Android", "14")
    assert not found[0].holds("Pixel 6", "android", "13")
    assert found[1].holds("OLD", "ios", "3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,share\na,1\n", "has device_model"),
        ("device_model,colour\na,1\n", "does not know 'colour'"),
        ("device_model,share\na,0\n", "share of 0"),
        ("device_model,share\na,\nb,1\n", "some have none"),
        ("device_model,ai_score\na,-1\nb,2\n", "score of -1"),
        ("device_model,share\na,1\nA,2\n", "twice"),
        ("device_model,share\n", "no rows"),
    ],
)
def test_a_population_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_population(tmp_path / "p.csv")


@pytest.mark.data
def test_the_phones_of_a_benchmark_are_a_population(tmp_path: Path):
    import realdata

    pytest.importorskip("pyarrow")
    from fieldfare.fleet.columns import read_columns

    table = read_columns(realdata.file("traces_devices/ai_benchmark_2020_phones.parquet"))
    names, scores = words(table["model"]), np.asarray(table["ai_score"], np.float64)
    at = {name: float(score) for name, score in zip(names, scores, strict=True)}
    people = population(Kind(name, score=score) for name, score in at.items())
    ranked = sorted(at, key=lambda name: at[name])
    measured = ranked[:: len(ranked) // 26][:27]
    draw = np.random.default_rng(5).normal(size=27)
    records = [record(name, 60 * (at[name] / 1e4) ** -0.5 * exp(0.3 * z), score=at[name])
               for name, z in zip(measured, draw, strict=True)]  # fmt: skip
    found = build(records, tmp_path / "b", people=people)
    assert len(found.table("times")["share"]) == len(at)
    assert found.number("B.extrapolation_sigma") == pytest.approx(0.3, abs=0.1)
    assert 0.4 < (found.number("B.lognormal_sigma") or 0) < 0.9


def test_every_record_of_the_table_has_every_column():
    table = flat(list(itertools.chain(spread_out(3), [record("x", None, status="oom")])))
    assert {len(column) for column in table.values()} == {4}
    assert parse(lines(spread_out(3)), "again") == spread_out(3)


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["assess", "bench", *words], catch_exceptions=True)


def test_the_command_measures_this_machine_and_pools_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("import fieldfare as ff\nsmall = ff.mlp(6, 4, 2)\nlarge = ff.mlp(6, 40, 2)\n")
    done = run("net.py:small", "--target", "local", "--target", "emulated:half=0.5", "--records", "200", "--out", "a",
               "--set", "plan.repeats=2", "--set", "limits.cpu_pct=101", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kind"] == "bench"
    assert said["values"]["small.mean_s"] > 0
    first = read_artefact("a", "bench")
    assert first.sha256 == said["sha256"]
    assert sorted(words(first.table("eligible")["device_model"]))[-1:] != []
    assert "half" in words(first.table("eligible")["device_model"])
    assert first.table("eligible")["eligible"].tolist() == [1, 1]
    (Path("b.jsonl")).write_bytes(lines(spread_out(4)))
    pooled = run("--from", "a", "--from", "b.jsonl", "--out", "c", "--records", "50", "--json")
    values = json.loads(pooled.stdout.splitlines()[-1])["values"]
    assert {"small.mean_s", "B.mean_s"} <= set(values)
    assert values["small.mean_s"] == pytest.approx(said["values"]["small.mean_s"] / 4)
    again = run("--from", "b.jsonl", "--from", "a", "--out", "d", "--records", "50", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["sha256"] == json.loads(pooled.stdout.splitlines()[-1])["sha256"]


def test_the_papers_table_is_a_command(tmp_path: Path):
    done = run("--paper", "--models", "B,E", "--records", "100", "--out", str(tmp_path / "p"), "--json")
    values = json.loads(done.stdout.splitlines()[-1])["values"]
    assert values["B.mean_s"] == pytest.approx(61.81 / 50)
    assert {name[0] for name in values} == {"B", "E"}


def test_a_farm_gets_its_package_first_and_an_artefact_when_results_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("import fieldfare as ff\nmodel = ff.mlp(6, 4, 2)\n")
    first = run("net.py", "--target", "farm:lab", "-q", "--json", "--out", "a")
    assert first.exit_code == 0
    place = Path(json.loads(first.stdout.splitlines()[-1])["path"][0])
    assert place.is_file()
    assert not Path("a").exists()
    name = place.stem.removeprefix("package-")
    spec = json.loads((Path("lab/package") / name / "spec.json").read_text())
    back = Path("lab/results") / name / "phone"
    back.mkdir(parents=True)
    ready = [record("X", 3.0, i, package=name, model=spec["model"]) for i in range(3)]
    (back / "results.jsonl").write_bytes(lines(ready))
    second = run("net.py", "--target", "farm:lab", "-q", "--json", "--out", "a")
    assert json.loads(second.stdout.splitlines()[-1])["values"]["net.mean_s"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("words_", "said"),
    [
        ((), "bench needs a file that makes a model"),
        (("net.py", "--target", "moon"), "--target moon: use local"),
        (("net.py", "--target", "ssh:"), "--target ssh:: use"),
        (("net.py", "--models", "B"), "--models is for --paper"),
        (("--paper", "net.py"), "--paper measures nothing"),
        (("--paper", "--models", "Z"), "no model 'Z'"),
        (("--paper", "--records", "0"), "use numbers above 0"),
        (("net.py", "--set", "plan.recods=3"), "did you mean 'records'?"),
        (("net.py", "--set", "speed=3"), "unknown key 'speed'"),
        (("net.py", "--set", "plan=3"), "plan is a table"),
        (("net.py", "--set", "emulate=hard"), "use sleep or quota"),
        (("net.py", "--set", "limits.cpu_pct=0"), "use a number above 0"),
        (("net.py", "--input", "x"), "use NAME=TYPE"),
        (("net.py", "--input", "x=float32[6]"), "inputs are for modules"),
        (("net.py", "net.py"), "two models are called 'net'"),
        (("nowhere.py",), "there is no job file"),
        (("--from", "nowhere"), "there is no file of records"),
        (("--from", "bad.jsonl"), "bad.jsonl, line 1"),
        (("net.py", "--target", "emulated:moon"), "there is no board 'moon'"),
    ],
)
def test_bad_input_is_told_in_one_line(
    words_: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("import fieldfare as ff\nmodel = ff.mlp(6, 4, 2)\n")
    Path("bad.jsonl").write_text("{}\n")
    monkeypatch.setattr("fieldfare.assess.bench.emulated.this_machine_flops_per_s", lambda: 1e10)
    monkeypatch.setattr("fieldfare.assess.bench.targets.measure", lambda *_: [])
    done = run(*words_)
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
