"""A run's metrics for Prometheus: text for a textfile collector, an endpoint, a job's callback.

Here: the families of FLINT's report, section 12, made of a journal. Not here: reading it (`journal`). The names are the
same for a simulated and a deployed run; times are the run's own (virtual) seconds. Invariants: pure but for `write`,
`Live` and `serve`; what a run does not record has no sample; counters never go down while a run goes on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.assess.platform.journal import BIN_S, Journal, read_journal
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.store.files import write_atomic

DURATIONS_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0, 600.0, 1800.0, 3600.0)
STALENESS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 100.0)

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: `samples` are (suffix of the name, labels, value)."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    samples: tuple[tuple[str, Labels, float], ...]


def families(journal: Journal, run: str = "") -> list[Family]:
    """Every family of which the journal has something; `run` becomes a label where it is given. Pure."""
    more: Labels = (("run", run),) if run else ()
    out: list[Family] = []

    def gauge(name: str, help_: str, value: float | None) -> None:
        if value is not None:
            out.append(Family(name, "gauge", help_, (("", more, float(value)),)))

    def counter(name: str, help_: str, label: str, values: Mapping[str, float | None]) -> None:
        told = [("", ((label, key), *more), float(v)) for key, v in values.items() if v is not None]
        if told:
            out.append(Family(name, "counter", help_, tuple(told)))

    tasks = journal.by_outcome("tasks")
    gauge("fl_virtual_time_seconds", "The run's own clock.", journal.total("virtual_s"))
    gauge("fl_model_version", "Versions of the model made.", journal.versions)
    counter("fl_tasks_total", "Client tasks that ended, by outcome.", "outcome", tasks)
    out += _durations(journal, more)
    out += _staleness(journal, more)
    gauge("fl_concurrency", "Client tasks at work when the last version was made.", _concurrency(journal))
    gauge("fl_buffer_fill", "Replies in the buffer when the last version was made of it.", journal.last.get("clients"))
    gauge("fl_available_devices", "Devices that may work.", journal.available)
    dirs = {one: journal.total(f"bytes_{one}") for one in ("down", "up", "between")}
    counter("fl_bytes_total", "Bytes to clients (down), from them (up), from node to node.", "dir", dirs)
    gauge("fl_updates_per_second", "Tasks that counted, over the last minute.", updates_per_s(journal))
    evals = tuple(("", (("name", n), ("group", g), *more), v) for (n, g), v in sorted(journal.metrics().items()))
    if evals:
        out.append(Family("fl_eval_metric", "gauge", "The last value of a metric, and on whom it was measured.", evals))
    up = ("", (("executor", journal.executor), *more), float(journal.status == "running"))
    out.append(Family("fl_executor_up", "gauge", "Whether the run is being computed there.", (up,)))
    seconds: dict[str, float | None] = dict(journal.by_outcome("device_s"))
    counter("fl_device_seconds_total", "Devices' time in tasks that ended, by outcome.", "outcome", seconds)
    gauge("fl_checkpoint_age_seconds", "Since the newest snapshot, on this machine's clock.", journal.checkpoint_age_s)
    return out


def updates_per_s(journal: Journal) -> float | None:
    """Tasks that counted per virtual second, over the last minute (over all, where tasks are not kept)."""
    now = journal.virtual_s
    if now <= 0:
        return None
    ends = journal.ok_ends_s()
    if ends is None:
        return journal.by_outcome("tasks").get("ok", 0.0) / now
    return float(np.count_nonzero(ends > now - BIN_S)) / min(BIN_S, now)


def exposition(found: Sequence[Family]) -> str:
    """Prometheus' text format, version 0.0.4.

    >>> print(exposition([Family("fl_up", "gauge", "Up.", (("", (("on", "a"),), 1.0),))]), end="")
    # HELP fl_up Up.
    # TYPE fl_up gauge
    fl_up{on="a"} 1
    """
    lines: list[str] = []
    for one in found:
        lines.append(f"# HELP {one.name} {_escaped(one.help, quotes=False)}")
        lines.append(f"# TYPE {one.name} {one.kind}")
        for suffix, labels, value in one.samples:
            told = ",".join(f'{name}="{_escaped(word)}"' for name, word in labels)
            lines.append(f"{one.name}{suffix}{f'{{{told}}}' if told else ''} {number(value)}")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """A number as Prometheus writes it; whole ones without a point.

    >>> number(3.0), number(0.25), number(float("inf")), number(float("nan"))
    ('3', '0.25', '+Inf', 'NaN')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def write(file: str | Path, found: Sequence[Family]) -> None:
    """Write for a textfile collector, whole or not at all; node_exporter wants a name that ends in .prom."""
    write_atomic(Path(file), [exposition(found).encode()])


class Live:
    """A callback of a job: writes its metrics after every round, or serves them while it runs.

    `file`: for a textfile collector. `port`: of an HTTP endpoint on `address` (extra `prometheus`; 0: any free one,
    then in `self.port`). Durations and staleness come as totals alone: tasks one by one are in the run's folder, which
    the command `fieldfare assess metrics` reads. `close` ends the endpoint.
    """

    def __init__(self, file: str | Path | None = None, port: int | None = None, address: str = "127.0.0.1") -> None:
        if file is None and port is None:
            raise UsageError("Live() has nowhere to put its metrics: give file=..., or port=....")
        self.file = None if file is None else Path(file)
        self.rows: list[Mapping[str, Any]] = []
        self._guard = threading.Lock()
        self._endpoint = None if port is None else serve(self.families, port, address)
        self.port = None if self._endpoint is None else self._endpoint.port

    def families(self) -> list[Family]:
        """What is known of the run so far."""
        with self._guard:
            return families(Journal(tuple(self.rows)))

    def __call__(self, row: Mapping[str, Any]) -> None:
        with self._guard:
            if self.rows and row["version"] <= self.rows[-1]["version"]:
                self.rows.clear()  # the same job runs again
            self.rows.append(dict(row))
        if self.file is not None:
            write(self.file, self.families())

    def close(self) -> None:
        """End the endpoint."""
        if self._endpoint is not None:
            self._endpoint.close()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An HTTP endpoint that is up, on `port`."""

    port: int
    server: Any
    thread: threading.Thread

    def close(self) -> None:
        """Stop serving and give the port back."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def serve(source: Callable[[], Sequence[Family]], port: int, address: str = "127.0.0.1") -> Endpoint:
    """Serve what `source` gives at every scrape, at http://address:port/metrics; needs the extra `prometheus`.

    Raises `UsageError` where the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import Metric
    except ImportError:
        raise MissingExtra.of("prometheus-client", extra="prometheus") from None

    class Source:
        def collect(self) -> Any:
            for one in source():
                metric = Metric(one.name.removesuffix("_total"), one.help, one.kind)
                for suffix, labels, value in one.samples:
                    metric.add_sample(one.name + suffix, dict(labels), value)
                yield metric

        def describe(self) -> list[Any]:
            return []

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Source())  # type: ignore[arg-type]
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise UsageError(f"port {port} of {address} cannot be served ({error.strerror}): give another.") from None
    return Endpoint(int(server.server_address[1]), server, thread)


def source_of(run: str, root: str | Path = "runs") -> Callable[[], list[Family]]:
    """What `serve` asks at every scrape: the families of a run's folder as it is then."""

    def families_now() -> list[Family]:
        folder, journal = read_journal(run, root)
        return families(journal, folder.name)

    return families_now


def _durations(journal: Journal, more: Labels) -> list[Family]:
    name, help_ = "fl_task_duration_seconds", "How long client tasks took, whatever their outcome."
    if journal.tasks is not None and len(journal.tasks):
        seconds = np.asarray(journal.tasks["end"] - journal.tasks["start"], np.float64)
        return [_histogram(name, help_, seconds, DURATIONS_S, more)]
    count, total = (sum(journal.by_outcome(one).values()) for one in ("tasks", "device_s"))
    return [_totals(name, help_, count, total, more)] if count else []


def _staleness(journal: Journal, more: Labels) -> list[Family]:
    name, help_ = "fl_staleness", "Versions a reply was behind, counted or thrown away."
    found = journal.staleness()
    if found is not None and len(found):
        return [_histogram(name, help_, found.astype(np.float64), STALENESS, more)]
    told = [(row["clients"], row["staleness"]) for row in journal.rows if row.get("staleness") is not None]
    count = float(sum(n for n, _ in told))
    return [_totals(name, help_, count, float(sum(n * mean for n, mean in told)), more)] if count else []


def _histogram(name: str, help_: str, values: NDArray[np.float64], edges: Sequence[float], more: Labels) -> Family:
    """Cumulative counts of values at most each edge, as Prometheus wants them."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, edges, side="right")
    samples: list[tuple[str, Labels, float]] = [
        ("_bucket", (*more, ("le", number(edge))), float(n)) for edge, n in zip(edges, below, strict=True)
    ]
    return Family(name, "histogram", help_, (*samples, *_ends(len(values), float(values.sum()), more)))


def _totals(name: str, help_: str, count: float, total: float, more: Labels) -> Family:
    return Family(name, "histogram", help_, _ends(count, total, more))


def _ends(count: float, total: float, more: Labels) -> tuple[tuple[str, Labels, float], ...]:
    return ("_bucket", (*more, ("le", "+Inf")), float(count)), ("_sum", more, total), ("_count", more, float(count))


def _concurrency(journal: Journal) -> float | None:
    """At work beside the version that was made; of rounds that do not overlap, those that were asked."""
    if journal.summary:
        return float(journal.summary.get("running", 0) or 0)
    if "at_work" in journal.last:
        return float(journal.last["at_work"])
    return float(sum(journal.last["tasks"].values())) if "tasks" in journal.last else None


def _escaped(word: str, quotes: bool = True) -> str:
    word = word.replace("\\", r"\\").replace("\n", r"\n")
    return word.replace('"', r"\"") if quotes else word
