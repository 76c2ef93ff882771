"""For tests of your own algorithms: a driver with faults, transcripts, laws, and tiny problems with known answers."""

from fieldfare.testing.checks import laws
from fieldfare.testing.loopback import Loopback, loop
from fieldfare.testing.script import Crash, Fault
from fieldfare.testing.toys import Asking, Echo, Quadratics, Slots, Spoilt, quadratics, simulate
from fieldfare.testing.transcript import Recorded, Step, Transcript, digest

__all__ = [
    "Asking", "Crash", "Echo", "Fault", "Loopback", "Quadratics", "Recorded", "Slots", "Spoilt", "Step", "Transcript",
    "digest", "laws", "loop", "quadratics", "simulate",
]  # fmt: skip
