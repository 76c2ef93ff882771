"""The core on 64-bit ARM: cross-compiled and emulated here, against the plain build of this machine.

Needs a cross compiler and an emulator of user programs (Debian: g++-aarch64-linux-gnu, qemu-user-static).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.work.native.modules import core
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(core() is None, reason="the compiled core is not built here")]

from native_models import any_net, planned  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
SIZES = [3, 0, 4, 1, 4]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None or EMULATOR is None:
        pytest.skip("there is no cross compiler for aarch64, or no emulator: see above")
    made = tmp_path_factory.mktemp("arm") / "alone"
    sources = [ROOT / "tests" / "native_alone.cpp", ROOT / "native" / "plan.cpp", ROOT / "native" / "train.cpp"]
    flags = ["-std=c++17", "-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native'}"]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"]
    done = subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(made)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made


def bits(values: Any) -> str:
    """Floats or doubles as whole numbers, after how many there are."""
    array = np.ascontiguousarray(values)
    seen = array.reshape(-1).view({4: np.uint32, 8: np.int64}[array.dtype.itemsize])
    return f"{len(seen)} {' '.join(map(str, seen.tolist()))}"


def whole(values: Any) -> str:
    flat = np.asarray(values).reshape(-1).tolist()
    return f"{len(flat)} {' '.join(str(int(one)) for one in flat)}"


def listed(some: Any, say: Any) -> str:
    return f"{len(some)} " + " ".join(say(one) for one in some)


def column(array: Any) -> str:
    labels = array.dtype.kind in "iub"
    told = whole(array) if labels else bits(array.astype(np.float32))
    return f"{int(labels)} {len(array)} {int(np.prod(array.shape[1:]))} {told}"


def plan_text(plan: Any) -> str:
    values, params, ops, inputs, loss, output, index, constants, size = plan.arguments()
    plain = lambda one: " ".join(str(int(part)) for part in one)  # noqa: E731

    def op(one: Any) -> str:
        kind, ins, out, some, ints, floats = one
        return f"{kind} {whole(ins)} {out} {whole(some)} {whole(ints)} {bits(np.array(floats, np.float64))}"

    parts = [listed(values, plain), listed(params, plain), listed(ops, op), listed(inputs, plain), loss, str(output)]
    return "\n".join([*parts, whole(index), bits(np.asarray(constants, np.float32)), str(size)])


MODELS = (
    "W3", "W4", "vgg5 groups", "vgg5 batch", "resnet groups", "gru, time first", "gpt-like positions", "functional",
    "depthwise", "gates", "scales and shifts", "frozen", "a layer used twice", "convolution of a sequence",
)  # fmt: skip
TRAININGS = {"sgd": Training(lr=0.05), "momentum": Training(lr=0.02, momentum=0.9),
             "adam": Training(lr=0.01, optimizer="adam")}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", TRAININGS)
def test_an_arm_processor_trains_what_this_one_does_within_rounding(program: Path, name: str, kind: str) -> None:
    if kind != "sgd" and MODELS.index(name) % 4:
        pytest.skip("optimisers are the same for every model")
    net, columns = any_net(name)
    plan, training = planned(net), TRAININGS[kind]
    columns = {key: np.concatenate([rows, rows[:2], rows]) for key, rows in columns.items()}
    offsets = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)
    data = Block(columns, np.arange(offsets[-1]) % len(columns["y"]), offsets)
    many = Training(**{**vars_of(training), "batch_size": 2, "epochs": 2})
    keys = np.arange(len(SIZES), dtype=np.uint64) + np.uint64(77)
    made = make_plan(data, rng.keys(0, ("t",), np.arange(len(SIZES))), many)
    start = net.init(0).vector
    x = [columns[name] for name in net.x]
    text = [
        plan_text(plan), bits(start), listed(x, column), column(columns[net.y]), whole(made.rows), whole(made.start),
        whole(made.steps), whole(made.per_epoch), "2", bits(np.array([many.lr])).split()[1],
        bits(np.array([many.momentum])).split()[1], str(int(many.optimizer == "adam")),
    ]  # fmt: skip
    ends = []
    for threads in (1, 3):
        done = subprocess.run(
            [str(EMULATOR), str(program)], input="\n".join([*text, str(threads)]), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        ends.append(done.stdout)
    assert ends[0] == ends[1]
    lines = ends[0].split()
    rows = np.array(lines[: -len(SIZES)], np.uint32).view(np.float32).reshape(len(SIZES), -1)
    losses = np.array(lines[-len(SIZES) :], float)
    here = net.native.fit(
        start[None], np.zeros(len(SIZES), np.int64), data, made, keys, many, many.lr, Drift()
    )  # fmt: skip
    # Adam divides by the size of a gradient, however small: there rounding counts for more
    np.testing.assert_allclose(rows, here.params, rtol=1e-3, atol=2e-5 if kind != "adam" else 3e-4)
    np.testing.assert_allclose(losses, here.loss, rtol=1e-4, atol=1e-6)
    assert np.abs(here.params - start).max() > 1e-4


def vars_of(training: Training) -> dict[str, Any]:
    return {"lr": training.lr, "momentum": training.momentum, "optimizer": training.optimizer}
