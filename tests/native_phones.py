"""Small networks of the blocks that networks for phones are made of, for the native planner and the core.

Here: inverted residuals after Sandler et al. 2018 (MobileNetV2) and Howard et al. 2019 (MobileNetV3: squeeze-and-
excitation, Hardswish), units after Ma et al. 2018 (ShuffleNetV2). Not here: any test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def batch(c: int) -> nn.Module:
    """Statistics of the batch at hand."""
    return nn.BatchNorm2d(c, eps=1e-2, track_running_stats=False)


def groups(c: int) -> nn.Module:
    return nn.GroupNorm(4 if c % 4 == 0 else 1, c, eps=1e-2)


Norm = Callable[[int], nn.Module]


def layer(c: int, out: int, k: int, stride: int, groups_: int, norm: Norm, bend: Any) -> nn.Sequential:
    conv = nn.Conv2d(c, out, k, stride, k // 2, groups=groups_, bias=False)
    return nn.Sequential(conv, norm(out), *([bend(inplace=True)] if bend else []))


class Squeeze(nn.Module):
    """A gate for each channel, from the means of all."""

    def __init__(self, c: int, inner: int) -> None:
        super().__init__()
        self.mean, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, inner, 1), nn.Conv2d(inner, c, 1)
        self.bend, self.gate = nn.ReLU(inplace=True), nn.Hardsigmoid()

    def forward(self, x: Any) -> Any:
        return x * self.gate(self.up(self.bend(self.down(self.mean(x)))))


class Inverted(nn.Module):
    """Wide by a 1x1 convolution, a depthwise one, narrow again; its input is added where the shapes agree."""

    def __init__(
        self, c: int, out: int, k: int, stride: int, expand: int, norm: Norm, bend: Any, squeeze: bool = False
    ) -> None:
        super().__init__()
        wide = c * expand
        parts = [layer(c, wide, 1, 1, 1, norm, bend)] if expand != 1 else []
        parts.append(layer(wide, wide, k, stride, wide, norm, bend))
        parts += [Squeeze(wide, max(1, wide // 4))] if squeeze else []
        self.layers = nn.Sequential(*parts, layer(wide, out, 1, 1, 1, norm, None))
        self.same = stride == 1 and c == out

    def forward(self, x: Any) -> Any:
        return x + self.layers(x) if self.same else self.layers(x)


class V2(nn.Module):
    """ReLU6; `width` channels first, rows of blocks (expansion, channels, blocks, stride)."""

    def __init__(
        self, inputs: int, width: int, classes: int, norm: Norm = batch,
        rows: Any = ((1, 1.0, 1, 1), (6, 1.5, 2, 2)), last: int = 40,
    ) -> None:  # fmt: skip
        super().__init__()
        parts, c = [layer(inputs, width, 3, 1, 1, norm, nn.ReLU6)], width
        for expand, times, blocks, stride in rows:
            for i in range(blocks):
                out = int(width * times)
                parts.append(Inverted(c, out, 3, stride if i == 0 else 1, expand, norm, nn.ReLU6))
                c = out
        self.features = nn.Sequential(*parts, layer(c, last, 1, 1, 1, norm, nn.ReLU6))
        self.out = nn.Linear(last, classes)

    def forward(self, x: Any) -> Any:
        return self.out(nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1))


class V3(nn.Module):
    """Hardswish, squeeze-and-excitation; rows (kernel, expansion, channels, squeeze, Hardswish, stride)."""

    def __init__(
        self, inputs: int, width: int, classes: int, norm: Norm = batch,
        rows: Any = ((3, 1, 1.0, True, False, 2), (3, 4, 1.5, False, False, 1), (5, 3, 1.5, True, True, 1)),
        last: int = 40,
    ) -> None:  # fmt: skip
        super().__init__()
        parts, c = [layer(inputs, width, 3, 1, 1, norm, nn.Hardswish)], width
        for k, expand, times, squeeze, swish, stride in rows:
            out, bend = int(width * times), nn.Hardswish if swish else nn.ReLU
            parts.append(Inverted(c, out, k, stride, expand, norm, bend, squeeze))
            c = out
        self.features = nn.Sequential(*parts, layer(c, last, 1, 1, 1, norm, nn.Hardswish), nn.AdaptiveAvgPool2d(1))
        self.out = nn.Sequential(nn.Linear(last, 50), nn.Hardswish(inplace=True), nn.Linear(50, classes))

    def forward(self, x: Any) -> Any:
        return self.out(torch.flatten(self.features(x), 1))


class Unit(nn.Module):
    """One half of the channels through three convolutions, the other as it is, then both interleaved."""

    def __init__(self, c: int, norm: Norm) -> None:
        super().__init__()
        half = c // 2
        self.layers = nn.Sequential(
            layer(half, half, 1, 1, 1, norm, nn.ReLU), layer(half, half, 3, 1, half, norm, None),
            layer(half, half, 1, 1, 1, norm, nn.ReLU),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        left, right = x.chunk(2, dim=1)
        h = torch.cat((left, self.layers(right)), dim=1)
        b, c, height, width = h.shape
        return h.view(b, 2, c // 2, height, width).transpose(1, 2).contiguous().view(b, c, height, width)


class Shuffle(nn.Module):
    """Units one after the other."""

    def __init__(self, inputs: int, width: int, classes: int, norm: Norm = batch, units: int = 3) -> None:
        super().__init__()
        self.first = layer(inputs, width, 3, 2, 1, norm, nn.ReLU)
        self.units = nn.Sequential(*(Unit(width, norm) for _ in range(units)))
        self.last, self.out = layer(width, 40, 1, 1, 1, norm, nn.ReLU), nn.Linear(40, classes)

    def forward(self, x: Any) -> Any:
        return self.out(self.last(self.units(self.first(x))).mean([2, 3]))
