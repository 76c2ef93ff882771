"""Every example runs as a user would run it, offline, and ends with the numbers stored beside it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDS = {
    "torch_cnn": ("torch", "sklearn"),
    "jax_mlp": ("jax", "optax", "sklearn"),
    "sklearn_sgd": ("sklearn",),
    "xgboost_bagging": ("xgboost", "sklearn"),
    "flower_client": ("sklearn",),
    "tensorboard_logging": ("tensorboardX", "sklearn"),
    "mlflow_tracking": ("mlflow", "sklearn"),
}
LOOSE = {"torch_cnn": 0.05, "jax_mlp": 0.05, "xgboost_bagging": 0.05, "sklearn_sgd": 0.02, "flower_client": 0.02}
QUICK = ("hello", "own_work")
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def case(name: str):
    return pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])


@pytest.mark.parametrize("name", [case(name) for name in NAMES])
def test_an_example_ends_with_its_stored_numbers(name, tmp_path):
    for library in NEEDS.get(name, ("sklearn",)):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{name} needs {library}, which is not installed")
    command = [sys.executable, "-m", "fieldfare.cli", "run", str(EXAMPLES / f"{name}.py"), "-q", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "Agg"})
    assert done.returncode == 0, done.stderr
    final = json.loads(done.stdout.splitlines()[-1])["final"]
    stored = EXAMPLES / "expected" / f"{name}.json"
    if os.environ.get("FIELDFARE_EXPECTED") == "write":
        stored.parent.mkdir(exist_ok=True)
        kept = {k: round(v, 6) for k, v in final.items() if k in ("accuracy", "loss")}
        stored.write_text(json.dumps(kept, indent=1) + "\n")
    expected = json.loads(stored.read_text())
    assert expected
    for metric, value in expected.items():
        assert final[metric] == pytest.approx(value, abs=LOOSE.get(name, 2e-4)), metric


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_one_short_file(name):
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (12 if name == "hello" else 60)


def test_every_example_has_stored_numbers():
    assert sorted(path.stem for path in (EXAMPLES / "expected").glob("*.json")) == NAMES
