"""XGBoost models in JSON, appended tree by tree: what `algorithms.bagging` folds its replies by.

Here: the format, read as data from strangers and checked before use. Not here: XGBoost. Invariant: nothing of a reply
reaches the model that XGBoost could trip over: counts agree, and a tree is one, over features that exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import PeerError

Json = dict[str, Any]

_INTEGERS = ("left_children", "right_children", "parents", "split_indices", "split_type", "default_left")
_FLOATS = ("split_conditions", "base_weights", "loss_changes", "sum_hessian")
_ALIKE = ("num_class", "num_feature", "num_target", "base_score")


@dataclass(frozen=True, slots=True)
class MergeTrees:
    """XGBoost models in JSON (`Booster.save_raw("json")`, booster "gbtree"): trees appended, client by client.

    A reply holds new trees only (`booster[start:]`), or is empty for none. It is refused, by the client's number, where
    it is larger than `max_bytes`, is not such a model, has trees that are no trees, or other features, classes or
    `base_score` than the model: give every client the same `base_score`. An empty model takes the first reply's
    settings. Cost: reading and writing the whole model as JSON, once a round.
    """

    average: bool = True
    max_bytes: int = 64 << 20

    def __call__(self, model: bytes, updates: Mapping[int, bytes], weights: Mapping[int, float]) -> bytes:
        """`weights` by client, its examples; they count with `average` only, and evenly where all are 0."""
        sent = {client: update for client, update in sorted(updates.items()) if update}
        if not sent:
            return model
        whole = None if not model else _read(model)
        total = float(sum(weights[client] for client in sent))
        for client, update in sent.items():
            try:
                if len(update) > self.max_bytes:
                    raise ValueError(f"it has {len(update)} bytes, more than max_bytes={self.max_bytes}")
                new = _checked(_read(update))
                share = (weights[client] / total if total > 0 else 1 / len(sent)) if self.average else 1.0
                trees = [_scaled(tree, share) for tree in _booster(new)["trees"]]
                whole = _emptied(new) if whole is None else whole
                _append(whole, new, trees)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
                said = str(error) if type(error) is ValueError else f"it lacks or misnames {error}"
                raise PeerError(client, "trees", f"its reply cannot be merged: {said}") from None
        return json.dumps(whole, separators=(",", ":"), allow_nan=False).encode()


def tree_count(model: bytes) -> int:
    """Trees in an XGBoost model in JSON; 0 for an empty one."""
    return len(_booster(_read(model))["trees"]) if model else 0


def _read(text: bytes) -> Json:
    """The JSON object; `ValueError` for anything else."""
    try:
        found = json.loads(text, parse_constant=_not_a_number)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("it is no JSON; send booster.save_raw('json')") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object; send booster.save_raw('json')")
    return cast(Json, found)


def _not_a_number(text: str) -> float:
    raise ValueError(f"it holds {text}")


def _booster(model: Json) -> Json:
    """The part of a model that holds the trees."""
    booster = model["learner"]["gradient_booster"]
    if booster["name"] != "gbtree":
        raise ValueError(f"its booster is {booster['name']!r}; use booster='gbtree'")
    return booster["model"]


def _checked(model: Json) -> Json:
    """`model`, if its counts agree and every tree is one, over features that exist."""
    inside, features = _booster(model), int(model["learner"]["learner_model_param"]["num_feature"])
    trees, info, rounds = inside["trees"], inside["tree_info"], inside["iteration_indptr"]
    count = int(inside["gbtree_model_param"]["num_trees"])
    groups = max(int(model["learner"]["learner_model_param"]["num_class"]), 1)
    if not count == len(trees) == len(info) == rounds[-1] or rounds[0] != 0 or min(np.diff(rounds), default=0) < 0:
        raise ValueError(f"it says it has {count} trees and holds {len(trees)}")
    if not all(type(group) is int and 0 <= group < groups for group in info):
        raise ValueError("a tree is of a class that does not exist")
    for tree in trees:
        _check_tree(tree, features)
    return model


def _check_tree(tree: Json, features: int) -> None:
    """Arrays of one length, finite numbers, and from node 0 no way leads to a node twice."""
    size = int(tree["tree_param"]["num_nodes"])
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise ValueError("its leaves are vectors; use multi_strategy='one_output_per_tree'")
    arrays = {name: np.asarray(tree[name]) for name in (*_INTEGERS, *_FLOATS)}
    if size < 1 or any(array.shape != (size,) for array in arrays.values()):
        raise ValueError(f"the arrays of a tree are not all of its {size} nodes")
    if any(arrays[name].dtype.kind not in "iu" for name in _INTEGERS):
        raise ValueError("a tree has nodes that are no whole numbers")
    if any(arrays[name].dtype.kind not in "iuf" or not np.isfinite(arrays[name]).all() for name in _FLOATS):
        raise ValueError("a tree has numbers that are not finite")
    left, right, split = arrays["left_children"], arrays["right_children"], arrays["split_indices"]
    children = np.concatenate([left, right])
    children = children[children != -1]
    once = len(np.unique(children)) == len(children)
    if not once or (children < 1).any() or (children >= size).any() or ((left == -1) != (right == -1)).any():
        raise ValueError("a tree has nodes that do not form one")
    if (split < 0).any() or (split >= max(features, 1)).any():
        raise ValueError(f"a tree asks for a feature beyond its {features}")
    nodes, starts, sizes = (tree[f"categories_{name}"] for name in ("nodes", "segments", "sizes"))
    if not len(nodes) == len(starts) == len(sizes):
        raise ValueError("the categories of a tree do not match its nodes")
    for node, start, length in zip(nodes, starts, sizes, strict=True):
        if not 0 <= node < size or start < 0 or length < 0 or start + length > len(tree["categories"]):
            raise ValueError("the categories of a tree do not match its nodes")


def _scaled(tree: Json, share: float) -> Json:
    """The tree with what its leaves say times `share`, in float32 as XGBoost reads it."""
    if share == 1.0:
        return tree
    leaf = np.asarray(tree["left_children"]) == -1
    factor = np.float32(share)
    values = np.asarray(tree["split_conditions"], np.float32)
    values = np.where(leaf, values * factor, values)
    means = np.asarray(tree["base_weights"], np.float32) * factor
    return {**tree, "split_conditions": _numbers(values), "base_weights": _numbers(means)}


def _numbers(values: NDArray[np.float32]) -> list[float]:
    """Python floats with the shortest digits that give the same float32."""
    return [float(str(value)) for value in values]


def _emptied(model: Json) -> Json:
    """The same settings without a tree."""
    learner = model["learner"]
    booster = learner["gradient_booster"]
    inside = booster["model"]
    counts = {**inside["gbtree_model_param"], "num_trees": "0"}
    bare = {**inside, "gbtree_model_param": counts, "trees": [], "tree_info": [], "iteration_indptr": [0]}
    return {**model, "learner": {**learner, "gradient_booster": {**booster, "model": bare}}}


def _append(whole: Json, new: Json, trees: Sequence[Json]) -> None:
    """Add the iterations of `new`, with `trees` for its own, to `whole`, in place."""
    theirs, ours = new["learner"]["learner_model_param"], whole["learner"]["learner_model_param"]
    for name in _ALIKE:
        if theirs.get(name) != ours.get(name):
            raise ValueError(
                f"its {name} is {theirs.get(name)} and the model's {ours.get(name)}; give every client the same"
            )
    if new["learner"]["objective"]["name"] != whole["learner"]["objective"]["name"]:
        raise ValueError(f"its objective is {new['learner']['objective']['name']!r}, the model has another")
    into, added = _booster(whole), _booster(new)
    if added.get("cats") != into.get("cats"):
        raise ValueError("it codes categories otherwise than the model; code them as numbers the same everywhere")
    first = len(into["trees"])
    into["trees"] += [{**tree, "id": first + at} for at, tree in enumerate(trees)]
    into["tree_info"] += added["tree_info"]
    into["iteration_indptr"] += [first + at for at in added["iteration_indptr"][1:]]
    into["gbtree_model_param"]["num_trees"] = str(len(into["trees"]))
