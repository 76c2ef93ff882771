"""Everything that is written to disk: snapshots, client state, run folders, model files.

Imports `core` alone. Invariant: a file is either whole or detectably not; what a durable mark names survives a kill.
"""
