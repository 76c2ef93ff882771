"""Random streams: fixed for ever, different by key, the same alone and in company, flat in the population."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldfare.core import rng
from fieldfare.core.algorithm import Context

GOLDEN = {
    "derive": 14695109937062217655,
    "keys": [10027355943077216091, 291286801099485971],
    "bits": [3798942431507431666, 9098563821330842174],
    "choose": [295, 40, 240, 355],
    "stream": [983, 197, 559],
}


def test_the_streams_are_those_of_the_first_release():
    assert rng.derive(7, "train", 3) == GOLDEN["derive"]
    assert rng.keys(7, ("train", 3), np.array([0, 5])).tolist() == GOLDEN["keys"]
    assert rng.bits(np.array([9], np.uint64), np.arange(2)).tolist() == GOLDEN["bits"]
    assert rng.choose(7, ("cohort", 1), 4, 1000).tolist() == GOLDEN["choose"]
    assert rng.stream(7, "x").integers(0, 1000, 3).tolist() == GOLDEN["stream"]


def test_keys_of_other_types_or_other_cuts_are_other_streams():
    parts = [
        (1, "a"),
        ("1", "a"),
        (1, "b"),
        ("a", 1),
        ("1a",),
        (1, "a", 0),
        ("", 1, "a"),
        (),
        ("a", "b"),
        ("a\x1fsb",),
        ("asb",),
    ]
    found = {rng.derive(0, *key) for key in parts}
    assert len(found) == len(parts)
    assert rng.derive(1, 2) != rng.derive(2, 1) != rng.derive(12)


def test_a_context_draws_by_seed_and_key_and_not_by_node_or_time():
    draw = [Context(now, me, 3).rng("a", 1).random() for now, me in ((0.0, "x"), (9.0, "y"))]
    assert draw[0] == draw[1] != Context(0.0, "x", 4).rng("a", 1).random()


@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**62), min_size=1, max_size=8, unique=True))
def test_a_clients_key_does_not_depend_on_who_else_is_asked(seed, clients):
    ids = np.array(clients)
    together = rng.keys(seed, ("t",), ids)
    assert [int(rng.keys(seed, ("t",), ids[[i]])[0]) for i in range(len(ids))] == together.tolist()
    assert len(set(together.tolist())) == len(ids)


@given(st.integers(0, 1000), st.integers(1, 300), st.data())
def test_choose_gives_different_numbers_in_range_and_no_more_than_there_are(seed, n, data):
    k = data.draw(st.integers(0, n))
    got = rng.choose(seed, ("c",), k, n)
    assert len(got) == len(set(got.tolist())) == k
    assert all(0 <= i < n for i in got.tolist())


def test_choose_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="cannot choose 4 different numbers out of 3"):
        rng.choose(0, ("c",), 4, 3)


@pytest.mark.parametrize(("k", "n"), [(1, 10), (3, 10), (7, 10), (2, 1000)])
def test_every_client_is_drawn_equally_often(k, n):
    draws = 4000
    count = np.zeros(n)
    for i in range(draws):
        count[rng.choose(5, ("round", i), k, n)] += 1
    expected = draws * k / n
    chi2 = float(((count - expected) ** 2 / expected).sum()) / (1 - k / n)
    assert abs(chi2 - (n - 1)) < 5 * np.sqrt(2 * (n - 1))


def test_uniforms_and_normals_have_their_moments():
    key = np.array([rng.derive(1, "m")], np.uint64)
    u, z = rng.uniforms(key, np.arange(200_000)), rng.normals(key, np.arange(200_000))
    assert 0.0 <= u.min() < u.max() < 1.0
    assert abs(u.mean() - 0.5) < 0.004
    assert abs(u.var() - 1 / 12) < 0.002
    assert abs(z.mean()) < 0.012
    assert abs(z.var() - 1) < 0.02
    assert abs((z**4).mean() - 3) < 0.12
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.012


def test_neighbouring_streams_are_not_correlated():
    streams = rng.uniforms(rng.keys(0, ("s",), np.arange(200))[:, None], np.arange(500))
    assert np.abs(np.corrcoef(streams) - np.eye(200)).max() < 0.25
    assert np.abs(np.corrcoef(streams.T[:50]) - np.eye(50)).max() < 0.4
