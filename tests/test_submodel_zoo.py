"""Layers of many kinds: no net is cut wrongly, and what cannot be cut is named with the reason.

Channels that may be cut are alike to the net: where two change places in all parameters that have them, it computes
what it did, and so does a smaller one. That holds for any net, with norms and softmax over channels too.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.work.submodel import axes, export, submodels

zoo = pytest.importorskip("submodel_zoo")
import submodel_zoo_sequences  # noqa: E402, F401

torch, nn = zoo.torch, zoo.nn
kinds = pytest.mark.parametrize("kind", zoo.ZOO)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
RATES = (0.75, 0.5, 0.25, 0.125)

WHOLE = {
    "lrn": "taken as places", "emb_maxnorm": "embedding_renorm", "bilinear": "_trilinear", "eca": "taken as places",
    "convt_grouped": "a transposed convolution in groups", "channelshuffle": "channel_shuffle", "gram": "whole blocks",
    "outer_same": "whole blocks", "sort": "its order counts", "topk": "topk", "constant_shape": "arange",
    "perm_index": "index", "every_other": "every so many", "roll": "its order counts", "roll_flat": "roll",
    "temporal_shift": "a number that forward holds", "inplace_add_slice": "does not follow its parameters",
    "csp": "does not follow", "shuffle_bare": "a number that forward holds", "rope": "a constant of the net",
    "swin": "where there are fewer", "spectral": "vdot", "fnet": "_fft_c2c", "eye_shape": "eye",
    "bucket": "whole blocks", "grouped": "a view across", "inception": "begin inside a group", "outer": "whole blocks",
    "gqa_expand": "does not follow", "relbias": "does not follow", "moe": "stacked",
    "ones_mask": "a number that forward holds", "select_channel": "chosen by number", "padchannels": "taken as places",
    "maxout": "does not follow", "unflatten": "does not follow", "slice_skip": "does not follow",
}  # fmt: skip
"""Nets with layers that stay whole, and why."""


def made(kind):
    torch.manual_seed(0)
    module, example = zoo.ZOO[kind]()
    for part in module.modules():
        if isinstance(part, nn.Dropout | nn.Dropout2d | nn.RReLU):
            part.p = part.lower = part.upper = 0.25 if isinstance(part, nn.RReLU) else 0.0
    return module.train(), example if isinstance(example, tuple) else (example,)


def computed(module, example):
    torch.manual_seed(3)
    with torch.no_grad():
        return module(*example)


def reordered(module, small, found, kept):
    """`small` with the channels `kept[g]` of `module`, in that order."""
    whole = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    out = copy.deepcopy(small)
    with torch.no_grad():
        for name, own in (*out.named_parameters(), *out.named_buffers()):
            tensor = whole[name]
            for d, axis in enumerate({**found.params, **found.fixed}[name]):
                if tensor.shape[d] > 1:
                    tensor = tensor.index_select(d, torch.from_numpy(np.array(found.positions(axis, kept))))
            own.copy_(tensor)
    return out


def shuffled(found, sizes, group, rng):
    kept = [np.arange(n) for n in sizes]
    unit = found.groups[group].unit if sizes[group] >= found.groups[group].unit else 1
    blocks = rng.permutation(sizes[group] // unit)
    kept[group] = (blocks[:, None] * unit + np.arange(unit)).reshape(-1)
    return kept


@kinds
def test_channels_that_may_be_cut_are_alike_to_the_net_and_to_smaller_ones(kind):
    from fieldfare.work.submodel.modules import smaller

    module, example = made(kind)
    found, rng = axes(module, example), np.random.default_rng(0)
    for rate in (1.0, *RATES):
        sizes = found.sizes(rate)
        small = smaller(module, found, sizes, example).train()
        wanted = computed(small, example)
        for g in found.cuttable:
            if sizes[g] < 2:
                continue
            other = reordered(module, small, found, shuffled(found, sizes, g, rng))
            torch.testing.assert_close(computed(other, example), wanted, rtol=2e-3, atol=2e-3)


@kinds
def test_a_smaller_net_trains_and_a_level_taken_home_computes_what_that_part_of_the_whole_does(kind):
    from fieldfare.work.submodel.modules import smaller

    module, example = made(kind)
    out = computed(module, example)
    columns = {f"x{i}": one.numpy() for i, one in enumerate(example)} | {"y": np.zeros(out.shape, np.float32)}
    net = ff.torch_net(module, loss="mse", example=columns, x=tuple(columns)[:-1])
    family = submodels(net, RATES)
    model = family.init(0)
    for rate in (1.0, *RATES):
        level = export(family, model, rate)
        kept = [np.arange(n) for n in family.axes.sizes(rate)]
        assert np.array_equal(level.params.vector, model.vector[family.axes.index(kept)])
        part = smaller(module, family.axes, family.axes.sizes(rate), example).train()
        torch.testing.assert_close(computed(level.module().train(), example), computed(part, example))
        value = part(*example)
        (value * torch.randn(value.shape)).sum().backward()
        slopes = [p.grad for p in part.parameters() if p.grad is not None]
        assert slopes
        assert all(slope.isfinite().all() for slope in slopes)


@kinds
def test_what_stays_whole_is_named_with_the_reason(kind):
    module, example = made(kind)
    found = axes(module, example)
    if kind in WHOLE:
        assert any(WHOLE[kind] in why for why in found.whole.values()), found.whole
    else:
        assert found.whole == {}, found.whole
        assert found.cuttable


def test_norms_that_take_channels_of_several_layers_together_keep_whole_groups_of_them():
    class Cat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 24, 3), nn.GroupNorm(4, 32)
            self.out = nn.Conv2d(32, 5, 6)

        def forward(self, x):
            return self.out(self.norm(torch.cat([self.a(x), self.b(x)], 1))).flatten(1)

    from fieldfare.work.submodel.modules import smaller

    module, example = Cat(), torch.randn(3, 1, 8, 8)
    found = axes(module, example)
    sizes = {found.groups[g].name: found.groups[g].keep(0.125) for g in found.cuttable}
    assert sizes == {"a.weight[0]": 8, "b.weight[0]": 8}
    for rate in (0.75, 0.5, 0.25):
        small = smaller(module, found, found.sizes(rate), (example,))
        assert small.norm.num_channels // small.norm.num_groups == 8
        assert small(example).shape == (3, 5)


def test_a_projection_that_would_be_no_smaller_than_the_hidden_state_is_refused():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.LSTM(8, 16, batch_first=True, proj_size=6), nn.Linear(6, 5)

        def forward(self, x):
            return self.out(self.layer(x)[0][:, -1])

    rows = {"x": np.zeros((3, 7, 8), np.float32), "y": np.zeros(3, int)}
    family = submodels(Projected(), (1, 0.25, 0.06), example=rows)
    assert family.at(0.25).module(family.cut(family.init(0), 0.25)).layer.proj_size == 2
    with pytest.raises(UsageError, match="layer a projection of 1 of 1 hidden channels"):
        family.at(0.06)
