"""Models of published studies: their sizes, their settings, images cropped and mirrored in training alone."""

from __future__ import annotations

import numpy as np
import pytest

from fieldfare.core.errors import UsageError
from fieldfare.models import resnet, vgg5

torch = pytest.importorskip("torch")


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_vgg5_and_resnet20_have_their_published_sizes() -> None:
    assert size(vgg5()) == 582_346
    assert size(resnet()) == 272_474
    assert size(vgg5(norm="group")) == size(vgg5(norm="batch_alone")) == 582_346


@pytest.mark.parametrize("make", [vgg5, resnet])
def test_images_of_any_size_come_as_images_or_as_vectors(make) -> None:
    assert make((1, 8, 8), classes=7, unflatten=True)(torch.zeros(2, 64)).shape == (2, 7)
    assert make((3, 12, 16), norm="group")(torch.zeros(2, 3, 12, 16)).shape == (2, 10)
    assert make(augment=True)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_images_are_cropped_and_mirrored_in_training_alone() -> None:
    from fieldfare.models.images import CropFlip

    layer, x = CropFlip(2), torch.rand(40, 3, 6, 5) + 1.0
    assert layer.eval()(x) is x
    torch.manual_seed(0)
    out = layer.train()(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x), out)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for i in range(40):
        places = {
            (dy, dx, mirrored)
            for dy in range(5)
            for dx in range(5)
            for mirrored in (False, True)
            if torch.equal(out[i], padded[i, :, dy : dy + 6, dx : dx + 5].flip(2 if mirrored else ()))
        }
        assert len(places) == 1
        seen |= places
    assert len(seen) > 15
    assert {place[2] for place in seen} == {False, True}


def test_normalising_takes_the_mean_off_and_divides_by_the_deviation() -> None:
    from fieldfare.models.images import CIFAR10, Normalise

    x = torch.rand(4, 3, 5, 5)
    expected = (x.numpy() - np.array(CIFAR10[0])[:, None, None]) / np.array(CIFAR10[1])[:, None, None]
    np.testing.assert_allclose(Normalise(*CIFAR10)(x).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_a_model_cannot_be_is_refused() -> None:
    for call, told in (
        (lambda: vgg5((1, 8, 8), augment=True), "three channels"), (lambda: vgg5((3, 30, 32)), "divisible by 4"),
        (lambda: resnet(blocks=0), "blocks=0"), (lambda: vgg5(norm="layer"), "norm='layer'"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            call()
