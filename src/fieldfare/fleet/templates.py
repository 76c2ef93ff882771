"""The presets of generated fleets, as data: every number with where it comes from.

Not here: how a fleet is made of them (`generate`). "Measured" names the public table a number was computed from, in
one pass of quantiles; "paper" the publication; "our choice" is said where there is neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

APP_DAY = (
    0.12, 0.05, 0.02, 0.00, 0.00, 0.05, 0.20, 0.45, 0.70, 0.88, 0.97, 1.00,
    0.97, 0.93, 0.90, 0.88, 0.86, 0.80, 0.70, 0.62, 0.57, 0.50, 0.38, 0.24,
)  # fmt: skip
"""Where between trough and peak an app's use lies, by local hour: our choice, one peak a day as in FLINT's Fig. 2."""

CHARGING_DAY = (
    1.00, 0.95, 0.85, 0.70, 0.55, 0.40, 0.28, 0.20, 0.12, 0.06, 0.02, 0.00,
    0.00, 0.02, 0.06, 0.12, 0.20, 0.28, 0.38, 0.50, 0.62, 0.74, 0.86, 0.95,
)  # fmt: skip
"""How often phones are put on charge, by local hour: our choice, so that the share on charge is highest after midnight
and lowest at noon. (Measured, 30 phones of ExtraSensory: 64 % of minutes at 5 h, 13 % at 9 h; FLASH's hours are not
known to be local.)"""

ZONES: Mapping[str, tuple[tuple[float, float], ...]] = {
    "one": ((0.0, 1.0),),
    "us": ((-5.0, 0.47), (-6.0, 0.33), (-7.0, 0.07), (-8.0, 0.13)),
    "world": ((-8.0, 0.05), (-6.0, 0.08), (-5.0, 0.10), (-3.0, 0.07), (0.0, 0.06), (1.0, 0.14), (3.0, 0.08),
              (5.5, 0.18), (8.0, 0.18), (9.0, 0.06)),
}  # fmt: skip
"""Hours east of UTC and share of devices. "us": about the population of the four zones; "world": our choice."""

Kind = tuple[str, float, float, float, float, float]
"""(name, share of devices, speed relative to the median, memory in bytes, watts computing, share with a recent OS)."""

LINKEDIN_KINDS: tuple[Kind, ...] = (
    ("ios-new", 0.18, 1.90, 4e9, 4.0, 1.00),
    ("ios-mid", 0.21, 1.40, 4e9, 3.5, 1.00),
    ("ios-old", 0.11, 0.85, 2e9, 2.5, 0.83),
    ("android-high", 0.10, 1.50, 8e9, 4.0, 1.00),
    ("android-mid", 0.20, 0.75, 4e9, 3.0, 0.97),
    ("android-low", 0.20, 0.40, 2e9, 2.0, 0.774),
)
"""iOS: shares of FLINT's Fig. 1 (iPhone 12 and 13: 36 %, 10 and 11: 41 %, older: the rest); half the devices iOS, the
split of Android (a flat tail in the figure), speeds and memory: our choice. The last column gives Table 1's 93 %."""

FLASH_KINDS: tuple[Kind, ...] = (
    ("low", 0.5315, 0.60, 3e9, 2.0, 1.0),
    ("mid", 0.4640, 1.68, 4e9, 3.0, 1.0),
    ("high", 0.0045, 5.51, 8e9, 4.5, 1.0),
)
"""Shares and speeds: measured, FLASH's three classes (18,820 : 16,428 : 159 users; a batch of its FEMNIST CNN takes
1642 / 588 / 179 ms), relative to their median. Memory: our choice."""

PLAIN_KINDS: tuple[Kind, ...] = (
    ("low", 0.25, 0.4, 2e9, 2.0, 1.0),
    ("mid", 0.50, 1.0, 4e9, 3.0, 1.0),
    ("high", 0.25, 2.5, 8e9, 4.0, 1.0),
)
"""Our choice: quarters of the market around the median."""

COMMON: Mapping[str, Any] = {
    # 103 MFLOP an example, ten a batch (our reading), 588 ms on FLASH's middle class and 1642 ms on its low one
    "flops_per_s": 1.0e9,
    # no training power of a phone was found measured: the watts of the classes and of the radio (Wi-Fi) are our choice
    "radio_w": 1.0,
    "overhead_s": 1.0,  # our choice
    "latency_s": 0.03,  # our choice for Wi-Fi; 5G and 4G tests of the SIGCOMM 2021 artifact measured 0.059
    "noise": 0.1,  # FLASH measured 1 % to 18 % between batches of one phone, 5 % in the middle
    "drop_out": 0.0,
}
WIFI: Mapping[str, float] = {
    # measured: medians, sigma of the logarithm and their correlation over the 19 phones of FLASH's Wi-Fi table
    "downlink_bytes_per_s": 4.3e6, "uplink_bytes_per_s": 3.3e6,
    "downlink_sigma": 0.47, "uplink_sigma": 0.68, "link_correlation": 0.45,
}  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "flint-strict": {
        **COMMON, **WIFI,
        "told": "FLINT (Wang et al., MLSys 2023): 22 % of devices meet Wi-Fi, battery and OS; trough/peak 0.07-0.15",
        "wifi": 0.70, "battery": 0.34,  # paper, Table 1 (the third criterion, OS: 0.93, is in the kinds)
        "kinds": LINKEDIN_KINDS,
        "speed_sigma": 0.40,  # with the classes' spread 0.65 in all: paper, Table 5 [0.61 to 0.67 over 27 devices]
        "day": APP_DAY, "trough": 0.095,  # so that the curve's trough is 0.11 of its weekly peak: Fig. 2 says 0.15 and
        # the text 14 times
        "peaks": (0.95, 1.00, 0.97, 0.93, 0.86, 0.65, 0.67),  # Fig. 2: weekdays 0.8 to 1.0, weekend 0.64 to 0.68
        "zones": "us",  # our choice: a trough that deep leaves no room for users all over the world
        # session length: our choice, 10 min in the mean; FLINT's Fig. 8 (7 % interrupted) wants several minutes
        "session_s": 360.0, "session_sigma": 1.0, "short_share": 0.0, "short_s": 10.0, "short_sigma": 1.0,
        "device_sigma": 0.3, "flap_share": 0.0, "flap_s": 10.0, "flap_sigma": 1.0,
        "never": 0.0, "load": (2.2, 36.0), "most": 0.35,  # our choice: eligible devices are available 6 % of the time
    },
    "flash-charging": {
        **COMMON, **WIFI,
        "told": "FLASH (Yang et al., WWW 2021): charging and on Wi-Fi, as 240 of its phones measured over 4.5 days",
        "wifi": 1.0, "battery": 1.0, "kinds": FLASH_KINDS, "speed_sigma": 0.3,  # within a class: our choice
        "day": CHARGING_DAY, "trough": 0.125, "peaks": (1.0,) * 7, "zones": "one",
        # all measured: 4 % never; 25 % of windows under 35 s, median 14 min; half the gaps are a flapping network
        "session_s": 2600.0, "session_sigma": 1.3, "short_share": 0.33, "short_s": 14.0, "short_sigma": 1.3,
        "device_sigma": 0.4, "flap_share": 0.45, "flap_s": 4.0, "flap_sigma": 1.8,
        "never": 0.022, "load": (1.45, 9.2), "most": 0.97,
    },
    "fedscale-charging": {
        **COMMON,
        "told": "FedScale (Lai et al., ICML 2022): available while charging; trough/peak 1:4",
        "wifi": 1.0, "battery": 1.0, "kinds": PLAIN_KINDS,
        "speed_sigma": 0.45,  # with the classes' 0.75 in all: measured, AI-Benchmark scores of 279 phones of FLASH
        # FedScale's capacities: median 6.1 Mbit/s and 26 % below 3; one figure for both directions
        "downlink_bytes_per_s": 762500.0, "uplink_bytes_per_s": 762500.0,
        "downlink_sigma": 1.1, "uplink_sigma": 1.1, "link_correlation": 1.0,
        "day": CHARGING_DAY, "trough": 0.1, "peaks": (1.0,) * 7, "zones": "one",
        # our choice: a night or a top-up, without the flapping of a network
        "session_s": 4500.0, "session_sigma": 1.0, "short_share": 0.0, "short_s": 15.0, "short_sigma": 1.3,
        "device_sigma": 0.4, "flap_share": 0.0, "flap_s": 8.0, "flap_sigma": 1.8,
        # measured, FLASH's charging time of 1,000 phones: mean 16 %, median 11 %, 10th to 90th percentile 2 % to 33 %
        "never": 0.01, "load": (1.1, 5.3), "most": 0.97,
    },
}  # fmt: skip
