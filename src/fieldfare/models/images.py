"""Layers that prepare images inside a module. Imported when a net is made, since they need torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""Mean and standard deviation of each channel of CIFAR-10, of images in [0, 1]."""


class CropFlip(nn.Module):
    """In training, a random crop of images `[B, C, H, W]` padded by `padding` zeros, mirrored half of the time.

    It draws from torch's generator, which is seeded for every step; in evaluation images are left as they are.
    """

    def __init__(self, padding: int = 4) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        b, _, h, w = x.shape
        p = self.padding
        down, right = torch.randint(0, 2 * p + 1, (2, b))
        turned = torch.rand(b) < 0.5
        padded = functional.pad(x, (p, p, p, p))
        columns = right[:, None] + torch.arange(w)
        columns = torch.where(turned[:, None], columns.flip(1), columns)
        rows = down[:, None] + torch.arange(h)
        picked = padded[torch.arange(b)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2).contiguous()

    def extra_repr(self) -> str:
        return f"padding={self.padding}"


class Normalise(nn.Module):
    """(x - mean) / deviation, by channel of `[B, C, H, W]`."""

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, len(self.mean), 1, 1)
        return (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.deviation).view(shape)

    def extra_repr(self) -> str:
        return f"mean={self.mean}, deviation={self.deviation}"
