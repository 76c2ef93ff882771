"""Settings for all tests: no deadlines (machines are noisy), and the same examples in every run."""

from hypothesis import settings

settings.register_profile("fieldfare", deadline=None, derandomize=True)
settings.load_profile("fieldfare")
