"""FLINT's table 5 as a bench artefact: five models on 27 phones, 5,000 records each (Wang et al., MLSys 2023).

Here: the paper's numbers and what follows from them. Not here: measuring. The paper gives mean and deviation over
devices; that seconds per record are log-normal is our reading, as is scaling them to other numbers of records.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.core.errors import UsageError

RECORDS, DEVICES = 5_000, 27
_P95 = 1.6448536


@dataclass(frozen=True, slots=True)
class Row:
    """A model of the table: sizes in bytes, seconds for 5,000 records with their deviation over devices."""

    title: str
    params: int
    storage_bytes: float
    network_bytes: float
    memory_bytes: float
    mean_s: float
    std_s: float
    cpu_pct: float

    @property
    def sigma(self) -> float:
        """Of the logarithm of the time over devices: 0.61 to 0.67, whatever the model."""
        return sqrt(log(1 + (self.std_s / self.mean_s) ** 2))

    @property
    def mu(self) -> float:
        """Mean of the logarithm of seconds per record."""
        return log(self.mean_s / RECORDS) - self.sigma**2 / 2

    def p95_s(self, records: float, epochs: float = 1.0) -> float:
        """Seconds that 95 % of devices need at most for so many records."""
        return exp(self.mu + _P95 * self.sigma) * records * epochs


TABLE_5: dict[str, Row] = {
    "A": Row("tiny net", 1_510, 0.057e6, 0.11e6, 3.08e6, 4.98, 3.37, 1.63),
    "B": Row("MLP, sparse features", 189_000, 0.76e6, 1.52e6, 10.64e6, 61.81, 44.17, 3.91),
    "C": Row("MLP, medium embedding", 208_000, 0.85e6, 1.88e6, 0.85e6, 3.26, 2.23, 5.29),
    "D": Row("CNN, large embedding", 390_000, 10.79e6, 3.12e6, 8.37e6, 70.13, 50.82, 4.72),
    "E": Row("multi-task MLP", 922_000, 7.52e6, 7.38e6, 43.14e6, 238.38, 178.13, 6.43),
}


def declared(
    out: str | Path, *, records: float = RECORDS, epochs: float = 1.0, models: tuple[str, ...] = ()
) -> Artefact:
    """The table as an artefact of kind `bench`, for tasks of so many records; `models` of it (default: all)."""
    unknown = [name for name in models if name not in TABLE_5]
    if unknown:
        raise UsageError(f"the table has no model {unknown[0]!r}: it has {', '.join(TABLE_5)}.")
    chosen = {name: row for name, row in TABLE_5.items() if not models or name in models}
    draft = Draft("bench", params={"records": records, "epochs": epochs, "source": "FLINT, table 5"})
    for name, row in chosen.items():
        half = row.network_bytes / 2
        each = row.mean_s / RECORDS
        numbers = {
            "mean_s": (each * records * epochs, "s"), "p95_task_s": (row.p95_s(records, epochs), "s"),
            "per_record_s": (each, "s"), "lognormal_mu": (row.mu, "1"), "lognormal_sigma": (row.sigma, "1"),
            "storage_bytes": (row.storage_bytes, "B"), "wire_down_bytes": (half, "B"), "wire_up_bytes": (half, "B"),
            "mem_bytes": (row.memory_bytes, "B"), "cpu_pct": (row.cpu_pct, "%"),
            "battery_share_per_day": (None, "share"), "records": (records, "records"),
        }  # fmt: skip
        draft.values |= {f"{name}.{key}": Value(value, unit, how="declared") for key, (value, unit) in numbers.items()}
    rows = list(chosen.values())
    draft.table("models", {
        "model": list(chosen), "title": [r.title for r in rows], "params": [r.params for r in rows],
        "storage_bytes": [r.storage_bytes for r in rows], "wire_bytes": [r.network_bytes for r in rows],
        "mem_bytes": [r.memory_bytes for r in rows], "mean_s": [r.mean_s for r in rows],
        "std_s": [r.std_s for r in rows], "cpu_pct": [r.cpu_pct for r in rows],
        "per_record_s": [r.mean_s / RECORDS for r in rows], "lognormal_mu": [r.mu for r in rows],
        "lognormal_sigma": [r.sigma for r in rows], "n_devices": [DEVICES] * len(rows),
    })  # fmt: skip
    return draft.write(out)
