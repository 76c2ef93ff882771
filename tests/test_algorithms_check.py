"""The table of what may be combined with what, and the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fieldfare.aggregate import chain, clip, coverage, krum, mean, mixed
from fieldfare.algorithms import (
    ALGORITHMS,
    Ditto,
    Entry,
    Evaluate,
    FedAvg,
    FedDyn,
    FedMedian,
    FedNova,
    FedPer,
    Krum,
    QFedAvg,
    Scaffold,
    build,
    check,
    entry,
)
from fieldfare.core.errors import UsageError
from fieldfare.core.folds import Stack
from fieldfare.core.local import ControlVariate, Dynamic, Personal, Proximal, Twin
from fieldfare.core.params import Layout
from fieldfare.core.quorum import Quorum, Sample
from fieldfare.work.net import Training

LAYOUT = Layout(("body.w", "body.b", "head.w"), ((2, 3), (3,), (3, 2)))


@dataclass(frozen=True)
class Half:
    """A view with one level: the first half."""

    def plan(self, clients: np.ndarray) -> np.ndarray:
        return np.zeros(len(clients), np.int64)

    def index(self, level: int) -> np.ndarray:
        return np.arange(3)

    def layout(self, level: int) -> Layout:
        return LAYOUT


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (FedMedian(1, 5), {"secure": True}, "secure aggregation"),
    (Evaluate(FedMedian(1, 5)), {"secure": True}, "secure aggregation"),
    (Krum(1, 5, byzantine=1), {"secure": True}, "secure aggregation"),
    (FedAvg(1, 5, quorum=Quorum(late="next")), {}, "stale"),
    (FedAvg(1, 5), {"deployed": True}, "deadline_s"),
    (FedAvg(1, 5), {"clients": 4}, "Sample\\(5\\) cannot be drawn from 4 clients"),
    (Krum(1, 6, byzantine=2), {}, "needs 7 replies and gets 6"),
    (Krum(1, 9, byzantine=2, quorum=Quorum(need=6)), {}, "needs 7 replies and gets 6"),
    (FedAvg(1, 6, server=chain(mixed(krum(2), 2))), {}, "needs 7 replies"),
    (FedMedian(1, 4, mix=2), {}, "needs 5 replies"),
    (Scaffold(1, 5), {"training": Training(momentum=0.9)}, "momentum=0.9"),
    (Scaffold(1, 5), {"training": Training(optimizer="adam")}, "'adam'"),
    (FedNova(1, 5), {"training": Training(optimizer="adam")}, "'adam'"),
    (QFedAvg(1, 5), {"training": Training(optimizer="adam")}, "'adam'"),
    (FedPer(1, 5, personal=["tail"]), {"layout": LAYOUT}, "no parameter is called 'tail'"),
    (FedPer(1, 5, personal=["body", "head"]), {"layout": LAYOUT}, "every parameter is personal"),
    (FedAvg(1, 5, local=(ControlVariate(),), slot="c"), {}, "use Scaffold"),
    (FedAvg(1, 5, local=(Dynamic(0.1),), slot="h"), {}, "use FedDyn"),
    (replace(Scaffold(1, 5), local=()), {}, "no local declaration"),
    (replace(Scaffold(1, 5), local=(ControlVariate(), Twin(1.0))), {}, "one slot"),
    (FedAvg(1, 5, local=(Personal(("head",)), Twin(1.0)), slot="twin"), {}, "one slot"),
    (replace(Ditto(1, 5), slot=None), {}, "keep 'twin'"),
    (FedAvg(1, 5, view=Half()), {}, "coverage"),
    (FedPer(1, 5, personal=["head"], server=chain(coverage()), view=Half()), {}, "sub-models"),
    (FedDyn(1, 5, server=chain(coverage()), view=Half()), {}, "sub-models"),
]
ALLOWED: list[tuple[Any, dict[str, Any]]] = [
    (FedAvg(1, 5, server=chain(clip(1.0), mean())), {"secure": True, "clients": 5}),
    (Scaffold(1, 5), {"training": Training(), "secure": True}),
    (FedNova(1, 5), {"training": Training(momentum=0.9)}),
    (FedAvg(1, 5), {"training": Training(optimizer="adam", momentum=0.9)}),
    (FedAvg(1, 5, quorum=Quorum(deadline_s=60.0)), {"deployed": True}),
    (Krum(1, 7, byzantine=2), {"clients": 7}),
    (FedPer(1, 5, personal=["head"]), {"layout": LAYOUT}),
    (FedAvg(1, 5, local=(Proximal(0.1), Personal(("head",))), slot="personal"), {"layout": LAYOUT}),
    (FedAvg(1, 5, server=chain(coverage()), view=Half()), {}),
]


@pytest.mark.parametrize(("algorithm", "job", "says"), REFUSED)
def test_a_job_that_could_only_go_wrong_is_refused_with_the_reason(algorithm: Any, job: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        check(algorithm, **job)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("algorithm", "job"), ALLOWED)
def test_a_job_that_can_work_is_not_refused(algorithm: Any, job: dict) -> None:
    check(algorithm, **job)


def test_an_algorithm_that_folds_late_replies_says_so() -> None:
    @dataclass(frozen=True)
    class Buffered:
        quorum: Quorum
        folds_late: bool = True

    check(Buffered(Quorum(late="next")))
    with pytest.raises(UsageError, match="Buffered does not fold stale"):
        check(Buffered(Quorum(late="next"), folds_late=False))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FedAvg(0, 5), "rounds >= 1"),
        (lambda: FedAvg(1, 5, quorum=Quorum(need=6)), "can never be met by 5 clients: use need <= 5"),
        (lambda: FedAvg(1, ("a", "b"), quorum=Quorum(need=3)), "can never be met by 2"),
        (lambda: FedAvg(1, 0), "at least one client"),
        (lambda: FedDyn(1, 5, alpha=0.0), "alpha"),
        (lambda: QFedAvg(1, 5, q=-1.0), "q=-1"),
        (lambda: Ditto(1, 5, lam=-1.0), "lam"),
        (lambda: FedPer(1, 5, personal="head"), "list of names"),
        (lambda: FedPer(1, 5, personal=[]), "list of names"),
        (lambda: build("fedrep", 1, 5, personal=["head"], head_epochs=0), "FedPer"),
        (lambda: build("fedprox", 1, 5, mu=-1.0), "mu"),
        (lambda: build("fedpros", 1, 5), "did you mean 'fedprox'"),
        (lambda: build("zzz", 1, 5), "use one of fedavg"),
        (lambda: build("fedavgm", 1, 5, betta=0.9), "it has lr, beta"),
        (lambda: build("krum", 1, 5), "krum needs byzantine="),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(make: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("known", [e for e in ALGORITHMS if e.model == "vector"], ids=lambda known: known.name)
def test_an_entry_builds_the_algorithm_of_its_name_and_describes_it(known: Entry) -> None:
    given = {
        name: value for name, value in (("quorum", Quorum(deadline_s=9.0)), ("work", "fit")) if name in known.options
    }
    example = {**known.example, "over": 1.0} if "over" in known.options else known.example
    made = build(known.name, 3, 4, **example, **given)
    assert made.name == known.name
    assert replace(made.on, by="uniform") == Sample(4)
    assert all(getattr(made, name) == value for name, value in given.items())
    assert set(given) == {"quorum", "work"} or known.cohort != "any"
    assert entry(known.name.upper()) is known
    assert known.summary == known.summary.strip(". ")
    assert "20" in known.paper
    assert set(known.example) <= set(known.options)
    assert any(isinstance(fold, Stack) for fold in known.folds.values()) == ("every row at the server" in known.needs)
    assert (getattr(made, "slot", None) is not None) == ("client state" in known.needs)
    assert getattr(made, "folds_late", False) == (known.cohort == "stream")


def test_names_of_algorithms_are_unique() -> None:
    assert len({known.name for known in ALGORITHMS}) == len(ALGORITHMS)


def test_options_of_an_entry_are_its_arguments_with_their_defaults() -> None:
    assert {"beta": 0.9, "lr": 1.0, "nesterov": False}.items() <= entry("fedavgm").options.items()
    assert {"server", "quorum", "local", "slot", "work"} <= set(entry("fedavg").options)
    assert "rounds" not in entry("krum").options
