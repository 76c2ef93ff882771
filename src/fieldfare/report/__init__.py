"""From a run folder to one self-contained page, and from a study's tables to its claims.

`html.write_report`, `html.write_comparison`, `claims.compute_claims`, `read.read_run`. Nothing is imported here, so
that naming the package costs nothing.
"""
