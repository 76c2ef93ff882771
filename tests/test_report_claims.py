"""Claims: recomputed from the tables alone, false as soon as their inputs are spoilt or missing."""

from __future__ import annotations

import json
import shutil

import pytest
from report_folders import make_study, read_rows, write_lines

from fieldfare.core.errors import UsageError
from fieldfare.report.claims import claims_changed, compute_claims, digest, in_words, read_claims


def arm(folder, name, rows, after=None, **totals):
    """Write the tables of one arm and how far its run came: claims need no more."""
    path = folder / "arms" / name
    path.mkdir(parents=True)
    write_lines(path / "rounds.jsonl", rows)
    if after is not None:
        (path / "totals.json").write_text(json.dumps({"round": rows[-1]["round"], "after": after}))
    (path / "summary.json").write_text(json.dumps({"format": 1, "rounds": rows[-1]["round"], **totals}))


def rounds(values, **columns):
    rows = [{"round": r, "accuracy": v} for r, v in enumerate(values, start=1)]
    return [{**row, **{name: column[i] for name, column in columns.items()}} for i, row in enumerate(rows)]


def judge(folder, text):
    path = folder / "claims.toml"
    path.write_text("[[claim]]\nname = 'it'\n" + text, encoding="utf-8")
    return compute_claims(folder)[0]


@pytest.fixture
def study(tmp_path):
    arm(tmp_path, "a/0", rounds([0.2, 0.5, 0.8], bytes_up=[10, 20, 30], virtual_s=[5.0, 9.0, 20.0]))
    arm(tmp_path, "a/1", rounds([0.1, 0.7, 0.9], bytes_up=[10, 20, 30], virtual_s=[6.0, 8.0, 22.0]))
    arm(tmp_path, "a/2", rounds([0.3, 0.4, 0.7], bytes_up=[10, 20, 30], virtual_s=[4.0, 9.5, 21.0]))
    arm(tmp_path, "b", rounds([0.6, 0.9, 0.85], bytes_up=[1, 2, 3], loss=[2.0, 1.0, 1.5]))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("measure='final'\narm='a'\nmetric='accuracy'", 0.8),
        ("measure='final'\narm='a/1'\nmetric='accuracy'", 0.9),
        ("measure='final'\narm='a'\nmetric='accuracy'\naggregate='min'", 0.7),
        ("measure='final'\narm='a'\nmetric='accuracy'\naggregate='mean'", 0.8),
        ("measure='final'\narm='b'\nmetric='accuracy'\nwindow=2", 0.875),
        ("measure='best'\narm='b'\nmetric='accuracy'", 0.9),
        ("measure='best'\narm='b'\nmetric='loss'", 1.0),
        ("measure='best'\narm='b'\nmetric='loss'\ngoal='max'", 2.0),
        ("measure='at'\narm='b'\nmetric='accuracy'\naxis='bytes_up'\npoint=2.5", 0.9),
        ("measure='time_to'\narm='a'\nmetric='accuracy'\nthreshold=0.5", 2.0),
        ("measure='time_to'\narm='a'\nmetric='accuracy'\nthreshold=0.5\naxis='virtual_s'", 9.0),
        ("measure='time_to'\narm='b'\nmetric='accuracy'\nthreshold=0.8\naxis='bytes_up'", 2.0),
        ("measure='time_to'\narm='b'\nmetric='loss'\nthreshold=1.2", 2.0),
        ("measure='total'\narm='b'\naxis='bytes_up'", 3.0),
        (
            "measure='ratio'\nof={measure='total',arm='a',axis='bytes_up'}\nto={measure='total',arm='b',axis='bytes_up'}",
            10,
        ),
        ("measure='difference'\nof={arm='a',metric='accuracy'}\nto={arm='b',metric='accuracy'}", -0.05),
    ],
)
def test_each_measure_takes_its_value_from_the_tables(study, text, ours):
    claim = judge(study, f"{text}\nsense='>='\ntarget={ours - 0.01}")
    assert claim["ours"] == pytest.approx(ours)
    assert claim["holds"] is True
    assert judge(study, f"{text}\nsense='<='\ntarget={ours - 0.01}")["holds"] is False


def test_a_target_met_exactly_is_met_in_both_senses(study):
    for sense in (">=", "<="):
        assert judge(study, f"measure='final'\narm='b'\nmetric='accuracy'\nsense='{sense}'\ntarget=0.85")["holds"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("measure='final'\narm='c'\nmetric='accuracy'", "no arm c"),
        ("measure='final'\narm='../a'\nmetric='accuracy'", "no arm"),
        ("measure='final'\nmetric='accuracy'", "missing or empty"),
        ("measure='final'\narm='b'\nmetric='f1'", "b has no f1"),
        ("measure='final'\narm='a'\nmetric='accuracy'\nseeds=5", "3 seeds, 5"),
        ("measure='time_to'\narm='b'\nmetric='accuracy'\nthreshold=0.95", "never reached accuracy 0.95"),
        ("measure='time_to'\narm='b'\nmetric='accuracy'\nthreshold=0.5\naxis='virtual_s'", "virtual_s"),
        ("measure='at'\narm='b'\nmetric='accuracy'\naxis='round'\npoint=9", "did not come as far"),
    ],
)
def test_a_claim_without_its_inputs_has_no_value_and_does_not_hold(study, text, why):
    for sense in (">=", "<="):
        claim = judge(study, f"{text}\nsense='{sense}'\ntarget=0")
        assert claim["ours"] is None
        assert claim["holds"] is False
        assert why in claim["why"]


def test_a_median_stands_while_most_seeds_reached_the_threshold_and_falls_with_them(study):
    most = judge(study, "measure='time_to'\narm='a'\nmetric='accuracy'\nthreshold=0.75\nsense='<='\ntarget=3")
    few = judge(study, "measure='time_to'\narm='a'\nmetric='accuracy'\nthreshold=0.85\nsense='<='\ntarget=3")
    assert (most["ours"], most["holds"]) == (3.0, True)
    assert (few["ours"], few["holds"]) == (None, False)


def test_a_value_that_is_not_finite_is_no_final_value(tmp_path):
    arm(tmp_path, "a", [{"round": 1, "loss": 0.5}, {"round": 2, "loss": None}])
    assert judge(tmp_path, "arm='a'\nmetric='loss'\nsense='<='\ntarget=1")["ours"] is None


def test_a_seed_that_the_study_promised_and_lost_spoils_its_arm(tmp_path):
    folder = make_study(tmp_path / "study", seeds=3, rounds=40)
    before = {claim["name"]: claim["ours"] for claim in compute_claims(folder)}
    shutil.rmtree(folder / "arms" / "ours" / "1")
    for claim in compute_claims(folder):
        if "ours" in claim["name"]:
            assert claim["ours"] is None
            assert "seeds 1 are missing" in claim["why"]
            assert not claim["holds"]
        else:
            assert claim["ours"] == before[claim["name"]]


def test_spoiling_one_table_turns_exactly_its_claims_false(tmp_path):
    text = """
[[claim]]
name = "fedavg"
arm = "fedavg"
metric = "accuracy"
sense = ">="
target = 0.7
[[claim]]
name = "ours"
arm = "ours"
metric = "accuracy"
sense = ">="
target = 0.7
"""
    folder = make_study(tmp_path / "study", seeds=1, rounds=50, claims=text)
    assert [claim["holds"] for claim in compute_claims(folder)] == [True, True]
    table = folder / "arms" / "ours" / "0" / "rounds.jsonl"
    rows = read_rows(table)

    rows[-1]["accuracy"] = 0.3  # a changed number
    write_lines(table, rows)
    assert [(c["ours"], c["holds"]) for c in compute_claims(folder)][1] == (0.3, False)

    table.write_text("{broken\n" + table.read_text())  # a table that cannot be read
    claims = compute_claims(folder)
    assert [claim["holds"] for claim in claims] == [True, False]
    assert claims[1]["ours"] is None
    assert "arms/ours/0/rounds.jsonl cannot be read" in claims[1]["why"]

    table.unlink()  # no table, though the summary beside it still says what it said
    assert [claim["holds"] for claim in compute_claims(folder)] == [True, False]


def test_the_final_values_of_summaries_have_no_say_in_a_claim(tmp_path):
    folder = make_study(tmp_path / "study", seeds=1, rounds=20)
    before = compute_claims(folder)
    for summary in folder.rglob("summary.json"):
        stored = json.loads(summary.read_text())
        stored["final"] = dict.fromkeys(stored["final"], 1.0)
        summary.write_text(json.dumps(stored))
    assert compute_claims(folder) == before


def test_claims_are_plain_json(tmp_path):
    claims = compute_claims(make_study(tmp_path / "study", seeds=2, rounds=30))
    assert len(claims) == 4
    assert json.loads(json.dumps(claims, allow_nan=False)) == claims
    assert claims[0]["published"] == 0.91
    assert claims[2]["published"] is None


def test_a_run_without_a_claims_file_claims_nothing(tmp_path):
    assert compute_claims(tmp_path) == []


def test_a_claims_file_from_elsewhere_is_used_when_given(study, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("x") / "c.toml"
    elsewhere.write_text("[[claim]]\nname='it'\narm='b'\nmetric='accuracy'\nsense='>='\ntarget=0.8\n")
    assert compute_claims(study, elsewhere)[0]["holds"]
    with pytest.raises(UsageError, match="cannot be read"):
        compute_claims(study, elsewhere.with_name("none.toml"))


GOOD = "name='n'\nsense='>='\ntarget=1\nmetric='m'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[claim", "no TOML"),
        ("[claim]\nname='n'", r"\[\[claim\]\]"),
        ("[[claims]]\nname='n'", r"\[\[claim\]\]"),
        ("[[claim]]\nsense='>='", "no name"),
        ("[[claim]]\nname='n'\nsense='>='", "target is None"),
        ("[[claim]]\nname='n'\nsense='>'\ntarget=1", "sense is '>'"),
        (f"[[claim]]\n{GOOD}measure='finale'", "measure is 'finale'.*final, best"),
        (f"[[claim]]\n{GOOD}tresh=2", "tresh means nothing"),
        (f"[[claim]]\n{GOOD}measure='time_to'", "needs threshold"),
        (f"[[claim]]\n{GOOD}measure='time_to'\nthreshold='x'", "threshold is 'x'"),
        (f"[[claim]]\n{GOOD}aggregate='mode'", "aggregate is 'mode'"),
        (f"[[claim]]\n{GOOD}published='a lot'", "published is 'a lot'"),
        (f"[[claim]]\n{GOOD}window=0", "window is 0"),
        ("[[claim]]\nname='n'\nsense='>='\ntarget=1\nmeasure='ratio'\nof={metric='m'}\nto=3", "to is 3"),
        (
            "[[claim]]\nname='n'\nsense='>='\ntarget=1\nmeasure='ratio'\nof={metric='m'}\nto={measure='x'}",
            "'n', to: measure",
        ),
    ],
)
def test_a_claims_file_that_means_nothing_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_claims(path)
    assert "\n" not in str(caught.value)


def test_a_measure_says_in_words_what_it_is():
    of = {"measure": "total", "arm": "a", "axis": "bytes_up"}
    assert (
        in_words({"measure": "ratio", "of": of, "to": {**of, "arm": "b"}})
        == "total bytes up of a ÷ total bytes up of b"
    )


TWO = """
[[claim]]
name = "fedavg"
arm = "fedavg"
metric = "accuracy"
sense = ">="
target = 0.3
[[claim]]
name = "ours"
arm = "ours"
metric = "accuracy"
sense = ">="
target = 0.3
"""


def test_a_claim_that_is_gone_from_its_file_does_not_hold(tmp_path):
    folder = make_study(tmp_path / "study", seeds=1, rounds=20, claims=TWO)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "claims": ["fedavg", "ours"]}))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "claims": compute_claims(folder)}))
    half = TWO[: TWO.rindex("[[claim]]")]
    (folder / "claims.toml").write_text(half)
    kept, gone = compute_claims(folder)
    assert kept["holds"]
    assert (gone["name"], gone["ours"], gone["holds"]) == ("ours", None, False)
    assert gone["target"] == 0.3
    assert gone["why"] == "its entry in claims.toml is gone"
    (folder / "claims.toml").unlink()
    assert [claim["holds"] for claim in compute_claims(folder)] == [False, False]
    (folder / "summary.json").unlink()
    assert [claim["name"] for claim in compute_claims(folder)] == ["fedavg", "ours"]


@pytest.mark.parametrize("record", ["config.json", "summary.json"])
def test_a_claims_file_other_than_the_one_on_record_makes_its_claims_false_and_keeps_their_values(tmp_path, record):
    folder = make_study(tmp_path / "study", seeds=1, rounds=20, claims=TWO)
    before = compute_claims(folder)
    assert (claims_changed(folder), [claim["holds"] for claim in before]) == (None, [True, True])
    kept = json.loads((folder / record).read_text())
    (folder / record).write_text(json.dumps({**kept, "claims_sha256": digest(folder / "claims.toml")}))
    assert (claims_changed(folder), compute_claims(folder)) == (None, before)
    (folder / "claims.toml").write_text(TWO.replace("target = 0.3", "target = 0.2", 1))
    assert record in claims_changed(folder)
    after = compute_claims(folder)
    assert [claim["ours"] for claim in after] == [claim["ours"] for claim in before]
    assert [(claim["holds"], claim["why"]) for claim in after] == [
        (False, "claims.toml was changed since the run was made")
    ] * 2
    (tmp_path / "others.toml").write_text(TWO)
    assert all(claim["holds"] for claim in compute_claims(folder, tmp_path / "others.toml"))


def cut_cleanly(path):
    write_lines(path, read_rows(path)[:25])


def cut_torn(path):
    text = path.read_text()
    path.write_text(text[: len(text) // 2])


def cut_after_all_rounds(path):
    with path.open("a") as out:
        out.write('{"round": 5')


def cut_inside(path):
    rows = read_rows(path)
    write_lines(path, rows[:10] + rows[11:])


def cut_begin(path):
    write_lines(path, read_rows(path)[1:])


def cut_summary(path):
    path.with_name("summary.json").unlink()


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (cut_cleanly, "ends with round 25"),
        (cut_torn, "cut off"),
        (cut_after_all_rounds, "cut off"),
        (cut_inside, "lacks rounds"),
        (cut_begin, "lacks rounds"),
        (cut_summary, "summary.json is missing"),
    ],
)
def test_a_table_that_is_not_whole_makes_its_claims_false_and_says_why(tmp_path, cut, why):
    folder = make_study(tmp_path / "study", seeds=1, rounds=50, claims=TWO)
    assert [claim["holds"] for claim in compute_claims(folder)] == [True, True]
    cut(folder / "arms" / "ours" / "0" / "rounds.jsonl")
    fedavg, ours = compute_claims(folder)
    assert fedavg["holds"]
    assert (ours["ours"], ours["holds"]) == (None, False)
    assert why in ours["why"]


def test_a_claim_of_equality_holds_within_its_tolerance_on_both_sides(study):
    measure = "arm='b'\nmetric='accuracy'\nsense='='\n"
    for target in (0.84, 0.86):
        assert judge(study, f"{measure}target={target}\ntolerance=0.011")["holds"]
        assert not judge(study, f"{measure}target={target}\ntolerance=0.009")["holds"]
    assert judge(study, f"{measure}target=0.85\ntolerance=0")["tolerance"] == 0


def test_a_total_is_of_the_whole_run_evaluations_after_its_last_round_included(tmp_path):
    rows = rounds([0.1, 0.2], bytes_down=[10, 20], bytes_up=[1, 2])
    arm(tmp_path, "a", rows, {"bytes_down": 5, "bytes_up": 2}, bytes_down=25, bytes_up=4)
    for axis, whole in (("bytes_down", 25), ("bytes", 29), ("round", 2)):
        assert judge(tmp_path, f"measure='total'\narm='a'\naxis='{axis}'\nsense='>='\ntarget=0")["ours"] == whole


TOTALS = """
[[claim]]
name = "down"
measure = "total"
arm = "a"
axis = "bytes_down"
sense = "<="
target = 1000
[[claim]]
name = "time"
measure = "total"
arm = "a"
axis = "virtual_s"
sense = ">="
target = 0
[[claim]]
name = "another arm"
measure = "total"
arm = "b"
axis = "bytes_down"
sense = "<="
target = 1000
"""


@pytest.fixture
def moved(tmp_path):
    rows = rounds([0.1, 0.2, 0.3], bytes_down=[10, 20, 30], virtual_s=[1.0, 2.0, 3.0])
    for name in ("a", "b"):
        arm(tmp_path, name, rows, {"bytes_down": 5, "virtual_s": 0.5}, bytes_down=35, virtual_s=3.5)
    (tmp_path / "claims.toml").write_text(TOTALS)
    assert [(claim["ours"], claim["holds"]) for claim in compute_claims(tmp_path)] == [
        (35, True), (3.5, True), (35, True)
    ]  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(
    "spoilt", [[10, 20, 0], [10, 20, 29], [10, 20, 60], [10, 31, 30], [0, 0, 0], [5, 10, 15], [100, 200, 300]]
)
def test_a_total_is_false_once_the_running_totals_of_its_table_are_spoilt(moved, spoilt):
    table = moved / "arms" / "a" / "rounds.jsonl"
    write_lines(table, [{**row, "bytes_down": told} for row, told in zip(read_rows(table), spoilt, strict=True)])
    down, time, other = compute_claims(moved)
    assert (down["ours"], down["holds"], time["holds"], other["holds"]) == (None, False, False, True)
    assert "bytes_down" in down["why"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda arm: (arm / "totals.json").unlink(), "comes to 3 virtual_s, arms/a/summary.json says 3.5"),
        (lambda arm: (arm / "totals.json").write_text("{"), "arms/a/totals.json cannot be read"),
        (lambda arm: (arm / "totals.json").write_text('{"round": 2, "after": {"virtual_s": 0.5}}'), "comes to 3 "),
        (lambda arm: (arm / "totals.json").write_text('{"round": 3, "after": {"virtual_s": 0.1}}'), "comes to 3.1 "),
        (lambda arm: write_lines(arm / "rounds.jsonl", rounds([0.1, 0.2, 0.3])), "comes to"),
        (lambda arm: write_lines(arm / "rounds.jsonl", [{"round": 1}, {"round": 2}, {}]), "comes to"),
    ],
)
def test_a_total_whose_tables_do_not_come_to_it_is_false(moved, spoil, why):
    spoil(moved / "arms" / "a")
    down, _, other = compute_claims(moved)
    assert (down["ours"], down["holds"], other["holds"]) == (None, False, True)
    assert why in down["why"]


def test_a_claim_about_the_run_itself_is_about_the_first_arm_of_a_study(tmp_path):
    folder = make_study(tmp_path / "study", seeds=1, rounds=20, claims="")
    own = judge(folder, "metric='accuracy'\nsense='>='\ntarget=0")
    assert own["ours"] == judge(folder, "arm='fedavg'\nmetric='accuracy'\nsense='>='\ntarget=0")["ours"]


@pytest.mark.parametrize(
    "text", ["sense='='", "sense='='\ntolerance=-1", "sense='='\ntolerance='x'", "sense='>='\ntolerance=1"]
)
def test_a_tolerance_belongs_to_equality_alone(study, text):
    with pytest.raises(UsageError, match="tolerance"):
        judge(study, f"arm='b'\nmetric='accuracy'\ntarget=1\n{text}")
