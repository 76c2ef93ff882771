"""The written page: self-contained, escaped, readable without matplotlib, its pictures made of stored numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_folders import make_run, make_study, read_rows, write_lines

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.report import arms as side_by_side
from fieldfare.report import plots, plots_arms, plots_data, style
from fieldfare.report.html import write_comparison, write_report
from fieldfare.report.read import data_card, read_run
from fieldfare.report.table import Table

matplotlib = pytest.importorskip("matplotlib", reason="pictures need fieldfare[report]")
Axes = pytest.importorskip("matplotlib.axes").Axes


class Page(HTMLParser):
    """What a page holds: text, ids, addresses, figures; that its tags close is checked on the way."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect", "image", "stop", "polyline", "circle", "line"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.unnamed: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in told:
            self.ids.append(told["id"])
        self.links += [told[name] for name in ("src", "href", "xlink:href") if told.get(name)]
        if (tag == "img" and not told.get("alt")) or (tag == "svg" and not {"aria-label", "aria-hidden"} & set(told)):
            self.unnamed.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "one", rounds=30)
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("runs") / "study", seeds=2, rounds=30)
    return write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("which", ["report", "study"])
def test_a_page_asks_for_nothing_outside_itself(which, request):
    text = request.getfixturevalue(which)
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", text)
    assert len(text) < 3_000_000


@pytest.mark.parametrize("which", ["report", "study"])
def test_identifiers_are_unique_and_every_reference_has_its_target(which, request):
    text = request.getfixturevalue(which)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    wanted = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert wanted <= set(page.ids)


@pytest.mark.parametrize("which", ["report", "study"])
def test_every_picture_is_described_in_words(which, request):
    page = Page(request.getfixturevalue(which))
    assert page.tags.count("figure") >= 8
    assert page.unnamed == []


def test_a_report_shows_the_headline_numbers_of_its_run(report):
    text = " ".join(Page(report).text.split())
    for words in ("Final accuracy", "Rounds", "Virtual time", "Bytes moved", "Clients per second", "Seed"):
        assert words in text
    for title in (
        "Accuracy against rounds", "Accuracy against virtual time", "Loss against rounds", "Clients from worst to best",
        "Which client holds which classes", "How often a client took part", "Turnout of each round", "Bytes moved",
    ):  # fmt: skip
        assert title in text
    assert "Pictures are left out" not in text


def test_a_study_shows_claims_arms_and_where_they_differ(study):
    text = " ".join(Page(study).text.split())
    for words in ("✓ holds", "✗ does not hold", "fedavg", "scaffold", "ours", "Where the arms differ", "2 seeds each"):
        assert words in text
    assert "algorithm.cohort" not in text.split("Where the arms differ")[1].split("settings that all arms share")[0]


def test_the_same_run_gives_the_same_page(tmp_path):
    folder = make_run(tmp_path / "one", rounds=6)
    first = write_report(folder, tmp_path / "a.html").read_bytes()
    assert first == write_report(folder, tmp_path / "b.html").read_bytes()


def test_text_from_a_run_cannot_become_markup(tmp_path):
    evil = '<script>alert("x")</script>&$\\frac$'
    folder = make_run(tmp_path / "one", rounds=6, algorithm=evil, job={evil: {evil: evil}})
    for name in ("summary.json", "data.json"):
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**stored, "run": evil, "name": evil, "stopped": evil}))
    rows = read_rows(folder / "rounds.jsonl")
    write_lines(folder / "rounds.jsonl", [{**row, evil: row["round"] * 0.5, "missing": {evil: 2}} for row in rows])
    claim = {"name": evil, "ours": 1, "target": 1, "published": 2, "holds": True}
    stored = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**stored, "claims": [claim]}))
    lines = [{"round": 6, "kind": evil, "clients": [1, 2], "accuracy": [0.5, 0.6]}]
    write_lines(folder / "evaluation.jsonl", lines)
    text = write_report(folder).read_text()
    assert "<script" not in text
    assert "script" not in Page(text).tags
    other = make_run(tmp_path / "two", rounds=6)
    assert "<script" not in write_comparison([folder, other], tmp_path / "c.html").read_text()


def test_without_matplotlib_the_report_has_its_tables_and_says_how_to_get_pictures(tmp_path, monkeypatch):
    folder, whole = make_run(tmp_path / "one", rounds=6), make_study(tmp_path / "study", seeds=1, rounds=6)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for path in (write_report(folder), write_report(whole), write_comparison([folder, whole], tmp_path / "c.html")):
        page = Page(path.read_text())
        assert "pip install 'fieldfare[report]'" in page.text
        assert "figure" not in page.tags
        assert page.tags.count("table") >= 2
    with pytest.raises(MissingExtra, match=r"fieldfare\[report\]"), style.drawing():
        pass


def test_a_run_cut_short_is_reported_with_a_note(tmp_path):
    folder = make_run(tmp_path / "one", rounds=6)
    for path in folder.iterdir():
        if path.name != "rounds.jsonl":
            path.unlink()
    assert "has not ended: the report shows the 6 rounds" in Page(write_report(folder).read_text()).text


@pytest.mark.parametrize(
    "rows", [[], [{"round": 1}], [{"round": 1, "loss": None, "clients": 0}], [{"round": 1, "loss": 0.0}]]
)
def test_the_poorest_tables_still_give_a_page(tmp_path, rows):
    write_lines(tmp_path / "rounds.jsonl", rows)
    assert write_report(tmp_path).is_file()
    assert write_comparison([tmp_path], tmp_path / "c.html").is_file()


def test_a_run_that_diverged_says_since_when(tmp_path):
    folder = make_run(tmp_path / "one", rounds=6)
    rows = read_rows(folder / "rounds.jsonl")
    write_lines(folder / "rounds.jsonl", [{**row, "train_loss": None} if row["round"] > 3 else row for row in rows])
    assert "not a finite number from round 4" in Page(write_report(folder).read_text()).text


def test_no_clients_no_classes_no_time_still_gives_pictures(tmp_path):
    folder = make_run(tmp_path / "one", rounds=6)
    for name in ("clients.jsonl", "evaluation.jsonl", "data.json"):
        (folder / name).unlink()
    rows = [
        {k: v for k, v in r.items() if k in ("round", "loss", "train_loss")} for r in read_rows(folder / "rounds.jsonl")
    ]
    write_lines(folder / "rounds.jsonl", rows)
    text = Page(write_report(folder).read_text()).text
    assert "Loss against rounds" in text
    assert "Loss against virtual time" not in text
    assert "Which client holds" not in text


def test_matplotlib_is_left_as_it_was_found(tmp_path):
    before = dict(matplotlib.rcParams)
    write_report(make_run(tmp_path / "one", rounds=4))
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported_and_naming_the_package_imports_no_matplotlib(tmp_path):
    make_run(tmp_path / "one", rounds=3)
    code = (
        "import sys, fieldfare.report.html as h; assert 'matplotlib' not in sys.modules\n"
        f"h.write_report({str(tmp_path / 'one')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_of_too_many_marks_is_made_of_pixels():
    n = 6000
    table = Table(n, {"round": np.arange(n, dtype=float), "accuracy": np.linspace(0.1, 0.9, n)})
    with style.drawing():
        many = plots.learning_curve(table, plots.ACCURACY, "round", what="Accuracy")
        few = plots.learning_curve(
            Table(9, {k: v[:9] for k, v in table.columns.items()}), plots.ACCURACY, "round", what="A"
        )
    assert many is not None
    assert few is not None
    assert many.markup.startswith('<img alt="Accuracy against rounds: central test from 10.0 % to 90.0 %."')
    assert few.markup.startswith("<svg")


def test_numbers_written_in_a_picture_keep_their_digits():
    table = Table(2, {"round": np.array([1.0, 2.0]), "train_loss": np.array([2.0, 0.046875])})
    with style.drawing():
        drawn = plots.learning_curve(table, plots.LOSS, "round", what="Loss")
    assert drawn is not None
    assert ">train 0.0469</text>" in drawn.markup
    assert 'aria-label="Loss against rounds: train from 2 to 0.04688."' in drawn.markup


def test_seeds_on_different_clocks_are_compared_where_all_of_them_have_been():
    def seed(times, values):
        return Table(3, {"round": np.arange(3.0), "virtual_s": np.array(times), "accuracy": np.array(values)})

    found = plots_arms.aligned(
        [seed([0.0, 10, 20], [0, 0.1, 0.2]), seed([5.0, 10, 30], [0.5, 0.6, 1.0])], "accuracy", "virtual_s"
    )
    assert found is not None
    x, middle, low, high = found
    assert (x[0], x[-1]) == (5.0, 20.0)
    np.testing.assert_allclose(low, x / 100)
    np.testing.assert_allclose(middle, (low + high) / 2)


def test_runs_that_differ_in_the_seed_alone_are_one_arm(tmp_path):
    paths = [make_run(tmp_path / f"r{seed}", rounds=6, seed=seed) for seed in (1, 2)]
    other = make_run(tmp_path / "other", rounds=6, job={"training": {"lr": 0.5}})
    arms = side_by_side.arms_of([read_run(path) for path in [*paths, other]])
    assert [(arm.name, len(arm.runs)) for arm in arms] == [("fedavg lr=0.05", 2), ("fedavg lr=0.5", 1)]
    text = " ".join(Page(write_comparison([*paths, other], tmp_path / "c.html").read_text()).text.split())
    assert "training.lr" in text
    assert "1–2 seeds each" in text


def test_runs_of_one_name_and_one_seed_stay_apart(tmp_path):
    paths = [make_run(tmp_path / where / "same", rounds=4) for where in ("x", "y")]
    arms = side_by_side.arms_of([read_run(path) for path in paths])
    assert [arm.name for arm in arms] == ["x/fedavg", "y/fedavg"]


def test_the_common_level_is_reached_by_every_arm_and_no_higher_percent_is():
    def with_best(value):
        table = Table(
            2, {"round": np.array([1.0, 2.0]), "accuracy": np.array([0.1, value]), "loss": np.array([2.0, value])}
        )
        return side_by_side.Arm(str(value), (make(table),))

    def make(table):
        from pathlib import Path

        from fieldfare.report.read import Run

        return Run(Path("r"), "r", {}, {}, table, None, {}, {})

    arms = [with_best(0.874), with_best(0.93)]
    assert side_by_side.common_level(arms, "accuracy") == 0.87
    assert side_by_side.common_level(arms, "loss") == pytest.approx(0.93)
    assert side_by_side.common_level(arms, "f1") is None
    assert side_by_side.first_at(arms[0].tables[0], "accuracy", 0.87, "round") == 2.0


@pytest.mark.parametrize("n", [12, 120])
def test_the_label_map_is_saved_by_itself(tmp_path, n):
    counts = np.random.default_rng(0).integers(0, 9, (n, 5)).tolist()
    for suffix in ("svg", "png"):
        out = plots.save_label_map(
            {"name": "d", "n_clients": n, "classes": 5, "label_counts": counts}, tmp_path / f"m.{suffix}"
        )
        assert out.stat().st_size > 2000
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        plots.save_label_map({"label_counts": counts}, tmp_path / "m.jpg")
    with pytest.raises(UsageError, match="no label counts"):
        plots.save_label_map({"name": "d"}, tmp_path / "m.png")


def test_clients_that_hold_nothing_do_not_break_the_data_section():
    card = data_card({"name": "d", "n_clients": 3, "label_counts": [[0, 0], [5, 0], [0, 2]], "sizes": [0, 5, 2]})
    assert card is not None
    with style.drawing():
        drawn = [plots_data.label_map(card), plots_data.client_sizes(card), plots_data.size_curve(card)]
    assert all(one is not None for one in drawn)
    assert drawn[1] is not None
    assert "1 clients hold none" in drawn[1].note


def test_a_report_to_a_folder_that_is_not_there_is_refused_in_one_line(tmp_path):
    folder = make_run(tmp_path / "one", rounds=3)
    with pytest.raises(UsageError, match="no folder"):
        write_report(folder, tmp_path / "none" / "r.html")
    with pytest.raises(UsageError, match="no run folders"):
        write_comparison([], tmp_path / "c.html")


def test_thirty_arms_are_told_apart_by_colour_and_dash(tmp_path):
    looks = {plots_arms.look(rank) for rank in range(28)}
    assert len(looks) == 28
    paths = [make_run(tmp_path / f"run-{i}", rounds=4, clients=20, cohort=5, job={"lr": i}) for i in range(12)]
    assert "12 runs compared" in Page(write_comparison(paths, tmp_path / "c.html").read_text()).text


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=40))
@settings(max_examples=25, deadline=None)
def test_every_client_that_holds_data_is_in_one_bar_of_the_sizes(sizes):
    card = data_card({"name": "d", "sizes": sizes})
    assert card is not None
    bars: list[np.ndarray] = []
    stairs = Axes.stairs

    def watched(self, values, *rest, **more):
        bars.append(values)
        return stairs(self, values, *rest, **more)

    with pytest.MonkeyPatch.context() as patch, style.drawing():
        patch.setattr(Axes, "stairs", watched)
        drawn = plots_data.client_sizes(card)
    held = sum(size > 0 for size in sizes)
    assert (drawn is not None) == (held >= 2)
    assert drawn is None or sum(bars[0]) == held


def test_a_run_in_which_no_update_counted_has_a_page_that_says_so(tmp_path):
    folder = make_run(tmp_path / "none", rounds=3, personal=False)
    rows = read_rows(folder / "rounds.jsonl")
    write_lines(folder / "rounds.jsonl", [{**row, "clients": 0, "missing": {"refused": 20}} for row in rows])
    lines = read_rows(folder / "clients.jsonl")
    write_lines(folder / "clients.jsonl", [{**line, "clients": [], "weight": [], "seconds": []} for line in lines])
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "no update of any client counted (refused 60)" in text
    assert "Turnout of each round" in text
    assert "How often a client took part" not in text


def test_compared_runs_are_called_by_what_tells_them_apart(tmp_path):
    def called(*jobs, **how):
        paths = [
            make_run(tmp_path / f"{len(list(tmp_path.iterdir()))}-x-{i}", rounds=3, job=j, **how)
            for i, j in enumerate(jobs)
        ]
        return [arm.name for arm in side_by_side.arms_of([read_run(path) for path in paths])]

    training = {"is": "Training", "epochs": 1, "batch": 20, "lr": 0.05}
    assert called({"training": training}, {"training": {**training, "lr": 0.1}}) == ["fedavg lr=0.05", "fedavg lr=0.1"]
    assert called({}, {}) == ["fedavg 0", "fedavg 1"]
    assert called({"data": "x" * 30}, {"data": "y" * 30}) == ["fedavg 0", "fedavg 1"]


def test_a_comparison_speaks_of_runs_and_marks_one_that_has_not_ended(tmp_path):
    done = make_run(tmp_path / "one", rounds=4, algorithm="fedavg")
    cut = make_run(tmp_path / "two", rounds=4, algorithm="scaffold")
    (cut / "summary.json").unlink()
    text = Page(write_comparison([done, cut], tmp_path / "c.html").read_text()).text
    assert "scaffold (incomplete)" in text
    assert "fedavg (incomplete)" not in text
    assert "arm" not in text.lower().replace("warm", "").replace("alarm", "").replace("charm", "")


def test_a_run_is_not_compared_with_itself(tmp_path):
    one = make_run(tmp_path / "one", rounds=2)
    with pytest.raises(UsageError, match="one is named twice"):
        write_comparison([one, tmp_path / "." / "one"], tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()
