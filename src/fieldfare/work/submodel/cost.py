"""What a level of a net takes: memory of a training step, FLOPs, bytes on the link; computed, and measured to check.

Here: `declared` and `measured`. Not here: which level a device gets. Invariant: a computed cost depends on the net,
the layout and the training only; computing it takes none of that memory.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.core.params import Layout
from fieldfare.work.net import Drift, Training
from fieldfare.work.submodel.actual import Actual, actual, memory_of
from fieldfare.work.torch_update import is_plain

if TYPE_CHECKING:
    from fieldfare.work.dense import DenseNet
    from fieldfare.work.layers import Inner, Program
    from fieldfare.work.torch_net import TorchNet


_ARRAYS, _PLAIN, _PER_LAYER, _PER_ROW, _PER_ROW_BACK = 6850, 600, 1480, 71, 18
_INSIDE, _PER_NET, _PER_INNER = 2200, 150, 290
_BUFFERED = 8192
"""Bytes of NumPy's array objects and of small arrays in a step of declared layers, measured: at all, fewer for a plain
step, per layer, per example in the loss and on the way back; where nets are trained inside, for each, per layer of
each. And of how many numbers NumPy's buffer is, where kinds or strides of them are mixed."""

_GENERATOR = 5056
"""Bytes of the state of torch's generator, which is put aside while a net trains."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What one client needs to train a sub-model.

    `memory_bytes`: peak of a training step; in it `held_bytes` of parameters, optimiser slots, frozen parameters,
    buffers and client state, and at the turn from forward to backward `saved_bytes` of batch and activations. `flops`
    per example, forward and backward. `bytes`: the model on its way down, `up_bytes` the reply. `parameters`: of the
    model, also where factors train in its place.
    """

    parameters: int
    memory_bytes: int
    held_bytes: int
    saved_bytes: int
    flops: float
    bytes: int
    up_bytes: int


def declared(
    net: Any, training: Training | None = None, layout: Layout | None = None, local: Sequence[Local] = ()
) -> Declared:
    """What `net`, or its sub-model of `layout`, takes to train with `training` (its batch size and optimiser).

    `local`: what an algorithm declares of its clients' steps (`FedAvg.local`); none: the plain step.

    Peak memory by liveness: what lives at any moment of a step, not the sum. Of torch nets it holds for the CPU
    allocator within 5 % (MLP, VGG, ResNet, inception, dense blocks, depthwise convolutions, LSTM, GRU, transformer).
    Convolutions of a single channel: of fewer than 1,024 pixels in a batch up to half too few or three quarters too
    many, of 1x1 up to four times too many; batches that a simulation gathers ahead are not in it.
    Errors: `UsageError` for a torch net without an example.
    """
    from fieldfare.work.dense import DenseNet
    from fieldfare.work.torch_net import TorchNet

    training = training or Training()
    net = getattr(net, "net", net)
    if not isinstance(net, DenseNet | TorchNet):
        raise UsageError(f"declared({type(net).__name__}): memory is known of fieldfare.mlp(...) and of torch nets.")
    layout, asked = net.layout if layout is None else layout, memory_of(local)
    known, key = _DECLARED.setdefault(net, {}), _key(training, layout, asked)
    if key not in known:
        step = actual(net, layout, asked)
        of = _of_dense if isinstance(step.net, DenseNet) else _of_torch
        found = of(step.net, training, step)
        more = {"parameters": layout.size, "bytes": step.down, "up_bytes": step.up}
        held = {"memory_bytes": found.memory_bytes + step.kept, "held_bytes": found.held_bytes + step.kept}
        known[key] = replace(found, **more, **held)
    return known[key]


def already_declared(net: Any, training: Training, layout: Layout, local: Sequence[Local] = ()) -> Declared | None:
    """What `declared` says, where that is known already or takes no time: of declared layers; None elsewhere."""
    from fieldfare.work.dense import DenseNet

    net = getattr(net, "net", net)
    if isinstance(net, DenseNet):
        return declared(net, training, layout, local)
    try:
        return _DECLARED.get(net, {}).get(_key(training, layout, memory_of(local)))
    except TypeError:  # a net of the user's own that cannot be a key
        return None


_DECLARED: WeakKeyDictionary[Any, dict[Any, Declared]] = WeakKeyDictionary()
"""What was computed before, as long as the net lives: by what of a training, and which layout."""


def _key(training: Training, layout: Layout, local: tuple[Local, ...]) -> tuple[Any, ...]:
    """All that a step's memory depends on."""
    return training.batch_size, training.moments, is_plain(training, Drift()), layout, local


def _of_dense(net: DenseNet, training: Training, step: Actual) -> Declared:
    """The arrays of `layers.Stack` for one client, those of its optimiser, and the vector that is handed back.

    Beside them the weights that are rounded (`inner.round_stack`) and the nets inside (`inner.Inside`).
    """
    program, b = net.program, training.batch_size
    plain = program.bits is None and program.inner is None and is_plain(training, step.drift)
    most = max(layer.inputs * layer.outputs for layer in program.layers)
    widest = max(layer.outputs for layer in program.layers)
    vectors = 2 if plain else 4 + training.moments + step.corrected + step.masked + (program.bits is not None)
    held = 4 * (vectors * program.size + (most if plain else 0) + widest)
    outputs = sum(layer.outputs for layer in program.layers)
    inner = outputs - program.outputs
    hidden = max((layer.outputs for layer in program.layers[:-1]), default=0)
    taken = b * (4 * (program.inputs + outputs + inner) + outputs + 24)
    loss, back = b * _PER_ROW, b * _PER_ROW_BACK + 4 * min(b * hidden, _BUFFERED)
    back = max(loss, back) if program.inner is None else _inside_dense(program, program.inner, b, max(loss, back))
    rounding = 0 if program.bits is None else 4 * (program.size + most)
    loading = 4 * program.size * step.corrected
    arrays = _ARRAYS - (_PLAIN if plain else 0)
    more = arrays + max(loading, _PER_LAYER * len(program.layers) + max(back, rounding))
    return Declared(program.size, held + taken + more, held, taken, net.flops(), 4 * program.size, 4 * program.size)


def _inside_dense(program: Program, inner: Inner, b: int, back: int) -> int:
    """Bytes at the peak of a step of `b` examples beside what the own net has, which takes `back` on its way back.

    What the nets inside give is there then, and while one after the other goes back: its slopes, the gradient of a
    matrix, and NumPy's buffers where that is added to a part of the own one.
    """
    own = (program.inputs, *(layer.outputs for layer in program.layers))
    given: list[int] = []
    slopes: list[int] = []
    for widths in inner.widths:
        sizes = (program.inputs, *widths, program.outputs)
        most = back
        for at, (i, o) in enumerate(pairwise(sizes)):
            added = 8 * min(o * i, _BUFFERED) if i < own[at] else 0
            most = max(most, 4 * b * o + 4 * o * i + added)
            most = max(most, 4 * b * o + 9 * b * i + 4 * min(b * i, _BUFFERED)) if at else most
        given.append(4 * b * sum(sizes[1:]) + _PER_NET + _PER_INNER * len(sizes))
        slopes.append(most)
    beside = 12 * b * program.outputs + _INSIDE
    if inner.each == "all":
        return beside + sum(given) + max(slopes)
    return beside + max(one + two for one, two in zip(given, slopes, strict=True))


def _of_torch(net: TorchNet, training: Training, step: Actual) -> Declared:
    from fieldfare.work.submodel.step import step_of

    if net._dense is not None and net._stacks(training):
        return _of_dense(net._dense, training, step)
    batch, target = net.batch(training.batch_size), net.target(training.batch_size)
    inside = net._within if net._within is not None and net._within.steps else None
    plain = inside is None and is_plain(training, step.drift)
    resident = net._held()
    ending = net._ending if net._ending is not None and (net._ending.flatten or batch[0].dim() == 2) else None
    ending = ending if inside is None else None
    own = step_of(net._module, net._loss, batch, target, resident.channels_last, ending, plain)
    beside = sum(p.numel() * p.element_size() for p in net._module.parameters() if not p.requires_grad)
    beside += sum(2 * b.numel() * b.element_size() for b in net._module.buffers())
    vectors = 1 if plain else 3 + training.moments + step.corrected + step.pulled + step.masked
    held = 4 * resident.size * vectors + beside
    size, most = net.layout.size, own.bytes
    flops = own.flops / training.batch_size
    if (
        inside is not None
    ):  # the nets inside are kept, and trained one after the other but where each learns of the other
        kept, nested = [one._held() for one in inside.nets], inside.nested
        last = resident.channels_last
        steps = [step_of(one._module, net._loss, batch, target, last, None, False) for one in inside.nets]
        held += 4 * (sum(one.size for one in kept) + resident.size * (inside.bits is not None))
        flops = inside.flops(flops)
        both = nested is not None and nested.back > 0 and nested.distil > 0
        came = sum(t.untyped_storage().nbytes() for t in (*batch, target))  # is there once
        saved = [one.saved - came for one in steps] if both else []
        most = max(most, *(one.bytes for one in steps)) if steps else most
        most += (sum(saved) if nested is not None and nested.each == "all" else max(saved, default=0)) if both else 0
    return Declared(size, held + most + _GENERATOR, held, own.saved, flops, 4 * size, 4 * size)


def measured(
    net: Any, training: Training | None = None, layout: Layout | None = None,
    example: Mapping[str, NDArray[Any]] | None = None, local: Sequence[Local] = (),
) -> int:  # fmt: skip
    """Bytes at the peak of the allocator (torch's on the CPU, or NumPy's) while one client takes a step.

    The first is taken before, unmeasured; of nets that train others inside in turn, a step of each, less the batches
    that are gathered ahead for it. Client state that `local` declares is added. For a check of `declared`: it takes
    the memory.
    """
    from fieldfare.work.dense import DenseNet
    from fieldfare.work.plan import make_plan
    from fieldfare.work.torch_net import TorchNet

    training = training or Training()
    net = getattr(net, "net", net)
    example = example or getattr(net, "example", None)
    if not isinstance(net, TorchNet | DenseNet) or example is None:
        raise UsageError("measured(...) takes a step: give it fieldfare.mlp(...) or a torch net, and an example.")
    step = actual(net, net.layout if layout is None else layout, memory_of(local))
    net = step.net
    dense = isinstance(net, DenseNet) or (net._dense is not None and net._stacks(training))
    if not dense:
        net._resident = None  # a gradient may be left there that this step does without
    b, turns = training.batch_size, step.turns
    rows = np.arange(b) % len(example[net.y])
    data = Block(example, rows, np.array([0, b]))
    keys = np.zeros(1, np.uint64)
    plan = make_plan(data, keys, training if turns == 1 else replace(training, steps=turns), np.full(1, turns))
    start = net.init(0).vector[None]

    def once() -> None:
        net.fit(start, np.zeros(1, np.int64), data, plan, keys, training, 0.0, step.drift)

    once()
    if dense:
        tracemalloc.start()
        try:
            once()
            return tracemalloc.get_traced_memory()[1] + step.kept
        finally:
            tracemalloc.stop()
    kept = sum(t.untyped_storage().nbytes() for t in _kept(net)) + step.kept
    return _allocated(once) + kept - (_gathered(net, data, turns) - _gathered(net, data, 1))


def _gathered(net: TorchNet, data: Block, steps: int) -> int:
    """Bytes of the examples that the loop takes out of the columns at once, where it is to take so many steps."""
    from fieldfare.work.torch_loops import GATHERED

    inputs, target = net._columns(data)
    b, one = int(data.sizes[0]), [column.take(data.rows[:1]) for column in (*inputs, target)]
    many = max(min(steps, GATHERED // sum(column.row_bytes for column in inputs) // b), 1)
    return many * b * sum(tensor.untyped_storage().nbytes() for tensor in one)


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
    inside = [] if getattr(net, "_within", None) is None else [one._held().flat for one in net._within.nets]
    return [resident.flat, resident.grad, *frozen, *(t for pair in resident._buffers for t in pair), *inside]
