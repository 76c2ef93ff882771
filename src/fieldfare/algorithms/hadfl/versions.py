"""How far a device's model will have come: double exponential smoothing of reported versions (Brown, 1959).

HADFL counts a model's version in cumulative local steps, and predicts it because load disturbs devices. Here: the
smoothing of one device. Not here: who reports, and when. Invariant: a `Brown` depends on the reports alone, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from fieldfare.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Brown:
    """Smoothed reports `a`, smoothed once more `c`, of smoothing `s` in (0, 1)."""

    a: float
    c: float
    s: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.s < 1.0:
            raise UsageError(f"Brown(s={self.s}): a smoothing is between 0 and 1, such as 0.5.")

    @property
    def level(self) -> float:
        """The version now, 2 A - C."""
        return 2.0 * self.a - self.c

    @property
    def trend(self) -> float:
        """Versions gained per report, s / (1 - s) (A - C)."""
        return self.s / (1.0 - self.s) * (self.a - self.c)

    def report(self, version: float) -> Brown:
        """After one more report: A <- s v + (1 - s) A, C <- s A + (1 - s) C."""
        a = self.s * version + (1.0 - self.s) * self.a
        return Brown(a, self.s * a + (1.0 - self.s) * self.c, self.s)

    def ahead(self, reports: float) -> float:
        """The version expected so many reports from now, level + m trend.

        >>> steady(10.0, 3.0).ahead(2)
        16.0
        """
        return self.level + reports * self.trend


def steady(version: float, trend: float, s: float = 0.5) -> Brown:
    """The smoothing of a device that has always gained `trend` per report and is at `version`.

    Our reading starts from the plan, whose local steps are the trend; trend 0 is the usual start A = C = v_0.
    """
    lag = trend * (1.0 - s) / s
    return Brown(version - lag, version - 2.0 * lag, s)
