"""The snippets of docs/data.md run, and print what they say they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"


def test_the_snippets_of_the_page_print_what_they_say(monkeypatch, tmp_path, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) >= 7
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
        told = [line[2:] for line in snippet.splitlines() if line.startswith("# ")]
        assert capsys.readouterr().out.splitlines() == told
