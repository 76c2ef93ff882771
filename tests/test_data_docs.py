"""The snippets of docs/data.md run, and print what they say they print."""

from __future__ import annotations

import pytest
from snippets import DOCS, run_snippets


def test_the_snippets_of_the_page_print_what_they_say(monkeypatch, tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert run_snippets(DOCS / "data.md", monkeypatch, tmp_path, capsys) >= 7
