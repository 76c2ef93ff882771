"""The workloads W0 to W6: synthetic federated data, models and their arithmetic, for every arm alike.

Here: sizes, data, the one starting vector, the one list of cohorts, FLOP counts, the torch models.
Not here: how any system trains them (``ours.py``, ``peers/``), the jax models (``peers/jax_models.py``).
Importing this needs NumPy alone, so that it works in every peer's environment.

Invariant: everything is a function of the workload's name. A starting vector is the flat float32
concatenation of a model's parameters in torch's order and layout; an arm in another layout converts.
A client's examples are trained once, in stored order, in consecutive batches: so every arm that does
plain SGD and averages by examples ends, up to rounding, with the same model. ``tolerance`` is above what
rounding did between such arms (where a ReLU falls to the other side it does more) and below every error
that was made on purpose; README.md has the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SYMBOLS, STEPS, HIDDEN = 90, 80, 256  # W4's alphabet, characters per example, LSTM width


@dataclass(frozen=True)
class Tensor:
    """One parameter in torch's order; it starts uniform in ±1/sqrt(fan_in)."""

    name: str
    shape: tuple[int, ...]
    fan_in: int


@dataclass(frozen=True)
class Workload:
    """One federated job: ``cohort`` of ``population`` clients a round, each with ``examples`` examples."""

    name: str
    title: str
    tensors: tuple[Tensor, ...]
    shape: tuple[int, ...]  # of one example
    classes: int
    rate: float  # of the clients' plain SGD; the server adds the mean delta as it is
    macs: int  # multiply-adds of one example's forward pass
    macs_first: int  # of them in the first layer, whose input needs no gradient
    tolerance: float = 0.0  # how far apart two arms' models may be and yet have trained the same
    examples: int = 100
    batch: int = 20
    cohort: int = 100
    population: int = 1000
    distinct: int = 1000  # client i holds the examples of block i % distinct
    against: tuple[str, ...] = ()  # the peers that train it; none: all

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(t.shape)) for t in self.tensors)

    @property
    def flops_per_client(self) -> int:
        """Multiplications and additions one client's round needs: forward, and twice that backward."""
        return 2 * (3 * self.macs - self.macs_first) * self.examples


def _dense(name: str, into: int, out: int) -> tuple[Tensor, Tensor]:
    return Tensor(f"{name}.weight", (out, into), into), Tensor(f"{name}.bias", (out,), into)


def _conv(name: str, into: int, out: int) -> tuple[Tensor, Tensor]:
    fan_in = 9 * into
    return Tensor(f"{name}.weight", (out, into, 3, 3), fan_in), Tensor(f"{name}.bias", (out,), fan_in)


def _lstm(layer: int, into: int) -> tuple[Tensor, ...]:
    gates = 4 * HIDDEN
    shapes = {"weight_ih": (gates, into), "weight_hh": (gates, HIDDEN), "bias_ih": (gates,), "bias_hh": (gates,)}
    return tuple(Tensor(f"lstm.{name}_l{layer}", shape, HIDDEN) for name, shape in shapes.items())


def _norm(name: str, width: int) -> tuple[Tensor, Tensor]:
    return Tensor(f"{name}.weight", (width,), 1), Tensor(f"{name}.bias", (width,), 1)


def _block(name: str, into: int, out: int) -> tuple[Tensor, ...]:
    """A residual block: two convolutions of 3x3 with norms, and a shortcut of 1x1 where widths differ."""
    first, second = _conv(f"{name}.conv1", into, out)[0], _conv(f"{name}.conv2", out, out)[0]
    short = (Tensor(f"{name}.short.weight", (out, into, 1, 1), into),) if into != out else ()
    return first, *_norm(f"{name}.norm1", out), second, *_norm(f"{name}.norm2", out), *short


def _block_macs(into: int, out: int, side: int) -> int:
    return side * side * out * (9 * (into + out) + (into if into != out else 0))


_WIDTHS, _GROUPS = (16, 16, 32, 64), 8  # W6: the stem's and the blocks' channels; groups of its norms
_STEM = 32 * 32 * 16 * 27
_CONV_1, _CONV_2 = 26 * 26 * 32 * 9, 24 * 24 * 64 * 288

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        Workload(
            "W0", "next to nothing: 1 example of 1 number", _dense("0", 1, 2), (1,), 2, 0.1, 2, 2,
            examples=1, batch=1,
        ),
        Workload(
            "W1", "logistic regression 784-62", _dense("0", 784, 62), (784,), 62, 0.1,
            784 * 62, 784 * 62, tolerance=1e-4,
        ),
        Workload(
            "W2", "MLP 784-200-200-62",
            (*_dense("0", 784, 200), *_dense("2", 200, 200), *_dense("4", 200, 62)), (784,), 62, 0.1,
            784 * 200 + 200 * 200 + 200 * 62, 784 * 200, tolerance=1e-2,
        ),
        Workload(
            "W3", "FEMNIST CNN, conv 32 - conv 64 - pool - 128 - 62",
            (*_conv("0", 1, 32), *_conv("2", 32, 64), *_dense("6", 9216, 128), *_dense("8", 128, 62)),
            (1, 28, 28), 62, 0.05, _CONV_1 + _CONV_2 + 9216 * 128 + 128 * 62, _CONV_1, tolerance=2e-2, distinct=300,
        ),
        Workload(
            "W4", "character LSTM, embedding 8, 2 x 256, 80 steps",
            (Tensor("emb.weight", (SYMBOLS, 8), 1), *_lstm(0, 8), *_lstm(1, HIDDEN), *_dense("out", HIDDEN, SYMBOLS)),
            (STEPS,), SYMBOLS, 0.5,
            STEPS * (4 * HIDDEN * (8 + HIDDEN) + 4 * HIDDEN * 2 * HIDDEN + HIDDEN * SYMBOLS), 0, tolerance=1e-3,
            examples=64, batch=8, cohort=10, population=100, distinct=100,
        ),
        Workload(
            "W5", "CNN on 32x32x3, conv 32 - conv 64 - pool - 128 - 10",
            (*_conv("0", 3, 32), *_conv("2", 32, 64), *_dense("6", 12544, 128), *_dense("8", 128, 10)),
            (3, 32, 32), 10, 0.05, 30 * 30 * 32 * 27 + 28 * 28 * 64 * 288 + 12544 * 128 + 128 * 10, 30 * 30 * 32 * 27,
            tolerance=2e-2, cohort=20, population=100, distinct=100, against=("torch-loop",),
        ),
        Workload(
            "W6", "ResNet on 32x32x3, 3 blocks of 16, 32, 64 with GroupNorm",
            (
                _conv("stem", 3, 16)[0], *_norm("norm", 16), *_block("blocks.0", 16, 16), *_block("blocks.1", 16, 32),
                *_block("blocks.2", 32, 64), *_dense("out", 64, 10),
            ),
            (3, 32, 32), 10, 0.05,
            _STEM + _block_macs(16, 16, 32) + _block_macs(16, 32, 16) + _block_macs(32, 64, 8) + 640, _STEM,
            tolerance=5e-2, cohort=20, population=100, distinct=100, against=("torch-loop",),
        ),
    )
}  # fmt: skip


def data(name: str) -> tuple[NDArray[Any], Ints]:
    """All examples of a workload: inputs ``[distinct, examples, *shape]`` and labels, as torch wants them."""
    w = WORKLOADS[name]
    random = np.random.default_rng(0)
    if name == "W4":  # each character is to be told from the ones before it
        text = random.integers(0, SYMBOLS, (w.distinct, w.examples, STEPS + 1), dtype=np.int64)
        return text[:, :, :-1].copy(), text[:, :, 1:].copy()
    inputs = random.standard_normal((w.distinct, w.examples, *w.shape), dtype=np.float32)
    return inputs, random.integers(0, w.classes, (w.distinct, w.examples), dtype=np.int64)


def start(name: str) -> Floats:
    """The starting vector ``[size]`` that every arm begins from."""
    random = np.random.default_rng(7)
    parts = [random.uniform(-1, 1, t.shape).ravel() / np.sqrt(t.fan_in) for t in WORKLOADS[name].tensors]
    return np.concatenate(parts).astype(np.float32)


def cohorts(name: str, rounds: int) -> Ints:
    """The clients of each round, ``[rounds, cohort]``, distinct within a round."""
    w = WORKLOADS[name]
    random = np.random.default_rng(1)
    return np.stack([random.choice(w.population, w.cohort, replace=False) for _ in range(rounds)])


def torch_model(name: str) -> Any:
    """The model as a plain ``torch.nn.Module``; its parameters are in the order of ``Workload.tensors``."""
    from torch import nn

    match name:
        case "W0":
            return nn.Sequential(nn.Linear(1, 2))
        case "W1":
            return nn.Sequential(nn.Linear(784, 62))
        case "W2":
            return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 62))
        case "W3":
            return nn.Sequential(
                nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 62),
            )  # fmt: skip

        case "W5":
            return nn.Sequential(
                nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(12544, 128), nn.ReLU(), nn.Linear(128, 10),
            )  # fmt: skip
        case "W6":
            return _resnet()
    return _char_lstm()


def _resnet() -> Any:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, into: int, out: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(into, out, 3, 1 if into == out else 2, 1, bias=False)
            self.norm1 = nn.GroupNorm(_GROUPS, out)
            self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
            self.norm2 = nn.GroupNorm(_GROUPS, out)
            self.short = nn.Identity() if into == out else nn.Conv2d(into, out, 1, 2, bias=False)

        def forward(self, x: Any) -> Any:
            h = torch.relu(self.norm1(self.conv1(x)))
            return torch.relu(self.norm2(self.conv2(h)) + self.short(x))

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False)
            self.norm = nn.GroupNorm(_GROUPS, _WIDTHS[0])
            self.blocks = nn.Sequential(*(Block(a, b) for a, b in itertools.pairwise(_WIDTHS)))
            self.out = nn.Linear(_WIDTHS[-1], 10)

        def forward(self, x: Any) -> Any:
            return self.out(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))

    return ResNet()


def _char_lstm() -> Any:
    from torch import nn

    class CharLSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(SYMBOLS, 8)
            self.lstm = nn.LSTM(8, HIDDEN, 2, batch_first=True)
            self.out = nn.Linear(HIDDEN, SYMBOLS)

        def forward(self, text: Any) -> Any:
            return self.out(self.lstm(self.emb(text))[0])

    return CharLSTM()


def torch_loss(name: str) -> Callable[[Any, Any], Any]:
    """``loss(logits, labels)``: mean cross-entropy, for W4 over every character."""
    from torch.nn.functional import cross_entropy

    if name == "W4":
        return lambda logits, labels: cross_entropy(logits.reshape(-1, SYMBOLS), labels.reshape(-1))
    return cross_entropy


def torch_model_at(name: str, vector: Floats) -> Any:
    """The model with its parameters set to a flat vector in torch's order."""
    import torch

    model = torch_model(name)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(vector.copy()), model.parameters())
    return model


def torch_vector(model: Any) -> Floats:
    """A model's parameters as one flat float32 vector in torch's order."""
    import torch

    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()
