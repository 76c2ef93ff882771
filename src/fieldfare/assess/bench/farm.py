"""Device farms: a folder and a zip to upload, and a folder of results read back.

Here: what is written and how results are recognised. Not here: any farm's own service. Invariants: the same package
makes the same bytes; results of another package are refused.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldfare.assess.bench.adb import PLACE, battery, properties, started
from fieldfare.assess.bench.package import Package
from fieldfare.assess.bench.records import Record, filled_battery, with_device
from fieldfare.assess.bench.targets import LOG, RESULTS, Exit, code_in, filled
from fieldfare.core.errors import UsageError

BESIDE = ("getprop", "battery_before", "battery_after", "exit", "log")
"""Texts that `run.sh` leaves beside the records."""
_MOST = 64 << 20
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

RUN = f"""#!/bin/sh
# Runs the probe and leaves in ./results what is to be brought back. With adb and one phone: on the phone; else here.
# PYTHON: how Python is called where the probe runs.
cd "$(dirname "$0")" || exit 1
mkdir -p results
if command -v adb >/dev/null && adb get-state >/dev/null 2>&1; then
    P=${{PYTHON:-python3}}
    adb shell getprop > results/getprop.txt
    adb shell "rm -rf {PLACE}; mkdir -p {PLACE}"
    adb push probe.py spec.json $(ls model.py 2>/dev/null) {PLACE}/
    adb shell dumpsys battery > results/battery_before.txt
    adb shell "{started("$P").replace("$?", chr(92) + "$?")}" > results/exit.txt
    adb shell dumpsys battery > results/battery_after.txt
    adb pull {PLACE}/{RESULTS} results/{RESULTS}
    adb pull {PLACE}/{LOG} results/{LOG}
    adb shell "rm -rf {PLACE}"
else
    ${{PYTHON:-python3}} probe.py spec.json > results/{RESULTS} 2> results/{LOG}
    echo rc=$? > results/exit.txt
fi
"""

README = """What this is: package {name}, model {model}. On every device run `sh run.sh` (a custom test of the farm; it
uses adb where the farm's host has it) and bring back the folder `results` it leaves, one per device:

    {folder}/results/{name}/<any name per device>/results.jsonl (and the other files beside it)

Then run the same command again: it finds them. The device needs Python 3 with NumPy{torch}.
"""


def write_package(package: Package, folder: Path) -> Path:
    """`folder/package/` and `folder/package-NAME.zip` with the same files; the zip's bytes are the package's alone."""
    said = README.format(
        name=package.name, model=package.model["name"], folder="DIR",
        torch=" and torch" if package.model["kind"] == "module" else "",
    )  # fmt: skip
    files = {**package.files, "run.sh": RUN.encode(), "README.txt": said.encode()}
    place = folder / "package" / package.name
    place.mkdir(parents=True, exist_ok=True)
    (folder / "results" / package.name).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in sorted(files):
            one = zipfile.ZipInfo(name, _ZIP_TIME)
            one.compress_type, one.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            zipped.writestr(one, files[name])
    zip_place = folder / f"package-{package.name}.zip"
    zip_place.write_bytes(made.getvalue())
    return zip_place


def read_results(package: Package, folder: Path) -> list[Record]:
    """Records of every `results.jsonl` below `folder/results/NAME`, in order of their paths."""
    found: list[Record] = []
    for place in sorted((folder / "results" / package.name).rglob(RESULTS)):
        beside = {name: _text(place.with_name(f"{name}.txt")) for name in BESIDE}
        told: dict[str, Any] = properties(beside["getprop"]) if beside["getprop"] else {}
        exit_ = Exit(code_in(beside["exit"]) if beside["exit"] else 0, False, beside["log"])
        where = place.relative_to(folder).as_posix()
        if place.stat().st_size > _MOST:
            raise UsageError(f"{where} has {place.stat().st_size} bytes: records are smaller than {_MOST}.")
        here = with_device(filled(package, place.read_bytes(), exit_, told, where), **told)
        seen = bool(beside["battery_before"] and beside["battery_after"])
        before, after = battery(beside["battery_before"]), battery(beside["battery_after"])
        found += filled_battery(here, before if seen else None, after if seen else None)
    return found


@dataclass
class Farm:
    """A folder shared with a device farm: the package goes out, results come in. See `write_package`."""

    folder: Path
    _package: Package | None = None

    def prepare(self, package: Package) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"farm:{self.folder} is a file: name a folder.")
        self._package = package
        write_package(package, self.folder)

    def run(self) -> Exit:
        """Nothing: the farm runs it."""
        return Exit()

    def collect(self) -> list[Record]:
        """What has come back; none at first."""
        if self._package is None:
            raise UsageError("a target is prepared before it runs: prepare(package), run(), collect().")
        return read_results(self._package, self.folder)

    def close(self) -> None:
        """Nothing: the package stays for the farm."""


def _text(place: Path) -> str:
    if not place.is_file() or place.stat().st_size > _MOST:
        return ""
    return place.read_text("utf-8", "replace")
