"""What the nodes of a run did, from the driver's observations to four files of the run folder.

`nodes.json` (who there is, the watts it computes at, joules of its radio, kinds of messages), `messages.bin`,
`work.bin` (see `store.nodes`), and `said.jsonl`: what a message puts on record (`record()` of its body) once for all
its receivers, and when devices came and went. In `nodes.json` also who is at which edge when, where devices move.
Not here: rounds and metrics (`record`). Invariant: a run that was killed and resumed leaves the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fieldfare.fleet.fleet import take
from fieldfare.sim.observe import Came, Observation, Sent, Worked
from fieldfare.sim.simulator import World
from fieldfare.store.nodes import MESSAGES, NODES, SAID, WORK, message, worked
from fieldfare.store.runs import RunFolder

MOST_MESSAGES = 20_000_000
"""Messages kept one by one in `messages.bin` (0.9 GB); those after are only counted."""
_REMEMBERED = 512
"""Records of which it is known that they are written: a message said again long after is written again."""


class NodesLog:
    """Writes what nodes send, train and say; `saved` and `load` are its part of a snapshot.

    `bytes_between`, `messages`, `lost`: of all messages told so far.
    """

    def __init__(self, folder: RunFolder | None, world: World) -> None:
        self.folder = folder
        self.nodes = [{"node": name, "role": role, **_device(world, name)} for name, (role, _) in world.nodes.items()]
        self.mobility = world.mobility
        self.radio_j = [0.0] * len(self.nodes)
        self._number = {name: at for at, name in enumerate(world.nodes)}
        self.kinds: dict[str, int] = {}
        self.messages = 0
        self.lost = 0
        self.bytes_between = 0.0
        self._written: dict[tuple[str | int, ...], None] = {}
        self.write()

    def __call__(self, seen: Observation) -> None:
        match seen:
            case Sent():
                self._sent(seen)
            case Worked(node, begun, ended, steps, outcome, run):
                cycle = -1 if run is None else run.config.get("round", -1)
                if self.folder is not None:
                    record = worked(self._number[node], begun, ended, steps, outcome, _whole(cycle))
                    self.folder.add_records(WORK, record)
            case Came(now, node, there):
                self._say({"virtual_s": now, "node": node, "there": there})
            case _:
                pass

    def _sent(self, seen: Sent) -> None:
        self.messages += 1
        self.lost += seen.arrives != seen.arrives
        self.bytes_between += seen.size
        src, dst = self._number[seen.src], self._number[seen.dst]
        for node, joules in ((src, seen.radio_j[0]), (dst, seen.radio_j[1])):
            self.radio_j[node] += joules
        kind = self.kinds.setdefault(seen.kind, len(self.kinds))
        if self.folder is None:
            return
        body = seen.body
        _, cycle, epoch, *_ = _about(body)
        if self.messages <= MOST_MESSAGES:
            hop = _whole(getattr(body, "hop", -1)) if hasattr(body, "chunk") else _whole(getattr(body, "batch", -1))
            record = message(seen.now, seen.arrives, src, dst, kind, seen.size, cycle, epoch, hop)
            self.folder.add_records(MESSAGES, record)
        body = getattr(body, "inner", body)
        if hasattr(body, "record"):
            key = _about(body)
            if key not in self._written:
                self._written[key] = None
                while len(self._written) > _REMEMBERED:
                    del self._written[next(iter(self._written))]
                self._say({"virtual_s": seen.now, **body.record()})

    def _say(self, line: Mapping[str, Any]) -> None:
        if self.folder is not None:
            self.folder.append(SAID, line)

    def write(self) -> None:
        """Write `nodes.json` as things are now."""
        if self.folder is not None:
            nodes = [{**one, "radio_j": joules} for one, joules in zip(self.nodes, self.radio_j, strict=True)]
            moves = {} if self.mobility is None else {"mobility": self.mobility}
            self.folder.write_json(NODES, {"nodes": nodes, "kinds": list(self.kinds), **moves})

    def saved(self) -> dict[str, Any]:
        """What a snapshot keeps; `nodes.json` is written too, so that a folder that is read meanwhile is whole."""
        self.write()
        return {
            "kinds": list(self.kinds), "messages": self.messages, "lost": self.lost, "bytes": self.bytes_between,
            "written": list(self._written), "radio_j": list(self.radio_j),
        }  # fmt: skip

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take back what `saved` gave."""
        self.kinds = {kind: at for at, kind in enumerate(saved["kinds"])}
        self.messages, self.lost, self.bytes_between = saved["messages"], saved["lost"], saved["bytes"]
        self._written = dict.fromkeys(saved["written"])
        self.radio_j = list(saved.get("radio_j", self.radio_j))


def _device(world: World, node: str) -> dict[str, Any]:
    """The device of a node, and the watts it draws while it computes."""
    device = world.placement.get(node)
    if device is None:
        return {"device": None}
    return {"device": device, "compute_w": float(take(world.population.fleet.compute_w, np.array(device)))}


def _about(body: Any) -> tuple[str, int, int, str, int]:
    """What a message is about: its kind, cycle or round, epoch, device, and attempt, where it names them."""
    cycle = _whole(getattr(body, "cycle", getattr(body, "round", -1)))
    device, epoch = str(getattr(body, "device", "")), _whole(getattr(body, "epoch", -1))
    return type(body).__name__, cycle, epoch, device, _whole(getattr(body, "attempt", -1))


def _whole(value: Any) -> int:
    """A whole number that fits the record; -1 for anything else."""
    return int(value) if isinstance(value, int) and 0 <= value < 1 << 31 else -1
