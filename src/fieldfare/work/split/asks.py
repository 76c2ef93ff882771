"""What an ask says to the works of a split net, read and checked: cut, batch, model, slots, tensors.

Here: the base that the works share. Not here: what they compute (`works`). Invariant: what does not fit is refused in
one line before anything is computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.effects import Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Cost, Output
from fieldfare.work import torch_resident as resident_
from fieldfare.work.net import Training, moments_size
from fieldfare.work.plan import make_plan, passes_and_steps
from fieldfare.work.split.cuts import Cut
from fieldfare.work.split.net import SplitNet
from fieldfare.work.split.ranges import Split
from fieldfare.work.torch_loops import seeds
from fieldfare.work.train import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """All that one client of a cohort was given, read."""

    place: int
    told: Mapping[str, Any]
    split: Split
    training: Training
    lr: float
    model: F32
    seq: int
    seed: int


@dataclass(frozen=True, slots=True)
class Side(ABC):
    """What the works share. An ask says, in `each`, `inputs` or `config`, in that order of precedence:

    `seq`, the batch's number in the round, from 0; `round` (for the schedule; or `lr`), `steps`, `epochs`; `cut`, by
    number or name (else the one of the model's size where least crosses); `tail`, likewise, for a U; `level`, the net
    that is cut, by its number among `levels` (else `net`); `count`, examples in the batch, where only the asker knows
    (cost of what a server does); and the tensors that each work names.
    The randomness of the ask (`Run.key`) must be that of the device's round: it fixes order and chance of all batches.
    Nothing travels for these works, since nodes ask themselves: bytes are those of messages.

    Clients of a stack are computed one after the other, each on one core. Measured on a CPU against `torch.func.vmap`,
    which cannot lay convolutions out channels last: VGG-5 behind pool2, 32x32, batch 100, server's step 19 against 17
    ms of CPU time per client, device's 45 against 96; 8x8, batch 20, 0.84 against 0.60 and 0.82 against 1.06.
    """

    net: SplitNet
    training: Training = field(default_factory=Training)
    cut: int | None = None
    tail: int | None = None
    levels: tuple[SplitNet, ...] = ()
    name: ClassVar[str] = ""
    server: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    stream: ClassVar[np.uint64] = np.uint64(0)
    stacks: ClassVar[bool] = True

    def slots(self, layout: Layout) -> Mapping[str, int]:
        """None: an optimiser's slots are inputs and leaves, so that they can move."""
        return {}

    def __call__(self, cohort: Cohort) -> Output:
        """Compute every client of `cohort`, one after the other on resident modules: see the class for the leaves."""
        rows: list[dict[str, Any]] = []
        weight, metrics = np.zeros(cohort.n), dict[str, F64]()
        resident_.keep_memory()
        with resident_.one_thread(), resident_.own_randomness() as reseed:
            for i in range(cohort.n):
                part = self.read(cohort, i)
                reseed(part.seed)
                leaves, weight[i], told = self.compute(cohort, part)
                rows.append(leaves)
                for name, value in told.items():
                    metrics.setdefault(name, np.zeros(cohort.n))[i] = value
        return Output(_stacked(rows), weight, metrics)

    @abstractmethod
    def compute(self, cohort: Cohort, part: Part) -> tuple[dict[str, Any], int, dict[str, float]]:
        """(leaves, examples, metrics) of one client."""

    def read(self, cohort: Cohort, i: int) -> Part:
        """What client i was given; errors: `UsageError` for a model that is not of this side of the cut."""
        told = {**cohort.config, **cohort.inputs, **cohort.each.get(i, {})}
        split = self.split_of(told, cohort.models.shape[1])
        size = split.layouts[self.server].size
        if cohort.models.shape[1] != size:
            raise UsageError(
                f"{self.name}: a model of {cohort.models.shape[1]} numbers came to a side of {size}: check the cut."
            )
        training, lr = settings(self.training, told)
        seq = int(self.given(told, "seq"))
        if seq < 0:
            raise UsageError(f"{self.name}: batch {seq}: batches of a round are numbered from 0.")
        seed = seeds(cohort.keys[i] ^ self.stream, seq + 1)[seq]
        return Part(i, told, split, training, lr, cohort.models[cohort.row[i]], seq, seed)

    def split_of(self, told: Mapping[str, Any], size: int) -> Split:
        """The split an ask names; where it names none, that of a side of `size` numbers."""
        which, tail, net = told.get("cut", self.cut), told.get("tail", self.tail), self.net_of(told)
        if which is None and tail is not None:
            raise UsageError(f"{self.name}: tail={tail!r} without a cut: name both.")
        own = net.layout.size - size if self.server else size
        cut = net.cut_of_size(own) if which is None else net.cut(which)
        return Split(net, cut, self.training, None if tail is None else net.cut(tail))

    def net_of(self, told: Mapping[str, Any]) -> SplitNet:
        """The net an ask names; a level's number goes around, as in the views that have others for each client."""
        if told.get("level") is None:
            return self.net
        if not self.levels:
            raise UsageError(
                f"{self.name}: level={told['level']!r} of a net without levels: give split_works(levels=)."
            )
        return self.levels[int(told["level"]) % len(self.levels)]

    def given(self, told: Mapping[str, Any], name: str) -> Any:
        """An input by name."""
        if name not in told:
            raise UsageError(f"{self.name}: input {name!r} is missing: give it in the Run's inputs or config.")
        return told[name]

    def given_slots(self, part: Part, *sizes: int) -> list[F32]:
        """The optimiser's slots, of ranges of so many numbers; none, or an empty array: those of a new optimiser."""
        lengths = [moments_size(part.training, size) for size in sizes]
        slots = part.told.get("slots")
        if slots is None or (isinstance(slots, np.ndarray) and not slots.size):
            slots = np.zeros(sum(lengths), np.float32)
        if not isinstance(slots, np.ndarray) or slots.shape != (sum(lengths),) or slots.dtype != np.float32:
            raise UsageError(f"{self.name}: slots are float32 of shape ({sum(lengths)},): got {_said(slots)}.")
        return np.split(slots, np.cumsum(lengths[:-1]))

    def tensor(self, part: Part, name: str, cut: Cut) -> Tensor:
        """Input `name` as what crosses at `cut`: a fresh tensor, aligned the same wherever the array came from."""
        import torch

        array, shape = self.given(part.told, name), cut.activations
        good = isinstance(array, np.ndarray) and array.dtype == np.float32 and array.shape[1:] == shape and len(array)
        if not good:
            wanted = ", ".join(map(str, ("B", *shape)))
            raise UsageError(f"{self.name}: {name!r} is float32 of shape ({wanted}) at this cut: got {_said(array)}.")
        out = torch.empty(array.shape)
        np.copyto(out.numpy(), array)
        return out

    def rows(self, cohort: Cohort, part: Part) -> tuple[I64, int]:
        """(rows of the columns that the batch takes, batches in the round)."""
        i = part.place
        steps = int(passes_and_steps(cohort.data.sizes[i : i + 1], part.training)[1][0])
        if part.seq >= steps:
            raise UsageError(
                f"batch {part.seq} of client {cohort.clients[i]}: its round has {steps} batches, numbered from 0."
            )
        plan = make_plan(cohort.data.part(i, i + 1), cohort.keys[i : i + 1], part.training, np.array([part.seq + 1]))
        start, stop = plan.step_bounds(0)[part.seq :]
        return plan.rows[start:stop], steps

    def alike(self, config: Mapping[str, Scalar]) -> Any:
        """What of a config must be equal for asks to be computed in one stack: nothing, each client has its own."""
        return None

    def costs_alike(self, config: Mapping[str, Scalar]) -> Any:
        """What of a config the cost of an ask depends on."""
        return tuple(config.get(name) for name in ("seq", "cut", "tail", "level", "count"))

    def steps(self, examples: I64, config: Mapping[str, Scalar]) -> I64:
        """Batches applied by one ask, `[n]`: 1, or 0 where nothing is trained."""
        return np.full(len(examples), int(self.trains))

    @abstractmethod
    def costs(self, split: Split, examples: F64) -> F64:
        """FLOPs of batches of so many `examples` `[n]`."""

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """FLOPs of one batch: `count` examples, else those of batch `seq` of clients with so many `examples`."""
        split = self.split_of(config, layout.size)
        memory = 4.0 * split.layouts[self.server].size * (2 + self.training.moments)
        return Cost(self.costs(split, self.examples_of(np.asarray(examples, np.int64), config)), 0.0, 0.0, memory)

    def examples_of(self, examples: I64, config: Mapping[str, Scalar]) -> F64:
        """Examples in the batch of clients with so many `examples` `[n]`."""
        size = self.training.batch_size
        if "count" in config or self.server or "seq" not in config:
            return np.full(len(examples), float(config.get("count", size)))
        at = int(config["seq"]) % np.maximum(-(-examples // size), 1)
        return np.clip(examples - at * size, 0, size).astype(np.float64)


@contextmanager
def stepping(side: Side, seq: int) -> Iterator[None]:
    """Inside, what torch says of a batch that does not fit is told in our words."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{side.name}: batch {seq} does not fit the net: torch says {said!r}.") from error


def labelled(net: SplitNet, y: Any) -> Callable[[Tensor], Tensor]:
    """The mean loss against labels `y` `[B, ...]`, as a function of the output."""
    import torch

    wanted = torch.from_numpy(np.array(y))
    return lambda output: net.loss_of(output, wanted)


def _said(thing: Any) -> str:
    return f"{thing.dtype} of shape {thing.shape}" if isinstance(thing, np.ndarray) else f"a {type(thing).__name__}"


def _stacked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Leaves `[n, ...]`, or lists of n arrays where the clients' differ in shape."""
    out: dict[str, Any] = {}
    for name in rows[0] if rows else ():
        parts = [row[name] for row in rows]
        alike = len({part.shape for part in parts}) == 1
        out[name] = parts[0][None] if len(parts) == 1 else np.stack(parts) if alike else parts
    return out
