"""The configuration of runs as flat rows, and where several runs differ.

Here: pure functions from nested JSON to rows of text. Not here: markup. Kept: every setting of a job is in exactly
one row, and two runs differ in a row exactly when the stored values differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"


def flatten(job: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Open nested settings to dotted names; a list stays one value, a list of objects is opened by position.

    >>> flatten({"algorithm": {"is": "FedAvg", "local": {"lr": 0.1}}, "seed": 1})
    {'algorithm': 'FedAvg', 'algorithm.local.lr': 0.1, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in job.items():
        name = f"{prefix}{key}"
        if key == "is" and prefix:
            name = prefix[:-1]
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                flat |= flatten(item, f"{name}[{index}].")
        else:
            flat[name] = value
    return flat


def shown(value: Any, length: int = 200) -> str:
    """Write a setting for a person.

    >>> shown(None), shown(True), shown([1, 2]), shown(0.1)
    ('none', 'yes', '1, 2', '0.1')
    """
    match value:
        case None:
            text = "none"
        case bool():
            text = "yes" if value else "no"
        case str():
            text = value
        case list() if not any(isinstance(item, (list, Mapping)) for item in value):
            text = ", ".join(shown(item) for item in value) or "none"
        case _:
            text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def differing(jobs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Give, for every setting in which the jobs are not all alike, its value in each of them.

    >>> differing([{"seed": 1, "lr": 0.1}, {"seed": 1, "lr": 0.2}, {"seed": 1}])
    {'lr': ['0.1', '0.2', '–']}
    """
    flat = [flatten(job) for job in jobs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    found: dict[str, list[str]] = {}
    for name in names:
        stored = {json.dumps(settings[name], sort_keys=True) if name in settings else None for settings in flat}
        if len(stored) > 1:
            found[name] = [shown(settings[name]) if name in settings else ABSENT for settings in flat]
    return found


def same_but_seed(job: Mapping[str, Any]) -> str:
    """Give a text that two jobs share exactly when they differ in nothing but their seed and name.

    A text such as the name of a partition, "iid(10), seed 3", counts without its seed.
    """
    flat = {k: v for k, v in flatten(job).items() if k not in ("seed", "name")}
    return re.sub(r"\bseed \d+", "seed", json.dumps(flat, sort_keys=True))


def short_names(keys: Sequence[str]) -> list[str]:
    """The last words of settings, as many as tell them apart.

    >>> short_names(["algorithm.cohort", "algorithm.stale.limit", "a.limit"])
    ['cohort', 'stale.limit', 'a.limit']
    """
    names: list[str] = []
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-k:]) for k in range(1, len(parts) + 1))
        names.append(next(end for end in ends if sum(f".{one}".endswith(f".{end}") for one in keys) == 1 or end == key))
    return names
