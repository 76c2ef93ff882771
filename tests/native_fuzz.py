"""Random plans of the native core, right ones and wrong ones, run to their end. Needs NumPy alone.

A plan is grown op by op, then numbers of it are changed at random. The core must refuse it (ValueError), or run it:
then a client's result must be the same bits alone, beside others, on one thread and on several, in a used arena and a
fresh one. As a program it takes a range of seeds, for runs under a sanitizer: `python tests/native_fuzz.py avx2 0 200`.
"""

from __future__ import annotations

import importlib
import random
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOT_FOR_ANY_DATA = ("token", "statistics of a batch")  # what a right plan may say of the data
REFUSED = (ValueError, TypeError, OverflowError)  # a number that fits no int is refused by the bindings
LOSSES = ("cross_entropy", "masked_cross_entropy", "mse", "bce", "l1")
MOST = 200_000  # floats of an accepted plan that is run


def padded(c: int) -> int:
    return -(-c // 16) * 16


@dataclass
class Draft:
    """The arguments of a plan, as lists that can be changed."""

    values: list[list[Any]] = field(default_factory=list)
    params: list[list[Any]] = field(default_factory=list)
    ops: list[list[Any]] = field(default_factory=list)
    inputs: list[list[Any]] = field(default_factory=list)
    loss: str = "cross_entropy"
    output: int = 0
    index: list[int] = field(default_factory=list, repr=False)
    constants: list[float] = field(default_factory=list, repr=False)
    size: int = 0
    kinds: set[str] = field(default_factory=set)
    channels: int = 24  # of convolutions, at most
    extra: int = 0  # lanes more than a value needs: ops may refuse that

    def wide(self, c: int) -> int:
        return padded(c) + self.extra

    def value(self, h: int, w: int, c: int) -> int:
        self.values.append([h, w, c, self.wide(c), False])
        return len(self.values) - 1

    def weight(self, rng: random.Random, size: int, c: int, ld: int) -> int:
        """A parameter whose lanes c..ld are padding; sometimes frozen."""
        trained = rng.random() < 0.9
        size = padded(size)
        at = len(self.index)
        for i in range(size):
            if i % ld >= c:
                self.index.append(-1)
            elif trained:
                self.index.append(self.size)
                self.size += 1
            else:
                self.constants.append(rng.uniform(-1, 1))
                self.index.append(-1 - len(self.constants))
        self.params.append([at, size, trained])
        return len(self.params) - 1

    def put(self, kind: str, ins: list[int], out: int, params: list[int], ints: list[int], floats: list[float]) -> int:
        self.ops.append([kind, ins, out, params, ints, floats])
        self.kinds.add(kind)
        return out

    def plan(self, core: ModuleType) -> Any:
        return core.Plan(
            [tuple(v) for v in self.values], [tuple(p) for p in self.params], [tuple(o) for o in self.ops],
            [tuple(i) for i in self.inputs], self.loss, self.output, np.array(self.index, np.int64),
            np.array(self.constants, np.float32), self.size,
        )  # fmt: skip


FLOATS = {
    "leaky_relu": [0.1], "hardtanh": [0.0, 6.0], "clamp": [-1.0, 0.5], "elu": [1.0, 1.0, 1.0], "softplus": [1.0, 20.0],
}  # fmt: skip
SAME = (
    "relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "hardsigmoid", "hardswish", *FLOATS, "dropout", "add",
    "mul",
)  # fmt: skip
NORMS = ("group_norm", "layer_norm", "batch_norm", "affine")
POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "mean_positions")
GATES = ("mul_channels", "add_channels")
OTHERS = (
    *GATES,
    "concat",
    "channels",
    "linear",
    "linear_each",
    "conv2d",
    "lstm",
    "gru",
    "attention",
    "offset",
    "select",
    "flatten",
)
JOINED = ("conv2d_max_pool", "group_norm_relu", "batch_norm_hardtanh", "group_norm_hardswish")
KINDS = (*SAME, *NORMS, *POOLS, *OTHERS)


def grown(rng: random.Random, extra: int = 0) -> Draft:
    """A right plan of a few ops."""
    d = Draft(extra=extra)
    if rng.random() < 0.25:
        h, vocabulary, c = rng.randint(1, 5), rng.randint(1, 9), rng.randint(1, 20)
        d.values.append([h, 1, 1, 1, True])
        d.inputs.append([0, 2, False])
        table = d.weight(rng, vocabulary * d.wide(c), c, d.wide(c))
        at = d.put("embedding", [0], d.value(h, 1, c), [table], [rng.choice([-1, 0])], [])
    else:
        h, w, c = rng.randint(1, 7), rng.choice([1, rng.randint(1, 7)]), rng.randint(1, 20)
        d.values.append([h, w, c, c, False])
        d.inputs.append([0, rng.choice([0, 0, 1]), rng.random() < 0.5])
        at = 0
    kinds = KINDS
    if not d.ops and rng.random() < 0.2:  # a larger picture: convolutions have other ways there
        h, w, c = rng.randint(4, 14), rng.randint(4, 14), rng.choice([3, 16, 24, 32])
        d.values[0][:4] = [h, w, c, c]
        kinds, d.channels = ("conv2d", "conv2d", "conv2d", "relu", "group_norm", "max_pool", "add"), 48
    for _ in range(rng.randint(1, 5)):
        at = step(d, rng, rng.choice(kinds), at)
    if kinds is not KINDS:
        at = step(d, rng, "mean_positions", at)
    d.loss = rng.choice(LOSSES)
    if not d.ops or d.values[at][3] % 16 or rng.random() < 0.6:  # the output is filled up to 16
        at = step(d, rng, rng.choice(["linear", "linear_each"]), at)
    d.output = at
    return d


def step(d: Draft, rng: random.Random, kind: str, at: int) -> int:
    """One op more, of this kind if it can follow; the value to go on from."""
    h, w, c, ld, _ = d.values[at]
    if kind in SAME:
        alike = [i for i, v in enumerate(d.values) if v[:3] == [h, w, c] and not v[4]]
        ins = [at, rng.choice(alike)] if kind in ("add", "mul") else [at]
        rng.shuffle(ins)
        floats = [*{**FLOATS, "dropout": [rng.choice([0.0, 0.3, 1.0])]}.get(kind, [])]
        return d.put(kind, ins, d.value(h, w, c), [], [0] if kind == "dropout" else [], floats)
    if kind in GATES:
        gates = [i for i, v in enumerate(d.values) if v[:3] == [1, 1, c] and not v[4]]
        if not gates or rng.random() < 0.3:
            gates = [d.put("mean_positions", [at], d.value(1, 1, c), [], [], [])]
        return d.put(kind, [at, rng.choice(gates)], d.value(h, w, c), [], [], [])
    if kind == "concat":
        beside = [i for i, v in enumerate(d.values) if v[:2] == [h, w] and not v[4]]
        ins = [at, *(rng.choice(beside) for _ in range(rng.randint(0, 3)))]
        rng.shuffle(ins)
        return d.put(kind, ins, d.value(h, w, sum(d.values[i][2] for i in ins)), [], [], [])
    if kind == "channels":
        first, step_ = rng.randrange(c), rng.choice([1, 1, 1, 2])
        some = (
            [*range(first, c, step_)] if rng.random() < 0.6 else [rng.randrange(c) for _ in range(rng.randint(1, 20))]
        )
        return d.put(kind, [at], d.value(h, w, len(some)), [], some, [])
    if kind in NORMS:
        over = rng.randint(1, 2)
        wide = h * w * d.wide(c) if kind == "layer_norm" and over == 2 else d.wide(c)
        some = [d.weight(rng, wide, c, d.wide(c)) for _ in range(2 if kind == "affine" else rng.randint(0, 2))]
        groups = rng.choice([g for g in range(1, c + 1) if c % g == 0])
        ints = {"group_norm": [groups], "layer_norm": [over]}.get(kind, [])
        at = d.put(kind, [at], d.value(h, w, c), some, ints, [] if kind == "affine" else [1e-5])
        if rng.random() < 0.3:  # an activation behind it may be joined with it
            return step(d, rng, rng.choice(["relu", "hardtanh", "hardswish"]), at)
        return at
    if kind in ("linear", "linear_each"):
        each = int(kind == "linear_each" or h == w == 1)
        n = rng.randint(1, 20)
        k = ld if each else h * w * ld
        params = [d.weight(rng, k * d.wide(n), n, d.wide(n))]
        if rng.random() < 0.7:
            params.append(d.weight(rng, d.wide(n), n, d.wide(n)))
        out = d.value(h, w, n) if each else d.value(1, 1, n)
        floats = [rng.choice([1.0, 0.5])] if rng.random() < 0.5 else []
        return d.put("linear", [at], out, params, [k, rng.randint(0, 1), each], floats)
    if kind in ("conv2d", "max_pool", "avg_pool"):
        dh, dw = (rng.randint(1, 2), rng.randint(1, 2)) if kind == "conv2d" and rng.random() < 0.3 else (1, 1)
        ph, pw = rng.randint(0, 2), rng.randint(0, 2)
        kh, kw = rng.randint(1, 4), rng.randint(1, 4)
        if kind != "conv2d":
            ph, pw = min(ph, kh // 2), min(pw, kw // 2)
        sh, sw = (kh, kw) if rng.random() < 0.4 else (rng.randint(1, 3), rng.randint(1, 3))
        oh, ow = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        if oh < 1 or ow < 1 or h + 2 * ph < dh * (kh - 1) + 1 or w + 2 * pw < dw * (kw - 1) + 1:
            return at
        if kind != "conv2d":
            flag = rng.randint(0, 1)
            return d.put(kind, [at], d.value(oh, ow, c), [], [kh, kw, sh, sw, ph, pw, flag], [])
        groups = rng.choice([1, 1, c, *[g for g in range(1, c + 1) if c % g == 0]])
        n = groups * rng.randint(1, max(1, d.channels // groups))
        if d.channels > 24 and rng.random() < 0.6:  # as nets have them
            kh, kw, sh, sw, ph, pw, dh, dw, groups, n = 3, 3, 1, 1, 1, 1, 1, 1, 1, rng.choice([16, 32, 48])
            oh, ow = h, w
        if rng.random() < 0.3 and groups > 1:
            n = groups = c
        if groups == 1:
            params = [d.weight(rng, kh * kw * ld * d.wide(n), n, d.wide(n))]
        elif groups == c == n:
            params = [d.weight(rng, kh * kw * d.wide(c), c, d.wide(c))]
        else:
            size = kh * kw * c * (n // groups)
            params = [d.weight(rng, size, padded(size), padded(size))]
        if rng.random() < 0.7:
            params.append(d.weight(rng, d.wide(n), n, d.wide(n)))
        ints = [kh, kw, sh, sw, ph, pw, dh, dw, groups, rng.randint(0, 1)]
        at = d.put("conv2d", [at], d.value(oh, ow, n), params, ints, [])
        if rng.random() < 0.5:  # a pool behind it may be fused with it
            k = rng.randint(1, 3)
            if oh >= k and ow >= k:
                out = d.value(oh // k, ow // k, n)
                return d.put("max_pool", [at], out, [], [k, k, k, k, 0, 0, rng.randint(0, 1)], [])
        return at
    if kind == "adaptive_avg_pool":
        return d.put(kind, [at], d.value(rng.randint(1, h), rng.randint(1, w), c), [], [], [])
    if kind == "mean_positions":
        return d.put(kind, [at], d.value(1, 1, c), [], [], [])
    if kind in ("lstm", "gru"):
        if w != 1:
            return at
        n, gates = rng.randint(1, 20), 4 if kind == "lstm" else 3
        wide = d.wide(n)
        params = [d.weight(rng, rows * gates * wide, n, wide) for rows in (ld, wide)]
        if rng.random() < 0.7:
            params += [d.weight(rng, gates * wide, n, wide) for _ in range(2)]
        return d.put(kind, [at], d.value(h, 1, n), params, [], [])
    if kind == "attention":
        if w != 1:
            return at
        keys = rng.choice([i for i, v in enumerate(d.values) if v[1:3] == [1, c] and not v[4]])
        like = rng.choice([i for i, v in enumerate(d.values) if v[:3] == d.values[keys][:3] and not v[4]])
        ints = [rng.choice([g for g in range(1, c + 1) if c % g == 0]), rng.randint(0, 1), 0]
        return d.put(kind, [at, keys, like], d.value(h, 1, c), [], ints, [c**-0.5, rng.choice([0.0, 0.3])])
    if kind == "offset":
        return d.put(kind, [at], d.value(h, w, c), [d.weight(rng, h * w * d.wide(c), c, d.wide(c))], [], [])
    if kind == "select":
        return d.put(kind, [at], d.value(1, 1, c), [], [rng.randint(-h * w, h * w - 1)], [])
    return d.put("flatten", [at], d.value(1, 1, h * w * c), [], [], [])


def changed(rng: random.Random, number: Any) -> Any:
    """Another number: near it, or at an edge."""
    if isinstance(number, bool):
        return not number
    if isinstance(number, float):
        return rng.choice([0.0, -1.0, 1.0, 0.5, 1e30, float("nan"), float("inf"), -number])
    near = [number - 1, number + 1, number + 16, number - 16, number * 2, number // 2, -number]
    edges = [0, 1, -1, 2, 15, 16, 17, 255, 2**16, 2**24, 2**31 - 1, 2**31, -(2**31), 2**62]
    return rng.choice([*near, *near, *edges])


def spoil(d: Draft, rng: random.Random) -> None:
    """Changes something of the plan."""
    what = rng.choice([*["ops"] * 8, "values", "values", "params", "inputs", "output", "index", "size", "whole"])
    if what == "output":
        d.output = changed(rng, d.output)
    elif what == "size":
        d.size = changed(rng, d.size)
    elif what == "index" and d.index:
        i = rng.randrange(len(d.index))
        d.index[i] = rng.choice([changed(rng, d.index[i]), d.index[rng.randrange(len(d.index))]])
        if rng.random() < 0.2:
            del d.index[rng.randrange(len(d.index)) :]
    elif what == "whole":  # an op or a value twice, away, elsewhere
        rows = rng.choice([d.values, d.params, d.ops, d.inputs])
        if rows:
            row = rows.pop(rng.randrange(len(rows)))
            if rng.random() < 0.7:
                rows.insert(rng.randint(0, len(rows)), [*row])
                if rng.random() < 0.5:
                    rows.insert(rng.randint(0, len(rows)), [*row])
    elif what == "ops" and d.ops:
        op = rng.choice(d.ops)
        part = rng.randrange(6)
        if part == 0:
            op[0] = rng.choice([*KINDS, *JOINED, "embedding", ""])
        elif part == 2:
            op[2] = changed(rng, op[2])
        else:
            some = op[part]
            if some and rng.random() < 0.8:
                i = rng.randrange(len(some))
                some[i] = changed(rng, some[i])
            elif some and rng.random() < 0.5:
                some.pop()
            else:
                some.append(1.0 if part == 5 else rng.randint(-1, 4))
    else:
        rows = {"values": d.values, "params": d.params, "inputs": d.inputs}.get(what, d.values)
        if rows:
            row = rng.choice(rows)
            i = rng.randrange(len(row))
            row[i] = changed(rng, row[i])


def is_small(d: Draft) -> bool:
    """Whether an accepted plan can be run here; wrong shapes may be right, but large."""
    floats = sum(v[0] * v[1] * v[3] for v in d.values)
    return floats + len(d.index) <= MOST and all(o[0] != "linear" or o[4][0] <= MOST for o in d.ops)


def columns_of(d: Draft, rng: np.random.Generator, rows: int) -> list[NDArray[Any]]:
    """Data that fits the plan's inputs."""
    columns: list[NDArray[Any]] = []
    for value, kind, _ in d.inputs:
        h, w, c, _, _ = d.values[value]
        shape = (rows, h * w * c)
        if kind == 2:
            columns.append(rng.integers(0, 2, shape))
        elif kind == 1:
            columns.append(rng.integers(0, 256, shape).astype(np.uint8))
        else:
            columns.append(rng.standard_normal(shape).astype(np.float32))
    return columns


def run(core: ModuleType, d: Draft, plan: Any, seed: int) -> None:
    """Every entry of the core on an accepted plan; errors other than refusals, or bits that differ, are failures."""
    rng = np.random.default_rng(seed)
    total, batch = 24, int(rng.integers(1, 6))
    columns = columns_of(d, rng, total)
    h, w, c, _, _ = d.values[d.output]
    labelled = d.loss.endswith("cross_entropy")
    if labelled:
        y = rng.integers(0, c, (total, h * w))
        y[rng.random(y.shape) < 0.1] = -100
    else:
        y = rng.random((total, h * w * c)).astype(np.float32)
    size = d.size
    models = rng.standard_normal((2, size)).astype(np.float32) * np.float32(0.2)
    per = rng.integers(0, 7, 4)
    steps = np.where(per > 0, rng.integers(0, 4, 4), 0)
    batches = np.maximum(-(-per // batch), 1)
    taken = steps // batches * per + np.minimum(steps % batches * batch, per)
    begin = np.concatenate([[0], np.cumsum(taken)])
    rows = rng.integers(0, total, int(begin[-1]))
    keys = rng.integers(0, 2**63, 4).astype(np.uint64)
    plain = {
        "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "nesterov": False, "adam": False,
        "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "half": False,
    }  # fmt: skip
    fancy: dict[str, Any] = plain | dict(
        [("momentum", 0.9), ("nesterov", True)] if rng.random() < 0.5 else [("adam", True)], clip_norm=1.0
    )
    clip = float(rng.choice([0.0, 0.1]))
    settings: dict[str, Any] = plain if rng.random() < 0.5 else fancy
    settings = settings | {"half": core.half() and rng.random() < 0.3}
    if d.loss == "masked_cross_entropy":
        y = np.abs(y) % c

    def fit(which: list[int], threads: int) -> tuple[Any, ...]:
        n = len(which)
        parts = [rows[begin[i] : begin[i + 1]] for i in which]
        bounds = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        mine = np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.int64)
        out, loss, sum_, refused = (
            np.zeros((n, size), np.float32),
            np.zeros(n),
            np.zeros(size, np.int64),
            np.zeros(n, np.uint8),
        )
        fold = (2.0**-24, 2.0**30, clip, np.ones(n, np.int64), sum_, refused)
        at = np.array(which)
        bad = plan.fit(
            models, at % 2, columns, y, mine, bounds, steps[at], per[at], batch, keys[at], settings, 0.0, None, None,
            None, None, None, out, fold, loss, threads,
        )  # fmt: skip
        return bad, out, loss, sum_, refused

    def same(one: Any, other: Any) -> None:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

    if size:
        ids = [0, 1, 2, 3]
        everyone = fit(ids, 1)
        for threads in (2, 4):
            again = fit(ids, threads)
            assert (again[0][0] < 0) == (everyone[0][0] < 0)
            if everyone[0][0] < 0:  # else some client's examples are refused: the first that is come to
                for one, other in zip(everyone, again, strict=True):
                    same(one, other)
        if everyone[0][0] < 0:
            for i in ids:
                alone = fit([i], 1)
                same(everyone[1][i], alone[1][0])
                same(everyone[2][i], alone[2][0])
    offsets = np.array([0, 5, 5, 24])
    sums = [[np.zeros(3) for _ in range(3)] for _ in range(2)]
    for threads, into in zip((1, 3), sums, strict=True):
        bad = plan.evaluate(models, np.array([0, 1, 1]), columns, y, np.arange(total), offsets, *into, threads)
    if bad[0] < 0:
        same(sums[0], sums[1])
    some = np.arange(7)
    outputs = [np.zeros((7, h * w * c), np.float32) for _ in range(2)]
    for one in outputs:
        plan.forward(models[0], columns, some, True, one)
    same(*outputs)
    grads = [np.zeros(size, np.float32) for _ in range(2)]
    losses = [plan.gradient(models[1], columns, y, some, 3, 1, grad) for grad in grads]
    same(losses[0], losses[1])
    same(*grads)
    # one plain step is one step along that gradient, though then it is taken where the gradient is made
    if size and np.isfinite(grads[0]).all():
        out, seven = np.zeros((1, size), np.float32), np.array([7])
        plan.fit(
            models[1:], np.zeros(1, np.int64), columns, y, some, np.array([0, 7]), np.ones(1, np.int64), seven, 7,
            np.array([3], np.uint64), plain, 0.0, None, None, None, None, None, out, None, np.zeros(1), 1,
        )  # fmt: skip
        plan.gradient(models[1], columns, y, some, 3, 0, grads[0])
        if d.loss != "masked_cross_entropy":  # which knows the classes of a client only
            step = models[1] - np.float32(0.05) * grads[0]
            tolerance = 1e-6 + 1e-6 * float(np.abs(grads[0]).max())
            np.testing.assert_allclose(out[0], step, rtol=1e-6, atol=tolerance)


def fuzz(core: ModuleType, seed: int) -> tuple[Draft, str]:
    """One random plan, changed or not, and what came of it: "ran", "large", or "refused: why"."""
    rng = random.Random(seed)
    extra = rng.choice([0, 0, 0, 0, 16])
    d = grown(rng, extra)
    wrong = rng.choice([0, 0, 1, 1, 2, 4])
    for _ in range(wrong):
        spoil(d, rng)
    try:
        plan = d.plan(core)
    except REFUSED as error:
        if not wrong and not extra:
            raise AssertionError(f"seed {seed}: a right plan is refused: {error}: {d}") from error
        return d, f"refused: {error}"
    if not is_small(d):
        return d, "large"
    try:
        run(core, d, plan, seed)
    except ValueError as error:  # tokens beyond a table, say
        if not wrong and not any(word in str(error) for word in NOT_FOR_ANY_DATA):
            raise AssertionError(f"seed {seed}: a right plan does not run: {error}: {d}") from error
        return d, f"refused: {error}"
    return d, "ran"


def asked_wrongly(core: ModuleType, seed: int) -> str:
    """A right plan that is asked for something, some of whose arguments are changed: "ran" or "refused: why"."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    d = grown(rng)
    while not d.size or not is_small(d):
        d = grown(rng)
    plan = d.plan(core)
    n, total, size = rng.randint(1, 4), rng.randint(1, 12), d.size
    h, w, c, _, _ = d.values[d.output]
    columns = columns_of(d, numbers, total)
    y: Any = numbers.integers(0, c, (total, h * w))
    if not d.loss.endswith("cross_entropy"):
        y = numbers.random((total, h * w * c)).astype(np.float32)
    per, steps, batch = numbers.integers(1, 5, n), numbers.integers(0, 4, n), rng.randint(1, 4)
    begin = np.concatenate([[0], np.cumsum(per * steps)])
    float32, one = np.float32, rng.random() < 0.5
    settings = {
        "lr": 0.05, "momentum": rng.choice([0.0, 0.9]), "weight_decay": 0.0, "clip_norm": 0.0, "nesterov": False,
        "adam": one, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "half": core.half() and rng.random() < 0.3,
    }  # fmt: skip
    slots = 2 * size + 1 if one else size if settings["momentum"] else 0
    asks: dict[str, dict[str, Any]] = {
        "fit": {
            "start": numbers.standard_normal((2, size)).astype(float32), "row": numbers.integers(0, 2, n),
            "columns": columns, "y": y, "rows": numbers.integers(0, total, int(begin[-1])), "begin": begin,
            "steps": steps, "per_epoch": per, "batch": batch, "keys": numbers.integers(0, 9, n).astype(np.uint64),
            "settings": settings, "mu": rng.choice([0.0, 0.1]), "ref": numbers.random((3, size)).astype(float32),
            "ref_row": numbers.integers(0, 3, n), "a": numbers.random((rng.choice([1, n]), size)).astype(float32),
            "mask": numbers.random(size) < 0.5, "moments": np.zeros((n, slots), float32) if slots else None,
            "out": np.zeros((n, size), float32),
            "fold": rng.choice([None, (2.0**-32, 2.0**20, rng.choice([0.0, 0.1]), numbers.integers(0, 9, n),
                                       np.zeros(size, np.int64), np.zeros(n, np.uint8))]),
            "loss": np.zeros(n), "threads": rng.randint(1, 3),
        },
        "evaluate": {
            "models": numbers.standard_normal((2, size)).astype(float32), "row": numbers.integers(0, 2, n),
            "columns": columns, "y": y, "rows": np.arange(total),
            "offsets": np.linspace(0, total, n + 1).astype(np.int64), "loss": np.zeros(n), "right": np.zeros(n),
            "counted": np.zeros(n), "threads": 2,
        },
        "gradient": {
            "vector": np.zeros(size, float32), "columns": columns, "y": y, "rows": np.arange(total), "key": 1,
            "step": 0, "grad": np.zeros(size, float32),
        },
        "forward": {
            "vector": np.zeros(size, float32), "columns": columns, "rows": np.arange(total), "train": True,
            "out": np.zeros((total, h * w * c), float32),
        },
    }  # fmt: skip
    fold = [2.0**-24, 2.0**30, 0.0, np.ones(n, np.int64), np.zeros(size, np.int64), np.zeros(n, np.uint8)]
    if rng.random() < 0.5:
        asks["fit"]["fold"] = tuple(fold)
    name = rng.choice(["fit", "fit", "fit", *asks])
    ask = asks[name]
    wrong = rng.choice([0, 1, 1, 2])
    for _ in range(wrong):
        key = rng.choice(list(ask))
        ask[key] = another(rng, ask[key])
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # arrays of other kinds are turned into the core's
            getattr(plan, name)(**ask)
    except (*REFUSED, KeyError) as error:
        if not wrong and not any(word in str(error) for word in NOT_FOR_ANY_DATA):
            raise AssertionError(f"seed {seed}: a right {name} is refused: {error}: {d}") from error
        return f"refused: {error}"
    return "ran"


def another(rng: random.Random, value: Any) -> Any:
    """Another argument of a call: an array that is shorter, longer, of another kind, or has another number in it."""
    if isinstance(value, list):
        return [another(rng, v) for v in value] if rng.random() < 0.8 else value[1:]
    if isinstance(value, tuple):
        return tuple(another(rng, list(value)))
    if isinstance(value, dict):
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: another(rng, value[key])}
    if not isinstance(value, np.ndarray):
        return None if rng.random() < 0.1 else 1 if value is None else changed(rng, value)
    match rng.randrange(6):
        case 0:
            return value[: len(value) // 2]
        case 1:
            return np.concatenate([value, value])
        case 2:
            with np.errstate(invalid="ignore", over="ignore"):
                return value.astype(rng.choice([np.int32, np.int64, np.float32, np.float64, np.uint8, np.bool_]))
        case 3:
            return value.reshape(-1) if value.ndim > 1 else value.reshape(-1, 1)
        case _:
            value = value.copy()
            if value.size:
                i = rng.randrange(value.size)
                edge = changed(rng, value.reshape(-1)[i].item())
                info = np.iinfo(value.dtype) if value.dtype.kind in "iu" else None
                value.reshape(-1)[i] = edge if info is None else min(max(edge, info.min), info.max)
            return value


if __name__ == "__main__":
    build, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    native = importlib.import_module(f"fieldfare.work.native._{build}")
    told: dict[str, int] = {}
    for number in range(first, last):
        print(f"seed {number}", file=sys.stderr, flush=True) if "-v" in sys.argv else None
        for outcome in (fuzz(native, number)[1], asked_wrongly(native, number)):
            told[outcome.split(":")[0]] = told.get(outcome.split(":")[0], 0) + 1
    print(told)
