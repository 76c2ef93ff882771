"""Session logs to availability under criteria (FLINT's device data analysis; Wang et al., MLSys 2023, section 3.2).

Here: what others use. `build_trace` makes the artefact `trace` of a log; `generate_log` a log where there is none;
`import_log` one of FLASH's, ExtraSensory's or FedScale's files; `availability_of` and `fleet_of` replay an artefact in
the simulator; `export_fedscale` and `export_csv` hand it on. The pictures are in `pictures`. Invariant: DuckDB is
imported when a log is computed, not before.
"""

from __future__ import annotations

from fieldfare.assess.trace.build import allowed_devices, build_trace
from fieldfare.assess.trace.criteria import STRICT, Criteria, TraceConfig, read_config
from fieldfare.assess.trace.generate import Recipe, generate_log
from fieldfare.assess.trace.importers import import_log
from fieldfare.assess.trace.replay import availability_of, export_csv, export_fedscale, fleet_of, p_usable

__all__ = [
    "STRICT",
    "Criteria",
    "Recipe",
    "TraceConfig",
    "allowed_devices",
    "availability_of",
    "build_trace",
    "export_csv",
    "export_fedscale",
    "fleet_of",
    "generate_log",
    "import_log",
    "p_usable",
    "read_config",
]
