"""Nets bound to the core: the plan of a net, made once, or why there is none.

Not here: how plans are made (`lower`, `declared`). Invariant: without the compiled core nothing is planned or imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fieldfare.core.errors import UsageError
from fieldfare.work.native.choose import asked, plain, settled, way_of
from fieldfare.work.native.fit import Native
from fieldfare.work.native.modules import core, kind, why_not
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


def must_be_native(net: DenseNet | TorchNet) -> None:
    """Refuse a net that was asked to train on the core and cannot."""
    if net.path == "native" and isinstance(net.native, str):
        raise UsageError(f"path='native': {net.native}; use path='auto'.")


def in_half(net: DenseNet | TorchNet) -> Native:
    """The net on the core, for a training in bfloat16, which nothing else computes in."""
    module = core()
    if isinstance(net.native, str) or asked(net.path) not in ("auto", "native"):
        said = net.native if isinstance(net.native, str) else f"path={asked(net.path)!r} was asked for"
        raise UsageError(f"Training(precision='bfloat16') needs the compiled core: {said}.")
    if module is None or not module.half():
        raise UsageError(
            "Training(precision='bfloat16'): this processor has no products of bfloat16 (AVX512-BF16): use "
            "precision='float32'."
        )
    return net.native


def told(net: DenseNet | TorchNet, otherwise: str, why: str) -> dict[str, Any]:
    """How a net is computed here and why, for its description; `otherwise`, `why`: the way without the core."""
    told, choice = asked(net.path), settled(net.key)
    lockstep, on_core = getattr(net, "lockstep", None), net.on_core
    taken = "lockstep" if lockstep is not None else "native" if on_core is not None else plain(net.ways)
    if choice is not None and way_of(choice.path) != taken:  # it is not here, or cannot any more
        choice = None
    if lockstep is not None:
        path = "lockstep" if lockstep.stack is None else f"lockstep-{lockstep.stack}"
        chosen_ = told == "auto" and choice is not None
        return {"path": path, "why": choice.why if chosen_ else f"stacks of clients on {lockstep.on}"}
    if way_of(told) == "lockstep" and (no := getattr(net, "unstacked", "")):
        why = f"{why}; not in lockstep: {no}"
    native = net.native
    if on_core is not None:
        because = "asked for" if told == "native" else "compiled" if choice is None else choice.why
        return {"path": "native", "why": because, "core": kind() or "", "steps": on_core.plan.describe()}
    if isinstance(native, str):
        why = f"{why}; not on the compiled core: {native}"
        return {"path": otherwise, "why": why if choice is None or told != "auto" else f"{why}; {choice.why}"}
    because = choice.why if choice is not None and told == "auto" else "asked for"
    return {"path": otherwise, "why": f"{why}; {because}"}


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
