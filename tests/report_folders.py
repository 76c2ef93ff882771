"""Run folders made up for the tests of reports: the shape of real ones, numbers from a formula."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_run(
    folder: Path, *, rounds: int = 50, clients: int = 100, cohort: int = 20, seed: int = 0, best: float = 0.93,
    speed: float = 0.12, round_s: float = 420.0, algorithm: str = "fedavg", personal: bool = True,
    every: int = 2, job: Mapping[str, Any] | None = None, classes: int = 10, model_bytes: float = 800e3,
) -> Path:  # fmt: skip
    """Write a whole run folder whose accuracy rises towards ``best`` at ``speed`` per round."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    down = up = now = 0.0
    pace = rng.lognormal(0.0, 0.5, clients)
    for r in range(1, rounds + 1):
        late, lost = int(rng.poisson(2.5)), int(rng.poisson(1.0))
        asked = rng.choice(clients, size=cohort, replace=False, p=(1 / pace) / (1 / pace).sum())
        taken = np.sort(asked[: max(1, cohort - late - lost)])
        seconds = round_s * 0.4 * pace[taken] * rng.lognormal(0.0, 0.15, taken.size)
        now += float(round_s * rng.uniform(0.8, 1.2))
        down, up = down + model_bytes * cohort, up + model_bytes * taken.size
        level = best - (best - 0.11) * float(np.exp(-speed * r)) + float(rng.normal(0, 0.006))
        train = 2.3 * float(np.exp(-speed * r)) + 0.12 + float(rng.normal(0, 0.02))
        row: dict[str, Any] = {"round": r, "version": r, "virtual_s": now, "wall_s": 0.2 * r, "train_loss": train}
        row |= {"clients": int(taken.size), "bytes_down": down, "bytes_up": up}
        missing = {name: n for name, n in (("late", late), ("drop-out", lost)) if n}
        row |= {"missing": missing} if missing else {}
        if r % every == 0 or r in (1, rounds):
            row |= {"accuracy": level, "loss": 2.3 * float(np.exp(-speed * r)) + 0.2}
        if r % 5 == 0:
            row |= {"federated_accuracy_mean": level - 0.03, "federated_accuracy_worst_decile": level - 0.14}
            row |= {"personal_accuracy_mean": min(0.99, level + 0.03)} if personal else {}
        rows.append(row)
        weight = rng.integers(20, 900, taken.size).astype(float)
        lines.append({"round": r, "clients": taken.tolist(), "weight": weight.tolist(), "seconds": seconds.tolist()})
    write_lines(folder / "rounds.jsonl", rows)
    write_lines(folder / "clients.jsonl", lines)

    tested = min(clients, 5000)
    mean = best - 0.05
    shared = rng.beta(14.0, 14.0 * (1 - mean) / mean, tested)
    ids = list(range(tested))
    told = [{"round": rounds, "kind": "federated", "clients": ids, "accuracy": shared.tolist(),
             "loss": (1 - shared).tolist(), "examples": rng.integers(5, 90, tested).tolist()}]  # fmt: skip
    if personal:
        own = np.clip(shared + rng.normal(0.03, 0.05, tested), 0, 1)
        told.append({"round": rounds, "kind": "personal", "clients": ids, "accuracy": own.tolist()})
    write_lines(folder / "evaluation.jsonl", told)

    sizes = np.maximum(5, rng.lognormal(5.5, 0.8, clients)).astype(int)
    mix = rng.dirichlet(np.full(classes, 0.3), clients)
    counts = np.array([rng.multinomial(n, p) for n, p in zip(sizes, mix, strict=True)])
    data = {"name": "digits, dirichlet(0.3), seed 0", "n_clients": clients, "rows": int(sizes.sum())}
    data |= {"classes": classes, "sizes": sizes[:10_000].tolist(), "gini": 0.41, "label_skew_js": 0.38}
    data |= {"sizes_quantiles": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())}}
    data |= {"effective_clients": 61.3, "label_counts": counts[:200].tolist()}
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")

    settings = {
        "algorithm": {"is": "FedAvg", "name": algorithm, "cohort": cohort, "rounds": rounds},
        "training": {"is": "Training", "epochs": 1, "batch": 20, "lr": 0.05, "momentum": 0.0},
        "model": [{"is": "Dense", "in": 784, "out": 200}, {"is": "ReLU"}, {"is": "Dense", "in": 200, "out": 10}],
        "data": "digits, dirichlet(0.3), seed 0", "seed": seed, "evaluate": {"every": every, "clients": clients},
        "simulated": {"fleet": {"is": "Phones", "spread": 0.5}, "deadline_s": 600.0, "workers": None},
        **(job or {}),
    }  # fmt: skip
    config = {"fieldfare": "0.1.0", "format": 1, "job": settings}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    final = {k: v for row in rows for k, v in row.items() if "accuracy" in k or "loss" in k}
    summary = {
        "format": 1, "run": folder.name, "algorithm": algorithm, "rounds": rounds, "seed": seed, "final": final,
        "virtual_s": now, "bytes_down": down, "bytes_up": up, "wall_s": 0.2 * rounds, "clients_per_s": 812.4,
        "report": "report.html",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


CLAIMS = """
[[claim]]
name = "FedAvg ends above 90 %"
measure = "final"
arm = "fedavg"
metric = "accuracy"
sense = ">="
target = 0.9
published = 0.91

[[claim]]
name = "ours needs at most half the rounds of FedAvg to 85 %"
measure = "ratio"
of = { measure = "time_to", arm = "ours", metric = "accuracy", threshold = 0.85, axis = "round" }
to = { measure = "time_to", arm = "fedavg", metric = "accuracy", threshold = 0.85, axis = "round" }
sense = "<="
target = 0.5
published = 0.43

[[claim]]
name = "ours sends at most 50 MB up to 85 %"
measure = "time_to"
arm = "ours"
metric = "accuracy"
threshold = 0.85
axis = "bytes_up"
sense = "<="
target = 50e6

[[claim]]
name = "SCAFFOLD is ahead of FedAvg by 2 points"
measure = "difference"
of = { measure = "best", arm = "scaffold", metric = "accuracy" }
to = { measure = "best", arm = "fedavg", metric = "accuracy" }
sense = ">="
target = 0.02
published = 0.031
"""


def make_study(folder: Path, *, seeds: int = 3, rounds: int = 50, claims: str = CLAIMS) -> Path:
    """Write a study of three arms with ``seeds`` runs each."""
    arms = {
        "fedavg": {"best": 0.935, "speed": 0.06, "round_s": 420.0, "model_bytes": 800e3},
        "scaffold": {"best": 0.94, "speed": 0.09, "round_s": 450.0, "model_bytes": 1600e3},
        "ours": {"best": 0.955, "speed": 0.17, "round_s": 430.0, "model_bytes": 210e3},
    }
    for name, how in arms.items():
        for seed in range(seeds):
            job = {"algorithm": {"is": name.title(), "cohort": 20, "rounds": rounds}}
            make_run(folder / "arms" / name / str(seed), seed=seed, rounds=rounds, algorithm=name, job=job, **how)  # type: ignore[arg-type]
    listed = [f"{name}/{seed}" for name in arms for seed in range(seeds)]
    config = {"format": 1, "study": folder.name, "arms": listed}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    first = json.loads((folder / "arms" / "fedavg" / "0" / "summary.json").read_text(encoding="utf-8"))
    summary = {**first, "run": folder.name, "arms": list(arms), "wall_s": 90.0}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "claims.toml").write_text(claims, encoding="utf-8")
    return folder
