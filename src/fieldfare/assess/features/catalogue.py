"""The artefact of kind `features`: every feature's choice and vocabulary, and what they cost a device together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fieldfare.assess.artefact import Artefact, Draft, Value
from fieldfare.assess.features.locality import Feature, choose
from fieldfare.assess.features.vocabulary import LIMITS_BYTES, advise
from fieldfare.core.errors import UsageError


def build(
    features: Sequence[Feature], out: str | Path, *, records: float, tasks_per_day: float = 1.0,
    link_bytes_per_s: float = 1e6, rtt_s: float = 0.1, device_bytes: float = float("inf"),
    package: str = "own app", window_days: float | None = None,
) -> Artefact:  # fmt: skip
    """Choose how each feature gets to training, and a vocabulary for each that has one; see `locality`, `vocabulary`.

    `records`: a client's records in its window of `window_days` (a proxy says both). The limit of a vocabulary and its
    embedding is the package's, shared evenly between the features that have one.
    """
    if package not in LIMITS_BYTES:
        raise UsageError(f"features: package={package!r}: use one of {', '.join(LIMITS_BYTES)}.")
    chosen = choose(features, records=records, tasks_per_day=tasks_per_day, link_bytes_per_s=link_bytes_per_s,
                    rtt_s=rtt_s, device_bytes=device_bytes, window_days=window_days)  # fmt: skip
    params = {"records": records, "tasks_per_day": tasks_per_day, "link_bytes_per_s": link_bytes_per_s, "rtt_s": rtt_s,
              "package": package, "features": [asdict(one) for one in features]}  # fmt: skip
    params |= {} if window_days is None else {"window_days": window_days}
    draft = Draft("features", params=params)
    rows = [{**asdict(one), **asdict(choice)} for one, choice in zip(features, chosen, strict=True)]
    draft.table("features", {name: [row[name] for row in rows] for name in rows[0]} if rows else {"name": []})
    words = [one for one in features if one.vocabulary_rows > 0]
    sizes = [
        (one, size, rank)
        for one in words
        for rank, size in enumerate(advise(one.vocabulary_rows, one.vocabulary_bytes / one.vocabulary_rows,
                                           limit_bytes=LIMITS_BYTES[package] / len(words))[:6])
    ]  # fmt: skip
    if sizes:
        draft.table("vocabulary", {
            "feature": [one.name for one, _, _ in sizes], "rank": [rank for _, _, rank in sizes],
            "choice": [size.name for _, size, _ in sizes], "rows": [size.rows for _, size, _ in sizes],
            "dim": [size.dim for _, size, _ in sizes], "bytes": [float(size.bytes) for _, size, _ in sizes],
            "lost": [size.lost for _, size, _ in sizes],
        })  # fmt: skip
    best = [size for _, size, rank in sizes if rank == 0]
    refused = [one.refused for one in chosen if one.refused]
    draft.values |= {
        "features": Value(len(features), "features", how="declared"),
        "features_refused": Value(
            len(refused), "features", how="closed form", note="; ".join(one.refused for one in refused)
        ),
        "device_bytes": Value(sum(one.device_bytes for one in chosen), "B", how="closed form"),
        "assets_bytes": Value(sum(one.assets_bytes for one in chosen), "B", how="closed form"),
        "task_bytes": Value(sum(one.task_bytes for one in chosen), "B", how="closed form"),
        "extra_latency_s": Value(max((one.latency_s for one in chosen), default=0.0), "s", how="closed form"),
        "embedding_bytes": Value(float(sum(one.embedding_bytes for one in best)), "B", how="closed form"),
    }
    return draft.write(out)
