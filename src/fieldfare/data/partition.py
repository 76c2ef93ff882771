"""How rows are shared out to clients: pure functions `(column, seed) -> (offsets, rows)`.

Here: one frozen dataclass per partitioner, and the catalogue `PARTITIONERS`. Not here: the shared arithmetic
(`allot`), or the data set itself (`federated`). Invariant: each row goes to exactly one client, no client is left
empty, and the result depends on the column and the seed only.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.rng import stream
from fieldfare.data import allot

Array = NDArray[Any]
I64 = NDArray[np.int64]
Index = tuple[I64, I64]


@runtime_checkable
class Partition(Protocol):
    """Anything that shares rows out: `(column [rows], seed) -> (offsets [N + 1], rows [M])`, both int64.

    Where `federate` finds an attribute `column` it passes that column in place of `y`; a function of your own gets
    zeros where the data has no `y`.
    """

    def __call__(self, y: Array, seed: int) -> Index: ...


@dataclass(frozen=True)
class _Sharing:
    """What the partitioners below have in common: the column they read and what is checked of the number."""

    def of(self, clients: int | None) -> Self:
        """The same partitioner with its number of clients filled in; a `UsageError` if two numbers disagree."""
        if clients is None or clients == self.number:
            return self
        if self.number is not None or not hasattr(self, "clients"):
            raise UsageError(f"clients={clients} disagrees with {self}; give the number of clients once.")
        return dataclasses.replace(self, clients=clients)

    @property
    def number(self) -> int | None:
        """The number of clients it makes, or None where that is open."""
        return getattr(self, "clients", None)

    def names(self, column: Array) -> Array | None:
        """Names of the clients in order, or None where they have none."""
        return None

    def _require(self, **limits: tuple[float, float]) -> None:
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            kind = int if isinstance(low, int) else (int, float)
            if value is not None and not (isinstance(value, kind) and low <= value <= high):
                what = "a whole number" if kind is int else "a number"
                raise UsageError(
                    f"{type(self).__name__}({name}={value!r}): {name} must be {what} in {low:g}..{high:g}."
                )


_TINY, _MOST = 1e-12, 1_000_000_000


@dataclass(frozen=True)
class iid(_Sharing):
    """Rows dealt at random, sizes equal to within one.

    McMahan et al. 2017 (AISTATS), section 3, "IID".
    """

    clients: int | None = None
    column: str = "y"

    def __post_init__(self) -> None:
        self._require(clients=(1, _MOST))

    def __call__(self, y: Array, seed: int) -> Index:
        n = allot.wanted(self, self.clients, len(y))
        owner = np.empty(len(y), np.int64)
        owner[stream(seed, "partition", "iid").permutation(len(y))] = np.arange(len(y)) * n // len(y)
        return allot.index(owner, n)


@dataclass(frozen=True)
class dirichlet(_Sharing):
    """Label skew: small `alpha` gives clients few labels, large `alpha` the global mix.

    `balanced=False` (default): each label's rows are cut among the clients in proportions Dir(alpha), so sizes
    vary too (Yurochkin et al. 2019 (ICML), section 4; NIID-Bench, Li et al. 2022, section IV-A). `balanced=True`:
    equal sizes, and each client draws its label mix from Dir(alpha * prior) (Hsu, Qi & Brown 2019, arXiv:1909.06335,
    section 3; the prior is the data's label distribution, so with C equally frequent labels their alpha is C times
    the concentration per label); a label that runs out is replaced by those that remain, as there.

    Departure: the usual code redraws until each client has `min_examples`, which may never end. Here after
    `redraws` draws the last one is repaired: the largest clients give up random rows until nobody is short.
    """

    alpha: float
    clients: int | None = None
    min_examples: int = 1
    redraws: int = 10
    balanced: bool = False
    column: str = "y"

    def __post_init__(self) -> None:
        self._require(alpha=(_TINY, _MOST), clients=(1, _MOST), min_examples=(1, _MOST), redraws=(1, 10_000))

    def __call__(self, y: Array, seed: int) -> Index:
        n = allot.wanted(self, self.clients, len(y), self.min_examples)
        codes, counts = allot.codes(y, self)
        gen = stream(seed, "partition", "dirichlet")
        if self.balanced:
            mixes = allot.dirichlet(self.alpha * counts / len(y), n, gen)
            return allot.index(allot.owners(codes, allot.filled(allot.even(len(y), n), mixes, counts, gen), gen), n)
        for _ in range(self.redraws):
            shares = np.stack([allot.cut(allot.dirichlet(self.alpha, n, gen), k) for k in counts], axis=1)
            if shares.sum(axis=1).min() >= self.min_examples:
                break
        return allot.index(allot.repaired(allot.owners(codes, shares, gen), n, self.min_examples, gen), n)


@dataclass(frozen=True)
class shards(_Sharing):
    """Rows sorted by label, cut in `clients * per_client` equal shards; each client gets `per_client` at random.

    McMahan et al. 2017 (AISTATS), section 3, "pathological non-IID" (2 shards of 300 for 100 clients). Departure:
    where the rows do not divide, shards differ in length by one.
    """

    clients: int | None = None
    per_client: int = 2
    column: str = "y"

    def __post_init__(self) -> None:
        self._require(clients=(1, _MOST), per_client=(1, _MOST))

    def __call__(self, y: Array, seed: int) -> Index:
        n = allot.wanted(self, self.clients, len(y), self.per_client)
        codes, _ = allot.codes(y, self)
        gen = stream(seed, "partition", "shards")
        order = gen.permutation(len(y))
        order = order[np.argsort(codes[order], kind="stable")]
        owner = np.empty(len(y), np.int64)
        owner[order] = gen.permutation(n * self.per_client)[np.arange(len(y)) * n * self.per_client // len(y)]
        return allot.index(owner // self.per_client, n)


@dataclass(frozen=True)
class labels_per_client(_Sharing):
    """Each client holds at most `labels` different labels; a label's rows are split evenly over its holders.

    NIID-Bench, Li et al. 2022 (ICDE), section IV-A, "#C = k". Departure: labels are dealt so that every label has
    a holder and none has two more than another (drawing them freely may leave rows to nobody).
    """

    labels: int = 2
    clients: int | None = None
    column: str = "y"

    def __post_init__(self) -> None:
        self._require(labels=(1, _MOST), clients=(1, _MOST))

    def __call__(self, y: Array, seed: int) -> Index:
        n = allot.wanted(self, self.clients, len(y))
        codes, counts = allot.codes(y, self)
        k, n_labels = self.labels, len(counts)
        if k > n_labels or k * n < n_labels:
            raise UsageError(
                f"labels_per_client(labels={k}, clients={n}) cannot share out {n_labels} labels; labels must be "
                f"{-(-n_labels // n)}..{n_labels}."
            )
        gen = stream(seed, "partition", "labels_per_client")
        holders = allot.hands(n, k, n_labels, gen)
        shares = np.zeros((n, n_labels), np.int64)
        for label in range(n_labels):
            who = gen.permutation(np.flatnonzero(holders[:, label]))
            shares[who, label] = allot.even(int(counts[label]), len(who))
        return allot.index(allot.repaired(allot.owners(codes, shares, gen), n, 1, gen), n)


@dataclass(frozen=True)
class lognormal_quantity(_Sharing):
    """Quantity skew: sizes in proportion to exp(sigma * N(0, 1)); labels dealt at random.

    Sizes as in LEAF's and FedProx's data (Li et al. 2020, MLSys, appendix C: sigma = 2). Departure: sizes are
    scaled to use every row once, and nobody has fewer than `min_examples`.
    """

    sigma: float = 1.0
    clients: int | None = None
    min_examples: int = 1
    column: str = "y"

    def __post_init__(self) -> None:
        self._require(sigma=(0.0, 50.0), clients=(1, _MOST), min_examples=(1, _MOST))

    def __call__(self, y: Array, seed: int) -> Index:
        n = allot.wanted(self, self.clients, len(y), self.min_examples)
        gen = stream(seed, "partition", "lognormal_quantity")
        log_size = self.sigma * gen.standard_normal(n)
        return allot.by_share(np.exp(log_size - log_size.max()), len(y), self.min_examples, gen)


@dataclass(frozen=True)
class dirichlet_quantity(_Sharing):
    """Quantity skew: sizes in proportion to one draw of Dir(alpha); labels dealt at random.

    NIID-Bench, Li et al. 2022 (ICDE), section IV-C, with nobody below `min_examples`.
    """

    alpha: float = 0.5
    clients: int | None = None
    min_examples: int = 1
    column: str = "y"

    def __post_init__(self) -> None:
        self._require(alpha=(_TINY, _MOST), clients=(1, _MOST), min_examples=(1, _MOST))

    def __call__(self, y: Array, seed: int) -> Index:
        n = allot.wanted(self, self.clients, len(y), self.min_examples)
        gen = stream(seed, "partition", "dirichlet_quantity")
        return allot.by_share(allot.dirichlet(self.alpha, n, gen), len(y), self.min_examples, gen)


@dataclass(frozen=True)
class natural(_Sharing):
    """One client per different value of an id column (writer, user, hospital), in sorted order; no randomness.

    The data's own partition, as in LEAF (Caldas et al. 2018). `min_examples` is not enforced by moving rows:
    leave small clients out with `Federated.select`.
    """

    column: str = "client"

    def __post_init__(self) -> None:
        if not isinstance(self.column, str):
            raise UsageError(
                f"natural({type(self.column).__name__}): give the name of a column of client ids, such as "
                "natural('writer'); ids in an array are a column of federate({'writer': ids, ...}, natural('writer'))."
            )

    def __call__(self, y: Array, seed: int = 0) -> Index:
        ids = self._checked(y)
        values, owner = np.unique(ids, return_inverse=True)
        return allot.index(owner.reshape(-1), len(values))

    def names(self, column: Array) -> Array | None:
        return np.unique(self._checked(column))

    def _checked(self, ids: Array) -> Array:
        if ids.ndim != 1 or not len(ids):
            raise UsageError(f"natural() needs one id per row; column {self.column!r} has shape {list(ids.shape)}.")
        if ids.dtype.kind == "f" and not np.isfinite(ids).all():
            row = int(np.flatnonzero(~np.isfinite(ids))[0])
            raise UsageError(f"natural(): the id in row {row} of {self.column!r} is missing; drop the row or name it.")
        return ids


@dataclass(frozen=True)
class joint(_Sharing):
    """Label skew and quantity skew together: sizes from `quantity`, each client's label mix from `label`.

    Our reading of "mixed" skew (NIID-Bench, Li et al. 2022, section IV): both partitioners run by themselves;
    then, in random order, each client draws its size from its mix, and a label that runs out is replaced by those
    that remain. The last clients served therefore follow their mix least.
    """

    label: dirichlet | shards | labels_per_client
    quantity: lognormal_quantity | dirichlet_quantity | iid
    clients: int | None = None
    column: str = "y"

    def __post_init__(self) -> None:
        self._require(clients=(1, _MOST))
        for part in (self.label, self.quantity):
            if self.clients is not None:
                part.of(self.clients)

    @property
    def number(self) -> int | None:
        return self.clients or self.label.clients or self.quantity.clients

    def __call__(self, y: Array, seed: int) -> Index:
        n = allot.wanted(self, self.number, len(y))
        codes, counts = allot.codes(y, self)
        gen = stream(seed, "partition", "joint")
        sizes = np.diff(self.quantity.of(n)(y, seed)[0])
        at, rows = self.label.of(n)(y, seed)
        mixes = np.zeros((n, len(counts)))
        np.add.at(mixes, (np.repeat(np.arange(n), np.diff(at)), codes[rows]), 1.0)
        mixes /= mixes.sum(axis=1, keepdims=True)
        return allot.index(allot.owners(codes, allot.filled(sizes, mixes, counts, gen), gen), n)


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue: `factory(**options)` builds the partitioner."""

    name: str
    summary: str
    paper: str
    factory: Callable[..., Any]

    @property
    def options(self) -> str:
        """The factory's arguments, as one would write them."""
        return str(inspect.signature(self.factory)).split(" -> ")[0]


PARTITIONERS: tuple[Entry, ...] = (
    Entry("iid", "rows dealt at random, equal sizes", "McMahan et al. 2017", iid),
    Entry(
        "dirichlet",
        "label skew: each label cut by Dir(alpha); balanced=True keeps sizes equal",
        "Yurochkin et al. 2019; Hsu et al. 2019 (balanced)",
        dirichlet,
    ),
    Entry("shards", "label skew: sorted by label, a few shards each", "McMahan et al. 2017", shards),
    Entry("labels_per_client", "label skew: at most k labels each", "Li et al. 2022 (ICDE)", labels_per_client),
    Entry("lognormal_quantity", "quantity skew: log-normal sizes", "Li et al. 2020 (FedProx)", lognormal_quantity),
    Entry(
        "dirichlet_quantity", "quantity skew: sizes from Dir(alpha)", "Li et al. 2022 (NIID-Bench)", dirichlet_quantity
    ),
    Entry("natural", "the data's own clients, by an id column", "Caldas et al. 2018 (LEAF)", natural),
    Entry("joint", "label skew and quantity skew together", "Li et al. 2022 (our reading)", joint),
)


def partitioner(name: str, **options: Any) -> Any:
    """The partitioner of that name from the catalogue, as a job file or a command line names it.

    >>> partitioner("dirichlet", alpha=0.3, clients=10).alpha
    0.3
    """
    found = next((entry for entry in PARTITIONERS if entry.name == name), None)
    if found is None:
        raise UsageError(f"there is no partitioner {name!r}; choose one of {', '.join(e.name for e in PARTITIONERS)}.")
    if name == "joint":
        options = {k: partitioner(**v) if isinstance(v, dict) else v for k, v in options.items()}
    try:
        return found.factory(**options)
    except TypeError as error:
        raise UsageError(f"partitioner {name!r} takes {found.options}; {error}.") from None


def prepared(plan: Partition, clients: int | None, default: int | None = None) -> Partition:
    """`plan` with its number of clients filled in, by `clients` or else, where it is open, by `default`."""
    if clients is None and isinstance(plan, _Sharing) and plan.number is None and hasattr(plan, "clients"):
        clients = default
    if clients is None:
        return plan
    if isinstance(plan, _Sharing):
        return plan.of(clients)
    raise UsageError(f"clients={clients} cannot be given to {plan!r}, which decides the number itself; leave it out.")


def shared_out(plan: Partition, columns: dict[str, Array], seed: int) -> tuple[I64, I64, Array | None]:
    """Run `plan` on the column it reads and check what it returned: (offsets, rows, names)."""
    n_rows = len(next(iter(columns.values())))
    name = getattr(plan, "column", "y")
    column = columns.get(name)
    if column is None:
        if isinstance(plan, _Sharing) and not isinstance(plan, iid | lognormal_quantity | dirichlet_quantity):
            raise UsageError(f"{plan} reads column {name!r}; the columns are {sorted(columns)}.")
        column = np.zeros(n_rows, np.int64)
    offsets, rows = (np.asarray(part) for part in plan(column, seed))
    if len(rows) != n_rows or not np.array_equal(np.bincount(rows, minlength=n_rows), np.ones(n_rows)):
        raise UsageError(f"{plan!r} did not give each of the {n_rows} rows to exactly one client; mend it.")
    return offsets, rows, plan.names(column) if isinstance(plan, _Sharing) else None


def told(plan: Partition) -> str:
    """`plan` as a record names it: the options that are not at their defaults, or the name of a function.

    >>> told(dirichlet(0.3, clients=10))
    'dirichlet(alpha=0.3, clients=10)'
    """
    if not isinstance(plan, _Sharing):
        return getattr(plan, "__name__", type(plan).__name__)
    values = [(f.name, f.default, getattr(plan, f.name)) for f in dataclasses.fields(plan) if f.repr]
    options = ", ".join(f"{name}={value!r}" for name, usual, value in values if value is not usual and value != usual)
    return f"{type(plan).__name__}({options})"


def as_ids(ids: ArrayLike) -> Array:
    """Client ids as a flat array that `natural` accepts: numbers or text, None refused."""
    array = np.asanyarray(ids)
    if array.dtype == object:
        missing = [i for i, v in enumerate(array) if v is None or v != v]
        if missing:
            raise UsageError(f"the client id of row {missing[0]} is missing; drop the row or name its client.")
        array = array.astype(np.str_)
    return array
