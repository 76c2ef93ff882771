"""Quorums: who counts, when the gather is over, and why the others are missing; alike simulated and by messages."""

from __future__ import annotations

import numpy as np
import pytest

from fieldfare.core.effects import Run
from fieldfare.core.errors import UsageError
from fieldfare.core.events import Gathered
from fieldfare.core.folds import Mean
from fieldfare.core.quorum import ALL, Everyone, Quorum, Sample
from fieldfare.fleet.fleet import Fleet
from fieldfare.testing import Asking, loop, quadratics, simulate

PROBLEM = quadratics(n=6)
SLOW = np.array([4.0, 1.0, 3.0, 1.0, 6.0, 2.0], np.float32)


def gathered(run: Run, driver=simulate, **fleet):
    """The one `Gathered` of `run` on six devices that take `SLOW` seconds, and when it came."""
    world = PROBLEM.world(Asking((run,)), fleet=Fleet(**{"overhead_s": SLOW, **fleet}))
    end = driver(world, keep=True)
    assert end.reason == "all answered"
    (event,) = end.transcript.events(Gathered)
    return event, end.transcript.steps[-1].now


def ask(quorum: Quorum = ALL, on=None, **more) -> Run:
    return Run("echo", Everyone() if on is None else on, 1, quorum=quorum, reduce={"id": Mean()}, **more)


both = pytest.mark.parametrize("driver", [simulate, loop], ids=["simulator", "loopback"])


def told(event: Gathered) -> dict[str, list[int]]:
    return {reason: ids.tolist() for reason, ids in event.missing.items()}


@both
def test_by_default_a_gather_waits_for_the_slowest(driver):
    event, now = gathered(ask(), driver)
    assert (event.clients.tolist(), now, event.missing) == ([0, 1, 2, 3, 4, 5], 6.0, {})
    assert event.output["id"].value[0] == 2.5
    assert event.metrics["id"].tolist() == [0, 1, 2, 3, 4, 5]


@both
def test_a_quorum_takes_the_fastest_and_calls_the_rest_late(driver):
    event, now = gathered(ask(Quorum(need=3)), driver)
    assert (event.clients.tolist(), now, told(event)) == ([1, 3, 5], 2.0, {"late": [0, 2, 4]})


@both
def test_of_equally_fast_clients_the_lower_id_counts(driver):
    event, _ = gathered(ask(Quorum(need=1)), driver)
    assert event.clients.tolist() == [1]


@both
def test_a_deadline_ends_the_gather_and_includes_its_own_instant(driver):
    event, now = gathered(ask(Quorum(deadline_s=3.0)), driver)
    assert (event.clients.tolist(), now, told(event)) == ([1, 2, 3, 5], 3.0, {"late": [0, 4]})


@both
def test_a_quorum_reached_before_the_deadline_does_not_wait_for_it(driver):
    event, now = gathered(ask(Quorum(need=2, deadline_s=5.0)), driver)
    assert (event.clients.tolist(), now) == ([1, 3], 1.0)


@both
def test_a_quorum_missed_by_the_deadline_takes_what_came(driver):
    event, now = gathered(ask(Quorum(need=5, deadline_s=3.5)), driver)
    assert (event.clients.tolist(), now, told(event)) == ([1, 2, 3, 5], 3.5, {"late": [0, 4]})


@both
def test_a_deadline_before_every_reply_gives_one_empty_gather(driver):
    event, now = gathered(ask(Quorum(deadline_s=0.5)), driver)
    assert (len(event.clients), event.weight, event.output, now) == (0, 0.0, {}, 0.5)
    assert told(event) == {"late": [0, 1, 2, 3, 4, 5]}


@both
def test_an_ask_of_nobody_is_answered_at_once_and_empty(driver):
    event, now = gathered(ask(on=np.empty(0, np.int64)), driver)
    assert (len(event.clients), event.output, event.missing, now) == (0, {}, {}, 0.0)


@both
@pytest.mark.parametrize(
    "quorum", [ALL, Quorum(deadline_s=3.0), Quorum(need=4, deadline_s=3.0), Quorum(need=2), Quorum(need=6)]
)
def test_drop_outs_are_named_and_slow_clients_are_late_whoever_dropped_out(driver, quorum):
    event, now = gathered(ask(quorum, key=("k",)), driver, drop_out=0.3)
    out = event.missing["drop-out"].tolist()
    alive = [c for c in range(6) if c not in out]
    assert 0 < len(out) < 5
    limit = quorum.deadline_s or np.inf
    inside = sorted((c for c in alive if SLOW[c] <= limit), key=lambda c: (SLOW[c], c))
    counted = inside[: quorum.need]
    assert event.clients.tolist() == sorted(counted)
    assert event.missing.get("late", np.empty(0)).tolist() == sorted(set(alive) - set(counted))
    full = len(counted) == (quorum.need or 6)
    assert now == (SLOW[counted[-1]] if full else limit if quorum.deadline_s else 6.0)


@both
def test_if_all_drop_out_the_gather_is_empty_and_waits_for_its_deadline_or_the_slowest_asked(driver):
    for quorum, waited in ((ALL, 6.0), (Quorum(need=2), 6.0), (Quorum(deadline_s=7.0), 7.0)):
        event, now = gathered(ask(quorum), driver, drop_out=1 - 1e-12)
        assert (told(event), now) == ({"drop-out": [0, 1, 2, 3, 4, 5]}, waited)


@both
def test_over_selection_waits_for_the_wanted_number_of_a_larger_sample(driver):
    event, _ = gathered(ask(Quorum(need=2), on=Sample(4)), driver)
    assert len(event.clients) == 2
    assert len(event.missing["late"]) == 2
    drawn = np.concatenate([event.clients, event.missing["late"]])
    assert SLOW[event.clients].max() <= SLOW[event.missing["late"]].min()
    assert len(set(drawn.tolist())) == 4


@both
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (ask(Quorum(need=7)), r"Quorum\(need=7\) can never be met by 6 clients: use need <= 6."),
        (ask(Quorum(late="next")), r"late='next'"),
        (ask(on=Sample(7)), r"Sample\(7\) can never be drawn from a population of 6: use a cohort of at most 6."),
        (ask(on=np.array([1, 9])), r"a Run asks device 9: the population has 0..5."),
        (ask(on=np.array([-1, 2])), r"a Run asks device -1: the population has 0..5."),
        (ask(on=np.array([2, 2])), r"a Run asks device 2 twice: name each once."),
        (ask(on=Sample(2, where="charging")), r"the fleet has no such column \(it has: none\)"),
        (ask(on=Sample(2, by="speed")), r"by='speed': no selection rule has this name; there are uniform, "),
        (Run("sing", Everyone(), 1), r"no work is called 'sing': this job binds train, evaluate, echo."),
        (Run("echo", ("nobody",), 1), r"no node is called 'nobody': this run has central."),
        (Run("echo", ("central",), 1), r"node 'central' runs 'echo' on itself but has no device: place it on one."),
    ],
)
def test_an_impossible_ask_is_refused_in_one_line(driver, run, message):
    with pytest.raises(UsageError, match=message) as caught:
        gathered(run, driver)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"need": 0}, {"deadline_s": 0.0}, {"deadline_s": -1.0}, {"deadline_s": np.nan}])
def test_a_quorum_that_makes_no_sense_is_refused_at_construction(wrong):
    with pytest.raises(UsageError):
        Quorum(**wrong)
