"""The fastest way to train a net on this machine, measured for a moment at its first use and remembered.

Here: the measurement and the file it is kept in. Not here: who asks (`assembly`), what a choice means (`choose`).
Invariant: whichever way is taken, the numbers of a run are the same within rounding; a file that cannot be read or
written only costs the moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare import __version__
from fieldfare.core.errors import UsageError
from fieldfare.work.native import threads
from fieldfare.work.native.choose import Choice, asked, known, plain, settle, settled, taking, unsettle, way_of
from fieldfare.work.native.modules import kind
from fieldfare.work.net import Drift, Training, naming
from fieldfare.work.plan import make_plan

I64 = NDArray[np.int64]

_MOMENT_S = 0.03
_STEPS = 4
_CLIENTS = 2
_LONG_S, _VERY_LONG_S = 0.1, 0.5
"""A step that takes so long is measured alone; one that takes very long, once."""
_MARGIN = 1.05
"""How much faster another way must be than the first."""
_FIRST_STACK, _LARGEST_STACK, _WIDER = 4, 256, 4
_WORTH_STACKING_S = 0.02
"""A client's steps that take longer than this one by one are too large to gain by stacks on a processor."""
_REACH = 6.0
"""A stack that is more than so many times slower than the best is not tried wider, nor one that does not gain."""


def settle_fastest(net: Any, training: Training, data: Any, cohort: int | None = None) -> None:
    """Measure the ways `net` can be trained on a few clients of `data`, unless one was asked for or is known.

    `cohort`: how many clients train together; stacks are no larger than what each core has of them (None: of all, 0: no
    stacks). On a CUDA device nothing is measured: stacks on it are the way. Cost: about a tenth of a second a way, of
    large models two steps of two clients; once a net, batch, optimiser and machine.
    """
    ways: tuple[str, ...] = getattr(net, "ways", ())
    if len(ways) < 2 or asked(net.path) != "auto":
        return
    if getattr(net, "on_device", False):
        unsettle(net.key)
        return
    if training.precision != "float32":  # nothing else computes in it
        settle(net.key, Choice("native", of=training.precision))
        return
    sizes = np.asarray(data.sizes)
    some = np.flatnonzero(sizes > 0)
    if not len(some):
        return
    most = min(len(some) if cohort is None else cohort, len(some)) // threads.allowed()
    stack = max((one for one in _stacks() if one <= most), default=0)
    ways = tuple(way for way in ways if way != "lockstep" or stack)
    told = f"{net.key}, batches of {training.batch_size}, {training.optimizer}"
    told += f", stacks of {stack} at most" if "lockstep" in ways else ""
    if (before := settled(net.key)) is not None and before.of == told:
        return
    choice = _known.get(told) or _read_choice(told, ways)
    if choice is None and _measuring:
        ordered = some[np.argsort(sizes[some], kind="stable")]
        rates = rates_of(net, net.key, ways, training, data, ordered, stack)
        best = max(rates, key=lambda way: rates[way])
        choice = Choice(best if rates[best] > _MARGIN * rates[ways[0]] else ways[0], rates, told)
        _keep(told, {"path": choice.path, "rates": rates})
    if choice is None:
        unsettle(net.key)
        return
    _known[told] = choice
    settle(net.key, choice)


_known: dict[str, Choice] = {}
_measuring = True


def measure_no_more() -> None:
    """From now on this process measures nothing: others like it run beside it, and would tell each other apart."""
    global _measuring
    _measuring = False


def rates_of(
    net: Any, key: str, ways: tuple[str, ...], training: Training, data: Any, ordered: I64, stack: int = 0
) -> dict[str, float]:  # fmt: skip
    """Clients per second on one thread, of a few steps each, by way; stacks in lockstep of up to `stack` clients.

    `ordered`: clients by size; those in the middle are trained.
    """
    rates: dict[str, float] = {}
    back = threads.limit(1)
    try:
        for way in ways:
            if way != "lockstep":
                rates[way] = _rate(net, key, way, training, data, _middle(ordered, _CLIENTS))
        if "lockstep" in ways and 1 / rates[plain(ways)] < _WORTH_STACKING_S:
            rates |= _rates_stacked(net, key, training, data, ordered, stack, max(rates.values()))
    finally:
        back()
    return rates


def _rates_stacked(
    net: Any, key: str, training: Training, data: Any, ordered: I64, stack: int, best: float
) -> dict[str, float]:  # fmt: skip
    """Of wider and wider stacks, while they gain and come near the `best` of the other ways."""
    rates: dict[str, float] = {}
    few = _middle(ordered, _CLIENTS)  # what is imported at first use is not measured
    with contextlib.suppress(UsageError):
        _fit(net, key, f"lockstep-{_FIRST_STACK}", replace(training, steps=1), data, few)()
    for size in _stacks(min(stack, len(ordered))):
        try:
            rate = _rate(net, key, f"lockstep-{size}", training, data, _middle(ordered, size))
        except UsageError:  # there is no memory for so many
            break
        if "lockstep" not in net.ways:  # it was found that it cannot be stacked
            return {}
        gains = rate > _MARGIN * max(rates.values(), default=0.0)
        rates[f"lockstep-{size}"] = rate
        if not gains or rate * _REACH < best:
            break
    return rates


def try_stacks(net: Any, training: Training, data: Any) -> None:
    """One step of two clients in lockstep, where that is the way of `net`, to find whether it can be stacked."""
    some = np.flatnonzero(np.asarray(data.sizes) > 0)[:_CLIENTS]
    if len(some) and training.precision == "float32" and (stack := getattr(net, "lockstep", None)) is not None:
        way = "lockstep" if stack.stack is None else f"lockstep-{stack.stack}"
        _fit(net, net.key, way, replace(training, steps=1), data, some)()


def _stacks(most: int = _LARGEST_STACK) -> list[int]:
    found = [_FIRST_STACK]
    while found[-1] * _WIDER <= min(most, _LARGEST_STACK):
        found.append(found[-1] * _WIDER)
    return found


def _middle(ordered: I64, count: int) -> I64:
    """`count` clients of middling size, or all there are."""
    first = min(len(ordered) // 2, max(0, len(ordered) - count))
    return np.sort(ordered[first : first + count])


def _rate(net: Any, key: str, way: str, training: Training, data: Any, clients: I64) -> float:
    """Clients per second, of `_STEPS` steps each; the first call counts only where it took very long."""
    step, few = (_fit(net, key, way, replace(training, steps=count), data, clients) for count in (1, _STEPS))
    took = _took(step)
    took = took if took > _VERY_LONG_S else _took(step)
    return float(f"{len(clients) / (took * _STEPS if took > _LONG_S else _least(few)):.4g}")


def _fit(net: Any, key: str, way: str, training: Training, data: Any, clients: I64) -> Callable[[], None]:
    block = data.block(clients)
    keys = np.arange(block.n, dtype=np.uint64)
    plan = make_plan(block, keys, training)
    start, row = net.init(0).vector[None], np.zeros(block.n, np.int64)

    def once() -> None:
        with naming(clients), taking(key, way):
            net.fit(start, row, block, plan, keys, training, training.lr, Drift())

    return once


def _took(once: Callable[[], None]) -> float:
    began = time.perf_counter()
    once()
    return time.perf_counter() - began


def _least(once: Callable[[], None]) -> float:
    """The least time of calls that take a moment together."""
    best, spent = np.inf, 0.0
    for _ in range(100):
        took = _took(once)
        best, spent = min(best, took), spent + took
        if spent + best > _MOMENT_S:
            break
    return float(best)


def keep_to(net: Any, path: str) -> None:
    """Go the way a run went (`path` of its description) that is gone on with, whatever is faster now."""
    ways: tuple[str, ...] = getattr(net, "ways", ())
    if len(ways) > 1 and asked(net.path) == "auto":
        settle(net.key, Choice(path if way_of(path) in ("native", "lockstep") else plain(ways)))


def machine() -> str:
    """What a measurement holds for: the processor, its cores, and what computes."""
    versions = []
    for library in ("numpy", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{library} {version(library)}")
    cores = f"{os.cpu_count()} cores, compiled for {kind() or 'none'}"
    return f"{_processor()}, {cores}, fieldfare {__version__}, {', '.join(versions)}"


@cache
def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def cache_file() -> Path:
    """Where choices are remembered: below XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "fieldfare" / "paths.json"


def _read() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        found = json.loads(cache_file().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {k: v for k, v in found.items() if isinstance(v, dict)}
    return {}


def _read_choice(told: str, ways: tuple[str, ...]) -> Choice | None:
    """What is remembered, if it is in order."""
    found = _read().get(machine(), {}).get(told)
    path, rates = (found.get("path"), found.get("rates")) if isinstance(found, dict) else (None, None)
    if not isinstance(path, str) or not known(path.replace("torch", "graph")) or way_of(path) not in ways:
        return None
    numbers = isinstance(rates, dict) and all(
        isinstance(name, str) and isinstance(rate, int | float) and np.isfinite(rate) for name, rate in rates.items()
    )
    return Choice(path, rates, told) if numbers else None


def _keep(key: str, told: dict[str, Any]) -> None:
    found = _read()
    found.setdefault(machine(), {})[key] = told
    with contextlib.suppress(OSError, RuntimeError):
        file = cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            fresh.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
