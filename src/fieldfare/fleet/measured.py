"""What was measured of phones, turned into columns: computing speed, links, radio power.

Each function takes the columns of one table and gives arrays; no file is opened here (`traces` does). Invariants:
speeds are FLOP/s of training as works count them (6 FLOPs a multiply-add of the forward pass: 2 forward, 4 backward);
rates are bytes per second; what is assumed and not measured is a named constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.fleet.columns import Array, Columns, Text
from fieldfare.fleet.network import Network, check_rates, of_steps

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

KINDS = ("low", "mid", "high")
"""FLASH's three device classes (Yang et al., WWW 2021): Nexus 6, Redmi Note 7 Pro / 8, Pixel 4 / Galaxy Note10."""

FEMNIST_FLOPS = 6.0 * (28 * 28 * 25 * 32 + 14 * 14 * 25 * 32 * 64 + 7 * 7 * 64 * 2048 + 2048 * 62)
"""FLOPs of one training example of FLASH's CNN for FEMNIST (two 5 x 5 convolutions, a dense layer of 2,048): 1.03e8."""

FEMNIST_BATCH = 10
"""Examples in a batch of FLASH's measured times: our reading of its default configuration; the table does not say."""

PHONE_SCORES = (383.0, 6702.0, 33289.0)
"""AI-Benchmark scores of 2020 of the phones FLASH's list names for its classes: Nexus S, Redmi Note 7 Pro, Pixel 4."""

CHIP_SCORES = (15.0, 27.0, 49.0)
"""Scores of 2025 in floating point on the CPU, where training runs (our reading), of the classes' chips: Snapdragon
805, 675 and 855."""

CLASS_MEMORY = (3.0, 4.0, 6.0)
"""GiB of memory of Nexus 6, Redmi Note 7 Pro and Pixel 4, for phones whose own is not known."""

UPLINK_RATIO = 0.2
"""Uplink over downlink where a trace has none: the median of the 682 4G tests of the speed-test table."""

WIFI_RADIO_W = 1.0
"""Radio power on Wi-Fi: assumed, no measurement is at hand."""


@dataclass(frozen=True, slots=True, eq=False)
class Speeds:
    """Rows to sample devices from, `[k]` each: chance (adds up to 1), FLOP/s, its log-normal spread, class, bytes."""

    share: F64
    flops_per_s: F64
    sigma: F64
    kind: NDArray[np.int8]
    memory_bytes: F64

    def draw(self, key: U64) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32]]:
        """(FLOP/s, class, memory in bytes) of one device for each key, `[n]`."""
        row = pick(self.share, rng.uniforms(key, np.zeros(1, np.int64)))
        sigma = self.sigma[row]
        factor = np.exp(sigma * rng.normals(key, np.ones(1, np.int64)) - 0.5 * sigma**2)
        speed = (self.flops_per_s[row] * factor).astype(np.float32)
        return speed, self.kind[row], self.memory_bytes[row].astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Rows of links that stay as they are, `[k]` each, one as likely as another; `spread`: standard deviations."""

    down: F64
    up: F64
    latency_s: F64
    mmwave: NDArray[np.bool_]
    spread: tuple[F64, F64] | None = None

    def draw(self, key: U64) -> tuple[F64, F64, F64, NDArray[np.bool_]]:
        """(down, up in bytes per second, latency in seconds, whether mmWave) of one device for each key, `[n]`."""
        row = pick_even(len(self.down), rng.uniforms(key, np.zeros(1, np.int64)))
        down, up = self.down[row], self.up[row]
        if self.spread is not None:
            down = _redrawn(key, 1, down, self.spread[0][row])
            up = _redrawn(key, 40, up, self.spread[1][row])
        return down, up, self.latency_s[row], self.mmwave[row]


def class_speeds(times: Columns) -> Speeds:
    """The three classes by their share of FLASH's users, from the measured times of a batch of its FEMNIST CNN.

    A class's FLOP/s are `FEMNIST_BATCH` x `FEMNIST_FLOPS` over its mean seconds; its spread is the measured one.
    """
    model = _text(times, "task_model")
    at = np.flatnonzero(model.mask("cnn_femnist"))
    names = [_text(times, "device_class").names[code] for code in _text(times, "device_class").codes[at]]
    order = [next((i for i, name in zip(at, names, strict=True) if name.startswith(kind)), -1) for kind in KINDS]
    if -1 in order:
        raise UsageError("flash_batch_train_time: rows of cnn_femnist for the classes low, mid and high are needed.")
    ms, std, weight = (numbers(times, name)[order] for name in
                       ("mean_ms_per_batch", "std_ms_per_batch", "population_weight"))  # fmt: skip
    _positive("mean_ms_per_batch", ms)
    _positive("population_weight", weight)
    speed = FEMNIST_BATCH * FEMNIST_FLOPS / (ms / 1e3)
    return Speeds(weight / weight.sum(), speed, std / ms, np.arange(3, dtype=np.int8), np.array(CLASS_MEMORY) * 2.0**30)


def phone_speeds(totals: Columns, classes: Speeds, phones: Columns | None = None) -> Speeds:
    """FLASH's 1,000 phones: by AI score where it is known, else one of the classes by their share (FLASH's own rule).

    `phones`: AI-Benchmark's table of 2020, for the memory of phones it names.
    """
    score = numbers(totals, "ai_score")
    known = np.isfinite(score)
    _positive("ai_score", score[known])
    memory = np.full(len(score), np.nan)
    if phones is not None and isinstance(totals.get("benchmark_name"), Text):
        named, models = _text(totals, "benchmark_name"), _text(phones, "model")
        ram = numbers(phones, "ram_gb")
        of = {models.names[code]: float(gb) for code, gb in zip(models.codes.tolist(), ram, strict=True)}
        memory = np.array([of.get(named.names[code], np.nan) if code >= 0 else np.nan for code in named.codes.tolist()])
    scored = _by_score(score[known], PHONE_SCORES, classes, memory[known])
    whole, lost = len(score), int((~known).sum())
    return Speeds(
        np.concatenate([np.full(whole - lost, 1.0 / whole), classes.share * (lost / whole)]),
        np.concatenate([scored.flops_per_s, classes.flops_per_s]), np.concatenate([scored.sigma, classes.sigma]),
        np.concatenate([scored.kind, classes.kind]), np.concatenate([scored.memory_bytes, classes.memory_bytes]),
    )  # fmt: skip


def benchmark_speeds(table: Columns, classes: Speeds) -> Speeds:
    """Every row of an AI-Benchmark table as likely as another: phones of 2020 (`ai_score`), chips of 2025
    (`cpu_f_score`)."""
    if "model" in table:
        return _by_score(numbers(table, "ai_score"), PHONE_SCORES, classes, numbers(table, "ram_gb"))
    return _by_score(numbers(table, "cpu_f_score"), CHIP_SCORES, classes, None)


def speed_of(score: F64, anchors: tuple[float, ...], speeds: F64) -> F64:
    """FLOP/s of benchmark scores: straight lines through the anchors, both in logarithms; beyond them in proportion.

    (A score is of inference with whatever accelerator there is: 87 times from first to last anchor, where training
    differs 9 times. In proportion throughout, fast phones would come out ten times too fast.)
    """
    inner = np.exp(np.interp(np.log(score), np.log(anchors), np.log(speeds)))
    return inner * np.minimum(score / anchors[0], 1.0) * np.maximum(score / anchors[-1], 1.0)


def _by_score(score: F64, anchors: tuple[float, ...], classes: Speeds, ram_gib: F64 | None) -> Speeds:
    _positive("the benchmark's score", score)
    kind = np.abs(score[:, None] - np.array(anchors)).argmin(1).astype(np.int8)  # FLASH's rule: the nearest score
    memory = np.full(len(score), np.nan) if ram_gib is None else np.maximum(ram_gib, 0.5)  # whole GB: 0 is below 1
    memory = np.where(np.isfinite(memory), memory, np.array(CLASS_MEMORY)[kind]) * 2.0**30
    speed = speed_of(score, anchors, classes.flops_per_s)
    return Speeds(np.full(len(score), 1.0 / len(score)), speed, np.zeros(len(score)), kind, memory)


def speedtest_links(table: Columns, radio_types: tuple[str, ...] = ()) -> Links:
    """Down, up and latency of one speed test together; tests that moved nothing are left out.

    A task's transfer waits for one round trip: `latency_s` is the test's latency.
    """
    radio = _text(table, "radio_type")
    for name in radio_types:
        if name not in radio.names:
            raise UsageError(f"speedtests_5g_4g has no radio type {name!r}; it has {', '.join(radio.names)}.")
    down, up = _rates(table, "down_Bps"), _rates(table, "up_Bps")
    kept = (down > 0) & (up > 0) & (radio.mask(*radio_types) if radio_types else True)
    if not kept.any():
        raise UsageError("speedtests_5g_4g has no test that moved bytes both ways.")
    mmwave = radio.mask(*[name for name in radio.names if "mmwave" in name.lower()])
    return Links(down[kept], up[kept], numbers(table, "latency_ms")[kept] / 1e3, mmwave[kept])


def wifi_links(table: Columns) -> Links:
    """FLASH's 19 Wi-Fi links by mean and standard deviation: a device draws its rates once, and redraws what is below
    1 % of the mean (FLASH draws for every transfer, and redraws what is below 0)."""
    down, up = _rates(table, "down_mean_Bps"), _rates(table, "up_mean_Bps")
    spread = _rates(table, "down_std_Bps", False), _rates(table, "up_std_Bps", False)
    _positive("down_mean_Bps", down)
    _positive("up_mean_Bps", up)
    return Links(down, up, np.zeros(len(down)), np.zeros(len(down), np.bool_), spread)


def replayed(table: Columns, sources: tuple[str, ...], uplink_ratio: float) -> tuple[Network, NDArray[np.bool_]]:
    """(throughput traces of the `sources` named, whether each is mmWave), one device a trace, to sample from.

    Two rows of one second become their mean. The uplink is `uplink_ratio` of the downlink throughout: most traces have
    none, and what others have is the acknowledgements of a download, not the capacity.
    """
    source, trace, tech = _text(table, "source"), _text(table, "trace"), _text(table, "tech")
    for name in sources:
        if name not in source.names:
            raise UsageError(f"throughput_traces has no source {name!r}; it has {', '.join(source.names)}.")
    if not 0.0 < uplink_ratio < np.inf:
        raise UsageError(f"uplink_ratio={uplink_ratio}: use a share of the downlink above 0.")
    kept = source.mask(*sources)
    codes, t, down = trace.codes[kept], numbers(table, "t_s")[kept], _rates(table, "down_Bps")[kept]
    new = np.append(True, codes[1:] != codes[:-1])
    if len(np.unique(codes)) != new.sum():
        raise UsageError("throughput_traces: the rows of a trace must stand together.")
    number = np.cumsum(new) - 1
    first = new | np.append(True, t[1:] != t[:-1])
    where = np.flatnonzero(first)
    down = np.add.reduceat(down, where) / np.diff(np.append(where, len(down)))
    n = int(number[-1]) + 1
    net = of_steps(number[where], t[where], down, uplink_ratio * down, n)
    mmwave = tech.mask(*[name for name in tech.names if "mmwave" in name.lower()])[kept][new]
    return net, mmwave


def radio_watts(table: Columns, bytes_per_s: F64, mmwave: NDArray[np.bool_]) -> F64:
    """Watts of the radio beyond the phone's base while it moves `bytes_per_s`, `[n]`: medians of measurements on 5G.

    Per band (mmWave, low-band), the median power of the rows within each quarter decade of rate; between them by
    interpolation. Low-band stands for 4G, 3G and fixed links too (our choice).
    """
    band = _text(table, "band")
    rate, watts = _rates(table, "down_Bps") + _rates(table, "up_Bps"), numbers(table, "radio_power_mW") / 1e3
    out = np.empty(len(bytes_per_s))
    for name, mine in (("mmWave", mmwave), ("low-band", ~mmwave)):
        rows = band.mask(name) & (rate > 1e3)
        if not rows.any():
            raise UsageError(f"radio_power_5g has no rows of the band {name!r}.")
        bins = np.floor(4.0 * np.log10(rate[rows])).astype(np.int64)
        centres = np.unique(bins)
        medians = [np.median(watts[rows][bins == at]) for at in centres]
        out[mine] = np.interp(np.log10(bytes_per_s[mine]), (centres + 0.5) / 4.0, medians)
    return out


def pick(share: F64, u: F64) -> I64:
    """Rows with chances `share`, one for each uniform."""
    upto = np.cumsum(share)
    return np.minimum(np.searchsorted(upto, u * upto[-1], "right"), len(share) - 1)


def pick_even(k: int, u: F64) -> I64:
    """One of `k` rows for each uniform, all as likely."""
    return np.minimum((u * k).astype(np.int64), k - 1)


def numbers(table: Columns, name: str) -> F64:
    """A column of numbers as float64; one line where it is absent or text."""
    values = table.get(name)
    if values is None or isinstance(values, Text):
        raise UsageError(f"the table has no column {name!r} of numbers; it has {', '.join(table)}.")
    return np.asarray(values, np.float64)


def _text(table: Columns, name: str) -> Text:
    values: Array | Text | None = table.get(name)
    if not isinstance(values, Text):
        raise UsageError(f"the table has no column {name!r} of text; it has {', '.join(table)}.")
    return values


def _rates(table: Columns, name: str, median: bool = True) -> F64:
    values = numbers(table, name)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise UsageError(f"column {name!r} must hold finite bytes per second, not below 0.")
    if median:
        check_rates(name, values)
    return values


def _positive(name: str, values: F64) -> None:
    good = np.isfinite(values) & (values > 0)
    if not good.all():
        raise UsageError(
            f"row {int(np.argmin(good))} has {name} = {values[np.argmin(good)]:.6g}: use a number above zero."
        )


def _redrawn(key: U64, counter: int, mean: F64, std: F64) -> F64:
    """Normal draws, again where below 1 % of the mean, sixteen times; then the mean."""
    out = mean.copy()
    open_ = np.ones(len(mean), np.bool_)
    for again in range(16):
        drawn = mean + std * rng.normals(key, np.full(1, counter + again))
        good = open_ & (drawn >= 0.01 * mean)
        out[good] = drawn[good]
        open_ &= ~good
    return out
