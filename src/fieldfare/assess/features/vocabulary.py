"""Vocabularies against hashing, and the size of embeddings: what a phone can be sent.

Here: bytes and collisions. Not here: what a collision costs in accuracy, which a simulation shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, log, log1p

from fieldfare.core.errors import UsageError

LIMITS_BYTES = {"kit for other apps": 1e6, "own app": 10e6}
"""FLINT, section 4.1: what a model and its assets may weigh."""


@dataclass(frozen=True, slots=True)
class Size:
    """A way to number a feature's words: bytes of file and embedding, and the share of uses whose word is lost.

    Lost: it has no number of its own, as it is rare (a file) or shares a bucket (hashing).
    """

    name: str
    rows: int
    dim: int
    file_bytes: float
    embedding_bytes: float
    lost: float

    @property
    def bytes(self) -> float:
        return self.file_bytes + self.embedding_bytes

    def fits(self) -> dict[str, bool]:
        return {name: self.bytes <= limit for name, limit in LIMITS_BYTES.items()}


def collided(words: int, buckets: int) -> float:
    """Expected share of words that are not alone in their bucket: 1 - (1 - 1/m)^(n - 1).

    >>> round(collided(1000, 1000), 3)
    0.632
    """
    if words < 1 or buckets < 1:
        raise UsageError(f"collided(words={words}, buckets={buckets}): use numbers >= 1.")
    return float(words > 1) if buckets == 1 else -expm1((words - 1) * log1p(-1 / buckets))


def embedding_bytes(rows: int, dim: int, width: int = 4) -> int:
    """rows x dim x 4: 500,000 words of 300 numbers are 600 MB, 50,000 of 50 are 60 times smaller.

    >>> embedding_bytes(500_000, 300) / embedding_bytes(50_000, 50)
    60.0
    """
    return rows * dim * width


def rare(words: int, kept: int) -> float:
    """Share of uses whose word is not among the `kept` most frequent, by Zipf's law (uses in proportion to 1/rank).

    >>> round(rare(500_000, 50_000), 2)
    0.17
    """
    return 0.0 if kept >= words else 1 - (log(kept) + 0.5772) / (log(words) + 0.5772)


def advise(
    words: int, word_bytes: float, dims: tuple[int, ...] = (300, 128, 64, 50, 32, 16, 8), *, most_lost: float = 0.2,
    limit_bytes: float = LIMITS_BYTES["own app"],
) -> list[Size]:  # fmt: skip
    """Choices for one feature, preferred first: within the limit, then at most `most_lost`, then the largest dimension.

    For every dimension: a file of all words; a file of their most frequent tenth; hashing, without a file, to the
    smallest power of two that loses at most `most_lost`, or the largest there is room for.
    """
    if words < 1 or word_bytes < 0 or limit_bytes <= 0:
        raise UsageError(f"advise(words={words}, word_bytes={word_bytes}): use at least one word and sizes above 0.")
    found: list[Size] = []
    for dim in dims:
        for name, rows in (("file", words), ("file of the most frequent tenth", max(1, words // 10))):
            found.append(Size(name, rows, dim, word_bytes * rows, embedding_bytes(rows, dim), rare(words, rows)))
        powers = [1 << power for power in range(6, 25) if embedding_bytes(1 << power, dim) <= limit_bytes]
        enough = [buckets for buckets in powers if collided(words, buckets) <= most_lost]
        for buckets in enough[:1] or powers[-1:]:
            size = embedding_bytes(buckets, dim)
            found.append(Size(f"hashing to {buckets:,}", buckets, dim, 0.0, size, collided(words, buckets)))
    return sorted(found, key=lambda one: (one.bytes > limit_bytes, max(one.lost, most_lost), -one.dim, one.bytes))
