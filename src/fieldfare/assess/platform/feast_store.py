"""Feast as a feature store: its feature views, joined by its own offline store.

Here: from Feast's calls to ours. Not here: the join. Invariant: a row comes back for every entity, in their order,
whatever Feast's offline store gives: its file store sorts by time, and leaves entities out that have rows of features
but none in time, so views are asked for one by one. Checked with Feast 0.67; Feast has no lower bound on time but a
view's own ttl, so `from_s` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fieldfare.assess.artefact import column, words
from fieldfare.assess.platform.features import ROW, TIME, Schema, Table, by_view, check, moments
from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.fleet.columns import Array, Text

EVENT = "event_timestamp"
"""The name Feast wants for the entities' moments."""


@dataclass(frozen=True)
class FeastFeatures:
    """The feature store of a Feast repository (a folder with feature_store.yaml)."""

    repo: str

    @cached_property
    def store(self) -> Any:
        """Feast's own."""
        try:
            from feast import FeatureStore  # type: ignore[import-not-found]
        except ImportError:
            raise MissingExtra.of("feast", extra="feast") from None
        try:
            return FeatureStore(repo_path=self.repo)
        except Exception as error:
            raise UsageError(f"{self.repo} is no Feast repository that can be opened: {_line(error)}") from None

    def get_schema(self, view: str) -> Schema:
        """See `FeatureStore`; types are Feast's."""
        try:
            found = self.store.get_feature_view(view)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"Feast has no view {view!r} in {self.repo}: {_line(error)}") from None
        ttl_s = None if found.ttl is None else found.ttl.total_seconds() or None
        features = {str(one.name): str(one.dtype) for one in found.features}
        return Schema(view, tuple(found.join_keys), features, str(found.batch_source.timestamp_field), ttl_s)

    def get_offline(
        self, entities: Mapping[str, Any], features: Sequence[str], from_s: float | None = None,
        to_s: float | None = None,
    ) -> Table:  # fmt: skip
        """See `FeatureStore`. Cost: Feast's."""
        if from_s is not None:
            raise UsageError("Feast bounds the age of values by each view's ttl: give no from_s.")
        table = moments(entities, to_s)
        wanted = by_view(features)
        for view, names in wanted.items():
            check(self.get_schema(view), names, table)
        import pandas as pd

        told = {name: _series(values) for name, values in table.items() if name != TIME}
        us = np.round(np.asarray(table[TIME], np.float64) * 1e6).astype(np.int64)
        asked = pd.DataFrame({**told, EVENT: pd.to_datetime(us, unit="us", utc=True), ROW: np.arange(len(us))})
        out: Table = {name: column(values) for name, values in entities.items()}
        for view, names in wanted.items():
            references = [f"{view}:{name}" for name in names]
            found = self.store.get_historical_features(entity_df=asked, features=references).to_df()
            if found[ROW].duplicated().any():
                raise UsageError(f"Feast gives several rows of view {view!r} for one entity: mend the view's source.")
            found = found.set_index(ROW).reindex(range(len(us)))
            out |= {name: _column(found[name]) for name in names}
        return out


def _series(values: Array | Text) -> Any:
    return [one or None for one in words(values)] if isinstance(values, Text) else values


def _column(values: Any) -> Array | Text:
    """A column of a series of pandas: what it calls missing (None, NaN, NaT, NA) is None; truth values are numbers."""
    gone = values.isna().tolist()
    plain = [None if missing else one for one, missing in zip(values.tolist(), gone, strict=True)]
    return column([float(one) if isinstance(one, bool) else one for one in plain])


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
