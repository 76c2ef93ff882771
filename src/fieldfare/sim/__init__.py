"""The simulator: a virtual clock, one event heap, and training computed lazily in stacked calls."""
