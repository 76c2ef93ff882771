"""What the machine and plain NumPy can do: the limits and yardsticks our own rows are held against.

    probes.py matmul                 float32 matrix products, GFLOP/s of all cores, one process and thread each
    probes.py fold                   100 updates of 10 million float32, plain multiply-add
    probes.py loop COHORT SECONDS    draw a cohort of 1,000,000, make its replies, average them
    probes.py heap SECONDS           starts and ends of tasks on a plain heap, 1,000 at work of 1,000,000
    probes.py size NAME              MB of an installed distribution with what it requires
    probes.py tree                   MB of everything installed in this environment but pip and setuptools

Each prints one line of JSON. NumPy is needed by the first four; nothing of Fieldfare is.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

UPDATES, SIZE, DISTINCT = 100, 10_000_000, 8
POPULATION = 1_000_000


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def update_rows() -> Any:
    """Float32 ``[8, 10 million]``: enough to leave any cache, folded round and round."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((DISTINCT, SIZE), dtype=np.float32)


def weight_of(update: int) -> float:
    """Examples behind an update."""
    return float(10 + update % 7)


def _multiply(size: int, seconds: float, gate: Any, results: Any) -> None:
    try:
        import torch

        torch.set_num_threads(1)
        a, b = torch.rand(size, size), torch.rand(size, size)
        out = torch.empty(size, size)

        def product() -> None:
            torch.mm(a, b, out=out)
    except ImportError:
        import numpy as np

        x, y = (np.random.default_rng(k).random((size, size), np.float32) for k in range(2))
        z = np.empty((size, size), np.float32)

        def product() -> None:
            np.matmul(x, y, out=z)

    product()
    gate.wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        product()
        count += 1
    results.put(count * 2 * size**3 / (time.perf_counter() - began))


def matmul(seconds: float = 2.0, cores: int | None = None) -> dict[str, float]:
    """The best of three sizes; all processes (one a core, or ``cores``) multiply at the same time."""
    spawn = multiprocessing.get_context("spawn")
    cores = cores or len(os.sched_getaffinity(0))
    best = 0.0
    for size in (512, 1024, 2048):
        gate, results = spawn.Barrier(cores), spawn.Queue()
        workers = [spawn.Process(target=_multiply, args=(size, seconds, gate, results)) for _ in range(cores)]
        for worker in workers:
            worker.start()
        best = max(best, sum(results.get(timeout=120) for _ in workers))
        for worker in workers:
            worker.join()
    return {"flops_per_s": best, "cores": cores}


def fold() -> dict[str, float]:
    """``sum += weight * row``, one row after another: seconds, and memory beyond the rows."""
    import numpy as np

    rows = update_rows()
    before = _peak_mb()
    began = time.perf_counter()
    total, term, weights = np.zeros(SIZE, np.float32), np.empty(SIZE, np.float32), 0.0
    for i in range(UPDATES):
        np.multiply(rows[i % DISTINCT], np.float32(weight_of(i)), out=term)
        np.add(total, term, out=total)
        weights += weight_of(i)
    total /= np.float32(weights)
    took = time.perf_counter() - began
    began = time.perf_counter()
    for i in range(UPDATES):
        row = rows[i % DISTINCT]
        np.dot(row, row)
    read = time.perf_counter() - began
    return {
        "seconds": took,
        "mb": _peak_mb() - before,
        "first": float(total[0]),
        "last": float(total[-1]),
        "read_s": read,
    }


def loop(cohort: int, seconds: float) -> dict[str, float]:
    """A round with no bookkeeping at all: no clock, devices, costs, records or exact sums."""
    import numpy as np

    random = np.random.default_rng(0)
    model = np.zeros(8, np.float32)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        random.choice(POPULATION, cohort, replace=False)
        replies = np.zeros((cohort, len(model)), np.float32)
        weights = np.ones(cohort, np.float32)
        model = model + weights @ replies / weights.sum()
        rounds += 1
    return {"replies_per_s": rounds * cohort / (time.perf_counter() - began)}


def heap(seconds: float) -> dict[str, float]:
    """Tasks (a start and an end) per second with nothing but a heap: no bookkeeping, bytes, joules or outcomes."""
    import heapq

    import numpy as np

    random = np.random.default_rng(0)
    took = (20 * np.exp(0.6 * random.standard_normal(POPULATION))).tolist()
    queue = [(took[i], i) for i in range(1000)]
    heapq.heapify(queue)
    busy, tasks = bytearray(POPULATION), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for client in random.integers(0, POPULATION, 2000).tolist():
            if busy[client]:
                continue
            now, gone = queue[0]
            busy[gone], busy[client] = 0, 1
            heapq.heapreplace(queue, (now + took[client], client))
            tasks += 1
    return {"tasks_per_s": tasks / (time.perf_counter() - began)}


def _mb(distribution: metadata.Distribution) -> float:
    """MB of a distribution's files; of an editable one, of the package's source."""
    files = [Path(str(distribution.locate_file(f))) for f in distribution.files or ()]
    total = sum(f.stat().st_size for f in files if f.is_file())
    direct = distribution.read_text("direct_url.json")
    if direct and json.loads(direct).get("dir_info", {}).get("editable"):
        source = Path(json.loads(direct)["url"].removeprefix("file://")) / "src" / distribution.name
        total += sum(f.stat().st_size for f in source.rglob("*") if f.is_file() and f.suffix != ".pyc")
    return total / 1e6


def size(name: str) -> dict[str, Any]:
    """A distribution and, again and again, what it requires (extras and absent packages left out)."""
    todo, seen = [name], dict[str, float]()
    while todo:
        canonical = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if canonical in seen:
            continue
        try:
            distribution = metadata.distribution(canonical)
        except metadata.PackageNotFoundError:
            continue
        seen[canonical] = _mb(distribution)
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement and (found := re.match(r"[A-Za-z0-9._-]+", requirement)):
                todo.append(found[0])
    return {"mb": sum(seen.values()), "packages": len(seen), "own_mb": seen.get(name, 0.0)}


def tree() -> dict[str, float]:
    """Every distribution of this environment."""
    found = {d.name: _mb(d) for d in metadata.distributions() if d.name not in ("pip", "setuptools", "wheel")}
    return {"mb": sum(found.values()), "packages": len(found)}


def main(argv: list[str]) -> None:
    """Run one probe."""
    match argv:
        case ["matmul"]:
            out: dict[str, Any] = matmul()
        case ["matmul", cores]:
            out = matmul(cores=int(cores))
        case ["fold"]:
            out = fold()
        case ["loop", cohort, seconds]:
            out = loop(int(cohort), float(seconds))
        case ["heap", seconds]:
            out = heap(float(seconds))
        case ["size", name]:
            out = size(name)
        case ["tree"]:
            out = tree()
        case _:
            sys.exit(__doc__)
    print(json.dumps(out))


if __name__ == "__main__":
    main(sys.argv[1:])
