"""What a device and an edge compute of a model cut in two: forward, step and backward, a batch at a time.

Here: the works "split/forward", "split/step" and "split/backward", and `Split`, the ranges of a vector at a cut. Not
here: who asks for them and what is sent (`algorithms.fedfly`). Invariant: a row depends, to the bit, on its client's
model, slots, key, batch number and inputs; not on the stack, the process or the node that computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.effects import Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.core.work import Cohort, Cost, Output
from fieldfare.work import torch_resident as resident_
from fieldfare.work.net import Training, moments_size
from fieldfare.work.plan import make_plan, passes_and_steps
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.net import SplitNet, layouts
from fieldfare.work.torch_loops import seeds
from fieldfare.work.train import settings

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_SERVER = np.uint64(rng.derive(0, "split", "server"))


@dataclass(frozen=True, slots=True)
class Split:
    """A net at one cut: its vector, and its optimiser's slots, as two ranges; joined again, or cut elsewhere.

    Slots are those of `work.net.moments_size`, each side's of its own size, zero where a number is a running statistic.
    """

    net: SplitNet
    cut: Cut
    training: Training = field(default_factory=Training)

    def halves(self, model: Params) -> tuple[Params, Params]:
        """(device, server) of a whole model."""
        own, other = layouts(self.net.layout, self.cut)
        return Params(model.vector[: self.cut.size], own), Params(model.vector[self.cut.size :], other)

    def join(self, device: Params | F32, server: Params | F32) -> Params:
        """The whole model of two halves."""
        parts = [one.vector if isinstance(one, Params) else one for one in (device, server)]
        return Params(np.concatenate(parts), self.net.layout)

    def slots(self) -> tuple[F32, F32]:
        """Slots (device, server) of an optimiser that has not begun."""
        sizes = self.cut.size, self.cut.total - self.cut.size
        device, server = (np.zeros(moments_size(self.training, size), np.float32) for size in sizes)
        return device, server

    def halve_slots(self, whole: F32) -> tuple[F32, F32]:
        """(device, server) of the slots of a whole model."""
        moments, count = self._moments(whole, self.cut.total)
        device, server = moments[:, : self.cut.size], moments[:, self.cut.size :]
        return np.concatenate([device.reshape(-1), count]), np.concatenate([server.reshape(-1), count])

    def join_slots(self, device: F32, server: F32) -> F32:
        """The slots of the whole model; both sides have taken the same number of steps."""
        left, count = self._moments(device, self.cut.size)
        right, _ = self._moments(server, self.cut.total - self.cut.size)
        return np.concatenate([np.concatenate([left, right], axis=1).reshape(-1), count])

    def recut(self, cut: Cut, device: F32, server: F32) -> tuple[F32, F32]:
        """(device, server) vectors at another `cut`, from those at this one."""
        whole = np.concatenate([device, server])
        return whole[: cut.size], whole[cut.size :]

    def _moments(self, slots: F32, size: int) -> tuple[F32, F32]:
        """Moments `[k, size]` and what is behind them (Adam's count of steps)."""
        k = self.training.moments
        if slots.shape != (moments_size(self.training, size),):
            raise UsageError(
                f"slots of shape {slots.shape} do not fit {size} numbers: pass "
                f"({moments_size(self.training, size)},) for this optimiser."
            )
        return slots[: k * size].reshape(k, size), slots[k * size :]


def split(net: SplitNet, cut: int | str | Cut, training: Training | None = None) -> Split:
    """`net` at a cut given by number or by name."""
    return Split(net, net.cut(cut), training or Training())


def split_works(net: SplitNet, training: Training, cut: int | str | Cut | None = None) -> dict[str, _Side]:
    """The three works by name; `cut` where an ask's config names none.

    Errors: `UsageError` for settings that need both sides at once.
    """
    if training.clip_norm is not None:
        raise UsageError(
            f"Training(clip_norm={training.clip_norm}): the norm of a gradient needs both sides of a cut at once: "
            "leave it out."
        )
    number = None if cut is None else net.cut(cut).number
    return {work.name: work for work in (kind(net, training, number) for kind in (Forward, Step, Backward))}


@dataclass(frozen=True, slots=True)
class _Side:
    """What the three works share. An ask says, in `each`, `inputs` or `config`, and in that order of precedence:

    `seq`, the batch's number in the round, from 0; `round` (for the schedule; or `lr`), `steps`, `epochs`; `cut`, by
    number or name; `count`, how many examples the batch has, where only the asker knows (cost of a step).
    The randomness of the ask (`Run.key`) must be that of the device's round: it fixes order and chance of all batches.
    Nothing travels for these works, since nodes ask themselves: bytes are those of messages.
    """

    net: SplitNet
    training: Training = field(default_factory=Training)
    cut: int | None = None
    name = ""
    stacks = True

    def slots(self, layout: Layout) -> Mapping[str, int]:
        """None: an optimiser's slots are inputs and leaves, so that they can move."""
        return {}

    def told(self, cohort: Cohort, i: int) -> Mapping[str, Any]:
        """All that was said to client i."""
        return {**cohort.config, **cohort.inputs, **cohort.each.get(i, {})}

    def cut_of(self, told: Mapping[str, Any]) -> Cut:
        """The cut an ask names."""
        which = told.get("cut", self.cut)
        if which is None:
            raise UsageError(f"{self.name}: no cut is named: give config cut=..., or split_works(..., cut=...).")
        return self.net.cut(which)

    def batch_examples(self, examples: I64, config: Mapping[str, Scalar]) -> F64:
        """How many examples batch `seq` of clients with `examples` `[n]` has, `[n]`."""
        if "count" in config:
            return np.full(len(examples), float(config["count"]))
        size = self.training.batch_size
        if self.name == "split/step" or "seq" not in config:
            return np.full(len(examples), float(size))
        at = int(config["seq"]) % np.maximum(-(-examples // size), 1)
        return np.clip(examples - at * size, 0, size).astype(np.float64)

    def _cost(self, flops: float, examples: I64, config: Mapping[str, Scalar], size: int) -> Cost:
        taken = self.batch_examples(np.asarray(examples, np.int64), config)
        return Cost(flops * taken, 0.0, 0.0, 4.0 * size * (2 + self.training.moments))


def _model(cohort: Cohort, i: int, size: int, name: str) -> F32:
    if cohort.models.shape[1] != size:
        raise UsageError(
            f"{name}: a model of {cohort.models.shape[1]} numbers came to a side of {size}: check the cut."
        )
    return cohort.models[cohort.row[i]]


def _slots(told: Mapping[str, Any], training: Training, size: int, name: str) -> F32:
    wanted = moments_size(training, size)
    given = told.get("slots")
    if given is None and not wanted:
        return np.empty(0, np.float32)
    if not isinstance(given, np.ndarray) or given.shape != (wanted,) or given.dtype != np.float32:
        said = "nothing" if given is None else f"{getattr(given, 'dtype', '')} of shape {np.shape(given)}"
        raise UsageError(f"{name}: slots are float32 of shape ({wanted},): got {said}.")
    return given


def _inputs(told: Mapping[str, Any], wanted: tuple[str, ...], name: str) -> list[Any]:
    missing = [one for one in wanted if one not in told]
    if missing:
        raise UsageError(f"{name}: input {missing[0]!r} is missing: give it in the Run's inputs or config.")
    return [told[one] for one in wanted]


def _tensor(array: Any, shape: tuple[int, ...], name: str) -> Any:
    """A fresh tensor `[B, *shape]`, aligned the same wherever the array came from."""
    import torch

    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape[1:] != shape or not len(array):
        said = f"{getattr(array, 'dtype', type(array).__name__)} of shape {np.shape(array)}"
        raise UsageError(f"{name}: this cut takes float32 of shape (B, {', '.join(map(str, shape))}): got {said}.")
    return torch.from_numpy(array).clone() if array.flags.writeable else torch.from_numpy(array.copy()).clone()


def _leaves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Leaves `[n, ...]`, or lists of n arrays where the clients' differ in shape."""
    out: dict[str, Any] = {}
    for name in rows[0] if rows else ():
        parts = [row[name] for row in rows]
        alike = len({part.shape for part in parts}) == 1
        out[name] = parts[0][None] if len(parts) == 1 else np.stack(parts) if alike else parts
    return out


@dataclass(frozen=True, slots=True)
class Forward(_Side):
    """The device's forward pass on batch `seq`: leaves `act` float32 `[B, ...]` and the labels `y` `[B, ...]`.

    Model: the device's half. Weight: examples in the batch. Metrics: `steps`, batches in the whole round, and
    `examples` of the batch. Nothing is trained; running statistics change in the backward pass.
    """

    name = "split/forward"

    def __call__(self, cohort: Cohort) -> Output:
        """Compute every client of `cohort`, one after the other."""
        rows: list[dict[str, Any]] = []
        weight, steps = np.zeros(cohort.n), np.zeros(cohort.n)
        with resident_.one_thread(), resident_.own_randomness() as reseed:
            for i in range(cohort.n):
                told = self.told(cohort, i)
                cut = self.cut_of(told)
                at, total = _rows(cohort, i, told, self.training)
                model = _model(cohort, i, cut.size, self.name)
                inputs, target = self.net.columns(cohort.data.columns)
                seq = int(told["seq"])
                reseed(seeds(cohort.keys[i], seq + 1)[seq])
                act = self.net.half(cut, "device").forward(model, self.net.batch(inputs, at))
                rows.append({"act": act.contiguous().numpy(), "y": target.take(at).numpy().copy()})
                weight[i], steps[i] = len(at), total
        return Output(_leaves(rows), weight, {"steps": steps, "examples": weight.copy()})

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """FLOPs of the device's forward pass on one batch."""
        cut = self.cut_of(config)
        return self._cost(cut.device_forward, examples, config, cut.size)


@dataclass(frozen=True, slots=True)
class Step(_Side):
    """The server's step on a batch: leaves `model` `[p]`, `slots` `[s]` and `g`, the gradient of `act`, `[B, ...]`.

    Model: the server's half. Inputs: `act` float32 `[B, ...]`, `y` `[B, ...]`, `slots`. Weight: examples; metric
    `loss`: their mean loss; `loss_sum`: times their number.
    """

    name = "split/step"

    def __call__(self, cohort: Cohort) -> Output:
        """Compute every client of `cohort`, one after the other."""
        import torch

        rows: list[dict[str, Any]] = []
        weight, loss = np.zeros(cohort.n), np.zeros(cohort.n)
        with resident_.one_thread(), resident_.own_randomness() as reseed:
            for i in range(cohort.n):
                told = self.told(cohort, i)
                cut = self.cut_of(told)
                training, lr = settings(self.training, told)
                seq, act, y = _inputs(told, ("seq", "act", "y"), self.name)
                model = _model(cohort, i, cut.total - cut.size, self.name)
                slots = _slots(told, training, len(model), self.name)
                value = _tensor(act, cut.activations, self.name)
                wanted = torch.from_numpy(np.array(y))
                reseed(seeds(cohort.keys[i] ^ _SERVER, int(seq) + 1)[int(seq)])
                half = self.net.half(cut, "server")
                model, slots, g, loss[i] = half.step(
                    model, slots, value, lambda output, y=wanted: self.net.loss_of(output, y), training, lr
                )
                rows.append({"model": model, "slots": slots, "g": g.contiguous().numpy()})
                weight[i] = len(act)
        return Output(_leaves(rows), weight, {"loss": loss, "loss_sum": loss * weight})

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """FLOPs of the server's forward and backward pass on one batch."""
        cut = self.cut_of(config)
        return self._cost(cut.server_forward + cut.server_backward, examples, config, cut.total - cut.size)


@dataclass(frozen=True, slots=True)
class Backward(_Side):
    """The device's step on a batch: leaves `model` `[d]` and `slots` `[s]`.

    Model: the device's half, as in the forward pass, which is done again. Inputs: `g`, the gradient of what it gave,
    and `slots`. Weight: examples. Cost: the backward pass alone, since a device keeps what it computed.
    """

    name = "split/backward"

    def __call__(self, cohort: Cohort) -> Output:
        """Compute every client of `cohort`, one after the other."""
        rows: list[dict[str, Any]] = []
        weight = np.zeros(cohort.n)
        with resident_.one_thread(), resident_.own_randomness() as reseed:
            for i in range(cohort.n):
                told = self.told(cohort, i)
                cut = self.cut_of(told)
                training, lr = settings(self.training, told)
                seq, g = _inputs(told, ("seq", "g"), self.name)
                at, _ = _rows(cohort, i, told, self.training)
                model = _model(cohort, i, cut.size, self.name)
                slots = _slots(told, training, cut.size, self.name)
                gradient = _tensor(g, cut.activations, self.name)
                if len(gradient) != len(at):
                    raise UsageError(
                        f"{self.name}: a gradient for {len(gradient)} examples came for batch {seq}, which has "
                        f"{len(at)}: send the one of this batch."
                    )
                inputs, _ = self.net.columns(cohort.data.columns)
                reseed(seeds(cohort.keys[i], int(seq) + 1)[int(seq)])
                half = self.net.half(cut, "device")
                model, slots = half.backward(
                    model, slots, self.net.batch(inputs, at), gradient.numpy(), training, lr
                )  # fmt: skip
                rows.append({"model": model, "slots": slots})
                weight[i] = len(at)
        return Output(_leaves(rows), weight)

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """FLOPs of the device's backward pass on one batch."""
        cut = self.cut_of(config)
        return self._cost(cut.device_backward, examples, config, cut.size)


def _rows(cohort: Cohort, i: int, told: Mapping[str, Any], training: Training) -> tuple[I64, int]:
    """(rows of the columns that batch `seq` takes, batches in the round) of client i."""
    (seq,) = _inputs(told, ("seq",), "split/forward")
    training, _ = settings(training, told)
    sizes = cohort.data.sizes[i : i + 1]
    steps = int(passes_and_steps(sizes, training)[1][0])
    if not 0 <= int(seq) < steps:
        raise UsageError(f"batch {seq} of client {cohort.clients[i]}: its round has {steps} batches, numbered from 0.")
    plan = make_plan(cohort.data.part(i, i + 1), cohort.keys[i : i + 1], training, np.array([int(seq) + 1]))
    start, stop = plan.step_bounds(0)[int(seq) :]
    return plan.rows[start:stop], steps
