"""Reports of runs with several nodes: sums made by hand, what is drawn and what is not, spoiled files, a study."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_folders import INTERRUPTED, make_ring_run, nodes_of, put_nodes
from report_folders import make_run

from fieldfare.algorithms.hadfl.draw import Table, chances, draw, probabilities
from fieldfare.core.errors import UsageError
from fieldfare.report.claims import compute_claims
from fieldfare.report.draws import chi_square, chi_square_tail, draws_of
from fieldfare.report.html import write_report
from fieldfare.report.plots_rings import close_up, failing_cycle
from fieldfare.report.read_nodes import (
    absences,
    busy_s,
    failures,
    idle_shares,
    read_nodes,
    traffic,
)

matplotlib = pytest.importorskip("matplotlib", reason="pictures need fieldfare[report]")

KINDS = ("Frame", "Version", "Broadcast")


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    return make_ring_run(tmp_path_factory.mktemp("ring") / "run")


def test_idle_shares_are_what_was_not_trained_in_time_that_was_there():
    work = [(0, 0.0, 4.0, 4, 0, 1), (0, 5.0, 9.0, 4, INTERRUPTED, 2), (1, 0.0, 5.0, 1, 0, 1)]
    nodes = nodes_of([], work, kinds=(), peers=2, span_s=10.0, came=[(5.0, 1, False)])
    assert busy_s(nodes).tolist() == [8.0, 5.0]
    assert absences(nodes) == {1: [(5.0, 10.0)]}
    assert idle_shares(nodes) == pytest.approx([0.2, 0.0])


def test_bytes_are_counted_by_direction_and_kind_and_what_was_lost_was_sent():
    rows = [(0, 1, 0, 1, 0, 100, 1, 0, 0), (0, np.nan, 1, 0, 0, 70, 1, 0, 0), (0, 1, 0, 1, 1, 5, 1, -1, -1),
            (0, np.inf, 0, 1, 2, 900, 1, -1, -1)]  # fmt: skip
    moved = traffic(nodes_of(rows, [(0, 0, 2, 1, 0, 1)], kinds=KINDS, peers=2))
    assert (moved.model_out.tolist(), moved.model_in.tolist()) == ([1000.0, 70.0], [0.0, 100.0])
    assert (moved.control_out.tolist(), moved.control_in.tolist()) == ([5.0, 0.0], [0.0, 5.0])
    assert moved.lost.tolist() == [0.0, 70.0]


def said_of(cycles, versions, count, seed=0):
    """What is on record of that many draws from one table."""
    tables = [Table(c, count, tuple(versions), tuple(versions.values())) for c in range(1, cycles + 1)]
    return [{"cycle": table.cycle, "epoch": 0, "members": list(draw(seed, table)), "chance": chances(table)}
            for table in tables]  # fmt: skip


def test_draws_are_counted_against_the_sum_of_their_chances():
    found = draws_of(said_of(400, {"peer/0": 66.0, "peer/1": 66.0, "peer/10": 22.0, "peer/2": 22.0}, 2))
    assert found.names == ("peer/0", "peer/1", "peer/2", "peer/10")
    assert found.drawn.sum() == 800
    assert found.expected == pytest.approx([337.2, 337.2, 62.8, 62.8], rel=0.01)
    assert found.p > 0.001


def test_probabilities_of_fair_draws_are_spread_evenly():
    table = {f"peer/{k}": v for k, v in enumerate((66.0, 60.0, 30.0, 22.0))}
    p = np.array([draws_of(said_of(150, table, 2, seed)).p for seed in range(60)])
    assert 0.3 < p.mean() < 0.7
    assert (p < 0.05).mean() < 0.2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_chi_square_of_fair_draws_is_its_degrees_of_freedom_in_the_mean(count):
    """Of names without replacement: counts are correlated, and one degree is lost."""
    names, versions = tuple("abcde"), (66.0, 60.0, 52.0, 47.0, 40.0)
    p = np.array([*chances(Table(1, count, names, versions)).values()])
    luck = np.random.default_rng(count).gumbel(size=(150, 60, 5)) + np.log(probabilities(np.array(versions)))
    took = np.argsort(np.argsort(-luck, axis=2), axis=2) < count
    found = [chi_square(one, 60 * p, 60 * p * (1 - p)) for one in took.sum(axis=1)]
    assert np.mean([chi2 for chi2, _ in found]) == pytest.approx(4.0, rel=0.15)
    assert np.mean([tail for _, tail in found]) == pytest.approx(0.5, abs=0.07)


def test_chi_square_of_equal_chances_is_the_exact_one():
    drawn, expected, variance = np.array([30, 20, 25, 25]), np.full(4, 25.0), np.full(4, 12.5)
    chi2, p = chi_square(drawn, expected, variance)  # covariance -12.5 / 3 between two names
    assert chi2 == pytest.approx((25.0 + 25.0) / 12.5 * 3.0 / 4.0)
    assert p == chi_square_tail(chi2, 3)
    assert chi_square(np.append(drawn, 9), np.append(expected, 9.0), np.append(variance, 0.0)) == (chi2, p)


def test_unfair_draws_are_found_out():
    lines = said_of(300, {"a": 66.0, "b": 66.0, "c": 22.0, "d": 22.0}, 2)
    unfair = [{**one, "members": ["c", "d"]} if rank % 4 == 0 else one for rank, one in enumerate(lines)]
    assert draws_of(unfair).p < 1e-6


def test_a_restarted_ring_is_no_second_draw_and_drawing_everybody_is_none():
    lines = said_of(5, {"a": 2.0, "b": 1.0, "c": 1.0}, 2)
    assert draws_of([*lines, {**lines[2], "epoch": 1, "members": ["a"]}]).drawn.sum() == 10
    assert draws_of([*lines, {**lines[2], "cycle": 77, "epoch": 1, "members": ["a"]}]).cycles == 5
    assert draws_of(said_of(5, {"a": 2.0, "b": 1.0}, 2)) is None


@given(st.floats(0.01, 60.0), st.integers(1, 12))
def test_the_tail_of_chi_square_is_scipys(value, freedom):
    stats = pytest.importorskip("scipy.stats")
    assert chi_square_tail(value, freedom) == pytest.approx(float(stats.chi2.sf(value, freedom)), rel=1e-9, abs=1e-12)


def test_a_failure_is_found_and_its_ring_looked_at(ring):
    nodes = read_nodes(ring)
    assert failing_cycle(nodes) == 6
    begin, end = close_up(nodes, 6)
    lost = nodes.messages["sent_s"][np.isnan(nodes.messages["arrives_s"])]
    assert begin < lost.min() < lost.max() < end
    assert any(begin < now < end for now in failures(nodes))


def test_the_report_tells_of_nodes_and_draws_the_ring_with_its_failure(ring):
    text = write_report(ring).read_text()
    told = ["How devices spent their time", "Bytes by device", "How often devices were drawn", "Chi-square", "away"]
    told += [
        "The ring over time",
        "The ring of cycle 6, close up",
        "3 messages never arrived",
        "a ring was begun again without peer/1.",
    ]
    for words in told:
        assert words in text


def test_a_run_of_one_node_has_no_such_section(tmp_path):
    text = write_report(make_run(tmp_path / "plain", rounds=3)).read_text()
    assert 'id="nodes"' not in text
    assert read_nodes(tmp_path / "plain") is None


def test_a_report_without_matplotlib_keeps_the_table(ring, monkeypatch, tmp_path):
    monkeypatch.setattr("fieldfare.report.html.find_spec", lambda name: None)
    text = write_report(ring, tmp_path / "r.html").read_text()
    assert "waits for links" in text
    assert "<svg" not in text.split('id="nodes"')[1].split("</section>")[0]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("nodes.json", b'{"nodes": 3}', "lists no nodes"),
        ("nodes.json", b'{"nodes": [{"node": "a"}], "kinds": []}', "about other nodes"),
        ("work.bin", None, "training that cannot be"),
    ],
)
def test_spoiled_files_are_one_line(tmp_path, file, content, words):
    folder = make_ring_run(tmp_path / "r", cycles=3, dead_in=None)
    if content is None:
        work = read_nodes(folder).work.copy()
        work["ended_s"][0] = -5.0
        content = work.tobytes()
    (folder / file).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_nodes(folder)


def make_panels(folder, *, seeds=3, quick=False):
    """A study of two methods, one twice as fast, with a panel and a curve."""
    arms = {"slow": (3, 3, 3, 3), "fast": (3, 3, 1, 1)}
    for name, powers in arms.items():
        for seed in range(seeds):
            link_s = 2.0 if name == "fast" else 70.0
            make_ring_run(folder / "arms" / name / str(seed), powers=powers, seed=seed, link_s=link_s, cycles=14)
    config = {
        "format": 1, "study": "s", "arms": [f"{name}/{seed}" for name in arms for seed in range(seeds)],
        "panels": [{"title": "Both", "arms": {"lock step": "slow", "ours": "fast"}, "target": 0.9,
                    "baseline": "lock step", "metric": "accuracy"}],
        "curves": [{"title": "Along x", "x": "cost", "points": [[0, "fast", "fast"], [10, "slow", "fast"]],
                    "target": 0.9, "levels": {"published": 1.5}, "metric": "accuracy"}],
        "shown": {"one of ours": "fast/1"}, **({"quick": True} if quick else {}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    summary = json.loads((folder / "arms/slow/0/summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"run": folder.name, "arms": list(arms)}))
    return folder


def test_a_study_with_panels_tells_speed_ups_with_their_factors(tmp_path):
    text = write_report(make_panels(tmp_path / "study")).read_text()
    for words in ("speed-up over lock step", "What a speed-up is made of", "Along x", "published: 1.5 × is reached at",
                  "Nodes: one of ours", "The ring over time", "All 2 arms"):  # fmt: skip
        assert words in text
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


CLAIMS = """
[[claim]]
name = "sooner by half"
measure = "paired"
of = { measure = "time_to", arm = "slow", metric = "accuracy", threshold = 0.9, axis = "virtual_s", between = true }
to = { measure = "time_to", arm = "fast", metric = "accuracy", threshold = 0.9, axis = "virtual_s", between = true }
take = "low"
seeds = 3
sense = ">="
target = 1.2

[[claim]]
name = "of the bound"
measure = "ratio"
of = { measure = "factor", arm = "fast", over = "slow", factor = "speedup", metric = "accuracy", threshold = 0.9 }
to = { measure = "number", value = 2.0 }
sense = "="
target = 0.9
tolerance = 0.3

[[claim]]
name = "half way"
measure = "curve"
points = [[0, "fast", "fast"], [10, "slow", "fast"]]
level = 1.5
metric = "accuracy"
threshold = 0.9
sense = "<="
target = 10

[[claim]]
name = "own best"
measure = "paired"
of = { measure = "best_at", arm = "slow", metric = "accuracy", axis = "virtual_s" }
to = { measure = "best_at", arm = "fast", metric = "accuracy", axis = "virtual_s" }
sense = ">="
target = 1.5

[[claim]]
name = "idle"
measure = "idle"
arm = "fast"
device = 0
sense = "<="
target = 0.1

[[claim]]
name = "ring bytes"
measure = "bytes_sent"
arm = "slow"
kind = "Frame"
sense = "="
target = 57680
tolerance = 0

[[claim]]
name = "draws"
measure = "draws"
arm = "fast"
sense = ">="
target = 0.001
"""


def claims_of(folder, text=CLAIMS):
    (folder / "claims.toml").write_text(text)
    return {one["name"]: one for one in compute_claims(folder)}


def test_claims_about_nodes_are_computed_from_the_runs(tmp_path):
    told = claims_of(make_panels(tmp_path / "study"))
    assert [name for name, one in told.items() if not one["holds"]] == []
    assert not any(one["preliminary"] for one in told.values())
    product = 1.0
    for factor in ("utilisation", "communication", "statistics"):
        text = CLAIMS.replace('factor = "speedup"', f'factor = "{factor}"')
        product *= claims_of(tmp_path / "study", text)["of the bound"]["ours"] * 2.0
    assert product / 2.0 == pytest.approx(told["of the bound"]["ours"])


RESTARTS = """
[[claim]]
name = "few"
measure = "restarts"
arm = "fast"
sense = "<="
target = 1
"""


def test_rings_begun_again_called_off_or_of_nobody_are_counted_by_cycle(tmp_path):
    folder = make_panels(tmp_path / "study", seeds=2)
    said = folder / "arms" / "fast" / "1" / "said.jsonl"
    whole = said.read_text()
    for lines, hurt in (
        ([], 1),  # in cycle 6 a member dies
        ([{"cycle": 5, "epoch": 1, "members": ["peer/0", "peer/1"]}, {"cycle": 5, "epoch": 1}], 2),
        ([{"cycle": 5, "epoch": -1}, {"cycle": 6, "epoch": 2}], 2),
        ([{"cycle": 20, "epoch": 0, "members": []}], 2),
        ([{"cycle": 20, "epoch": 0, "members": ["peer/0", "peer/1"]}, {"cycle": 20, "epoch": 0}], 1),
    ):
        said.write_text(whole + "".join(json.dumps({"virtual_s": 9.0, **one}) + "\n" for one in lines))
        told = claims_of(folder, RESTARTS)["few"]
        assert (told["ours"], told["holds"]) == (hurt, hurt <= 1)
    said.write_text("")
    assert "forms no rings" in claims_of(folder, RESTARTS)["few"]["why"]


def test_a_quick_study_computes_claims_that_want_more_seeds_and_marks_them(tmp_path):
    told = claims_of(make_panels(tmp_path / "study", seeds=1, quick=True))
    assert told["sooner by half"]["preliminary"]
    assert "from 1 of 3 seeds" in told["sooner by half"]["why"]
    assert told["sooner by half"]["ours"] > 1.0
    assert not told["idle"]["preliminary"]
    text = write_report(tmp_path / "study").read_text()
    assert "so far" in text
    assert "1 preliminary, from too few seeds" in text


def test_a_whole_study_with_too_few_seeds_is_still_told_so(tmp_path):
    told = claims_of(make_panels(tmp_path / "study", seeds=1))
    assert told["sooner by half"]["ours"] is None
    assert "1 seeds, 3 are asked for" in told["sooner by half"]["why"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('factor = "speedup"', 'factor = "luck"', "factor is 'luck'"),
        ('take = "low"', 'take = "best"', "take is 'best'"),
        ("[[0, \"fast\", \"fast\"], [10, \"slow\", \"fast\"]]", "[[0, 1]]", "points is no list"),
        ('measure = "idle"\narm = "fast"', 'measure = "idle"', "needs arm"),
    ],
)  # fmt: skip
def test_a_claim_that_means_nothing_is_refused(tmp_path, old, new, words):
    folder = make_panels(tmp_path / "study", seeds=1)
    assert old in CLAIMS
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        claims_of(folder, CLAIMS.replace(old, new))


def test_a_target_that_is_never_reached_is_told_and_does_not_hold(tmp_path):
    told = claims_of(make_panels(tmp_path / "study"), CLAIMS.replace("threshold = 0.9", "threshold = 0.99"))
    assert told["sooner by half"]["ours"] is None
    assert told["half way"]["ours"] is None


def test_an_empty_run_of_nodes_has_a_report(tmp_path):
    folder = make_run(tmp_path / "r", rounds=2)
    put_nodes(folder, [], [], [])
    assert write_report(folder).is_file()
