"""FLOPs of a torch module, counted on a few examples by torch's own counter.

Here: one number for the cost of a client. Invariant: it depends on the module and the shapes, never on values or time.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fieldfare.work.torch_loss import Loss
from fieldfare.work.torch_resident import Resident

if TYPE_CHECKING:
    from torch import Tensor


def count(resident: Resident, loss: Loss, batch: Sequence[Any], target: Tensor) -> float:
    """FLOPs of one forward and backward pass on `batch`; products only, as is the custom.

    Fused recurrent layers are taken apart for it, since the counter does not know them.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    resident.module.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apart = torch.backends.mkldnn.flags(enabled=False)
        with _quick(), apart, torch.enable_grad(), FlopCounterMode(display=False) as counter:
            value = loss(resident.module(*batch), target)
            torch.autograd.grad(value, resident.params, allow_unused=True)
    return float(counter.get_total_flops())


@contextmanager
def _quick() -> Iterator[None]:
    """Inside, torch's modes do not import its compiler (two seconds) to tell it that they are not for compiling."""
    from torch.utils import _python_dispatch, flop_counter

    kinds = (
        one for module in (_python_dispatch, flop_counter) for one in vars(module).values() if isinstance(one, type)
    )
    methods = (method for kind in kinds for method in vars(kind).values())
    wrapped = {id(inner): inner for one in methods if (inner := getattr(one, "__wrapped__", None)) is not None}
    mine = [] if "torch._dynamo" in sys.modules else [f for f in wrapped.values() if not hasattr(f, _DISABLED)]
    for function in mine:
        setattr(function, _DISABLED, function)
    try:
        yield
    finally:
        for function in mine:
            delattr(function, _DISABLED)


_DISABLED = "__dynamo_disable"
