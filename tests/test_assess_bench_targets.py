"""Targets of the device benchmark: this machine, a fake ssh, replayed adb sessions, farm folders, emulated classes."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import fieldfare as ff
from fieldfare.assess.artefact import read_artefact
from fieldfare.assess.bench import emulated
from fieldfare.assess.bench.adb import PLACE, Adb, battery, listed, phones, properties, started, usable
from fieldfare.assess.bench.emulated import DeviceClass, Emulated, device_class, quota_group
from fieldfare.assess.bench.farm import Farm, write_package
from fieldfare.assess.bench.package import PROBE, About, Package, Plan, model_of, package, schema, sizes
from fieldfare.assess.bench.records import DEVICE_TEXT, NUMBERS, lines, parse
from fieldfare.assess.bench.targets import Exit, Local, Ssh, filled, measure, spent, status_of
from fieldfare.cli import app
from fieldfare.core.errors import UsageError

HERE = Path(__file__).parent
SHORT = Plan(records=200, batch=20, repeats=3, limit_s=60.0)


def made(folder: Path, text: str = "import fieldfare as ff\nmodel = ff.mlp(8, 6, 3)\n", name: str = "net.py") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return package(model_of(made(tmp_path_factory.mktemp("net"))), SHORT)


@pytest.fixture(scope="module")
def here(small: Package) -> list[Any]:
    return measure(Local(), small)


def probe() -> Any:
    spec = importlib.util.spec_from_file_location("bench_probe", PROBE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the probe -------------------------------------------------------------------------------------------------------


def test_the_probe_is_written_for_the_pythons_of_boards():
    text = PROBE.read_text("utf-8")
    ast.parse(text, feature_version=(3, 8))
    assert "strict=" not in text
    assert "removeprefix" not in text


def test_the_probe_is_one_file_that_needs_numpy_alone():
    code = f"""
import sys
class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fieldfare", "torch", "psutil"):
            raise ImportError(name)
sys.meta_path.insert(0, Bar())
sys.argv = ["probe.py", "spec.json"]
exec(compile(open({str(PROBE)!r}).read(), "probe.py", "exec"), {{"__name__": "other"}})
print("fine", "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fine False\n"


@pytest.mark.parametrize("kind", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("labels", [True, False])
def test_gradients_of_the_probe_are_those_of_finite_differences(kind: str, labels: bool):
    draw = np.random.default_rng(1)
    layers = [("linear", 4, 5, True), (kind,), ("linear", 5, 3, True)]
    weights = {(0, "w"): draw.normal(size=(5, 4)), (0, "b"): draw.normal(size=5),
               (2, "w"): draw.normal(size=(3, 5)), (2, "b"): draw.normal(size=3)}  # fmt: skip
    x, y = draw.normal(size=(6, 4)), draw.integers(0, 3, 6) if labels else None
    wanted = None if labels else draw.normal(size=(6, 3))

    def loss() -> float:
        h = x @ weights[0, "w"].T + weights[0, "b"]
        h = {"relu": np.maximum(h, 0), "tanh": np.tanh(h), "sigmoid": 1 / (1 + np.exp(-h))}[kind]
        out = h @ weights[2, "w"].T + weights[2, "b"]
        if wanted is not None:
            return float(((out - wanted) ** 2).sum(1).mean())
        return float((np.log(np.exp(out).sum(1)) - out[np.arange(6), y]).mean())

    found = probe().gradients(np, layers, weights, x, y, wanted)
    for name, weight in weights.items():
        for at in np.ndindex(*weight.shape):
            weight[at] += 1e-6
            high = loss()
            weight[at] -= 2e-6
            low = loss()
            weight[at] += 1e-6
            assert found[name][at] == pytest.approx((high - low) / 2e-6, abs=1e-6)


def test_a_record_says_all_of_the_schema_and_null_for_sensors_that_are_not_there(here: list[Any], tmp_path: Path):
    assert [one["status"] for one in here] == ["ok"] * 3
    for one in here:
        assert set(one) == {"package", "status", "note", "how", "energy_source", "device", "model", "step_s",
                            "per_record_s", *NUMBERS}  # fmt: skip
        assert one["records"] == 200
        assert one["steps"] == 10
        assert 0 < one["step_s"]["p5"] <= one["step_s"]["p50"] <= one["step_s"]["p95"] <= one["step_s"]["max"]
        assert one["per_record_s"] == one["wall_s"] / 200
        assert one["cpu_s"] > 0
        assert 0 < one["cpu_pct_mean"] <= 101
        assert one["mem_peak_bytes"] > one["mem_delta_bytes"] >= 0
        assert one["first_step_s"] > 0
        assert one["device"]["cores"] == os.cpu_count()
    assert [one["repeat"] for one in here] == [0, 1, 2]
    assert here[0]["start_ns"] < here[1]["start_ns"] < here[2]["start_ns"]
    root = tmp_path / "bare"
    root.mkdir()
    told = probe().Sensors(str(root))
    assert (told.battery(), told.charge_mah(), told.heat_c(), told.hz(), told.battery_w()) == (None,) * 5


def sysfs(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text + "\n", "ascii")
    return root


def test_sensors_are_read_where_they_are_and_energy_names_its_source(tmp_path: Path):
    root = sysfs(tmp_path, {
        "sys/class/power_supply/BAT0/type": "Battery", "sys/class/power_supply/BAT0/capacity": "84",
        "sys/class/power_supply/BAT0/charge_now": "3310000", "sys/class/power_supply/BAT0/charge_full": "4000000",
        "sys/class/power_supply/BAT0/status": "Discharging", "sys/class/power_supply/BAT0/current_now": "-500000",
        "sys/class/power_supply/BAT0/voltage_now": "4000000", "sys/class/power_supply/AC/type": "Mains",
        "sys/class/thermal/thermal_zone0/temp": "41500", "sys/class/thermal/thermal_zone1/temp": "-273000",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "600000",
    })  # fmt: skip
    module = probe()
    sensors = module.Sensors(str(root))
    assert sensors.battery() == pytest.approx(0.84)
    assert (sensors.charge_mah(), sensors.full_mah()) == (pytest.approx(3310), pytest.approx(4000))
    assert sensors.battery_w() == pytest.approx(2.0)
    assert sensors.heat_c() == pytest.approx(41.5)
    assert sensors.hz() == (pytest.approx(6e8), pytest.approx(1.8e9))
    with module.Watch(sensors) as _:
        pass
    watch = module.Watch(sensors)
    with watch:
        watch.stop.wait(0.12)
    found = sensors.meant(watch)
    assert found["energy_source"] == "battery current"
    assert 0 < found["energy_j"] < 20
    assert watch.told()["temp_c_max"] == pytest.approx(41.5)
    sysfs(root, {"sys/class/powercap/intel-rapl:0/energy_uj": "9000000",
                 "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "10000000"})  # fmt: skip
    sensors = module.Sensors(str(root))
    watch = module.Watch(sensors, looks=False)
    with watch:
        sysfs(root, {"sys/class/powercap/intel-rapl:0/energy_uj": "500000"})  # the counter went round
    assert sensors.meant(watch) == {"energy_j": pytest.approx(1.5), "energy_source": "rapl"}


def test_what_went_wrong_on_a_device_is_a_status():
    found = [probe().status_of(one) for one in (
        MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), ImportError("no torch"),
        RuntimeError('"conv2d" not implemented for \'Half\''), ValueError("x"),
    )]  # fmt: skip
    assert found == ["oom", "oom", "op_missing", "op_missing", "crash"]


def test_a_step_that_takes_too_long_is_a_timeout_and_heat_is_flagged():
    module = probe()
    plan = {"records": 1000, "batch": 1, "epochs": 1, "limit_s": 0.02}
    import time

    found = module.measure(lambda: time.sleep(0.005), plan, module.Sensors("/nowhere"), None, 1.0, False)
    assert found["status"] == "timeout"
    assert found["steps"] < 20
    assert found["mem_delta_bytes"] is None
    assert module.throttled([1.0] * 30) == 0
    assert module.throttled([1.0] * 20 + [2.0] * 20) == 1
    assert module.throttled([1.0] * 19) is None


# ---- the package -----------------------------------------------------------------------------------------------------


def test_equal_models_and_plans_make_equal_packages_wherever_they_lie(small: Package, tmp_path: Path):
    again = package(model_of(made(tmp_path)), SHORT)
    assert (again.name, again.files) == (small.name, small.files)
    assert package(model_of(made(tmp_path)), Plan(records=300, repeats=3, limit_s=60.0)).name != small.name
    assert str(tmp_path) not in json.dumps(dict(again.spec))


def test_bytes_are_those_of_the_files_that_travel(tmp_path: Path):
    from fieldfare.store.models import write_model

    net = ff.mlp(8, 6, 3)
    write_model(tmp_path / "model.safetensors", net.init(0))
    length = (tmp_path / "model.safetensors").stat().st_size
    found = sizes(net)
    assert found["wire_down_bytes"] == found["wire_up_bytes"] == found["storage_bytes"] == length
    assert length > 4 * found["params"] == 4 * (8 * 6 + 6 + 6 * 3 + 3)


@pytest.mark.slow
def test_a_module_goes_as_the_users_file_and_frozen_parameters_stay_home(tmp_path: Path):
    pytest.importorskip("torch")
    text = """
import torch
model = torch.nn.Sequential(torch.nn.Embedding(50, 4), torch.nn.Flatten(), torch.nn.Linear(12, 3))
model[0].weight.requires_grad_(False)
"""
    about = About(inputs={"x": "int64[3]<50", "y": "int64<3"})
    one = model_of(made(tmp_path, text), None, about)
    assert one.source == (tmp_path / "net.py").read_bytes()
    assert one.spec["params_trainable"] == 39
    assert one.spec["params"] == 239
    assert one.spec["storage_bytes"] == one.spec["wire_down_bytes"] + 800
    found = measure(Local(), package(one, Plan(records=40, batch=10, repeats=1)))
    assert [line["status"] for line in found] == ["ok"]
    with pytest.raises(UsageError, match="could not take the columns"):
        model_of(tmp_path / "net.py", None, About(inputs={"x": "int64[4]<50", "y": "int64<3"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "loss", "inputs"),
    [
        ("torch.nn.Embedding(9, 9)", "", {"x": "int64[5]<9", "y": "int64[5]<9"}),
        ("torch.nn.Conv2d(1, 3, 3, padding=1)", "", {"x": "float32[1,4,4]", "y": "int64[4,4]<3"}),
        ("torch.nn.Linear(4, 2)", "mse", {"x": "float32[4]", "y": "float32[2]"}),
        ("torch.nn.Bilinear(3, 4, 2)", "", {"a": "float32[3]", "b": "float32[4]", "y": "int64<2"}),
    ],
)
def test_modules_of_every_sort_take_made_up_inputs(tmp_path: Path, net: str, loss: str, inputs: dict[str, str]):
    pytest.importorskip("torch")
    text = f"import torch\nmodel = {net}\n"
    if "a" in inputs:
        text = f"import fieldfare as ff\nimport torch\nmodel = ff.torch_net({net}, x=('a', 'b'))\n"
    one = model_of(made(tmp_path, text), None, About(inputs=inputs, loss=loss))
    found = measure(Local(), package(one, Plan(records=40, batch=10, repeats=1, optimizer="adam")))
    assert [(line["status"], line["note"]) for line in found] == [("ok", None)]


@pytest.mark.slow
def test_a_module_of_a_job_takes_inputs_like_the_jobs_data(tmp_path: Path):
    pytest.importorskip("torch")
    text = """
import fieldfare as ff, torch
job = ff.Job(data=ff.data.synthetic(clients=5, classes=3, features=6, seed=1), algorithm=ff.FedAvg(rounds=1, cohort=2),
             model=lambda: torch.nn.Linear(6, 3), loss=lambda out, y: torch.nn.functional.cross_entropy(out, y))
"""
    one = model_of(made(tmp_path, text))
    assert one.spec["inputs"]["x"]["shape"] == [6]
    assert one.spec["inputs"]["y"] == {"dtype": "int64", "shape": [], "below": 3}
    assert one.spec["loss"] == "file"
    found = measure(Local(), package(one, Plan(records=40, batch=10, repeats=1)))
    assert [(line["status"], line["note"]) for line in found] == [("ok", None)]


@pytest.mark.slow
def test_a_module_that_fails_where_it_runs_is_a_record(tmp_path: Path):
    pytest.importorskip("torch")
    text = """
import sys, torch
print("words of the user's own file")
there = "probe" in sys.argv[0]
model = torch.nn.Linear(4 if there else 3, 2)
"""
    one = model_of(made(tmp_path, text), None, About(inputs={"x": "float32[3]", "y": "int64<2"}))
    found = measure(Local(), package(one, Plan(records=40, batch=10, repeats=1)))
    assert [line["status"] for line in found] == ["crash"]
    assert found[0]["note"].startswith("RuntimeError")


def test_inputs_are_said_in_one_way():
    assert schema("float32[3, 32,32]") == {"dtype": "float32", "shape": [3, 32, 32], "below": None}
    assert schema("int64<10") == {"dtype": "int64", "shape": [], "below": 10}
    for wrong in ("float33[2]", "float32(2)", "", "int64[2]<"):
        with pytest.raises(UsageError, match="write it as"):
            schema(wrong)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("x = 1\n", None, "it has none"),
        ("import fieldfare as ff\na = ff.mlp(2, 2)\nb = ff.mlp(3, 2)\n", None, "it has a, b: name one as net.py:NAME"),
        ("import fieldfare as ff\na = ff.mlp(2, 2)\n", "c", "makes nothing called 'c'"),
        ("model = 3\n", "model", "got a int"),
    ],
)
def test_a_file_without_one_model_is_refused(tmp_path: Path, text: str, name: str | None, said: str):
    with pytest.raises(UsageError, match=said):
        model_of(made(tmp_path, text), name)


def test_a_plan_that_cannot_be_is_refused():
    for wrong in ({"records": 0}, {"batch": 10, "records": 5}, {"warmup": -1}, {"limit_s": 0.0}, {"repeats": 0}):
        with pytest.raises(UsageError, match="use"):
            Plan(**wrong)


# ---- ends and records ------------------------------------------------------------------------------------------------


def test_a_probe_that_ends_early_leaves_a_record_that_says_how(small: Package, here: list[Any]):
    text = lines(here[:1]) + b'{"schema": 1, "pack'
    found = filled(small, text, Exit(137, False, "Killed\n"), {}, "x")
    assert [one["status"] for one in found] == ["ok", "oom"]
    assert found[1]["note"] == "exit code 137: Killed"
    assert found[1]["device"]["model"] == here[0]["device"]["model"]
    assert [one["status"] for one in filled(small, b"", Exit(127), {}, "x")] == ["op_missing"]
    assert [one["status"] for one in filled(small, b"", Exit(0, True), {}, "x")] == ["timeout"]
    assert [one["status"] for one in filled(small, lines(here), Exit(1), {}, "x")] == ["ok"] * 3
    assert status_of(Exit(139)) == "crash"


def test_a_child_is_ended_with_its_own_when_time_is_up(tmp_path: Path):
    mark = tmp_path / "late"
    done, _ = spent(["sh", "-c", f"(sleep 0.6; touch {shlex.quote(str(mark))}) & wait"], 0.2)
    assert done.timed_out
    import time

    time.sleep(0.7)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"package": "other"}, "is of package 'other'"),
        ({"status": "fine"}, "status 'fine' is none of"),
        ({"wall_s": None}, "ok without wall_s"),
        ({"wall_s": "1"}, "no number of less"),
        ({"mem_delta_bytes": -1}, "below 0"),
        ({"mem_delta_bytes": 10**400}, "no number of less"),
        ({"temp_c_max": float("1e40")}, "no number of less"),
        ({"model": {}}, "does not name its model"),
        ({"device": 3}, "needs device, model and status"),
    ],
)
def test_records_that_cannot_be_are_refused_with_their_line(small: Package, here: list[Any], change: Any, said: str):
    text = lines([here[0], {**here[1], **change}])
    with pytest.raises(UsageError, match=f"(?s)line 2.*{said}"):
        parse(text, "records", small.name)


def test_lines_that_are_no_json_are_refused():
    for wrong in ("{", "[1]", "nan", "3", "[" * 100_000):
        with pytest.raises(UsageError, match="line 1"):
            parse(wrong, "records")


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(
        st.sampled_from(["device", "model", "status", "wall_s", "package", "step_s", "name"]), inside, max_size=5
    ), max_leaves=12,
).map(lambda one: json.dumps(one).encode()))  # fmt: skip
def test_whatever_comes_back_is_records_or_refused_in_one_line(data: bytes):
    said = ""
    try:
        assert isinstance(parse(data, "x"), list)
    except UsageError as error:
        said = str(error)
    assert "\n" not in said


def test_all_but_measured_numbers_is_the_same_each_time(small: Package, here: list[Any]):
    again = measure(Local(), small)
    told = [{name: one[name] for name in ("package", "status", "note", "device", "model", "repeat", "steps", "records",
                                          "how", "energy_source")} for one in (*here, *again)]  # fmt: skip
    assert told[:3] == told[3:]


def test_a_machine_without_numpy_lacks_what_a_step_needs(small: Package, tmp_path: Path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S "$@"\n', "ascii")
    bare.chmod(0o755)
    found = measure(Local(python=str(bare)), small)
    assert [one["status"] for one in found] == ["op_missing"]
    assert "numpy" in (found[0]["note"] or "")


# ---- ssh -------------------------------------------------------------------------------------------------------------

SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
echo "ssh $1" >> "$FAKE_LOG"
[ "$1" = nobody ] && { echo "ssh: connect to host nobody port 22: No route to host" >&2; exit 255; }
shift; cd "$FAKE_HOME" && PATH="$FAKE_HOME/bin:$PATH" exec sh -c "$*"
"""
SCP = """#!/bin/sh
while [ "$1" = -q ] || [ "$1" = -o ]; do [ "$1" = -o ] && shift; shift; done
for last; do :; done
for one; do
    [ "$one" = "$last" ] && break
    case $one in *:*) one="$FAKE_HOME/${one#*:}";; esac
    case $last in *:*) cp "$one" "$FAKE_HOME/${last#*:}";; *) cp "$one" "$last";; esac || exit 1
done
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a board that ssh and scp reach; its python3 is this one."""
    tools, home = tmp_path / "ssh", tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    tools.mkdir()
    for place, text in ((tools / "ssh", SSH), (tools / "scp", SCP),
                        (home / "bin/python3", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')):  # fmt: skip
        place.write_text(text, "ascii")
        place.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_HOME", str(home))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return home


def left(home: Path) -> list[str]:
    return sorted(one.name for one in home.iterdir() if one.name != "bin")


def test_a_board_measures_by_ssh_and_keeps_nothing(board: Path, small: Package):
    found = measure(Ssh("pi@board"), small)
    assert [one["status"] for one in found] == ["ok"] * 3
    assert left(board) == []
    assert (board.parent / "log").read_text().split() == ["ssh", "pi@board"] * 3


def test_a_board_without_python_or_killed_on_the_way_is_a_record(board: Path, small: Package):
    found = measure(Ssh("board", python="python9"), small)
    assert [one["status"] for one in found] == ["op_missing"]
    (board / "bin/python3").write_text("#!/bin/sh\nkill -9 $$\n", "ascii")
    found = measure(Ssh("board"), small)
    assert [one["status"] for one in found] == ["oom"]
    assert left(board) == []


def test_a_board_that_does_not_end_is_a_timeout_and_is_left_clean(
    board: Path, small: Package, monkeypatch: pytest.MonkeyPatch
):
    (board / "bin/python3").write_text("#!/bin/sh\nexec sleep 60\n", "ascii")
    monkeypatch.setattr(Package, "limit_s", 0.3)
    assert [one["status"] for one in measure(Ssh("board"), small)] == ["timeout"]
    assert left(board) == []


def test_hosts_that_do_not_answer_or_are_none_are_refused(board: Path, small: Package):
    with pytest.raises(UsageError, match="No route to host"):
        measure(Ssh("nobody"), small)
    for wrong in ("", "-oProxyCommand=x", "a b"):
        with pytest.raises(UsageError, match="names no host"):
            Ssh(wrong)


# ---- adb -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`adb("phone")` puts an adb on the path that replays that session; its folder of state is returned.

    A call that the session does not have fails the test.
    """
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "adb").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(str(HERE / "fake_adb.py"))} "$@"\n', "ascii"
    )
    (tools / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")

    def replay(name: str) -> Path:
        state = tmp_path / f"state-{name}"
        state.mkdir()
        monkeypatch.setenv("FAKE_ADB", str(HERE / "adb_sessions" / f"{name}.json"))
        monkeypatch.setenv("FAKE_ADB_STATE", str(state))
        return state

    yield replay
    assert [one.read_text() for one in tmp_path.glob("state-*/unexpected.txt")] == []


def said(state: Path) -> list[list[str]]:
    return [json.loads(line) for line in (state / "calls.txt").read_text().splitlines()]


def test_a_phone_measures_and_what_its_files_hide_comes_from_getprop_and_dumpsys(adb: Any, small: Package):
    state = adb("phone")
    good, out = usable(phones())
    assert out == ()
    found = measure(Adb(good[0].serial), small)
    assert [one["status"] for one in found] == ["ok"] * 3
    device = found[0]["device"]
    assert [device[name] for name in DEVICE_TEXT] == ["Google", "Pixel 6", "GS101", "android", "14", "2024-05-05"]
    assert (device["ram_bytes"], device["cores"]) == (7937597440, 8)
    for one in found:
        assert (one["battery_before"], one["battery_after"], one["temp_c_max"]) == (0.84, 0.83, 31.2)
        assert one["charge_mah"] == pytest.approx(4.0)
        assert one["battery_full_mah"] == pytest.approx(3310 / 0.84)
        assert one["energy_j"] == pytest.approx(4.0 * 3.6 * 4.012)
        assert one["energy_source"] == "battery charge"
    assert good[0].serial not in lines(found).decode()
    calls = said(state)
    assert calls[-1][2] == "shell"
    assert calls[-1][3].startswith(
        "run-as com.termux sh -c 'for p in $(pgrep -f /data/local/tmp/fieldfare-bench/[p]robe.py); do kill -9 $p"
    )
    assert calls[-1][3].endswith("; rm -rf /data/local/tmp/fieldfare-bench")
    assert all(call[:2] == ["-s", good[0].serial] for call in calls[1:])


def test_the_phones_command_tells_records_code_and_last_words(small: Package, tmp_path: Path):
    for name, data in small.files.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        ["sh", "-c", started(sys.executable).replace(PLACE, str(tmp_path))], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("rc=0\n", "")
    assert len(parse((tmp_path / "results.jsonl").read_bytes(), "x", small.name)) == 3
    words = ["sh", "-c", started("sh -c 'echo oh >&2; kill -9 $$' x").replace(PLACE, str(tmp_path))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "rc=137\n"
    assert done.stderr.startswith("oh\n")


def test_a_phone_on_the_cable_tells_nothing_of_what_its_battery_gave(adb: Any, small: Package):
    adb("cable")
    found = measure(Adb(phones()[0].serial), small)
    for one in found:
        for name in ("battery_before", "battery_after", "charge_mah", "battery_full_mah", "energy_j", "energy_source"):
            assert one[name] is None
        assert one["temp_c_max"] == 31.2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("offline", "Pixel|device is offline: unlock the phone"),
        ("unauthorized", "unauthorized: accept this computer"),
        ("no_permissions", "no permissions: give this user the right"),
        ("none", "attach a phone with USB debugging"),
    ],
)
def test_devices_that_cannot_be_used_are_told_with_what_to_do(adb: Any, name: str, words: str):
    adb(name)
    with pytest.raises(UsageError, match=words):
        usable(phones())


def test_of_two_devices_the_one_that_can_be_used_is(adb: Any, small: Package):
    adb("two")
    found = phones()
    good, out = usable(found)
    assert [one.model for one in good] == ["Pixel 6"]
    assert out == ("a device is unauthorized: accept this computer on the phone's screen",)
    with pytest.raises(UsageError, match="accept this computer"):
        usable(found, "R58M123ABC")
    with pytest.raises(UsageError, match="knows no device 77"):
        usable(found, "77")


@pytest.mark.parametrize(
    ("name", "statuses", "note"),
    [
        ("no_python", ["op_missing"], "no Python with NumPy on the phone"),
        ("killed", ["ok", "oom"], "exit code 137: Killed"),
        ("slow", ["timeout"] * 3, ""),
        ("goes_away", ["crash"], "not found"),
    ],
)
def test_failures_on_a_phone_are_records_of_that_phone(
    adb: Any, small: Package, name: str, statuses: list[str], note: str
):
    state = adb(name)
    found = measure(Adb(phones()[0].serial), small)
    assert [one["status"] for one in found] == statuses
    assert note in (found[-1]["note"] or "")
    assert {one["device"]["model"] for one in found} == {"Pixel 6"}
    assert "rm -rf" in said(state)[-1][-1]
    assert all(one["per_record_s"] is None for one in found if one["status"] != "ok")


@pytest.mark.slow
def test_a_probe_that_hangs_on_a_phone_is_a_timeout(adb: Any, small: Package, monkeypatch: pytest.MonkeyPatch):
    adb("hangs")
    monkeypatch.setattr(Package, "limit_s", 0.4)
    found = measure(Adb(phones()[0].serial), small)
    assert [one["status"] for one in found] == ["ok", "timeout"]
    assert found[0]["battery_after"] is None


def test_the_command_takes_phones_and_boards_and_names_no_serial_number_or_path(
    adb: Any, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    adb("two")
    monkeypatch.chdir(tmp_path)
    made(tmp_path)
    words = [
        "assess",
        "bench",
        "net.py",
        "--target",
        "adb",
        "--target",
        "ssh:pi@board",
        "--records",
        "200",
        "--out",
        "b",
    ]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "left out: a device is unauthorized" in done.stderr
    assert "Pixel 6: ok" in done.stderr
    found = read_artefact("b", "bench")
    text = (found.path / "manifest.json").read_text() + found.file("records.jsonl").read_text()
    for secret in (str(tmp_path), "1A2B3C4D5E6F", "R58M123ABC", "pi@board"):
        assert secret not in text
    assert len(found.table("eligible")["eligible"]) == 2


def test_a_phone_without_room_is_refused_and_left_clean(adb: Any, small: Package):
    state = adb("full")
    with pytest.raises(UsageError, match="No space left on device"):
        measure(Adb(phones()[0].serial), small)
    assert "rm -rf" in said(state)[-1][-1]


def test_words_of_android_are_understood_whatever_is_missing():
    assert listed("List of devices attached\n\n") == ()
    assert properties("")["model"] is None
    assert battery("garbage") == {"share": None, "charge_mah": None, "volts": None, "temp_c": None, "plugged": 0}
    assert battery("  level: 50\n  scale: 200\n")["share"] == 0.25


# ---- farms -----------------------------------------------------------------------------------------------------------


def test_a_package_for_a_farm_is_the_same_bytes_and_runs_as_it_is(small: Package, tmp_path: Path):
    first, second = write_package(small, tmp_path / "a"), write_package(small, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as zipped:
        assert zipped.namelist() == ["README.txt", "probe.py", "run.sh", "spec.json"]
        zipped.extractall(tmp_path / "device")
    assert measure(Farm(tmp_path / "a"), small) == []
    path = f"{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin"
    subprocess.run(["sh", "run.sh"], cwd=tmp_path / "device", check=True, env={"PATH": path, "PYTHON": sys.executable})
    back = tmp_path / "a/results" / small.name
    (tmp_path / "device/results").rename(back / "device-1")
    found = measure(Farm(tmp_path / "a"), small)
    assert [one["status"] for one in found] == ["ok"] * 3


def test_a_farms_phones_are_named_by_what_lies_beside_their_records(small: Package, here: list[Any], tmp_path: Path):
    session = json.loads((HERE / "adb_sessions/phone.json").read_text())
    outs = {tuple(call["like"]): call["out"] for call in reversed(session["calls"]) if "out" in call}
    for place, name in enumerate(("b", "a")):
        folder = tmp_path / "results" / small.name / name
        folder.mkdir(parents=True)
        (folder / "results.jsonl").write_bytes(lines(here) if place else lines(here)[:-30])
        (folder / "exit.txt").write_text("rc=0\n" if place else "rc=137\n")
        (folder / "getprop.txt").write_text(outs["shell getprop",].replace("Pixel 6", f"Phone {name}"))
    found = measure(Farm(tmp_path), small)
    assert [(one["device"]["model"], one["status"]) for one in found] == [
        *[("Phone a", "ok")] * 3, *[("Phone b", "ok")] * 2, ("Phone b", "oom"),
    ]  # fmt: skip


def test_results_of_another_package_are_refused(small: Package, here: list[Any], tmp_path: Path):
    folder = tmp_path / "results" / small.name / "x"
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_bytes(lines([{**here[0], "package": "other"}]))
    with pytest.raises(UsageError, match="measured with another model or plan"):
        measure(Farm(tmp_path), small)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        measure(Farm(tmp_path / "file"), small)


# ---- emulated --------------------------------------------------------------------------------------------------------


def test_a_slower_class_takes_at_least_its_time_and_says_nothing_of_sensors(small: Package):
    found = measure(Emulated(DeviceClass("slow", 0.05, 512e6, 1e9, 4)), small)
    assert [one["status"] for one in found] == ["ok"] * 3
    for one in found:
        assert one["wall_s"] >= 0.99 * one["step_s"]["p5"] * one["steps"]
        assert one["how"] == "emulated"
        assert (one["device"]["model"], one["device"]["os"], one["device"]["cores"]) == ("slow", "emulated", 4)
        assert one["cpu_pct_mean"] is None
        assert one["freq_max_hz"] is None
        assert one["mem_delta_bytes"] is not None


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does it")
def test_a_class_with_too_little_memory_is_out_of_memory(tmp_path: Path):
    big = package(model_of(made(tmp_path, "import fieldfare as ff\nmodel = ff.mlp(1000, 3000, 10)\n")), SHORT)
    found = measure(Emulated(DeviceClass("tiny", 1.0, 4e6)), big)
    assert [one["status"] for one in found] == ["oom"]
    assert found[0]["device"]["model"] == "tiny"


def test_classes_are_boards_or_given_speeds():
    assert device_class("a=0.5") == DeviceClass("a", 0.5)
    assert device_class("a=0.5:1.5G").memory_bytes == 1.5e9
    found = device_class("raspberry-pi-3b+", 9e10)
    assert found.speed == pytest.approx(4 * 1.4e9 * 1.6 / 9e10)
    assert found.cores == 4
    for wrong in ("a=", "a=0", "a=2", "a=x:1M", "a=0.5:1T", "a=0.5:0", "no-such-board", "esp32"):
        with pytest.raises(UsageError, match=r"use|no board|needed"):
            device_class(wrong)


def test_a_quota_is_a_control_group_of_either_version_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert quota_group("x", 0.5, tmp_path / "nowhere") is None
    real = Path.mkdir

    def as_kernel(self: Path, *words: Any, **more: Any) -> None:
        real(self, *words, **more)
        (self / "cgroup.procs").touch()

    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cgroup.procs").touch()
    monkeypatch.setattr(Path, "mkdir", as_kernel)
    one = quota_group("x", 0.25, tmp_path)
    assert one is not None
    assert (one / "cpu.cfs_quota_us").read_text() == "5000\n"
    assert (one / "cpu.cfs_period_us").read_text() == "20000\n"
    (tmp_path / "cgroup.procs").touch()
    two = quota_group("x", 0.25, tmp_path)
    assert two is not None
    assert (two / "cpu.max").read_text() == "5000 20000\n"


def test_a_quota_that_cannot_be_had_is_refused(small: Package, tmp_path: Path):
    with pytest.raises(UsageError, match="by sleep instead"):
        measure(Emulated(DeviceClass("slow", 0.5), "quota", tmp_path), small)


def test_this_machines_speed_is_measured_by_the_probe():
    assert 1e8 < emulated.this_machine_flops_per_s() < 1e13
