"""Should this model go federated, on which devices, at what cost: FLINT's questions, answered before anyone deploys.

After Wang et al., "FLINT: a platform for federated learning integration", MLSys 2023. Here: tools that each read and
write plain artefacts (`artefact`), and can be used alone: `bench` measures a training step, `trace` makes availability
of session logs, `proxy` federated data of a central table, `simulate` searches settings over virtual time, `forecast`
says what it takes, `decide` walks the workflow. Invariant: a number in a report names the artefact it comes from, by
hash.
"""

from __future__ import annotations
