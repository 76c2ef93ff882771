"""Client optimisers on the flat vector of a resident module: SGD with its variants, Adam, clip, decay, drift.

Here: one step, in the seam's order (see `net.Drift`), and its moments. Not here: gradients. Invariant: nothing is kept
from one client to the next.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fieldfare.work.net import Drift, Training
from fieldfare.work.torch_resident import Resident

F32 = NDArray[np.float32]


def is_plain(training: Training, drift: Drift) -> bool:
    """Whether a step is w <- w - lr g and nothing else, so that it can be fused into the gradient's product."""
    return not training.moments and not training.weight_decay and training.clip_norm is None and drift.idle


class Update:
    """Steps on `resident.flat` from `resident.grad`; moments start, with every client, at zero or as given `[n, S]`."""

    def __init__(
        self, resident: Resident, training: Training, lr: float, drift: Drift, start: F32, moments: F32 | None = None
    ) -> None:
        import torch

        self.resident, self.training, self.lr, self.drift = resident, training, lr, drift
        resident.with_gradient()
        size = resident.size
        self._ref = start if drift.ref is None else drift.ref
        self._held: int | None = None
        self._moments, self._before = moments, 0
        self._t = torch.zeros(size)
        self._a = torch.zeros(size) if drift.a is not None else None
        self._r = torch.zeros(size) if drift.mu else None
        self._v = torch.zeros(size) if training.moments else None
        self._s = torch.zeros(size) if training.moments == 2 else None
        self._mask = None
        if drift.mask is not None:
            self._mask = torch.zeros(size)
            resident.place(drift.mask, self._mask.numpy())

    def begin(self, client: int, row: int) -> None:
        """Load the drift and moments of client number `client`, whose model is `row`, and forget the last one's."""
        if self._a is not None and self.drift.a is not None:
            self.resident.place(self.drift.a[client], self._a.numpy())
        if self._r is not None:
            at = row if len(self._ref) > 1 else 0
            if at != self._held:
                self.resident.place(self._ref[at], self._r.numpy())
                self._held = at
        given, size = self._moments, self.resident.layout.size
        for at, moment in enumerate((self._v, self._s)):
            if moment is None:
                continue
            if given is None:
                moment.zero_()
            else:
                self.resident.place(given[client, at * size : (at + 1) * size], moment.numpy())
        if given is not None and self._s is not None:
            self._before = int(given[client, -1])

    def end(self, steps: int, out: F32) -> None:
        """Write the moments of the client that took `steps` into `out` `[S]`."""
        size = self.resident.layout.size
        for at, moment in enumerate((self._v, self._s)):
            if moment is not None:
                self.resident.save(out[at * size : (at + 1) * size], moment.numpy())
        if self._s is not None:
            out[-1] = self._before + steps

    def step(self, taken: int) -> None:
        """Step number `taken`, from 1."""
        training, w, g = self.training, self.resident.flat, self.resident.grad
        if self._mask is not None:
            g.mul_(self._mask)
        if training.clip_norm is not None:
            norm = float(g.norm())
            g.mul_(min(training.clip_norm / (norm + 1e-6), 1.0))
        if training.weight_decay:
            g.add_(w, alpha=training.weight_decay)
        if self._a is not None:
            g.add_(self._a)
        if self._r is not None:
            import torch

            torch.sub(w, self._r, out=self._t)
            g.add_(self._t, alpha=self.drift.mu)
        if self._mask is not None:
            g.mul_(self._mask)
        if self._s is not None:
            self._adam(self._before + taken)
        elif self._v is not None:
            v = self._v.mul_(training.momentum).add_(g)
            w.add_(g.add_(v, alpha=training.momentum) if training.nesterov else v, alpha=-self.lr)
        else:
            w.add_(g, alpha=-self.lr)

    def _adam(self, taken: int) -> None:
        """Adam (Kingma and Ba, ICLR 2015, alg. 1), with eps outside the root of the corrected second moment."""
        import torch

        b1, b2 = self.training.betas
        g, m, s = self.resident.grad, self._v, self._s
        assert m is not None
        assert s is not None
        m.lerp_(g, 1 - b1)
        s.mul_(b2).addcmul_(g, g, value=1 - b2)
        torch.sqrt(s, out=self._t)
        self._t.div_(math.sqrt(1 - b2**taken)).add_(self.training.eps)
        self.resident.flat.addcdiv_(m, self._t, value=-self.lr / (1 - b1**taken))
