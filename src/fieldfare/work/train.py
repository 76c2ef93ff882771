"""Local training of a whole cohort, with the client side of every algorithm: one `Work` over any `Net`.

Here: how declarations (`core.local`) become a drift, a state and leaves. Not here: gradients (adapters) and folds.
Invariant: row i depends on client i's model, rows, key and state only; an idle declaration changes no bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.gather import integer_weights
from fieldfare.aggregate.rows import Clip
from fieldfare.core import rng
from fieldfare.core.effects import Scalar
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import COVERED, Coverage, Mean, Total
from fieldfare.core.local import (
    ControlVariate,
    Dynamic,
    Fair,
    Frozen,
    Heads,
    Keep,
    Local,
    LowRank,
    Nested,
    Normalised,
    Personal,
    Proximal,
    Rounded,
    Scaled,
    Sent,
    Twin,
)
from fieldfare.core.params import Layout
from fieldfare.core.work import Cohort, Cost, Output
from fieldfare.work import compress
from fieldfare.work.heads import covered, of_level
from fieldfare.work.net import Drift, Fit, Folding, Net, Training, moments_size, naming
from fieldfare.work.plan import make_plan, passes_and_steps

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
L = TypeVar("L", bound=Local)

_HEAD = np.uint64(rng.derive(0, "head"))
_TWIN = np.uint64(rng.derive(0, "twin"))


def find(local: tuple[Local, ...], kind: type[L]) -> L | None:
    """The declaration of type `kind` among `local`, or None."""
    return next((one for one in local if isinstance(one, kind)), None)


def _step_of(net: Net, training: Training, layout: Layout, local: tuple[Local, ...]) -> int | None:
    """Bytes at the peak of a step as `local` has it, where that is known without work; None where not."""
    from fieldfare.work.submodel.cost import already_declared

    found = already_declared(net, training, layout, local) if len(layout.names) else None
    return None if found is None else found.memory_bytes


def smaller_net(net: Net, layout: Layout) -> Net | None:
    """The net of a sub-model's layout, from a net that gives such (`of(layout)`); None where there is none."""
    of = getattr(net, "of", None)
    return of(layout) if of is not None and len(layout.names) else None


def settings(training: Training, config: Mapping[str, Scalar]) -> tuple[Training, float]:
    """Training and learning rate of one ask: `config` may override `steps`, `epochs`, `lr`; `round` counts from 1."""
    if "steps" in config:
        training = _with(training, "steps", int(config["steps"]))
    elif "epochs" in config:
        training = _with(training, "epochs", int(config["epochs"]))
    if "lr" in config:
        return training, float(config["lr"])
    return training, training.lr_at(int(config.get("round", 1)))


@lru_cache(maxsize=256)
def _with(training: Training, name: Literal["steps", "epochs"], number: int) -> Training:
    """`training` of that many steps, or epochs (kept: to make and check one takes as long as a step of a small net)."""
    return replace(training, steps=number) if name == "steps" else replace(training, epochs=number, steps=None)


def step_norm(steps: I64, lr: float, momentum: float = 0.0, nesterov: bool = False, mu: float = 0.0) -> F64:
    """The norm ||a_i||_1 of the accumulated gradient weights after `steps` `[n]` local steps.

    Wang et al., NeurIPS 2020, section 4: K for SGD, the closed forms there for momentum and for a proximal term.
    Ours runs the optimiser once on the scalar gradient 1, which gives each of those and their combination.

    >>> step_norm(np.array([0, 3]), 0.1).tolist()
    [0.0, 3.0]
    """
    if momentum == 0.0 and mu == 0.0:
        return steps.astype(np.float64)
    longest = int(steps.max(initial=0))
    reached = np.zeros(longest + 1)
    speed = at = 0.0
    for k in range(longest):
        gradient = 1.0 - lr * mu * at
        speed = momentum * speed + gradient
        at += gradient + momentum * speed if nesterov else speed
        reached[k + 1] = at
    return reached[steps]


def threaded(net: Any) -> bool:
    """Whether `net` computes with threads of this process; one that wraps such a net in code of its own does not."""
    return bool(getattr(net, "threaded", False)) and _takes_fold(type(net))


@lru_cache(maxsize=64)
def _takes_fold(kind: type) -> bool:
    """Whether `fit` of nets of this kind takes `fold=`: a wrapper that has a `fit` of its own may not."""
    taken = inspect.signature(kind.fit).parameters
    return "fold" in taken or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())


def slots_of(local: tuple[Local, ...], layout: Layout, training: Training | None = None) -> dict[str, int]:
    """The client-state slot that `local` keeps and its size: `c`, `h` or `twin` of P floats, `personal`, `optimizer`.

    The last depends on `training`, see `moments_size`.
    """
    for one in local:
        match one:
            case ControlVariate():
                return {"c": layout.size}
            case Dynamic():
                return {"h": layout.size}
            case Twin():
                return {"twin": layout.size}
            case Personal(names):
                return {"personal": int(layout.mask(names).sum())}
            case Sent(feedback=True):
                return {"residual": layout.size}
            case Keep() if training is not None:
                return {"optimizer": moments_size(training, layout.size)}
            case _:
                pass
    return {}


def kept(cohort: Cohort, local: tuple[Local, ...], layout: Layout, training: Training | None = None) -> F32 | None:
    """The cohort's state `[n, S]` with zeros for clients never seen; None when all are new or nothing is kept."""
    for slot, size in slots_of(local, layout, training).items():
        if cohort.state is None or cohort.fresh is None:
            raise UsageError(
                f"this work keeps client state in slot {slot!r} but the ask names none: use Run(state={slot!r}), and a "
                "driver with client state."
            )
        if cohort.fresh.all():
            return None
        if cohort.state.shape[1] != size:
            raise UsageError(
                f"client state has {cohort.state.shape[1]} numbers per client, slot {slot!r} of this model has {size}: "
                "start the run again, or use the model the state was made with."
            )
        some = cohort.fresh.any()
        return np.where(cohort.fresh[:, None], np.float32(0), cohort.state) if some else cohort.state
    return None


def own_models(cohort: Cohort, state: F32 | None, mask: NDArray[np.bool_] | None) -> tuple[F32, I64]:
    """Each client's own model: `state` where written (at `mask`, or all of it), else the model it was sent.

    Models and row index as in `Cohort`; a copy `[n, P]` only when some of it is state.
    """
    if state is None or cohort.fresh is None:
        return cohort.models, cohort.row
    if mask is None and not cohort.fresh.any():
        return state, np.arange(cohort.n)
    own = cohort.models[cohort.row]
    seen = np.flatnonzero(~cohort.fresh)
    if mask is None:
        own[seen] = state[seen]
    else:
        own[np.ix_(seen, np.flatnonzero(mask))] = state[seen]
    return own, np.arange(cohort.n)


@dataclass(frozen=True, slots=True)
class Train:
    """Local training (`Work`): leaf `delta` float32 `[n, P]`, end minus start; weight, the client's examples.

    `local` declares what an algorithm changes (see `core.local`). Further leaves: `dc` `[n, P]` (`ControlVariate`),
    `tau` `[n, 1]` (`Normalised`), `h` `[n, 1]` (`Fair`). Metric `loss` `[n]`: mean training loss over steps, not finite
    where training diverged; such rows are left as they are, and the fold refuses them. Config: `round` (for the
    schedule), `steps`, `epochs`, `lr`; `reply="model"`: leaf `model` `[n, P]`, the end itself, is all that is sent.
    Of the declarations that keep client state only one may be given. `Frozen`, `Pruned` and `Heads` add leaf `covered`,
    bool `[n, P]`: what each client has trained.
    """

    net: Net
    training: Training = field(default_factory=Training)
    local: tuple[Local, ...] = ()

    def __post_init__(self) -> None:
        kinds = [type(one) for one in self.local]
        names = [kind.__name__ for kind in kinds]
        if len(set(kinds)) < len(kinds):
            raise UsageError(f"Train(local={names}) declares one thing twice: give each declaration once.")
        stateful = [k.__name__ for k in kinds if k in (ControlVariate, Dynamic, Personal, Twin, Keep)]
        stateful += [type(one).__name__ for one in self.local if isinstance(one, Sent) and one.feedback]
        if len(stateful) > 1:
            raise UsageError(f"Train(local={names}): {' and '.join(stateful)} each keep client state: use one of them.")
        if Fair in kinds and Normalised in kinds:
            raise UsageError(f"Train(local={names}): Fair and Normalised both rescale the delta: use one of them.")
        sgd = [k.__name__ for k in kinds if k in (ControlVariate, Normalised, Fair)]
        if sgd and getattr(self.net, "own_optimizer", False):
            raise UsageError(
                f"{sgd[0]} holds for SGD on the client, and this net brings an optimiser of its own: leave it out and "
                "use Training(...)."
            )
        t = self.training
        plain = t.optimizer == "sgd"
        if ControlVariate in kinds and not (plain and t.momentum == 0.0):
            raise UsageError(
                f"ControlVariate with optimizer={t.optimizer!r}, momentum={t.momentum}: SCAFFOLD's option II reads the "
                "mean gradient off plain SGD steps; use Training(optimizer='sgd', momentum=0)."
            )
        if Normalised in kinds and not plain:
            raise UsageError("Normalised with optimizer='adam': FedNova's norm is known for SGD; use optimizer='sgd'.")
        if Keep in kinds:
            self._check_keep(Normalised in kinds)
        if (fair := find(self.local, Fair)) is not None and not fair.q >= 0:
            raise UsageError(f"Fair(q={fair.q}): use q >= 0.")
        if (personal := find(self.local, Personal)) is not None:
            self.net.layout.mask(personal.names)
        if t.precision != "float32":
            self._check_precision()
        compress.check(self.local, self.net)
        if find(self.local, Heads) is not None:  # found once, by the whole net
            object.__setattr__(self, "local", of_level(self.local, self.net, self.net.layout))

    @property
    def threaded(self) -> bool:
        """Whether it is computed by threads of this process."""
        if not threaded(self.net) or find(self.local, LowRank) is not None:
            return False
        return compress.trained(self.net, self.net, self.local) is self.net

    @property
    def together(self) -> int:
        """How many clients, or a multiple of it, are best trained in one call."""
        return int(getattr(self.net, "together", 1))

    @property
    def folds(self) -> bool:
        """Whether deltas can be summed where they lie: nothing else is made of them, and the net is able to."""
        able = getattr(self.net, "folds", None)
        plain = all(isinstance(one, Proximal | Scaled | Nested | Rounded) for one in self.local)
        return able is not None and plain and _takes_fold(type(self.net)) and bool(able(self.training))

    def _check_precision(self) -> None:
        """Refuse a precision that nothing here computes in."""
        inside = getattr(self.net, "net", self.net)  # of a family
        changed = compress.trained(self.net, self.net, self.local) is not self.net
        if not hasattr(inside, "on_core") or changed or find(self.local, LowRank) is not None:
            raise UsageError(
                f"Training(precision={self.training.precision!r}) needs the compiled core, and "
                f"{'what is trained inside' if changed else f'this {type(inside).__name__}'} is not trained on it."
            )
        from fieldfare.work.native.bind import in_half

        in_half(inside)

    def _check_keep(self, normalised: bool) -> None:
        """Refuse to keep an optimiser's moments where there are none, or where they cannot be taken out."""
        if getattr(self.net, "own_optimizer", False) or not getattr(self.net, "keeps_moments", False):
            raise UsageError(
                f"Keep: the optimiser of this {type(self.net).__name__} cannot be kept between asks: use a net that "
                "trains by Training(...), such as mlp, torch_net, or jax_net without optimizer=."
            )
        if not self.training.moments:
            raise UsageError(
                "Keep: plain SGD has no slots to keep: use Training(momentum=0.9) or optimizer='adam', or leave it out."
            )
        if normalised:
            raise UsageError("Keep with Normalised: FedNova's norm is known for momentum that begins at zero.")

    def __call__(self, cohort: Cohort) -> Output:
        """Train every client of `cohort`; see the class for the leaves."""
        if cohort.layout != self.net.layout and (smaller := smaller_net(self.net, cohort.layout)) is not None:
            local = of_level(self.local, self.net, cohort.layout)
            work = replace(self, net=compress.trained(smaller, self.net, self.local), local=local)
            return compress.of_sub_model(work, cohort, local, self.net.layout.size)
        if (net := compress.trained(self.net, self.net, self.local)) is not self.net:
            return replace(self, net=net)(cohort)
        if (factors := find(self.local, LowRank)) is not None:
            return self._low_rank(factors.rank, cohort)
        if compress.smaller_start(self.local):
            return compress.sent_smaller(self.local, self._train, cohort, self.net.layout)
        return self._train(cohort)

    def _low_rank(self, rank: int, cohort: Cohort) -> Output:
        """Train the factors of every large matrix in its place."""
        small = compress.factored(self.net, rank)
        start = np.stack([compress.factors(self.net, small, model) for model in cohort.models])
        still = compress.in_factors(self.net, small, compress.frozen(self.local))
        local = tuple(one for one in self.local if not isinstance(one, LowRank | Sent | Frozen | Heads))
        inner = replace(self, net=small, local=(*local, Frozen(still)) if still else local)
        out = inner(replace(cohort, models=start, layout=small.layout, state=None, fresh=None))
        ends = out.leaves["delta"] + start[cohort.row]
        whole = [compress.product(self.net, small, start[row]) for row in range(len(start))]
        delta = np.stack([compress.product(self.net, small, end) - whole[r]
                          for end, r in zip(ends, cohort.row, strict=True)])  # fmt: skip
        still = compress.frozen(self.local)
        mask = ~self.net.layout.mask(still) if still else None
        covered = self._covered(cohort, settings(self.training, cohort.config)[0], mask, delta)
        return self._reply(cohort, replace(out, leaves={**out.leaves, **covered, "delta": delta}))

    def _covered(
        self, cohort: Cohort, training: Training, mask: NDArray[np.bool_] | None, delta: F32
    ) -> dict[str, NDArray[np.bool_]]:  # fmt: skip
        """The leaf that tells what each client trained, where that is not all; `delta` becomes zero elsewhere."""
        found = covered(self.local, self.net, cohort, training, mask)
        if found is None:
            return {}
        np.copyto(delta, np.float32(0), where=~found)
        return {COVERED: found}

    def _reply(self, cohort: Cohort, out: Output) -> Output:
        """The output as it travels: fewer numbers, of fewer bits, where `local` says so."""
        if (sent := find(self.local, Sent)) is None or "delta" not in out.leaves:
            return out
        seen = kept(cohort, self.local, self.net.layout, self.training) if sent.feedback else None
        delta, left = compress.encoded(sent, out.leaves["delta"], seen, cohort.keys, out.leaves.get(COVERED))
        return replace(out, leaves={**out.leaves, "delta": delta}, state=left if sent.feedback else out.state)

    def _train(self, cohort: Cohort, mask: NDArray[np.bool_] | None = None) -> Output:
        """`__call__` for a cohort of this net; coordinates outside `mask` `[P]` stay as they are."""
        if cohort.models.shape[1] != self.net.layout.size:
            raise UsageError(
                f"models of {cohort.models.shape[1]} parameters came to a net of {self.net.layout.size}: send the "
                "model of this net's init(), or train sub-models with a net of their layout."
            )
        training, lr = settings(self.training, cohort.config)
        seen = kept(cohort, self.local, self.net.layout, training)
        drift = self._drift(cohort, seen)
        models, row, keys = cohort.models, cohort.row, cohort.keys
        fixed = mask
        if fixed is not None:
            drift = replace(drift, mask=fixed)
            mask = None
        if (personal := find(self.local, Personal)) is not None:
            mask = self.net.layout.mask(personal.names)
            models, row = own_models(cohort, seen, mask)
            if personal.head_epochs > 0:
                head = replace(training, epochs=personal.head_epochs, steps=None)
                alone = _anchored(replace(drift, mask=mask), cohort, row)
                models = self._fit(models, row, cohort, rng.mix(keys ^ _HEAD), head, lr, alone)[0].params
                row = np.arange(cohort.n)
                drift = replace(drift, mask=~mask)
        moments = None
        if find(self.local, Keep) is not None:
            size = moments_size(training, self.net.layout.size)
            moments = np.zeros((cohort.n, size), np.float32) if seen is None else seen
        fold = None if cohort.fold is None or mask is not None else self._folding(cohort, cohort.fold)
        fit, steps = self._fit(models, row, cohort, keys, training, lr, _anchored(drift, cohort, row), moments, fold)
        if fold is not None and fit.total is not None:
            return self._folded(cohort, fold, fit)
        drift = Drift(mu=drift.mu)  # the correction is done with, and may be as large as all models
        if cohort.config.get("reply") == "model":
            return Output({"model": fit.params}, cohort.data.sizes.astype(np.float64), {"loss": fit.loss, **fit.extra})
        delta = fit.params
        state = fit.moments if mask is None else np.ascontiguousarray(delta[:, mask])
        _subtract(delta, cohort.models, cohort.row)
        if mask is not None:
            delta[:, mask] = 0.0
        leaves: dict[str, Any] = {"delta": delta, **self._covered(cohort, training, fixed, delta)}
        if (twin := find(self.local, Twin)) is not None:
            own, row = own_models(cohort, seen, None)
            pull = _anchored(Drift(mu=twin.lam), cohort, row)
            state = self._fit(own, row, cohort, rng.mix(keys ^ _TWIN), training, lr, pull)[0].params
        elif find(self.local, ControlVariate) is not None:
            leaves["dc"] = dc = self._variate(cohort, delta, steps, lr)
            state = dc + (np.float32(0) if seen is None else seen)
        elif (dynamic := find(self.local, Dynamic)) is not None:
            state = delta * np.float32(-dynamic.alpha)
            state += np.float32(0) if seen is None else seen
        if find(self.local, Normalised) is not None:
            tau = step_norm(steps, lr, training.momentum, training.nesterov, drift.mu)
            delta /= np.where(tau > 0, tau, 1.0).astype(np.float32)[:, None]
            leaves["tau"] = tau.astype(np.float32)[:, None]
        elif (fair := find(self.local, Fair)) is not None:
            leaves["h"] = self._fair(cohort, fair.q, delta, lr)
        out = Output(leaves, cohort.data.sizes.astype(np.float64), {"loss": fit.loss, **fit.extra}, state)
        return self._reply(cohort, out)

    def _fit(
        self, models: F32, row: I64, cohort: Cohort, keys: U64, training: Training, lr: float, drift: Drift,
        moments: F32 | None = None, fold: Folding | None = None,
    ) -> tuple[Fit, I64]:  # fmt: skip
        plan = make_plan(cohort.data, keys, training, cohort.steps)
        more: dict[str, Any] = {} if moments is None else {"moments": moments}
        more |= {} if fold is None else {"fold": fold}
        with naming(cohort.clients):
            return self.net.fit(models, row, cohort.data, plan, keys, training, lr, drift, **more), plan.steps

    def _folding(self, cohort: Cohort, fold: Mean | Coverage) -> Folding | None:
        """The sum asked of the net in place of rows; None where rows are wanted after all."""
        weight = cohort.data.sizes.astype(np.float64)
        cap = 2.0**62 / max(cohort.asked, 1)
        if not self.folds or cohort.config.get("reply") == "model" or bool((weight > cap * fold.weight_step).any()):
            return None
        weights = integer_weights(weight, fold.weighted, fold.weight_step)
        clip = next((one.max_norm for one in fold.before if isinstance(one, Clip)), 0.0)
        return Folding(fold.step, cap * fold.step, weights, clip)

    def _folded(self, cohort: Cohort, fold: Folding, fit: Fit) -> Output:
        """The reply of clients whose deltas were summed where they lay."""
        assert cohort.fold is not None
        assert fit.total is not None
        assert fit.refused is not None
        weight = int(fold.weights[~fit.refused].sum())
        total = Total(fit.total, weight, fold.step, cohort.fold.weight_step)
        sizes = cohort.data.sizes.astype(np.float64)
        return Output({"delta": total}, sizes, {"loss": fit.loss, **fit.extra}, refused=fit.refused)

    def _drift(self, cohort: Cohort, seen: F32 | None) -> Drift:
        """The affine correction that `local` asks for; idle when it asks for none."""
        mu, a = 0.0, None
        if (proximal := find(self.local, Proximal)) is not None:
            mu += proximal.mu
        if find(self.local, ControlVariate) is not None:
            c = self._server_variate(cohort)
            a = np.broadcast_to(c, (cohort.n, len(c))) if seen is None else c - seen
        elif (dynamic := find(self.local, Dynamic)) is not None:
            mu += dynamic.alpha
            a = None if seen is None or not dynamic.alpha else -seen
        return Drift(a, mu)

    def _server_variate(self, cohort: Cohort) -> F32:
        """SCAFFOLD's c, `[P]`."""
        c = cohort.inputs.get("c")
        if not isinstance(c, np.ndarray) or c.shape != (self.net.layout.size,):
            said = "nothing" if c is None else f"shape {np.shape(c)}"
            raise UsageError(
                f"ControlVariate needs the server's c of {self.net.layout.size} floats in inputs: got {said}."
            )
        return np.asarray(c, np.float32)

    def _variate(self, cohort: Cohort, delta: F32, steps: I64, lr: float) -> F32:
        """SCAFFOLD's option II: c_i+ - c_i = (x - y_i) / (K_i lr) - c, `[n, P]`; 0 for who took no step."""
        moved = (steps > 0) & (lr > 0)
        scale = -1.0 / np.where(moved, steps * lr, 1.0)
        dc = delta * scale.astype(np.float32)[:, None]
        dc -= self._server_variate(cohort)
        dc[~moved] = 0.0
        return dc

    def _fair(self, cohort: Cohort, q: float, delta: F32, lr: float) -> F32:
        """q-FFL, alg. 2: scales `delta` in place and gives h `[n, 1]`; L = 1 / lr, F the loss of the model sent."""
        lipschitz = 1.0 / lr if lr else 0.0
        delta *= np.float32(lipschitz)
        if q == 0:
            return np.full((cohort.n, 1), lipschitz, np.float32)
        loss = self.net.evaluate(cohort.models, cohort.row, cohort.data)["loss"] + 1e-10
        square = np.array([float(np.dot(one, one)) for one in delta])
        delta *= (loss**q).astype(np.float32)[:, None]
        return (q * loss ** (q - 1) * square + lipschitz * loss**q).astype(np.float32)[:, None]

    def cost(self, examples: I64, layout: Layout, config: Mapping[str, Scalar]) -> Cost:
        """FLOPs of the examples really taken, bytes of the vectors that travel each way, memory of a training step.

        Memory is the peak of the step that `work.submodel.declared` computes, with what declarations keep beside it: of
        declared layers, and of torch nets of which it was asked before (a plan asks); of others, the vectors alone.
        Whole vectors travel, also the personal part (as zeros on the way up), as the drivers send them.
        """
        training, _ = settings(self.training, config)
        net = self.net if layout == self.net.layout else smaller_net(self.net, layout) or self.net
        net = compress.trained(net, self.net, self.local)
        sizes = np.asarray(examples, np.int64)
        taken = passes_and_steps(sizes, training)[2].astype(np.float64)
        down, up, held = 1, 1, 2
        held += training.moments
        extra = 0.0
        for one in self.local:
            match one:
                case ControlVariate():
                    down, up, held = down + 1, up + 1, held + 2
                case Dynamic():
                    held += 1
                case Twin():
                    taken, held = taken * 2, held + 1
                case Personal(head_epochs=epochs):
                    taken = taken + epochs * sizes
                case Normalised():
                    extra += 4.0
                case Fair(q):
                    extra += 4.0
                    taken = taken + (sizes / 3 if q else 0.0)
                case _:
                    pass
        vector = 4.0 * layout.size
        local = self.local if layout == self.net.layout else of_level(self.local, self.net, layout)
        sent, back, net = compress.travelling(local, net, layout)
        step = _step_of(self.net, training, layout, self.local)
        small = vector if find(self.local, LowRank) is None else 4.0 * net.layout.size
        memory = small * held if step is None else step
        more_down, more_up = vector * (down - 1), vector * (up - 1) + extra
        return Cost(net.flops() * taken, sent + more_down, back + more_up, memory)

    def steps(self, examples: I64, config: Mapping[str, Scalar]) -> I64:
        """Local steps of clients with that many `examples`, `[n]`, when nothing limits them."""
        return passes_and_steps(np.asarray(examples, np.int64), settings(self.training, config)[0])[1]

    def alike(self, config: Mapping[str, Scalar]) -> Any:
        """What of a config matters here: asks for which this is equal may be computed in one stack."""
        return (*settings(self.training, config), config.get("reply"))

    def slots(self, layout: Layout) -> Mapping[str, int]:
        """The client-state slot that `local` keeps, see `slots_of`."""
        return slots_of(self.local, layout, self.training)


def _anchored(drift: Drift, cohort: Cohort, row: I64) -> Drift:
    """`drift` pulling to the models sent, where a fit starts from others under another `row`."""
    if not drift.mu or row is cohort.row:
        return drift
    models = cohort.models
    one = len(models) == 1
    return replace(drift, ref=np.broadcast_to(models, (cohort.n, models.shape[1])) if one else models[cohort.row])


def _subtract(end: F32, models: F32, row: I64) -> None:
    """end -= models[row], in place, without a copy of the models."""
    if len(models) == 1:
        end -= models[0]
        return
    for i, r in enumerate(row):
        end[i] -= models[r]
