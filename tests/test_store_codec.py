"""The codec: what goes in comes out, to the bit and the type, and nothing else ever comes out."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fieldfare
from fieldfare.algorithms.evaluate import Evaluate as EvaluateCentrally
from fieldfare.algorithms.evaluate import EvaluateOnClients
from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered, Started
from fieldfare.core.folds import Folded, Mean
from fieldfare.core.params import Layout, Params
from fieldfare.core.quorum import Quorum, Sample
from fieldfare.store.codec import Codec, registry
from fieldfare.work.evaluate import Evaluate as EvaluateWork


@dataclass(frozen=True)
class Point:
    x: float
    y: Any = None
    norm: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", abs(self.x))


@dataclass(frozen=True)
class Nest:
    inner: Point | None
    more: tuple[Point, ...] = ()


@dataclass
class Loose:
    x: int


CODEC = Codec(registry(Nest))


def through(value: Any, codec: Codec = CODEC) -> Any:
    tree, arrays = codec.encode(value)
    return codec.decode(json.loads(json.dumps(tree, allow_nan=False)), arrays)


def same(a: Any, b: Any) -> bool:
    """Equality of type, bits and order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float) and not isinstance(a, np.generic):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


numbers = st.integers() | st.integers(-(2**300), 2**300) | st.floats(allow_nan=True)
text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
names = st.recursive(text | st.integers(), lambda inner: st.tuples(inner, inner), max_leaves=3)
dtypes = hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.unsigned_integer_dtypes() | hnp.floating_dtypes()
arrays = hnp.arrays(dtypes | hnp.complex_number_dtypes(), hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
scalars = hnp.arrays(dtypes, ()).map(lambda a: a[()])
leaves = st.none() | st.booleans() | numbers | text | st.binary(max_size=9) | arrays | scalars
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(names, inner, max_size=3)
        | st.builds(Point, st.floats(allow_nan=False), inner)
        | st.builds(Nest, st.none() | st.builds(Point, st.just(1.0)))
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(values)
def test_what_is_encoded_comes_back_with_the_same_bits_types_and_order(value: Any) -> None:
    back = through(value)
    assert same(value, back)
    assert same(CODEC.encode(value), CODEC.encode(back))  # and what was shared is shared again


def test_dataclasses_come_back_as_themselves_with_derived_fields_computed_anew() -> None:
    back = through(Nest(Point(-2.5, (1, "a")), (Point(3.0),)))
    assert back == Nest(Point(-2.5, (1, "a")), (Point(3.0),))
    assert back.inner.norm == 2.5


def test_nan_payloads_and_signed_zeros_survive() -> None:
    odd = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
    back = through([odd, -0.0, math.inf, -math.inf])
    assert struct.pack("<d", back[0]).hex() == "010000000000f87f"
    assert math.copysign(1, back[1]) == -1
    assert back[2:] == [math.inf, -math.inf]


def test_an_integer_of_ten_thousand_digits_survives() -> None:
    assert through(-(10**10_000)) == -(10**10_000)


def test_an_array_used_twice_is_stored_once_and_shared_again() -> None:
    vector = np.arange(10.0)
    tree, arrays = CODEC.encode({"a": vector, "b": [vector, vector[:]], "c": vector[:5]})
    assert len(arrays) == 2
    back = CODEC.decode(tree, arrays)
    assert back["a"] is back["b"][0]


def test_two_arrays_of_equal_content_are_told_apart_from_a_slice_of_other_strides() -> None:
    base = np.arange(8)
    back = through([base[::2], base[:4], base.astype(">i8"), base.reshape(2, 4).T])
    assert [part.tolist() for part in back] == [
        [0, 2, 4, 6], [0, 1, 2, 3], list(range(8)), base.reshape(2, 4).T.tolist(),
    ]  # fmt: skip
    assert back[2].dtype == np.dtype(">i8")


def test_a_model_shared_by_many_asks_is_stored_once_and_is_one_object_again() -> None:
    model = Params.pack({"w": np.ones((3, 2)), "b": np.zeros(2)})
    asks = tuple(Run("train", Sample(5), ("t", i), model, reduce={"delta": Mean()}) for i in range(50))
    tree, arrays = CODEC.encode(asks)
    assert sum(array.nbytes for array in arrays) == model.bytes
    assert json.dumps(tree).count('"w"') == 1
    back = CODEC.decode(tree, arrays)
    assert all(ask.model is back[0].model for ask in back)
    assert back[0].model.layout == model.layout
    assert back[7].tag == ("t", 7)
    assert back[7].quorum == Quorum()


def test_events_and_effects_of_core_need_no_registration() -> None:
    event = Gathered(
        ("r", 1), {"d": Folded(np.ones(3), 2.0)}, 2.0, np.arange(2), np.ones(2), {"loss": np.array([np.nan, 1])},
    )  # fmt: skip
    back = through((event, Started({"central": ("central",)}, 5)))
    assert back[0].metrics["loss"].tobytes() == event.metrics["loss"].tobytes()
    assert back[1] == Started({"central": ("central",)}, 5)


def test_a_read_only_dict_stays_one() -> None:
    back = through(MappingProxyType({"a": 1}))
    assert type(back) is MappingProxyType
    assert back == {"a": 1}


def test_decoded_arrays_cannot_be_written() -> None:
    back = through(np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1


def test_encoding_leaves_the_callers_arrays_writeable() -> None:
    array = np.zeros(3)
    through(array)
    array[0] = 1
    assert array[0] == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: 0, "function or class"),
        (len, "function or class"),
        (Point, "function or class"),
        ({1, 2}, "sorted tuple"),
        ({1.5: 2}, "keys of str, int"),
        ({(1, None): 2}, "keys of str, int"),
        ({True: 2}, "keys of str, int"),
        (Loose(1), "registry"),
        (object(), "type object"),
        (np.array([None]), "dtype object"),
        (np.array(["2020"], "M8[D]"), "dtype datetime64"),
    ],
)
def test_what_cannot_be_stored_is_refused_in_one_line(value: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        CODEC.encode([value])
    assert "\n" not in str(error.value)


def test_a_list_that_holds_itself_is_refused_in_one_line() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UsageError, match="nested too deeply"):
        CODEC.encode(loop)


def test_a_class_outside_the_registry_does_not_come_out() -> None:
    tree, arrays = CODEC.encode(Nest(None))
    with pytest.raises(UsageError, match="holds a Nest, which this job does not know"):
        Codec(registry()).decode(tree, arrays)


def test_a_class_that_lost_or_gained_a_field_says_which_version_wrote_it() -> None:
    tree, arrays = CODEC.encode(Point(1.0))
    tree["version"] = "9.9"
    del tree["value"]["c"][1]["y"]
    with pytest.raises(UsageError, match=r"written by version 9\.9 .* Point has no field y"):
        CODEC.decode(tree, arrays)
    tree["value"]["c"][1] |= {"y": None, "z": 1, "norm": 2}
    with pytest.raises(UsageError, match="has a field norm, z that is unknown"):
        CODEC.decode(tree, arrays)


def test_a_field_that_its_class_refuses_is_one_line() -> None:
    tree, arrays = CODEC.encode(Quorum(need=3))
    tree["value"]["c"][1]["need"] = 0
    with pytest.raises(UsageError, match="Quorum is refused"):
        CODEC.decode(tree, arrays)


@pytest.mark.parametrize(
    "tree",
    [
        None, [], {"a": 1}, {"x": 1}, {"a": 0, "t": []}, {"a": "0"}, {"a": -1}, {"a": True}, {"r": 0}, {"t": 5},
        {"d": [1]}, {"d": [[1, 2, 3]]}, {"c": ["os.system", {}]}, {"c": ["Point"]}, {"c": ["Point", 5]},
        {"i": "zz"}, {"f": "00"}, {"n": ["O", "00"]}, {"n": ["<f8", "00"]}, {"n": ["nonsense", ""]}, {"s": "ff"},
        {"b": 7}, {"m": 3}, {"t": [{"c": ["Point", {"x": {"a": 3}, "y": None}]}]}, {"d": [[[], 1]]},
    ],
)  # fmt: skip
def test_a_malformed_tree_is_a_usage_error_in_one_line(tree: Any) -> None:
    whole = tree if tree is None or tree == [] else {"version": "0", "value": tree}
    with pytest.raises(UsageError) as error:
        CODEC.decode(whole, [])
    assert "\n" not in str(error.value)


def test_a_tree_nested_ten_thousand_deep_is_a_usage_error() -> None:
    tree: Any = None
    for _ in range(10_000):
        tree = {"t": [tree]}
    with pytest.raises(UsageError, match="nested too deeply"):
        CODEC.decode({"version": "0", "value": tree}, [])


def test_the_version_that_wrote_it_is_recorded() -> None:
    assert CODEC.encode(1)[0]["version"] == fieldfare.__version__


def test_the_registry_finds_the_state_of_an_algorithm_and_of_those_it_wraps() -> None:
    plain = registry(FedAvg(rounds=3, cohort=2))
    core = {"core.events.Gathered", "core.effects.Run", "core.params.Params", "core.params.Layout"}
    assert {"algorithms.fedavg.State", "aggregate.chain.Chain", *core} <= set(plain)
    wrapped = registry(EvaluateOnClients(FedAvg(rounds=3, cohort=2)))
    assert set(plain) < set(wrapped)


def test_the_state_of_a_real_algorithm_survives() -> None:
    algorithm = FedAvg(rounds=3, cohort=2)
    state = algorithm.init(Params.pack({"w": np.arange(4.0)}))
    codec = Codec(registry(algorithm))
    again = through(state, codec)
    assert type(again) is type(state)
    assert codec.encode(again)[0] == codec.encode(state)[0]


def test_the_registry_follows_annotations_to_nested_classes() -> None:
    assert registry(Nest)["Point"] is Point


def test_classes_of_one_name_in_different_files_of_the_package_are_told_apart() -> None:
    both = registry(EvaluateCentrally, EvaluateWork)
    assert both["algorithms.evaluate.Evaluate"] is not both["work.evaluate.Evaluate"]


def test_two_classes_of_one_name_are_refused() -> None:
    other = dataclass(frozen=True)(type("Point", (), {"__annotations__": {"x": int}, "__module__": "elsewhere"}))
    with pytest.raises(UsageError, match="two classes are called 'Point'"):
        registry(Point, other)


def test_a_class_that_is_not_frozen_is_refused() -> None:
    with pytest.raises(UsageError, match="frozen=True"):
        registry(Loose)
    with pytest.raises(UsageError, match="frozen=True"):
        Codec({"Loose": Loose})


def test_an_undecorated_subclass_is_not_taken_for_its_parent() -> None:
    class Sub(Point):
        pass

    with pytest.raises(UsageError, match="registry"):
        CODEC.encode(Sub(1.0))


def test_a_layout_comes_back_equal_and_usable() -> None:
    layout = Layout.of({"w": (2, 3), "b": ()})
    assert through(layout) == layout
    assert through(layout).size == 7
