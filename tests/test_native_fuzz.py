"""Random plans and calls of the native core: refused, or run with the same bits however they are run; never a crash."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_fuzz import KINDS, asked_wrongly, fuzz
from native_plans import BUILDS, build

SEEDS = st.integers(0, 2**48)


@pytest.fixture(scope="module", params=BUILDS)
def core(request: pytest.FixtureRequest) -> ModuleType:
    return build(request.param)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS)
def test_a_random_plan_is_refused_or_gives_the_same_bits_on_any_number_of_threads(core: ModuleType, seed: int) -> None:
    fuzz(core, seed)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS)
def test_a_call_with_wrong_arguments_is_refused_or_runs(core: ModuleType, seed: int) -> None:
    asked_wrongly(core, seed)


@pytest.mark.slow
def test_thousands_of_plans_and_calls_are_refused_or_run(core: ModuleType) -> None:
    ran: dict[str, int] = {}
    for seed in range(3000):
        draft, outcome = fuzz(core, seed)
        asked_wrongly(core, seed)
        if outcome == "ran":
            for kind in draft.kinds:
                ran[kind] = ran.get(kind, 0) + 1
    for kind in KINDS:  # the plans do reach every op
        assert ran.get(kind.removesuffix("_each"), 0) > 20, kind
