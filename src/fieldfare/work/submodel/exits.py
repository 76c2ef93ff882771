"""Nets with exits: a chain of stages with a head behind each, so that a sub-model may be the first few of them.

Here: `exits` and the loss over all exits. Not here: which levels there are (`rules`). Imported when a net with exits is
made, since it needs torch. Invariant: the first d stages and heads of a net with exits compute what they compute in
the whole one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from fieldfare.core.errors import UsageError


class Exits(nn.Module):
    """Stages behind one another and a head behind each but the last, which ends in its own.

    In training the logits of all exits, `[B, exits, C]`; in evaluation those of the deepest, `[B, C]`.
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        out: list[Tensor] = []
        for at, stage in enumerate(self.stages):
            x = stage(x)
            last = at == len(self.stages) - 1
            if self.training or last:
                out.append(self.heads[at](x) if at < len(self.heads) else x)
        return torch.stack(out, 1) if self.training else out[-1]

    def stages_of(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parameters of the net cut behind its first, second, ..., last exit."""
        names = [name for name, p in self.named_parameters() if p.requires_grad]
        return tuple(
            tuple(name for name in names if int(name.split(".")[1]) < depth) for depth in range(1, len(self.stages) + 1)
        )

    def shallow(self, names: Sequence[str]) -> Exits:
        """The net that has the parameters `names`: the first stages and their heads."""
        for depth, known in enumerate(self.stages_of(), 1):
            if set(known) == set(names):
                parts = copy.deepcopy(self)
                return Exits(list(parts.stages)[:depth], list(parts.heads)[:depth])
        raise UsageError("a sub-model has no set of layers that a net with exits has: use a view of this net.")


def exits(chain: nn.Sequential, after: Sequence[str], example: Any, classes: int | None = None) -> Exits:
    """A net with exits behind the layers named `after`, and at its end.

    `chain`: an `nn.Sequential` that ends in logits `[B, C]`; `after`: names of its children, in order; `example`: what
    it takes, for two examples. A head is a linear layer, behind a mean over places where there are any (DepthFL's
    classifiers, of one layer: our reading). `classes`: C, by default that of the chain. Its heads are drawn from
    torch's generator. Train it with
    `submodels(..., loss=exit_loss(), metrics=("accuracy",))`. Errors: `UsageError` for names that are none.
    """
    if not isinstance(chain, nn.Sequential):
        raise UsageError(f"exits({type(chain).__name__}): give an nn.Sequential, whose children are the layers.")
    names = [name for name, _ in chain.named_children()]
    if unknown := [name for name in after if name not in names[:-1]]:
        raise UsageError(f"exits(after={unknown[0]!r}): an exit stands behind one of {', '.join(names[:-1])}.")
    if [*after] != sorted(set(after), key=names.index) or not after:
        raise UsageError(f"exits(after={after}): name each layer once, in the order of the chain, and at least one.")
    bounds = [0, *(names.index(name) + 1 for name in after), len(names)]
    layers = list(chain.named_children())
    stages: list[nn.Module] = []
    heads: list[nn.Module] = []
    x = torch.as_tensor(example)
    x = x if x.is_floating_point() or x.dtype == torch.int64 else x.to(torch.int64)
    widths: list[tuple[int, ...]] = []
    with torch.no_grad():
        for a, b in pairwise(bounds):
            stage = nn.Sequential()
            for name, layer in layers[a:b]:
                stage.add_module(name, copy.deepcopy(layer))
            x = copy.deepcopy(stage)(x)
            widths.append(tuple(x.shape[1:]))
            stages.append(stage)
    classes = widths[-1][-1] if classes is None else classes
    for shape in widths[:-1]:
        pooled = len(shape) == 3
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if pooled else [nn.Flatten()] if len(shape) > 1 else []
        heads.append(nn.Sequential(*head, nn.Linear(shape[0] if pooled else int(torch.Size(shape).numel()), classes)))
    return Exits(stages, heads)


def exit_loss(distil: float = 0.0, temperature: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a net with exits: the mean over exits of cross-entropy; and `distil` times what they can learn of
    one another, KL of each to the mean of the others' probabilities at `temperature` (DepthFL, eq. 4).

    The gradient does not go into the others. Logits `[B, C]`, of the deepest exit alone, give plain cross-entropy.
    """

    def exit_cross_entropy(output: Tensor, y: Tensor) -> Tensor:
        if output.dim() == 2:
            return f.cross_entropy(output, y)
        count = output.shape[1]
        loss = torch.stack([f.cross_entropy(output[:, e], y) for e in range(count)]).mean()
        if not distil or count == 1:
            return loss
        logs = (output / temperature).log_softmax(-1)
        sure = logs.detach().exp()
        others = (sure.sum(1, keepdim=True) - sure) / (count - 1)
        apart = (others * (others.clamp_min(1e-12).log() - logs)).sum(-1).mean()
        return loss + distil * temperature**2 * apart

    return exit_cross_entropy
