"""Devices as columns: how fast they compute, how fast their links are, when they may work, what a task costs them.

`generate` makes a fleet up to match published figures (`fieldfare fleet describe` shows what it comes to);
`Availability` holds when devices may work.
"""

from fieldfare.fleet.availability import Availability
from fieldfare.fleet.boards import board, boards
from fieldfare.fleet.drift import Drift, DriftTable, drifting
from fieldfare.fleet.fleet import Fleet, phones, uniform
from fieldfare.fleet.generate import Generated, generate
from fieldfare.fleet.memory import MemoryTable
from fieldfare.fleet.network import Network
from fieldfare.fleet.parquet import write_fleet
from fieldfare.fleet.traces import from_file, phones_of, read_fleet

__all__ = [
    "Availability", "Drift", "DriftTable", "Fleet", "Generated", "MemoryTable", "Network", "board", "boards",
    "drifting", "from_file", "generate", "phones", "phones_of", "read_fleet", "uniform", "write_fleet",
]  # fmt: skip
