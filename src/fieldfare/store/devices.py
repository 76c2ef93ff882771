"""`fleet.json` and `devices.bin`: what a run folder keeps of its fleet, which it does not keep itself.

Here: the record, and reading. Not here: what is kept, and when (`fieldfare.devices`). `devices.bin` holds one packed
little-endian record for every `every`-th device, ids 0, `every`, 2 `every`, ...: `kind` int16 (an index into `kinds` of
`fleet.json`; -1: none), `available` int8 (whether it could work at all before the run ended; -1: not known yet),
`examples` int32. Invariant: no more than `MOST` devices are kept, 3.5 MB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError

FLEET, DEVICES = "fleet.json", "devices.bin"
DEVICE = np.dtype([("kind", "<i2"), ("available", "i1"), ("examples", "<i4")])
"""7 bytes."""
MOST = 500_000
"""Devices kept one by one; of larger fleets every second, third, ... is."""


def read_fleet(folder: str | Path) -> dict[str, Any]:
    """`fleet.json` of the run in `folder`; {} where none is kept."""
    path = Path(folder) / FLEET
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): restore the file or run the job again.") from None
    if not isinstance(facts, dict):
        raise UsageError(f"{path} holds {type(facts).__name__}, a JSON object is expected: run the job again.")
    return facts  # type: ignore[reportUnknownVariableType]


def read_devices(folder: str | Path) -> NDArray[Any] | None:
    """The devices kept of the run in `folder`, a structured array `[k]`; None where none are.

    Raises `UsageError` for a file that does not hold whole records of devices.
    """
    path = Path(folder) / DEVICES
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from None
    if len(raw) % DEVICE.itemsize:
        raise UsageError(
            f"{path} ends within a record ({len(raw)} bytes, records of {DEVICE.itemsize}): restore the file or run "
            "the job again."
        )
    devices = np.frombuffer(raw, DEVICE)
    if len(devices) and (devices["kind"].min() < -1 or devices["examples"].min() < 0):
        raise UsageError(f"{path} holds no devices (a class or a count below zero): restore it or run the job again.")
    return devices
