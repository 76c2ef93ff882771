"""What a training step takes on devices: measured, or as FLINT's table 5 has it (`paper`).

A model becomes a package (`package`), runs on targets (`targets`, `adb`, `farm`, `emulated`) by a probe that needs
nothing of ours (`probe`), and its records (`records`) become an artefact (`summary`), over a population (`population`)
whose unmeasured devices are extrapolated (`extrapolate`).
"""

from __future__ import annotations

from fieldfare.assess.bench.package import About, Model, Package, Plan, model_of, package
from fieldfare.assess.bench.population import Kind, population, read_population
from fieldfare.assess.bench.records import read_records
from fieldfare.assess.bench.summary import Config, Limits, build
from fieldfare.assess.bench.targets import Local, Ssh, Target, measure

__all__ = [
    "About", "Config", "Kind", "Limits", "Local", "Model", "Package", "Plan", "Ssh", "Target", "build", "measure",
    "model_of", "package", "population", "read_population", "read_records",
]  # fmt: skip
