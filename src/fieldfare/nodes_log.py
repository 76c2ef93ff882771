"""What the nodes of a run did, from the driver's observations to four files of the run folder.

`nodes.json` (who there is, and kinds of messages), `messages.bin`, `work.bin` (see `store.nodes`), and `said.jsonl`:
what a message puts on record (`record()` of its body) once for all its receivers, and when devices came and went.
Not here: rounds and metrics (`record`). Invariant: a run that was killed and resumed leaves the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        self.nodes = [
            {"node": name, "role": role, "device": world.placement.get(name)} for name, (role, _) in world.nodes.items()
        ]
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
        kind = self.kinds.setdefault(seen.kind, len(self.kinds))
        if self.folder is None:
            return
        body = seen.body
        cycle = _whole(getattr(body, "cycle", getattr(body, "round", -1)))
        epoch = _whole(getattr(body, "epoch", -1))
        if self.messages <= MOST_MESSAGES:
            hop = _whole(getattr(body, "hop", -1)) if hasattr(body, "chunk") else -1
            src, dst = self._number[seen.src], self._number[seen.dst]
            record = message(seen.now, seen.arrives, src, dst, kind, seen.size, cycle, epoch, hop)
            self.folder.add_records(MESSAGES, record)
        if hasattr(body, "record"):
            key = (seen.kind, cycle, epoch)
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
            self.folder.write_json(NODES, {"nodes": self.nodes, "kinds": list(self.kinds)})

    def saved(self) -> dict[str, Any]:
        """What a snapshot keeps; `nodes.json` is written too, so that a folder that is read meanwhile is whole."""
        self.write()
        return {
            "kinds": list(self.kinds), "messages": self.messages, "lost": self.lost, "bytes": self.bytes_between,
            "written": list(self._written),
        }  # fmt: skip

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take back what `saved` gave."""
        self.kinds = {kind: at for at, kind in enumerate(saved["kinds"])}
        self.messages, self.lost, self.bytes_between = saved["messages"], saved["lost"], saved["bytes"]
        self._written = dict.fromkeys(saved["written"])


def _whole(value: Any) -> int:
    """A whole number that fits the record; -1 for anything else."""
    return int(value) if isinstance(value, int) and 0 <= value < 1 << 31 else -1
