"""The Python snippets of a documentation page, run in order in one namespace.

A line `# text` at the left margin of a snippet is what the snippet prints; all that it prints must be said.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"


def snippets(page: Path) -> list[str]:
    """The blocks marked as Python."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_snippets(page: Path, monkeypatch: Any, folder: Path, capsys: Any) -> int:
    """Run the snippets of `page` in `folder`, check what they print, and say how many there were."""
    monkeypatch.chdir(folder)
    module = type(sys)("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where the page's own classes are looked up
    found = snippets(page)
    for snippet in found:
        exec(compile(snippet, str(page), "exec"), vars(module))
        told = [line[2:] for line in snippet.splitlines() if line.startswith("# ")]
        assert capsys.readouterr().out.splitlines() == told
    return len(found)
