"""Drives the command line for tests: in this process (quick), or as a program of its own (signals, limits, terminals).

Pictures are left out of reports unless a test asks for them: they cost a second each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

HELLO = """
import fieldfare as ff

job = ff.Job(
    data=ff.data.synthetic(clients=12, classes=3, features=6, max_examples=60, seed=1).holdout(0.3),
    model=ff.mlp(6, 5, 3),
    algorithm=ff.FedAvg(rounds=4, cohort=4),
    training=ff.Training(lr=0.1, batch_size=5),
    seed=3,
)

if __name__ == "__main__":
    print(dict(job.run(progress=False).final))
"""

EXTRAS = ("sklearn", "matplotlib", "torch", "jax", "jaxlib", "optax", "xgboost", "pyarrow", "PIL", "datasets", "pandas",
          "scipy", "tensorboardX", "mlflow", "ray", "duckdb", "fsspec", "prometheus_client",
          "dp_accounting")  # fmt: skip


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object on the last line of standard output."""
        found = json.loads(self.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    def refused(self, *words: str, code: int = 2) -> str:
        """The one line of an error: checks the code, that nothing else was said, and that it holds `words`."""
        assert self.code == code, (self.code, self.out, self.err)
        assert "Traceback" not in self.err
        line = self.err.strip("\n")  # an interrupt leaves the terminal's ^C on a line of its own
        assert line.startswith("error: ")
        assert "\n" not in line
        for word in words:
            assert word in self.err, self.err
        return self.err


def job_file(folder: Path, text: str = HELLO, name: str = "hello.py") -> Path:
    """Write a job file."""
    file = folder / name
    file.write_text(text)
    return file


def fieldfare(folder: Path, *args: Any, pictures: bool = False) -> Done:
    """Run `fieldfare ARGS` in this process, in `folder`."""
    from fieldfare.cli import main

    out, err = io.StringIO(), io.StringIO()
    argv = ["fieldfare", *map(str, args)]
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "path", list(sys.path)),
        contextlib.nullcontext() if pictures else without("matplotlib"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
    return Done(code or 0, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def without(*libraries: str) -> Iterator[None]:
    """Inside, the libraries cannot be imported, nor what of them was imported before."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in libraries}
    sys.modules.update(dict.fromkeys([*libraries, *before]))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in [*libraries, *before]:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def environment(folder: Path, absent: Sequence[str] = ("matplotlib",), **more: str) -> dict[str, str]:
    """An environment in which the libraries `absent` cannot be imported."""
    site = folder / "absent"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({list(absent)!r}))\n")
    before = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{before}", "COLUMNS": "200", **more}


PROGRAM = (str(Path(sys.executable).with_name("fieldfare")),)


def program(folder: Path, *args: Any, env: dict[str, str] | None = None) -> Done:
    """Run `fieldfare ARGS` as a program of its own, in `folder`."""
    done = subprocess.run(
        [*PROGRAM, *map(str, args)], cwd=folder, env=env or environment(folder), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)
