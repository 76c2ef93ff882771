"""The message flow of secure aggregation around any algorithm: keys, shares, masked sums, unmasking with drop-outs.

`SecAgg(inner)` turns each of the inner's `Run`s into four (Bonawitz et al., CCS 2017, fig. 4) and hands back one
`Gathered`. A toy: masks are hashes, shares travel in clear, keys are small. What is proved is the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fieldfare.aggregate import chain, mean, momentum
from fieldfare.algorithms import Evaluate, FedAvg
from fieldfare.core import rng
from fieldfare.core.effects import Run
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Collect, Folded, ModSum
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample
from fieldfare.core.work import Cost, Output
from fieldfare.fleet.fleet import Fleet
from fieldfare.testing import Fault, digest, laws, loop, quadratics, simulate

PRIME, STEP, WORD = 2**61 - 1, 2.0**-16, 2**32
PROBLEM = quadratics(n=8)
both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


def secret(client: int, round_: int, what: str) -> int:
    """What a device draws for itself (here from a hash, so that it need not be stored)."""
    return rng.derive(99, what, client, round_) % PRIME


def public(key: int) -> int:
    return pow(5, key, PRIME)


def mask(seed: int, size: int) -> np.ndarray:
    """`size` words below 2**32 from a seed."""
    return rng.bits(np.array([seed], np.uint64), np.arange(size)) % np.uint64(WORD)


def shares(value: int, ids: list[int], need: int, seed: int) -> list[int]:
    """Shamir: points of a random polynomial of degree need - 1 through (0, value)."""
    powers = [value, *(rng.derive(seed, "share", k) % PRIME for k in range(1, need))]
    return [sum(a * pow(i + 1, k, PRIME) for k, a in enumerate(powers)) % PRIME for i in ids]


def rebuild(points: dict[int, int]) -> int:
    """The value behind enough shares `{id: share}`."""
    total = 0
    for i, share in points.items():
        up = down = 1
        for j in points:
            if j != i:
                up, down = up * (j + 1) % PRIME, down * (j - i) % PRIME
        total += share * up * pow(down, PRIME - 2, PRIME)
    return total % PRIME


@dataclass(frozen=True)
class Phase:
    """The client's part of one phase: "keys", "shares", "masked" (around the inner's `work`) or "unmask"."""

    name: str
    work: Any

    def __call__(self, cohort) -> Output:
        if self.name == "masked":
            return self._masked(cohort)
        rows = [self._row(int(c), cohort.config["round"], cohort, at) for at, c in enumerate(cohort.clients)]
        return Output({"out": rows}, np.ones(cohort.n))

    def _row(self, me: int, r: int, cohort, at: int) -> np.ndarray:
        if self.name == "keys":
            return np.array([public(secret(me, r, "key"))], np.uint64)
        if self.name == "shares":
            ids, need = cohort.inputs["ids"].tolist(), cohort.config["need"]
            split = [shares(secret(me, r, what), ids, need, secret(me, r, what)) for what in ("key", "self")]
            return np.array(split, np.uint64)
        held = cohort.each[at]
        return np.where(cohort.inputs["gone"], held["key"], held["self"])

    def _masked(self, cohort) -> Output:
        out, r = self.work(cohort), cohort.config["round"]
        ids, keys = cohort.inputs["ids"].tolist(), cohort.inputs["keys"].tolist()
        rows = []
        for delta, weight, client in zip(out.leaves["delta"], out.weight, cohort.clients.tolist(), strict=True):
            plain = np.append(np.rint(delta.astype(np.float64) / STEP) * weight, weight).astype(np.int64)
            row = plain.astype(np.uint64) + mask(secret(client, r, "self"), len(plain))
            for other, key in zip(ids, keys, strict=True):
                if other != client:
                    pair = mask(pow(key, secret(client, r, "key"), PRIME), len(plain))
                    row = row + pair if client < other else row - pair
            rows.append(row % np.uint64(WORD))
        return Output({"masked": np.array(rows)}, np.ones(cohort.n), {})

    def cost(self, examples, layout, config) -> Cost:
        return self.work.cost(examples, layout, config) if self.name == "masked" else Cost(0.0, 8.0, 8.0)

    def slots(self, layout):
        return {}


@dataclass(frozen=True, eq=False)
class Aggregating:
    """The inner state, the inner's ask under way, and what the phases have brought so far."""

    inner: Any
    run: Run | None = None
    ids: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    shares: Any = None
    asked: Any = ()
    masked: Any = None


@dataclass(frozen=True)
class SecAgg:
    """`inner`, whose asks for a mean of "delta" are answered without anyone seeing a delta; `need` must survive."""

    inner: Any
    need: int
    quorum: Quorum = ALL

    def init(self, model):
        return Aggregating(self.inner.init(model))

    def step(self, state: Aggregating, event: Any, ctx: Any):
        match event:
            case Gathered(tag=("secagg", phase, tag)) if state.run is not None and state.run.tag == tag:
                return self._phase(state, phase, event, ctx)
            case _:
                return self._pass(state, event, ctx)

    def _pass(self, state: Aggregating, event: Any, ctx: Any):
        inner, effects = self.inner.step(state.inner, event, ctx)
        if inner is state.inner and not effects:
            return state, ()
        state, out = replace(state, inner=inner), []
        for effect in effects:
            if isinstance(effect, Run) and "delta" in effect.reduce:
                state = replace(state, run=effect)
                effect = self._ask(state, "keys", effect.on)
            out.append(effect)
        return state, tuple(out)

    def _ask(self, state: Aggregating, phase: str, on: Any, each: Any = None, **inputs: Any) -> Run:
        run, masked = state.run, phase == "masked"
        assert run is not None
        fold = {"masked": ModSum(32)} if masked else {"out": Collect()}
        config, key = {**run.config, "need": self.need}, run.key or (run.tag,)
        return Run(
            f"secagg/{phase}", on, ("secagg", phase, run.tag), run.model if masked else None, self.quorum, fold, config,
            inputs, each or {}, state=run.state if masked else None, key=key if masked else (*key, phase),
        )  # fmt: skip

    def _phase(self, state: Aggregating, phase: str, event: Gathered, ctx: Any):
        missing = np.setdiff1d(state.asked, event.clients) if len(state.asked) else np.empty(0, np.int64)
        if phase == "keys":
            missing = np.concatenate([*event.missing.values(), missing]).astype(np.int64)
            state = replace(state, asked=np.sort(np.concatenate([missing, event.clients])))
        if len(event.clients) < self.need:
            return self._hand_back(state, {}, event.clients[:0], ctx)
        got = event.output["masked" if phase == "masked" else "out"].value
        on = event.clients
        if phase == "keys":
            state = replace(state, ids=tuple(on.tolist()), keys=tuple(int(row[0]) for row in got.values()))
            return state, (self._ask(state, "shares", on, ids=on),)
        if phase == "shares":
            keep = np.isin(state.ids, on)
            keys = tuple(key for key, kept in zip(state.keys, keep, strict=True) if kept)
            split = np.stack(list(got.values()))[:, :, keep]
            state = replace(state, ids=tuple(on.tolist()), keys=keys, shares=split)
            return state, (self._ask(state, "masked", on, ids=on, keys=np.array(keys, np.uint64)),)
        ids = np.array(state.ids)
        if phase == "masked":
            state, gone = replace(state, masked=(on, got)), ~np.isin(ids, on)
            held = {
                c: {"key": state.shares[:, 0, at], "self": state.shares[:, 1, at]} for at, c in enumerate(state.ids)
            }
            return state, (self._ask(state, "unmask", on, {int(c): held[int(c)] for c in on}, gone=gone),)
        return self._hand_back(state, self._unmask(state, got), state.masked[0], ctx)

    def _unmask(self, state: Aggregating, got: Any) -> dict[str, Folded]:
        alive, total = state.masked
        total = total.astype(np.uint64)
        for at, client in enumerate(state.ids):
            value = rebuild({helper: int(row[at]) for helper, row in list(got.items())[: self.need]})
            if client in alive:
                total = total - mask(value, len(total))
                continue
            for other, key in zip(state.ids, state.keys, strict=True):
                if other in alive:
                    pair = mask(pow(key, value, PRIME), len(total))
                    total = total - pair if other < client else total + pair
        whole = (total % np.uint64(WORD)).astype(np.uint32).view(np.int32).astype(np.int64)
        weight = int(whole[-1])
        return {"delta": Folded((whole[:-1] * STEP / weight).astype(np.float32), float(weight))}

    def _hand_back(self, state: Aggregating, output: Any, clients: Any, ctx: Any):
        assert state.run is not None
        gone = np.setdiff1d(state.asked, clients)
        weight = output["delta"].weight if output else 0.0
        each = np.full(len(clients), weight / max(len(clients), 1))
        missing = {"drop-out": gone} if len(gone) else {}
        event = Gathered(state.run.tag, output, weight, clients, each, {}, missing)
        return self._pass(Aggregating(state.inner), event, ctx)


def world(algorithm, **more):
    works = {f"secagg/{name}": Phase(name, PROBLEM.work()) for name in ("keys", "shares", "masked", "unmask")}
    return PROBLEM.world(algorithm, works={"train": PROBLEM.work(), **works}, **more)


def plain(rounds: int, on: Any, *after: Any) -> FedAvg:
    """FedAvg by the plain fixed-point mean of the same step."""
    return FedAvg(rounds, on, server=chain(mean(step=STEP), *after))


def counted(end) -> list[list[int]]:
    """Whose masked rows counted, per round."""
    return [e.clients.tolist() for e in end.transcript.events(Gathered) if e.tag[1] == "masked"]


@both
@pytest.mark.parametrize("on", [Everyone(), np.array([1, 4, 6])])
def test_without_drop_outs_it_is_the_plain_mean_bit_for_bit(driver, on):
    for inner in (plain(3, on), plain(3, on, momentum(0.9))):
        assert digest(driver(world(SecAgg(inner, 3))).model) == digest(driver(PROBLEM.world(inner)).model)


@both
@pytest.mark.parametrize("seed", [1, 2, 3, 5])
def test_with_drop_outs_in_any_phase_it_is_the_plain_mean_over_the_survivors(driver, seed):
    fleet = Fleet(drop_out=0.15)
    end = driver(world(SecAgg(plain(1, Everyone()), 3), fleet=fleet, seed=seed), keep=True)
    (alive,) = counted(end)
    assert 3 <= len(alive) < 8
    reference = driver(PROBLEM.world(plain(1, np.array(alive)), seed=seed))
    assert digest(end.model) == digest(reference.model)


@both
def test_a_straggler_in_the_masked_phase_is_late_and_its_masks_are_removed(driver):
    slow = np.array([2e3] * 5 + [1.0] + [2e3] * 2, np.float32)
    secure = SecAgg(plain(2, Everyone()), 4, Quorum(deadline_s=5.0))
    end = driver(world(secure, fleet=Fleet(slow)), keep=True)
    assert counted(end) == [[0, 1, 2, 3, 4, 6, 7]] * 2
    reference = driver(PROBLEM.world(plain(2, np.array([0, 1, 2, 3, 4, 6, 7]))))
    assert digest(end.model) == digest(reference.model)


@pytest.mark.parametrize("phase", ["keys", "shares", "masked", "unmask"])
def test_a_message_lost_in_one_phase_loses_that_client_and_no_bit_of_the_others(phase):
    end = loop(world(SecAgg(plain(1, Everyone()), 4)), [Fault("lose", "reply", client=3, tag=("secagg", phase, 1))])
    on = np.array([c for c in range(8) if c != 3 or phase == "unmask"])
    assert digest(end.model) == digest(loop(PROBLEM.world(plain(1, on))).model)


@both
@pytest.mark.parametrize(("seed", "ends_in"), [(0, "unmask"), (4, "masked")])
def test_too_few_survivors_in_any_phase_give_one_empty_gather_and_the_run_goes_on(driver, seed, ends_in):
    end = driver(world(SecAgg(plain(1, Everyone()), 3), fleet=Fleet(drop_out=0.15), seed=seed), keep=True)
    assert end.transcript.events(Gathered)[-1].tag[1] == ends_in
    assert (end.reason, digest(end.model)) == ("rounds", digest(PROBLEM.model))


@both
def test_a_sample_smaller_than_the_threshold_changes_nothing(driver):
    end = driver(world(SecAgg(plain(2, Sample(4)), 5)))
    assert (end.reason, digest(end.model)) == ("rounds", digest(PROBLEM.model))


def test_the_server_sees_no_delta_and_no_plain_sum_before_the_last_phase():
    end = simulate(world(SecAgg(plain(1, Everyone()), 3)), keep=True)
    events = end.transcript.events(Gathered)
    assert [event.tag[1] for event in events] == ["keys", "shares", "masked", "unmask"]
    masked = events[2].output["masked"].value
    assert masked.max() > 2**28
    assert set(events[2].output) == {"masked"}


def test_secure_aggregation_keeps_all_laws_alone_and_evaluated():
    for algorithm in (SecAgg(plain(2, 5), 3), Evaluate(SecAgg(plain(1, Everyone()), 3))):
        laws(world(algorithm))
