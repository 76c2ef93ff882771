"""Channel groups found from what a net computes: tied where they must be, cut where they can be, else named."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout
from fieldfare.work.submodel import axes

nets = pytest.importorskip("submodel_nets")
torch, nn = nets.torch, nets.nn
kinds = pytest.mark.parametrize("kind", nets.KINDS)
RATES = (0.5, 0.25, 0.125)


def cut(module, found, rate, example):
    from fieldfare.work.submodel.modules import smaller

    return smaller(module, found, found.sizes(rate), (example,))


def sizes(found):
    return {found.groups[g].name: found.groups[g].size for g in found.cuttable}


@kinds
def test_a_smaller_module_has_the_shapes_of_its_layout_and_computes(kind):
    module, example = nets.made(kind)
    found = axes(module, example)
    for rate in RATES:
        small = cut(module, found, rate, example)
        layout = found.layout_of(found.sizes(rate))
        assert layout == Layout.of({n: tuple(p.shape) for n, p in small.named_parameters()})
        assert small(example).shape == module(example).shape
        assert layout.size < found.layout.size
        assert found.sizes_of(layout) == found.sizes(rate)


@kinds
def test_the_index_set_is_ascending_and_as_long_as_the_layout_says(kind):
    module, example = nets.made(kind)
    found = axes(module, example)
    for rate in (1.0, *RATES):
        kept = [np.arange(n) for n in found.sizes(rate)]
        index, layout = found.index(kept), found.layout_of(found.sizes(rate))
        assert index.dtype == np.int64
        assert len(index) == layout.size
        assert (np.diff(index) > 0).all()
        assert (rate < 1.0) or (index == np.arange(found.layout.size)).all()


SILENT = ("mlp", "resnet", "vgg_group", "branches", "grouped", "lstm", "gru", "rnn", "cell", "gated")
"""Nets in which channels whose weights are all zero change nothing for the others."""


@pytest.mark.parametrize("kind", SILENT)
def test_a_smaller_net_computes_what_the_whole_one_does_with_all_other_weights_zero(kind):
    module, example = nets.made(kind)
    found = axes(module, example)
    rng = np.random.default_rng(0)
    vector = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    for rate in RATES:
        count = found.sizes(rate)
        for chosen in ("first", "any"):
            if chosen == "any" and any(g.unit > 1 for g in found.groups):
                continue
            kept = [
                np.arange(n) if chosen == "first" or n == g.size else np.sort(rng.permutation(g.size)[:n])
                for g, n in zip(found.groups, count, strict=True)
            ]
            if any(g.unit > n for g, n in zip(found.groups, count, strict=True)):
                continue  # a part of what a norm takes together: other statistics
            index = found.index(kept)
            masked = np.zeros_like(vector)
            masked[index] = vector[index]
            whole, small = copy.deepcopy(module).train(), cut(module, found, rate, example).train()
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(torch.from_numpy(masked), whole.parameters())
                torch.nn.utils.vector_to_parameters(torch.from_numpy(vector[index].copy()), small.parameters())
                np.testing.assert_allclose(small(example), whole(example), rtol=1e-4, atol=1e-5)


def test_residual_adds_tie_channels_across_blocks():
    module, example = nets.made("resnet")
    found = axes(module, example)
    assert sizes(found) == {
        "conv.weight[0]": 16, "block1_1.conv1.weight[0]": 16, "block2_1.conv1.weight[0]": 32,
        "block2_1.conv2.weight[0]": 32, "block3_1.conv1.weight[0]": 64, "block3_1.conv2.weight[0]": 64,
    }  # fmt: skip
    stream = found.params["conv.weight"][0]
    assert stream == found.params["block1_1.conv2.weight"][0] == found.params["block2_1.short.0.weight"][1]


def test_the_gates_of_a_recurrent_layer_are_cut_alike():
    module, example = nets.made("lstm")
    found = axes(module, example)
    (gates, _) = found.params["layer.weight_ih_l0"]
    assert len(gates) == 4
    assert len(set(gates)) == 1
    assert found.params["layer.weight_hh_l1"][1] == gates[:1] == found.params["out.weight"][1]


def test_attention_is_cut_by_whole_heads():
    module, example = nets.made("transformer")
    found = axes(module, example)
    assert sizes(found)["blocks.0.qkv.weight[0]"] == 4
    small = cut(module, found, 0.25, example)
    assert [block.heads for block in small.blocks] == [1, 1]
    assert small.blocks[0].qkv.weight.shape == (24, 8)
    module, example = nets.made("encoder")
    small = cut(module, axes(module, example), 0.5, example)
    first = small.encoder.layers[0]
    assert (first.self_attn.num_heads, first.self_attn.embed_dim, first.linear1.out_features) == (2, 16, 32)


def test_heads_as_wide_as_the_stream_allows_are_cut_with_the_stream():
    module, example = nets.made("tied")
    found = axes(module, example)
    assert sizes(found)["emb.weight[1]"] == 4
    assert set(sizes(found).values()) == {4}
    small = cut(module, found, 0.5, example)
    assert [block.heads for block in small.blocks] == [2, 2]
    assert small.out.weight is small.emb.weight
    assert small.out.weight.shape == (11, 16)
    assert small.blocks[0].mask.shape == (1, 1, 9, 9)
    module, example = nets.made("patches")
    found = axes(module, example)
    assert found.whole == {}
    assert cut(module, found, 0.5, example).place.shape == (1, 5, 16)


def test_a_flattened_image_is_channels_times_places():
    module, example = nets.made("vgg")
    found = axes(module, example)
    (segment,) = found.params["dense1.weight"][1]
    assert [found.groups[g].size for g in segment] == [64, 2, 2]
    kept = [np.arange(g.size) for g in found.groups]
    kept[segment[0]] = np.array([3])
    assert found.positions((segment,), kept).tolist() == [12, 13, 14, 15]


def test_grouped_and_depthwise_convolutions_are_cut_by_whole_groups():
    module, example = nets.made("branches")
    small = cut(module, axes(module, example), 0.5, example)
    assert (small.deep.in_channels, small.deep.groups, small.deep.weight.shape[1]) == (12, 12, 1)
    module, example = nets.made("grouped")
    small = cut(module, axes(module, example), 0.5, example)
    assert small.b.weight.shape[0] * small.b.groups < module.b.weight.shape[0] * module.b.groups


def test_inputs_and_outputs_stay_whole():
    module, example = nets.made("mlp")
    found = axes(module, example)
    small = cut(module, found, 0.125, example)
    assert (small[0].in_features, small[4].out_features) == (12, 5)
    assert found.whole == {}


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu().sort(dim=1)[0]).relu())


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.c(self.b(torch.nn.functional.layer_norm(self.a(x), (4 + 4,))).relu())


def test_a_layer_that_cannot_be_cut_is_named_with_the_reason():
    for module, why in ((Sorted(), "its order counts"), (Counted(), "does not follow its parameters")):
        found = axes(module, torch.randn(3, 12))
        assert why in found.whole["a"], found.whole
        assert "c" not in found.whole or module.__class__ is Counted
    assert sizes(axes(Sorted(), torch.randn(3, 12))) == {"b.weight[0]": 6}


def test_declared_layers_have_the_groups_of_the_same_torch_module():
    module, example = nets.made("mlp")
    declared = axes(ff.mlp(12, 20, 8, 5))
    watched = axes(module, example)
    for rate in (1.0, *RATES):
        a, b = (one.layout_of(one.sizes(rate)) for one in (declared, watched))
        assert a == b
    assert ff.mlp(12, 20, 8, 5).of(declared.layout_of(declared.sizes(0.5))).program.layers[1].inputs == 10


def test_watching_leaves_the_module_as_it_was():
    module, example = nets.made("vgg")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.random.get_rng_state()
    axes(module, example)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not module.conv1._forward_hooks


def test_a_layout_of_another_net_is_refused_in_one_line():
    module, example = nets.made("mlp")
    found = axes(module, example)
    odd = Layout.of({**dict(zip(found.layout.names, found.layout.shapes, strict=True)), "2.weight": (8, 19)})
    with pytest.raises(UsageError, match="where its other layers say"):
        found.sizes_of(odd)
    with pytest.raises(UsageError, match="that the net has not"):
        found.sizes_of(Layout.of({"other": (3,)}))
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        found.sizes(0.0)


def test_a_level_that_is_there_twice_is_refused():
    from fieldfare.work.submodel import submodels

    with pytest.raises(UsageError, match="1/2 is there twice"):
        submodels(ff.mlp(8, 4, 2), (1, 0.5, 0.5))
