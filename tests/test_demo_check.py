"""The demo's check: it passes what is promised and names what lacks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("demo_check", Path(__file__).parent.parent / "scripts" / "demo_check.py")
assert SPEC is not None
assert SPEC.loader is not None
demo_check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo_check)


@pytest.fixture
def folder(tmp_path):
    """What a good demo leaves, as far as it is looked at."""
    arms = ["A", "B", "C"]
    for place in (tmp_path, *(tmp_path / "arms" / arm for arm in arms)):
        place.mkdir(parents=True, exist_ok=True)
        (place / "model.safetensors").write_bytes(bytes(2000))
        (place / "rounds.jsonl").write_text('{"round": 1}\n{"round": 2}\n')
    (tmp_path / "clients.jsonl").write_text('{"round": 1}\n')
    (tmp_path / "report.html").write_text('<a href="#top">up</a>' + '<svg role="img"></svg>' * 6)
    summary = dict.fromkeys(demo_check.SUMMARY, 1)
    summary |= {"final": {"accuracy": 0.93}, "arms": arms, "claims": [{"name": "one", "holds": True}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_a_good_demo_is_told_in_one_line(folder, capsys):
    assert demo_check.main(["", str(folder)]) == 0
    assert capsys.readouterr().out == "demo: all is well (accuracy 0.930, 3 arms, 1 claims hold).\n"


def changed(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "not complete"),
        (lambda folder: (folder / "report.html").unlink(), "report.html is not there"),
        (lambda folder: (folder / "clients.jsonl").unlink(), "clients.jsonl has no line"),
        (lambda folder: (folder / "arms" / "B" / "model.safetensors").unlink(), "B/model.safetensors"),
        (changed("summary.json", "0.93", "0.91"), "accuracy is 0.91"),
        (changed("summary.json", "0.93", "NaN"), "accuracy is nan"),
        (changed("summary.json", '"virtual_s"', '"virtual"'), "lacks virtual_s"),
        (changed("summary.json", "true", "false"), "'one' does not hold"),
        (changed("summary.json", ', "C"', ""), "2 arms"),
        (changed("rounds.jsonl", '{"round": 1}\n', ""), "rounds 1, 2"),
        (changed("report.html", "#top", "https://example.org/x.css"), "from outside"),
        (changed("report.html", "<svg", "<script src='//cdn.example/x.js'></script><svg"), "from outside"),
        (changed("report.html", 'role="img"', ""), "0 plots"),
    ],
)
def test_what_lacks_is_named_and_ends_with_1(folder, capsys, spoil, told):
    spoil(folder)
    assert demo_check.main(["", str(folder)]) == 1
    assert told in capsys.readouterr().err
