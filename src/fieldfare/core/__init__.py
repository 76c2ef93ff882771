"""The vocabulary: events, effects, quorum, folds, context, parameters, randomness.

Standard library and NumPy only. Nothing here performs an effect; everything is data or a pure function.
"""
