"""Tickets: who owns a session from when on, signed by the edge that gives it away and countersigned by the centre.

Here: the ticket, its keys and MACs. Not here: who asks for one (`leave`) and who decides (`central`). Invariant: an
edge can neither make a ticket for itself nor read another's key; a ticket altered in any field is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["handover", "restart", "failover"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """From ownership `epoch` on, `dst` owns the session of `device` that `src` had in the epoch before.

    `digest`: the session that crosses, hex (empty where none does). `withheld`: the last gradient has not gone down, so
    it comes from `dst`. `expires_s`: absolute seconds; no one attaches
    with it later. `signed`: by `src` under its own key; `countersigned`: by the centre under the key of `dst`, and
    `told`: under the key of the device, which goes nowhere without.
    """

    job: str
    device: str
    src: str
    dst: str
    epoch: int
    round: int
    kind: Kind
    digest: str
    expires_s: float
    withheld: bool = False
    signed: bytes = b""
    countersigned: bytes = b""
    told: bytes = b""


def key_of(secret: bytes, node: str) -> bytes:
    """The key of one node, from the job's secret, which only the centre knows.

    >>> key_of(b"job", "edge/0") == key_of(b"job", "edge/1")
    False
    """
    return hmac.digest(secret, b"fieldfare fedfly ticket " + node.encode(), hashlib.sha256)


def signed(ticket: Ticket, key: bytes) -> Ticket:
    """The ticket with the MAC of `src`."""
    return replace(ticket, signed=_mac(ticket, key, b"source"))


def countersigned(ticket: Ticket, key: bytes) -> Ticket:
    """The ticket with the MAC of the centre under the key of `dst`."""
    return replace(ticket, countersigned=_mac(ticket, key, b"centre"))


def told(ticket: Ticket, key: bytes) -> Ticket:
    """The ticket with the MAC of the centre under the key of the device."""
    return replace(ticket, told=_mac(ticket, key, b"device"))


def is_signed(ticket: Ticket, key: bytes) -> bool:
    """Whether `src`, of that key, has signed exactly this."""
    return hmac.compare_digest(ticket.signed, _mac(ticket, key, b"source"))


def is_countersigned(ticket: Ticket, key: bytes) -> bool:
    """Whether the centre has countersigned exactly this, for the holder of `key`."""
    return hmac.compare_digest(ticket.countersigned, _mac(ticket, key, b"centre"))


def is_told(ticket: Ticket, key: bytes) -> bool:
    """Whether the centre has told exactly this to the device of `key`."""
    return hmac.compare_digest(ticket.told, _mac(ticket, key, b"device"))


def _mac(ticket: Ticket, key: bytes, by: bytes) -> bytes:
    texts = (ticket.job, ticket.device, ticket.src, ticket.dst, ticket.kind, ticket.digest)
    parts = [by, *(text.encode() for text in texts)]
    body = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    body += struct.pack("<qqd?", ticket.epoch, ticket.round, ticket.expires_s, ticket.withheld)
    return hmac.digest(key, body, hashlib.sha256)
