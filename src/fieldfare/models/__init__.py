"""Models that published studies train, as functions that make an `nn.Module`: new weights from the run's seed.

Not here: how they are trained (`work`). Torch is imported when a module is made.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal

from fieldfare.core.errors import UsageError
from fieldfare.work.torch_resident import need_torch

if TYPE_CHECKING:
    from torch import nn

Norm = Literal["batch", "batch_alone", "group"]


def vgg5(
    image: tuple[int, int, int] = (3, 32, 32), classes: int = 10, norm: Norm = "batch",
    widths: tuple[int, int, int, int] = (32, 64, 64, 128), unflatten: bool = False, augment: bool = False,
) -> nn.Module:  # fmt: skip
    """VGG-5 as in FedFly (arXiv 2111.01516) and FedAdapt: three 3x3 convolutions, two pools, two dense layers.

    582,346 parameters and 8,488,192 multiply-adds for `image` (3, 32, 32); `image` is (channels, height, width), both
    divisible by 4; digits are (1, 8, 8). `norm`: "batch" (the paper's, with running statistics), "batch_alone" (of the
    batch, without them) or "group" (8 channels each). ReLU between the dense layers is our reading. `unflatten`:
    examples come as vectors. `augment`: crop, flip (in training) and normalise, as the paper does with CIFAR-10 in
    [0, 1] (`transform="unit"`). Its settings: `Training(lr=0.01, momentum=0.9, batch_size=100, schedule="step",
    schedule_rounds=50, decay=0.1)`, 100 rounds of one epoch.
    """
    need_torch()
    from torch import nn

    channels, height, width = image
    if height % 4 or width % 4 or min(image) < 1:
        raise UsageError(f"vgg5(image={image}): (channels, height, width) with height and width divisible by 4.")
    layers = preparation(image, unflatten, augment)
    for at, wide in enumerate(widths[:3], 1):
        layers[f"conv{at}"] = nn.Conv2d(channels, wide, 3, padding=1)
        layers[f"norm{at}"] = normalisation(norm, wide)
        layers[f"relu{at}"] = nn.ReLU()
        if at < 3:
            layers[f"pool{at}"] = nn.MaxPool2d(2)
        channels = wide
    layers["flatten"] = nn.Flatten()
    layers["dense1"] = nn.Linear(channels * (height // 4) * (width // 4), widths[3])
    layers["relu4"] = nn.ReLU()
    layers["dense2"] = nn.Linear(widths[3], classes)
    return nn.Sequential(layers)


def resnet(
    image: tuple[int, int, int] = (3, 32, 32), classes: int = 10, norm: Norm = "batch", blocks: int = 3,
    width: int = 16, unflatten: bool = False, augment: bool = False,
) -> nn.Module:  # fmt: skip
    """A residual net for small images (He et al., CVPR 2016, section 4.2): 6 `blocks` + 2 layers, three stages.

    `blocks=3`, `width=16` are ResNet-20, 272,474 parameters with a learnt 1x1 shortcut where the width changes, which
    is our departure from the paper's zero padding. Settings as of `vgg5`.
    """
    need_torch()
    from fieldfare.models.residual import build

    if blocks < 1 or width < 1 or min(image) < 1:
        raise UsageError(f"resnet(image={image}, blocks={blocks}, width={width}): use numbers >= 1.")
    return build(image, classes, norm, blocks, width, preparation(image, unflatten, augment))


def preparation(image: tuple[int, int, int], unflatten: bool, augment: bool) -> OrderedDict[str, Any]:
    """Layers before the first one that is trained: vectors to images, augmentation."""
    from torch import nn

    layers: OrderedDict[str, Any] = OrderedDict()
    if unflatten:
        layers["image"] = nn.Unflatten(1, image)
    if augment:
        from fieldfare.models.images import CIFAR10, CropFlip, Normalise

        if image[0] != len(CIFAR10[0]):
            raise UsageError(f"augment=True is for images of three channels such as CIFAR-10's, not image={image}.")
        layers["normalise"], layers["augment"] = Normalise(*CIFAR10), CropFlip()
    return layers


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """The normalisation layer called `norm`, for `channels`."""
    from torch import nn

    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "batch_alone":
            return nn.BatchNorm2d(channels, track_running_stats=False)
        case "group":
            return nn.GroupNorm(max(channels // 8, 1), channels)
        case _:
            raise UsageError(f"norm={norm!r}: use 'batch', 'batch_alone' or 'group'.")
