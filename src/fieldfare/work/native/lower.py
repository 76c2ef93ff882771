"""From an `nn.Module` to a plan of the native core, or to the op that has none and why.

Here: modules of torch and the checks around them. Not here: functions and methods of tensors (`functions`), the graph
(`trace`), the plan in the making (`build`). Invariant: a plan computes what the module computes in training (and,
without its dropouts, in evaluation) for batches of any size; whatever cannot be shown to do so is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.native.plan import LOSSES, NUMBERS, TOKENS, UNIT, NativePlan, NoPlan, Refusal

if TYPE_CHECKING:
    from torch import nn

    from fieldfare.work.torch_net import TorchNet


Places = dict[int, tuple[str, NDArray[np.int64]]]

_LOGS = "nll"
_EXACT = "="
"""Before the name of a loss of torch's own, which broadcasts outputs `[B, 1]` against targets `[B]`; ours do not."""
"""A loss of what a log-softmax gives: with it, cross-entropy."""


def plan_of(net: TorchNet, columns: dict[str, NDArray[Any]] | None = None) -> NativePlan | Refusal:
    """The plan of a torch net, or why there is none; `columns`: rows of the data, where the net has no example."""
    try:
        return _planned(net, columns)
    except NoPlan as error:
        return error.refusal
    except (ArithmeticError, AttributeError, LookupError, ValueError) as error:  # what the planner has not thought of
        return Refusal("the module", f"has no plan ({type(error).__name__}: {error})")


def _planned(net: TorchNet, columns: dict[str, NDArray[Any]] | None) -> NativePlan:
    if net.path == "graph":
        raise NoPlan("path='graph'", "leaves every layer to autograd")
    if net.is_changed:
        raise NoPlan("training changed by a wrapper (compression, smaller nets inside)", "has no native form")
    transform = net._transform
    from fieldfare.core.errors import UsageError

    if callable(transform):
        raise NoPlan("a function as transform", "runs in Python on every batch")
    loss = loss_name(net.loss, net._loss)
    if columns is not None and all(name in columns for name in (*net.x, net.y)):
        few = {name: columns[name][:4] for name in (*net.x, net.y)}
        net = net.with_example(few)
    if net.example is None:
        raise NoPlan("a net without example rows", "does not tell the shape of its inputs")
    if not len(net.example[net.y]):
        raise NoPlan("a net with an empty example", "does not tell the shape of its inputs")
    kinds = [kind_of(name, net.example[name].dtype, transform) for name in net.x]
    try:
        net.batch(1)
        target = net.target(2)
    except UsageError as error:
        raise NoPlan("the example", f"is not what the module takes: {error}") from error
    return lower(net._module, net.batch, kinds, loss, target)


def kind_of(name: str, dtype: np.dtype[Any], transform: Any) -> int:
    """How the core reads a column of `dtype`."""
    if transform == "tokens":
        return TOKENS
    if transform == "unit":
        if dtype != np.uint8:
            raise NoPlan(f"column {name!r}", f"holds {dtype}, but transform='unit' is native for uint8 alone")
        return UNIT
    return TOKENS if dtype.kind in "iu" else NUMBERS


def loss_name(name: str, function: Any) -> str:
    """The core's name of a loss as `torch_loss.loss_of` gives it."""
    from torch import nn
    from torch.nn import functional as f

    own = getattr(function, "__module__", "") == "fieldfare.work.torch_loss"
    if own and name in LOSSES:
        return name
    plain = {
        nn.MSELoss: "mse", nn.L1Loss: "l1", nn.BCEWithLogitsLoss: "bce",
        nn.NLLLoss: _LOGS, f.nll_loss: _LOGS,
        f.mse_loss: "mse", f.l1_loss: "l1", f.binary_cross_entropy_with_logits: "bce",
    }  # fmt: skip
    known = plain.get(type(function)) if isinstance(function, nn.Module) else plain.get(function)
    options = [getattr(function, option, None) for option in ("weight", "pos_weight")]
    if getattr(function, "ignore_index", -100) != -100:
        known = None
    if known and getattr(function, "reduction", "mean") == "mean" and options == [None, None]:
        return known if known == _LOGS else _EXACT + known
    raise NoPlan(f"loss {name!r}", f"has no native form: {', '.join(LOSSES)} have one")


def lower(
    module: nn.Module, batch: Callable[[int], tuple[Any, ...]], kinds: Sequence[int], loss: str, target: Any
) -> NativePlan:
    """The plan of `module` for what `batch(rows)` gives, `target` being labels of two rows; raises `NoPlan`."""
    from fieldfare.work.native.arrange import skeleton

    module = copy.deepcopy(module)
    _check(module)
    places = _places(module)
    made = [
        _once(module, batch(rows), kinds, loss, target, train, places)
        for rows, train in ((2, True), (3, True), (2, False))
    ]
    first, second, third = (skeleton(one, output.source) for one, output in made)
    what = f"the forward of {type(module).__name__}"
    if first != second:
        raise NoPlan(what, "depends on the size of the batch")
    if first != third:
        raise NoPlan(what, "differs between training and evaluation in more than its dropouts")
    built, output = made[0]
    return built.finish(output, "cross_entropy" if loss == _LOGS else loss.removeprefix(_EXACT))


def _check(module: nn.Module) -> None:
    from fieldfare.work.torch_lower import _hooked

    for name, part in module.named_modules():
        if _hooked(part):
            raise NoPlan(f"a hook on {type(part).__name__} {name!r}", "runs in Python")
        if "forward" in part.__dict__:
            raise NoPlan(f"{type(part).__name__} {name!r}", "has a forward of its own")


def _places(module: nn.Module) -> Places:
    """Where each trained parameter is in the model's vector, by id."""
    from fieldfare.work.torch_resident import trained

    places, at = Places(), 0
    for name, p in trained(module):
        places[id(p)] = name, np.arange(at, at + p.numel()).reshape(tuple(p.shape))
        at += p.numel()
    return places


def _once(
    module: nn.Module, batch: tuple[Any, ...], kinds: Sequence[int], loss: str, target: Any, train: bool,
    places: Places,
) -> tuple[Any, Any]:  # fmt: skip
    """(builder, output) of one trace."""
    from fieldfare.work.native.build import Builder, Tensor
    from fieldfare.work.native.functions import Logs, Reading
    from fieldfare.work.native.trace import trace

    root, graph = trace(module, batch, train)
    rows = len(batch[0])
    if any(x.dim() < 1 or len(x) != rows or 0 in x.shape for x in batch):
        raise NoPlan("an input", "has no numbers")
    built = Builder(rows, sum(own.size for _, own in places.values()))
    reading = Reading(built, root, places, train)
    for node in graph.nodes:
        if node.op == "placeholder":
            number = len(built.columns)
            reading.known[node] = built.column(tuple(batch[number].shape[1:]), kinds[number])
        elif node.op == "output":
            output = reading.known.get(node.args[0]) if not isinstance(node.args[0], tuple | list | dict) else None
            logs = output if isinstance(output, Logs) else None
            output = output if logs is None else logs.x
            if not isinstance(output, Tensor):
                raise NoPlan("a module of several outputs, or of none from its inputs,", "has no native form")
            output = built.settled(output)
            reading.alive(output, "the output")
            at = _fits(built, output, "cross_entropy" if loss == _LOGS else loss, target)
            if (logs is None and loss == _LOGS) or (logs is not None and (logs.dim != at or at < 1)):
                raise NoPlan("logarithms of a softmax", "have a native form along the classes, with their loss, alone")
            return built, output
        else:
            reading.node(node)
    raise AssertionError("a graph without output")


def _fits(built: Any, output: Any, loss: str, target: Any) -> int:
    """The axis of classes (or 0) for `target` `[2, ...]`; refuses outputs that do not lie as the loss wants them."""
    from fieldfare.work.native.axes import canonical

    wanted, axes = tuple(target.shape[1:]), output.axes
    if not axes or axes[0] != built.axis(output, "b") or output.source in {c.value for c in built.columns}:
        raise NoPlan("an output", f"of shape {output.shape} is not one example behind the other")
    h, w, c = (built.axis(output, letter) for letter in "hwc")
    if loss in ("cross_entropy", "masked_cross_entropy"):
        if target.is_floating_point():
            raise NoPlan("labels that are probabilities", "have no native form")
        own = output.shape[1:]
        last = len(own) > 1 and own[:-1] == wanted
        at = len(axes) - 1 if last else 1
        if len(axes) < 2 or own[: at - 1] + own[at:] != wanted:
            raise NoPlan(f"an output of shape {output.shape}", f"does not fit labels of shape {wanted} per example")
        rest = canonical([atom for axis in axes[1:at] + axes[at + 1 :] for atom in axis])
        if axes[at] != c or rest != canonical(h + w):
            raise NoPlan(f"an output of shape {output.shape}", "has its classes in an order that has no native form")
        return at
    own = output.shape[1:]
    if len(own) == len(wanted) + 1 and own[-1] == 1 and loss.startswith(_EXACT):
        raise NoPlan(f"a loss of torch's, of outputs {output.shape} and targets {(2, *wanted)},", "broadcasts them")
    own = own[:-1] if len(own) == len(wanted) + 1 and own[-1] == 1 else own
    if own != wanted:
        raise NoPlan(f"an output of shape {output.shape}", f"does not fit targets of shape {wanted} per example")
    if canonical([atom for axis in axes[1:] for atom in axis]) != canonical(h + w + c):
        raise NoPlan(f"an output of shape {output.shape}", "lies in an order that has no native form for this loss")
    return 0
