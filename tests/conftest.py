"""Settings for all tests: no deadlines (machines are noisy), the same examples in every run, samples of tables."""

from collections import Counter

import pytest
from hypothesis import settings

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
