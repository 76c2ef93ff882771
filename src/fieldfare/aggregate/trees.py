"""XGBoost models in JSON, appended tree by tree: what `algorithms.bagging` folds its replies by.

Here: the format, read as data from strangers and checked before use. Not here: XGBoost. Invariant: nothing of a reply
reaches the model but checked arrays, written anew: counts agree, and a tree is one, over features that exist.
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
_CATEGORIES = ("categories", "categories_nodes", "categories_segments", "categories_sizes")
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError)
_ALIKE = ("num_class", "num_feature", "num_target", "base_score")


@dataclass(frozen=True, slots=True)
class MergeTrees:
    """XGBoost models in JSON (`Booster.save_raw("json")`, booster "gbtree"): trees appended, client by client.

    A reply holds new trees only (`booster[start:]`), or is empty for none. It is refused, by the client's number, where
    it is larger than `max_bytes`, is not such a model, has trees that are no trees, or other features, classes or
    `base_score` than the model: give every client the same `base_score`. An empty model takes the first reply's
    settings; against strangers begin with a model of your own, of no trees (`xgb.train(..., num_boost_round=0)`).
    Cost: reading and writing the whole model as JSON, once a round.
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
                features = int(new["learner"]["learner_model_param"]["num_feature"])
                trees = [_tree(tree, features, share) for tree in _booster(new)["trees"]]
                whole = _emptied(new) if whole is None else whole
                _append(whole, new, trees)
            except _MALFORMED as error:
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
    """`model`, if its counts agree and its trees are of classes that exist."""
    inside = _booster(model)
    trees, info, rounds = inside["trees"], _integers(inside["tree_info"]), _integers(inside["iteration_indptr"])
    count = int(inside["gbtree_model_param"]["num_trees"])
    groups = max(int(model["learner"]["learner_model_param"]["num_class"]), 1)
    if not count == len(trees) == len(info) == rounds[-1] or rounds[0] != 0 or (np.diff(rounds) < 0).any():
        raise ValueError(f"it says it has {count} trees and holds {len(trees)}")
    if (info < 0).any() or (info >= groups).any():
        raise ValueError("a tree is of a class that does not exist")
    return model


def _integers(given: Any) -> NDArray[np.int64]:
    """A flat array of whole numbers of 32 bits."""
    array = np.asarray(given)
    if array.size == 0 and isinstance(given, list):
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1 or (array < -1).any() or (array >= 1 << 31).any():
        raise ValueError("a tree has nodes that are no whole numbers")
    return array.astype(np.int64)


def _floats(given: Any) -> NDArray[np.float32]:
    """A flat array of finite float32."""
    array = np.asarray(given)
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32) if array.dtype.kind in "iuf" and array.ndim == 1 else None
    if narrow is None or not np.isfinite(narrow).all():
        raise ValueError("a tree has numbers that are not finite")
    return narrow


def _tree(tree: Json, features: int, share: float) -> Json:
    """The tree written anew, its leaves times `share` in float32; from node 0 no way leads to a node twice."""
    size = int(tree["tree_param"]["num_nodes"])
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise ValueError("its leaves are vectors; use multi_strategy='one_output_per_tree'")
    whole = {name: _integers(tree[name]) for name in _INTEGERS}
    numbers = {name: _floats(tree[name]) for name in _FLOATS}
    if size < 1 or any(len(array) != size for array in (*whole.values(), *numbers.values())):
        raise ValueError(f"the arrays of a tree are not all of its {size} nodes")
    _check_shape(whole, size, features)
    if share != 1.0:
        factor, leaf = np.float32(share), whole["left_children"] == -1
        values = numbers["split_conditions"]
        numbers["split_conditions"] = np.where(leaf, values * factor, values)
        numbers["base_weights"] = numbers["base_weights"] * factor
    deleted = int(tree["tree_param"].get("num_deleted", 0))
    counts = {"num_deleted": deleted, "num_feature": features, "num_nodes": size, "size_leaf_vector": 1}
    return {
        **{name: array.tolist() for name, array in whole.items()},
        **{name: _numbers(array) for name, array in numbers.items()},
        **_categories(tree, size), "tree_param": {name: str(count) for name, count in counts.items()},
    }  # fmt: skip


def _check_shape(tree: Mapping[str, NDArray[np.int64]], size: int, features: int) -> None:
    """Every child is one node's, node 0 is none's, and every split is on a feature that exists."""
    left, right, split = tree["left_children"], tree["right_children"], tree["split_indices"]
    children = np.concatenate([left, right])
    children = children[children != -1]
    once = len(np.unique(children)) == len(children)
    if not once or (children < 1).any() or (children >= size).any() or ((left == -1) != (right == -1)).any():
        raise ValueError("a tree has nodes that do not form one")
    inner = np.flatnonzero(left != -1)
    if (tree["parents"][left[inner]] != inner).any() or (tree["parents"][right[inner]] != inner).any():
        raise ValueError("a tree has nodes that do not form one")
    if (split < 0).any() or (split >= max(features, 1)).any():
        raise ValueError(f"a tree asks for a feature beyond its {features}")
    if any((tree[name] < 0).any() or (tree[name] > 1).any() for name in ("split_type", "default_left")):
        raise ValueError("a tree has splits of an unknown kind")


def _categories(tree: Json, size: int) -> Json:
    """The categories of a tree's splits, each within bounds."""
    values, nodes, starts, sizes = (_integers(tree[name]) for name in _CATEGORIES)
    if not len(nodes) == len(starts) == len(sizes) or (values < 0).any():
        raise ValueError("the categories of a tree do not match its nodes")
    if (nodes < 0).any() or (nodes >= size).any() or (starts < 0).any() or (sizes < 0).any():
        raise ValueError("the categories of a tree do not match its nodes")
    if (starts + sizes > len(values)).any():
        raise ValueError("the categories of a tree do not match its nodes")
    return {name: array.tolist() for name, array in zip(_CATEGORIES, (values, nodes, starts, sizes), strict=True)}


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
    into["tree_info"] += _integers(added["tree_info"]).tolist()
    into["iteration_indptr"] += [first + at for at in _integers(added["iteration_indptr"])[1:].tolist()]
    into["gbtree_model_param"]["num_trees"] = str(len(into["trees"]))
