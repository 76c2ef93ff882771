"""FLINT's tables 1, 3 and 5 and figures 7 and 8 (Wang et al., MLSys 2023), the paper's numbers beside ours.

Nothing is trained. The paper does not tell all of its set-up; what is assumed: a task takes 30 s in the mean,
log-normal with sigma 1.85 (the skew of its data set A), 105 devices are there at a time, each for 15 minutes.
`fieldfare run examples/flint_paper.py` plays the sweep of the figures (100 points) and makes its report;
`python examples/flint_paper.py` prints all tables, from the sweep's points that the figures show (`--quick`: shorter).
Table 1 needs the extra `assess`. What the numbers mean: docs/flint.md.
"""

import sys
import tempfile
from dataclasses import replace
from itertools import product

import numpy as np

import fieldfare as ff
from fieldfare.assess.bench.paper import DEVICES, RECORDS, TABLE_5
from fieldfare.assess.proxy.presets import preset, sizes
from fieldfare.assess.simulate.devices import flops_per_record
from fieldfare.assess.trace import STRICT, Recipe, TraceConfig, build_trace
from fieldfare.fleet.availability import Availability
from fieldfare.fleet.fleet import Fleet

THERE, SESSION_S, HOURS, MEAN_S, TAIL = 105, 900.0, 3.0, 30.0, 1.85
LINK_BYTES_PER_S = 4.3e6
COHORTS, BUFFERS, LIMITS = (60, 120, 180, 240), (20, 40, 50, 80, 120), (1, 10, 20, 30, 40)
FIGURE_8 = {  # thousands of tasks that succeeded, were interrupted, were stale
    **{(c, 50, 10): told for c, told in zip(COHORTS, ((21.1, 0.4, 0.4), (38.3, 3.1, 1.5), (40.7, 3.5, 1.7),
       (41.3, 3.55, 1.95)), strict=True)},
    **{(120, 50, s): told for s, told in zip(LIMITS, ((31.6, 3.1, 8.2), (38.0, 3.1, 1.5), (39.2, 3.1, 0.7),
       (39.2, 3.1, 0.4), (40.3, 3.1, 0.2)), strict=True)},
}  # fmt: skip
FIGURE_7 = {20: 11.0, 40: 13.0, 80: 27.5, 120: 37.0}
TABLE_3 = {  # records of (our reading), model of table 5, epochs; speed-up, tasks, device-seconds a task in the paper
    "A": ("B", "A", 3, 1.2, 48_800, 0.55), "B": ("B", "E", 2, 6.0, 32_300, 18.2), "C": ("A", "B", 3, 2.0, 610_000, 3.67)
}  # fmt: skip
TABLE_1 = {"wifi": 0.70, "battery": 0.34, "os_released": 0.93, "all": 0.22}


def records(counts, name):
    """Clients with so many records each; all share one row, as nothing is trained."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    row = {"x": np.zeros((1, 1), np.float32), "y": np.zeros(1, np.int64)}
    return ff.Federated(row, offsets=offsets, rows=np.zeros(offsets[-1], np.int64), classes=2, name=name)


def job_of(data, algorithm, epochs=1, **fleet):
    """A job that only takes time: `seconds` per record on each device."""
    training = ff.Training(lr=0.1, batch_size=20, epochs=epochs)
    job = ff.Job(model=ff.mlp(1, 2), data=data, algorithm=algorithm, training=training)
    seconds, share = fleet.pop("seconds"), fleet.pop("share", 1e-9)
    rate = share * LINK_BYTES_PER_S
    made = Fleet(flops_per_s=flops_per_record(job) / seconds, downlink_bytes_per_s=rate, uplink_bytes_per_s=rate,
                 overhead_s=0.0, slow_links=True, **fleet)  # fmt: skip
    return replace(job, simulated=ff.Simulated(fleet=made, train=False, workers=1))


def sessions(span_s):
    """Devices that come once, at random, for 15 minutes; a session over the end begins the span again."""
    begin = np.floor(np.random.default_rng(1).random(round(THERE * span_s / SESSION_S)) * span_s)
    rest = [(b, b + SESSION_S - span_s) for b in begin]
    return Availability.of(
        [[(b, min(b + SESSION_S, span_s))] if over <= 0 else [(0.0, over), (b, span_s)] for b, over in rest], span_s
    )


def sweep_of(hours=HOURS, cohorts=COHORTS, buffers=BUFFERS, limits=LIMITS):
    """FedBuff over concurrency, buffer and the limit of staleness, with devices that come and go."""
    there = sessions(3600 * hours)
    data = records(np.ones(there.size, np.int64), "one record each")
    algorithm = ff.FedBuff(10**6, 120, 50, ff.Staleness(limit=10))
    job = job_of(data, algorithm, seconds=MEAN_S, share=1e20, noise=TAIL, availability=there)
    over = {"algorithm.cohort": cohorts, "algorithm.buffer": buffers, "algorithm.stale.limit": limits}
    return ff.Sweep(job, over, system_only=True, hours=hours, name="flint-paper")


def figures(hours):
    """Rows of the sweep by (concurrency, buffer, limit), of the points that the figures show."""
    found = {}
    for axes in ((COHORTS, (50,), (10,)), ((120,), (50,), LIMITS), ((180,), tuple(FIGURE_7), (10,))):
        found |= dict(zip(product(*axes), sweep_of(hours, *axes).run(None, progress=False).rows, strict=True))
    return found


def speed_ups(epochs, counts, model, versions):
    """Seconds of over-selected rounds and of rounds that wait for all, over FedBuff's; device-seconds a task."""
    row, draw = TABLE_5[model], np.random.default_rng(1)
    seconds = np.exp(row.mu + row.sigma * draw.standard_normal(len(counts))).astype(np.float32)
    share = 4 * ff.mlp(1, 2).layout.size / (row.network_bytes / 2)
    told = [
        job_of(records(counts, model), algorithm, epochs, seconds=seconds, share=share)
        .run(None, progress=False)
        .summary
        for algorithm in (ff.FedBuff(versions, 65, 50), ff.SemiSync(versions, 50, over=1.3), ff.FedAvg(versions, 65))
    ]
    buffered, over, every = (one["virtual_s"] for one in told)
    return over / buffered, every / buffered, epochs * (counts * seconds).mean()


def tables(quick=False):
    """The page, as lines of Markdown."""
    hours = HOURS / 3 if quick else HOURS
    with tempfile.TemporaryDirectory() as folder:
        made = build_trace(Recipe(clients=800 if quick else 4000), folder, TraceConfig(criteria=STRICT))
        kept = dict(zip(TABLE_1, made.table("criteria")["share_devices"].tolist(), strict=False))
    yield from ("| Table 1: devices that are | paper | ours |", "|---|---|---|")
    yield from (f"| {name} | {told:.0%} | {kept[name]:.1%} |" for name, told in TABLE_1.items())
    yield from ("", "| Table 3: task | speed-up of FedBuff, paper | over 1.3 x selection | over waiting for all | "
                "device s a task, paper | ours |", "|---|---|---|---|---|---|")  # fmt: skip
    for task, (data, model, epochs, speed_up, _, task_s) in TABLE_3.items():
        over, every, mine = speed_ups(epochs, sizes(preset(data), 4000), model, 60 if quick else 400)
        yield f"| {task} | {speed_up:g} x | {over:.2f} x | {every:.1f} x | {task_s:g} | {mine:.2f} |"
    yield from ("", f"| Table 5: model | mean, s | of {DEVICES} devices drawn | deviation, s | of {DEVICES} drawn | "
                "network, MB | 2 x 4 B x parameters |", "|---|---|---|---|---|---|---|")  # fmt: skip
    for name, row in TABLE_5.items():
        drawn = RECORDS * np.exp(row.mu + row.sigma * np.random.default_rng(0).standard_normal((2000, DEVICES)))
        mean, std = ("{:.3g} to {:.3g}".format(*np.quantile(one, (0.05, 0.95)))
                     for one in (drawn.mean(1), drawn.std(1, ddof=1)))  # fmt: skip
        yield (f"| {name}, {row.title} | {row.mean_s:g} | {mean} | {row.std_s:g} | {std} | "
               f"{row.network_bytes / 1e6:g} | {8e-6 * row.params:.2f} |")  # fmt: skip
    rows = figures(hours)
    yield from ("", "| Figure 8: concurrency, limit | thousands of tasks, paper | ours | interrupted, paper | ours | "
                "stale, paper | ours |", "|---|---|---|---|---|---|---|")  # fmt: skip
    for (c, _, s), told in FIGURE_8.items():
        row, whole = rows[c, 50, s], sum(told)
        shares = [row["shares"].get(name, 0.0) for name in ("interrupted", "stale")]
        yield (f"| {c}, {s} | {whole:.1f} | {row['tasks_per_h'] * HOURS / 1e3:.1f} | {told[1] / whole:.1%} | "
               f"{shares[0]:.1%} | {told[2] / whole:.1%} | {shares[1]:.1%} |")  # fmt: skip
    yield from ("", "| Figure 7: buffer | seconds a version, paper | ours |", "|---|---|---|")
    yield from (f"| {k} | {told:g} | {rows[180, k, 10]['version_s']['median']:.1f} |" for k, told in FIGURE_7.items())


sweep = sweep_of()

if __name__ == "__main__":
    for line in tables("--quick" in sys.argv):
        print(line)
