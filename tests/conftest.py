"""Settings for all tests: no deadlines (machines are noisy), the same examples in every run, samples of tables, and
the compiled core wherever it can train."""

import os
from collections import Counter

import pytest
from hypothesis import settings

os.environ.setdefault("FIELDFARE_PATH", "native")  # what is there, unmeasured: every run of the tests goes the same way

settings.register_profile("fieldfare", deadline=None, derandomize=True)
settings.load_profile("fieldfare")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `sampled(n)` every n-th case runs by default; the others are slow, and run with all tests."""
    seen = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None:
            name = item.nodeid.split("[")[0]
            if seen[name] % mark.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1
