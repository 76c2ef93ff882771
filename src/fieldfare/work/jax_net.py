"""A model of plain JAX functions as a net: a pytree of parameters, a loss, and a loop compiled for one client.

Here: the adapter: the pytree as one vector, batches, evaluation. Not here: what is compiled (`jax_step`).
Invariant: row i of a result depends, to the bit, on client i's model, rows and key: clients are computed one by one,
and whatever is compiled or padded is so for shapes of that client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.block import Block
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.work.jax_step import Loss, Recipe, Shape, loop, measure, need_jax
from fieldfare.work.native import threads
from fieldfare.work.net import Drift, Fit, Plan, Training

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_CHANCE = np.uint64(rng.derive(0, "jax"))
_EVALUATED = 256
"""Examples of one client measured at a time, a power of two."""
_GATHERED = 1 << 22
"""Bytes of a client's examples that are laid out for one call."""


def jax_net(
    init: Any,
    loss: Callable[..., Any],
    predict: Callable[..., Any] | None = None,
    optimizer: Any = None,
    *,
    x: str | tuple[str, ...] = "x",
    y: str = "y",
    flops: float | None = None,
) -> JaxNet:
    """A net from JAX functions.

    `init`: the parameters as a pytree of float32 arrays, or a function key -> pytree, called with a key of the run's
    seed. `loss(params, x, y)`: the mean over a batch, one number; or a number per example `[B]`, of which we take the
    mean. With a fourth parameter `key` it gets a fresh key at every step, None when measured. `predict(params, x)`:
    logits or outputs, for `accuracy` (labels) or `mse`. `optimizer`: an optax transformation, or a function of the
    learning rate such as `optax.adam`; its state is new at every ask. Without one, Training's own. `x`, `y`: columns of
    the data; of several `x` the functions get a tuple. `flops`: of one training step on one example; 6 per parameter
    unless given.

    JAX holds threads, so the simulator computes in its own process, one client a thread. Compiling takes about 0.3 s:
    with a number per example a few times in all, since short batches are filled up; with a mean as often for every size
    of a batch. Errors: `MissingExtra` without jax, `UsageError` for other leaves.
    """
    need_jax()
    return JaxNet(init, loss, predict, optimizer, (x,) if isinstance(x, str) else tuple(x), y, flops)


class JaxNet:
    """A net (`work.net.Net`) over JAX functions; made by `jax_net`."""

    keeps_moments = True
    """Of `Training`'s optimisers; not of one of its own."""

    forks = False
    """Whether a process that has computed with this net may be forked: not once JAX has started its threads."""

    def __init__(
        self, init: Any, loss: Callable[..., Any], predict: Callable[..., Any] | None, optimizer: Any,
        x: tuple[str, ...], y: str, flops: float | None,
    ) -> None:  # fmt: skip
        import jax

        for name, function in (("loss", loss), ("predict", predict)):
            if not (callable(function) or (name == "predict" and function is None)):
                raise UsageError(
                    f"jax_net({name}={function!r}): give a function of (params, x{', y' * (name[0] == 'l')})."
                )
        if optimizer is not None and not (hasattr(optimizer, "update") or callable(optimizer)):
            raise UsageError(
                f"jax_net(optimizer={optimizer!r}): give an optax transformation or a function of the learning rate, "
                "such as optax.adam; names go into Training(optimizer=...)."
            )
        self._init = init if callable(init) and jax.tree_util.all_leaves([init]) else None
        vector, self.layout, self._shape = _flattened(_made(self._init, 0) if self._init else init)
        self._start = None if self._init else vector
        self.loss, self._loss, self._predict = _name(loss), Loss.of(loss), predict
        self._optimizer, self.x, self.y, self._given_flops = optimizer, x, y, flops
        self._told_each: bool | None = None
        self._loops: dict[Recipe, tuple[Any, Any]] = {}
        self._measure = measure(self._shape, self._loss, predict)

    @property
    def own_optimizer(self) -> bool:
        """Whether clients take other steps than `Training` says."""
        return self._optimizer is not None

    def init(self, seed: int) -> Params:
        """The pytree given, or the one its function makes of a key for (seed, "init")."""
        if self._start is not None:
            return Params(self._start, self.layout)
        vector, layout, _ = _flattened(_made(self._init, seed))
        if layout != self.layout:
            raise UsageError("the function given to jax_net as init makes other shapes for other keys: make it one.")
        return Params(vector, layout)

    def params(self, model: Params | F32) -> Any:
        """The pytree with the parameters of `model`: what to take home."""
        import jax.numpy as jnp

        return self._shape.unravel(jnp.asarray(model.vector if isinstance(model, Params) else model))

    def fit(
        self, start: F32, row: I64, data: Block, plan: Plan, keys: NDArray[np.uint64], training: Training, lr: float,
        drift: Drift, moments: F32 | None = None,
    ) -> Fit:  # fmt: skip
        """Train n clients, each from `start[row]`: one after the other, on as many threads as this process may use."""
        n = len(plan.steps)
        out, losses = np.empty((n, self.layout.size), np.float32), np.zeros(n)
        left = None if moments is None else moments.copy()
        loop = self._loop(training, drift)
        rate, ref = np.float32(lr), start if drift.ref is None else drift.ref
        mask = None if drift.mask is None else np.asarray(drift.mask)
        if plan.steps.any():
            self._each(data)

        def client(i: int) -> None:
            w: Any = start[row[i]]
            if plan.steps[i]:
                pull = (ref[row[i]] if len(ref) > 1 else ref[0]) if drift.mu else None
                correction = (None if drift.a is None else np.asarray(drift.a[i]), pull, mask)
                w, losses[i] = self._client(
                    i, w, data, plan, keys[i], training, rate, correction, loop, None if left is None else left[i]
                )
            out[i] = w

        _spread(client, n, threads.worth(n, self.flops() * len(plan.rows)))
        return Fit(out, losses, {}, left)

    def _client(
        self, i: int, w: Any, data: Block, plan: Plan, key: np.uint64, training: Training, rate: np.float32,
        correction: tuple[Any, ...], loop: tuple[Any, Any], left: F32 | None,
    ) -> tuple[Any, float]:  # fmt: skip
        """The vector client i comes to and its mean loss; its moments `left` are taken up, and replaced."""
        begin, steps = loop
        words = _words(key, int(plan.steps[i])) if self._loss.keyed else None
        slots, at, before, told = (() if begin is None else begin(w, rate)), 0, 0, []
        size = self.layout.size
        if left is not None:
            slots = tuple(left[k * size : (k + 1) * size] for k in range(training.moments))
            before = int(left[-1]) if training.moments == 2 else 0
        for sizes, xs, ys in self._groups(data, plan, i):
            count = len(ys)
            chance = None if words is None else words[at : at + count]
            with _Noted(self, xs, ys):
                w, slots, part = steps(w, slots, np.int32(before + at), sizes, xs, ys, chance, rate, correction)
            told.append(part)
            at += count
        if left is not None:
            for k, slot in enumerate(slots):
                left[k * size : (k + 1) * size] = slot
            if training.moments == 2:
                left[-1] = before + at
        return w, sum(np.asarray(part).sum(dtype=np.float64) for part in told) / at

    def evaluate(self, models: F32, row: I64, data: Block) -> Mapping[str, F64]:
        """`loss` and, with `predict`, `accuracy` or `mse`, `[n]`; 0 for a client without examples.

        A client's examples go through in blocks of 256; what is left is filled up to a power of two where the loss is
        a number per example, else cut into powers of two.
        """
        import jax.numpy as jnp

        names = ["loss"]
        if self._predict is not None:
            names.append("accuracy" if np.issubdtype(self._columns(data)[1].dtype, np.integer) else "mse")
        out = {name: np.zeros(data.n) for name in names}
        held, w = -1, None
        for i in range(data.n):
            rows = data.rows[data.offsets[i] : data.offsets[i + 1]]
            if len(rows) and row[i] != held:
                held, w = int(row[i]), jnp.asarray(models[row[i]])
            for a, b in _blocks(len(rows), self._each(data)):
                pick = np.minimum(np.arange(a, b), len(rows) - 1)
                real = min(b, len(rows)) - a
                xs, ys = self._batch(data, rows[pick])
                with _Noted(self, xs, ys):
                    found = self._measure(w, xs, ys, np.int32(real) if self._each(data) else None)
                for name, value in found.items():
                    out[name][i] += float(value) * (real / len(rows))
        return out

    def flops(self) -> float:
        """FLOPs of one training step on one example: as given, else 6 per parameter."""
        return 6.0 * self.layout.size if self._given_flops is None else float(self._given_flops)

    def describe(self) -> Mapping[str, Any]:
        """Tensors, functions, optimiser and columns as plain JSON."""
        return {
            "net": "jax", "tensors": {name: list(shape) for name, _, shape in self.layout.items()}, "loss": self.loss,
            "predict": None if self._predict is None else _name(self._predict),
            "optimizer": None if self._optimizer is None else _name(self._optimizer),
            "x": self.x[0] if len(self.x) == 1 else list(self.x), "y": self.y, "size": self.layout.size,
            "path": "compiled loop, one client a thread",
        }  # fmt: skip

    def _loop(self, training: Training, drift: Drift) -> tuple[Any, Any]:
        """Compiled functions: the optimiser's first state (None where it has none), and the steps."""
        if self.own_optimizer and (training.optimizer != "sgd" or training.momentum or training.weight_decay):
            raise UsageError(
                "jax_net has an optimizer of its own and Training(...) names one, momentum or weight_decay too: say it "
                "in one place."
            )
        same = replace(training, lr=0.0, epochs=1, steps=None, batch_size=1, schedule="constant", shuffle=True)
        recipe = Recipe(same, drift.a is not None, float(drift.mu), drift.mask is not None, self._optimizer)
        if recipe not in self._loops:
            from fieldfare.work.jax_step import compiled

            kept = self.own_optimizer or training.moments
            first = compiled(lambda w, lr: recipe.slots(self._shape, w, lr)) if kept else None
            self._loops[recipe] = first, loop(recipe, self._shape, self._loss)
        return self._loops[recipe]

    def _each(self, data: Block) -> bool:
        """Whether the loss is a number per example; asked of it once."""
        if self._told_each is None:
            x, y = self._batch(data, np.zeros(2, np.int64))
            with _Noted(self, x, y):
                self._told_each = self._loss.each(self._shape.unravel(np.zeros(self.layout.size, np.float32)), x, y)
        return self._told_each

    def _groups(self, data: Block, plan: Plan, i: int) -> Iterator[tuple[Any, Any, NDArray[Any]]]:
        """(sizes, xs, ys) of client i: runs of steps `[K, B, ...]`, K a power of four.

        Of a loss with a number per example all batches are filled up to one B, by repeating the last example; else a
        run has batches of one size.
        """
        bounds, each = plan.step_bounds(i), self._each(data)
        inputs, target = self._columns(data)
        row_bytes = sum(column[:1].nbytes for column in (*inputs, target))
        sizes = np.diff(bounds)
        whole = min(plan.batch_size, 1 << (int(plan.per_epoch[i]) - 1).bit_length())
        cuts = [0, len(sizes)] if each else [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
        for a, b in pairwise(cuts):
            batch = whole if each else int(sizes[a])
            most = max(_GATHERED // max(batch * row_bytes, 1), 1)
            while a < b:
                pick = slice(a, a + _four(min(b - a, most)))
                column = np.minimum(np.arange(batch), sizes[pick, None] - 1)
                xs, ys = self._batch(data, plan.rows[bounds[:-1][pick, None] + column])
                yield sizes[pick].astype(np.int32) if each else None, xs, ys
                a = pick.stop

    def _batch(self, data: Block, rows: I64) -> tuple[Any, NDArray[Any]]:
        """The columns at `rows`, in JAX's own dtypes."""
        import jax

        inputs, target = self._columns(data)
        taken = [c[rows].astype(jax.dtypes.canonicalize_dtype(c.dtype), copy=False) for c in (*inputs, target)]
        xs = tuple(taken[:-1])
        return (xs[0] if len(xs) == 1 else xs), taken[-1]

    def _columns(self, data: Block) -> tuple[list[NDArray[Any]], NDArray[Any]]:
        for name in (*self.x, self.y):
            if name not in data.columns:
                have = ", ".join(data.columns) or "none"
                raise UsageError(
                    f"the data has no column {name!r} (it has {have}): rename it, or give jax_net its name."
                )
        return [data.columns[name] for name in self.x], data.columns[self.y]


class _Noted:
    """Adds to an error of the user's functions what they were called with."""

    def __init__(self, net: JaxNet, xs: Any, ys: NDArray[Any]) -> None:
        self.net, self.xs, self.ys = net, xs, ys

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        if error is not None and not isinstance(error, UsageError):
            xs = self.xs if isinstance(self.xs, tuple) else (self.xs,)
            names = zip((*self.net.x, self.net.y), (*xs, self.ys), strict=True)
            told = ", ".join(f"{name} {one.dtype}{list(one.shape)}" for name, one in names)
            error.add_note(f"while jax_net computed {self.net.loss} on {told}")


def _made(init: Any, seed: int) -> Any:
    import jax

    word = rng.derive(seed, "init")
    data = np.array([word >> 32, word & 0xFFFFFFFF], np.uint32)
    return init(jax.random.wrap_key_data(data, impl="threefry2x32"))


def _flattened(params: Any) -> tuple[F32, Layout, Shape]:
    """The vector, its layout with names from the paths of the pytree, and how to cut it."""
    import jax

    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    if not leaves:
        raise UsageError("the parameters given to jax_net have no array in them: give a pytree of float32 arrays.")
    tensors: dict[str, F32] = {}
    for path, leaf in leaves:
        name = ".".join(_part(key) for key in path) or "params"
        kind = getattr(leaf, "dtype", None)
        if kind not in (np.dtype(np.float32), np.dtype(np.float64)) or name in tensors:
            said = f"{kind or type(leaf).__name__}" if name not in tensors else "there twice"
            raise UsageError(
                f"the parameter {name!r} given to jax_net is {said}: leaves are float32 arrays, each once."
            )
        tensors[name] = np.asarray(leaf, np.float32)
    made = Params.pack(tensors)
    return made.vector, made.layout, Shape(tree, made.layout.shapes, made.layout.offsets)


def _part(key: Any) -> str:
    for kind in ("key", "idx", "name"):
        if hasattr(key, kind):
            return str(getattr(key, kind))
    return str(key)


def _words(key: np.uint64, steps: int) -> NDArray[np.uint32]:
    """Two words per step, `[steps, 2]`, from the client's stream."""
    return rng.bits(rng.mix(np.array([key ^ _CHANCE])), np.arange(steps)).view(np.uint32).reshape(steps, 2)


def _spread(call: Callable[[int], None], n: int, most: int) -> None:
    """`call` of 0 to n - 1 on `most` threads that end with it; of several errors that of the least number is raised.

    JAX's settings within a `with` (`jax.debug_nans(True)`) hold for one thread: inside such, all is called on this one.
    So is the first, which compiles for all.
    """
    if n:
        call(0)
    with ThreadPoolExecutor(most) as pool:
        if most == 1 or pool.submit(_settings).result() != _settings():
            for i in range(1, n):
                call(i)
            return
        try:
            for _ in pool.map(call, range(1, n)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_OF_A_THREAD = (
    "jax_debug_nans", "jax_debug_infs", "jax_disable_jit", "jax_default_matmul_precision", "jax_enable_x64",
    "jax_default_device", "jax_default_prng_impl", "jax_numpy_dtype_promotion", "jax_enable_checks",
)  # fmt: skip


def _settings() -> list[Any]:
    """JAX's settings as this thread sees them."""
    import jax

    return [getattr(jax.config, name, None) for name in _OF_A_THREAD]


def _four(most: int) -> int:
    """The largest power of four that is no more than `most` >= 1.

    >>> [_four(n) for n in (1, 3, 4, 15, 16, 100)]
    [1, 1, 4, 4, 16, 64]
    """
    return 1 << 2 * ((most.bit_length() - 1) // 2)


def _blocks(size: int, fill: bool) -> Iterator[tuple[int, int]]:
    """Bounds of the blocks of `size` examples: as many of 256 as there are, then the rest.

    `fill`: as one block of a power of two, from 16, that may end beyond; else as falling powers of two.
    """
    at = 0
    while at < size:
        left = size - at
        step = max(16, 1 << (left - 1).bit_length()) if fill else 1 << left.bit_length() - 1
        step = min(_EVALUATED, step)
        yield at, at + step
        at += step


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
