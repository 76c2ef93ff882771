"""Residual blocks for small images. Imported when a net is made, since it needs torch."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from fieldfare.models import Norm, normalisation


class Block(nn.Module):
    """relu(F(x) + x) with two 3x3 convolutions in F, and a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = normalisation(norm, outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = normalisation(norm, outputs)
        self.relu2 = nn.ReLU()
        self.short: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), normalisation(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(h + (x if self.short is None else self.short(x)))


def build(
    image: tuple[int, int, int], classes: int, norm: Norm, blocks: int, width: int, layers: OrderedDict[str, Any]
) -> nn.Module:
    """See `fieldfare.models.resnet`; behind `layers`."""
    layers["conv"] = nn.Conv2d(image[0], width, 3, 1, 1, bias=False)
    layers["norm"] = normalisation(norm, width)
    layers["relu"] = nn.ReLU()
    inputs = width
    for stage in range(3):
        outputs = width << stage
        for at in range(blocks):
            stride = 2 if stage and not at else 1
            layers[f"block{stage + 1}_{at + 1}"] = Block(inputs, outputs, stride, norm)
            inputs = outputs
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["dense"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)
