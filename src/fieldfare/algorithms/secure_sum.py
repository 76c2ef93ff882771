"""Sums of masked updates around any algorithm of rounds: replies tell neither an update nor who had which part.

Bonawitz et al., CCS 2017, figure 4: keys, shares of them, masked words, shares of those who are there and of those who
have gone. Each `Run` of the inner algorithm becomes four, and it is handed back one `Gathered`. With sub-models a
client takes its part of the whole model by itself, and adds masked weights of all coordinates to masked sums of them
(zeros where it has none), so that what is divided is known of all together alone (a server that made the plan of
levels itself knows it from there). Not here: the client's side (`work.masked`), the arithmetic (`aggregate.masking`).
Invariant: with the folds' own step the result is that of the plain fold over those whose masked words came, bit for
bit.

This is the shape of it, not the secrecy: shares go through the server as they are, and keys can be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fieldfare.aggregate.masking import folded, rebuild, summed, unmasked, width
from fieldfare.algorithms.check import check
from fieldfare.algorithms.evaluate import innermost
from fieldfare.algorithms.fedavg import FedAvg
from fieldfare.core.algorithm import Algorithm, Context
from fieldfare.core.effects import Effect, On, Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Event, Gathered
from fieldfare.core.folds import Collect, Coverage, Fold, Folded, Mean, ModSum
from fieldfare.core.params import Params
from fieldfare.core.quorum import Quorum
from fieldfare.core.settings import settings

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Summing:
    """The inner state; the inner's `run` under way and, as its phases bring them, those who take part: `asked` of them,
    `publics` by id, `split` uint64 `[n, 2, n]` (shares of key and own seed, by giver and holder), the `total`."""

    state: Any
    run: Run | None = None
    need: int = 0
    asked: tuple[int, ...] = ()
    publics: Mapping[int, int] = field(default_factory=dict[int, int])
    split: NDArray[np.uint64] | None = None
    alive: tuple[int, ...] = ()
    total: NDArray[np.uint64] | None = None


@settings
@dataclass(frozen=True, slots=True)
class SecureSum:
    """`inner`, whose rounds are answered by masked sums: `SecureSum(FedAvg(...))`, with or without sub-models.

    `need`: how many clients must stay to the end of a round, and how many could unmask together (None: more than half
    of those who began it); with fewer the round is lost, and the run goes on. `bits` of a word, 32 to 63: sums of all
    clients' numbers, in steps of the fold times weights, have to fit; whoever sends a larger number counts for nothing.
    Fewer bits want a coarser step, such as `server=chain(mean(step=2.0**-16))` for 40. A deadline holds for each of the
    four phases; of more clients than a quorum needs, those count whose masked words are there first. A client is sent
    the whole model and cuts its part out; up go `bits` / 8 bytes for each number, for each weight, and a share of 16
    bytes for each other client. No loss is told.
    """

    inner: Algorithm
    need: int | None = None
    bits: int = 63
    secure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.need is not None and self.need < 2:
            raise UsageError(f"SecureSum(need={self.need}): fewer than two clients hide nobody; use need >= 2.")
        if not 32 <= self.bits <= 63:
            raise UsageError(f"SecureSum(bits={self.bits}): use words of 32 to 63 bits.")
        inner = innermost(self.inner)
        name = getattr(inner, "name", type(inner).__name__)
        if getattr(inner, "folds_late", False):
            raise UsageError(
                f"SecureSum({name}): masks cancel among those who mask together, and without rounds nobody does: use "
                "FedAvg, or one made of it."
            )
        if not isinstance(inner, FedAvg):
            raise UsageError(
                f"SecureSum({name}): there is no sum over clients at a server: use FedAvg, or one made of it."
            )
        check(inner, secure=True)

    def init(self, model: Params) -> Summing:
        return Summing(self.inner.init(model))

    def step(self, state: Summing, event: Event, ctx: Context) -> tuple[Summing, Sequence[Effect]]:
        match event:
            case Gathered(tag=("secure", str(phase), tag)) if state.run is not None and state.run.tag == tag:
                return self._phase(state, phase, event, ctx)
            case _:
                return self._pass(state, event, ctx)

    def _pass(self, state: Summing, event: Event, ctx: Context) -> tuple[Summing, Sequence[Effect]]:
        inner, effects = self.inner.step(state.state, event, ctx)
        if inner is state.state and not effects:
            return state, ()
        state, out = replace(state, state=inner), list[Effect]()
        for effect in effects:
            if isinstance(effect, Run) and summed(effect.reduce):
                state = Summing(state.state, effect)
                effect = self._ask(state, "keys", effect.on)
            out.append(effect)
        return state, tuple(out)

    def _ask(
        self, state: Summing, phase: str, on: On, each: Mapping[int | str, Mapping[str, Any]] | None = None,
        **inputs: Any,
    ) -> Run:  # fmt: skip
        run, among = state.run, len(state.publics)
        assert run is not None
        key = run.key or ((run.tag,) if isinstance(run.tag, int | str) else run.tag)
        config = {**run.config, "secure": phase, "sum": repr(run.tag), "among": among, "need": state.need}
        config["bits"] = self.bits
        enough = min(run.quorum.need or among, among) if phase == "masked" else None
        quorum = Quorum(enough, run.quorum.deadline_s, timeout_s=run.quorum.timeout_s)
        tag: Any = ("secure", phase, run.tag)
        if phase == "masked":
            fold: Mapping[str, Fold] = {"masked": ModSum(self.bits)}
            told = {**run.inputs, **inputs}
            return Run(run.work, on, tag, run.model, quorum, fold, config, told, run.each, run.view, run.state, key)
        fold, own = {"out": Collect()}, key if phase == "keys" else (*key, phase)
        return Run(run.work, on, tag, None, quorum, fold, config, inputs, each or {}, key=own)

    def _phase(self, state: Summing, phase: str, event: Gathered, ctx: Context) -> tuple[Summing, Sequence[Effect]]:
        clients = [int(one) for one in event.clients] if event.output else []
        if phase == "keys":
            gone = [int(one) for ids in event.missing.values() for one in ids]
            need = len(clients) // 2 + 1 if self.need is None else self.need
            state = replace(state, asked=tuple(sorted({*clients, *gone})), need=max(need, 2))
        if len(clients) < state.need:
            return self._hand_back(state, {}, (), ctx)
        on = np.array(clients, np.int64)
        got: Any = event.output["masked" if phase == "masked" else "out"].value
        match phase:
            case "keys":
                state = replace(state, publics={one: int(got[one][0]) for one in clients})
                return state, (self._ask(state, "shares", on, ids=on),)
            case "shares":
                keep = np.isin(np.array(list(state.publics)), on)
                split = np.stack([got[one] for one in clients])[:, :, keep]
                state = replace(state, publics={one: state.publics[one] for one in clients}, split=split)
                keys = np.array([state.publics[one] for one in clients], np.uint64)
                return state, (self._ask(state, "masked", on, ids=on, keys=keys),)
            case "masked":
                ids, split = list(state.publics), state.split
                assert split is not None
                gone = ~np.isin(np.array(ids), on)
                held = {one: {"key": split[:, 0, at], "own": split[:, 1, at]} for at, one in enumerate(ids)}
                state = replace(state, alive=tuple(clients), total=got)
                return state, (self._ask(state, "unmask", on, {one: held[one] for one in clients}, gone=gone),)
            case _:
                return self._hand_back(state, self._sums(state, got), state.alive, ctx)

    def _sums(self, state: Summing, got: Mapping[int, Any]) -> dict[str, Folded]:
        """The folds of the inner's run, from the shares that are left."""
        assert state.run is not None
        assert state.total is not None
        helpers = sorted(got)[: state.need]
        secrets = {
            client: rebuild({helper: int(got[helper][at]) for helper in helpers})
            for at, client in enumerate(state.publics)
        }
        reduce = {leaf: fold for leaf, fold in state.run.reduce.items() if isinstance(fold, Mean | Coverage)}
        sums = unmasked(state.total, state.alive, state.publics, secrets, self.bits)
        return folded(sums, reduce, _sizes(reduce, state.run, len(sums)))

    def _hand_back(
        self, state: Summing, output: Mapping[str, Folded], clients: tuple[int, ...], ctx: Context
    ) -> tuple[Summing, Sequence[Effect]]:
        run = state.run
        assert run is not None
        gone = np.array(sorted({*state.asked} - {*clients}), np.int64)
        first = output[sorted(output)[0]].weight if output else 0.0
        weight = float(np.max(first, initial=0.0))
        each = np.full(len(clients), weight / max(len(clients), 1))
        missing = {"drop-out": gone} if len(gone) else {}
        event = Gathered(run.tag, dict(output), weight, np.array(clients, np.int64), each, {}, missing)
        return self._pass(Summing(state.state), event, ctx)


def _sizes(reduce: Mapping[str, Mean | Coverage], run: Run, words: int) -> dict[str, int]:
    """Numbers of each leaf: one whose name is not the model's own is of one number, or of the model's size."""
    size = 0 if run.model is None else run.model.size
    out = dict.fromkeys(reduce, size)
    for leaf in sorted(reduce, key=lambda leaf: leaf == "delta"):
        if sum(width(fold, out[one]) for one, fold in reduce.items()) > words:
            out[leaf] = 1
    return out
