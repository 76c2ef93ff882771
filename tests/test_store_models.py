"""Model files: ours to the bit, others' when names and shapes fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.store.models import read_model, write_model

F32 = np.float32

names = st.text(min_size=1, max_size=6).filter(lambda name: ":" not in name and name != "__metadata__")
layouts = st.dictionaries(names, hnp.array_shapes(min_dims=0, min_side=0, max_side=3), max_size=5)
kinds = st.sampled_from(["?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"])


@settings(deadline=None)
@given(layouts, st.dictionaries(st.text(min_size=1, max_size=4), kinds, max_size=3), st.binary(max_size=9), st.data())
def test_a_model_comes_back_with_the_same_bits_and_order(
    tmp_path_factory: pytest.TempPathFactory, shapes: Any, sides: dict[str, str], opaque: bytes, data: st.DataObject
) -> None:
    layout = Layout.of(shapes)
    bits = data.draw(hnp.arrays(np.uint32, layout.size))
    beside = {name: data.draw(hnp.arrays(np.dtype(kind), (2,))) for name, kind in sides.items()}
    path = tmp_path_factory.mktemp("m") / "m.safetensors"
    write_model(path, Params(bits.view(F32), layout, beside, opaque))
    back = read_model(path)
    assert back.layout == layout
    assert back.vector.tobytes() == bits.tobytes()
    assert list(back.sides) == list(beside)
    assert all(back.sides[n].dtype == a.dtype and back.sides[n].tobytes() == a.tobytes() for n, a in beside.items())
    assert back.opaque == opaque
    if opaque or shapes or not sides:
        assert read_model(path, layout).vector.tobytes() == bits.tobytes()


def test_other_programs_see_plain_tensors_under_their_own_names(tmp_path: Path) -> None:
    write_model(tmp_path / "m", Params.pack({"z.weight": np.ones((2, 3)), "a.bias": np.arange(3)}))
    seen = load_file(tmp_path / "m")
    assert {name: a.shape for name, a in seen.items()} == {"z.weight": (2, 3), "a.bias": (3,)}
    assert read_model(tmp_path / "m").layout.names == ("z.weight", "a.bias")


def test_a_file_from_elsewhere_is_put_in_the_order_of_the_layout(tmp_path: Path) -> None:
    save_file({"a": np.array([1, 2], F32), "b": np.array([[3]], np.float64), "n": np.array(7)}, tmp_path / "m")
    model = read_model(tmp_path / "m", Layout.of({"b": (1, 1), "a": (2,)}))
    assert model.vector.tolist() == [3, 1, 2]
    assert model.sides["n"].tolist() == 7


def test_a_file_from_elsewhere_without_a_layout_keeps_floats_in_the_vector_and_counters_beside(tmp_path: Path) -> None:
    save_file({"w": np.ones(2, np.float16), "steps": np.array([5])}, tmp_path / "m")
    model = read_model(tmp_path / "m")
    assert model.layout == Layout.of({"w": (2,)})
    assert model.sides["steps"].tolist() == [5]


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    halves = np.array([0x3F80, 0xC049, 0x7F80], "<u2")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header + halves.tobytes())
    assert read_model(tmp_path / "m").vector.tolist() == [1.0, -3.140625, np.inf]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"w": np.ones((3, 2), F32)}, r"no tensor 'b', which the model needs"),
        ({"w": np.ones((2, 3), F32), "b": np.ones(2, F32)}, r"tensor 'w' has shape \(2, 3\), the model wants \(3, 2\)"),
        ({"w": np.ones((3, 2), F32), "b": np.ones(2, np.int64)}, "tensor 'b' is I64, the model wants floats"),
        ({"w": np.ones((3, 2), F32), "b": np.ones(2, F32), "c": np.ones(1, F32)}, "has tensors the model does not: c"),
    ],
)
def test_a_file_that_does_not_fit_names_the_tensor(tmp_path: Path, tensors: Any, says: str) -> None:
    save_file(tensors, tmp_path / "m")
    with pytest.raises(UsageError, match=says) as error:
        read_model(tmp_path / "m", Layout.of({"w": (3, 2), "b": (2,)}))
    assert "\n" not in str(error.value)


def test_a_file_of_many_tensors_is_told_in_short(tmp_path: Path) -> None:
    save_file({f"t{i}": np.ones(1, F32) for i in range(40)}, tmp_path / "m")
    with pytest.raises(UsageError, match="and 34 more"):
        read_model(tmp_path / "m", Layout.of({"w": (1,)}))


@pytest.mark.parametrize("raw", [b"", b"nonsense", (1 << 60).to_bytes(8, "little") + b"{}", b"\x80\x04K\x01." * 9])
def test_what_is_no_model_file_is_one_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(UsageError, match="no safetensors file") as error:
        read_model(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_a_model_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "m", Params.pack({"w": np.ones(3)}))
    raw = (tmp_path / "m").read_bytes()
    for length in range(0, len(raw), 7):
        (tmp_path / "m").write_bytes(raw[:length])
        with pytest.raises(UsageError):
            read_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fieldfare": "9"}, "model format 9"),
        ({"names": "["}, "broken metadata"),
        ({"names": '["x"]'}, "lacks the tensor 'x'"),
        ({"sides": '["x"]'}, "lacks the side array 'x'"),
    ],
)
def test_altered_metadata_is_one_line(tmp_path: Path, change: dict[str, str], says: str) -> None:
    metadata = {"fieldfare": "1", "names": '["w"]', "sides": "[]", **change}
    save_file({"w": np.ones(1, F32)}, tmp_path / "m", metadata)
    with pytest.raises(UsageError, match=says):
        read_model(tmp_path / "m")


def test_an_absent_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model file"):
        read_model(tmp_path / "absent")


@pytest.mark.parametrize("name", ["side:x", "opaque:", "__metadata__"])
def test_a_tensor_under_a_reserved_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="rename it"):
        write_model(tmp_path / "m", Params.pack({name: np.ones(1)}))


def test_a_side_array_that_the_form_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = Params(np.ones(1, F32), Layout.of({"w": (1,)}), {"s": np.array(["text"])})
    with pytest.raises(UsageError, match="side array 's'"):
        write_model(tmp_path / "m", model)
    assert not (tmp_path / "m").exists()


def test_side_arrays_of_any_byte_order_and_stride_keep_their_values(tmp_path: Path) -> None:
    side = np.arange(6, dtype=">i4").reshape(2, 3).T
    write_model(tmp_path / "m", Params(np.ones(1, F32), Layout.of({"w": (1,)}), {"s": side, "t": np.array(3)}))
    back = read_model(tmp_path / "m").sides
    assert back["s"].tolist() == side.tolist()
    assert back["t"].shape == ()
