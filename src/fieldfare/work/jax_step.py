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
        """The optimiser's state at the start of a client's work."""
        import jax.numpy as jnp

        if self.optax is not None:
            return self._transformation(lr).init(shape.unravel(flat))
        count = 2 if self.training.optimizer == "adam" else int(self.training.momentum > 0)
        return tuple(jnp.zeros_like(flat) for _ in range(count))

    def step(self, shape: Shape, w: Array, g: Array, slots: Any, taken: Array, lr: Array, drift: Any) -> Any:
        """(vector, slots) after step number `taken`, from 1; `drift` is (a, ref, mask)."""
        import jax.numpy as jnp

        training, (a, ref, mask) = self.training, drift
        if self.mask:
            g = jnp.where(mask, g, 0)
        if training.clip_norm is not None:
            g = g * jnp.minimum(training.clip_norm / (jnp.linalg.norm(g) + 1e-6), 1.0)
        if training.weight_decay:
            g = g + training.weight_decay * w
        if self.add:
            g = g + a
        if self.mu:
            g = g + self.mu * (w - ref)
        if self.mask:
            g = jnp.where(mask, g, 0)
        new, slots = self._optimised(shape, w, g, slots, taken, lr)
        return jnp.where(mask, new, w) if self.mask else new, slots

    def _optimised(self, shape: Shape, w: Array, g: Array, slots: Any, taken: Array, lr: Array) -> Any:
        import jax.numpy as jnp

        training = self.training
        if self.optax is not None:
            updates, slots = self._transformation(lr).update(shape.unravel(g), slots, shape.unravel(w))
            return w + shape.ravel(updates), slots
        if training.optimizer == "adam":
            (b1, b2), (m, s) = training.betas, slots
            m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
            root = jnp.sqrt(s / (1 - b2**taken)) + training.eps
            return w - lr / (1 - b1**taken) * m / root, (m, s)
        if training.momentum:
            v = training.momentum * slots[0] + g
            return w - lr * (g + training.momentum * v if training.nesterov else v), (v,)
        return w - lr * g, ()

    def _transformation(self, lr: Array) -> Any:
        """optax's transformation: as given, or made by the user's function of the learning rate."""
        return self.optax if hasattr(self.optax, "update") else self.optax(lr)


def loop(recipe: Recipe, shape: Shape, loss: Loss) -> Callable[..., Any]:
    """A compiled function of (w, slots, first, count, sizes, xs, ys, words, lr, drift) to (w, slots, losses).

    Takes steps `first + 1 .. first + count` on the batches `xs[k]`, `ys[k]`, k < count <= K; `losses` float32 `[K]`.
    `sizes` int32 `[K]`: how many examples of each batch are real; None: all.
    """
    import jax
    import jax.numpy as jnp

    def steps(w: Array, slots: Any, first: Array, count: Array, sizes: Any, xs: Any, ys: Array, words: Any, lr: Array,
              drift: Any) -> Any:  # fmt: skip
        def of(w: Array, k: Array) -> Array:
            x = jax.tree_util.tree_map(lambda column: column[k], xs)
            chance, size = None if words is None else words[k], None if sizes is None else sizes[k]
            return loss(shape.unravel(w), x, ys[k], chance, size)

        def body(k: Array, carry: Any) -> Any:
            w, slots, losses = carry
            value, g = jax.value_and_grad(of)(w, k)
            taken = (first + k + 1).astype(jnp.float32)
            w, slots = recipe.step(shape, w, g, slots, taken, lr, drift)
            return w, slots, losses.at[k].set(value.astype(jnp.float32))

        return jax.lax.fori_loop(0, count, body, (w, slots, jnp.zeros(len(ys), jnp.float32)))

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
