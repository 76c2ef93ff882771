"""The proof of a plan: a level's training step, taken for real under a limit of memory.

Here: `dry_run`, and `proved` for a whole plan. Not here: what should fit (`fit`). Invariant: a step said to have
succeeded in a process was taken whole where no more than the budget and a tenth could be had above the baseline.
"""

from __future__ import annotations

import gc
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.work.native.choose import without_core
from fieldfare.work.net import Training
from fieldfare.work.shortage import wants_memory
from fieldfare.work.submodel.actual import Actual, actual, memory_of
from fieldfare.work.submodel.cost import _kept, measured
from fieldfare.work.submodel.family import Family
from fieldfare.work.submodel.fit import Planned, barred
from fieldfare.work.submodel.rules import Level

LEAST = 64_000_000
"""Below so many bytes the address space of a Python process is too coarse a measure: there the allocator is asked."""

_SMALL = 1 << 16
_MMAP_THRESHOLD = -3


@dataclass(frozen=True, slots=True)
class Dry:
    """How a dry run ended. `way`: "address space" (a child process under a limit) or "allocator" (its peak, compared).

    `used_bytes`: what the step took at its peak: of the allocator, or resident pages, 0 where the system does not tell
    (of a step that failed none is known).
    """

    level: Level
    budget_bytes: int
    ok: bool
    way: str
    used_bytes: int
    said: str = ""


def dry_run(
    family: Family, level: Level | float, budget_bytes: float, training: Training | None = None, *,
    example: Any = None, spare: float = 0.1, way: str | None = None, timeout_s: float = 600.0,
    local: Sequence[Local] = (),
) -> Dry:  # fmt: skip
    """Take one training step of `level` with `budget_bytes` of memory, and `spare` of it more.

    The step is that of an algorithm which declares `local` (none: the plain one); where it trains nets inside in turn,
    one of each; client state is held beside it.

    From 64 MB on (or with `way="address space"`) in a forked process whose address space is limited to what it had
    after import, steps of the smallest level at a batch of two, and the model as it came, plus the budget. In it count
    the model that trains, gradients, slots, activations, batch; not the vector that came, nor the one sent back.
    Below (or `way="allocator"`) the peak of the allocator is compared. Linux with glibc for the first. Cost: two steps.
    Errors: `UsageError`; an error of the step that is not for want of memory is told as such.
    """
    training = training or Training()
    level = level if isinstance(level, Level) else Level(float(level))
    way = way or ("address space" if budget_bytes >= LEAST else "allocator")
    budget = int(budget_bytes)
    if way not in ("address space", "allocator"):
        raise UsageError(f"dry_run(way={way!r}): use 'address space' or 'allocator'.")
    if not budget > 0:
        raise UsageError(f"dry_run(budget_bytes={budget_bytes}): a budget is a number of bytes above zero.")
    net = family.at(level)
    if way == "allocator":
        used = measured(family.net, training, net.layout, example, local)
        ok = used <= (1 + spare) * budget
        return Dry(level, budget, ok, way, used, "" if ok else f"the step took {used} bytes")
    rows = example or getattr(family.net, "example", None)
    if rows is None:
        raise UsageError("dry_run(...) takes a step: give an example (rows of the data's columns).")
    if sys.platform != "linux":
        raise UsageError("dry_run(way='address space') limits a process as Linux can: use way='allocator' here.")
    asked, inside = memory_of(local), getattr(family.net, "net", family.net)
    step = actual(inside, net.layout, asked)
    nets = [step, *(actual(inside, family.at(one).layout, asked) for one in family.levels)]
    nets = [one for one in nets if _kind(one.net, training) == _kind(step.net, training)]
    warm = min(nets, key=lambda one: one.net.layout.size)
    kind, used, said = _in_child(warm, step, rows, training, int((1 + spare) * budget), timeout_s)
    if kind == "error":
        raise UsageError(f"the dry run of level {level.name} failed, and not for want of memory: {said}")
    return Dry(level, budget, kind == "ok", way, used, said)


def proved(planned: Planned, *, example: Any = None, spare: float = 0.1) -> tuple[Planned, tuple[Dry, ...]]:
    """A plan every level of which passes a dry run in the least memory of its devices, and the dry runs it took.

    Where one fails, devices with that little memory get the next level that fits them; who fits none then has none.
    What was proved of a net before, in no more memory, is not run again. Cost: a dry run per level, and one more for
    each that failed.
    """
    bars, runs = proofs((planned,), example=example, spare=spare)
    return (barred(planned, bars) if bars else planned), runs


def proofs(
    plans: Sequence[Planned], *, every: bool = False, example: Any = None, spare: float = 0.1
) -> tuple[dict[int, float], tuple[Dry, ...]]:
    """(bars: level n needs more than `bars[n]` bytes, the dry runs) of plans of one family and training.

    `every`: also of levels that no device has, but could have by its memory.
    """
    bars: dict[int, float] = dict(plans[0].bars)
    runs: list[Dry] = []
    passed: dict[int, float] = {}
    while True:
        least = _least([barred(one, bars) for one in plans] if bars else plans, bars, every)
        number = next((n for n in sorted(least) if least[n] < passed.get(n, np.inf)), None)
        if number is None:
            return bars, tuple(runs)
        need = plans[0].needs[number]
        budget = least[number] if np.isfinite(least[number]) else need.cost.memory_bytes
        done = _tried(plans[0], need.level, budget, example, spare)
        runs.append(done)
        if done.ok:
            passed[number] = least[number]
        else:
            bars[number] = max(budget, done.used_bytes / (1 + spare) - 1)


def _least(plans: Sequence[Planned], bars: Mapping[int, float], every: bool) -> dict[int, float]:
    """The least memory of the devices of each level in use."""
    least: dict[int, float] = {}
    for one in plans:
        memory = one.memory_bytes
        for need in one.needs:
            has = one.assign == need.number
            if every:
                has |= (need.cost.memory_bytes <= memory) & (memory > bars.get(need.number, -1.0))
            if has.any():
                least[need.number] = min(least.get(need.number, np.inf), float(memory[has].min()))
    return least


_TRIED: WeakKeyDictionary[Any, dict[Any, list[Dry]]] = WeakKeyDictionary()
"""Dry runs of plans, as long as the net lives."""


def _tried(planned: Planned, level: Level, budget: float, example: Any, spare: float) -> Dry:
    """`dry_run`, or what one in no more memory (in no less, of one that failed) has shown before."""
    net, training = planned.family.net, planned.training
    key = (
        level,
        training.batch_size,
        training.optimizer,
        training.momentum,
        training.weight_decay,
        training.clip_norm,
        spare,
        memory_of(planned.local),
    )
    before = _TRIED.setdefault(net, {}).setdefault(key, [])
    small = budget < LEAST
    for one in before:
        alike = (one.budget_bytes < LEAST) == small
        if alike and (one.budget_bytes <= budget if one.ok else one.budget_bytes >= budget):
            return one
    done = dry_run(planned.family, level, budget, training, example=example, spare=spare, local=planned.local)
    before.append(done)
    return done


def _in_child(
    warm: Actual, step: Actual, rows: Any, training: Training, budget: int, timeout_s: float
) -> tuple[str, int, str]:
    """("ok", "memory" or "error", bytes used, what was said) of the step in a forked process."""
    import multiprocessing as mp

    context = mp.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_step, args=(warm, step, rows, training, budget, theirs), daemon=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*")
        child.start()
    theirs.close()
    try:
        answer: tuple[str, int, str] | None = ours.recv() if ours.poll(timeout_s) else None
        late = answer is None
    except EOFError:
        answer, late = None, False
    finally:
        ours.close()
    if late:
        child.kill()
    child.join()
    if answer is not None:
        return answer
    if late:
        return "error", 0, f"it was not done after {timeout_s:g} s"
    return "memory", 0, f"the process died (exit code {child.exitcode})"


def _step(warm: Actual, step: Actual, rows: Any, training: Training, budget: int, out: Any) -> None:
    """In the child: a warm-up step, the limit, the step; the answer goes through `out`."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # threads do not come along in a fork
    try:
        _take(warm, rows, training, 2)
        start = step.net.init(0).vector[None]
        kept, reply = _laid(step.net, training)
        gc.collect()
        _soak()
        before = _told("VmSize:")
        base = before - kept + reply
        limit = base + budget
        resident = _mark_peak()
        resource.setrlimit(resource.RLIMIT_AS, (limit if soft < 0 else min(limit, soft), hard))
    except Exception as error:
        out.send(("error", 0, f"before the limit was set, {type(error).__name__}: {error}"))
        return
    try:
        state = np.ones(step.kept // 4, np.float32)
        _take(step, rows, training, training.batch_size, start)
        del state
        answer = ("ok", 0, "")
    except Exception as error:
        wanted = re.search(r"(?:tried to allocate (\d+) bytes|\((\d+) bytes more)", str(error))
        said = f"no memory for {wanted[1] or wanted[2]} bytes more" if wanted else f"{type(error).__name__}: {error}"
        answer = ("memory" if _for_memory(error) else "error", 0, " ".join(said.split())[:300])
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    if answer[0] == "ok":
        answer = ("ok", 0 if resident is None else kept + _told("VmHWM:") - resident, "")
    out.send(answer)


def _take(step: Actual, rows: Any, training: Training, batch: int, start: Any = None) -> None:
    """One step on `batch` rows, again and again those there are; one of each of the nets that are trained in turn."""
    from dataclasses import replace

    from fieldfare.work.plan import make_plan

    net, turns = step.net, step.turns
    training = replace(training, batch_size=training.batch_size if _stacks(net, training) else batch, steps=turns)
    taken = np.arange(batch) % len(rows[net.y])
    keys = np.zeros(1, np.uint64)
    data = Block(rows, taken, np.array([0, batch]))
    plan = make_plan(data, keys, training, np.full(1, turns))
    start = net.init(0).vector[None] if start is None else start
    with without_core():
        net.fit(start, np.zeros(1, np.int64), data, plan, keys, training, 0.0, step.drift)


def _stacks(net: Any, training: Training) -> bool:
    """Whether `net` trains by NumPy, declared layers or as torch nets of few parameters do."""
    dense = getattr(net, "_dense", None)
    return not hasattr(net, "_module") or (dense is not None and net._stacks(training))


def _kind(net: Any, training: Training) -> tuple[bool, bool]:
    """What is alike of nets that need the same code to be there: by NumPy or torch, with nets inside or not."""
    within = getattr(net, "_within", None)
    return _stacks(net, training), within is not None and within.steps


def _laid(net: Any, training: Training) -> tuple[int, int]:
    """(bytes of the model that trains, laid before the limit is set, bytes of the vector sent back)."""
    if _stacks(net, training):
        return 0, 0  # made in the step, the reply counted with it
    net._resident = None  # a gradient may be left there that this step does without
    return sum(t.untyped_storage().nbytes() for t in _kept(net)), 4 * net.layout.size


def _soak() -> None:
    """Leave no freed memory of 64 KiB or more that a step could have without asking the system.

    Also not in the arenas of threads that there were before the fork: each has 64 MiB of address space set aside, and
    is asked where the system gives no more. So all that can be had with the address space as it is, is taken.
    """
    import ctypes
    import resource

    from fieldfare.work.torch_resident import keep_memory

    keep_memory()  # now, so that it does not undo what follows
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        raise OSError("the C library is no glibc")
    libc.mallopt(_MMAP_THRESHOLD, _SMALL)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_told("VmSize:"), before[1]))
    size = 1 << 30
    while size >= _SMALL:
        if libc.malloc(size) is None:
            size //= 2
    resource.setrlimit(resource.RLIMIT_AS, before)


def _mark_peak() -> int | None:
    """Bytes resident now, from which on their peak is counted anew; None where the system does not let us."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return None
    return _told("VmRSS:")


def _told(name: str) -> int:
    """What the system tells of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def _for_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be had."""
    return wants_memory(error) or any(word in str(error).lower() for word in ("alloc", "memory"))
