"""Norms and the activations behind them, joined by the native core, against torch in float64, in each build."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from native_plans import BUILDS, Net, build
from test_native_pointwise import ACTIVATIONS, FLOATS, SEEDS, SHAPES, agree, normed, numbers

torch = pytest.importorskip("torch")

BENDS = ("relu", "hardtanh", "hardtanh above 0", "hardswish", "gelu")  # the last one is not joined


@pytest.fixture(scope="module", params=BUILDS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return build(request.param)


@pytest.mark.parametrize("kind", ["group_norm", "batch_norm"])
@settings(max_examples=40, deadline=None)
@given(
    bend=st.sampled_from(BENDS), shape=SHAPES, groups=st.integers(1, 3), params=st.integers(0, 2), seed=SEEDS,
    told=st.booleans(), others=st.sampled_from(["none", "norm", "input"]), offset=st.sampled_from([0.0, 3.0]),
)  # fmt: skip
def test_a_norm_and_the_activation_behind_it_are_torchs_whether_they_are_joined_or_not(
    core: ModuleType, kind: str, bend: str, shape: tuple[int, int, int], groups: int, params: int, seed: int,
    told: bool, others: str, offset: float,
) -> None:  # fmt: skip
    rows, positions, each = shape
    assume(rows * positions > 1 and positions * each > 1)
    net = Net(rows, positions, each * groups)
    some, ints = [net.weight((net.c,)) for _ in range(params)], [groups] if kind == "group_norm" else []
    name, floats = bend.split(" ")[0], FLOATS.get(bend, [])
    if told and bend != "gelu":  # as one op, by its own name
        y = norm = net.op(f"{kind}_{name}", [1], net.value(positions, net.c), some, ints, [1e-2, *floats])
    else:
        norm = net.op(kind, [1], net.value(positions, net.c), some, ints, [1e-2])
        y = net.op(name, [norm], net.value(positions, net.c), floats=floats)
    assume(others != "norm" or y != norm)
    if others != "none":  # then the norm's output is needed, or the gradient is added to what another wrote
        net.op("add", [y, norm if others == "norm" else 1], net.value(positions, net.c))
    vector = numbers(seed, net.size)
    vector[: rows * positions * net.c] += np.float32(offset)

    def reference(v: Any) -> Any:
        h = normed(kind, net, v, params, ints, 1e-2)
        out = ACTIVATIONS[bend](h)
        return out + h if others == "norm" else out + v[: h.numel()].reshape(out.shape) if others == "input" else out

    with torch.no_grad():  # near an edge float32 may be on its other side
        h = normed(kind, net, torch.tensor(vector, dtype=torch.float64), params, ints, 1e-2)
        edges = {"hardtanh": [-0.5, 6.0], "hardtanh above 0": [0.25, 2.0], "hardswish": [-3.0, 3.0]}.get(bend, [0.0])
        assume(all(float((h - edge).abs().min()) > 1e-5 for edge in edges))
    agree(core, net, vector, reference, seed, 1e-5)


@pytest.mark.parametrize(
    ("kind", "floats", "said"),
    [
        ("batch_norm_relu", [], "takes one eps"),
        ("batch_norm_hardtanh", [1e-5], "the lower and the upper one"),
        ("group_norm_hardtanh", [1e-5, 1.0, 0.0], "the lower and the upper one"),
        ("batch_norm_gelu", [1e-5], "there is no op batch_norm_gelu"),
    ],
)
def test_joined_ops_that_are_told_wrongly_are_refused(
    core: ModuleType, kind: str, floats: list[float], said: str
) -> None:
    net = Net(2, 3, 4)
    net.op(kind, [1], net.value(3, 4), [], [1], floats)
    with pytest.raises(ValueError, match=said):
        net.plan(core)


def test_an_activation_that_cannot_be_is_refused_behind_a_norm_too(core: ModuleType) -> None:
    net = Net(2, 3, 4)
    norm = net.op("batch_norm", [1], net.value(3, 4), floats=[1e-5])
    net.op("hardtanh", [norm], net.value(3, 4), floats=[1.0, 0.0])
    with pytest.raises(ValueError, match="the lower and the upper one"):
        net.plan(core)
    net = Net(2, 3, 4)
    norm = net.op("batch_norm", [1], net.value(3, 4), floats=[1e-5])
    net.op("relu", [norm], net.value(3, 5))
    with pytest.raises(ValueError, match="the shapes of input and output differ"):
        net.plan(core)
