"""Text as windows of characters: the input of next-character prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.data.federated import Federated

Array = NDArray[Any]


@dataclass(frozen=True)
class Vocabulary:
    """Characters and their numbers: 0 stands for any other character, then 1, 2, ... in code-point order.

    >>> Vocabulary("ab").encode("abc").tolist()
    [1, 2, 0]
    """

    characters: str

    @staticmethod
    def of(texts: Iterable[str]) -> Vocabulary:
        """All characters of some texts. It looks at every client's text: on real devices use `PRINTABLE`."""
        return Vocabulary("".join(sorted(set().union(*map(set, texts)))))

    @cached_property
    def _points(self) -> NDArray[np.uint32]:
        return np.unique(_code_points(self.characters))

    @property
    def size(self) -> int:
        """Different numbers, the 0 included."""
        return len(self._points) + 1

    def encode(self, text: str) -> NDArray[np.int32]:
        """One number per character, int32 `[characters]`."""
        points = _code_points(text)
        if not len(self._points):
            return np.zeros(len(points), np.int32)
        at = np.minimum(np.searchsorted(self._points, points), len(self._points) - 1)
        return np.where(self._points[at] == points, at + 1, 0).astype(np.int32)

    def decode(self, numbers: Array, other: str = "\N{REPLACEMENT CHARACTER}") -> str:
        """The text of some numbers, `other` where the character is not known."""
        letters = [other, *map(chr, self._points.tolist())]
        return "".join(letters[int(i)] for i in np.asarray(numbers).reshape(-1))


PRINTABLE = Vocabulary("\n" + "".join(map(chr, range(32, 127))))


def from_text(
    texts: Mapping[str, str],
    length: int = 80,
    *,
    stride: int | None = None,
    vocabulary: Vocabulary = PRINTABLE,
    min_characters: int | None = None,
    test_fraction: float = 0.0,
) -> Federated:
    """Windows of each client's text: `x` int32 `[windows, length]`, `y` the same one character later.

    Every step is an example of next-character prediction (LEAF's Shakespeare task, Caldas et al. 2018, predicts
    the last step only). `stride` defaults to `length`: windows side by side, the rest of the text unused. Clients
    below `min_characters` (default `length + 1`, one window) are left out. The last `test_fraction` of each
    client's windows, in order of the text, is the central test set; each client keeps one at least.
    """
    step = length if stride is None else stride
    least = length + 1 if min_characters is None else max(min_characters, length + 1)
    if length < 1 or step < 1 or not 0.0 <= test_fraction < 1.0:
        raise UsageError(
            f"from_text(length={length}, stride={step}, test_fraction={test_fraction}): length and stride must be 1 or "
            "more, test_fraction at least 0 and below 1."
        )
    kept = [name for name, text in texts.items() if len(text) >= least]
    if not kept:
        raise UsageError(f"no client of {len(texts)} has {least} characters; lower length or min_characters.")
    windows = [_windows(vocabulary.encode(texts[name]), length, step) for name in kept]
    both, sizes = np.concatenate(windows), np.array([len(w) for w in windows], np.int64)
    columns = {"x": np.ascontiguousarray(both[:, :-1]), "y": np.ascontiguousarray(both[:, 1:])}
    tests = np.minimum(np.floor(test_fraction * sizes).astype(np.int64), sizes - 1)
    last = np.arange(len(both)) >= np.repeat(np.cumsum(sizes) - tests, sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes - tests)])
    test = {name: column[last] for name, column in columns.items()} if last.any() else None
    return Federated(
        columns, offsets, np.flatnonzero(~last), kept, vocabulary.size, test, name=f"text, windows of {length}"
    )


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _windows(numbers: Array, length: int, step: int) -> Array:
    return np.lib.stride_tricks.sliding_window_view(numbers, length + 1)[::step]
