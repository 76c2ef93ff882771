"""Nets bound to the core: the plan of a net, made once, or why there is none.

Not here: how plans are made (`lower`, `declared`). Invariant: without the compiled core nothing is planned or imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fieldfare.work.native.fit import Native
from fieldfare.work.native.modules import core, why_not
from fieldfare.work.native.plan import NativePlan, Refusal

if TYPE_CHECKING:
    from fieldfare.work.dense import DenseNet
    from fieldfare.work.torch_net import TorchNet


def of_dense(net: DenseNet) -> Native | str:
    """The declared dense `net` on the core, or why not."""
    if core() is None:
        return why_not() or "the compiled core is not here"
    from fieldfare.work.native.declared import dense_plan

    return _bound(dense_plan(net), (net.x,), net.y, net.flops(), left_out=False)


def of_torch(net: TorchNet) -> Native | str:
    """The torch `net` on the core, or why not: the op that has no native form, or what the net asks for beside it."""
    if core() is None:
        return why_not() or "the compiled core is not here"
    from fieldfare.work.native.lower import plan_of

    return _bound(plan_of(net), net.x, net.y, net.flops())


def _bound(made: NativePlan | Refusal, x: tuple[str, ...], y: str, flops: float, left_out: bool = True) -> Native | str:
    """On the core, unless there is no plan, or the core knows another one than this."""
    if isinstance(made, Refusal):
        return str(made)
    native = Native(made, x, y, flops, left_out)
    try:
        native.made()
    except ValueError as error:
        return f"the core refuses its plan ({error})"
    return native
