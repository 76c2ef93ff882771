"""Tables of real people as the central tables of the three cases: impressions, messages, ratings.

Here: columns `member`, `label`, `x0`, `x1`, ... of the rows to train on, and test rows of the same members. Not here:
the files themselves (a folder holds them, see `fieldfare assess demo --real`), the walk (`real`). Invariants: a feature
of a row is known before its label is (what others did comes from earlier rows alone); no text leaves this module, only
counts of hashed words.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import MissingExtra, UsageError

Array = NDArray[Any]
Rows = tuple[dict[str, Any], dict[str, Array]]
TEST_SHARE = 0.2
LEAST = 20
"""Rows to train on that a member must have: others do not take part, and are not tested on (our choice)."""
WORDS, FIRST_WORDS = 64, 32

FILES = {
    "ads": "open_bandit_ads/obd_small.parquet", "messaging": "sms_by_user/sms_en.parquet",
    "search": "movielens_latest_small/ratings.parquet", "films": "movielens_latest_small/movies.parquet",
    "sessions": "traces_availability/flash_intervals.parquet",
}  # fmt: skip


def file(folder: Path, what: str) -> Path:
    """The file of a table; one line where it is absent."""
    place = folder / FILES[what]
    if not place.is_file():
        raise UsageError(f"{place} is not there: --real names the folder that holds {FILES[what].split('/')[0]}.")
    return place


def impressions(folder: Path, seed: int) -> Rows:
    """Open Bandit: was the item clicked? Members are segments of like users, not persons (Saito et al., 2020).

    207 clicks in 40,000 impressions: too few for a statement on accuracy.
    """
    t = _read(file(folder, "ads"))
    campaign = (t["campaign"].astype(str) == "women").astype(np.float64)
    item = t["item_id"].astype(np.int64)
    affinity = np.stack([t[f"user-item_affinity_{i}"] for i in range(46)], axis=1)
    mine = np.nan_to_num(affinity[np.arange(len(item)), item])
    hour = t["timestamp"].astype("datetime64[s]").astype(np.int64) / 3600 % 24
    columns = [campaign, mine, np.sin(hour / 24 * 2 * np.pi), np.cos(hour / 24 * 2 * np.pi)]
    for name in ("position", *(f"user_feature_{i}" for i in range(4))):
        columns += _one_hot(t[name])
    return _split(t["segment"], t["click"], np.stack(columns, axis=1), _random(len(item), seed))


def messages(folder: Path, seed: int) -> Rows:
    """NUS SMS: does a message ask something (has it a question mark)? Features: its words, hashed, without the mark.

    A keyboard that offers the mark is the case; members are senders (Chen and Kan, 2013).
    """
    t = _read(file(folder, "messaging"), ["user", "text"])
    x = np.zeros((len(t["user"]), WORDS + FIRST_WORDS + 1), np.float32)
    for i, text in enumerate(t["text"].tolist()):
        found = re.findall(r"[a-z']+", str(text).lower())
        for word in found:
            x[i, zlib.crc32(word.encode()) % WORDS] += 1.0
        if found:
            x[i, WORDS + zlib.crc32(b"first " + found[0].encode()) % FIRST_WORDS] = 1.0
        x[i, -1] = np.log1p(len(found))
    x[:, :WORDS] = np.log1p(x[:, :WORDS])
    label = np.array(["?" in str(text) for text in t["text"].tolist()])
    return _split(t["user"], label, x, _random(len(label), seed))


def ratings(folder: Path, seed: int) -> Rows:
    """MovieLens: is a film relevant (rated 4 or more)? Members are users; the last fifth of each one's is the test.

    Features: the film's genres and year, its mean and number of earlier ratings by anybody, the user's own of earlier
    films (Harper and Konstan, 2015).
    """
    del seed  # the split is by time
    t, films = _read(file(folder, "search")), _read(file(folder, "films"), ["movieId", "year", "genres"])
    order = np.lexsort((t["movie"], t["user"], t["timestamp"]))
    user, movie, label = (t[name][order].astype(np.int64) for name in ("user", "movie", "rating"))
    label = (t["rating"][order] >= 4).astype(np.int64)
    place = {int(one): i for i, one in enumerate(films["movieId"].tolist())}
    at = np.array([place.get(int(one), -1) for one in movie])
    told = [set(str(one).split("|")) for one in films["genres"].tolist()]
    names = sorted({genre for genres in told for genre in genres})[:24]
    kinds = np.array([[genre in genres for genre in names] for genres in told] + [[False] * len(names)], np.float32)
    year = np.nan_to_num(np.append(films["year"].astype(np.float64), np.nan), nan=1990.0)
    columns = [kinds[at], ((year[at] - 1990.0) / 15.0)[:, None]]
    for group in (movie, user):
        count, mean = _earlier(group, label)
        columns += [mean[:, None], np.log1p(count)[:, None] / 4.0]
    rank, _ = _earlier(user, label)
    of = np.bincount(user)[user]
    return _split(user, label, np.concatenate(columns, axis=1), rank >= (1 - TEST_SHARE) * of)


TABLES: Mapping[str, Callable[[Path, int], Rows]] = {"ads": impressions, "messaging": messages, "search": ratings}


def _read(place: Path, names: list[str] | None = None) -> dict[str, Array]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra.of("pyarrow", extra="assess") from None
    table = pq.read_table(place, columns=names)
    return {name: table[name].to_numpy() for name in table.column_names}


def _one_hot(values: Array) -> list[Array]:
    return [(values == one).astype(np.float64) for one in np.unique(values)]


def _random(rows: int, seed: int) -> NDArray[np.bool_]:
    return rng.stream(seed, "assess", "demo", "test").random(rows) < TEST_SHARE


def _earlier(group: Array, label: Array) -> tuple[Array, Array]:
    """(number, smoothed share of ones) of the rows of the same group before each row, in the rows' order."""
    order = np.argsort(group, kind="stable")
    first = np.concatenate([[True], np.diff(group[order]) != 0])
    begin = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    before = np.cumsum(label[order]) - label[order]
    count, ones = np.empty(len(order)), np.empty(len(order))
    count[order] = np.arange(len(order)) - begin
    ones[order] = before - before[begin]
    return count, (ones + 2.5) / (count + 5.0)


def _split(member: Array, label: Array, x: Array, test: Array) -> Rows:
    """Columns of the rows to train on; the test's as `x`, `y`. Features are scaled by the rows to train on."""
    many = np.bincount(member[~test], minlength=int(member.max()) + 1) >= LEAST
    member, label, x, test = (one[many[member]] for one in (member, label, x, test))
    mean, std = x[~test].mean(axis=0), x[~test].std(axis=0)
    x = ((x - mean) / np.where(std > 1e-6, std, 1.0)).clip(-5, 5).astype(np.float32)
    y = np.asarray(label).astype(np.int64)
    columns: dict[str, Any] = {"member": np.asarray(member)[~test].astype(np.int64), "label": y[~test]}
    columns |= {f"x{i}": x[~test, i] for i in range(x.shape[1])}
    return columns, {"x": x[test], "y": y[test]}
