"""Which compiled core is chosen, what is said where there is none, and that nobody pays for it who does not use it."""

import importlib.util
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from fieldfare.core.errors import UsageError
from fieldfare.work.native import modules


class Cores:
    """Cores that are there (`built`), on a processor with some `features`; `loaded`: which were loaded, in order."""

    def __init__(self, built, features=("avx2", "avx512"), broken=(), interface=modules.INTERFACE):
        self.built, self.features, self.broken, self.loaded = built, features, broken, []
        self.interface = interface

    def __call__(self, name):
        kind = name.rpartition("._")[2]
        if kind in self.broken:
            raise ImportError("libstdc++.so.6: version `GLIBCXX_9' not found\n(required by it)")
        if kind not in self.built:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        self.loaded.append(kind)
        return types.SimpleNamespace(kind=kind, features=lambda: self.features, interface=self.interface)


@pytest.fixture
def there(monkeypatch):
    """Makes these cores the ones that are there; FIELDFARE_NATIVE is unset, and nothing has been told."""
    monkeypatch.delenv(modules.VARIABLE, raising=False)
    monkeypatch.setattr(modules, "_TOLD", [])
    modules._found.cache_clear()

    def make(*args, **more):
        cores = Cores(*args, **more)
        monkeypatch.setattr(modules.importlib, "import_module", cores)
        return cores

    yield make
    modules._found.cache_clear()


@pytest.mark.parametrize(
    ("features", "best"),
    [((), "plain"), (("avx2",), "avx2"), (("avx2", "avx512"), "avx512"), (("avx2", "avx512", "bf16"), "avx512")],
)
def test_the_best_core_that_the_processor_can_run_is_taken_and_no_better_one_is_loaded(there, features, best):
    cores = there(modules.KINDS, features)
    assert modules.core().kind == modules.kind() == best
    assert modules.why_not() is None
    assert set(cores.loaded) == {"plain", best}


def test_a_core_that_is_not_built_leaves_the_next_best(there):
    there(("plain", "avx2"))
    assert modules.kind() == "avx2"


def test_a_better_core_that_cannot_be_loaded_leaves_the_next_best(there):
    there(modules.KINDS, broken=("avx512",))
    assert modules.kind() == "avx2"


@pytest.mark.parametrize("word", [*modules.KINDS, " AVX2 "])
def test_each_core_can_be_forced(there, monkeypatch, word):
    there(modules.KINDS)
    monkeypatch.setenv(modules.VARIABLE, word)
    assert modules.core().kind == modules.kind() == word.strip().lower()


def test_the_variable_is_read_anew_at_every_call(there, monkeypatch):
    there(modules.KINDS)
    assert modules.kind() == "avx512"
    monkeypatch.setenv(modules.VARIABLE, "plain")
    assert modules.kind() == "plain"
    monkeypatch.setenv(modules.VARIABLE, "off")
    assert modules.kind() is None


def test_off_leaves_the_core_alone_and_is_no_news(there, monkeypatch):
    cores = there(modules.KINDS)
    monkeypatch.setenv(modules.VARIABLE, "off")
    assert modules.core() is None
    assert modules.why_not() == "the compiled core is switched off (FIELDFARE_NATIVE=off)"
    assert modules.notice() is None
    assert cores.loaded == []


@pytest.mark.parametrize("ask", [modules.core, modules.why_not, modules.kind, modules.notice])
def test_an_unknown_word_is_refused_in_one_line_that_names_the_choices(there, monkeypatch, ask):
    there(modules.KINDS)
    monkeypatch.setenv(modules.VARIABLE, "sse")
    with pytest.raises(UsageError) as refused:
        ask()
    said = str(refused.value)
    assert "\n" not in said
    assert all(word in said for word in ("'sse'", *modules.KINDS, "off", "unset"))


@pytest.mark.parametrize(
    ("built", "features", "broken", "said"),
    [
        ((), (), (), "there is no compiled core"),
        (modules.KINDS, ("avx2",), (), "this processor does not have avx512; set it to avx2, plain or off"),
        (("plain", "avx2"), ("avx2", "avx512"), (), "the core _avx512 is not built"),
        (modules.KINDS, ("avx2", "avx512"), ("avx512",), "_avx512 cannot be loaded (libstdc++.so.6"),
        (modules.KINDS, ("avx2", "avx512"), ("plain",), "_plain cannot be loaded (libstdc++.so.6"),
    ],
)
def test_a_core_that_is_forced_and_not_to_be_had_is_refused_in_one_line(
    there, monkeypatch, built, features, broken, said
):
    there(built, features, broken)
    monkeypatch.setenv(modules.VARIABLE, "avx512")
    with pytest.raises(UsageError) as refused:
        modules.core()
    assert str(refused.value).startswith("FIELDFARE_NATIVE=avx512: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_core_with_instructions_that_the_processor_lacks_is_never_loaded(there, monkeypatch):
    cores = there(modules.KINDS, ())
    monkeypatch.setenv(modules.VARIABLE, "avx512")
    with pytest.raises(UsageError):
        modules.core()
    assert cores.loaded == ["plain"]


def test_without_a_core_it_is_told_once_and_says_what_to_do(there):
    there(())
    assert modules.core() is None
    assert modules.kind() is None
    assert modules.why_not().startswith("there is no compiled core")
    told = modules.notice()
    assert modules.why_not() in told
    assert all(word in told for word in ("NumPy or torch", "compiler", "FIELDFARE_NATIVE=off"))
    assert "\n" not in told
    assert modules.notice() is None


def test_a_core_that_cannot_be_loaded_is_told_with_the_reason(there):
    there((), broken=("plain",))
    assert "GLIBCXX_9" in modules.why_not()
    assert "GLIBCXX_9" in modules.notice()


def test_a_core_of_older_sources_is_left_alone_and_told_with_what_to_do(there, monkeypatch):
    there(modules.KINDS, interface=modules.INTERFACE - 1)
    assert modules.core() is None
    assert "built from older sources" in modules.why_not()
    assert "scripts/native" in modules.notice()
    monkeypatch.setenv(modules.VARIABLE, "avx2")
    with pytest.raises(UsageError, match=r"built from older sources.*scripts/native"):
        modules.core()


def test_with_a_core_there_is_nothing_to_tell(there):
    there(("plain",), ())
    assert modules.notice() is None


def test_importing_fieldfare_and_asking_nothing_loads_no_core():
    code = (
        "import sys, fieldfare, fieldfare.work, fieldfare.work.native.modules\n"
        "print([name for name in sys.modules if name.startswith('fieldfare.work.native._')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_script_that_builds_cores_refuses_one_that_does_not_exist():
    script = Path(__file__).parents[1] / "scripts" / "native"
    if not script.exists():
        pytest.skip("an unpacked sdist has no scripts")
    done = subprocess.run([sys.executable, script, "sse"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("'sse' is no core: name any of plain, avx2, avx512")


def _built(kind):
    return importlib.util.find_spec(f"fieldfare.work.native._{kind}") is not None


def _real():
    if not _built("plain"):
        pytest.skip("no compiled core is built here")
    plain = importlib.import_module("fieldfare.work.native._plain")
    return [kind for kind in modules.KINDS if kind in ("plain", *plain.features())]


def test_the_processor_s_features_are_those_that_the_system_names():
    kinds = _real()
    if not os.path.exists("/proc/cpuinfo"):
        pytest.skip("this system does not name its processor's features in /proc/cpuinfo")
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((set(line.split(":")[1].split()) for line in file if line.startswith("flags")), set())
    assert ("avx2" in kinds) == ({"avx2", "fma", "bmi2", "f16c"} <= flags)
    assert ("avx512" in kinds) == ({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags)


def test_every_core_that_the_processor_can_run_loads_beside_the_others_in_one_process(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for word in filter(_built, _real()):
            monkeypatch.setenv(modules.VARIABLE, word)
            assert modules.core().__name__ == f"fieldfare.work.native._{word}"
            assert modules.core().Plan is not None
