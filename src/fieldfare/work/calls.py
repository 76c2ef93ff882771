"""Works that call a function, or a client object, for one client at a time, with the model in a form it knows.

Here: the forms a model may take on its way there and back, and the works "train" and "evaluate". Not here: what a
user gives (`opaque`, `flower_client`). Invariant: a call sees its own client's model, rows, settings and randomness
only, the global generators of `random`, `numpy.random` and torch included; so no result depends on cohort or chunk.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.effects import Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Cost, Output
from fieldfare.work.net import Training
from fieldfare.work.train import settings as training_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Columns: TypeAlias = dict[str, NDArray[Any]]
Kind: TypeAlias = Literal["vector", "list", "dict", "bytes"]

_METRICS_BYTES = 32.0


@dataclass(frozen=True, slots=True)
class Form:
    """How the model looks to the user's functions, and what it is on the wire: a vector in `layout`, or bytes."""

    kind: Kind
    layout: Layout

    @classmethod
    def of(cls, value: Any) -> Form:
        """The form of a first model."""
        match value:
            case bytes() | bytearray():
                return cls("bytes", Layout((), ()))
            case np.ndarray():
                return cls("vector", Layout(("model",), (value.shape,)))
            case Mapping():
                return cls("dict", Layout.of({str(name): np.shape(one) for name, one in value.items()}))
            case list() | tuple():
                return cls("list", Layout.of({str(at): np.shape(one) for at, one in enumerate(value)}))
            case _:
                raise UsageError(
                    f"a model of type {type(value).__name__} cannot travel: use an array, a list or dict of arrays, or "
                    "bytes (your library's own file format; never pickle)."
                )

    def given(self, vector: F32, opaque: bytes) -> Any:
        """The model as the user's functions get it: copies they may write to."""
        if self.kind == "bytes":
            return opaque
        tensors = {name: vector[at].reshape(shape).copy() for name, at, shape in self.layout.items()}
        if self.kind == "dict":
            return tensors
        return [*tensors.values()] if self.kind == "list" else tensors["model"]

    def vector(self, value: Any) -> F32:
        """What a function returned as a vector `[P]`; `ValueError` with the reason where it has another form."""
        layout = self.layout
        match self.kind, value:
            case "dict", Mapping():
                if set(value) != set(layout.names):
                    raise ValueError(f"arrays {', '.join(map(str, value))} instead of {', '.join(layout.names)}")
                parts = [value[name] for name in layout.names]
            case "list", list() | tuple():
                parts = [*value]
            case "vector", np.ndarray():
                parts = [value]
            case _:
                wanted = {"vector": "an array", "list": "a list of arrays", "dict": "a dict of arrays"}[self.kind]
                raise ValueError(f"a {type(value).__name__} instead of {wanted}")
        shapes = [np.shape(part) for part in parts]
        if shapes != [*layout.shapes]:
            raise ValueError(f"shapes {shapes} instead of {[*layout.shapes]}")
        flat = [np.asarray(part, np.float32).reshape(-1) for part in parts]
        return np.concatenate(flat) if flat else np.empty(0, np.float32)


class Client(Protocol):
    """Who answers for client number `client`: the user's functions, or an object made for it."""

    def train(self, client: int, model: Any, data: Columns, config: dict[str, Any], rng: np.random.Generator) -> Any:
        """The model it ends with, or (model, weight), or (model, weight, metrics)."""
        ...

    def evaluate(self, client: int, model: Any, data: Columns, config: dict[str, Any]) -> Any:
        """Metrics, or the loss alone, or (metrics, weight)."""
        ...


@dataclass(frozen=True, slots=True)
class TrainEach:
    """Local training by calls (`Work`): leaf "delta" `[n, P]`, end minus start, or `leaf`, n bytes; weight as told.

    Metrics are what the calls tell, not a number for a client that tells none of that name.
    """

    client: Client
    form: Form
    training: Training = field(default_factory=Training)
    leaf: str = "trees"
    flops: float | None = None
    reply_bytes: float = 0.0
    forks: bool = True
    with_data: bool = True

    def __call__(self, cohort: Cohort) -> Output:
        """Call the function for every client of `cohort`, one after the other."""
        form, sizes = self.form, cohort.data.sizes
        check_size(form, cohort)
        config = settings_of(self.training, cohort)
        delta = np.zeros((cohort.n, form.layout.size), np.float32)
        replies: list[bytes] = []
        weight = sizes.astype(np.float64)
        told: list[Mapping[str, float]] = []
        for i in range(cohort.n):
            client, start = int(cohort.clients[i]), cohort.models[cohort.row[i]]
            data = cohort.data.client(i) if self.with_data else {}
            generator = rng.stream(int(cohort.keys[i]), "opaque")
            with _named(client, "train"), own_generators(int(cohort.keys[i])):
                back = self.client.train(client, form.given(start, cohort.opaque), data, dict(config), generator)
            model, weight[i], metrics = _taken_apart(back, float(sizes[i]), client)
            told.append(metrics)
            if form.kind == "bytes":
                if not isinstance(model, bytes | bytearray):
                    raise UsageError(
                        f"train returned a {type(model).__name__} for client {client}: return bytes, as it was given."
                    )
                replies.append(bytes(model))
                continue
            try:
                delta[i] = form.vector(model) - start
            except (ValueError, TypeError) as error:
                raise UsageError(
                    f"train returned {error} for client {client}: return the model it was given."
                ) from None
        leaves = {self.leaf: replies} if form.kind == "bytes" else {"delta": delta}
        return Output(leaves, weight, columns_of(told), silent=without_loss(told))

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """FLOPs by examples and passes; bytes of the vector each way (the driver counts a model of bytes down).

        Of replies of bytes the algorithm tells `reply_bytes` once it knows what they weigh; until then ours are
        `reply_bytes` as declared.
        """
        training, _ = training_of(self.training, config)
        sizes = np.asarray(examples, np.float64)
        passes = (
            training.epochs if training.steps is None else training.steps * training.batch_size / np.maximum(sizes, 1)
        )
        vector = 4.0 * layout.size
        up = float(config.get("reply_bytes", self.reply_bytes)) if self.form.kind == "bytes" else vector
        return Cost(_flops(self.flops, layout) * sizes * passes, vector, up, 2 * vector)

    def slots(self, layout: Layout) -> Mapping[str, int]:
        """None: what a function wants to keep it must send."""
        return {}


@dataclass(frozen=True, slots=True)
class EvaluateEach:
    """Metrics per client by calls, on held-out rows (`Work` without leaves); weight as told, else the rows measured.

    A client without held-out rows is not called; its metrics are not a number and its weight is 0.
    """

    client: Client
    form: Form
    training: Training = field(default_factory=Training)
    flops: float | None = None
    forks: bool = True
    with_data: bool = True

    @property
    def needs_held(self) -> bool:
        return self.with_data

    def __call__(self, cohort: Cohort) -> Output:
        """Call the function for every client of `cohort` that holds out rows."""
        check_size(self.form, cohort)
        if self.with_data and cohort.held is None:
            raise UsageError("this evaluation uses the clients' held-out rows: use data.holdout(0.2).")
        held = cohort.data if cohort.held is None else cohort.held
        config = settings_of(self.training, cohort)
        examples = held.sizes.astype(np.float64)
        told: list[Mapping[str, float]] = []
        for i in range(cohort.n):
            client, start = int(cohort.clients[i]), cohort.models[cohort.row[i]]
            if not examples[i]:
                told.append({})
                continue
            data = held.client(i) if self.with_data else {}
            with _named(client, "evaluate"), own_generators(int(cohort.keys[i])):
                back = self.client.evaluate(client, self.form.given(start, cohort.opaque), data, dict(config))
            if isinstance(back, tuple):
                back, examples[i] = back[0], float(back[1])
            told.append(read_metrics(back, f"evaluate of client {client}"))
        metrics = {**columns_of(told), "examples": examples}
        return Output({}, examples, metrics, silent=without_loss(told))

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """A third of a training pass over the training rows (their number is what is known), and the model."""
        vector = 4.0 * layout.size
        return Cost(_flops(self.flops, layout) / 3 * np.asarray(examples, np.float64), vector, _METRICS_BYTES, vector)

    def slots(self, layout: Layout) -> Mapping[str, int]:
        return {}


def refuse_local(local: tuple[Local, ...], what: str) -> None:
    """An algorithm that changes local gradients cannot be obeyed by code of unknown contents."""
    if local:
        raise UsageError(
            f"{type(local[0]).__name__} changes what a client does at every local step, and {what} does its own: use "
            "an algorithm without it, such as FedAvg, FedAdam, FedMedian or Krum, or a net."
        )


def check_size(form: Form, cohort: Cohort) -> None:
    """Refuse models that are not of `form`."""
    if cohort.models.shape[1] != form.layout.size:
        raise UsageError(
            f"a model of {cohort.models.shape[1]} numbers came to a function that takes {form.layout.size}: sub-models "
            "are for nets."
        )


def settings_of(training: Training, cohort: Cohort) -> dict[str, Any]:
    """What a function may want to know: the job's training settings of this round, and all that the ask says."""
    now, lr = training_of(training, cohort.config)
    return {"lr": lr, "batch_size": now.batch_size, "epochs": now.epochs, "steps": now.steps, **cohort.config}


@contextmanager
def own_generators(key: int) -> Iterator[None]:
    """Seed the global generators of `random`, `numpy.random` and torch (if loaded) from `key`, and put them back."""
    word = rng.derive(key, "globals") & 0xFFFFFFFF
    torch: Any = sys.modules.get("torch")
    before = random.getstate(), np.random.get_state(), None if torch is None else torch.get_rng_state()  # noqa: NPY002
    random.seed(word)
    np.random.seed(word)  # noqa: NPY002
    if torch is not None:
        torch.random.default_generator.manual_seed(word)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        if torch is not None and before[2] is not None:
            torch.set_rng_state(before[2])


def read_metrics(told: Any, who: str) -> dict[str, float]:
    """Metrics as `{name: number}`; a number alone is the loss."""
    if isinstance(told, Mapping):
        try:
            return {str(name): float(value) for name, value in told.items()}
        except (TypeError, ValueError):
            pass
    elif np.ndim(told) == 0 and isinstance(told, int | float | np.number | np.ndarray):
        return {"loss": float(told)}
    said = repr(told)
    said = said if len(said) <= 60 else type(told).__name__
    raise UsageError(f"{who} returned {said}: return metrics as {{'loss': 0.3, 'accuracy': 0.9}}, or the loss.")


def columns_of(told: Sequence[Mapping[str, float]]) -> dict[str, F64]:
    """Metrics `{name: [n]}`; not a number where a client told none of that name."""
    names = dict.fromkeys(name for one in told for name in one)
    return {name: np.array([one.get(name, np.nan) for one in told]) for name in names}


def without_loss(told: Sequence[Mapping[str, float]]) -> NDArray[np.bool_]:
    """Which clients told no loss, `[n]`: they have not diverged, whatever stands in the column."""
    return np.array(["loss" not in one for one in told], np.bool_)


def _taken_apart(back: Any, examples: float, client: int) -> tuple[Any, float, dict[str, float]]:
    """(model, weight, metrics) of what `train` returned."""
    if not isinstance(back, tuple):
        return back, examples, {}
    if len(back) == 2 and np.ndim(back[1]) == 0:
        return back[0], float(back[1]), {}
    if len(back) == 3 and np.ndim(back[1]) == 0 and isinstance(back[2], Mapping):
        return back[0], float(back[1]), read_metrics(back[2], f"train of client {client}")
    raise UsageError(
        f"train returned a tuple of {len(back)} for client {client}: return the model (arrays as a list), (model, "
        "weight), or (model, weight, metrics)."
    )


@contextmanager
def _named(client: int, what: str) -> Iterator[None]:
    """Add the client to whatever the user's function raises."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by {what} of client {client}")
        raise


def _flops(given: float | None, layout: Layout) -> float:
    return 6.0 * layout.size if given is None else float(given)
