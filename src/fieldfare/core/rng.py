"""Every random stream of a run, derived from (run seed, purpose, counter) here and nowhere else.

Streams are counter-based: what a client draws depends on its key alone, never on order of arrival, chunk,
worker or driver. Two forms: `stream` gives a NumPy generator (about 25 us to build: not for hot paths), and
`keys` / `bits` give whole tables of uint64 by hashing counters (SplitMix64, Steele, Lea & Flood, OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Key: TypeAlias = tuple[str | int, ...]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_MASK = (1 << 64) - 1


def derive(seed: int, *key: str | int) -> int:
    """A 64-bit number that depends on `seed` and `key` only.

    >>> derive(0, "shuffle", 3) == derive(0, "shuffle", 3) != derive(0, "shuffle", 4)
    True
    """
    parts = (f"i{k:d}" if isinstance(k, int) else "s" + k.replace("\x1f", "\x1f\x1f") for k in key)
    text = "\x1f".join([str(seed), *parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """A NumPy generator for (seed, key): Philox keyed by the hash, counter at zero."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *key)))


def mix(z: U64) -> U64:
    """SplitMix64's finaliser on every element: a bijection of uint64 with full avalanche."""
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


def keys(seed: int, purpose: Key, clients: I64) -> U64:
    """One uint64 stream key per client, `[n]`, from (seed, purpose, client id)."""
    base = np.uint64(derive(seed, *purpose))
    return mix(mix(clients.astype(np.uint64) + _GOLDEN) ^ base)


def bits(key: U64, counters: NDArray[np.integer]) -> U64:
    """Word number `counters` of each stream: broadcasts `key` against `counters`.

    >>> bits(np.array([7], np.uint64), np.arange(2)).shape
    (2,)
    """
    return mix(mix(key) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def uniforms(key: U64, counters: NDArray[np.integer]) -> NDArray[np.float64]:
    """Uniform float64 in [0, 1), 53 bits each; shapes as in `bits`."""
    return (bits(key, counters) >> _S11).astype(np.float64) * 2.0**-53


def normals(key: U64, counters: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard normal float64 by Box and Muller, two words each; shapes as in `bits`."""
    c = counters.astype(np.uint64) * np.uint64(2)
    u = 1.0 - uniforms(key, c)
    v = uniforms(key, c + np.uint64(1))
    return np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)


def choose(seed: int, purpose: Key, k: int, n: int) -> I64:
    """`k` different numbers of `range(n)`, in the order drawn; cost O(k), flat in `n` while k <= n / 2.

    Words of one stream are reduced modulo `n` (bias below n / 2**64) and repeats are skipped.
    """
    if k > n:
        raise ValueError(f"cannot choose {k} different numbers out of {n}")
    key = np.array([derive(seed, *purpose)], np.uint64)
    if 2 * k > n:
        return np.argsort(bits(key, np.arange(n)), kind="stable")[:k]
    start, want = 0, k + k // 8 + 16
    words = np.empty(0, np.int64)
    while True:
        fresh = (bits(key, np.arange(start, start + want)) % np.uint64(n)).astype(np.int64)
        words = np.concatenate([words, fresh]) if start else fresh
        first = np.unique(words, return_index=True)[1]
        if len(first) >= k:
            first.sort()
            return words[first[:k]]
        start, want = start + want, want * 2
