"""The command `fieldfare`. Exit codes are stable: see `EXIT`.

Here: commands and how errors are told. Not here: what they do (run, report, data). Standard output is for results
(with `--json`: one JSON object on the last line); progress and errors go to standard error.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import sysconfig
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import click

from fieldfare import __version__
from fieldfare.cli_assess import assess
from fieldfare.cli_fit import fit
from fieldfare.cli_fleet import fleet
from fieldfare.cli_sweep import sweep
from fieldfare.core.errors import PeerError, UsageError

EXIT = {
    0: "done",
    1: "an error of the user's own code (with a traceback from the job file on), or a defect of Fieldfare (with all)",
    2: "bad input: job, data, arguments or a run folder; one line says what to do",
    3: "a client sent something wrong and the job says to stop",
    4: "`fieldfare claims`: a claim that is not preliminary does not hold, or `claims.toml` was changed since the run",
    5: "the disk is full: nothing is lost but the round; free space and `fieldfare resume`",
    6: "a worker process was killed, or ran out of memory: `fieldfare resume` with fewer workers or a smaller chunk",
    7: "a sweep is done but for points that could not be run: the report, and a line each, say why",
    8: "`fieldfare assess decide`: NO-GO, the report says by which number; `drift`: a run outside of its forecast",
    9: "`fieldfare assess decide`: INCOMPLETE; evidence is missing, the report says which",
    130: "interrupted (Ctrl-C or SIGTERM): `fieldfare resume` goes on",
}


class _Commands(click.Group):
    """Commands in the order they are written."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Commands, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.option("--json", "as_json", is_flag=True, help="With --version: one JSON object. Of a command: after its name.")
@click.pass_context
def app(context: click.Context, version: bool, as_json: bool) -> None:
    """Federated learning in the field: simulate a job, compare algorithms, see what it costs."""
    command = context.invoked_subcommand
    if version:
        _print({"version": __version__}, as_json, f"fieldfare {__version__}")
        context.exit()
    if command is None:
        _print({"version": __version__, "commands": list(app.commands)}, as_json, context.get_help())
    elif as_json:
        raise UsageError(f"--json stands before the command: write it after its name, fieldfare {command} ... --json.")


on_ = click.option("--on", metavar="local|ray[://HOST:PORT]", help="Where to compute, to the same bits.")
as_json_ = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on the last line.")
runs_ = click.option("--runs", type=click.Path(path_type=Path), default="runs", help="Where run folders are kept.")
quiet_ = click.option("--quiet", "-q", is_flag=True, help="No progress display.")
name_ = click.option("--job", "name", metavar="NAME", help="Which job of the file.")
which_ = click.argument("which", metavar="[RUN]", default="latest")
job_ = click.argument("job", metavar="JOB.py", type=click.Path(path_type=Path))


@app.command()
@job_
@click.option("--set", "-s", "set_", metavar="KEY=VALUE", multiple=True, help="Override, e.g. training.lr=0.05.")
@click.option("--rounds", type=int, help="Short for --set algorithm.rounds=N.")
@click.option("--seed", type=int, help="Short for --set seed=N.")
@click.option("--workers", type=int, help="Worker processes (default: as many as cores).")
@click.option(
    "--quick", is_flag=True, help="Of a study its quick form: few seeds, claims that ask for more preliminary."
)
@on_
@name_
@runs_
@quiet_
@as_json_
def run(
    job: Path, set_: tuple[str, ...], rounds: int | None, seed: int | None, workers: int | None, quick: bool,
    on: str | None, name: str | None, runs: Path, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Simulate a job (or a study) and write runs/<id>/ with model, metrics and report."""
    from fieldfare.load import load_job
    from fieldfare.study import Study

    changes = _changes(set_, rounds=rounds, seed=seed, workers=workers, on=on, quick=quick or None)
    loaded = load_job(job, name)
    if quick and not isinstance(loaded, Study):
        raise UsageError(f"--quick: {job} makes no study; shorten a job with --rounds.")
    if changes:
        loaded = loaded.with_overrides(changes)
    progress = False if quiet else None
    result = loaded.run(runs, progress=progress, source=job, overrides=changes, job_name=name)
    _show_result(result.summary, result.path, as_json)


app.add_command(sweep)


@app.command()
@which_
@on_
@runs_
@quiet_
@as_json_
def resume(which: str, on: str | None, runs: Path, quiet: bool, as_json: bool) -> None:
    """Go on with a run that was stopped or killed; it ends with the same bits."""
    from fieldfare.resume import resume_run
    from fieldfare.store.runs import RunFolder

    folder = RunFolder.find(which, runs)
    if folder.complete:
        click.echo(f"the run {folder.id} is already complete: there is nothing to go on with", err=True)
    result = resume_run(which, runs, progress=False if quiet else None, on=on)
    _show_result(result.summary, result.path, as_json)


@app.command()
@which_
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Where to write it (default: in the run folder).")
@runs_
@as_json_
def report(which: str, out: Path | None, runs: Path, as_json: bool) -> None:
    """Write the HTML report of a run again."""
    from fieldfare.report.html import write_report
    from fieldfare.report.read_tasks import facts_of_run
    from fieldfare.store.runs import RunFolder

    run = RunFolder.find(which, runs).path
    path = write_report(run, out)
    work = facts_of_run(run) if as_json else None
    _print({"report": str(path), **({} if work is None else {"work": work})}, as_json, str(path))


@app.command()
@click.argument("which", metavar="RUN RUN...", nargs=-1)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default="comparison.html",
    show_default=True,
    help="Where to write it.",
)
@runs_
@as_json_
def compare(which: tuple[str, ...], out: Path, runs: Path, as_json: bool) -> None:
    """Lay runs over each other: one report, aligned curves."""
    from fieldfare.report.arms import names_of
    from fieldfare.report.html import write_comparison
    from fieldfare.store.runs import RunFolder

    if len(which) < 2:
        raise UsageError(f"compare got {len(which)} run: name at least two.")
    folders = [RunFolder.find(one, runs) for one in which]
    path = write_comparison([folder.path for folder in folders], out)
    named = dict(zip(names_of([folder.path for folder in folders]), folders, strict=True))
    finals = {name: one.read_json("summary.json")["final"] for name, one in named.items() if one.complete}
    incomplete = [name for name, one in named.items() if not one.complete]
    if as_json:
        _print({"report": str(path), "final": finals, "incomplete": incomplete}, True, "")
        return
    from fieldfare.show import finals_table

    finals_table(finals)
    for name in incomplete:
        whole = named[name].path if "/" in name else name
        print(f"{name} is incomplete: `fieldfare resume {whole}` goes on with it")
    print(path)


@app.command()
@click.argument("which", metavar="[RUN|JOB.py]", default="latest")
@name_
@runs_
@as_json_
def inspect(which: str, name: str | None, runs: Path, as_json: bool) -> None:
    """Say what a run was, how far it came, and how its model is computed; or the same of a job file."""
    from fieldfare.show import inspect_job, inspect_run, show_tree

    facts = inspect_job(which, name) if which.endswith(".py") else inspect_run(which, runs)
    _print(facts, True, "") if as_json else show_tree(facts)


@app.group(cls=_Commands)
def data() -> None:
    """Look at federated data."""


@data.command("describe")
@job_
@click.option("--picture", type=click.Path(path_type=Path), help="Write the label map here (PNG or SVG).")
@name_
@as_json_
def data_describe(job: Path, picture: Path | None, name: str | None, as_json: bool) -> None:
    """Statistics and picture of a federation: sizes, Gini, label skew, effective clients."""
    from fieldfare.config import describe_data
    from fieldfare.show import data_of, draw_partition, show_data

    facts = describe_data(data_of(job, name))
    if picture is not None:
        draw_partition(facts, picture)
        facts["picture"] = str(picture)
    _print(facts, True, "") if as_json else show_data(facts)


app.add_command(fleet)
app.add_command(fit)
app.add_command(assess)


@app.command()
@as_json_
def algorithms(as_json: bool) -> None:
    """The catalogue of algorithms: one line and the paper each."""
    from fieldfare.algorithms.catalogue import ALGORITHMS, DECENTRALISED, OFFLOADING
    from fieldfare.show import catalogue

    catalogue("algorithms", (*ALGORITHMS, *DECENTRALISED, *OFFLOADING), as_json)


@app.command()
@as_json_
def partitioners(as_json: bool) -> None:
    """The catalogue of partitioners: one line and the paper each."""
    from fieldfare.data import PARTITIONERS
    from fieldfare.show import catalogue

    catalogue("partitioners", PARTITIONERS, as_json)


@app.command()
@click.argument("path", metavar="[JOB.py]", type=click.Path(path_type=Path), default="job.py")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@as_json_
def new(path: Path, force: bool, as_json: bool) -> None:
    """Write a commented starter job that runs offline."""
    from fieldfare.starter import write_starter

    write_starter(path, force)
    _print({"job": str(path)}, as_json, f"{path} written; run it with: fieldfare run {path}")


@app.command()
@which_
@runs_
@as_json_
def claims(which: str, runs: Path, as_json: bool) -> None:
    """Recompute a study's claims from its stored tables; exit code 4 if one is false or claims.toml was changed."""
    from fieldfare.report.claims import claims_changed, compute_claims
    from fieldfare.show import show_claims
    from fieldfare.store.runs import RunFolder

    folder = RunFolder.find(which, runs)
    found, changed = compute_claims(folder.path), claims_changed(folder.path)
    if as_json:
        _print({"run": folder.id, "claims": found, "changed": changed}, True, "")
    else:
        show_claims(found)
        if changed is not None:
            click.echo(changed, err=True)
    if changed is not None or not all(claim["holds"] or claim.get("preliminary") for claim in found):
        raise click.exceptions.Exit(4)


@app.command()
@which_
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default="model.safetensors",
    show_default=True,
    help="*.safetensors or *.npz",
)
@runs_
@as_json_
def export(which: str, runs: Path, out: Path, as_json: bool) -> None:
    """Write a run's final model as a file of its own."""
    from fieldfare.resume import export_model

    _print(export_model(which, runs, out), as_json, str(out))


@app.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@as_json_
def completion(shell: str, as_json: bool) -> None:
    """Print the shell's completion script: eval "$(fieldfare completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(app, {}, "fieldfare", "_FIELDFARE_COMPLETE").source()
    _print({"shell": shell, "script": script}, as_json, script)


def _changes(pairs: tuple[str, ...], **short: Any) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r}: write KEY=VALUE, for example --set training.lr=0.05.")
        changes[key] = value
    return changes | {key: value for key, value in short.items() if value is not None}


def _show_result(summary: Any, path: Path | None, as_json: bool) -> None:
    if as_json:
        _print(dict(summary), True, "")  # the object of summary.json: `report` stays relative to the run folder
    elif summary.get("sweep"):
        from fieldfare.cli_sweep import show_sweep
        from fieldfare.store.lines import read_lines

        show_sweep([] if path is None else read_lines(path / summary["table"]), summary, path)
    else:
        from fieldfare.show import show_summary

        show_summary(summary, path)
    if summary.get("sweep"):
        from fieldfare.cli_sweep import refuse_failed

        refuse_failed(summary)


def _print(value: Any, as_json: bool, text: str) -> None:
    if not as_json:
        print(text)
        return
    from fieldfare.store.text import dumps

    print(dumps(value).decode())


def main() -> None:
    """Entry point: runs the command and tells errors in one line; only a defect shows a traceback."""
    as_json = "--json" in sys.argv
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = cast(Any, app(standalone_mode=False))
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, click.Abort):
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
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    if show is not None:
        return _fail(str(show()), getattr(error, "exit_code", 2), as_json)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _fail(f"the disk is full ({error}): free some space and `fieldfare resume`", 5, as_json)
    if isinstance(
        error, FileNotFoundError | PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError
    ):
        return _fail(f"{error.filename}: {error.strerror}; check the path.", 2, as_json)
    if type(error).__name__ == "WorkerDied":
        return _fail(str(error), 6, as_json)
    import traceback

    traceback.print_exception(type(error), error, _from_users_code(error.__traceback__) or error.__traceback__)
    return _fail(f"{type(error).__name__}: {error}", 1, as_json) if as_json else 1


def _from_users_code(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback from the user's own file on; None where no file of the user's took part."""
    folders = (str(Path(__file__).parent), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
    known = (*(folder + os.sep for folder in folders), "<")
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(known) and Path(file).resolve() != Path(sys.argv[0]).resolve():
            return trace
        trace = trace.tb_next
    return None


def _fail(message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": line, "exit_code": code}))
    return code


if __name__ == "__main__":
    main()
