"""Statistics of proxies and of fairness against numbers worked out by hand."""

from math import log2

import numpy as np
import pytest

from fieldfare.assess.proxy.statistics import of_labels, of_sizes
from fieldfare.assess.trace.stats import _fair


def test_a_client_with_a_whole_batch_is_not_below_one():
    found = of_sizes(np.array([19, 20, 21, 5]), batch=20)
    assert found["below_batch"].value == 2
    assert found["records_max"].value == 21


def test_label_skew_weighs_clients_by_their_records():
    counts = np.array([[3, 0], [0, 1]])  # of all labels 3/4 are the first

    def entropy(*shares):
        return -sum(p * log2(p) for p in shares if p)

    own = [entropy((p + q) / 2, (2 - p - q) / 2) - (entropy(p, 1 - p) + entropy(q, 1 - q)) / 2
           for p, q in ((1.0, 0.75), (0.0, 0.75))]  # fmt: skip
    found = of_labels(counts, 0)
    assert found["label_skew"].value == pytest.approx(0.75 * own[0] + 0.25 * own[1])
    assert found["label_ratio"].value == pytest.approx(0.25)
    assert found["labels_per_client"].value == 1.0


@pytest.mark.parametrize(("now", "flagged"), [(70, 1), (79, 1), (81, 0), (100, 0)])
def test_a_group_is_flagged_where_less_than_four_fifths_of_its_share_is_left(now, flagged):
    before = {"old": 1_000, "new": 9_000}
    after = {"old": now, "new": 1_000 - now}
    first, then, ratio, told = _fair(before, after, "old", 1_000)
    assert (first, then) == (0.1, now / 1_000)
    assert ratio == pytest.approx(now / 100)
    assert told == flagged
