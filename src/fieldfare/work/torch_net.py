"""Any `nn.Module` as a net: trained in a stripped loop on one resident module per process, one thread, no graph where
the layers are known.

Here: the adapter. Not here: storage (`torch_resident`), loops (`torch_loops`), hand-written layers (`torch_lower`).
Invariant: row i of a result depends, to the bit, on client i's model, rows and key; torch's own random state and
number of threads are put back after every call, and the module the user gave is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.work import torch_lockstep
from fieldfare.work import torch_resident as resident_
from fieldfare.work.native.choose import PATHS, asked, chosen, known, stack_of, way_of
from fieldfare.work.net import BadExamples, Drift, Fit, Folding, Plan, Training, measured
from fieldfare.work.shortage import too_little_memory, wants_memory

if TYPE_CHECKING:
    from torch import nn

    from fieldfare.core.local import Local
    from fieldfare.work.native.fit import Native
    from fieldfare.work.submodel.axes import Axes
    from fieldfare.work.torch_inner import Within
    from fieldfare.work.torch_lockstep import Lockstep
    from fieldfare.work.torch_loss import Column
    from fieldfare.work.torch_lower import Ending

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Path: TypeAlias = Literal["auto", "native", "stacked", "hand", "graph", "lockstep"] | str
Transform: TypeAlias = Callable[[Any], Any]

_EVALUATED = 256
"""Examples of one client measured at a time."""

_STACKED_BATCH, _STACKED_SIZE = 16, 1 << 14
"""Dense modules are trained stacked in NumPy from this batch or below this size; else one by one (measured)."""


def torch_net(
    module: nn.Module | Callable[[], nn.Module],
    loss: Any = "cross_entropy",
    metrics: Iterable[str] | Mapping[str, Callable[[Any, Any], Any]] | None = None,
    *,
    transform: Literal["unit", "tokens"] | Transform | None = None,
    x: str | tuple[str, ...] = "x",
    y: str = "y",
    path: Path = "auto",
    example: Mapping[str, NDArray[Any]] | None = None,
) -> TorchNet:
    """A net from an `nn.Module`, or from a function that makes one.

    A module starts every run from the parameters it has; a function is called with torch seeded by the run. Only
    parameters with `requires_grad` are in the model; frozen ones and buffers stay as given (of a function: as it
    makes them for seed 0). `loss`: "cross_entropy" (logits `[B, C]`, `[B, T, C]` or `[B, C, ...]`),
    "masked_cross_entropy" (in training over the client's own classes), "bce", "mse", "l1", or a function
    (output, y) -> scalar. `metrics`: "accuracy", "mae", "mse", or functions (output, y) -> value per example; None:
    accuracy for classifiers. `x`, `y`: columns of the data; several `x` are several arguments. `transform`: for `x`,
    "unit" (uint8 as 0..1), "tokens" (uint8 as int64), or a function on a batch, which may draw from torch's generator.
    `path`: "auto", "native" (the compiled core), "stacked" or "hand" (known layers without autograd), "graph" (every
    layer left to autograd), or "lockstep" (stacks by vmap; the way where there is a CUDA device), "lockstep-16" in
    stacks of 16. `example`: some rows of the columns, from which FLOPs are counted.
    Errors: `MissingExtra` without torch, `UsageError` for what cannot be averaged (running statistics), is not float32,
    or is not on the CPU.
    """
    resident_.need_torch()
    return TorchNet(module, loss, metrics, transform, (x,) if isinstance(x, str) else tuple(x), y, path, example)


class TorchNet:
    """A net (`work.net.Net`) over an `nn.Module`; made by `torch_net`."""

    keeps_moments = True

    def __init__(
        self, module: Any, loss: Any, metrics: Any, transform: Any, x: tuple[str, ...], y: str, path: Path,
        example: Mapping[str, NDArray[Any]] | None,
    ) -> None:  # fmt: skip
        import copy

        from fieldfare.work.torch_loss import loss_of, metrics_of

        if not known(path):
            raise UsageError(f"torch_net(path={path!r}): use one of {', '.join(PATHS)}, or lockstep-16.")
        if transform is not None and transform not in ("unit", "tokens") and not callable(transform):
            raise UsageError(f"torch_net(transform={transform!r}): use 'unit', 'tokens' or a function on a batch of x.")
        if transform is not None and len(x) != 1:
            raise UsageError("torch_net(transform=...) is for one column x: transform several inside the module.")
        given = resident_.is_module(module)
        if not given and not callable(module):
            raise UsageError(
                f"torch_net got a {type(module).__name__}: pass an nn.Module or a function that makes one."
            )
        self._factory = None if given else module
        made = module if given else resident_.build(module, 0)
        resident_.check(made)
        self.loss, self._loss = loss_of(loss)
        self._metrics, self._known_metrics = metrics_of(metrics, self.loss), not isinstance(metrics, Mapping)
        self._transform, self.x, self.y, self.path, self.example = transform, x, y, path, example
        self._take(copy.deepcopy(made))

    def _take(self, module: nn.Module) -> None:
        """Become the net of `module`, which nobody else holds."""
        from fieldfare.work.torch_lower import as_dense, find_ending

        self._module = module
        self.layout = resident_.layout_of(module)
        self._ending: Ending | None = None
        self.why = "asked for"
        told = asked(self.path)
        if told != "graph":
            self._ending, self.why = find_ending(module)
            if self._ending is not None and (self.loss != "cross_entropy" or len(self.x) > 1):
                several = len(self.x) > 1
                self._ending, self.why = None, "there are several inputs" if several else f"the loss is {self.loss}"
        plain = told != "hand" and self._transform is None and self._measures(True)
        x, y = self.x[0], self.y
        self._dense = as_dense(self._ending, self.layout, x, y) if self._ending is not None and plain else None
        self._channels_last = True
        self._resident: resident_.Resident | None = None
        self._flops: float | None = None
        self._axes: Axes | None = None
        self._smaller: dict[Layout, TorchNet] = {}
        self._changed: dict[Any, TorchNet] = {}
        self._factored: dict[int, TorchNet] = {}
        self._within: Within | None = None
        self._native: Native | str | None = None
        self._lockstep: Lockstep | None = None
        self._refused_stacks = ""
        self._key = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resident": None, "_lockstep": None, "_smaller": {}, "_changed": {}, "_factored": {}}

    @property
    def native(self) -> Native | str:
        """The net on the compiled core, or why not."""
        from fieldfare.work.native.bind import of_torch

        if self._native is None:
            if self._within is not None and self._dense is not None:
                self._native = self._dense.native
            elif self._within is not None and self._within.steps:
                self._native = "what is trained inside has no native form"
            elif self.example is None:
                return "there are no examples yet to see the shapes by"
            else:
                self._native = of_torch(self)
        return self._native

    @property
    def key(self) -> str:
        """What a choice between `ways` is remembered for: the plan, or else the module's layers and columns."""
        if not isinstance(native := self.native, str):
            return native.key
        if not self._key:
            self._key = torch_lockstep.key_of(self, self._module)
        return self._key

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways this net can be trained, the first being taken where nothing was settled: on a CUDA device that."""
        native, stacks = () if isinstance(self.native, str) else ("native",), () if self.unstacked else ("lockstep",)
        if stacks and self.on_device:
            return (*stacks, *native, "torch")
        return (*native, "torch", *stacks)

    @property
    def on_device(self) -> bool:
        """Whether a CUDA device is to be used where it can be."""
        return asked(self.path) == "auto" and torch_lockstep.device() is not None

    @property
    def forks(self) -> bool:
        """Whether a process that has computed with this net may be forked: autograd on a CUDA device has threads."""
        return torch_lockstep.device() is None

    @property
    def _way(self) -> str:
        if asked(self.path) in ("stacked", "hand", "graph"):
            return "torch"
        return chosen(self.key, self.ways, self.path)

    @property
    def on_core(self) -> Native | None:
        """`native`, where it is the way this net is trained here."""
        return native if self._way == "native" and not isinstance(native := self.native, str) else None

    @property
    def lockstep(self) -> Lockstep | None:
        """Stacks in lockstep, where that is the way: on a CUDA device, measured to be the fastest, or asked for."""
        way = self._way
        if way_of(way) != "lockstep":
            return None
        if self._lockstep is None:
            self._lockstep = torch_lockstep.Lockstep(self._module, self._loss, torch_lockstep.device() or "cpu")
        self._lockstep.stack = stack_of(way)
        return self._lockstep

    def cannot_stack(self, why: str) -> None:
        """From now on, not in lockstep."""
        self._lockstep = None
        self._refused_stacks = f"it cannot be stacked: {why.splitlines()[0] if why else 'no word why'}"

    @property
    def unstacked(self) -> str:
        """Why it cannot be trained in lockstep, or nothing."""
        if self._within is not None:
            return "its training is changed by a declaration"
        if self.loss == "masked_cross_entropy":
            return "this loss is each client's own"
        return "its transform is a function of its own" if callable(self._transform) else self._refused_stacks

    @property
    def threaded(self) -> bool:
        """Whether it is computed in this process, by its threads or a device, so that more processes gain nothing."""
        return self.on_core is not None or ((stack := self.lockstep) is not None and stack.on.type != "cpu")

    @property
    def together(self) -> int:
        """How many clients are best trained in one call, or a multiple of it."""
        return 1 if (stack := self.lockstep) is None or stack.on.type != "cpu" else stack.clients(0)

    def folds(self, training: Training) -> bool:
        """Whether `fit` takes a `Folding`."""
        return self.on_core is not None

    def axes(self) -> Axes:
        """The channel groups of the module, found on `example`, once."""
        from fieldfare.work.submodel.modules import of_module

        if self._axes is None:
            self._axes = of_module(self._module, self.batch(2))
        return self._axes

    def of(self, layout: Layout) -> TorchNet:
        """The net of a sub-model's layout: this module with fewer channels, or cut behind an exit."""
        import copy

        from fieldfare.work.submodel.modules import of_layout

        if layout == self.layout:
            return self
        if layout not in self._smaller:
            smaller = copy.copy(self)
            smaller._factory = None
            smaller._take(of_layout(self._module, self.axes(), layout, self.batch(2)))
            self._smaller[layout] = smaller
        return self._smaller[layout]

    @property
    def of_labels(self) -> bool:
        """Whether the loss is a softmax's of labels, be it of one exit or of several."""
        return self.loss in ("cross_entropy", "masked_cross_entropy", "exit_cross_entropy")

    @property
    def is_changed(self) -> bool:
        """Whether `changed` made it."""
        return self._within is not None

    def changed(self, whole: TorchNet, asked: tuple[Local, ...]) -> TorchNet:
        """This net, a sub-model's of `whole` or that itself, as declarations want it trained; see `torch_inner`."""
        from fieldfare.work.torch_inner import changed

        key = whole.layout, asked
        if key not in self._changed:
            self._changed[key] = changed(self, whole, asked)
        return self._changed[key]

    def factored(self, rank: int) -> TorchNet:
        """The net of factors of `rank` of every larger matrix; see `torch_factors`."""
        from fieldfare.work.torch_factors import factored

        if rank not in self._factored:
            self._factored[rank] = factored(self, rank)
        return self._factored[rank]

    def batch(self, rows: int) -> tuple[Any, ...]:
        """What the module takes for `rows` examples (the first of `example`, again and again), a tensor each."""
        if self.example is None:
            raise UsageError("this torch net has no example to look at: use torch_net(..., example=rows of the data).")
        have = len(self.example[self.y])
        inputs, _ = self._columns(Block(self.example, np.arange(have), np.array([0, have])))
        batch = [column.take(np.arange(rows) % have).clone() for column in inputs]
        return (self._transform(batch[0]),) if callable(self._transform) else tuple(batch)

    def init(self, seed: int) -> Params:
        """The module's own parameters, or those its function makes for (seed, "init"); persistent buffers beside."""
        module = self._module if self._factory is None else resident_.build(self._factory, seed)
        if resident_.layout_of(module) != self.layout:
            raise UsageError("the function given as model makes modules of different shapes: make it always make one.")
        sides = {name: b.numpy().copy() for name, b in self._module.state_dict().items() if self._is_buffer(name)}
        return Params(resident_.vector_of(module), self.layout, sides)

    def module(self, model: Params | F32) -> nn.Module:
        """A fresh module with the parameters of `model`, in evaluation mode: what to take home."""
        import copy

        out = copy.deepcopy(self._module).eval()
        resident_.write_into(out, model.vector if isinstance(model, Params) else model, self.layout)
        return out

    def target(self, rows: int) -> Any:
        """What the loss compares with for the same examples as `batch`."""
        if self.example is None:
            raise UsageError("this torch net has no example to look at: use torch_net(..., example=rows of the data).")
        have = len(self.example[self.y])
        _, target = self._columns(Block(self.example, np.arange(have), np.array([0, have])))
        return target.take(np.arange(rows) % have).clone()

    def fit(
        self, start: F32, row: I64, data: Block, plan: Plan, keys: NDArray[np.uint64], training: Training, lr: float,
        drift: Drift, moments: F32 | None = None, fold: Folding | None = None,
    ) -> Fit:  # fmt: skip
        """Train n clients: on the compiled core, one per thread; or one after the other, each from `start[row]`."""
        if (stack := self.lockstep) is not None and training.precision == "float32":
            fitted = self._in_lockstep(stack, start, row, data, plan, training, lr, drift, moments)
            if fitted is not None:
                return fitted
        if (core := self._core_for(data, training)) is not None:
            self._check_labels(data)
            return core.fit(start, row, data, plan, keys, training, lr, drift, moments, fold)
        import torch

        from fieldfare.work.torch_inner import Inside
        from fieldfare.work.torch_loops import Batches, ByHand, Graph
        from fieldfare.work.torch_update import Update, is_plain

        inputs, target = self._columns(data)
        by_hand = self._by_hand(inputs)
        if self._dense is not None and by_hand and self._stacks(training):
            return self._dense.fit(start, row, data, plan, keys, training, lr, drift, moments)
        n = len(plan.steps)
        out, losses = np.empty((n, self.layout.size), np.float32), np.zeros(n)
        resident_.keep_memory()
        batches = Batches(plan, inputs, target, self._transform if callable(self._transform) else None)
        resident, left = self._held(), None if moments is None else moments.copy()
        within = None if self._within is None or not self._within.steps else self._within
        plain = within is None and is_plain(training, drift)
        with resident_.one_thread(), resident_.own_randomness() as reseed, torch.no_grad():
            update = None if plain else Update(resident, training, lr, drift, start, moments)
            if within is not None and update is not None:
                loop = Inside(resident, within, batches, self._loss, update, reseed, self._channels_last)
            elif by_hand and self._ending is not None:
                loop = ByHand(resident, self._ending, batches, lr, update, reseed)
            else:
                loop = Graph(resident, batches, self._loss, lr, update, reseed)
            for i in range(n):
                if not plan.steps[i]:
                    out[i] = start[row[i]]
                    continue
                resident.load(start[row[i]])
                if update is not None:
                    update.begin(i, int(row[i]))
                try:
                    losses[i] = loop.client(i, keys[i])
                except (RuntimeError, IndexError, ValueError) as error:
                    if wants_memory(error):
                        raise too_little_memory(error, "to train a client of this module") from error
                    if self._without_channels_last(resident):
                        return self.fit(start, row, data, plan, keys, training, lr, drift, moments)
                    raise self._refused(inputs, target, error, i) from error
                resident.save(out[i])
                if left is not None and update is not None:
                    update.end(int(plan.steps[i]), left[i])
        return Fit(out, losses, {}, left)

    def evaluate(self, models: F32, row: I64, data: Block) -> Mapping[str, F64]:
        """`loss` and the metrics, `[n]`, in evaluation mode; 0 for a client without examples."""
        if (core := self._core_for(data)) is not None and self._measures(core.labelled):
            self._check_labels(data)
            return measured(*core.evaluate(models, row, data), core.labelled)
        import torch

        names = ["loss", *self._metrics]
        out = {name: np.zeros(data.n) for name in names}
        inputs, target = self._columns(data)
        if self._dense is not None and self._by_hand(inputs):
            return self._dense.evaluate(models, row, data)
        resident, held = self._held(), -1
        transform = self._transform if callable(self._transform) else None
        resident.module.eval()
        with resident_.one_thread(), resident_.own_randomness() as reseed, torch.no_grad():
            for i in range(data.n):
                rows = data.rows[data.offsets[i] : data.offsets[i + 1]]
                if row[i] != held and len(rows):
                    resident.load(models[row[i]])
                    held = int(row[i])
                sums = dict.fromkeys(names, 0.0)
                for at in range(0, len(rows), _EVALUATED):
                    part = rows[at : at + _EVALUATED]
                    y = target.take(part)
                    batch = [column.take(part) for column in inputs]
                    reseed(at)
                    try:
                        output = resident.module(*([transform(batch[0])] if transform is not None else batch))
                        sums["loss"] += float(self._loss(output, y)) * len(part)
                        for name, metric in self._metrics.items():
                            value = metric(output, y)
                            sums[name] += float(value.mean(dtype=torch.float64)) * len(part) if value.numel() else 0.0
                    except (RuntimeError, IndexError, ValueError) as error:
                        if wants_memory(error):
                            raise too_little_memory(error, "to evaluate this module") from error
                        if self._without_channels_last(resident):
                            return self.evaluate(models, row, data)
                        raise self._refused(inputs, target, error, i) from error
                for name in names:
                    out[name][i] = sums[name] / max(len(rows), 1)
        return out

    def flops(self) -> float:
        """FLOPs of a forward and backward pass on one example, counted on `example`; without it 6 per parameter."""
        if self._flops is None:
            self._flops = 6.0 * self.layout.size if self.example is None else self._count(self.example)
        return self._flops if self._within is None else self._within.flops(self._flops)

    def with_example(self, example: Mapping[str, NDArray[Any]]) -> TorchNet:
        """This net, with rows to count FLOPs on (if it had none)."""
        import copy

        if self.example is not None or not all(name in example for name in (*self.x, self.y)):
            return self
        out = copy.copy(self)
        out.example, out._flops, out._resident, out._axes, out._smaller = example, None, None, None, {}
        out._changed, out._factored, out._native, out._key = {}, {}, None, ""
        return out

    def describe(self) -> Mapping[str, Any]:
        """Layers, loss, columns, and how the module is computed here and why, as plain JSON."""
        from fieldfare.work.native.bind import told

        frozen = sum(p.numel() for p in self._module.parameters() if not p.requires_grad)
        path = "graph" if self._ending is None else "dense end by hand" if self._ending.head else "by hand"
        path, why = (path, self.why) if self._dense is None else ("stacked", "dense layers alone")
        said = {
            "net": "torch", "module": repr(self._module).splitlines(), "loss": self.loss, "metrics": [*self._metrics],
            "x": self.x[0] if len(self.x) == 1 else list(self.x), "y": self.y, "size": self.layout.size,
            **told(self, path, why),
        }  # fmt: skip
        if self._transform is not None:
            said["transform"] = self._transform if isinstance(self._transform, str) else _name(self._transform)
        return {**said, "frozen": frozen} if frozen else said

    def _in_lockstep(
        self, stack: Lockstep, start: F32, row: I64, data: Block, plan: Plan, training: Training, lr: float,
        drift: Drift, moments: F32 | None,
    ) -> Fit | None:  # fmt: skip
        """What stacks give; None from then on where an operation of the module cannot be stacked."""
        from fieldfare.work.torch_lockstep import fit

        inputs, target = self._columns(data)
        try:
            return fit(stack, start, row, inputs, target, plan, training, lr, drift, moments)
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError, LookupError) as error:
            if wants_memory(error):
                raise too_little_memory(error, "to train a stack of clients in lockstep") from error
            said = str(error)
            if not isinstance(error, IndexError) and "out of bounds" not in said and "out of range" not in said:
                self.cannot_stack(said)
            return None  # of a client's bad examples the loop over clients says whose they are

    def _measures(self, labelled: bool) -> bool:
        """Whether the metrics are the core's: accuracy of labels, else none but the loss."""
        return self._known_metrics and [*self._metrics] == ["accuracy"] * labelled

    def _core_for(self, data: Block, training: Training | None = None) -> Native | None:
        """`on_core`, where the columns have the shapes that its plan was made for."""
        from fieldfare.work.native.bind import in_half

        half = training is not None and training.precision != "float32"
        core = in_half(self) if half else self.on_core
        if core is None or self.example is None:
            return core
        for name in (*self.x, self.y):
            if name not in data.columns:
                return core
            now, seen = (self._form(name, one[name]) for one in (data.columns, self.example))
            if now != seen:
                if half or self.path == "native":
                    raise UsageError(
                        f"column {name!r} has examples of {now[1]} ({now[0]}) where the plan of the compiled core is "
                        f"made for {seen[1]} ({seen[0]}): make the net anew with rows of this data as its example."
                    )
                return None
        return core

    def _form(self, name: str, column: NDArray[Any]) -> tuple[str, tuple[int, ...]]:
        """What a plan depends on: whole numbers or others (bytes, where they are read as such), shape of an example."""
        kind = "whole numbers" if column.dtype.kind in "iub" else "numbers"
        bytes_ = self._transform == "unit" and name in self.x and column.dtype == np.uint8
        return "bytes" if bytes_ else kind, column.shape[1:]

    def _check_labels(self, data: Block) -> None:
        """Refuse columns that the loss cannot compare with."""
        self._columns(data)
        y = data.columns[self.y]
        if self.of_labels and y.dtype.kind not in "iub":
            raise UsageError(f"column {self.y!r} holds {y.dtype}: labels are whole numbers.")

    def _by_hand(self, inputs: list[Column]) -> bool:
        """Whether the dense end takes vectors, as it must."""
        return self._ending is not None and (self._ending.flatten or inputs[0].array.ndim == 2)

    def _stacks(self, training: Training) -> bool:
        small = self.layout.size <= _STACKED_SIZE
        return small or training.batch_size >= _STACKED_BATCH or self._within is not None

    def _is_buffer(self, name: str) -> bool:
        return any(name == known for known, _ in self._module.named_buffers())

    def _held(self) -> resident_.Resident:
        if self._resident is None:
            self._resident = resident_.Resident(self._module, self._channels_last)
        return self._resident

    def _without_channels_last(self, resident: resident_.Resident) -> bool:
        """After an error: whether the convolutions lay channels last (the module may call `view`) and no more do."""
        if not resident.channels_last:
            return False
        self._channels_last, self._resident = False, None
        return True

    def _columns(self, data: Block) -> tuple[list[Column], Column]:
        from fieldfare.work.torch_loss import Column

        for name in (*self.x, self.y):
            if name not in data.columns:
                have = ", ".join(data.columns) or "none"
                raise UsageError(
                    f"the data has no column {name!r} (it has {have}): rename it, or give torch_net its name."
                )
        if self._transform is None:
            for name in self.x:
                if data.columns[name].dtype == np.uint8:
                    raise UsageError(
                        f"column {name!r} holds uint8: say torch_net(module, transform='unit') for pictures as "
                        "0..1, or transform='tokens' for symbols."
                    )
        inputs = [Column(name, data.columns[name], self._transform) for name in self.x]
        return inputs, Column(self.y, data.columns[self.y])

    def _refused(
        self, inputs: list[Column], target: Column, error: Exception, place: int | None = None
    ) -> UsageError:  # fmt: skip
        """The refusal in our words; with the `place` of a client where its own examples are at fault."""
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, IndexError) and place is not None:
            what = "a label that the model has no output for" if said.startswith("Target ") else "a number out of range"
            which = repr(target.name) if said.startswith("Target ") else " or ".join(repr(c.name) for c in inputs)
            return BadExamples(f"column {which} has {what}: torch says {said!r}; relabel from 0, or widen it.", place)
        told = ", ".join(f"{c.name!r} of {c.array.dtype} {c.array.shape[1:]} per example" for c in (*inputs, target))
        return UsageError(f"the module could not take the columns {told}: torch says {said!r}.")

    def _count(self, example: Mapping[str, NDArray[Any]]) -> float:
        from fieldfare.work.torch_flops import count

        rows = np.arange(min(len(example[self.y]), 2))
        inputs, target = self._columns(Block(example, rows, np.array([0, len(rows)])))
        resident = self._held()
        try:
            with resident_.one_thread(), resident_.own_randomness():
                batch = [column.take(rows) for column in inputs]
                batch = [self._transform(batch[0])] if callable(self._transform) else batch
                return count(resident, self._loss, batch, target.take(rows)) / len(rows)
        except (RuntimeError, IndexError, ValueError) as error:
            if wants_memory(error):
                raise too_little_memory(error, "for a step of this module") from error
            if self._without_channels_last(resident):
                return self._count(example)
            raise self._refused(inputs, target, error) from error


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
