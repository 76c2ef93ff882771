"""Small plans for tests of the native core's ops, whose inputs are parameters: so that they have gradients.

Here: the core's builds that run on this machine; a plan around ops whose first value is an embedding of as many symbols
as there are positions in the batch. Not here: any test.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fieldfare.work.native.modules import INTERFACE

Op = tuple[str, list[int], int, list[int], list[int], list[float]]


def padded(c: int) -> int:
    return -(-c // 16) * 16


def build(name: str) -> ModuleType:
    """The build of the core for `name`'s instructions; the test is skipped where it is not there or cannot run."""
    try:
        plain = importlib.import_module("fieldfare.work.native._plain")
        if name != "plain" and name not in plain.features():
            pytest.skip(f"this processor has no {name}")
        module = importlib.import_module(f"fieldfare.work.native._{name}")
    except ImportError:
        pytest.skip(f"the native core is not built for {name}")
    if getattr(module, "interface", None) != INTERFACE:
        pytest.skip(f"the native core for {name} is built from older sources: run scripts/native")
    return module


BUILDS = ("avx512", "avx2", "plain")


@dataclass
class Net:
    """A plan in the making: x `[rows, positions, c]` is value 1 and comes first in the vector, then what is added."""

    rows: int
    positions: int
    c: int
    values: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    params: list[tuple[int, int, bool]] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    index: list[NDArray[np.int64]] = field(default_factory=list)
    size: int = 0

    def __post_init__(self) -> None:
        self.values = [(self.positions, 1, 1, 1, True)]
        self.value(self.positions, self.c)
        table = self.weight((self.rows * self.positions, self.c))
        self.op("embedding", [0], 1, [table], [-1])

    def value(self, positions: int, c: int) -> int:
        self.values.append((positions, 1, c, padded(c), False))
        return len(self.values) - 1

    def weight(self, shape: tuple[int, ...]) -> int:
        """A trained parameter of this shape, its last axis filled up."""
        lanes = np.full((*shape[:-1], padded(shape[-1])), -1, np.int64)
        count = int(np.prod(shape))
        lanes[..., : shape[-1]] = np.arange(self.size, self.size + count).reshape(shape)
        at = sum(p[1] for p in self.params)
        self.params.append((at, lanes.size, True))
        self.index.append(lanes.reshape(-1))
        self.size += count
        return len(self.params) - 1

    def op(
        self,
        kind: str,
        ins: list[int],
        out: int,
        params: list[int] | None = None,
        ints: list[int] | None = None,
        floats: list[float] | None = None,
    ) -> int:
        self.ops.append((kind, ins, out, params or [], ints or [], floats or []))
        return out

    def plan(self, core: ModuleType, loss: str = "mse", output: int | None = None) -> Any:
        last = len(self.values) - 1 if output is None else output
        inputs = [(0, 2, False)]
        index = np.concatenate(self.index)
        none = np.zeros(0, np.float32)
        return core.Plan(self.values, self.params, self.ops, inputs, loss, last, index, none, self.size)

    def tokens(self) -> NDArray[np.int64]:
        return np.arange(self.rows * self.positions, dtype=np.int64).reshape(self.rows, self.positions)

    def outputs(self, plan: Any, vector: NDArray[np.float32], train: bool = True) -> NDArray[np.float32]:
        """What the plan's output is, `[rows, positions * c]`."""
        _, _, c, _, _ = self.values[-1]
        out = np.full((self.rows, self.values[-1][0] * c), np.nan, np.float32)
        plan.forward(vector, [self.tokens()], np.arange(self.rows), train, out)
        return out

    def gradient(
        self, plan: Any, vector: NDArray[np.float32], y: NDArray[Any], key: int = 0, step: int = 0
    ) -> tuple[float, NDArray[np.float32]]:
        """Loss, and its gradient `[P]`, on the whole batch."""
        grad = np.full(self.size, np.nan, np.float32)
        loss = plan.gradient(vector, [self.tokens()], y, np.arange(self.rows), key, step, grad)
        return loss, grad
