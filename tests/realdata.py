"""Real federated data sets for tests, read from where they lie and never copied into the repository.

Each function returns a `Federated` and takes the options a training test wants (rows, clients, shape, seed). The
folder is named by the environment variable FIELDFARE_DATA (without it one beside the repository is tried); where a
data set, or the library that reads it, is absent the test skips and says so. Mark tests that call these
`@pytest.mark.data`.

    @pytest.mark.data
    def test_something():
        fed = realdata.mnist_by_writer(writers=50)
"""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldfare.data import (
    Federated,
    Vocabulary,
    dirichlet,
    federate,
    from_numpy,
    from_table,
    from_text,
    images_as,
    read_csv,
    read_parquet,
)

ROOT = Path(os.environ.get("FIELDFARE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def file(name: str) -> Path:
    """The path of `name` (for example "mnist_by_writer/train.npz"); skips the test where it is absent."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"real data {name} is not in {ROOT}; set FIELDFARE_DATA to the folder that has it")
    return path


def npz(name: str) -> dict[str, np.ndarray]:
    """The arrays of one .npz file."""
    with np.load(file(name), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def mnist_by_writer(writers: int | None = None, shape: str = "flat") -> Federated:
    """MNIST, one client per writer (539, 19..131 images each, nearly label-balanced: feature skew).

    x float32 in [0, 1]: "flat" [n, 784], "chw" [n, 1, 28, 28] or "hwc"; y int64 0..9. Test: 3,121 images of 99
    other writers. `writers` takes the first so many (60,000 float32 images are 188 MB). A linear model trained
    centrally reaches 0.912.
    """
    train, test = npz("mnist_by_writer/train.npz"), npz("mnist_by_writer/test.npz")
    who = train["writer"].astype(np.int64)
    if writers is not None:
        keep = who < np.unique(who)[:writers].max() + 1
        train, who = {k: v[keep] for k, v in train.items()}, who[keep]
    return from_numpy(
        images_as(train["x"], shape),
        train["y"].astype(np.int64),
        client=who,
        name="MNIST by writer",
        test={"x": images_as(test["x"], shape), "y": test["y"].astype(np.int64)},
        classes=10,
    )


def fashion_mnist(
    clients: int = 100,
    partition: Callable[..., Any] | None = None,
    rows: int = 20_000,
    shape: str = "flat",
    seed: int = 0,
) -> Federated:
    """Fashion-MNIST, 20,000 images shared out by `partition` (default Dirichlet 0.3); 4,000 test images."""
    z = npz("fashion_mnist/fashion.npz")
    return federate(
        {"x": images_as(z["x_train"][:rows], shape), "y": z["y_train"][:rows].astype(np.int64)},
        partition or dirichlet(0.3),
        seed,
        clients=clients if getattr(partition, "number", None) is None else None,
        test={"x": images_as(z["x_test"], shape), "y": z["y_test"].astype(np.int64)},
        classes=10,
    )


def cifar10(
    rows: int = 5_000,
    test_rows: int = 1_000,
    clients: int = 100,
    partition: Callable[..., Any] | None = None,
    shape: str = "chw",
    seed: int = 0,
) -> Federated:
    """CIFAR-10, the first `rows` of 50,000 (rows are shuffled), shared out by `partition` (default Dirichlet 0.3).

    x float32 in [0, 1], "chw" [n, 3, 32, 32] by default; y int64 0..9. WebP images cost about 0.2 ms each.
    """
    x, y = _cifar(["train_part1", "train_part2"], rows)
    test_x, test_y = _cifar(["test_part1"], test_rows)
    return federate(
        {"x": images_as(x, shape), "y": y},
        partition or dirichlet(0.3),
        seed,
        clients=clients if getattr(partition, "number", None) is None else None,
        test={"x": images_as(test_x, shape), "y": test_y},
        classes=10,
    )


def _cifar(parts: list[str], rows: int) -> tuple[np.ndarray, np.ndarray]:
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    pixels, labels = [], []
    for part in parts:
        for batch in parquet.ParquetFile(file(f"cifar10/{part}.parquet")).iter_batches(
            1_000, columns=["image", "label"]
        ):
            left = rows - len(labels)
            for data, label in zip(batch["image"][:left].to_pylist(), batch["label"][:left].to_pylist(), strict=True):
                pixels.append(np.asarray(image.open(io.BytesIO(data)).convert("RGB")))
                labels.append(label)
            if len(labels) >= rows:
                return np.stack(pixels), np.array(labels, np.int64)
    return np.stack(pixels), np.array(labels, np.int64)


def shakespeare_vocabulary() -> Vocabulary:
    """The 65 characters of the whole text (and one number for any other: size 66)."""
    return Vocabulary.of([gzip.decompress(file("shakespeare/input.txt.gz").read_bytes()).decode()])


def shakespeare(length: int = 80, min_characters: int = 1_000, test_fraction: float = 0.2) -> Federated:
    """Tiny Shakespeare, one client per speaker of at least `min_characters` (141 at 1,000; very uneven).

    x, y int32 [windows, length]: y is x one character later; classes = 66 (`shakespeare_vocabulary`). Speeches are
    joined in order of the play by line breaks; the last `test_fraction` of each speaker's windows is the test.
    """
    pytest.importorskip("pyarrow")
    table = read_parquet(file("shakespeare/tinyshakespeare_by_speaker.parquet"))
    texts: dict[str, str] = {}
    for i in np.argsort(table["order"], kind="stable"):
        who, speech = str(table["speaker"][i]), str(table["text"][i])
        texts[who] = f"{texts[who]}\n{speech}" if who in texts else speech
    return from_text(
        texts,
        length,
        vocabulary=shakespeare_vocabulary(),
        min_characters=min_characters,
        test_fraction=test_fraction,
    )


HEART_FEATURES = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")


def heart_disease(test_fraction: float = 0.2, seed: int = 0) -> Federated:
    """UCI heart disease, four hospitals as clients (cleveland, hungarian, switzerland, va), 920 patients.

    x float32 [n, 10], y int64: disease or none. A cholesterol of 0 means missing; missing values get the mean of
    the training rows, pooled over hospitals, and features are standardised by them. The three features almost
    wholly missing outside Cleveland are left out. Test: `test_fraction` of each hospital.
    """
    table = read_csv(file("heart_disease/heart.csv"))
    table["chol"] = np.where(table["chol"] == 0, np.nan, table["chol"])
    return from_table(
        table,
        name="heart disease",
        id_column="hospital",
        label="target",
        features=HEART_FEATURES,
        fill="mean",
        standardise=True,
        test_fraction=test_fraction,
        seed=seed,
    )


def extrasensory_har(test_fraction: float = 0.2, seed: int = 0, rows_per_user: int | None = None) -> Federated:
    """Phone activity recognition, 27 users as clients, strong personal skew.

    x float32 [n, 52] clipped to [-5, 5] (z-scored, heavy tails), y int64 0..5 (lying, sitting, standing, walking,
    running, bicycling; a majority guess scores 0.48). Test: a random `test_fraction` of each user's windows.
    `rows_per_user` takes the first so many of each.
    """
    z = npz("extrasensory_har/har.npz")
    keep = np.arange(len(z["y"]))
    if rows_per_user is not None:
        keep = np.concatenate([np.flatnonzero(z["user"] == u)[:rows_per_user] for u in np.unique(z["user"])])
    return from_numpy(
        np.clip(z["x"][keep].astype(np.float32), -5.0, 5.0),
        z["y"][keep].astype(np.int64),
        name="ExtraSensory",
        client=z["user"][keep].astype(np.int64),
        classes=6,
        test_fraction=test_fraction,
        seed=seed,
    )
