"""The command `fieldfare`. Exit codes are stable: see `EXIT`.

Here: commands and how errors are told. Not here: what they do (run, report, data). Standard output is for results
(with `--json`: one JSON object on the last line); progress and errors go to standard error.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldfare import __version__
from fieldfare.core.errors import PeerError, UsageError

EXIT = {
    0: "done",
    1: "a defect of Fieldfare or of the user's own code (with a traceback)",
    2: "bad input: job, data, arguments or a run folder; one line says what to do",
    3: "a client sent something wrong and the job says to stop",
    4: "a claim does not hold",
    5: "the disk is full: nothing is lost but the round; free space and `fieldfare resume`",
    130: "interrupted: `fieldfare resume` goes on",
}

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Federated learning in the field: simulate a job, compare algorithms, see what it costs.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Look at federated data.")
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on the last line.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where run folders are kept.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override, e.g. training.lr=0.05."),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fieldfare {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    job: Annotated[Path, typer.Argument(help="A Python file that makes a fieldfare.Job called job.")],
    set_: Set = None,
    rounds: Annotated[int | None, typer.Option(help="Short for --set algorithm.rounds=N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set seed=N.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes (default: as many as cores).")] = None,
    name: Annotated[str | None, typer.Option("--job", help="Which job of the file.")] = None,
    runs: Runs = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
    as_json: Json = False,
) -> None:
    """Simulate a job (or a study) and write runs/<id>/ with model, metrics and report."""
    from fieldfare.load import load_job

    changes = _changes(set_, rounds=rounds, seed=seed, workers=workers)
    loaded = load_job(job, name)
    if changes:
        loaded = loaded.with_overrides(changes)
    progress = False if quiet else None
    result = loaded.run(runs, progress=progress, source=job, overrides=changes, job_name=name)
    _show_result(result.summary, result.path, as_json)


@app.command()
def resume(
    which: Annotated[str, typer.Argument(metavar="RUN", help="Folder or id of the run.")] = "latest",
    runs: Runs = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed; it ends with the same bits."""
    from fieldfare.resume import resume_run

    result = resume_run(which, runs, progress=False if quiet else None)
    _show_result(result.summary, result.path, as_json)


@app.command()
def report(
    which: Annotated[str, typer.Argument(metavar="RUN")] = "latest",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: in the run folder.")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Write the HTML report of a run again."""
    from fieldfare.report.html import write_report
    from fieldfare.store.runs import RunFolder

    path = write_report(RunFolder.find(which, runs).path, out)
    _print({"report": str(path)}, as_json, str(path))


@app.command()
def compare(
    which: Annotated[list[str], typer.Argument(metavar="RUN RUN...")],
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("comparison.html"),
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Lay runs over each other: one report, aligned curves."""
    from fieldfare.report.html import write_comparison
    from fieldfare.store.runs import RunFolder

    if len(which) < 2:
        raise UsageError(f"compare got {len(which)} run: name at least two.")
    folders = [RunFolder.find(one, runs) for one in which]
    path = write_comparison([folder.path for folder in folders], out)
    finals = {folder.id: folder.read_json("summary.json")["final"] for folder in folders if folder.complete}
    if as_json:
        _print({"report": str(path), "final": finals}, True, "")
        return
    from fieldfare.show import finals_table

    finals_table(finals)
    print(path)


@app.command()
def inspect(
    which: Annotated[str, typer.Argument(metavar="RUN|JOB.py", help="A run, or a job file.")] = "latest",
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Say what a run was, how far it came, and how its model is computed; or the same of a job file."""
    from fieldfare.show import inspect_job, inspect_run, show_tree

    facts = inspect_job(which) if which.endswith(".py") else inspect_run(which, runs)
    _print(facts, True, "") if as_json else show_tree(facts)


@data_app.command("describe")
def data_describe(
    job: Annotated[Path, typer.Argument(help="A job file: its data is described.")],
    picture: Annotated[Path | None, typer.Option(help="Write the label map here (PNG or SVG).")] = None,
    name: Annotated[str | None, typer.Option("--job", help="Which job of the file.")] = None,
    as_json: Json = False,
) -> None:
    """Statistics and picture of a federation: sizes, Gini, label skew, effective clients."""
    from fieldfare.config import describe_data
    from fieldfare.show import data_of, draw_partition, show_data

    facts = describe_data(data_of(job, name))
    if picture is not None:
        draw_partition(facts, picture)
    _print(facts, True, "") if as_json else show_data(facts)


@app.command()
def algorithms(as_json: Json = False) -> None:
    """The catalogue of algorithms: one line and the paper each."""
    from fieldfare.algorithms.catalogue import ALGORITHMS
    from fieldfare.show import catalogue

    catalogue("algorithms", ALGORITHMS, as_json)


@app.command()
def partitioners(as_json: Json = False) -> None:
    """The catalogue of partitioners: one line and the paper each."""
    from fieldfare.data import PARTITIONERS
    from fieldfare.show import catalogue

    catalogue("partitioners", PARTITIONERS, as_json)


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("job.py"),
    force: Annotated[bool, typer.Option(help="Overwrite a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented starter job that runs offline."""
    from fieldfare.starter import write_starter

    write_starter(path, force)
    _print({"job": str(path)}, as_json, f"{path} written; run it with: fieldfare run {path}")


@app.command()
def claims(
    which: Annotated[str, typer.Argument(metavar="RUN")] = "latest", runs: Runs = Path("runs"), as_json: Json = False
) -> None:
    """Recompute a study's claims from its stored tables; exit code 4 if one does not hold."""
    from fieldfare.report.claims import compute_claims
    from fieldfare.show import show_claims
    from fieldfare.store.runs import RunFolder

    folder = RunFolder.find(which, runs)
    found = compute_claims(folder.path)
    if as_json:
        _print({"run": folder.id, "claims": found}, True, "")
    else:
        show_claims(found)
    if not all(claim["holds"] for claim in found):
        raise typer.Exit(4)


@app.command()
def export(
    which: Annotated[str, typer.Argument(metavar="RUN")] = "latest",
    out: Annotated[Path, typer.Option("--out", "-o", help="*.safetensors or *.npz")] = Path("model.safetensors"),
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Write a run's final model (or its newest snapshot's) as a file of its own."""
    from fieldfare.resume import export_model

    _print(export_model(which, runs, out), as_json, str(out))


def _changes(pairs: list[str] | None, **short: Any) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r}: write KEY=VALUE, for example --set training.lr=0.05.")
        changes[key] = value
    return changes | {key: value for key, value in short.items() if value is not None}


def _show_result(summary: Any, path: Path | None, as_json: bool) -> None:
    if as_json:
        _print({**summary, "report": str(path / summary["report"]) if path else ""}, True, "")
        return
    from fieldfare.show import show_summary

    show_summary(summary, path)


def _print(value: Any, as_json: bool, text: str) -> None:
    if not as_json:
        print(text)
        return
    from fieldfare.store.text import dumps

    print(dumps(value).decode())


def main() -> None:
    """Entry point: runs the command and tells errors in one line; only a defect shows a traceback."""
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except UsageError as error:
        code = _fail(str(error), 5 if type(error).__name__ == "DiskFull" else 2, as_json)
    except PeerError as error:
        code = _fail(str(error), 3, as_json)
    except BrokenPipeError:
        code = 1
        sys.stdout = None  # nobody reads it any more: nothing to flush at exit
    except Exception as error:
        code = _other(error, as_json)
    sys.exit(_interrupted(as_json) if code == 130 else code if isinstance(code, int) else 0)


def _interrupted(as_json: bool) -> int:
    return _fail("interrupted: `fieldfare resume` goes on from the last snapshot", 130, as_json)


def _other(error: Exception, as_json: bool) -> int:
    """What the command line's parser refused, in one line; any other error with its traceback."""
    show = getattr(error, "format_message", None)
    if show is not None:
        message = str(show())
        return _fail(message, getattr(error, "exit_code", 2), as_json) if message.strip() else 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _fail(f"the disk is full ({error}): free some space and `fieldfare resume`", 5, as_json)
    if isinstance(
        error, FileNotFoundError | PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError
    ):
        return _fail(f"{error.filename}: {error.strerror}; check the path.", 2, as_json)
    if type(error).__name__ == "WorkerDied":
        return _fail(str(error), 1, as_json)
    import traceback

    traceback.print_exception(error)
    return _fail(f"{type(error).__name__}: {error}", 1, as_json) if as_json else 1


def _fail(message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": line, "exit_code": code}))
    return code


if __name__ == "__main__":
    main()
