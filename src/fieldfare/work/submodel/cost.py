"""What a level of a net takes: memory of a training step, FLOPs, bytes on the link; computed, and measured to check.

Here: `declared` and `measured`. Not here: which level a device gets. Invariant: a computed cost depends on the net,
the layout and the training only; computing it takes none of that memory.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.work.net import Drift, Training
from fieldfare.work.torch_update import is_plain

if TYPE_CHECKING:
    from fieldfare.work.dense import DenseNet
    from fieldfare.work.torch_net import TorchNet


_BUFFERS, _PER_ROW = 8192, 276
"""Bytes of NumPy's own buffers in a step, at all and per row (measured)."""

_GENERATOR = 5056
"""Bytes of the state of torch's generator, which is put aside while a net trains."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What one client needs to train a sub-model.

    `memory_bytes`: peak of a training step; in it `held_bytes` of parameters, optimiser slots, frozen parameters and
    buffers, and at the turn from forward to backward `saved_bytes` of batch and activations. `flops` per example,
    forward and backward. `bytes`: the model on the link, one way.
    """

    parameters: int
    memory_bytes: int
    held_bytes: int
    saved_bytes: int
    flops: float
    bytes: int


def declared(net: Any, training: Training | None = None, layout: Layout | None = None) -> Declared:
    """What `net`, or its sub-model of `layout`, takes to train with `training` (its batch size and optimiser).

    Peak memory by liveness: what lives at any moment of a step, not the sum. Of torch nets it holds for the CPU
    allocator within 5 % (MLP, VGG, ResNet, inception, dense blocks, depthwise convolutions, LSTM, GRU, transformer).
    Convolutions of a single channel: below 100 kB up to a quarter too few, of single pixels up to four times too many;
    the batches that a simulation gathers ahead are not in it. Errors: `UsageError` for a torch net without an example.
    """
    from fieldfare.work.dense import DenseNet
    from fieldfare.work.torch_net import TorchNet

    training = training or Training()
    net = getattr(net, "net", net)
    if not isinstance(net, DenseNet | TorchNet):
        raise UsageError(f"declared({type(net).__name__}): memory is known of fieldfare.mlp(...) and of torch nets.")
    known, key = _DECLARED.setdefault(net, {}), _key(training, net.layout if layout is None else layout)
    if key not in known:
        one = net if layout is None or layout == net.layout else net.of(layout)
        known[key] = _of_dense(one, training) if isinstance(one, DenseNet) else _of_torch(one, training)
    return known[key]


def already_declared(net: Any, training: Training, layout: Layout) -> Declared | None:
    """What `declared` says, where that is known already or takes no time: of declared layers; None elsewhere."""
    from fieldfare.work.dense import DenseNet

    net = getattr(net, "net", net)
    if isinstance(net, DenseNet):
        return declared(net, training, layout)
    try:
        return _DECLARED.get(net, {}).get(_key(training, layout))
    except TypeError:  # a net of the user's own that cannot be a key
        return None


_DECLARED: WeakKeyDictionary[Any, dict[Any, Declared]] = WeakKeyDictionary()
"""What was computed before, as long as the net lives: by what of a training, and which layout."""


def _key(training: Training, layout: Layout) -> tuple[Any, ...]:
    """All that a step's memory depends on."""
    return training.batch_size, training.moments, is_plain(training, Drift()), layout


def _of_dense(net: DenseNet, training: Training) -> Declared:
    """The arrays of `layers.Stack` for one client, those of its optimiser, and the vector that is handed back."""
    program, b = net.program, training.batch_size
    plain = is_plain(training, Drift())
    most = max(layer.inputs * layer.outputs for layer in program.layers)
    widest = max(layer.outputs for layer in program.layers)
    vectors = 2 if plain else 4 + training.moments
    held = 4 * (vectors * program.size + (most if plain else 0) + widest)
    outputs = sum(layer.outputs for layer in program.layers)
    inner = outputs - program.outputs
    step = b * (4 * (program.inputs + outputs + inner) + outputs + 24) + b * _PER_ROW
    return Declared(program.size, held + step + _BUFFERS, held, step, net.flops(), 4 * program.size)


def _of_torch(net: TorchNet, training: Training) -> Declared:
    from fieldfare.work.submodel.step import step_of

    if net._dense is not None and net._stacks(training):
        return _of_dense(net._dense, training)
    batch, target = net.batch(training.batch_size), net.target(training.batch_size)
    plain = is_plain(training, Drift())
    resident = net._held()
    ending = net._ending if net._ending is not None and (net._ending.flatten or batch[0].dim() == 2) else None
    step = step_of(net._module, net._loss, batch, target, resident.channels_last, ending, plain)
    beside = sum(p.numel() * p.element_size() for p in net._module.parameters() if not p.requires_grad)
    beside += sum(2 * b.numel() * b.element_size() for b in net._module.buffers())
    held = 4 * resident.size * (1 if plain else 3 + training.moments) + beside
    size = net.layout.size
    flops = step.flops / training.batch_size
    return Declared(size, held + step.bytes + _GENERATOR, held, step.saved, flops, 4 * size)


def measured(
    net: Any, training: Training | None = None, layout: Layout | None = None,
    example: Mapping[str, NDArray[Any]] | None = None,
) -> int:  # fmt: skip
    """Bytes at the peak of the allocator (torch's on the CPU, or NumPy's) while one client takes a step.

    The first step is taken before, unmeasured. For a check of `declared`: it takes the memory.
    """
    from fieldfare.work.dense import DenseNet
    from fieldfare.work.plan import make_plan
    from fieldfare.work.torch_net import TorchNet

    training = training or Training()
    net = getattr(net, "net", net)
    if layout is not None and layout != net.layout:
        net = net.of(layout)
    dense = isinstance(net, DenseNet) or (
        isinstance(net, TorchNet) and net._dense is not None and net._stacks(training)
    )
    example = example or getattr(net, "example", None)
    if not isinstance(net, TorchNet | DenseNet) or example is None:
        raise UsageError("measured(...) takes a step: give it fieldfare.mlp(...) or a torch net, and an example.")
    b = training.batch_size
    rows = np.arange(b) % len(example[net.y])
    data = Block(example, rows, np.array([0, b]))
    keys = np.zeros(1, np.uint64)
    plan = make_plan(data, keys, training, np.ones(1, np.int64))
    start = net.init(0).vector[None]

    def once() -> None:
        net.fit(start, np.zeros(1, np.int64), data, plan, keys, training, 0.0, Drift())

    once()
    if dense:
        tracemalloc.start()
        try:
            once()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return _allocated(once) + sum(t.untyped_storage().nbytes() for t in _kept(net))


def _allocated(step: Callable[[], None]) -> int:
    """Bytes at the peak of what torch allocates in `step`."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _kept(net: Any) -> list[Any]:
    """Tensors that stay between the steps of a net: its flat storage, gradient, frozen parameters, buffers."""
    resident = net._held()
    frozen = [p for p in resident.module.parameters() if not p.requires_grad]
    return [resident.flat, resident.grad, *frozen, *(t for pair in resident._buffers for t in pair)]
