"""Small nets that can be cut, ragged clients for them, and one device and one edge in a loop by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.work import Cohort
from fieldfare.models import resnet, vgg5
from fieldfare.work.net import Training
from fieldfare.work.plan import make_plan, passes_and_steps
from fieldfare.work.split import Split, SplitNet, split, split_net, split_works

torch = pytest.importorskip("torch")
nn = torch.nn

SIZES = (23, 1, 40, 12)
SGD = Training(
    lr=0.05, batch_size=8, epochs=2, momentum=0.9, weight_decay=1e-3, schedule="step", schedule_rounds=2, decay=0.1
)  # fmt: skip


def dense() -> Any:
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 10))


def small_vgg(norm: str = "batch") -> Any:
    return vgg5((1, 8, 8), norm=norm, widths=(8, 8, 8, 16), unflatten=True)


def small_resnet(norm: str = "batch") -> Any:
    return resnet((1, 8, 8), norm=norm, blocks=1, width=8, unflatten=True)


MODULES = {
    "dense": dense, "vgg": small_vgg, "vgg_group": lambda: small_vgg("group"),
    "vgg_alone": lambda: small_vgg("batch_alone"), "resnet": small_resnet,
    "resnet_group": lambda: small_resnet("group"),
}  # fmt: skip


def columns(total: int) -> dict[str, Any]:
    made = np.random.default_rng(5)
    return {"x": made.standard_normal((total, 64), dtype=np.float32), "y": made.integers(0, 10, total)}


def make(kind: str) -> SplitNet:
    return split_net(MODULES[kind], example=columns(2))


@cache
def net_of(kind: str) -> SplitNet:
    """One net of a kind for all tests: tracing takes longer than training."""
    return make(kind)


def data(sizes: tuple[int, ...] = SIZES) -> Block:
    total = sum(sizes)
    return Block(columns(total), np.random.default_rng(1).permutation(total), np.r_[0, np.cumsum(sizes)])


def keys(n: int, round_: int = 1) -> Any:
    return rng.keys(0, ("client", "split", round_), np.arange(n))


def cohort(model: Any, block: Block, keys: Any, at: tuple[int, ...] = (0,), **more: Any) -> Cohort:
    """Clients `at` of `block`; `model` float32 `[p]`, or one row each `[n, p]`."""
    parts = [block.rows[block.offsets[i] : block.offsets[i + 1]] for i in at]
    mine = Block(block.columns, np.concatenate(parts), np.r_[0, np.cumsum([len(part) for part in parts])])
    models = np.atleast_2d(model)
    row = np.arange(len(at)) if len(models) > 1 else np.zeros(len(at), np.int64)
    from fieldfare.core.params import Layout

    layout = Layout(("half",), ((models.shape[1],),))
    return Cohort(models, row, layout, np.asarray(at), keys[list(at)], mine, **more)


def whole(net: SplitNet, block: Block, keys: Any, i: int, training: Training, round_: int = 1) -> Any:
    """Client i's end model and mean loss, trained whole."""
    mine = block.part(i, i + 1)
    plan = make_plan(mine, keys[i : i + 1], training)
    from fieldfare.work.net import Drift

    fit = net.fit(
        net.init(0).vector[None], np.zeros(1, np.int64), mine, plan, keys[i : i + 1], training,
        training.lr_at(round_), Drift(),
    )  # fmt: skip
    return fit.params[0], fit.loss[0]


def by_hand(one: Split, block: Block, keys: Any, i: int, round_: int = 1, cuts: Any = None) -> Any:
    """Client i's end model and mean loss, trained as device and edge; `cuts`: the cut of each batch, if it changes."""
    works = split_works(one.net, one.training)
    device, server = (half.vector for half in one.halves(one.net.init(0)))
    own, other = one.slots()
    losses = []
    for seq in range(int(passes_and_steps(block.sizes[i : i + 1], one.training)[1][0])):
        if cuts is not None and cuts[seq] != one.cut.number:
            to = replace(one, cut=one.net.cut(cuts[seq]))
            device, server, own, other = one.recut(to, device, server, own, other)
            one = to
        config = {"seq": seq, "round": round_, "cut": one.cut.number}
        if one.tail is not None:
            config["tail"] = one.tail.number

        def ask(name: str, model: Any, config: Any = config, **inputs: Any) -> Any:
            out = works[name](cohort(model, block, keys, (i,), config=config, inputs=inputs))
            return {leaf: rows[0] for leaf, rows in out.leaves.items()}, out.metrics

        up, _ = ask("split/forward", device)
        if one.tail is None:
            sent = up
        else:
            mid, _ = ask("split/middle", server, **up)
            end, told = ask("split/tail", device, **mid, slots=own)
            device, own = end["model"], end["slots"]
            sent = {**up, "g": end["g"]}
        done, said = ask("split/step", server, **sent, slots=other)
        server, other = done["model"], done["slots"]
        losses.append((said if one.tail is None else told)["loss"][0])
        down, _ = ask("split/backward", device, g=done["g"], slots=own)
        device, own = down["model"], down["slots"]
    return one.join(device, server).vector, float(np.mean(losses))


__all__ = [
    "MODULES",
    "SGD",
    "SIZES",
    "by_hand",
    "cohort",
    "columns",
    "data",
    "dense",
    "keys",
    "make",
    "net_of",
    "nn",
    "split",
    "torch",
    "whole",
]  # fmt: skip
