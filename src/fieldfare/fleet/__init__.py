"""Devices as columns: how fast they compute, how fast their links are, and what a task costs them in seconds."""

from fieldfare.fleet.fleet import Fleet, phones, uniform

__all__ = ["Fleet", "phones", "uniform"]
