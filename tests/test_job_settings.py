"""Settings: types that are accepted or refused, in words a person understands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, TypedDict, Unpack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import fieldfare as ff
from fieldfare.algorithms import Evaluate, EvaluateOnClients, keep_optimizer
from fieldfare.config import plain
from fieldfare.core.errors import UsageError
from fieldfare.core.settings import accepts, hints_of, settings, unknown_key, words


class Shape(Protocol):
    def area(self) -> float: ...


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True), (1.0, int, False), (True, int, False), (np.int32(1), int, True), (np.bool_(1), int, False),
        (1, float, True), (1.5, float, True), (np.float32(1), float, True), ("1", float, False), (True, float, False),
        (None, float, False), (None, None, True), (None, int | None, True), (2, int | None, True),
        ("x", int | None, False),
        (True, bool, True), (1, bool, False), ("a", str, True), (b"a", str, False),
        ("sgd", Literal["sgd", "adam"], True), ("SGD", Literal["sgd", "adam"], False), (1, Literal[True], False),
        ((0.9, 1), tuple[float, float], True), ((0.9,), tuple[float, float], False),
        ([0.9, 1.0], tuple[float, float], False),
        ((), tuple[int, ...], True), ((1, 2, 3), tuple[int, ...], True), ((1, "2"), tuple[int, ...], False),
        (len, Callable[[Any], int], True), (3, Callable[[Any], int], False),
        ({}, Mapping[str, int], True), ([], Mapping[str, int], False), (["a"], Sequence[str], True),
        (np.zeros(3), NDArray[np.int64], True), ([0], NDArray[np.int64], False),
        (object(), Any, True), (object(), Shape, True),
    ],
)  # fmt: skip
def test_types(value, hint, fits):
    assert accepts(value, hint) is fits


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (int, "a whole number"), (float | None, "a number or None"), (int | float, "a whole number or a number"),
        (Literal["a", "b", "c"], "'a', 'b' or 'c'"), (tuple[int, ...], "a tuple of a whole number"),
        (Callable[[], None], "a function"), (NDArray[np.int64], "an array"), (Mapping[str, int], "a Mapping"),
        (str | str, "text"), (Any, "a value"), (UsageError, "a UsageError"),
    ],
)  # fmt: skip
def test_words(hint, said):
    assert words(hint) == said


class More(TypedDict, total=False):
    loud: bool


@settings
@dataclass(frozen=True, slots=True)
class Horn:
    pitch: float
    name: str = "horn"
    holes: tuple[int, ...] = ()
    case: Any = field(default=None, metadata={"use": "a box"})
    lid: int = field(default=1, metadata={"use": "a count of lids"})

    def __post_init__(self) -> None:
        if self.pitch < 0:
            raise UsageError("low")


@settings
def horn(pitch: float, *, holes: int = 0, **more: Unpack[More]) -> tuple[float, int, dict[str, Any]]:
    """Makes a horn."""
    return pitch, holes, dict(more)


def test_a_class_is_still_a_frozen_dataclass_with_its_own_checks():
    assert Horn(1.0) == Horn(pitch=1.0)
    assert replace(Horn(1.0), holes=(1, 2)).holes == (1, 2)
    with pytest.raises(FrozenInstanceError):
        Horn(1.0).pitch = 2.0  # type: ignore[misc]
    with pytest.raises(UsageError, match=r"^low$"):
        Horn(-1.0)
    assert list(inspect.signature(Horn).parameters) == ["pitch", "name", "holes", "case", "lid"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Horn(), "Horn(...): missing a required argument: 'pitch'; it takes pitch, name, holes, case, lid."),
        (
            lambda: Horn(1.0, "a", (), None, 1, 7),
            "Horn(...): too many positional arguments; it takes pitch, name, holes,",
        ),
        (lambda: Horn(pich=1.0), "unknown key 'pich' in Horn(...): did you mean 'pitch'?"),
        (lambda: Horn(1.0, xyz=1), "unknown key 'xyz' in Horn(...): it has pitch, name, holes, case, lid."),
        (lambda: Horn("high"), "Horn(pitch='high'): use a number."),
        (lambda: Horn(1.0, lid="x"), "Horn(lid='x'): use a count of lids."),
        (lambda: Horn(1.0, "x" * 80), ""),
        (lambda: Horn(1.0, holes="y" * 80), "Horn(holes=<str>): use a tuple of a whole number."),
        (lambda: horn("high"), "horn(pitch='high'): use a number."),
        (lambda: horn(1.0, loud=3), "horn(loud=3): use True or False."),
        (lambda: horn(1.0, lout=True), "unknown key 'lout' in horn(...): did you mean 'loud'?"),
        (lambda: horn(), "horn(...): missing a required argument: 'pitch'; it takes pitch, holes, loud."),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, said):
    if not said:
        assert make().name == "x" * 80
        return
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value).startswith(said)


def test_a_function_gets_what_it_was_given():
    assert horn(1, holes=np.int64(3), loud=False) == (1, 3, {"loud": False})
    assert type(horn(np.float32(1.5))[0]) is float
    assert horn.__doc__ == "Makes a horn."
    assert horn.__name__ == "horn"


def test_types_that_cannot_be_looked_up_are_not_checked():
    @settings
    @dataclass
    class Odd:
        x: Nowhere  # type: ignore[name-defined]  # noqa: F821

    assert hints_of(Odd) == {}
    assert Odd(3).x == 3


def test_the_nearest_name_is_suggested_or_all_are_listed():
    assert unknown_key("lerning", ["learning", "data"], "Job(...)").endswith("did you mean 'learning'?")
    assert unknown_key("zzz", ["learning", "data"], "Job(...)").endswith("it has learning, data.")
    assert unknown_key("zzz", [], "Job(...)").endswith("it has none.")


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none(), st.tuples(st.integers())))
def test_every_value_is_accepted_by_one_of_the_plain_types_that_name_it(value):
    kinds = [kind for kind in (bool, str, type(None), tuple[int, ...]) if accepts(value, kind)]
    number = accepts(value, float)
    assert len(kinds) + number == 1
    assert accepts(value, Any)
    assert not accepts(value, int) or number


def test_a_setting_inside_an_algorithm_is_found_by_its_name():
    from fieldfare.core.local import Proximal

    data = ff.data.synthetic(clients=4, classes=2, features=3)
    job = ff.Job(model=ff.mlp(3, 2), data=data, algorithm=ff.FedProx(rounds=1, cohort=2, mu=0.1))
    for key in ("algorithm.mu", "algorithm.local.0.mu"):
        assert job.with_overrides({key: "0.5"}).algorithm.local == (Proximal(0.5),)
    adam = ff.Job(model=ff.mlp(3, 2), data=data, algorithm=ff.FedAdam(rounds=1, cohort=2))
    assert adam.with_overrides({"algorithm.b1": "0.5"}).algorithm.server.after[0].b1 == 0.5
    with pytest.raises(ff.UsageError, match="unknown key 'mu'"):
        adam.with_overrides({"algorithm.mu": "0.5"})


MADE_BY = [
    (ff.FedAvgM, {"lr": 0.5, "beta": 0.8, "nesterov": True, "weighted": False}),
    (ff.FedAdam, {"lr": 0.03, "b1": 0.8, "b2": 0.9, "tau": 0.01}),
    (ff.FedYogi, {"lr": 0.03, "b1": 0.8, "b2": 0.9, "tau": 0.01}),
    (ff.FedAdagrad, {"lr": 0.03, "b1": 0.8, "tau": 0.01}),
    (ff.FedProx, {"mu": 0.5}),
    (ff.FedDyn, {"alpha": 0.5}),
    (ff.QFedAvg, {"q": 2.0, "lr": 0.5}),
    (ff.Ditto, {"lam": 0.5}),
    (partial(ff.FedRep, personal=["head"]), {"head_epochs": 3, "personal": ("body", "head")}),
    (partial(ff.Krum, byzantine=0), {"byzantine": 1, "keep": 2, "lr": 0.5, "mix": 1}),
]


def job_of(algorithm) -> ff.Job:
    data = ff.data.synthetic(clients=9, classes=2, features=3)
    return ff.Job(model=ff.mlp(3, 2), data=data, algorithm=algorithm)


def text_of(value) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("make", "arguments"), MADE_BY)
def test_an_argument_of_what_made_an_algorithm_is_a_setting_of_it(make, arguments):
    job, rounds = job_of(make(rounds=1, cohort=8)), {"algorithm.rounds": "3"}
    for name, value in arguments.items():
        for changes in ({f"algorithm.{name}": text_of(value)}, {f"algorithm.{name}": value}):
            assert job.with_overrides(changes).algorithm == make(rounds=1, cohort=8, **{name: value})
    whole = {f"algorithm.{name}": text_of(value) for name, value in arguments.items()}
    wanted = make(rounds=3, cohort=8, **arguments)
    for changes in (whole | rounds, rounds | whole, dict(reversed(whole.items())) | rounds):
        assert job.with_overrides(changes).algorithm == wanted
    assert job.algorithm == make(rounds=1, cohort=8)
    told = plain(job.with_overrides(whole).algorithm)
    for name, value in arguments.items():
        assert told[name] == (list(value) if isinstance(value, tuple) else value)


def test_an_argument_is_found_inside_wrappers_and_what_was_made_of_the_algorithm():
    tuned = job_of(EvaluateOnClients(Evaluate(keep_optimizer(ff.FedProx(1, 2, mu=0.1)))))
    changed = tuned.with_overrides(
        {"algorithm.mu": "0.5", "rounds": "4", "algorithm.inner.inner.quorum.deadline_s": "9"}
    )
    inner = ff.FedProx(4, 2, mu=0.5, quorum=ff.Quorum(deadline_s=9.0))
    assert changed.algorithm == EvaluateOnClients(Evaluate(keep_optimizer(inner)))
    assert plain(changed.algorithm)["inner"]["inner"]["mu"] == 0.5
    none = job_of(keep_optimizer(ff.FedProx(1, 2, mu=0)))
    assert none.with_overrides({"algorithm.mu": "0.5"}).algorithm == keep_optimizer(ff.FedProx(1, 2, mu=0.5))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("algorithm.lrr", 1.0, "unknown key 'algorithm.lrr'|unknown key 'lrr'.*did you mean 'lr'"),
        ("algorithm.lr", "fast", "algorithm.lr='fast': use a number"),
        ("algorithm.b1", 1.5, "b1=1.5"),
        ("algorithm.lr.more", 1, "no settings"),
        ("algorithm.made", 1, "unknown key 'made'"),
        ("algorithm.arguments", 1, "unknown key 'arguments'"),
    ],
)
def test_an_argument_that_does_not_exist_or_fit_is_refused_in_one_line(key, value, says):
    with pytest.raises(ff.UsageError, match=says) as caught:
        job_of(ff.FedAdam(1, 2)).with_overrides({key: value})
    assert "\n" not in str(caught.value)


def test_an_algorithm_changed_by_hand_is_no_longer_what_its_maker_made():
    from fieldfare.core.recipe import recipe_of

    made = ff.FedAdam(1, 2, lr=0.03)
    assert recipe_of(made).arguments["lr"] == 0.03
    assert (made, hash(made), repr(made)) == (changed := replace(made), hash(changed), repr(changed))
    assert recipe_of(changed) is None
    assert "lr" not in plain(changed)
    job = job_of(made).with_overrides({"algorithm.server.after.1.factor": "0.5"})
    assert job.algorithm.server.after[1].factor == 0.5
    assert "lr" not in plain(job.algorithm)


def test_a_recipe_is_of_the_outermost_maker_and_leaves_what_it_was_given_alone():
    from fieldfare.core.recipe import recipe_of

    @settings
    def gentle(algorithm: Any, note: str = "") -> Any:
        return algorithm

    inner = ff.FedAdam(1, 2)
    outer = gentle(inner, "slow")
    assert outer == inner
    assert recipe_of(outer).arguments == {"algorithm": inner, "note": "slow"}
    assert "lr" in recipe_of(inner).takes
