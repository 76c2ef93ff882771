"""The forecast: what a job takes, of devices, networks, servers, energy, money and time, each number with a range."""

from __future__ import annotations
