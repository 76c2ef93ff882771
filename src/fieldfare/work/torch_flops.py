"""FLOPs of a torch module, counted on a few examples by torch's own counter.

Here: one number for the cost of a client. Invariant: it depends on the module and the shapes, never on values or time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
        with apart, torch.enable_grad(), FlopCounterMode(display=False) as counter:
            value = loss(resident.module(*batch), target)
            torch.autograd.grad(value, resident.params, allow_unused=True)
    return float(counter.get_total_flops())
