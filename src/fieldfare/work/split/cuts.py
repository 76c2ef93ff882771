"""What a cut costs: numbers on each side, activations that cross, FLOPs forward and backward, per example.

Here: `Cut` and how its figures are counted. Not here: which cut to take (`planning`). Invariant: figures depend on the
module and on shapes alone, never on values or time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from fieldfare.core.errors import UsageError
from fieldfare.work.net import Training
from fieldfare.work.split.graph import Place, Traced, between, changes_input, is_statistic
from fieldfare.work.split.half import sub_layout

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Cut:
    """A legal cut: the device has numbers `0..size` of the vector and computes up to module `name`.

    `parameters`: trained ones on each side (device, server); the vector also holds running statistics. `activations`:
    shape of the tensor that crosses, per example. FLOPs are per example, two per multiplication and addition; products
    only, as is the custom. `device_backward` is without the forward pass that a simulation does again.
    """

    number: int
    name: str
    place: Place
    size: int
    total: int
    parameters: tuple[int, int]
    activations: tuple[int, ...]
    device_forward: float
    device_backward: float
    server_forward: float
    server_backward: float

    @property
    def activation_bytes(self) -> int:
        """Bytes of float32 activations (and of their gradient) per example, one way."""
        return 4 * prod(self.activations)

    @property
    def device_share(self) -> float:
        """The device's share of the forward pass's multiplications."""
        return self.device_forward / (self.device_forward + self.server_forward)

    @property
    def macs(self) -> int:
        """Multiplications and additions of the whole forward pass on one example."""
        return round((self.device_forward + self.server_forward) / 2)

    def state_bytes(self, batch: int, training: Training) -> int:
        """What moves with a session at this cut: S = 4 (P_s + M_s) + 4 B A, without framing.

        P_s are the server's trained parameters and M_s its optimiser's moments; the last gradient is kept to be sent
        again. Running statistics and counters add 4 bytes each.
        """
        side = self.parameters[1]
        statistics = self.total - self.size - side
        return 4 * (side * (1 + training.moments) + statistics) + batch * self.activation_bytes


def count_cuts(traced: Traced, places: Sequence[Place], example: Sequence[Tensor]) -> tuple[Cut, ...]:
    """The cuts at `places`, counted on the inputs of a few examples; where no float32 batch crosses there is none.

    Cost: two passes over the module per place.
    """
    examples = len(example[0])
    total, out = traced.layout.size, list[Cut]()
    for place in places:
        head, tail = between(traced, None, place), between(traced, place, None)
        (forward, backward), value = _count(head, example)
        if value is None or len(value) != examples:
            continue
        crossing = value.clone() if changes_input(traced, place) else value
        (server_forward, server_backward), _ = _count(tail, [crossing], with_input=value)
        own = _trained(traced, 0, place.size), _trained(traced, place.size, total)
        cut = Cut(
            len(out), place.name, place, place.size, total, own, tuple(value.shape[1:]), forward / examples,
            backward / examples, server_forward / examples, server_backward / examples,
        )  # fmt: skip
        out.append(cut)
    if not out:
        raise UsageError(
            "no place in this module lets exactly one tensor of a batch cross with parameters on both sides, so it "
            "cannot be split: train it whole."
        )
    return tuple(out)


def _trained(traced: Traced, start: int, stop: int) -> int:
    layout = sub_layout(traced.layout, start, stop)
    return sum(size for name, size in zip(layout.names, layout.sizes, strict=True) if not is_statistic(name))


def _count(
    module: nn.Module, inputs: Sequence[Tensor], with_input: Tensor | None = None
) -> tuple[tuple[float, float], Any]:
    """((FLOPs forward, FLOPs backward), what crosses), the gradient of the input included where there is one."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False), torch.enable_grad():
            wanted = [p for p in module.parameters() if p.requires_grad]
            if with_input is not None:
                leaf = with_input.detach().clone().requires_grad_()
                wanted, inputs = [*wanted, leaf], [leaf * 1.0]
            with FlopCounterMode(display=False) as forward:
                value = module(*inputs)
            if not torch.is_tensor(value) or value.dtype != torch.float32 or not value.dim():
                return (0.0, 0.0), None
            with FlopCounterMode(display=False) as backward:
                torch.autograd.grad(value, wanted, torch.ones_like(value), allow_unused=True)
    return (float(forward.get_total_flops()), float(backward.get_total_flops())), value.detach()
