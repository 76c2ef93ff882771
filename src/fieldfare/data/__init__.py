"""Federated data sets: who holds which rows, how rows are shared out, and where they come from."""

from fieldfare.data.federated import Federated, federate
from fieldfare.data.generate import synthetic
from fieldfare.data.images import from_image_folder, images_as
from fieldfare.data.load import digits, from_npz, from_numpy
from fieldfare.data.partition import (
    PARTITIONERS,
    Partition,
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
from fieldfare.data.tables import from_csv, from_huggingface, from_parquet, from_table, read_csv, read_parquet
from fieldfare.data.text import PRINTABLE, Vocabulary, from_text

__all__ = [
    "PARTITIONERS",
    "PRINTABLE",
    "Federated",
    "Partition",
    "Vocabulary",
    "describe",
    "digits",
    "dirichlet",
    "dirichlet_quantity",
    "effective_clients",
    "federate",
    "from_csv",
    "from_huggingface",
    "from_image_folder",
    "from_npz",
    "from_numpy",
    "from_parquet",
    "from_table",
    "from_text",
    "gini",
    "iid",
    "images_as",
    "joint",
    "js_divergence",
    "label_counts",
    "labels_per_client",
    "lognormal_quantity",
    "natural",
    "partitioner",
    "read_csv",
    "read_parquet",
    "shards",
    "synthetic",
]
