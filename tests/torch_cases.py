"""Small modules of many kinds, ragged clients for them, and the loop a user would write by hand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.work.net import Drift, Fit, Plan, Training
from fieldfare.work.plan import make_plan

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional


class CharLSTM(nn.Module):
    """Symbols `[B, T]` to logits `[B, T, C]`."""

    def __init__(self, symbols: int = 11) -> None:
        super().__init__()
        self.emb = nn.Embedding(symbols, 4)
        self.lstm = nn.LSTM(4, 8, 2, batch_first=True, dropout=0.2)
        self.out = nn.Linear(8, symbols)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(self.emb(x))[0])


class Viewer(nn.Module):
    """Calls `view` behind a convolution, which memory in channels-last order does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.out = nn.Linear(3 * 36, 5)

    def forward(self, x: Any) -> Any:
        h = torch.relu(self.conv(x))
        return self.out(h.view(h.size(0), -1))


class Tied(nn.Module):
    """One weight as embedding and as output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x: Any) -> Any:
        return self.out(torch.tanh(self.emb(x)))


def module(kind: str) -> Any:
    torch.manual_seed(7)
    match kind:
        case "linear":
            return nn.Linear(12, 5)
        case "mlp":
            return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7, bias=False), nn.Tanh(), nn.Linear(7, 5))
        case "dropout":
            return nn.Sequential(nn.Linear(12, 9), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(9, 5))
        case "layer_norm":
            return nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5))
        case "cnn":
            return nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                nn.Dropout(0.2), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5),
            )  # fmt: skip
        case "group_norm":
            return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        case "viewer":
            return Viewer()
        case "lstm":
            return CharLSTM()
        case "tied":
            return Tied()
    raise AssertionError(kind)


KINDS = ("linear", "mlp", "dropout", "layer_norm", "cnn", "group_norm", "viewer", "lstm", "tied")
NO_CHANCE = tuple(kind for kind in KINDS if kind not in ("dropout", "cnn", "lstm"))


def columns(kind: str, rows: int = 60) -> dict[str, Any]:
    r = np.random.default_rng(3)
    if kind in ("lstm", "tied"):
        t = r.integers(0, 11, (rows, 7))
        return {"x": t[:, :-1].copy(), "y": t[:, 1:].copy()}
    shape = (1, 8, 8) if kind in ("cnn", "group_norm", "viewer") else (12,)
    return {"x": r.standard_normal((rows, *shape), dtype=np.float32), "y": r.integers(0, 5, rows)}


SIZES = np.array([7, 1, 20, 0, 13])


@dataclass(frozen=True)
class Case:
    """Clients of `SIZES` on their data, with their keys and a plan."""

    data: Block
    keys: Any
    plan: Plan
    training: Training

    def part(self, a: int, b: int) -> Case:
        data, keys = self.data.part(a, b), self.keys[a:b]
        return Case(data, keys, make_plan(data, keys, self.training), self.training)

    def fit(self, net: Any, start: Any, drift: Drift | None = None, row: Any = None) -> Fit:
        row = np.zeros(self.data.n, np.int64) if row is None else row
        training = self.training
        return net.fit(start, row, self.data, self.plan, self.keys, training, training.lr, drift or Drift())


def case(kind: str, training: Training | None = None, sizes: Any = SIZES) -> Case:
    training = training or Training(lr=0.1, batch_size=6, epochs=2)
    total = int(sizes.sum())
    data = Block(columns(kind, total), np.random.default_rng(1).permutation(total), np.r_[0, np.cumsum(sizes)])
    keys = rng.keys(0, ("test",), np.arange(len(sizes)))
    return Case(data, keys, make_plan(data, keys, training), training)


def by_hand(mod: Any, one: Case, i: int, optimizer: Any, loss: Any = None, extra: Any = None) -> Any:
    """What a user's own loop makes of client `i`: the end parameters and the mean loss."""
    import copy

    mod = copy.deepcopy(mod).train()
    start = [p.detach().clone() for p in mod.parameters()]
    opt = optimizer(mod.parameters())
    edges, losses = one.plan.step_bounds(i), []
    for a, b in itertools.pairwise(edges):
        rows = one.plan.rows[a:b]
        x, y = torch.from_numpy(one.data.columns["x"][rows]), torch.from_numpy(one.data.columns["y"][rows])
        opt.zero_grad()
        output = mod(x)
        flat = (output.reshape(-1, output.shape[-1]), y.reshape(-1)) if output.dim() == 3 else (output, y)
        value = (loss or F.cross_entropy)(*flat)
        losses.append(float(value.detach()))
        if extra is not None:
            value = value + extra(list(mod.parameters()), start)
        value.backward()
        if one.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(mod.parameters(), one.training.clip_norm)
        opt.step()
    vector = torch.cat([p.detach().reshape(-1) for p in mod.parameters()]).numpy()
    return vector, float(np.mean(losses)) if losses else 0.0
