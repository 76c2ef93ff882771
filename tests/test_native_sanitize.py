"""The native core under the address, undefined-behaviour and thread sanitizers: random plans and calls, on threads.

The variants are built here by `scripts/native --sanitize` when a compiler is there (minutes); each then runs the random
plans and calls of `native_fuzz` in a Python of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Python itself is not built with a sanitizer: its leaks and its threads are not of interest here
OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=0"},
    "undefined": {"UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"},
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0"},
}
# (sanitizer, build, seeds): the thread sanitizer is slow, and what threads share is the same in every build
RUNS = [
    ("address", "plain", 1500),
    ("address", "avx2", 800),
    ("address", "avx512", 800),
    ("undefined", "plain", 1500),
    ("undefined", "avx512", 800),
    ("thread", "plain", 600),
]
PROGRAM = """
import sys, fieldfare.work.native as native
native.__path__.insert(0, sys.argv.pop(1))
import runpy
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def built(sanitizer: str, kind: str) -> Path:
    """The folder with the variant, built if it is not there or old."""
    if shutil.which(os.environ.get("CXX", "g++").split()[0]) is None:
        pytest.skip("there is no C++ compiler here")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "native", "--sanitize", sanitizer, kind], capture_output=True, text=True
    )
    if done.returncode and "is not here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / f"sanitize-{sanitizer}"


@pytest.mark.slow
@pytest.mark.parametrize(("sanitizer", "kind", "seeds"), RUNS)
def test_random_plans_and_calls_run_clean_under_a_sanitizer(sanitizer: str, kind: str, seeds: int) -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if kind != "plain" and {"avx2": " avx2 ", "avx512": " avx512dq "}[kind] not in flags.replace("\n", " "):
        pytest.skip(f"this processor has no {kind}")
    folder = built(sanitizer, kind)
    library = (folder / "preload").read_text().strip()
    compiler = os.environ.get("CXX", "g++").split()[0]
    # exceptions are thrown through the sanitizer, which looks for the C++ library's own when it starts
    standard = subprocess.run([compiler, "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=True)
    env = {
        **os.environ,
        **OPTIONS[sanitizer],
        "LD_PRELOAD": f"{library} {standard.stdout.strip()}",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    program = [sys.executable, "-c", PROGRAM, folder, ROOT / "tests" / "native_fuzz.py", kind, "0", str(seeds)]
    done = subprocess.run(program, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "'ran'" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address"])
def test_the_sanitizer_does_see_a_vector_read_past_the_end(sanitizer: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip("there is no C++ compiler here")
    source, program = tmp_path / "past.cpp", tmp_path / "past"
    source.write_text(
        '#include "vec.h"\n#include <cstdlib>\n'
        "int main(int n, char**) { float* p = (float*)calloc(16, 4); float s = ff::sum(ff::load(p + 16 * n)); "
        "free(p); return s > 1; }\n"
    )
    flags = ["-std=c++17", "-O1", "-g", f"-fsanitize={sanitizer}", "-I", ROOT / "native"]
    subprocess.run([compiler, *flags, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
