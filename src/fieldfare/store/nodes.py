"""`messages.bin` and `work.bin`: what the nodes of a run sent each other, and when they trained, one record each.

Here: the records. Not here: who writes them. Little endian, packed. Nodes and kinds of messages are numbers, their
names are in `nodes.json`. Invariant: a file holds whole records only.

Of messages: `sent_s`, `arrives_s` float64 (virtual seconds; nan where it was lost, inf where it still waited for a link
when the run ended), `src`, `dst` int32, `kind` int16, `bytes` float64, `cycle` (or round), `epoch`, and of a chunk its
`hop`, int32 (-1 where the message names none). Of work: `node` int32, `begun_s`, `ended_s` float64, `steps` int32
(those asked for), `outcome` int8 as in `tasks.bin`, `cycle` int32 (the round it was for, -1 without).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

NODES = "nodes.json"
MESSAGES = "messages.bin"
WORK = "work.bin"
SAID = "said.jsonl"
MESSAGE = np.dtype(
    [
        ("sent_s", "<f8"), ("arrives_s", "<f8"), ("src", "<i4"), ("dst", "<i4"), ("kind", "<i2"), ("bytes", "<f8"),
        ("cycle", "<i4"), ("epoch", "<i4"), ("hop", "<i4"),
    ]
)  # fmt: skip
"""46 bytes."""
WORKED = np.dtype(
    [("node", "<i4"), ("begun_s", "<f8"), ("ended_s", "<f8"), ("steps", "<i4"), ("outcome", "i1"), ("cycle", "<i4")]
)
"""29 bytes."""


def _packed(record: np.dtype[Any]) -> struct.Struct:
    """The record as `struct` packs it: of one at a time ten times as fast."""
    return struct.Struct("<" + "".join(record[name].char for name in record.names or ()))


_MESSAGE, _WORKED = _packed(MESSAGE), _packed(WORKED)


def message(
    sent_s: float, arrives_s: float, src: int, dst: int, kind: int, size: float, cycle: int, epoch: int, hop: int
) -> bytes:
    """One record of `messages.bin`."""
    return _MESSAGE.pack(sent_s, arrives_s, src, dst, kind, size, cycle, epoch, hop)


def worked(node: int, begun_s: float, ended_s: float, steps: int, outcome: int, cycle: int) -> bytes:
    """One record of `work.bin`."""
    return _WORKED.pack(node, begun_s, ended_s, steps, outcome, cycle)
