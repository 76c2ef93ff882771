"""A proxy as files: one partition per executor, its rows grouped by client, and an index of who is where.

Here: the artefact of kind `proxy`, and its data as a `Federated`. Invariants: no client is split across files or row
groups; the number of files follows from bytes and an executor's memory; the same inputs give the same content.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.artefact import Artefact, Draft, Value, read_artefact
from fieldfare.assess.proxy import statistics
from fieldfare.assess.proxy.presets import PRESETS, preset
from fieldfare.assess.proxy.share import DAY_S, Shared, Skew, by_field, made_up, numbers, recent, sampled, withheld
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.core.settings import settings
from fieldfare.data.federated import Federated
from fieldfare.fleet.columns import Columns, Text, words_of

Array = NDArray[Any]
I64 = NDArray[np.int64]
GROUP_ROWS = 1 << 16


@settings
@dataclass(frozen=True)
class Config:
    """What to make: `partition_field` or made-up `clients` with a skew; see `share`, `presets`.

    `alphas`: one version of made-up clients for each label alpha (None: no label skew). `preset`: A, B or C sizes.
    `executor_memory_bytes`: the largest partition file's rows in memory. `batch`: clients below it are counted.
    `test_share`: of each client's rows, drawn by the seed, held out to measure on: they are in no partition and in no
    statistics; a client keeps at least one row.
    """

    label: str
    partition_field: str | None = None
    timestamp: str | None = None
    features: tuple[str, ...] = ()
    max_clients: int | None = None
    lookback_days: float | None = None
    clients: int = 100
    preset: str | None = None
    quantity_beta: float | None = None
    alphas: tuple[float | None, ...] = (None,)
    executor_memory_bytes: float = 1e9
    batch: int = 20
    test_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preset is not None:
            preset(self.preset)
        if self.executor_memory_bytes <= 0 or self.clients < 1 or not self.alphas:
            raise UsageError(
                f"Config(clients={self.clients}, executor_memory_bytes={self.executor_memory_bytes:g}, "
                f"alphas={self.alphas}): use positive numbers and at least one alpha (or none)."
            )
        least = {"max_clients": self.max_clients, "lookback_days": self.lookback_days, "batch": self.batch}
        for name, value in least.items():
            if value is not None and not value > 0:
                raise UsageError(f"Config({name}={value}): use a number above 0, or leave it out.")
        if not 0 <= self.test_share < 1:
            raise UsageError(f"Config(test_share={self.test_share}): a share of the rows, from 0 to below 1.")


def build(
    columns: Columns, config: Config, out: str | Path, *, inputs: Sequence[Any] = (), key: bytes | None = None
) -> Artefact:
    """The proxy artefact of a central table's columns; versions after the first lie in files `v1/part-0`, ...

    Raises `UsageError` for columns that are not there. Cost: a sort of the rows, and writing them once a version.
    """
    chosen = _chosen(columns, config)
    values = numbers(chosen)
    rows = np.arange(len(values[config.label]))
    if config.lookback_days is not None:
        if config.timestamp is None:
            raise UsageError("lookback_days needs the timestamp's column: name it, in seconds.")
        rows = recent(values[config.timestamp], config.lookback_days)
    draft = Draft("proxy", config.seed, _params(config), list(inputs))
    with tempfile.TemporaryDirectory() as folder:
        for number, alpha in enumerate(config.alphas if config.partition_field is None else (None,)):
            shared = _shared(columns, values, rows, config, alpha, key)
            name, end = (f"v{number}/", f"_v{number}") if number else ("", "")
            if config.test_share:
                shared, held = withheld(shared, config.test_share, config.seed)
                draft.files[f"{name}test.parquet"] = _held(chosen, held, Path(folder) / f"test{end}.parquet")
                draft.values[f"test_records{end}"] = Value(float(len(held.rows)), "records")
            _files(draft, chosen, shared, config, Path(folder), name)
            _tables(draft, values, shared, config, end)
        return draft.write(out)


def _held(chosen: Columns, held: Shared, place: Path) -> Path:
    """The file of the rows that are measured on, by client."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra.of("pyarrow", extra="parquet") from None
    arrays = {"client": pa.array(held.owner)} | {name: _arrow(one, held.rows) for name, one in chosen.items()}
    pq.write_table(pa.table(arrays), place, compression="zstd")
    return place


def _params(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in Config.__dataclass_fields__ if name != "seed"}


def _chosen(columns: Columns, config: Config) -> dict[str, Array | Text]:
    wanted = [
        config.label,
        *(config.features or [n for n in columns if n not in (config.label, config.partition_field)]),
    ]
    wanted += [config.timestamp] if config.timestamp and config.timestamp not in wanted else []
    missing = [name for name in (*wanted, config.partition_field) if name and name not in columns]
    if missing:
        raise UsageError(f"the table has no column {missing[0]!r}: it has {', '.join(columns)}.")
    return {name: columns[name] for name in dict.fromkeys(wanted)}


def _shared(
    columns: Columns, values: Mapping[str, Array], rows: I64, config: Config, alpha: float | None, key: bytes | None
) -> Shared:
    if config.partition_field is not None:
        field = columns[config.partition_field]
        ids: Any = Text(field.codes[rows], field.names) if isinstance(field, Text) else field[rows]
        found = by_field(ids, max_clients=config.max_clients, key=key)
    else:
        skew = Skew(alpha, config.quantity_beta, PRESETS[config.preset] if config.preset else None)
        found = made_up(values[config.label][rows], len(rows), config.clients, skew, config.seed)
        found = found if config.max_clients is None else sampled(found, config.max_clients, config.seed)
    return Shared(found.offsets, rows[found.rows], found.natural)


def _files(draft: Draft, chosen: Columns, shared: Shared, config: Config, folder: Path, prefix: str) -> None:
    """Partition files and the index's table."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra.of("pyarrow", extra="parquet") from None
    width = sum(
        8 if isinstance(one, Text) else one.dtype.itemsize * int(np.prod(one.shape[1:])) for one in chosen.values()
    )
    executors = max(1, ceil(width * len(shared.rows) / config.executor_memory_bytes))
    clients = len(shared.sizes)
    part, group, offset = np.arange(clients) % executors, np.zeros(clients, np.int64), np.zeros(clients, np.int64)
    for number in range(min(executors, clients)):
        mine = np.flatnonzero(part == number)
        ends = np.cumsum(shared.sizes[mine])
        group[mine] = (ends - shared.sizes[mine]) // GROUP_ROWS
        _, group[mine] = np.unique(group[mine], return_inverse=True)
        place = folder / f"{prefix.replace('/', '-')}part-{number}.parquet"
        writer = None
        for g in range(int(group[mine].max()) + 1):
            inside = mine[group[mine] == g]
            sizes = shared.sizes[inside]
            offset[inside] = np.cumsum(sizes) - sizes
            rows = np.concatenate([shared.rows[shared.offsets[i] : shared.offsets[i + 1]] for i in inside])
            arrays = {"client": pa.array(np.repeat(inside, sizes))} | {k: _arrow(v, rows) for k, v in chosen.items()}
            table = pa.table(arrays)
            writer = writer or pq.ParquetWriter(place, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=len(rows))
        if writer is not None:
            writer.close()
        draft.files[f"{prefix}part-{number}.parquet"] = place
    draft.tables["index" + (f"_{prefix[:-1]}" if prefix else "")] = {
        "client": np.arange(clients), "part": part, "row_group": group, "offset": offset, "n": shared.sizes
    }  # fmt: skip


def _arrow(values: Array | Text, rows: I64) -> Any:
    import pyarrow as pa

    if isinstance(values, Text):
        return pa.array([word or None for word in words_of(Text(values.codes[rows], values.names))], pa.string())
    return pa.array(values[rows]) if values.ndim == 1 else pa.array(list(values[rows]))


def _tables(draft: Draft, values: Mapping[str, Array], shared: Shared, config: Config, end: str) -> None:
    """Statistics of one version: values (of the first), and tables of features and of labels per client."""
    labels = values[config.label][shared.rows]
    found = statistics.of_sizes(shared.sizes, config.batch)
    if labels.ndim == 1 and (len(kinds := np.unique(labels)) <= 1000):
        codes = np.searchsorted(kinds, labels)
        counts = np.bincount(shared.owner * len(kinds) + codes, minlength=len(shared.sizes) * len(kinds))
        counts = counts.reshape(-1, len(kinds))
        found |= statistics.of_labels(counts, config.seed)
        if len(kinds) <= 50:
            index = dict(draft.tables[f"index{end}"])
            draft.tables[f"index{end}"] = index | {
                f"label_{kind}": counts[:, i] for i, kind in enumerate(kinds.tolist())
            }
    columns = {name: column[shared.rows] for name, column in values.items()}
    draft.table(f"features{end}", statistics.of_features(columns, shared.owner, len(shared.sizes)))
    found["duplicates"] = Value(statistics.duplicates(columns), "records")
    if config.timestamp is not None:
        when = columns[config.timestamp]
        found["lookback_days"] = Value(float((when.max() - when.min()) / DAY_S), "d")
    found["natural"] = Value(float(shared.natural), "1")
    for name, one in found.items():
        draft.values[name if not end else f"{name}{end}"] = one


def federated(
    proxy: Artefact | str | Path, version: int = 0, classes: int | None = None, *, flat: bool = True
) -> Federated:
    """The proxy's rows as federated data: `y` the label, `x` the other numeric columns side by side (where `flat`).

    Held-out rows (`test_share`) are its `test`. The timestamp is a feature only where `features` names it. Text columns
    are told by number in order of appearance. Reads all partitions; use one file at a time for more.
    """
    found = proxy if isinstance(proxy, Artefact) else read_artefact(proxy, "proxy")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra.of("pyarrow", extra="parquet") from None
    prefix = f"v{version}/" if version else ""
    files = found.manifest["files"]
    names = sorted(n for n in files if n.startswith(prefix + "part-") and n.endswith(".parquet"))
    if not names:
        raise UsageError(f"{found.path} has no version {version}: it has files {', '.join(files)}.")
    held = [name for name in (f"{prefix}test.parquet",) if name in files]
    tables = [pq.read_table(found.file(name)) for name in (*names, *held)]
    whole, trained = pa.concat_tables(tables), sum(len(one) for one in tables[: len(names)])
    client = whole.column("client").to_numpy()[:trained]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(client))])
    columns = {n: _numbers(whole.column(n)) for n in whole.column_names if n != "client"}
    if (when := found.params.get("timestamp")) not in (found.params.get("features") or ()):
        columns.pop(str(when), None)
    y = columns.pop(str(found.params["label"]))
    if classes is not None or y.dtype.kind in "iub":
        y = y.astype(np.int64)
    if not columns:
        raise UsageError(f"{found.path} has no column beside its label and its timestamp: name features.")
    x = {"x": np.stack([c.astype(np.float32) for c in columns.values()], axis=1)} if flat else columns
    all_ = {**x, "y": y}
    return Federated(
        {name: one[:trained] for name, one in all_.items()}, offsets, np.argsort(client, kind="stable"),
        classes=classes, test={name: one[trained:] for name, one in all_.items()} if held else None,
        name=name_of(found) + (f", version {version}" if version else ""),
    )  # fmt: skip


def name_of(proxy: Artefact) -> str:
    """What the data of a proxy is called, in the records of a run too."""
    return f"proxy {proxy.sha256[:8]}"


def _numbers(column: Any) -> Array:
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        one = column.combine_chunks().dictionary_encode()
        one = one.chunk(0) if isinstance(one, pa.ChunkedArray) else one
        return one.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.asarray(column.to_numpy())
