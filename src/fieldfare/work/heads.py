"""Which coordinates of its reply a client has trained: rows of the head by class, what is neither frozen nor pruned.

Here: the head of a net, the classes among the examples a client takes, and what it tells (`core.folds.COVERED`). Not
here: the loss over these classes alone (the net's), the fold. Invariant: a client's row of the leaf depends on its
own examples, key and model only.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.local import Frozen, Heads, Local
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort
from fieldfare.work.dense import DenseNet
from fieldfare.work.net import Training
from fieldfare.work.plan import make_plan, passes_and_steps

Bools = NDArray[np.bool_]


def head_of(net: Any, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The tensors of a net's head, a row per class: those called `names`, or all whose rows are the net's outputs.

    Errors: `UsageError` for a net without labels, names that are none, rows that are not one per class.
    """
    inside = getattr(net, "net", net)
    if getattr(inside, "loss", None) in ("squared_error", "mse", "l1", "bce") or not hasattr(inside, "y"):
        raise UsageError("masked_heads is for labels, a class for each output: use a net with a cross-entropy loss.")
    layout: Layout = net.layout
    found = named(layout, names) if names else _outputs(inside, layout)
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    rows = {shapes[name][0] if shapes[name] else 0 for name in found}
    if len(rows) != 1:
        told = ", ".join(f"{name} {shapes[name]}" for name in found) or "nothing"
        raise UsageError(f"masked_heads: a head has one row per class in every tensor, and this is {told}: name it.")
    return found


def named(layout: Layout, names: tuple[str, ...]) -> tuple[str, ...]:
    """The tensors whose name is, or starts with, one of `names`; unknown names are refused."""
    mask = layout.mask(names)
    return tuple(name for name, where, _ in layout.items() if where.start < where.stop and mask[where.start])


def _outputs(net: Any, layout: Layout) -> tuple[str, ...]:
    """The tensors whose first dimension is the net's outputs."""
    from fieldfare.work.submodel.axes import OUTPUT, axes

    if isinstance(net, DenseNet):
        return layout.names[-1 if net.program.layers[-1].bias is None else -2 :]
    try:
        seen = axes(net)
    except UsageError as error:
        kind = type(net).__name__
        raise UsageError(f"masked_heads: name the tensors of the head of this {kind}: names=(...).") from error

    def ends(name: str) -> bool:
        first = seen.params[name][0] if seen.params[name] else ()
        return len(first) == 1 and [seen.groups[g].whole for g in first[0]] == [OUTPUT]

    found = tuple(name for name in layout.names if ends(name))
    if not found:
        raise UsageError(
            "masked_heads: no layer's outputs are the net's own: name the tensors of its head: names=(...)."
        )
    return found


def of_level(local: tuple[Local, ...], whole: Any, layout: Layout) -> tuple[Local, ...]:
    """`local`, said of `whole`, as it is said of a sub-model of `layout`: by the names of tensors that it has."""
    out: list[Local] = []
    for one in local:
        match one:
            case Frozen(names):
                has = tuple(name for name in named(whole.layout, names) if name in layout.names)
                out += [Frozen(has)] if has else []
            case Heads(names):
                has = tuple(name for name in head_of(whole, names) if name in layout.names)
                out += [Heads(has)] if has else []
            case _:
                out.append(one)
    return tuple(out)


def rows_of(heads: Heads, net: Any) -> int:
    """How many classes the head of a net has."""
    first = head_of(net, heads.names)[0]
    return int(net.layout.shapes[net.layout.names.index(first)][0])


def present(net: Any, cohort: Cohort, training: Training, classes: int) -> Bools:
    """Bool `[n, classes]`: the classes among the examples that each client takes in this training."""
    inside = getattr(net, "net", net)
    data = cohort.data
    rows, offsets = data.rows, data.offsets
    if (passes_and_steps(data.sizes, training, cohort.steps)[2] < data.sizes).any():
        plan = make_plan(data, cohort.keys, training, cohort.steps)
        rows, offsets = plan.rows, plan.start
    labels = data.columns[inside.y][rows]
    if labels.dtype.kind not in "iub":
        raise UsageError(f"masked_heads: column {inside.y!r} holds {labels.dtype}: a class is one whole number.")
    labels = labels.reshape(len(rows), prod(labels.shape[1:])).astype(np.int64, copy=False)
    client = np.broadcast_to(np.repeat(np.arange(data.n), np.diff(offsets))[:, None], labels.shape)
    known = (labels >= 0) & (labels < classes)
    out = np.zeros((data.n, classes), np.bool_)
    out[client[known], labels[known]] = True
    return out


def covered(
    local: tuple[Local, ...], net: Any, cohort: Cohort, training: Training, mask: Bools | None
) -> Bools | None:  # fmt: skip
    """Bool `[n, P]` of what each client trains: `mask` `[P]`, less rows of the head it has no class for; None: all."""
    heads = next((one for one in local if isinstance(one, Heads)), None)
    if heads is None:
        return None if mask is None else np.broadcast_to(mask, (cohort.n, len(mask)))
    names, layout = head_of(net, heads.names), net.layout
    have = present(net, cohort, training, rows_of(heads, net))
    out = np.ones((cohort.n, layout.size), np.bool_)
    for name, where, shape in layout.items():
        if name in names:
            out[:, where] = np.repeat(have, prod(shape[1:]), axis=1)
    return out if mask is None else out & mask


def told_bits(local: tuple[Local, ...], net: Any) -> float:
    """Bits in which a client says which classes it has: one for each, in whole bytes; 0 where nobody asks."""
    heads = next((one for one in local if isinstance(one, Heads)), None)
    return 0.0 if heads is None else 8.0 * ceil(rows_of(heads, net) / 8)
