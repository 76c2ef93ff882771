"""The documentation holds: its snippets run and print what they say, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import fieldfare
from snippets import DOCS, run_snippets, snippets

import fieldfare as ff
from fieldfare.algorithms.catalogue import ALGORITHMS, DECENTRALISED, OFFLOADING
from fieldfare.cli import EXIT, app
from fieldfare.starter import write_starter

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
RUN = (
    "getting-started.md",
    "own-algorithm.md",
    "native.md",
    "own-work.md",
    "time.md",
    "decentralised.md",
    "fedfly.md",
    "compress.md",
    "submodels.md",
    "compositions.md",
    "assess.md",
    "assess-trace.md",
    "assess-bench.md",
    "assess-platform.md",
)


@pytest.mark.parametrize("name", RUN)
def test_the_snippets_of_a_page_print_what_they_say(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FIELDFARE_CACHE", str(tmp_path / "cache"))
    assert run_snippets(DOCS / name, monkeypatch, tmp_path, capsys)


def test_no_page_has_snippets_that_are_not_run():
    assert {page.name for page in DOCS.glob("*.md") if snippets(page)} == {*RUN, "data.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_readme_shows_the_hello_world_that_is_run():
    hello = (ROOT / "examples" / "hello.py").read_text(encoding="utf-8")
    assert hello.split('"""\n\n', 1)[1] in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(hello.splitlines()) <= 12


def test_an_algorithm_of_ones_own_takes_at_most_forty_lines():
    first = snippets(DOCS / "own-algorithm.md")[0]
    reducer = first[first.index("@dataclass") : first.index("\ndata = ")].strip().splitlines()
    assert len(reducer) <= 40


def test_the_generated_pages_are_in_step_with_the_code():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "cli_reference.py", "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def commands(page, text=True):
    """Every `fieldfare ...` that a page shows in a block, or in its `text`, as lists of words."""
    written = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", written, re.DOTALL | re.MULTILINE)
    plain = "\n".join(block for language, block in blocks if not language)
    shown = [part for line in plain.splitlines() for part in re.split(r" {3,}", line.split("#")[0])]
    shown += re.findall(r"`(fieldfare [^`]+)`", written) if text else []
    return [shlex.split(one) for one in shown if one.startswith("fieldfare ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_exists_with_its_options(page):
    for _, *words in commands(page):
        command, context = app, click.Context(app, info_name="fieldfare")
        while isinstance(command, click.Group):
            name, found, words = command.resolve_command(context, words)
            assert found is not None, words
            context = click.Context(found, info_name=name, parent=context)
            command = found
        takes = any(p.required for p in command.params)
        bare = not words and takes  # named in passing, without its arguments
        if not bare:
            command.make_context(context.info_name, words, parent=context.parent)


@pytest.mark.parametrize(
    "shown", ["fieldfare runn job.py", "fieldfare run job.py --nosuch", "fieldfare data descibe job.py"]
)
def test_a_command_that_does_not_exist_is_noticed(shown, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"```\n{shown}\n```\n")
    with pytest.raises(click.ClickException):
        test_every_command_that_is_shown_exists_with_its_options(page)


@pytest.mark.slow
def test_the_tour_of_getting_started_can_be_taken(tmp_path):
    write_starter(tmp_path / "job.py")
    for _ in range(2):
        assert fieldfare(tmp_path, "run", "job.py", "-q", "--rounds", 3).code == 0
    first, second = sorted(path.name for path in (tmp_path / "runs").iterdir() if not path.is_symlink())
    tour = commands(DOCS / "getting-started.md", text=False)
    assert len(tour) == 7
    for _, *words in tour:
        if "RUN" in words:
            at = words.index("RUN")
            words[at : at + 2] = first, second
        done = fieldfare(tmp_path, *words, pictures=True)
        assert done.code == 0, (words, done.err)
    report = (tmp_path / "runs" / "latest" / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*>([^<]*)", report)
    told = re.findall(r"^\| \*(\w+)\* \|", (DOCS / "getting-started.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [word for word in told if word != "Clients"]
    assert {"out.html", "labels.png", "model.npz"} <= {path.name for path in tmp_path.iterdir()}


def test_the_run_folder_page_names_every_file_and_field(tmp_path):
    data = ff.data.synthetic(clients=12, classes=3, features=6, max_examples=60).holdout(0.3)
    watched = ff.Evaluation(clients=6, clients_every=2, fine_tune=1)
    job = ff.Job(
        model=ff.mlp(6, 3), data=data, algorithm=ff.Scaffold(rounds=4, cohort=6), evaluate=watched,
        simulated=ff.Simulated(fleet=ff.fleet.phones(drop_out=0.3)),
    )  # fmt: skip
    (tmp_path / "job.py").write_text("")
    (tmp_path / "claims.toml").write_text("")
    study = ff.Study({"one": job}, claims=tmp_path / "claims.toml")
    run = study.run(tmp_path, progress=False, source=tmp_path / "job.py").path
    page = (DOCS / "run-folder.md").read_text(encoding="utf-8")
    files = {path.name for path in (*run.iterdir(), *(run / "arms" / "one").iterdir())} - {"arms"}
    assert {"clients.jsonl", "evaluation.jsonl", "report.html", "slots", "snapshots"} <= files
    unnamed = {name for name in files if f"`{name}`" not in page and f"`{name}/`" not in page}
    fields = set(json.loads((run / "summary.json").read_text()))
    for name in ("rounds.jsonl", "clients.jsonl", "evaluation.jsonl"):
        for line in (run / name).read_text().splitlines():
            fields |= json.loads(line).keys()
    metrics = r"loss|accuracy|before_loss|before_accuracy|(train|federated|fine_tuned)_\w+"
    unnamed |= {field for field in fields if not re.fullmatch(metrics, field) and f"`{field}`" not in page}
    assert unnamed == set()
    for prefix in ("train_", "federated_", "fine_tuned_before_", "_mean", "_worst_decile"):
        assert any(prefix in field for field in fields)
        assert prefix in page


def test_the_catalogue_and_the_exit_codes_are_on_their_pages():
    algorithms = (DOCS / "algorithms.md").read_text(encoding="utf-8")
    for entry in (*ALGORITHMS, *DECENTRALISED, *OFFLOADING):
        assert f"\n## {entry.name}\n" in algorithms
        assert f"| {entry.name} | `ff.{entry.factory.__name__}` |" in algorithms
        assert entry.paper in algorithms
    cli = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert all(f"| {code} | {text} |" in cli for code, text in EXIT.items())


def test_every_page_is_on_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f"({page.name})" not in index] == ["index.md"]
