"""A torch module that can be cut in two: a net for whole training, its legal cuts, and the halves of each.

Here: the adapter. Not here: tracing (`graph`), arithmetic of a half (`half`), what a device and an edge compute
(`works`). Invariant: the vector is in the order of execution, so that every cut makes two ranges of it; running
statistics of normalisation layers are in it, beside the parameters of their layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.work import torch_resident as resident_
from fieldfare.work.split.cuts import Cut, count_cuts
from fieldfare.work.split.graph import Traced, between, changes_input, places, tensors, trace
from fieldfare.work.split.half import Half, Storage, sub_layout
from fieldfare.work.torch_net import TorchNet

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fieldfare.work.submodel.axes import Axes
    from fieldfare.work.torch_loss import Column

F32 = NDArray[np.float32]


def split_net(
    module: nn.Module | Callable[[], nn.Module],
    loss: Any = "cross_entropy",
    metrics: Iterable[str] | Mapping[str, Callable[[Any, Any], Any]] | None = None,
    *,
    transform: Literal["unit", "tokens"] | Callable[[Any], Any] | None = None,
    x: str | tuple[str, ...] = "x",
    y: str = "y",
    example: Mapping[str, NDArray[Any]] | None = None,
) -> SplitNet:
    """A net that can be cut, from an `nn.Module` or from a function that makes one; arguments as of `torch_net`.

    Running statistics of normalisation layers are allowed: they travel in the vector and are averaged like parameters.
    `example`: some rows of the columns, needed for `cuts`. Errors: `MissingExtra` without torch, `UsageError` for a
    module that cannot be followed.
    """
    resident_.need_torch()
    return SplitNet(module, loss, metrics, transform, (x,) if isinstance(x, str) else tuple(x), y, example)


class SplitNet(TorchNet):
    """A net (`work.net.Net`) over an `nn.Module` in order of execution; made by `split_net`.

    Whole training is torch's own graph, `path="graph"` of `torch_net`. `counts`: what `memory` has counted on it.
    """

    def __init__(
        self, module: Any, loss: Any, metrics: Any, transform: Any, x: tuple[str, ...], y: str,
        example: Mapping[str, NDArray[Any]] | None,
    ) -> None:  # fmt: skip
        given = module
        if not resident_.is_module(module):
            if not callable(module):
                raise UsageError(
                    f"split_net got a {type(module).__name__}: pass an nn.Module or a function that makes one."
                )
            given = resident_.build(module, 0)
        super().__init__(_without_statistics(given), loss, metrics, transform, x, y, "graph", example)
        import copy

        self._factory = None if given is module else module
        self._split(copy.deepcopy(given))

    def _split(self, module: nn.Module) -> None:
        """Become the net of `module`, which nobody else holds, in order of execution."""
        self._module = module
        self._traced: Traced | None = None
        self._cuts: tuple[Cut, ...] | None = None
        self._halves: dict[tuple[int, int], Half] = {}
        self._plain_axes: Axes | None = None
        self.counts: dict[Any, Any] = {}
        self.layout = self.traced.layout

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_traced": None, "_halves": {}}

    def axes(self) -> Axes:
        """The channel groups of the module, running statistics with the layers they are of; on `example`, once."""
        from fieldfare.work.submodel.axes import Axes

        if self._axes is None:
            found, fixed = self._trained_axes(), dict(self._trained_axes().fixed)
            params = {n: found.params[n] if n in found.params else fixed.pop(n) for n in self.layout.names}
            self._axes = Axes(self.layout, found.groups, params, fixed, found.sites)
        return self._axes

    def _trained_axes(self) -> Axes:
        """The same of the parameters alone, in the order of the module."""
        from fieldfare.work.submodel.modules import of_module

        if self._plain_axes is None:
            if self.example is None:
                raise UsageError(
                    "the channels of a net are found on examples: give split_net(..., example={'x': ...}), or "
                    "submodels(..., example=...)."
                )
            with resident_.one_thread(), resident_.own_randomness() as reseed:
                reseed(0)
                self._plain_axes = of_module(self._module, tuple(self._example()))
        return self._plain_axes

    def of(self, layout: Layout) -> SplitNet:
        """The net of a sub-model's layout, which can be cut at the same places."""
        import copy

        from fieldfare.work.submodel.modules import of_layout

        if layout == self.layout:
            return self
        if layout not in self._smaller:
            found, shapes = self._trained_axes(), dict(zip(layout.names, layout.shapes, strict=True))
            plain = Layout.of({name: shapes[name] for name in found.layout.names if name in shapes})
            module = of_layout(self._module, found, plain, tuple(self._example()))
            smaller = copy.copy(self)
            smaller._factory = None
            smaller._take(_without_statistics(module))
            smaller._split(module)
            if smaller.layout != layout:
                raise UsageError(
                    f"a model of {layout.size} numbers came to a net of {self.layout.size} that has no such sub-model: "
                    "use a view of this net."
                )
            self._smaller[layout] = smaller
        found = self._smaller[layout]
        assert isinstance(found, SplitNet)
        return found

    @property
    def traced(self) -> Traced:
        """The operations of the module."""
        if self._traced is None:
            inputs = None if self.example is None else self._example()
            self._traced = trace(self._module, inputs)
        return self._traced

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The legal cuts, from the input to the output, counted on the example rows."""
        if self._cuts is None:
            if self.example is None:
                raise UsageError("the cuts of a net are counted on examples: give split_net(..., example={'x': ...}).")
            with resident_.one_thread(), resident_.own_randomness() as reseed:
                reseed(0)
                self._choose_format()
                try:
                    self._cuts = count_cuts(self.traced, places(self.traced), self._example())
                except (RuntimeError, IndexError) as error:
                    shape = ", ".join(str(self.example[name].shape[1:]) for name in self.example if name in self.x)
                    said = (str(error).splitlines() or [type(error).__name__])[0]
                    raise UsageError(
                        f"the data does not fit the net: of examples of shape {shape} torch says {said!r}."
                    ) from error
        return self._cuts

    @property
    def digest(self) -> str:
        """What two nodes compare before they share a session: operations, layers, names and shapes; 16 hex digits."""
        traced = self.traced
        told = [traced.graph.code, repr(self._module), self.loss, *traced.layout.names, *map(str, traced.layout.shapes)]
        return hashlib.blake2b("\x1f".join(told).encode(), digest_size=8).hexdigest()

    @property
    def counters(self) -> NDArray[np.bool_]:
        """Bool `[P]`: counters of batches, of which an aggregate takes the largest; all else is averaged."""
        out = np.zeros(self.layout.size, np.bool_)
        for name, where, _ in self.layout.items():
            out[where] = name.endswith("num_batches_tracked")
        return out

    def cut(self, which: int | str | Cut) -> Cut:
        """A legal cut by number or by name; errors: `UsageError` with those there are."""
        if isinstance(which, Cut):
            return which
        for cut in self.cuts:
            if which in (cut.number, cut.name):
                return cut
        names = ", ".join(f"{cut.number} {cut.name!r}" for cut in self.cuts)
        raise UsageError(f"no cut is called {which!r}: this net can be cut after {names}.")

    def cut_of_size(self, size: int) -> Cut:
        """The cut with `size` numbers on the device where the fewest bytes cross, the first of them.

        Errors: `UsageError` where no cut has that size.
        """
        found = [cut for cut in self.cuts if cut.size == size]
        if not found:
            sizes = ", ".join(str(one) for one in dict.fromkeys(cut.size for cut in self.cuts))
            raise UsageError(f"no cut leaves {size} numbers on the device: this net can be cut behind {sizes}.")
        return min(found, key=lambda cut: cut.activation_bytes)

    def half(self, start: Cut | None, stop: Cut | None) -> Half:
        """The operations behind `start` (None: from the input) up to `stop` (None: to the output), once per process."""
        key = (-1 if start is None else start.number, -1 if stop is None else stop.number)
        if key not in self._halves:
            traced, layout = self.traced, self.layout
            numbers = 0 if start is None else start.size, layout.size if stop is None else stop.size
            own, clone, turned = sub_layout(layout, *numbers), False, False
            if start is not None:
                like = self._crossing(start)
                clone, turned = changes_input(traced, start.place), like.dim() == 4 and not like.is_contiguous()
            ends = None if start is None else start.place, None if stop is None else stop.place
            self._halves[key] = Half(between(traced, *ends), own, self._channels_last, clone, turned)
        return self._halves[key]

    def _choose_format(self) -> None:
        """Lay convolutions out channels last, unless the module calls `view` on what they give."""
        try:
            self._held().module(*self._example())
        except RuntimeError:
            self._channels_last, self._resident = False, None

    def _crossing(self, cut: Cut) -> Tensor:
        """What crosses at `cut` for the example rows, as it lies in memory."""
        with resident_.own_randomness() as reseed:
            reseed(0)
            return self.half(None, cut).forward(self.init(0).vector[: cut.size], self._example())

    def columns(self, columns: Mapping[str, NDArray[Any]]) -> tuple[list[Column], Column]:
        """The inputs and the target among `columns`, as batches of tensors."""
        from fieldfare.core.block import Block

        return self._columns(Block(columns, np.empty(0, np.int64), np.zeros(1, np.int64)))

    def rows(self, inputs: list[Column], rows: NDArray[np.int64]) -> list[Tensor]:
        """Rows `[B]` of the inputs, behind the transform, which may draw from torch's generator."""
        batch = [column.take(rows) for column in inputs]
        return [self._transform(batch[0])] if callable(self._transform) else batch

    def loss_of(self, output: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch."""
        return self._loss(output, y)

    def init(self, seed: int) -> Params:
        """The module's own parameters and statistics, or those its function makes for (seed, "init")."""
        module = self._module if self._factory is None else resident_.build(self._factory, seed)
        found = tensors(module)
        if {name: tuple(t.shape) for name, t in found.items()} != dict(
            zip(self.layout.names, self.layout.shapes, strict=True)
        ):
            raise UsageError("the function given as model makes modules of different shapes: make it always make one.")
        return Params.pack({name: found[name].detach().numpy() for name in self.layout.names})

    def module(self, model: Params | F32) -> nn.Module:
        """A fresh module with the numbers of `model`, in evaluation mode: what to take home."""
        import copy

        out = copy.deepcopy(self._module).eval()
        vector, found = model.vector if isinstance(model, Params) else model, tensors(out)
        for name, at, shape in self.layout.items():
            np.copyto(found[name].detach().numpy(), vector[at].reshape(shape), casting="unsafe")
        return out

    def with_example(self, example: Mapping[str, NDArray[Any]]) -> SplitNet:
        """This net, with rows to count FLOPs and cuts on (if it had none)."""
        out = super().with_example(example)
        assert isinstance(out, SplitNet)
        if out is not self:
            out._cuts, out._halves, out._plain_axes, out.counts = None, {}, None, {}
        return out

    def describe(self) -> Mapping[str, Any]:
        """As of `torch_net`, and the cuts, as plain JSON."""
        said = {**super().describe(), "net": "split", "why": "every layer is left to autograd", "by": self.traced.by}
        if self.example is not None:
            said["cuts"] = [cut.name for cut in self.cuts]
        return said

    def _held(self) -> Storage:
        if not isinstance(self._resident, Storage):
            self._resident = Storage(self._module, self.layout, self._channels_last)
        return self._resident

    def _example(self) -> list[Tensor]:
        """The inputs of two example rows: a layer over a batch needs more than one."""
        assert self.example is not None
        inputs, _ = self.columns({**{self.y: np.zeros(2)}, **self.example})
        rows = np.arange(2) % len(self.example[self.x[0]])
        return [tensor.clone() for tensor in self.rows(inputs, rows)]


def legal_cuts(
    net: SplitNet | nn.Module, example: Mapping[str, NDArray[Any]] | None = None, **more: Any
) -> tuple[Cut, ...]:
    """The legal cuts of a net, or of a module with `example` rows; `more` as of `split_net`."""
    if isinstance(net, SplitNet):
        return (net if example is None else net.with_example(example)).cuts
    return split_net(net, example=example, **more).cuts


def _without_statistics(module: Any) -> Any:
    """A copy without running statistics, to be checked as `torch_net` checks a module."""
    import copy

    out = copy.deepcopy(module)
    for part in out.modules():
        if getattr(part, "track_running_stats", False) and getattr(part, "running_mean", None) is not None:
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return out
