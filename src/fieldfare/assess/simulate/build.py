"""The artefact of kind `simulation`: tables of trials, points and evaluations; the values are of the best point.

Here: which trials are told, and the values. Not here: playing (`play`), tables (`tables`), the forecast made of it.
Invariants: a value is the median over the best point's trials and its range their extremes, never the best trial; the
best point is chosen by medians too, where `tune` says so on other seeds than those that are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.simulate.identity import runs_of, told_of
from fieldfare.assess.simulate.play import Tell, central, choose, play, tuning
from fieldfare.assess.simulate.search import Point, Search, asked, points
from fieldfare.assess.simulate.tables import band, fill
from fieldfare.assess.simulate.trial import Trial
from fieldfare.core.errors import UsageError
from fieldfare.core.metrics import lower_is_better
from fieldfare.core.params import Params
from fieldfare.fleet.fleet import Fleet
from fieldfare.job import Job
from fieldfare.store.models import read_model
from fieldfare.work.adapt import as_net
from fieldfare.work.evaluate import central_evaluation

LEAST_LOSS = 0.005
LEAST_ROWS, LEAST_SHARE = 200, 0.05


def build(
    job: Job, search: Search, out: str | Path, *, fleet: Fleet | None = None, inputs: Sequence[Artefact] = (),
    model: str = "", pet: str = "none", work: str | Path | None = None, tell: Tell | None = None,
    tuned_on: tuple[Job, Fleet | None] | None = None,
) -> Artefact:  # fmt: skip
    """Play the search, write what it told.

    `work`: where trials are kept and gone on with (default: beside `out`, in a folder of its own for every search, job,
    data and devices; one of others that is named is refused).

    `tuned_on`: with `tune`, the job and fleet on which points are compared, such as another split of the rows
    (default: the same, on other seeds).
    """
    place = Path(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    made = told_of(job, search, fleet)
    wanted = {"": made}
    if search.tune and len(points(search)) > 1:
        on, its_fleet = (job, fleet) if tuned_on is None else tuned_on
        wanted["tune"] = told_of(on, tuning(search), its_fleet)
    folder = runs_of(place, wanted) if work is None else Path(work)
    best, tried, told = _played(job, search, folder, fleet, tell, tuned_on)
    mine = [one for one in told if one.point == best]
    params = {"search": asdict(search), "best": best.name, "model": model, "pet": pet,
              "made_of": made["made_of"]}  # fmt: skip
    draft = Draft("simulation", search.seed, params, inputs)
    draft.values |= _values(search, best, mine)
    whole: Params | None = None
    if search.train:
        known, whole = (search.central, None) if search.central is not None else central(job, search, folder, fleet)
        draft.values |= _loss(search, mine, known, how="declared" if whole is None else "simulated")
    if whole is not None and fleet is not None:
        draft.values["worst_group_gap"] = band(
            mine, lambda one: worst_group_gap(job, search, fleet, Path(one.folder), whole), "1",
            note="loss of the worst class of devices over all's, on rows that are trained on",
        )  # fmt: skip
    others: list[Trial] = []
    if search.compare:
        other = replace(search, mode="sync" if search.mode == "async" else "async", compare=False)
        theirs, _, others = _played(job, other, folder / "other", fleet, tell, tuned_on)
        others = [one for one in others if one.point == theirs]
        draft.values |= _beside(search, mine, other, others)
    fill(draft, search, best, tried, told, others)
    return draft.write(place)


def _played(
    job: Job, search: Search, folder: Path, fleet: Fleet | None, tell: Tell | None,
    tuned_on: tuple[Job, Fleet | None] | None,
) -> tuple[Point, list[Trial], list[Trial]]:  # fmt: skip
    """(the best point, the trials by which points were compared, those that are told)."""
    if not search.tune or len(points(search)) == 1:
        best, found = choose(job, search, folder, fleet, tell)
        return best, found, found
    on, its_fleet = (job, fleet) if tuned_on is None else tuned_on
    best, tried = choose(on, tuning(search), folder / "tune", its_fleet, tell, told=False)
    return best, tried, play(job, search, folder, fleet, tell, at=[best])


def _values(search: Search, best: Point, mine: Sequence[Trial]) -> dict[str, Value]:
    def tasks(name: str) -> Value:
        return band(mine, lambda one: one.tasks.get(name, 0), "tasks")

    async_ = search.mode == "async"
    settings = {"mode_async": float(async_), "buffer": float(best.buffer),
                "concurrency": float(asked(search, best)), "trials": float(len(mine))}  # fmt: skip
    out = {name: Value(value, "1", how="declared") for name, value in settings.items()}
    rates = {"lr": best.lr, "decay": best.decay, "server_lr": best.server_lr, "server_decay": best.server_decay}
    out |= {name: Value(value, "1", how="declared") for name, value in rates.items() if value is not None}
    if best.staleness >= 0:
        out["staleness"] = Value(float(best.staleness), "versions", how="declared")
    out |= {
        "versions": band(mine, lambda one: one.versions, "versions"),
        "horizon_s": band(mine, lambda one: one.horizon_s, "s"),
        "version_s": band(mine, lambda one: one.version_s, "s"),
        "tasks_started": band(mine, lambda one: one.started, "tasks"),
        **{f"tasks_{name}": tasks(name) for name in ("ok", "interrupted", "stale", "timeout")},
        "tasks_straggler": tasks("late"),
        "waste_share": band(mine, lambda one: one.waste, "share"),
        "device_s": band(mine, lambda one: one.device_s, "s"),
        "compute_s": band(mine, lambda one: one.compute_s, "s"),
        "bytes_down": band(mine, lambda one: one.bytes_down, "B"),
        "bytes_up": band(mine, lambda one: one.bytes_up, "B"),
        "updates_per_s": band(
            mine, lambda one: one.tasks.get("ok", 0) / one.horizon_s if one.horizon_s else None, "1/s"
        ),
    }
    if search.train:
        for i, name in enumerate(("mean", "p95", "peak")):
            out[f"updates_per_s_{name}"] = band(mine, lambda one, i=i: one.rates[i] if one.rates else None, "1/s")
        out["checkins_per_s_peak"] = band(mine, lambda one: one.begun_peak_per_s, "1/s", note="tasks begun in a minute")
        out["staleness_mean"] = band(mine, lambda one: one.behind, "versions")
        out["metric_final"] = band(mine, lambda one: one.final, "1", note=search.metric)
        if search.target is not None:
            out |= _to_target(search, mine)
    return out


def _to_target(search: Search, mine: Sequence[Trial]) -> dict[str, Value]:
    """Seconds, versions and devices' seconds to the target; no number where one trial did not reach it."""
    note = f"{search.metric} {search.target:g}"
    return {
        "time_to_target_s": band(mine, lambda one: one.target_s, "s", note=note),
        "versions_to_target": band(mine, lambda one: one.at_target(1), "versions", note=note),
        "device_s_to_target": band(mine, lambda one: one.at_target(3), "s", note=note),
    }


def _beside(search: Search, mine: Sequence[Trial], other: Search, theirs: Sequence[Trial]) -> dict[str, Value]:
    """The other mode's numbers, by its name; `speed_up`: seconds to the target of rounds over those of a buffer."""
    out = {
        "horizon_s": band(theirs, lambda one: one.horizon_s, "s"),
        "device_s": band(theirs, lambda one: one.device_s, "s"),
        "waste_share": band(theirs, lambda one: one.waste, "share"),
        "metric_final": band(theirs, lambda one: one.final, "1", note=search.metric),
        **(_to_target(other, theirs) if search.target is not None else {}),
    }
    out = {f"{other.mode}_{name}": one for name, one in out.items()}
    if search.target is not None:
        buffered, rounds = (mine, theirs) if search.mode == "async" else (theirs, mine)
        pairs = [(a.target_s, b.target_s) for a, b in zip(buffered, rounds, strict=True)]
        out["speed_up"] = band(pairs, lambda one: one[1] / one[0] if one[0] and one[1] else None, "1",
                               note="seconds to the target, rounds over buffer, seed by seed")  # fmt: skip
    return out


def _loss(search: Search, mine: Sequence[Trial], known: float, *, how: str) -> dict[str, Value]:
    """The central metric, and what is lost against it: positive is worse, whichever way the metric goes."""
    if known == 0:
        raise UsageError(f"the central {search.metric} is 0: a loss relative to it means nothing; use another metric.")
    sign = -1.0 if lower_is_better(search.metric) else 1.0

    best = "best pass" if how == "simulated" else "metric as it is told"

    def lost(one: Trial) -> float | None:
        return None if one.final is None else sign * (known - one.final) / abs(known)

    return {
        "metric_central": Value(known, "1", how=how, note=search.metric),
        "metric_loss_share": band(mine, lost, "share", note=f"last version, of the central model's {best}"),
    }


def worst_group_gap(job: Job, search: Search, fleet: Fleet, folder: Path, whole: Params) -> float | None:
    """Loss against the central model on the worst class of devices' rows, over that on all rows; None without classes.

    Losses below half a per cent count as half a per cent, so that the ratio of two that are nothing is one; classes
    with few rows (under 200, or 5 %) are left out, as their loss is chance.
    """
    if fleet.kind is None or len(fleet.kinds) < 2:
        return None
    data, sign = job.data, -1.0 if lower_is_better(search.metric) else 1.0
    net = as_net(job.model, loss=job.loss, example={name: rows[:2] for name, rows in data.columns.items()})
    federated = read_model(folder / "model.safetensors", net.layout)

    def loss(clients: Any) -> float:
        rows = np.concatenate([data.rows[data.offsets[i] : data.offsets[i + 1]] for i in clients])
        measure = central_evaluation(net, {name: column[rows] for name, column in data.columns.items()})
        ours, theirs = (measure(model.vector)[search.metric] for model in (federated, whole))
        return sign * (theirs - ours) / abs(theirs) if theirs else 0.0

    groups = [np.flatnonzero(np.asarray(fleet.kind) == kind) for kind in range(len(fleet.kinds))]
    least = max(LEAST_ROWS, LEAST_SHARE * data.sizes.sum())
    groups = [one for one in groups if len(one) and data.sizes[one].sum() >= least]
    if len(groups) < 2:
        return None
    return max(max(loss(one), LEAST_LOSS) for one in groups) / max(loss(np.arange(data.n_clients)), LEAST_LOSS)
