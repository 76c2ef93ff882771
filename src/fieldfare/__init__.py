"""Fieldfare: federated learning in the field, simulated first, priced beforehand."""

__version__ = "0.1.0"
