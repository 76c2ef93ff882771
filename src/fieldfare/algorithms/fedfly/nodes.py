"""The nodes of a FedFly run, each with its key and what they must share given once.

Invariant: centre, edges and devices are of one job and one secret, or nothing is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fieldfare.algorithms.fedfly.central import Central
from fieldfare.algorithms.fedfly.device import Device
from fieldfare.algorithms.fedfly.edge import Edge
from fieldfare.algorithms.fedfly.tickets import key_of
from fieldfare.core.algorithm import Algorithm
from fieldfare.core.errors import UsageError

Nodes = dict[str, tuple[str, Algorithm]]


def nodes(central: Central, edge: Edge, device: Device, edges: int | Sequence[Edge]) -> Nodes:
    """`{node: (role, algorithm)}`: "central", "edge/0" and on, and the devices that `central` names.

    `edges`: how many like `edge`, or each one's own settings.

    >>> from fieldfare.algorithms.fedfly.messages import Plan
    >>> list(nodes(Central(1, {"device/0": Plan("first", 12)}), Edge(), Device(), 2))
    ['central', 'edge/0', 'edge/1', 'device/0']
    """
    each = [edge] * edges if isinstance(edges, int) else list(edges)
    if not each and central.plans:
        raise UsageError("nodes(edges=0): devices that train split need an edge; give at least one.")
    made: Nodes = {"central": ("central", central)}
    for at, one in enumerate(each):
        name = f"edge/{at}"
        made[name] = ("edge", replace(one, key=key_of(central.secret, name), job=central.job))
    names = (*central.plans, *central.whole)
    return made | {name: ("device", replace(device, key=key_of(central.secret, name))) for name in names}


def placed(nodes: Mapping[str, tuple[str, Algorithm]]) -> dict[str, int]:
    """`{node: device}` of the population: first the devices in order, then the edges."""
    own = [name for role in ("device", "edge") for name, (r, _) in nodes.items() if r == role]
    return {name: at for at, name in enumerate(own)}
