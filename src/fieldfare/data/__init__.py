"""Federated data sets: who holds which rows, how rows are shared out, and where they come from."""

from fieldfare.data.federated import Federated, federate
from fieldfare.data.partition import (
    PARTITIONERS,
    dirichlet,
    dirichlet_quantity,
    iid,
    joint,
    labels_per_client,
    lognormal_quantity,
    natural,
    partitioner,
    shards,
)
from fieldfare.data.statistics import describe, effective_clients, gini, js_divergence, label_counts
