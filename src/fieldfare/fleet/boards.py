"""Well-known boards as devices: memory, speed and link of each, with where the numbers come from.

Here: a small table and `board`. Not here: fleets of phones (`templates`, `measured`). Invariant: memory, cores and
clock are the makers' data sheets, named in `source`; what they do not say (FLOPs a cycle, memory that a system keeps,
rates of a radio) is our estimate, says so, and stands in a column or constant of its own. None was measured by us.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.fleet.fleet import Fleet

LINUX_BYTES = 400e6
"""Memory that Linux, Python and a tensor library keep before the first step: our estimate (about 150 MB for a system
without a desktop, 250 MB for a process that has imported torch); at most 0.7 of what a board has."""

FIRMWARE = 0.25
"""Part of a microcontroller's memory that stack, radio and firmware keep: our estimate; with memory outside the chip,
too, which they hardly need, so that is on the safe side."""

LINKS = {
    # (down, up in bytes per second, latency in seconds): what a board gets of it in a house or hall, our estimates
    "ethernet": (11e6, 11e6, 0.01),  # estimate: 100 Mbit/s less a tenth
    "wifi": (4.3e6, 3.3e6, 0.03),  # as the phones of FLASH's table measured it (`templates.WIFI`); latency: estimate
    "wifi-serial": (5e5, 5e5, 0.05),  # estimate: TCP on a microcontroller, 4 Mbit/s
    "bluetooth": (8e4, 8e4, 0.05),  # estimate: Bluetooth LE at 2 Mbit/s, a third of it used
}  # fmt: skip
"""Links by kind."""


@dataclass(frozen=True, slots=True)
class Board:
    """One kind of device. `ram_bytes` as its data sheet has it, of which `kept_bytes` are not free for training.

    `flops_per_cycle`: float32 operations a core's clock sustains in training (our estimate, see `SPEEDS`).
    """

    name: str
    chip: str
    ram_bytes: float
    kept_bytes: float
    cores: int
    clock_hz: float
    flops_per_cycle: float
    link: str
    source: str

    @property
    def memory_bytes(self) -> float:
        """What is free for a training step."""
        return self.ram_bytes - self.kept_bytes

    @property
    def flops_per_s(self) -> float:
        return self.cores * self.clock_hz * self.flops_per_cycle

    @property
    def downlink_bytes_per_s(self) -> float:
        return LINKS[self.link][0]

    @property
    def uplink_bytes_per_s(self) -> float:
        return LINKS[self.link][1]

    @property
    def latency_s(self) -> float:
        return LINKS[self.link][2]

    @property
    def overhead_s(self) -> float:
        return 1.0 if self.ram_bytes > 1e8 else 0.1  # estimates: a process is started, or a loop goes on


SPEEDS = {
    # a third of the peak is what Linpack gets on a Raspberry Pi 4 (8 of 24 GFLOP/s in doubles: Feiereisen, 2022, all
    # four cores); training of small nets gets a fifth of the float32 peak, our estimate
    "a53": 1.6, "a57": 1.6, "a72": 1.6, "a76": 3.2, "arm11": 0.2,  # a fifth of 8, 8, 8 and 16; no vectors: estimate
    # microcontrollers with a unit for floats: two operations in four cycles, loads included; without one, in software
    "m7": 0.5, "m4f": 0.5, "lx7": 0.25, "lx6": 0.25, "m33": 0.5, "m0+": 0.03,  # estimates, all
}  # fmt: skip
"""Float32 operations a cycle of one core, sustained in training: our estimates."""


def _linux(name: str, chip: str, ram_mib: int, cores: int, ghz: float, core: str, link: str, source: str) -> Board:
    kept = min(LINUX_BYTES, 0.7 * ram_mib * 2.0**20)
    return Board(name, chip, ram_mib * 2.0**20, kept, cores, ghz * 1e9, SPEEDS[core], link, source)


def _micro(name: str, chip: str, ram_kib: int, mhz: float, core: str, link: str, source: str) -> Board:
    ram = ram_kib * 1024.0
    return Board(name, chip, ram, FIRMWARE * ram, 1, mhz * 1e6, SPEEDS[core], link, source)


_PI = "Raspberry Pi product brief"
BOARDS = {
    one.name: one
    # Linux: name, chip, RAM in MiB, cores, clock in GHz (data sheet); core, link (see above), data sheet.
    # Microcontrollers: name, chip, RAM in KiB, clock in MHz (data sheet); core, link (see above), data sheet.
    for one in (
        _linux("raspberry-pi-zero-w", "BCM2835", 512, 1, 1.0, "arm11", "wifi", _PI),
        _linux("raspberry-pi-zero-2-w", "BCM2710A1 (Cortex-A53)", 512, 4, 1.0, "a53", "wifi", _PI),
        _linux("raspberry-pi-3b+", "BCM2837B0 (Cortex-A53)", 1024, 4, 1.4, "a53", "wifi", _PI),
        _linux("raspberry-pi-4-2gb", "BCM2711 (Cortex-A72)", 2048, 4, 1.5, "a72", "ethernet", _PI),
        _linux("raspberry-pi-4-8gb", "BCM2711 (Cortex-A72)", 8192, 4, 1.5, "a72", "ethernet", _PI),
        _linux("raspberry-pi-5-8gb", "BCM2712 (Cortex-A76)", 8192, 4, 2.4, "a76", "ethernet", _PI),
        _linux("jetson-nano", "Tegra X1, CPU alone (Cortex-A57)", 4096, 4, 1.43, "a57", "ethernet",
               "NVIDIA Jetson Nano module data sheet"),
        _micro("esp32", "ESP32 (LX6; one of two cores trains)", 520, 240, "lx6", "wifi-serial",
               "Espressif ESP32 data sheet"),
        _micro("esp32-s3-8mb", "ESP32-S3 with 8 MB of external memory", 8192, 240, "lx7", "wifi-serial",
               "Espressif ESP32-S3-WROOM-1 data sheet, N16R8"),
        _micro("arduino-nano-33-ble", "nRF52840 (Cortex-M4F)", 256, 64, "m4f", "bluetooth",
               "Nordic nRF52840 product specification"),
        _micro("arduino-portenta-h7", "STM32H747 (Cortex-M7) with 8 MB of SDRAM", 8192, 480, "m7", "wifi-serial",
               "Arduino Portenta H7 data sheet"),
        _micro("stm32f746", "STM32F746 (Cortex-M7)", 320, 216, "m7", "wifi-serial", "ST STM32F745xx/746xx data sheet"),
        _micro("stm32h743", "STM32H743 (Cortex-M7)", 1024, 480, "m7", "wifi-serial", "ST STM32H743xI data sheet"),
        _micro("raspberry-pi-pico", "RP2040 (Cortex-M0+; one of two cores trains)", 264, 133, "m0+", "wifi-serial",
               "Raspberry Pi RP2040 data sheet"),
        _micro("raspberry-pi-pico-2", "RP2350 (Cortex-M33; one of two cores trains)", 520, 150, "m33", "wifi-serial",
               "Raspberry Pi RP2350 data sheet"),
    )
}  # fmt: skip
"""Boards by name."""


def board(name: str) -> Board:
    """The board called `name`.

    >>> board("esp32").memory_bytes
    399360.0
    """
    if name not in BOARDS:
        import difflib

        close = difflib.get_close_matches(name.lower(), BOARDS, 1, 0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"there is no board {name!r}: {hint}The table has {', '.join(BOARDS)}.")
    return BOARDS[name]


def boards(*names: str) -> Fleet:
    """A fleet with one device of each of these names, in order; its classes are the names.

    >>> boards("esp32", "raspberry-pi-5-8gb", "esp32").kind.tolist()
    [0, 1, 0]
    """
    kinds = tuple(dict.fromkeys(names))
    if not kinds:
        raise UsageError("boards() makes a fleet of the boards named: give at least one name.")
    made = [board(name) for name in names]

    def column(name: str) -> np.ndarray:
        return np.array([getattr(one, name) for one in made], np.float32)

    return Fleet(
        flops_per_s=column("flops_per_s"), downlink_bytes_per_s=column("downlink_bytes_per_s"),
        uplink_bytes_per_s=column("uplink_bytes_per_s"), overhead_s=column("overhead_s"),
        memory_bytes=column("memory_bytes"), latency_s=column("latency_s"), name="boards",
        kind=np.array([kinds.index(name) for name in names]), kinds=kinds,
        note="boards by their data sheets; speeds, links and memory kept by the system are estimates",
    )  # fmt: skip
