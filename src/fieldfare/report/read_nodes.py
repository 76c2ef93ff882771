"""What the nodes of a run did and said, added up: who trained when, who waited for what, who sent how much to whom.

Here: `read_nodes` for the files of a run with several nodes, and sums over them. Not here: how a run without them is
read (`read_tasks`), drawing (`plots_nodes`, `plots_rings`), what a speed-up is made of (`decompose`). Kept: a run of
one node is None, not an error; what is there and cannot be read is one clear line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.fleet.tasks import INTERRUPTED, OUTCOMES
from fieldfare.report.table import Floats, is_number, load, read_lines
from fieldfare.store.nodes import MESSAGE, MESSAGES, NODES, SAID, WORK, WORKED

CARRY_MODELS = frozenset({"Frame", "Broadcast", "Backup", "Offer", "Share", "Welcome", "Whole"})
"""Messages with parameters in them."""
CARRY_SPLIT = frozenset({
    "Round", "Begin", "Finish", "Update", "Train", "Forward", "Backward", "Between", "Ends", "Attach", "Attached",
    "Pre", "Final", "Stored", "Carry", "Replica", "Relay",
})  # fmt: skip
"""Where a model is trained in parts: messages with parameters, activations, gradients or sessions in them.

All others, of either kind of run, are control.
"""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run, by number, and what they did in `span_s` seconds.

    `devices`: the device a node sits on, -1 for none. `messages` and `work`: rows as in `store.nodes`, in order of
    time. `said`: what nodes put on record (draws, decisions), in order of time. `came`: (seconds, node, whether it
    came or went). `compute_w`: watts a node computes at, `radio_j`: joules of its radio in the whole run; both empty
    where an older run has kept none.
    """

    names: tuple[str, ...]
    roles: tuple[str, ...]
    devices: tuple[int, ...]
    kinds: tuple[str, ...]
    messages: NDArray[Any]
    work: NDArray[Any]
    said: tuple[Mapping[str, Any], ...]
    came: tuple[tuple[float, int, bool], ...]
    span_s: float
    compute_w: tuple[float, ...] = ()
    radio_j: tuple[float, ...] = ()

    @property
    def placed(self) -> list[int]:
        """The nodes on devices, in order of their numbers."""
        return [at for at, device in enumerate(self.devices) if device >= 0]

    def of_kind(self, *names: str) -> NDArray[Any]:
        """The messages of some kinds, by name."""
        wanted = [at for at, kind in enumerate(self.kinds) if kind in names]
        return self.messages[np.isin(self.messages["kind"], wanted)]

    def frames(self) -> NDArray[Any]:
        """The chunks that went round in rings."""
        return self.of_kind("Frame")

    @property
    def split(self) -> bool:
        """Whether models are trained in parts, with edge servers."""
        return "edge" in self.roles

    @property
    def carried(self) -> str:
        """What is carried that is not control, in a word."""
        return "tensors" if self.split else "models"

    def carries_model(self) -> NDArray[np.bool_]:
        """Whether each message has parameters in it, or of a model in parts any tensor, `[messages]`."""
        heavy = CARRY_SPLIT if self.split else CARRY_MODELS
        return np.isin(self.messages["kind"], [at for at, kind in enumerate(self.kinds) if kind in heavy])

    def trainings(self, node: int) -> NDArray[Any]:
        """What one node trained, in order of time."""
        return self.work[self.work["node"] == node]


def read_nodes(folder: Path, span_s: float | None = None) -> Nodes | None:
    """Read what the nodes of the run in `folder` left; None where it keeps none. Cost: the sizes of the files.

    `span_s`: how long the run lasted, where that is known; else as long as anything in the files. Raises `UsageError`
    for a file that is damaged or about other nodes.
    """
    told = load(folder / NODES)
    if not told:
        return None
    listed, kinds = told.get("nodes"), told.get("kinds", [])
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) and "node" in one for one in listed):
        raise UsageError(f"{folder / NODES} lists no nodes: restore the file or run the job again.")
    messages, work = _rows(folder / MESSAGES, MESSAGE), _rows(folder / WORK, WORKED)
    ends = [messages["src"], messages["dst"], work["node"]]
    if any(len(one) and not 0 <= one.min() <= one.max() < len(listed) for one in ends):
        raise UsageError(f"{folder / MESSAGES} or {WORK} is about other nodes than {NODES}: run the job again.")
    if len(messages) and not 0 <= messages["kind"].min() <= messages["kind"].max() < len(kinds):
        raise UsageError(f"{folder / MESSAGES} holds a kind of message that {NODES} does not name: run the job again.")
    if len(work) and ((work["ended_s"] < work["begun_s"]).any() or (work["outcome"] >= len(OUTCOMES)).any()):
        raise UsageError(f"{folder / WORK} holds a training that cannot be: restore the file or run the job again.")
    names = tuple(str(one["node"]) for one in listed)
    lines = tuple(read_lines(folder / SAID))
    came = [(when_of(one), names.index(one["node"]), bool(one["there"])) for one in lines
            if "there" in one and one.get("node") in names]  # fmt: skip
    arrived = messages["arrives_s"][np.isfinite(messages["arrives_s"])]
    last = float(max(arrived.max(initial=0.0), work["ended_s"].max(initial=0.0)))
    return Nodes(
        names, tuple(str(one.get("role", "")) for one in listed),
        tuple(int(one["device"]) if is_number(one.get("device")) else -1 for one in listed),
        tuple(str(kind) for kind in kinds), messages[np.argsort(messages["sent_s"], kind="stable")],
        work[np.argsort(work["begun_s"], kind="stable")], tuple(one for one in lines if "there" not in one),
        tuple(came), span_s if span_s else last, _numbers(listed, "compute_w"), _numbers(listed, "radio_j"),
    )  # fmt: skip


def _numbers(listed: Sequence[Mapping[str, Any]], name: str) -> tuple[float, ...]:
    """A number of every node, 0 for one without; empty where none has it."""
    if not any(is_number(one.get(name)) for one in listed):
        return ()
    return tuple(float(one[name]) if is_number(one.get(name)) else 0.0 for one in listed)


def when_of(line: Mapping[str, Any]) -> float:
    """When something was said, in virtual seconds; 0 where it does not say so."""
    found = next((line[key] for key in ("virtual_s", "now", "time") if is_number(line.get(key))), 0.0)
    return float(found)


def busy_s(nodes: Nodes, until_s: float | None = None) -> Floats:
    """Seconds that each node trained, `[nodes]`, up to `until_s`; work that was cut short counts as far as it came."""
    until = nodes.span_s if until_s is None else until_s
    spent = np.maximum(np.minimum(nodes.work["ended_s"], until) - np.minimum(nodes.work["begun_s"], until), 0.0)
    return np.bincount(nodes.work["node"], spent, len(nodes.names))


def energy_j(nodes: Nodes) -> tuple[Floats, Floats] | None:
    """Joules of each node's (computing, messages) in the whole run, `[nodes]` each; None where none were kept."""
    if not nodes.compute_w or not nodes.radio_j:
        return None
    return busy_s(nodes, np.inf) * nodes.compute_w, np.array(nodes.radio_j)


def steps_taken(nodes: Nodes, until_s: float | None = None) -> Floats:
    """Local steps of each node, `[nodes]`, up to `until_s`; of a training under way its share by time."""
    until = nodes.span_s if until_s is None else until_s
    work = nodes.work
    took = work["ended_s"] - work["begun_s"]
    done = np.clip((until - work["begun_s"]) / np.where(took > 0, took, 1.0), 0.0, 1.0)
    return np.bincount(
        work["node"], work["steps"] * np.where(took > 0, done, work["begun_s"] <= until), len(nodes.names)
    )


def away_s(nodes: Nodes) -> Floats:
    """Seconds that each node's device was not there, `[nodes]`."""
    out = np.zeros(len(nodes.names))
    for node, spans in absences(nodes).items():
        out[node] = sum(end - begin for begin, end in spans)
    return out


def absences(nodes: Nodes) -> dict[int, list[tuple[float, float]]]:
    """(from, to) of every absence by node, up to the end of the run."""
    out: dict[int, list[tuple[float, float]]] = {}
    gone: dict[int, float] = {}
    for now, node, there in sorted(nodes.came):
        if not there:
            gone.setdefault(node, now)
        elif node in gone:
            out.setdefault(node, []).append((gone.pop(node), now))
    for node, begun in gone.items():
        out.setdefault(node, []).append((begun, nodes.span_s))
    return out


def idle_shares(nodes: Nodes, until_s: float | None = None) -> Floats:
    """1 - busy / elapsed of each node on a device, `[placed]`; time away counts neither way."""
    until = nodes.span_s if until_s is None else until_s
    there = np.maximum(until - (away_s(nodes) if until_s is None else 0.0), 1e-300)
    return np.clip(1.0 - busy_s(nodes, until) / there, 0.0, 1.0)[nodes.placed]


@dataclass(frozen=True)
class Traffic:
    """Bytes by node, each `[nodes]`: sent and received, of models and of control; `lost`: sent and never arrived."""

    model_out: Floats
    model_in: Floats
    control_out: Floats
    control_in: Floats
    lost: Floats


def traffic(nodes: Nodes) -> Traffic:
    """Add up bytes by node and direction; a message that was lost was sent all the same."""
    rows, heavy, count = nodes.messages, nodes.carries_model(), len(nodes.names)
    here = np.isfinite(rows["arrives_s"])

    def by(end: str, which: NDArray[np.bool_]) -> Floats:
        return np.bincount(rows[end][which], rows["bytes"][which], count)

    lost = np.isnan(rows["arrives_s"])
    return Traffic(
        by("src", heavy), by("dst", heavy & here), by("src", ~heavy), by("dst", ~heavy & here), by("src", lost)
    )  # fmt: skip


def failures(nodes: Nodes) -> list[float]:
    """When something went wrong, in order: a model's message was lost, a training cut short, a ring begun again."""
    rows = nodes.messages
    lost = rows["sent_s"][np.isnan(rows["arrives_s"])]
    cut = nodes.work["ended_s"][nodes.work["outcome"] == INTERRUPTED]
    again = [when_of(one) for one in nodes.said if one.get("epoch", 0) and "members" in one and one["epoch"] > 0]
    gone = [now for now, _, there in nodes.came if not there]
    return sorted({*map(float, lost), *map(float, cut), *again, *gone})


def _rows(path: Path, of: np.dtype[Any]) -> NDArray[Any]:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return np.empty(0, of)
    with path.open("rb") as file:
        return np.fromfile(file, of, size // of.itemsize)
