"""The table of pairs, cell by cell: what runs is run and trains, what is refused is refused before the start."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.algorithms import ALGORITHMS, DECENTRALISED, OFFLOADING, Evaluate
from fieldfare.algorithms.pairs import AROUND, BESIDE, METHODS, REASONS, RUNS, around, cell, markdown, pairs, refuse
from fieldfare.assembly import assemble
from fieldfare.core.errors import UsageError

pytest.importorskip("torch")
cases = pytest.importorskip("pair_cases")

PAGE = Path(__file__).parents[1] / "docs" / "compositions.md"
SAID = {
    "whole": r"whole model|cannot fold sub-models|leave out who lacks",
    "rows": r"cannot fold sub-models|leave out who lacks|which secure aggregation hides",
    "slot": r"one slot",
    "same": r"say different things of the same weights",
    "already": r"twice|already",
    "first": r"first channels|MultiRate\(\)",
    "rolls": r"move on every round",
    "deep": r"levels such as Level\(depth=1\)",
    "moves": r"same part in every cycle",
    "server": r"give FedAvg|unknown key 'local'",
    "neighbours": r"neighbours of unlike parts",
    "models": r"give FedAvg|mixes in whole models|unknown key 'local'",
    "halves": r"give FedAvg|unknown key 'local'",
    "drawn": r"would draw another level every round",
    "uncut": r"needs a net with so many exits",
    "moments": r"momentum that begins at zero",
    "early": r"asynchronous run|give FedAvg",
    "together": r"masks cancel",
    "nobody": r"no sum over clients at a server",
    "exits": r"loss of its own",
    "here": r"computed in one process",
}
"""Words of the refusals where they stand, by reason."""
CELLS = [(one, other) for one, other in pairs() if "ray" not in (one, other)]
ON_RAY = [(one, other) for one, other in pairs() if "ray" in (one, other)]


def check_cell(first: str, second: str) -> None:
    word = cell(first, second)
    if word != RUNS:
        with pytest.raises(UsageError, match=SAID[word]) as refusal:
            assemble(cases.job_of(cases.draft_of(first, second)))
        assert "\n" not in str(refusal.value)
        return
    job = cases.job_of(cases.draft_of(first, second))
    start = assemble(job).world.model.vector
    found = job.run(None, progress=False)
    assert np.isfinite(found.model.vector).all()
    assert found.model.vector.tobytes() != start.tobytes()
    assert found.summary["rounds"] == cases.ROUNDS


@pytest.mark.parametrize(("first", "second"), CELLS, ids=[f"{one} {other}" for one, other in CELLS])
@pytest.mark.sampled(4)
def test_a_cell_runs_and_trains_or_is_refused_with_its_reason(first, second):
    check_cell(first, second)


IDLE = [(method, thing) for method in METHODS for thing in cases.IDLE if cell(method, thing) == RUNS]


@functools.cache
def alone(method: str) -> bytes:
    return cases.job_of(cases.Draft(method)).run(None, progress=False).model.vector.tobytes()


@pytest.mark.parametrize(("method", "thing"), IDLE, ids=[f"{one} {other}" for one, other in IDLE])
@pytest.mark.sampled(2)
def test_what_does_nothing_changes_no_bit_of_a_method(method, thing):
    job = cases.job_of(cases.IDLE[thing](cases.Draft(method)))
    assert job.run(None, progress=False).model.vector.tobytes() == alone(method)


@pytest.fixture(scope="module")
def a_ray():
    """A Ray of two CPUs for all cells here."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fieldfare[ray]'")
    from fieldfare.sim import cluster

    ray = cluster.library()
    assert cluster.join(ray, None, 2)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), ON_RAY, ids=[f"{one} {other}" for one, other in ON_RAY])
def test_a_cell_on_ray_runs_to_the_same_bits_or_is_refused(a_ray, first, second):
    if cell(first, second) != RUNS:
        check_cell(first, second)
        return
    draft = cases.draft_of(first, second)
    here = cases.job_of(replace(draft, on="local")).run(None, progress=False).model.vector
    assert cases.job_of(draft).run(None, progress=False).model.vector.tobytes() == here.tobytes()


def test_every_method_has_a_row_and_every_thing_a_column():
    vectors = [one.name for one in ALGORITHMS if one.model == "vector"]
    assert list(METHODS) == [*vectors, *(one.name for one in (*DECENTRALISED, *OFFLOADING))]
    assert set(METHODS) == set(cases.METHODS)
    assert list(AROUND) == list(cases.AROUND)
    for row in (*METHODS.values(), *BESIDE.values()):
        assert set(row) == set(AROUND)
        assert set(row.values()) <= {RUNS, *REASONS}
    used = {cell(one, other) for one, other in pairs()}
    assert used == {RUNS, *REASONS}
    assert set(SAID) == set(REASONS)
    assert cell("keep", "prefix") == cell("prefix", "keep") == "whole"


@pytest.mark.parametrize(
    "second", [name for name in AROUND if name not in ("module", "sessions", "ray", "masked loss")]
)
def test_what_an_algorithm_is_made_with_is_found(second):
    made = cases.job_of(cases.draft_of("fedavg", second)).algorithm
    assert second in around(made)
    assert set(around(Evaluate(made))) == set(around(made)) <= {second, "prefix"}


def test_a_method_is_not_refused_for_what_it_brings_itself():
    family = cases.model_of(cases.Draft("fedavg"))
    for made in (
        ff.NestedFL(2, 5, view=family.view(), shares=(1, 0.5)),
        ff.FjORD(2, 5, view=family.view(), shares=(1, 0.5)),
        ff.HeteroFL(2, 5, view=family.view()),
    ):
        assert around(made) == ("prefix",)
        refuse(made)


def test_the_table_refuses_in_one_line_what_was_given_why_and_what_would_be_right():
    family = cases.model_of(cases.Draft("fedavg"))
    with pytest.raises(UsageError) as refusal:
        refuse(ff.Scaffold(2, 5, view=family.view()))
    assert str(refusal.value) == (
        "scaffold does not go with sub-models, `Prefix()`: it keeps, or replies with, more than a delta, of the whole "
        "model; use FedAvg, or one made of it without."
    )
    with pytest.raises(UsageError, match="fedmedian does not go with `SecureSum"):
        refuse(ff.FedMedian(2, 5), ("secure",))
    with pytest.raises(UsageError, match=r"exits.* does not go with loss.*use exit_loss"):
        assemble(cases.job_of(cases.draft_of("depth", "masked loss")))
    refuse(ff.Bagging(2, 5), ("prefix", "secure"))


@pytest.mark.parametrize("method", ["ditto", "scaffold", "feddyn", "fedper"])
def test_what_else_a_client_keeps_is_not_added_to_short_replies(method):
    plain = cases.job_of(cases.Draft(method))
    fine = replace(plain, algorithm=ff.compress(plain.algorithm, bits=24, feedback=False))
    one, other = (job.run(None, progress=False).model.vector for job in (plain, fine))
    assert 0 < np.abs(one - other).max() < 1e-5


def test_the_page_holds_the_table_as_it_is():
    begin, end = "<!-- table -->\n", "\n<!-- end of table -->"
    page = PAGE.read_text()
    found = re.search(re.escape(begin) + "(.*?)" + re.escape(end), page, re.DOTALL)
    assert found is not None
    assert found[1] == markdown(), "python -m fieldfare.algorithms.pairs prints what belongs there"
