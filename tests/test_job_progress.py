"""What a person sees while a run goes on, on every kind of stream that standard error may be."""

from __future__ import annotations

import io
import sys

import pytest
from command_line import fieldfare

import fieldfare as ff
from fieldfare.progress import Lines, Live, Quiet, display, duration, facts_of

ROW = {"round": 1, "accuracy": 0.5, "loss": 1.25, "train_loss": 2.0, "virtual_s": 90.0, "clients": 4}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Notebook:
    """A stream that can only write, as some notebooks and services have."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.fixture
def job():
    data = ff.data.synthetic(clients=6, classes=3, features=4, max_examples=60, seed=1)
    return ff.Job(model=ff.mlp(4, 3), data=data, algorithm=ff.FedAvg(rounds=3, cohort=2), name="[/red] my job")


@pytest.mark.parametrize(
    ("stream", "progress", "kind"),
    [
        (io.StringIO(), None, Lines),
        (io.StringIO(), True, Lines),
        (io.StringIO(), False, Quiet),
        (Terminal(), None, Live),
        (Terminal(), True, Live),
        (Terminal(), False, Quiet),
        (Notebook(), None, Lines),
        (None, False, Quiet),
    ],
)
def test_the_display_fits_the_stream(monkeypatch, job, stream, progress, kind):
    monkeypatch.setattr(sys, "stderr", stream)
    assert type(display(job, progress)) is kind


def test_in_a_notebook_plain_lines_appear(monkeypatch, job):
    seen = Notebook()
    monkeypatch.setattr(sys, "stderr", seen)
    job.run(runs=None)
    assert "round 3/3" in seen.text
    assert "\x1b" not in seen.text


def test_a_closed_stream_is_no_terminal(monkeypatch, job):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert type(display(job, None)) is Lines


def test_on_a_terminal_a_bar_with_the_newest_figures(monkeypatch, job):
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    job.run(runs=None)
    assert "[/red] my job" in seen.getvalue()
    assert "3/3" in seen.getvalue()
    assert "accuracy" in seen.getvalue()


def test_a_live_display_is_taken_down_when_the_run_fails(monkeypatch, job):
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    monkeypatch.setenv("TERM", "xterm")

    def fail(row):
        raise ValueError

    with pytest.raises(ValueError):
        ff.Job(**{**vars(job), "callbacks": (fail,)}).run(runs=None)
    assert seen.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_notes_with_brackets_are_shown_as_they_are(monkeypatch, job):
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    monkeypatch.setenv("TERM", "xterm")
    with display(job, None) as shown:
        shown.note("client [/x]: [bold]")
        shown.doing("[/y]")
        shown.resumed(2)
        shown.row(ROW)
    assert "client [/x]: [bold]" in seen.getvalue()
    assert "[/y]" in seen.getvalue()


def test_quiet_tells_notes_only(capsys):
    with Quiet() as shown:
        shown.row(ROW)
        shown.doing("writing")
        shown.resumed(3)
        assert capsys.readouterr() == ("", "")
        shown.note("client 3 sent nonsense")
    assert capsys.readouterr() == ("", "client 3 sent nonsense\n")


def test_lines_are_few_and_always_tell_the_first_and_the_last(capsys):
    shown = Lines(100, every_s=1e9)
    shown.resumed(0)
    for round_ in range(1, 101):
        shown.row({**ROW, "round": round_})
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told[1:]] == ["1/100", "100/100"]
    assert told[0] == "going on after round 0"


def test_the_figures_are_the_central_ones_or_else_the_training_loss():
    assert facts_of(ROW, 1234.5) == {"accuracy": "0.500", "loss": "1.250", "clients/s": "1,234", "virtual": "1.5 min"}
    assert facts_of({"train_loss": 2.0}, 0.0)["loss"] == "2.000"
    assert duration(90_000) == "1.0 d"


def test_a_run_whose_number_of_rounds_is_unknown_is_shown_too(monkeypatch, capsys):
    seen = Terminal()
    shown = Lines(None)
    shown.row(ROW)
    assert "round 1  accuracy" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", seen)
    with Live(None, "endless") as live:
        live.row(ROW)
    assert "endless" in seen.getvalue()


def test_facts_with_brackets_are_printed_as_they_are(tmp_path):
    text = "import fieldfare as ff\nd = ff.data.synthetic(clients=6, classes=3, features=4, max_examples=60)\n"
    text += "job = ff.Job(model=ff.mlp(4, 3), data=d, algorithm=ff.FedAvg(rounds=1, cohort=2), name='[/x] [red]n')\n"
    (tmp_path / "job.py").write_text(text)
    told = fieldfare(tmp_path, "inspect", "job.py")
    assert told.code == 0, told.err
    assert "[/x] [red]n" in told.out
    assert fieldfare(tmp_path, "run", "job.py", "-q").code == 0
    assert "[/x] [red]n" in fieldfare(tmp_path, "inspect").out
