"""Snapshots of a simulation, and going on from them.

Here: what is kept beside the arrays of `store.snapshot`, and how it gets back. Not here: files (store), the clock
(sim). Invariant: a run that was killed at any moment and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time

from fieldfare.core.errors import UsageError
from fieldfare.nodes_log import NodesLog
from fieldfare.record import Recorder
from fieldfare.sim import asks, at_work, hosted, simulator, stream
from fieldfare.sim.observe import Observation, Progressed, Published
from fieldfare.sim.simulator import Progress, Simulator, World
from fieldfare.sim.stream import Stream
from fieldfare.store.codec import Codec, registry
from fieldfare.store.runs import RunFolder
from fieldfare.store.slots import Slots
from fieldfare.store.snapshot import Snapshots

_SIM = (asks, at_work, hosted, stream, simulator)
"""The modules whose frozen dataclasses are part of a simulation's progress."""
_PROGRESS = tuple(Progress.__dataclass_fields__)


class Saver:
    """Snapshots of a simulation at moments between steps, as often as costs at most a twentieth of the time."""

    def __init__(
        self, folder: RunFolder, world: World, simulator: Simulator, recorder: Recorder, slots: Slots,
        log: NodesLog | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.simulator, self.recorder, self.slots, self.log = folder, simulator, recorder, slots, log
        self.codec = Codec(registry(*(algorithm for _, algorithm in world.nodes.values()), *_SIM))
        self.snapshots = Snapshots(folder.path / "snapshots")
        self._next = 0.0
        self._published = False

    def __call__(self, seen: Observation) -> None:
        if isinstance(seen, Published):
            self._published = True
        elif isinstance(seen, Progressed) and self._published and time.monotonic() >= self._next:
            self._published = False
            began = time.monotonic()
            self.save()
            now = time.monotonic()
            self._next = now + 20.0 * (now - began)

    def save(self) -> None:
        """Write everything that resumption needs; what was written before stays until this is whole."""
        p, r = self.simulator.progress, self.recorder
        recorder = {
            "rows": len(r.rows), "last": r.rows[-1:], "open": [(row, sorted(w)) for row, w in r.open],
            "training": r.training, "evaluations": r.evaluations, "clients_done": r.clients_done, "wall_s": r.wall_s,
            "model": r.model, "totals": r.totals, "version": r.version, "learnt": r.learnt,
            "bytes_between": r.bytes_between,
        }  # fmt: skip
        progress = {name: getattr(p, name) for name in _PROGRESS if name not in ("streams", "selected")}
        progress |= {"streams": {n: (s.node, s.work, s.saved()) for n, s in p.streams.items()}}
        progress |= {"selected": p.selected.saved()}
        tree, arrays = self.codec.encode(
            {
                "progress": progress, "computed": self.simulator.computed(), "recorder": recorder,
                "slots": self.slots.flush(), "nodes": None if self.log is None else self.log.saved(),
                "files": self.folder.flush(),
            }
        )  # fmt: skip
        self.snapshots.write(tree, arrays)

    def load(self) -> bool:
        """Put simulator, recorder, slots and files back where the newest whole snapshot has them."""
        snapshot = self.snapshots.read()
        if snapshot is None:
            self.folder.truncate({})
            return False
        saved = self.codec.decode(snapshot.tree, snapshot.arrays)
        progress, world = self.simulator.progress, self.simulator.world
        for name, value in saved["progress"].items():
            if name == "selected":
                progress.selected.load(value)
            elif name == "streams":
                for which, (node, work, state) in value.items():
                    stream = progress.streams[which] = Stream(node, work, world.population, world.seed)
                    stream.load(state, world.works)
            else:
                setattr(progress, name, value)
        self.simulator.restore_computed(saved.get("computed", {}))
        r, back = self.recorder, saved["recorder"]
        if back["model"] is not None and back["model"].layout != self.simulator.world.model.layout:
            raise UsageError(
                f"the run {self.folder.id} was made with a model of other tensors than its job file makes now: "
                "put that file, and what it imports, back as it was, or start a new run."
            )
        r.open = [(row, set(waiting)) for row, waiting in back["open"]]
        r.training, r.evaluations, r.clients_done = back["training"], back["evaluations"], back["clients_done"]
        r.before_s, r.model, r.totals = back["wall_s"], back["model"], back["totals"]
        r.version, r.learnt, r.bytes_between = back["version"], back["learnt"], back["bytes_between"]
        if self.log is not None:
            self.log.load(saved["nodes"])
        self.folder.truncate(saved["files"])
        r.rows = [
            {k: math.nan if v is None else v for k, v in row.items()} for row in self.folder.read_lines("rounds.jsonl")
        ]
        if r.rows:
            r.rows[-1:] = back["last"]
        self.slots.restore(saved["slots"])
        return True
