"""DuckDB, and the coin in its words.

Here: a connection that spills to the disk above its memory, and the one random number of a session as an SQL
expression. Not here: what is asked of the tables. Invariant: the coin is `core.rng.uniforms` of the key (seed, client)
at the session's start in milliseconds, to the bit, so that it is the same in any partition, order and program.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from fieldfare.core import rng
from fieldfare.core.errors import MissingExtra, UsageError

_MASK = "18446744073709551615::UHUGEINT"
_GOLDEN, _M1, _M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
PURPOSE = ("assess", "trace", "coin")


@contextlib.contextmanager
def connected(memory_bytes: float = 0.0, threads: int = 0, folder: str = "") -> Iterator[Any]:
    """A DuckDB in memory of its own, which writes to a temporary folder (in `folder`) what does not fit."""
    try:
        import duckdb
    except ImportError:
        raise MissingExtra.of("duckdb", extra="assess") from None
    with (
        tempfile.TemporaryDirectory(prefix="fieldfare-trace-", dir=folder or None) as spill,
        contextlib.closing(duckdb.connect()) as con,
    ):
        con.execute(f"SET temp_directory = {text(spill)}")
        con.execute("SET preserve_insertion_order = false")
        con.execute("SET enable_progress_bar = false")
        con.execute("SET TimeZone = 'UTC'")
        if memory_bytes:
            con.execute(f"SET memory_limit = '{max(1, int(memory_bytes / 1e6))}MB'")
        if threads:
            con.execute(f"SET threads = {int(threads)}")
        yield con


def text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def name(value: str) -> str:
    """A column's name as SQL writes it."""
    return '"' + value.replace('"', '""') + '"'


def with_coin(query: str, seed: int) -> str:
    """A query of the same rows with their coin in [0, 1), `coin`, made of their columns `client` and `start_ms`.

    One step a subquery: as one expression each step would be computed again wherever it is used.
    """
    base = rng.derive(seed, *PURPOSE)

    def word(x: str) -> str:
        return f"(CASE WHEN {x} < 0 THEN {x}::HUGEINT + 18446744073709551616::HUGEINT ELSE {x}::HUGEINT END)::UHUGEINT"

    mix = (
        f"(xor(z, z >> 30) * {_M1}::UHUGEINT) & {_MASK}", f"(xor(z, z >> 27) * {_M2}::UHUGEINT) & {_MASK}",
        "xor(z, z >> 31)",
    )  # fmt: skip
    count = f"((({word('start_ms')} + 1::UHUGEINT) & {_MASK}) * {_GOLDEN}::UHUGEINT) & {_MASK}"
    made = f"SELECT *, ({word('client')} + {_GOLDEN}::UHUGEINT) & {_MASK} AS z FROM ({query})"
    for step in (*mix, f"xor(z, {base}::UHUGEINT)", *mix, *mix, f"(z + ({count})) & {_MASK}", *mix):
        made = f"SELECT * REPLACE ({step} AS z) FROM ({made})"
    return f"SELECT * EXCLUDE (z), (z >> 11)::DOUBLE * {2.0**-53!r} AS coin FROM ({made})"


def coins(seed: int, client: Any, start_ms: Any) -> Any:
    """The same numbers without SQL: float64 `[n]` for int64 clients and starts `[n]`."""
    return rng.uniforms(rng.keys(seed, PURPOSE, np.asarray(client, np.int64)), np.asarray(start_ms, np.int64))


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Errors of DuckDB as one line that says what was being done."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("duckdb", "_duckdb"):
            raise
        line = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UsageError(f"{what}: {line}") from None
