"""The compiled part of JAX training: steps of one client in a loop on the flat vector, and one measured block.

Here: gradients of the user's loss, the optimisers, drift, in the seam's order (see `net.Drift`). Not here: which
batches (`jax_net`). Invariant: everything is compiled for shapes of one client alone, so no number depends on others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.work.net import Training

Tree: TypeAlias = Any
Array: TypeAlias = Any


@cache
def need_jax() -> None:
    """Refuse in one line where JAX is absent."""
    from importlib.util import find_spec

    if find_spec("jax") is None:
        raise MissingExtra.of("jax", "jax")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, on one thread of the CPU where this version of JAX lets us say so."""
    import jax

    if "compiler_options" not in inspect.signature(jax.jit).parameters:
        return jax.jit(function)
    return jax.jit(function, compiler_options={"xla_cpu_multi_thread_eigen": False})


@dataclass(frozen=True)
class Shape:
    """How the vector `[P]` is cut into the leaves of the user's pytree, and back."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]

    def unravel(self, flat: Array) -> Tree:
        import jax

        cut = zip(self.offsets, self.offsets[1:], self.shapes, strict=False)
        return jax.tree_util.tree_unflatten(self.tree, [flat[a:b].reshape(shape) for a, b, shape in cut])

    def ravel(self, tree: Tree) -> Array:
        import jax
        import jax.numpy as jnp

        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree_util.tree_leaves(tree)])


@dataclass(frozen=True)
class Loss:
    """The user's function (params, x, y) -> the mean over a batch, or numbers per example `[B]`; it may take a key."""

    function: Callable[..., Any]
    keyed: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Loss:
        return cls(function, "key" in inspect.signature(function).parameters)

    def told(self, params: Tree, x: Any, y: Array, words: Array | None) -> Array:
        """What the function returns; `words` uint32 `[2]` seed the step, None: no chance (a measurement)."""
        import jax

        if not self.keyed:
            return self.function(params, x, y)
        key = None if words is None else jax.random.wrap_key_data(words, impl="threefry2x32")
        return self.function(params, x, y, key=key)

    def each(self, params: Tree, x: Any, y: Array) -> bool:
        """Whether it gives a number per example; found without computing."""
        import jax

        shape = getattr(jax.eval_shape(lambda *given: self.told(*given, None), params, x, y), "shape", None)
        if shape not in ((), y.shape[:1]):
            raise UsageError(
                f"the loss given to jax_net returned shape {shape} for a batch of {len(y)}: return one number, the "
                f"mean over the batch, or one per example, {y.shape[:1]}."
            )
        return shape != ()

    def __call__(self, params: Tree, x: Any, y: Array, words: Array | None, size: Array | None) -> Array:
        """The mean over the batch; `size`: of the first `size` examples, for a number per example."""
        value = self.told(params, x, y, words)
        return value if size is None else first_mean(value, size)


def first_mean(values: Array, size: Array) -> Array:
    """The mean of the first `size` of `values` `[B]`; what stands behind is not looked at."""
    import jax.numpy as jnp

    return jnp.sum(jnp.where(jnp.arange(len(values)) < size, values, 0)) / size


@dataclass(frozen=True)
class Recipe:
    """What is fixed when a loop is compiled: optimiser and which parts of the drift there are."""

    training: Training
    add: bool
    mu: float
    mask: bool
    optax: Any = None

    def slots(self, shape: Shape, flat: Array, lr: Array) -> Any:
        """The optimiser's state at the start of a client's work: of optax its own, else vectors `[P]`."""
        import jax.numpy as jnp

        if self.optax is not None:
            return self._transformation(lr).init(shape.unravel(flat))
        count = 2 if self.training.optimizer == "adam" else int(self.training.momentum > 0)
        return tuple(jnp.zeros_like(flat) for _ in range(count))

    def step(self, w: Tree, g: Tree, slots: Any, taken: Array, lr: Array, drift: Any) -> Any:
        """(parameters, slots) after step number `taken`, from 1; `drift` is (a, ref, mask); all as pytrees."""
        import jax
        import jax.numpy as jnp

        each = jax.tree_util.tree_map
        training, (a, ref, mask) = self.training, drift
        if self.mask:
            g = each(lambda g, on: jnp.where(on, g, 0), g, mask)
        if training.clip_norm is not None:
            squares = sum(jnp.sum(leaf * leaf) for leaf in jax.tree_util.tree_leaves(g))
            by = jnp.minimum(training.clip_norm / (jnp.sqrt(squares) + 1e-6), 1.0)
            g = each(lambda g: g * by, g)
        if training.weight_decay:
            g = each(lambda g, w: g + training.weight_decay * w, g, w)
        if self.add:
            g = each(lambda g, a: g + a, g, a)
        if self.mu:
            g = each(lambda g, w, ref: g + self.mu * (w - ref), g, w, ref)
        if self.mask:
            g = each(lambda g, on: jnp.where(on, g, 0), g, mask)
        new, slots = self._optimised(w, g, slots, taken, lr)
        return each(lambda new, w, on: jnp.where(on, new, w), new, w, mask) if self.mask else new, slots

    def _optimised(self, w: Tree, g: Tree, slots: Any, taken: Array, lr: Array) -> Any:
        import jax
        import jax.numpy as jnp

        each, training = jax.tree_util.tree_map, self.training
        if self.optax is not None:
            updates, slots = self._transformation(lr).update(g, slots, w)
            return each(lambda w, update: w + update, w, updates), slots
        if training.optimizer == "adam":
            (b1, b2), (m, s) = training.betas, slots
            m = each(lambda m, g: b1 * m + (1 - b1) * g, m, g)
            s = each(lambda s, g: b2 * s + (1 - b2) * g * g, s, g)
            rate, shrunk = lr / (1 - b1**taken), 1 - b2**taken
            return each(lambda w, m, s: w - rate * m / (jnp.sqrt(s / shrunk) + training.eps), w, m, s), (m, s)
        if training.momentum:
            v = each(lambda v, g: training.momentum * v + g, slots[0], g)
            along = each(lambda g, v: g + training.momentum * v, g, v) if training.nesterov else v
            return each(lambda w, v: w - lr * v, w, along), (v,)
        return each(lambda w, g: w - lr * g, w, g), ()

    def _transformation(self, lr: Array) -> Any:
        """optax's transformation: as given, or made by the user's function of the learning rate."""
        return self.optax if hasattr(self.optax, "update") else self.optax(lr)


def loop(recipe: Recipe, shape: Shape, loss: Loss) -> Callable[..., Any]:
    """A compiled function of (w, slots, first, sizes, xs, ys, words, lr, drift) to (w, slots, losses).

    Takes steps `first + 1 .. first + K` on the K batches `xs[k]`, `ys[k]`; `losses` float32 `[K]`. `sizes` int32 `[K]`:
    how many examples of each batch are real; None: all. Vectors are cut into the user's leaves once a call, and the
    number of steps is fixed when it is compiled: XLA's gradient of a slice fills a vector for every leaf, and its loops
    of a length that is only known when they run compute products tens of times slower.
    """
    import jax
    import jax.numpy as jnp

    own = recipe.optax is None

    def steps(w: Array, slots: Any, first: Array, sizes: Any, xs: Any, ys: Array, words: Any, lr: Array,
              drift: Any) -> Any:  # fmt: skip
        cut = tuple(None if one is None else shape.unravel(one) for one in drift)

        def body(carry: Any, given: Any) -> Any:
            (p, slots), (k, size, x, y, chance) = carry, given
            value, g = jax.value_and_grad(loss)(p, x, y, chance, size)
            taken = (first + k + 1).astype(jnp.float32)
            return recipe.step(p, g, slots, taken, lr, cut), value.astype(jnp.float32)

        begin = shape.unravel(w), tuple(shape.unravel(one) for one in slots) if own else slots
        (p, slots), losses = jax.lax.scan(body, begin, (jnp.arange(len(ys)), sizes, xs, ys, words))
        return shape.ravel(p), tuple(shape.ravel(one) for one in slots) if own else slots, losses

    return compiled(steps)


def measure(shape: Shape, loss: Loss, predict: Callable[..., Any] | None) -> Callable[..., Mapping[str, Any]]:
    """A compiled function of (w, x, y, size) to `loss` and what `predict` allows: `accuracy`, or `mse` for numbers."""
    import jax.numpy as jnp

    def block(w: Array, x: Any, y: Array, size: Array | None) -> Mapping[str, Any]:
        params = shape.unravel(w)
        out = {"loss": loss(params, x, y, None, size)}
        if predict is None:
            return out
        said = predict(params, x)
        if jnp.issubdtype(y.dtype, jnp.integer):
            name, score = "accuracy", (_labels(said, y) == y).astype(jnp.float32)
        else:
            name, score = "mse", (said.reshape(y.shape) - y) ** 2
        score = jnp.mean(score.reshape(len(y), -1), axis=1)
        out[name] = jnp.mean(score) if size is None else first_mean(score, size)
        return out

    return compiled(block)


def _labels(said: Array, y: Array) -> Array:
    """The labels that outputs stand for: the largest of the last axis, or the sign of one logit per example."""
    import jax.numpy as jnp

    if said.ndim == y.ndim + 1 and said.shape[:-1] == y.shape:
        return jnp.argmax(said, axis=-1) if said.shape[-1] > 1 else (said[..., 0] > 0).astype(y.dtype)
    if said.shape == y.shape:
        return said if jnp.issubdtype(said.dtype, jnp.integer) else (said > 0).astype(y.dtype)
    raise UsageError(
        f"predict given to jax_net returned shape {said.shape} for labels of shape {y.shape}: return logits "
        f"{(*y.shape, 'classes')}, or one number per label."
    )
