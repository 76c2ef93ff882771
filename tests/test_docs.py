"""The documentation holds: its snippets run and print what they say, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
RUN = ("getting-started.md", "own-algorithm.md", "own-work.md")


@pytest.mark.parametrize("name", RUN)
def test_the_snippets_of_a_page_print_what_they_say(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    vars(sys.modules["page"]).update(names)
    names = vars(sys.modules["page"])
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, name, "exec"), names)
        told = [line[2:] for line in snippet.splitlines() if line.startswith("# ")]
        assert capsys.readouterr().out.splitlines() == told


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
    text = (ROOT / "docs" / "own-algorithm.md").read_text(encoding="utf-8")
    first = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    reducer = first[first.index("@dataclass") : first.index("\ndata = ")].strip().splitlines()
    assert len(reducer) <= 40


def test_the_generated_pages_are_in_step_with_the_code():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "cli_reference.py", "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
