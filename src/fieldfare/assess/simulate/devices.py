"""The devices of a simulation: availability of a trace, speeds of a bench, links of the job's own fleet.

Invariants: a client's device is a function of (seed, client); what the job's fleet says stays where no artefact says
otherwise; a trace of fewer devices than clients is used again at other hours of the week.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fieldfare.assembly import assemble
from fieldfare.assess.artefact import Artefact
from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job

DAY_S = 86_400.0


def fleet_for(job: Job, *, trace: Artefact | None, bench: Artefact | None, model: str, seed: int) -> Fleet | None:
    """The fleet of a job's clients; None where no artefact is given, so that the job's own is used."""
    if trace is None and bench is None:
        return None
    n = job.data.n_clients
    own = job.simulated.fleet
    fleet = own if isinstance(own, Fleet) else own.build(n, seed)  # type: ignore[union-attr]
    if trace is not None:
        fleet = _with_trace(fleet, trace, n, seed)
    return fleet if bench is None else _with_speeds(fleet, job, bench, model, n, seed)


def _with_trace(fleet: Fleet, trace: Artefact, n: int, seed: int) -> Fleet:
    """Clients on the trace's devices, drawn with no more repeats than needed; repeats are shifted by whole days."""
    from fieldfare.assess.trace import fleet_of

    found = fleet_of(trace)
    assert found.availability is not None
    have = found.availability.size
    order = np.argsort(rng.uniforms(rng.keys(seed, ("assess", "devices"), np.arange(have)), np.zeros(have, np.int64)))
    row = np.resize(order, n).astype(np.int32)
    times = np.arange(n) // have
    days = max(1, round(found.availability.period_s / DAY_S)) if np.isfinite(found.availability.period_s) else 1
    shift = ((times % days) * DAY_S).astype(np.float32)
    availability = replace(found.availability, row=row, shift_s=shift if times.any() else None)
    kind = {} if found.kind is None or len(found.kinds) < 2 else {"kind": found.kind[row], "kinds": found.kinds}
    return replace(fleet, availability=availability, name=f"{fleet.name} on {trace.path.name}", note=found.note, **kind)


def _with_speeds(fleet: Fleet, job: Job, bench: Artefact, model: str, n: int, seed: int) -> Fleet:
    """FLOP/s at which a task takes what the bench measured: log-normal over devices, the same for a device always."""
    mu, sigma = bench.number(f"{model}.lognormal_mu"), bench.number(f"{model}.lognormal_sigma")
    if mu is None or sigma is None:
        raise UsageError(
            f"{bench.path} has no fit of {model!r}'s seconds per record: measure it, or leave --bench out."
        )
    each = np.exp(mu + sigma * rng.normals(rng.keys(seed, ("assess", "speeds"), np.arange(n)), np.zeros(n, np.int64)))
    return replace(fleet, flops_per_s=(flops_per_record(job) / each).astype(np.float32))


def flops_per_record(job: Job) -> float:
    """FLOPs of one record in one pass, as the job's work counts them."""
    assembly = assemble(replace(job, training=replace(job.training, steps=None, epochs=1)))
    work: Any = assembly.works["train"]
    cost = work.cost(np.array([1000], np.int64), assembly.net.layout, {})
    return float(np.asarray(cost.flops, np.float64).reshape(-1)[0]) / 1000
