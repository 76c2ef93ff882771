"""Images in folders: one folder per client, per label, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.data.federated import Federated
from fieldfare.data.load import from_numpy
from fieldfare.data.partition import Partition

Array = NDArray[Any]
Shape = Literal["flat", "chw", "hwc"]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_LEVELS = ("client/label", "label/client", "label", "client")


def from_image_folder(
    path: str | Path,
    by: str = "client/label",
    *,
    size: tuple[int, int] | None = None,
    mode: Literal["RGB", "L"] = "RGB",
    shape: Shape = "chw",
    partition: Partition | None = None,
    clients: int | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Federated:
    """A data set from `path/<client>/<label>/*.png` (or as `by` says), decoded into memory.

    `by`: what the folders below `path` stand for: "client/label", "label/client", "label" (then `partition` makes
    the clients) or "client" (no labels). `size`: (height, width) to resize to; without it all images must have one
    size. `x` is float32 in [0, 1], laid out as `shape` says (`images_as`); labels are 0..C-1 in sorted order of
    the folder names. Needs the extra `images` (Pillow).
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra.of("Pillow", extra="images") from None
    root = Path(path)
    if by not in _LEVELS:
        raise UsageError(f"by={by!r} is unknown; use one of {', '.join(_LEVELS)}.")
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; give the folder that holds the folders {by}.")
    levels = by.split("/")
    depth = "/".join(["*"] * (len(levels) + 1))
    files = sorted(f for f in root.glob(depth) if f.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"{root} holds no image at depth {by}/<image>; check by=, or the folder.")
    pixels: Array | None = None
    for i, file in enumerate(files):
        try:
            with Image.open(file) as opened:
                picture = opened.convert(mode)
                picture = picture if size is None else picture.resize((size[1], size[0]))
                array = np.asarray(picture, np.uint8)
        except OSError as error:
            raise UsageError(f"{file} cannot be read as an image ({error}); mend or remove it.") from None
        array = array.reshape(*array.shape[:2], -1)
        if pixels is None:
            pixels = np.empty((len(files), *array.shape), np.uint8)
        if array.shape != pixels.shape[1:]:
            raise UsageError(
                f"{file} is {array.shape[0]} x {array.shape[1]}, the first image {pixels.shape[1]} x "
                f"{pixels.shape[2]}; pass size=(height, width)."
            )
        pixels[i] = array
    assert pixels is not None
    told = {level: np.array([f.parts[-len(levels) - 1 + k] for f in files]) for k, level in enumerate(levels)}
    labels = np.unique(told["label"], return_inverse=True)[1].reshape(-1) if "label" in told else None
    return from_numpy(
        images_as(pixels, shape),
        None if labels is None else labels.astype(np.int64),
        client=told.get("client"),
        partition=partition,
        clients=clients,
        test_fraction=test_fraction,
        seed=seed,
        name=f"images {root.name} by {by}",
    )


def images_as(pixels: Array, shape: Shape = "chw") -> Array:
    """Bytes `[n, height, width(, channels)]` as float32 in [0, 1].

    `shape`: "flat" `[n, h*w*c]`, "chw" `[n, c, h, w]` (PyTorch's order) or "hwc" `[n, h, w, c]` (JAX's).

    >>> images_as(np.zeros((2, 8, 8), np.uint8)).shape
    (2, 1, 8, 8)
    """
    if shape not in ("flat", "chw", "hwc"):
        raise UsageError(f"shape={shape!r} is unknown; use flat, chw or hwc.")
    if pixels.ndim not in (3, 4) or pixels.dtype != np.uint8:
        raise UsageError(f"images_as needs uint8 [n, h, w] or [n, h, w, c], got {pixels.dtype}{list(pixels.shape)}.")
    whole = pixels if pixels.ndim == 4 else pixels[..., None]
    whole = whole.transpose(0, 3, 1, 2) if shape == "chw" else whole
    scaled = np.multiply(whole, np.float32(1 / 255), dtype=np.float32, order="C")
    return scaled.reshape(len(scaled), -1) if shape == "flat" else scaled
