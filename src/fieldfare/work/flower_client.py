"""An existing Flower client, unchanged: `get_parameters`, `fit` and `evaluate` of a `NumPyClient`, found by name.

Here: the adapter; Flower itself need not be installed. Not here: Flower's strategies (see `algorithms`), its secure
aggregation and mods. Invariant: a client is made anew for every call, as Flower does, and keeps nothing between calls;
nor does `Context.state`, which would lie in one process of several and be lost when a run is resumed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fieldfare.core import rng
from fieldfare.core.errors import UsageError
from fieldfare.core.local import Local
from fieldfare.core.params import Params
from fieldfare.work.calls import Columns, EvaluateEach, Form, TrainEach, own_generators, read_metrics, refuse_local
from fieldfare.work.net import Training

Config: TypeAlias = Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None


def flower_client(
    client_fn: Callable[[Any], Any],
    *,
    initial: Sequence[NDArray[Any]] | None = None,
    fit_config: Config = None,
    evaluate_config: Config = None,
    evaluate_fn: Callable[..., Any] | None = None,
    num_partitions: int | None = None,
    run_config: Mapping[str, Any] | None = None,
    flops: float | None = None,
    forks: bool = True,
) -> FlowerClients:
    """The clients that a Flower `client_fn` makes.

    `client_fn` gets what its parameter is called or annotated: a `Context` (`node_config["partition-id"]`,
    `["num-partitions"]` if given here, `run_config`), or with `cid` or `str` the id as text. Partition i is client i of
    the job's data, which says how many clients there are and what each costs; rows a Flower client reads itself.
    `initial`: first parameters; else those of client 0. `fit_config`, `evaluate_config`: Flower's config for a round,
    or a function of the round; else the job's training settings and `server-round`, also as `server_round`.
    `evaluate_fn(server_round, parameters, config)`: central evaluation; its round is always 0 here. Weights are the
    examples a client tells. Integer parameters come back rounded. `flops`, `forks`: as in `opaque`.

    Clients are made anew for every call and `Context.state` is empty in each: what a client writes there is gone at the
    next. What must last between rounds a client keeps in a file of its own, or use a net and an algorithm with client
    state (`Scaffold`, `Ditto`, `FedPer`, `keep_optimizer`).
    """
    if not callable(client_fn):
        raise UsageError(f"flower_client({client_fn!r}): give Flower's client_fn, a function that makes a client.")
    make = Make(client_fn, _wants_text(client_fn), num_partitions, dict(run_config or {}))
    return FlowerClients(Clients(make, fit_config, evaluate_config), initial, evaluate_fn, flops, forks)


@dataclass(slots=True, eq=False)
class Context:
    """What a Flower client is told of where it runs: the fields of `flwr.common.Context` that mean something here."""

    run_id: int
    node_id: int
    node_config: dict[str, Any]
    run_config: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Make:
    """Makes the Flower client of a partition."""

    function: Callable[[Any], Any]
    text: bool
    partitions: int | None
    run_config: Mapping[str, Any]

    def __call__(self, client: int) -> Any:
        """The client with `fit` and `evaluate` of lists of arrays, taken out of `to_client()`'s wrapping."""
        node: dict[str, Any] = {"partition-id": client}
        if self.partitions is not None:
            node["num-partitions"] = self.partitions
        made = self.function(str(client) if self.text else Context(0, client, node, dict(self.run_config)))
        made = getattr(made, "numpy_client", made)
        if not hasattr(made, "fit"):
            raise UsageError(
                f"client_fn made a {type(made).__name__} without fit for client {client}: return a NumPyClient."
            )
        return made


@dataclass(frozen=True, slots=True)
class Clients:
    """Flower clients as `work.calls.Client`: made for a call, then forgotten."""

    make: Make
    fit_config: Config
    evaluate_config: Config
    dtypes: tuple[np.dtype[Any], ...] = ()

    def train(self, client: int, model: Any, data: Columns, config: dict[str, Any], rng: np.random.Generator) -> Any:
        back = self.make(client).fit(self._cast(model), _config(self.fit_config, config))
        if not isinstance(back, tuple) or len(back) != 3:
            raise UsageError(f"fit of client {client} returned no (parameters, examples, metrics): return all three.")
        parameters, examples, metrics = back
        return [*parameters], float(examples), _numbers(metrics)

    def evaluate(self, client: int, model: Any, data: Columns, config: dict[str, Any]) -> Any:
        made = self.make(client)
        if not hasattr(made, "evaluate"):
            raise UsageError(f"the Flower client {client} has no evaluate: leave out Evaluation(clients=...).")
        back = made.evaluate(self._cast(model), _config(self.evaluate_config, config))
        if not isinstance(back, tuple) or len(back) != 3:
            raise UsageError(f"evaluate of client {client} returned no (loss, examples, metrics): return all three.")
        loss, examples, metrics = back
        return {"loss": float(loss), **_numbers(metrics)}, float(examples)

    def first(self) -> list[NDArray[Any]]:
        """The parameters client 0 begins with."""
        made = self.make(0)
        if not hasattr(made, "get_parameters"):
            raise UsageError("the Flower clients have no get_parameters: give flower_client(initial=[arrays]).")
        return [np.asarray(one) for one in made.get_parameters({})]

    def _cast(self, model: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """The parameters in the dtypes they began with; whole numbers rounded."""
        pairs = zip(model, self.dtypes, strict=True)
        return [(np.rint(one) if kind.kind in "iub" else one).astype(kind, copy=False) for one, kind in pairs]


class FlowerClients:
    """What `Job(model=...)` needs of clients that bring their own computation; made by `flower_client`."""

    def __init__(
        self, clients: Clients, initial: Sequence[NDArray[Any]] | None, evaluate_fn: Callable[..., Any] | None,
        flops: float | None, forks: bool,
    ) -> None:  # fmt: skip
        self._initial = None if initial is None else [np.asarray(one) for one in initial]
        self._evaluate_fn, self._flops, self._forks = evaluate_fn, flops, forks
        self._made = clients
        first = self._first(0)
        if not first:
            raise UsageError("client 0 has no parameters to begin with: give flower_client(initial=[arrays]).")
        self._dtypes = tuple(one.dtype for one in first)
        self._clients = Clients(clients.make, clients.fit_config, clients.evaluate_config, self._dtypes)
        self._form = Form.of(first)

    def init(self, seed: int) -> Params:
        """The parameters given, or those client 0 makes with the global generators seeded by (seed, "init")."""
        return Params(self._form.vector(self._first(seed)), self._form.layout)

    def model(self, model: Params) -> list[NDArray[Any]]:
        """A trained model as Flower's list of arrays: what to take home."""
        return self._clients._cast(self._form.given(model.vector, b""))

    def works(self, training: Training, local: tuple[Local, ...]) -> dict[str, Any]:
        """ "train" and "evaluate", by calls of clients that read their own rows."""
        refuse_local(local, "a Flower client")
        common = (self._clients, self._form, training)
        return {
            "train": TrainEach(*common, flops=self._flops, forks=self._forks, with_data=False),
            "evaluate": EvaluateEach(*common, flops=self._flops, forks=self._forks, with_data=False),
        }

    def central(self, test: Mapping[str, NDArray[Any]]) -> Callable[[Params], Mapping[str, float]]:
        """A function from a model to what `evaluate_fn` says of it; the job's test set itself is not passed on."""
        function = self._evaluate_fn
        if function is None:
            raise UsageError(
                "the data has a test set but flower_client(...) has no evaluate_fn: give Flower's evaluate_fn, or data "
                "without a test part."
            )

        def measure(model: Params) -> Mapping[str, float]:
            with own_generators(0):
                back = function(0, self.model(model), {})
            if not isinstance(back, tuple) or len(back) != 2:
                raise UsageError("evaluate_fn returned no (loss, metrics): return both.")
            return read_metrics({"loss": back[0], **_numbers(back[1])}, "evaluate_fn")

        return measure

    def describe(self) -> Mapping[str, Any]:
        """The function's name and the shapes, as plain JSON."""
        function = self._made.make.function
        return {
            "net": "flower_client", "client_fn": getattr(function, "__qualname__", type(function).__name__),
            "tensors": {name: list(shape) for name, _, shape in self._form.layout.items()},
            "dtypes": [str(kind) for kind in self._dtypes], "size": self._form.layout.size,
            "path": "one call per client",
        }  # fmt: skip

    def _first(self, seed: int) -> list[NDArray[Any]]:
        if self._initial is not None:
            return self._initial
        with own_generators(rng.derive(seed, "init")):
            return self._made.first()


def _wants_text(client_fn: Callable[[Any], Any]) -> bool:
    """Whether Flower's older `client_fn(cid: str)` is meant."""
    given = next(iter(inspect.signature(client_fn).parameters.values()), None)
    return given is not None and (given.annotation in (str, "str") or given.name in ("cid", "client_id"))


def _config(config: Config, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a Flower client is told for a round, from 1."""
    number = int(asked.get("round", asked.get("version", 0)))
    if callable(config):
        return dict(config(number))
    if config is not None:
        return dict(config)
    return {**asked, "server-round": number, "server_round": number}


def _numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Those metrics that are numbers; text and bytes stay with the client."""
    known = (metrics or {}).items()
    return {str(name): float(value) for name, value in known if isinstance(value, int | float | np.number)}
