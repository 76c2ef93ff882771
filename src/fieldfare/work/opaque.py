"""Any Python function as a client: scikit-learn, XGBoost, your own code; called for one client at a time.

Here: what a user gives, and what a job needs of it. Not here: the calls (`calls`), and how replies are folded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.core.params import Layout, Params
from fieldfare.work.calls import Columns, EvaluateEach, Form, TrainEach, own_generators, read_metrics, refuse_local
from fieldfare.work.net import Training


def opaque(
    train: Callable[..., Any],
    evaluate: Callable[..., Any] | None = None,
    *,
    init: Any = None,
    like: Sequence[Sequence[int]] | Mapping[str, Sequence[int]] | None = None,
    leaf: str = "trees",
    flops: float | None = None,
    reply_bytes: float = 0.0,
    forks: bool = True,
) -> Opaque:
    """A client that is a Python function: `train(model, data, config, rng)` returns the model it ends with.

    `init`: the first model, or a function of a generator that makes it: a vector, a list or dict of arrays, or bytes.
    `train` and `evaluate` get the model in that form. `like` (shapes, as list or by name) cuts a vector, zeros if
    there is no `init`, into such a list or dict. `data`: the client's columns, copied. `config`: `lr`, `batch_size`,
    `epochs` and `steps` of the job's Training and what the algorithm sends, such as `round`. `rng`: a generator.
    `train` may return (model, weight) or (model, weight, metrics); the weight is else the number of examples. A model
    of numbers is float32 on its way and sent as leaf "delta" (any algorithm without a local declaration folds it);
    one of bytes is sent as it is returned, as `leaf`, folded by `Collect` (see `Bagging`).
    `evaluate(model, data)`: `{"loss": ..., "accuracy": ...}`, or the loss alone, on the central test set and on
    held-out rows. `flops`: of one example in one pass; 6 per number of the model unless given. `reply_bytes`: expected
    size of a reply in bytes. `forks=False`: keep calls in this process, for libraries with threads of their own.
    Errors: what a function raises is passed on, with the client's number in a note.
    """
    for name, function in (("train", train), ("evaluate", evaluate)):
        if not callable(function) and not (name == "evaluate" and function is None):
            raise UsageError(f"opaque({name}={function!r}): give a function.")
    if init is None and like is None:
        raise UsageError(
            "opaque(...) has no first model: give init= (arrays, bytes, or a function of a generator that makes "
            "them), or like= with shapes, to start from zeros."
        )
    return Opaque(Calls(train, evaluate), init, like, leaf, flops, reply_bytes, forks)


@dataclass(frozen=True, slots=True)
class Calls:
    """The two functions of `opaque`, the same for every client."""

    function: Callable[..., Any]
    measure: Callable[..., Any] | None

    def train(self, client: int, model: Any, data: Columns, config: dict[str, Any], rng: np.random.Generator) -> Any:
        return self.function(model, data, config, rng)

    def evaluate(self, client: int, model: Any, data: Columns, config: dict[str, Any]) -> Any:
        assert self.measure is not None
        return self.measure(model, data)


class Opaque:
    """What `Job(model=...)` needs of a model that brings its own client computation; made by `opaque`."""

    def __init__(
        self, calls: Calls, init: Any, like: Any, leaf: str, flops: float | None, reply_bytes: float, forks: bool
    ) -> None:
        self._calls, self._init, self._like = calls, init, like
        self.leaf, self.flops, self.reply_bytes, self.forks = leaf, flops, reply_bytes, forks
        self.form = Form.of(self._first(0))

    def init(self, seed: int) -> Params:
        """The first model: as given, or made by the function given with the stream of (seed, "init")."""
        value = self._first(seed)
        if self.form.kind == "bytes":
            return Params(np.empty(0, np.float32), self.form.layout, opaque=bytes(value))
        return Params(self.form.vector(value), self.form.layout)

    def model(self, model: Params) -> Any:
        """A trained model in the form the functions know: what to take home."""
        return self.form.given(model.vector, model.opaque)

    def works(self, training: Training, local: tuple[Local, ...]) -> dict[str, Any]:
        """ "train" and, with a function for it, "evaluate"; declarations change gradients, of which none is known."""
        refuse_local(local, "a function given to opaque(...)")
        common = (self._calls, self.form, training)
        works: dict[str, Any] = {"train": TrainEach(*common, self.leaf, self.flops, self.reply_bytes, forks=self.forks)}
        if self._calls.measure is not None:
            works["evaluate"] = EvaluateEach(*common, self.flops, forks=self.forks)
        return works

    def central(self, test: Mapping[str, NDArray[Any]]) -> Callable[[Params], Mapping[str, float]]:
        """A function from a model to its metrics on the rows of `test`."""
        if self._calls.measure is None:
            raise UsageError(
                "the data has a test set but opaque(...) has no evaluate: give evaluate=, a function (model, data) -> "
                "{'loss': ...}."
            )

        def measure(model: Params) -> Mapping[str, float]:
            columns = {name: np.array(column) for name, column in test.items()}
            with own_generators(0):
                told = self._calls.evaluate(-1, self.model(model), columns, {})
            return read_metrics(told, "evaluate, called with the central test set,")

        return measure

    def describe(self) -> Mapping[str, Any]:
        """The functions' names and the form of the model, as plain JSON."""
        said = {"net": "opaque", "train": _name(self._calls.function), "form": self.form.kind}
        measure = self._calls.measure
        shapes = {name: list(shape) for name, _, shape in self.form.layout.items()}
        return {
            **said, "evaluate": None if measure is None else _name(measure), "tensors": shapes,
            "size": self.form.layout.size, "path": "one call per client",
        }  # fmt: skip

    def _first(self, seed: int) -> Any:
        value = self._init(rng.stream(seed, "init")) if callable(self._init) else self._init
        if self._like is None:
            return value
        named = self._like.items() if isinstance(self._like, Mapping) else enumerate(self._like)
        layout = Layout.of({str(name): shape for name, shape in named})
        flat = np.zeros(layout.size, np.float32) if value is None else np.asarray(value, np.float32).reshape(-1)
        if flat.shape != (layout.size,):
            raise UsageError(f"opaque(init=...) has {flat.size} numbers and like= wants {layout.size}: give as many.")
        return Form("dict" if isinstance(self._like, Mapping) else "list", layout).given(flat, b"")


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
