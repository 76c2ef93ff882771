"""The fastest way to train a net on this machine, measured for a moment at its first use and remembered.

Here: the measurement and the file it is kept in. Not here: who asks (`assembly`), what a choice means (`choose`).
Invariant: what is measured changes no number of a run; a file that cannot be read or written only costs the moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fieldfare import __version__
from fieldfare.core.block import Block
from fieldfare.work.native import threads
from fieldfare.work.native.choose import Choice, asked, settle, settled, taking
from fieldfare.work.native.fit import Native
from fieldfare.work.net import Drift, Training
from fieldfare.work.plan import make_plan

_MOMENT_S = 0.03
_STEPS = 4
_CLIENTS = 2
_MARGIN = 1.05
"""How much faster another way must be than the compiled one."""


def settle_fastest(net: Any, training: Training, data: Any) -> None:
    """Measure the ways `net` can be trained on a few clients of `data`, unless one was asked for or is known.

    Cost: about a tenth of a second for each way, once a net and machine. A run that is gone on with settles its own
    way before (`keep_to`).
    """
    native = getattr(net, "native", None)
    if not isinstance(native, Native) or asked(net.path) != "auto" or settled(native.key) is not None:
        return
    if training.precision != "float32":  # nothing else computes in it
        settle(native.key, Choice("native"))
        return
    known = _read().get(machine(), {}).get(native.key)
    if isinstance(known, dict) and _sound(known):
        settle(native.key, Choice(known["path"], known["rates"]))
        return
    sizes = np.asarray(data.sizes)
    some = np.flatnonzero(sizes > 0)
    if not len(some):
        return
    middle = some[np.argsort(sizes[some], kind="stable")][len(some) // 2 :][:_CLIENTS]
    other = _other(net)
    rates = rates_of(net, native.key, ("native", other), training, data.block(np.sort(middle)))
    faster = rates[other] > _MARGIN * rates["native"]
    choice = Choice(other if faster else "native", rates)
    settle(native.key, choice)
    _keep(native.key, {"path": choice.path, "rates": rates})


def rates_of(net: Any, key: str, paths: tuple[str, ...], training: Training, block: Block) -> dict[str, float]:
    """Clients per second on one thread, of a few steps each, by way."""
    few = replace(training, steps=_STEPS)
    keys = np.arange(block.n, dtype=np.uint64)
    plan = make_plan(block, keys, few)
    start, row = net.init(0).vector[None], np.zeros(block.n, np.int64)

    def once() -> None:
        net.fit(start, row, block, plan, keys, few, few.lr, Drift())

    rates: dict[str, float] = {}
    back = threads.limit(1)
    try:
        for path in paths:
            with taking(key, path):
                rates[path] = round(block.n / _seconds(once), 1)
    finally:
        back()
    return rates


def _seconds(once: Callable[[], None]) -> float:
    """The least time of a call: the first warms up and counts only where it took long."""
    best, spent = np.inf, 0.0
    for at in range(100):
        began = time.perf_counter()
        once()
        took = time.perf_counter() - began
        best = min(best, took) if at or took > _MOMENT_S * 10 else best
        spent += took if at else 0.0
        if np.isfinite(best) and spent + best > _MOMENT_S:
            break
    return float(best)


def keep_to(net: Any, path: str) -> None:
    """Go the way a run went (`path` of its description) that is gone on with, whatever is faster now."""
    net = getattr(net, "net", net)  # of a family
    native = getattr(net, "native", None)
    if isinstance(native, Native) and asked(net.path) == "auto":
        settle(native.key, Choice("native" if path == "native" else _other(net)))


def _other(net: Any) -> str:
    return "torch" if hasattr(net, "module") else "stacked"


@cache
def machine() -> str:
    """What a measurement holds for: the processor, its cores, and what computes."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    torch = getattr(sys.modules.get("torch"), "__version__", "")
    return f"{name}, {os.cpu_count()} cores, fieldfare {__version__}, numpy {np.__version__}, torch {torch}"


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


def _sound(known: dict[str, Any]) -> bool:
    rates = known.get("rates")
    return (
        known.get("path") in ("native", "torch", "stacked")
        and isinstance(rates, dict)
        and all(isinstance(name, str) and isinstance(rate, int | float) for name, rate in rates.items())
    )


def _keep(key: str, told: dict[str, Any]) -> None:
    found = _read()
    found.setdefault(machine(), {})[key] = told
    with contextlib.suppress(OSError, RuntimeError):
        file = cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.{os.getpid()}")
        fresh.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        fresh.replace(file)
