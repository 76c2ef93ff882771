"""A trace as the availability of a fleet, and its long form for others.

Here: `availability_of`, `fleet_of`, and exports as FedScale's pickle and as CSV. Not here: reading others' files
(`importers`). Invariant: device i is the i-th smallest client id of the trace's sessions; time 0 is the Monday 0 h at
or before the trace's first second, and it repeats by its whole weeks (else days).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.assess.artefact import Artefact
from fieldfare.core.errors import UsageError
from fieldfare.fleet.availability import Availability, of_columns
from fieldfare.fleet.columns import Text
from fieldfare.fleet.fleet import Fleet
from fieldfare.fleet.pickles import behaviour_table, write_fedscale

_SESSIONS = ("client", "start_s", "end_s", "usable_s", "device_class", "os", "bw_class")


def availability_of(trace: Artefact) -> Availability:
    """When the trace's clients are available: tiled by its period, of which sessions over the end begin it again.

    The gaps that were only taken off a session's usable time are within it.
    """
    table = _sessions(trace)
    devices, device = np.unique(table["client"], return_inverse=True)
    period, origin = float(trace.params["period_s"]), float(trace.params["origin_s"])
    start, end = np.asarray(table["start_s"]) - origin, np.asarray(table["end_s"]) - origin
    late = start >= period
    start, end = start - late * period, end - late * period
    over = end > period
    device = np.concatenate([device, device[over]])
    start, end = (
        np.concatenate([start, np.zeros(over.sum())]),
        np.concatenate([np.minimum(end, period), end[over] - period]),
    )
    order = np.lexsort((start, device))
    return of_columns(device[order], start[order], end[order], len(devices), period)


def fleet_of(trace: Artefact, **columns: Any) -> Fleet:
    """A fleet of the trace's clients: its availability and device classes; `columns` are those of `Fleet`."""
    table = _sessions(trace)
    classes = table["device_class"]
    assert isinstance(classes, Text)
    clients, first = np.unique(np.asarray(table["client"]), return_index=True)
    kind = {} if (classes.codes[first] < 0).any() else {"kind": classes.codes[first], "kinds": classes.names}
    note = f"{len(clients):,} clients of the trace {trace.path.name} ({trace.sha256[:12]})"
    return Fleet(**{"availability": availability_of(trace), "name": trace.path.name, "note": note, **kind, **columns})


def p_usable(trace: Artefact, seconds: float) -> float | None:
    """Share of the trace's sessions whose usable time is at least `seconds`; None where it has no session.

    For task times known beforehand give `TraceConfig(durations_s=...)`, which makes values of them.
    """
    usable = np.asarray(trace.table("sessions", 64e9)["usable_s"])
    return float((usable >= seconds).mean()) if len(usable) else None


def export_fedscale(trace: Artefact, place: str | Path) -> Path:
    """FedScale's `client_behave_trace` of the trace, with its own client ids (Lai et al., ICML 2022)."""
    table = _sessions(trace)
    classes = table["device_class"]
    assert isinstance(classes, Text)
    clients, first = np.unique(np.asarray(table["client"]), return_index=True)
    models = [classes.names[code] if code >= 0 else "" for code in classes.codes[first].tolist()]
    made = behaviour_table(availability_of(trace), models)
    return write_fedscale(place, {client: made[i] for i, client in enumerate(clients.tolist())})


def export_csv(trace: Artefact, place: str | Path) -> Path:
    """The sessions as CSV `ID,start,end` in seconds, as Venn's traces are written."""
    table = _sessions(trace)
    out = Path(place)
    rows = zip(*(np.asarray(table[name]).tolist() for name in ("client", "start_s", "end_s")), strict=True)
    with out.open("w", encoding="utf-8", newline="") as file:
        file.write("ID,start,end\n")
        file.writelines(f"{client},{start:.15g},{end:.15g}\n" for client, start, end in rows)
    return out


def _sessions(trace: Artefact) -> dict[str, Any]:
    if trace.kind != "trace":
        raise UsageError(f"{trace.path} is a {trace.kind} artefact: give one of kind trace.")
    table = trace.table("sessions", 64e9)
    if not len(table["client"]):
        raise UsageError(f"{trace.path} holds no session: no device meets its criteria; relax one.")
    return table
