"""What a device and an edge compute of a model cut in two or in a U, a batch at a time.

Here: the works "split/forward", "split/step" and "split/backward", and for a U "split/middle" and "split/tail". Not
here: what they are asked (`asks`), who asks and what is sent (`algorithms.fedfly`). Invariant: a row depends, to the
bit, on its client's model, slots, key, batch number and inputs; not on the stack, the process or the node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.work import Cohort
from fieldfare.work.net import Training
from fieldfare.work.split.asks import Part, Side, labelled, stepping
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.net import SplitNet
from fieldfare.work.split.ranges import Split

F64 = NDArray[np.float64]

_SERVER = np.uint64(rng.derive(0, "split", "server"))
_TAIL = np.uint64(rng.derive(0, "split", "tail"))


def split_works(
    net: SplitNet, training: Training, cut: int | str | Cut | None = None, tail: int | str | Cut | None = None,
    levels: tuple[SplitNet, ...] = (),
) -> dict[str, Side]:  # fmt: skip
    """The works by name; `cut` and `tail` where an ask names none; `levels`: nets of sub-models, by number.

    Errors: `UsageError` for settings that need all sides at once.
    """
    if training.clip_norm is not None:
        raise UsageError(
            f"Training(clip_norm={training.clip_norm}): the norm of a gradient needs both sides of a cut at once: "
            "leave it out."
        )
    numbers = [None if one is None else net.cut(one).number for one in (cut, tail)]
    kinds = (Forward, Step, Backward, Middle, Tail)
    return {kind.name: kind(net, training, *numbers, levels) for kind in kinds}


@dataclass(frozen=True, slots=True)
class Forward(Side):
    """The device's forward pass: leaf `act` float32 `[B, ...]`, and but for a U the labels `y` `[B, ...]`.

    Model: the device's half. Weight: examples in the batch. Metrics: `steps`, batches in the whole round, and
    `examples` of the batch. Nothing is trained; running statistics change in the backward pass.
    """

    name: ClassVar[str] = "split/forward"

    def compute(self, cohort: Cohort, part: Part) -> tuple[dict[str, Any], int, dict[str, float]]:
        at, steps = self.rows(cohort, part)
        net = part.split.net
        inputs, target = net.columns(cohort.data.columns)
        with stepping(self, part.seq):
            value = net.half(None, part.split.cut).forward(_head(part), net.rows(inputs, at))
        leaves = {"act": value.contiguous().numpy()}
        if part.split.tail is None:
            leaves["y"] = target.take(at).numpy().copy()
        return leaves, len(at), {"steps": steps, "examples": len(at)}

    def costs(self, split: Split, examples: F64) -> F64:
        return examples * split.cut.device_forward


@dataclass(frozen=True, slots=True)
class Step(Side):
    """The server's step: leaves `model` `[p]`, `slots` `[s]` and `g`, the gradient of `act`, `[B, ...]`.

    Model: the server's half. Inputs: `act` float32 `[B, ...]`, `y` `[B, ...]` and `slots` (none: a new optimiser's).
    Weight: examples. Metrics: `loss`, their mean, and `loss_sum`. In a U the input `g`, the gradient of what "middle"
    gave, takes the place of `y`, there is no loss, and the leaf `g` is one cut further down.
    """

    name: ClassVar[str] = "split/step"
    server: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    stream: ClassVar[np.uint64] = _SERVER

    def compute(self, cohort: Cohort, part: Part) -> tuple[dict[str, Any], int, dict[str, float]]:
        split = part.split
        value, (slots,) = self.tensor(part, "act", split.cut), self.given_slots(part, len(part.model))
        u = split.tail is not None
        end = self.tensor(part, "g", split.tail) if split.tail else labelled(self.net, self.given(part.told, "y"))
        with stepping(self, part.seq):
            half = split.net.half(split.cut, split.tail)
            done = half.step(part.model, slots, [value], end, part.training, part.lr, further=True)
        metrics = {} if u else {"loss": done.loss, "loss_sum": done.loss * len(value)}
        return {"model": done.model, "slots": done.slots, "g": done.gradient}, len(value), metrics

    def costs(self, split: Split, examples: F64) -> F64:
        return examples * (_server_forward(split) + _server_backward(split))


@dataclass(frozen=True, slots=True)
class Backward(Side):
    """The device's step: leaves `model` and `slots`.

    Model: the device's half, as in the forward pass, which is done again. Inputs: `g`, the gradient of what it gave,
    and `slots`. Weight: examples. Cost: the backward pass alone, since a device keeps what it computed.
    """

    name: ClassVar[str] = "split/backward"
    trains: ClassVar[bool] = True

    def compute(self, cohort: Cohort, part: Part) -> tuple[dict[str, Any], int, dict[str, float]]:
        at, _ = self.rows(cohort, part)
        gradient = self.tensor(part, "g", part.split.cut)
        _check_batch(self, part, "gradient", len(gradient), len(at))
        sizes = part.split.cut.size, len(part.model) - part.split.cut.size
        own, rest = self.given_slots(part, *sizes) if part.split.tail else (*self.given_slots(part, sizes[0]), None)
        net = part.split.net
        inputs, _ = net.columns(cohort.data.columns)
        with stepping(self, part.seq):
            half = net.half(None, part.split.cut)
            done = half.step(_head(part), own, net.rows(inputs, at), gradient, part.training, part.lr)
        if rest is None:
            return {"model": done.model, "slots": done.slots}, len(at), {}
        model = np.concatenate([done.model, part.model[sizes[0] :]])
        return {"model": model, "slots": np.concatenate([done.slots, rest])}, len(at), {}

    def costs(self, split: Split, examples: F64) -> F64:
        return examples * split.cut.device_backward


@dataclass(frozen=True, slots=True)
class Middle(Side):
    """The server's forward pass in a U: leaf `act`, what crosses at the tail. Model: the server's; input: `act`."""

    name: ClassVar[str] = "split/middle"
    server: ClassVar[bool] = True
    stream: ClassVar[np.uint64] = _SERVER

    def compute(self, cohort: Cohort, part: Part) -> tuple[dict[str, Any], int, dict[str, float]]:
        tail = _tail(self, part)
        value = self.tensor(part, "act", part.split.cut)
        with stepping(self, part.seq):
            out = part.split.net.half(part.split.cut, tail).forward(part.model, [value])
        return {"act": out.contiguous().numpy()}, len(value), {}

    def costs(self, split: Split, examples: F64) -> F64:
        return examples * _server_forward(split)


@dataclass(frozen=True, slots=True)
class Tail(Side):
    """The device's end of a U: a step of its last layers on the loss, with labels that stay where they are.

    Model: the device's half. Inputs: `act`, from "middle", and `slots`. Leaves: `model` and `slots`, in which the last
    range has changed, and `g`, the gradient of `act`. Metrics as of "step".
    """

    name: ClassVar[str] = "split/tail"
    stream: ClassVar[np.uint64] = _TAIL

    def compute(self, cohort: Cohort, part: Part) -> tuple[dict[str, Any], int, dict[str, float]]:
        tail, first = _tail(self, part), part.split.cut.size
        at, _ = self.rows(cohort, part)
        value = self.tensor(part, "act", tail)
        _check_batch(self, part, "tensor", len(value), len(at))
        own, rest = self.given_slots(part, first, len(part.model) - first)
        _, target = self.net.columns(cohort.data.columns)
        end = labelled(self.net, target.take(at).numpy())
        with stepping(self, part.seq):
            half = part.split.net.half(tail, None)
            done = half.step(part.model[first:], rest, [value], end, part.training, part.lr, further=True)
        model, slots = np.concatenate([_head(part), done.model]), np.concatenate([own, done.slots])
        metrics = {"loss": done.loss, "loss_sum": done.loss * len(at)}
        return {"model": model, "slots": slots, "g": done.gradient}, len(at), metrics

    def costs(self, split: Split, examples: F64) -> F64:
        tail = split.tail
        return examples * (0.0 if tail is None else tail.server_forward + tail.server_backward)


def _head(part: Part) -> Any:
    return part.model[: part.split.cut.size]


def _tail(side: Side, part: Part) -> Cut:
    if part.split.tail is None:
        raise UsageError(f"{side.name} is for a U: name a second cut, tail=...")
    return part.split.tail


def _check_batch(side: Side, part: Part, what: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise UsageError(
            f"{side.name}: a {what} for {got} examples came for batch {part.seq}, which has {wanted}: send the one of "
            "this batch."
        )


def _server_forward(split: Split) -> float:
    return split.cut.server_forward - (0.0 if split.tail is None else split.tail.server_forward)


def _server_backward(split: Split) -> float:
    """The whole backward pass behind the cut, less what the tail does of it."""
    return split.cut.server_backward - (0.0 if split.tail is None else split.tail.server_backward)
