"""Which level a device gets: what fits is found, nothing larger fits, who fits none is told, and steps prove it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from command_line import fieldfare, job_file
from hypothesis import given
from hypothesis import strategies as st

import fieldfare as ff
from fieldfare.cli_fit import bytes_of
from fieldfare.core.errors import UsageError
from fieldfare.fleet import board, boards
from fieldfare.fleet.boards import BOARDS
from fieldfare.work.submodel import (
    Budget,
    Level,
    MultiRate,
    declared,
    dry_run,
    measured,
    needs,
    plan,
    proved,
    replan,
    replanned,
    submodels,
)  # fmt: skip


@pytest.fixture(autouse=True)
def without_the_core(monkeypatch):
    """Memory is declared of the ways without the compiled core, and proved on them."""
    monkeypatch.setenv("FIELDFARE_PATH", "stacked")


FAMILY = submodels(ff.mlp(64, 200, 100, 10), (1, 0.5, 0.25, 0.125))
TRAINING = ff.Training(batch_size=20)
NEEDS = needs(FAMILY, TRAINING)
ROWS = {"x": np.zeros((4, 64), np.float32), "y": np.arange(4)}


def memory(level):
    return NEEDS[level].cost.memory_bytes


def test_needs_are_what_levels_are_declared_to_take():
    view = FAMILY.view()
    assert [need.cost for need in NEEDS] == [declared(FAMILY, TRAINING, view.layout(n)) for n in range(4)]
    assert [need.level for need in NEEDS] == list(FAMILY.levels)


@given(st.lists(st.floats(1e3, 1e6), min_size=1, max_size=30), st.floats(0.01, 30.0), st.integers(0, 2**32))
def test_the_level_of_a_device_fits_and_no_larger_one_does(ram, deadline, seed):
    rng = np.random.default_rng(seed)
    n = len(ram)
    fleet = ff.fleet.Fleet(
        flops_per_s=10 ** rng.uniform(5, 8, n), downlink_bytes_per_s=10 ** rng.uniform(4, 6, n),
        uplink_bytes_per_s=10 ** rng.uniform(4, 6, n), overhead_s=0.01, memory_bytes=np.array(ram),
    )  # fmt: skip
    sizes = rng.integers(1, 200, n)
    found = plan(FAMILY, fleet, TRAINING, examples=sizes, deadline_s=deadline, known=NEEDS)
    cost = [
        ff.work.train.Train(FAMILY.at(one), TRAINING).cost(sizes, FAMILY.at(one).layout, {}) for one in FAMILY.levels
    ]
    seconds = np.array([fleet.durations(np.arange(n), one) for one in cost])
    np.testing.assert_allclose(found.seconds, seconds, rtol=1e-9)
    for device in range(n):
        fits = [level for level in range(4) if memory(level) <= ram[device] and seconds[level, device] <= deadline]
        assert found.assign[device] == min(fits, default=-1)
        assert found.fits[device] == bool(fits)
        assert bool(found.why(device)) == (not fits)


def test_the_order_of_a_familys_levels_does_not_matter():
    mixed = submodels(ff.mlp(64, 200, 100, 10), (0.25, 1, 0.125, 0.5))
    found = plan(mixed, Budget(np.array([memory(0), memory(1), memory(1) - 1, memory(3), 1.0])), TRAINING)
    assert found.assign.tolist() == [1, 3, 0, 2, -1]
    assert found.counts == {"1/4": 1, "1": 1, "1/8": 1, "1/2": 1}


def test_the_view_of_a_plan_gives_its_levels_and_marks_who_may_be_asked():
    fleet = ff.fleet.Fleet(memory_bytes=np.array([1e6, 2e5, 1e5, 6e4, 3e4]))
    found = plan(FAMILY, fleet, TRAINING, known=NEEDS)
    assert found.assign.tolist() == [0, 1, 2, 3, -1]
    assert found.outside.tolist() == [4]
    assert found.view().plan(np.arange(5)).tolist() == [0, 1, 2, 3, 3]
    assert found.marked(fleet).flags["fits"].tolist() == [True] * 4 + [False]
    data = ff.data.synthetic(clients=5, classes=10, features=64, max_examples=60)
    job = ff.Job(
        model=FAMILY, data=data, training=TRAINING,
        algorithm=ff.HeteroFL(2, ff.Sample(4, where="fits"), view=found.view(MultiRate())),
        simulated=ff.Simulated(fleet=found.marked(fleet), workers=1),
    )  # fmt: skip
    asked = job.run(None, progress=False)
    assert asked.summary["rounds"] == 2


def test_who_fits_no_level_is_told_with_what_it_would_take():
    found = plan(FAMILY, Budget(np.array([1e9, 4.2e4, 1e4])), TRAINING, known=NEEDS)
    few, none = found.told()
    assert few.startswith("device 1 fits no level: the smallest, 1/8, takes 49.8 kB at batch 20 and 42 kB are free")
    batch = int(few.split("batch_size=")[1].split()[0])
    smallest = FAMILY.view().layout(3)
    assert declared(FAMILY, replace(TRAINING, batch_size=batch), smallest).memory_bytes <= 4.2e4
    assert declared(FAMILY, replace(TRAINING, batch_size=batch + 1), smallest).memory_bytes > 4.2e4
    assert "even batch_size=1 takes" in none
    assert found.told(1)[1] == "1 more devices fit no level."
    assert found.why(0) == ""


def test_who_is_too_slow_or_has_too_little_for_what_is_quick_enough_is_told_so():
    slow = plan(FAMILY, Budget(1e9, flops_per_s=1e3), TRAINING, deadline_s=10.0, known=NEEDS)
    assert "the deadline is 10 s" in slow.why(0)
    with pytest.raises(UsageError, match="the deadline is 10 s"):
        slow.view()
    assert plan(FAMILY, Budget(1e9, flops_per_s=1e3), TRAINING, known=NEEDS).assign.tolist() == [0]


def test_time_counts_the_examples_a_device_has_or_one_batch():
    budget = Budget(1e9, flops_per_s=1e6, uplink_bytes_per_s=1e5, latency_s=0.5)
    one = plan(FAMILY, budget, TRAINING, known=NEEDS)
    cost = NEEDS[0].cost
    assert one.seconds[0, 0] == pytest.approx(1.0 + cost.bytes / 1e5 + 20 * cost.flops / 1e6)
    more = plan(FAMILY, budget, replace(TRAINING, epochs=2), examples=50, known=NEEDS)
    assert more.seconds[0, 0] == pytest.approx(1.0 + cost.bytes / 1e5 + 100 * cost.flops / 1e6)


def test_planning_again_moves_only_devices_that_changed():
    ram = np.array([1e6, 2e5, 1e5, 6e4])
    before = plan(FAMILY, Budget(ram), TRAINING, known=NEEDS)
    ram[[1, 3]] = 9e4, 1e6
    after = replan(before, Budget(ram))
    assert after.changed(before).tolist() == [1, 3]
    view = replanned(before, (3, after))
    clients = np.arange(4)
    assert [view.at(r).plan(clients).tolist() for r in (1, 2, 3, 9)] == [[0, 1, 2, 3]] * 2 + [[0, 2, 2, 0]] * 2
    slower = Budget(ram, flops_per_s=np.array([1e9, 1e9, 1e9, 1e3]))
    timed = plan(FAMILY, Budget(ram), TRAINING, examples=[50] * 4, deadline_s=2.0, known=NEEDS)
    assert timed.assign.tolist() == [0, 2, 2, 0]
    assert replan(timed, slower).assign.tolist() == [0, 2, 2, -1]
    with pytest.raises(UsageError, match="rounds above 1"):
        replanned(before, (1, after))
    with pytest.raises(UsageError, match="compared"):
        after.changed(plan(FAMILY, Budget(1e6), TRAINING, known=NEEDS))


def test_a_run_trains_the_levels_of_the_plan_of_its_round():
    before = plan(FAMILY, Budget(np.full(4, 1e6)), TRAINING, known=NEEDS)
    after = plan(FAMILY, Budget(np.full(4, 6e4)), TRAINING, known=NEEDS)
    data = ff.data.synthetic(clients=4, classes=10, features=64, max_examples=60, seed=2)

    def trained(view):
        job = ff.Job(model=FAMILY, data=data, algorithm=ff.HeteroFL(2, 4, view=view), training=TRAINING,
                     simulated=ff.Simulated(workers=1))  # fmt: skip
        return job.run(None, progress=False).summary

    whole, small, both = trained(before.view()), trained(after.view()), trained(replanned(before, (2, after)))
    assert both["bytes_down"] == pytest.approx((whole["bytes_down"] + small["bytes_down"]) / 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"deadline_s": 0.0}, "above zero"), ({"n": 3}, "one value per device"), ({"examples": [1, 2, 3]}, "per device")],
)
def test_plans_that_make_no_sense_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        plan(FAMILY, Budget(np.ones(2)), TRAINING, known=NEEDS, **given)


@pytest.mark.parametrize("ram", [55e3, 256e3, 4e6])
def test_the_planned_level_of_a_small_board_passes_by_the_allocator_and_a_larger_one_does_not(ram):
    wide = submodels(ff.mlp(64, 1200, 400, 10), [0.5**n for n in range(7)])
    found = plan(wide, Budget(ram), TRAINING)
    level = int(found.assign[0])
    assert level > 0
    done = dry_run(wide, wide.levels[level], ram, TRAINING, example=ROWS)
    assert (done.ok, done.way) == (True, "allocator")
    assert found.needs[level].cost.memory_bytes == pytest.approx(done.used_bytes, rel=0.05)
    larger = dry_run(wide, wide.levels[level - 1], ram, TRAINING, example=ROWS)
    assert not larger.ok
    assert measured(wide, TRAINING, wide.at(wide.levels[level - 1]).layout, ROWS) > 1.1 * ram


def test_a_plan_is_proved_level_by_level_and_who_fails_gets_the_next():
    ram = np.array([1e6, memory(0), memory(1), memory(1) + 9e4, 2e4])
    found, runs = proved(plan(FAMILY, Budget(ram), TRAINING, known=NEEDS), example=ROWS)
    assert found.assign.tolist() == [0, 0, 1, 1, -1]
    assert [(run.level.name, run.budget_bytes, run.ok) for run in runs] == [
        ("1", memory(0), True),
        ("1/2", memory(1), True),
    ]
    short = tuple(replace(n, cost=replace(n.cost, memory_bytes=n.cost.memory_bytes * 4 // 5)) for n in NEEDS)
    ram[1:3] = memory(0) * 0.85, memory(1) * 0.85
    wrong = plan(FAMILY, Budget(ram), TRAINING, known=short)
    assert wrong.assign.tolist() == [0, 0, 1, 1, -1]
    found, runs = proved(wrong, example=ROWS)
    assert found.assign.tolist() == [0, 1, 2, 1, -1]
    assert [run.ok for run in runs] == [False, True, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "batch"), [(64e6, 110), (128e6, 220), (256e6, 440)])
def test_under_a_limit_of_memory_the_whole_model_fails_and_the_planned_level_succeeds(budget, batch):
    pytest.importorskip("torch")
    from fieldfare.models import vgg5

    rows = {"x": np.zeros((2, 3, 32, 32), np.float32), "y": np.zeros(2, np.int64)}
    family = submodels(vgg5((3, 32, 32), norm="group"), (1, 0.5, 0.25), example=rows)
    training = ff.Training(batch_size=batch)
    found = plan(family, Budget(budget), training)
    assert found.assign.tolist() == [1]
    whole, fits = (dry_run(family, level, budget, training) for level in (Level(1), Level(0.5)))
    assert (whole.way, whole.ok, fits.ok) == ("address space", False, True)
    assert "memory" in whole.said.lower() or "allocate" in whole.said
    enough = dry_run(family, Level(1), 2 * found.needs[0].cost.memory_bytes, training)  # so it failed for want of it
    assert enough.ok


@pytest.mark.slow
def test_under_a_limit_of_memory_a_nested_step_fails_and_that_of_its_planned_level_succeeds():
    pytest.importorskip("torch")
    from fieldfare.models import vgg5

    rows = {"x": np.zeros((2, 3, 32, 32), np.float32), "y": np.zeros(2, np.int64)}
    family = submodels(vgg5((3, 32, 32), norm="group"), (1, 0.5, 0.25), example=rows)
    training, local = ff.Training(batch_size=120), ff.NestedFL(1, 2, shares=(0.5, 0.25), distil=0.5, back=0.4).local
    local = (replace(local[0], each="all"),)
    plain, nested = needs(family, training), needs(family, training, local)
    budget = 1.25 * plain[0].cost.memory_bytes
    assert nested[0].cost.memory_bytes > 1.2 * budget > 64e6
    found = plan(family, Budget(budget), training, local=local)
    assert found.assign.tolist() == [1]
    whole, fits = (dry_run(family, level, budget, training, local=local) for level in (1, 0.5))
    assert (whole.way, whole.ok, fits.ok) == ("address space", False, True)


def test_what_a_dry_run_cannot_do_is_told():
    with pytest.raises(UsageError, match="above zero"):
        dry_run(FAMILY, 1, 0)
    with pytest.raises(UsageError, match="give an example"):
        dry_run(FAMILY, 1, 1e9)
    with pytest.raises(UsageError, match="way='cloud'"):
        dry_run(FAMILY, 1, 1e9, way="cloud", example=ROWS)


def test_a_step_that_fails_for_another_reason_is_no_want_of_memory():
    bad = {"x": ROWS["x"], "y": np.full(4, 99)}
    with pytest.raises(UsageError, match="not for want of memory"):
        dry_run(FAMILY, 1, 1e9, example=bad)


def test_boards_are_devices_and_make_fleets():
    fleet = boards("raspberry-pi-pico", "esp32", "raspberry-pi-4-2gb")
    found = plan(FAMILY, fleet, TRAINING, deadline_s=60.0, known=NEEDS)
    assert found.assign.tolist() == [1, 1, 0]
    for name, one in BOARDS.items():
        assert one.name == name
        assert 0 < one.memory_bytes < one.ram_bytes
        assert one.source
        alone = plan(FAMILY, one, TRAINING, known=NEEDS)
        np.testing.assert_allclose(plan(FAMILY, boards(name), TRAINING, known=NEEDS).seconds, alone.seconds, rtol=1e-6)
    with pytest.raises(UsageError, match="did you mean 'esp32'"):
        board("esp-32")
    with pytest.raises(UsageError, match="at least one"):
        boards()


MODEL = """
import fieldfare as ff

family = ff.submodels(ff.mlp(64, 200, 100, 10), (1, 0.5, 0.25, 0.125))
job = ff.Job(
    model=family, data=ff.data.synthetic(clients=4, classes=10, features=64, max_examples=60).holdout(0.3),
    algorithm=ff.HeteroFL(1, 2, view=family.view()), training=ff.Training(batch_size=8, optimizer="adam"),
)
number = 3
"""


def test_the_command_prints_the_levels_and_which_fits(tmp_path):
    job_file(tmp_path, MODEL, "m.py")
    done = fieldfare(tmp_path, "fit", "m.py", "--ram", "256KB", "--json")
    assert done.code == 0
    facts = done.result
    assert facts["level"] == "1/2"
    assert [row["fits"] for row in facts["levels"]] == ["memory", "yes", "yes", "yes"]
    assert [row["memory_bytes"] for row in facts["levels"]] == [memory(n) for n in range(4)]
    assert "step_s" not in facts["levels"][0]
    words = fieldfare(tmp_path, "fit", "m.py", "--ram", "256KB").out
    assert "no: memory" in words
    assert words.count("largest") == 1


def test_the_command_prints_the_table_as_json_too_where_no_level_fits(tmp_path):
    job_file(tmp_path, MODEL, "m.py")
    done = fieldfare(tmp_path, "fit", "m.py", "--ram", "45KB", "--json")
    facts = done.result
    assert (done.code, facts["exit_code"], facts["level"]) == (2, 2, None)
    assert [row["fits"] for row in facts["levels"]] == ["memory"] * 4
    assert "batch_size=" in facts["error"]
    assert done.err == f"error: {facts['error']}\n"


def test_the_command_takes_a_function_that_makes_a_family(tmp_path):
    job_file(tmp_path, MODEL + "\ndef build(): return family\n", "m.py")
    assert fieldfare(tmp_path, "fit", "m.py:build", "--ram", "256KB", "--json").result["level"] == "1/2"


def test_the_command_takes_a_job_with_its_training_and_options_over_it(tmp_path):
    job_file(tmp_path, MODEL, "m.py")
    own = fieldfare(tmp_path, "fit", "m.py:job", "--json").result
    assert (own["batch_size"], own["optimizer"], own["level"]) == (8, "adam", None)
    other = fieldfare(
        tmp_path, "fit", "m.py:job", "--batch", 4, "--optimizer", "sgd", "--levels", "1,1/4", "--json"
    ).result
    assert [row["level"] for row in other["levels"]] == ["1", "1/4"]
    wanted = declared(FAMILY, ff.Training(batch_size=4)).memory_bytes
    assert other["levels"][0]["memory_bytes"] == wanted


def test_the_command_counts_the_step_that_a_jobs_algorithm_takes(tmp_path):
    nested = (
        "\njob2 = ff.Job(family, job.data, ff.NestedFL(1, 2, shares=(1, 0.5, 0.25, 0.125), view=family.fitting()))\n"
    )
    job_file(tmp_path, MODEL + nested, "m.py")
    local = ff.NestedFL(1, 2, shares=(1, 0.5, 0.25, 0.125)).local
    really = [need.cost.memory_bytes for need in needs(FAMILY, TRAINING, local)]
    ram = (really[0] + memory(0)) // 2
    done = fieldfare(tmp_path, "fit", "m.py:job2", "--ram", ram, "--dry-run", "--json").result
    assert [row["memory_bytes"] for row in done["levels"]] == really
    assert (done["level"], done["dry_run"]["ok"], done["local"]) == ("1/2", True, [repr(local[0])])
    assert fieldfare(tmp_path, "fit", "m.py:family", "--ram", ram, "--json").result["level"] == "1"


def test_the_command_counts_seconds_of_a_board_and_proves_the_level(tmp_path):
    job_file(tmp_path, MODEL, "m.py")
    done = fieldfare(
        tmp_path, "fit", "m.py", "--device", "esp32", "--ram", "256KB", "--deadline", 60, "--examples", 100,
        "--dry-run", "--json",
    ).result  # fmt: skip
    row = done["levels"][1]
    esp = board("esp32")
    assert row["step_s"] == pytest.approx(20 * row["flops"] / esp.flops_per_s)
    assert row["round_s"] > 5 * row["step_s"]
    assert done["dry_run"]["ok"]
    assert done["dry_run"]["way"] == "allocator"
    late = fieldfare(tmp_path, "fit", "m.py", "--device", "esp32", "--deadline", 0.2)
    late.refused("esp32 fits no level", "the deadline is 0.2 s")


def test_the_command_shows_the_accuracy_that_levels_had_in_a_run(tmp_path):
    job_file(tmp_path, MODEL, "m.py")
    assert fieldfare(tmp_path, "run", "m.py", "-q").code == 0
    done = fieldfare(tmp_path, "fit", "m.py", "--run", "latest", "--json").result
    assert all(0 <= row["accuracy"] <= 1 for row in done["levels"])
    fieldfare(tmp_path, "fit", "m.py", "--levels", "0.3,0.7", "--run", "latest").refused("measured none of the levels")
    fieldfare(tmp_path, "fit", "m.py", "--run", "nosuch").refused("nosuch")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("m.py", "--ram", "much"), "is no size"),
        (("m.py", "--ram", "1KB"), "even batch_size=1 takes"),
        (("m.py", "--device", "esp33"), "did you mean 'esp32'"),
        (("m.py", "--deadline", 3), "needs --device"),
        (("m.py", "--dry-run"), "needs a limit"),
        (("m.py", "--levels", "1,half"), "write rates"),
        (("m.py", "--levels", "2"), "rate"),
        (("m.py:number",), "makes no model or job called 'number'"),
        (("m.py:nosuch",), "it has family, job"),
        (("none.py",), "there is no job file none.py"),
        (("several.py",), "name one, several.py:NAME"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, args, said):
    job_file(tmp_path, MODEL, "m.py")
    job_file(tmp_path, "import fieldfare as ff\na, b = ff.mlp(2, 3, 2), ff.mlp(2, 4, 2)\n", "several.py")
    fieldfare(tmp_path, "fit", *args).refused(said)


@pytest.mark.slow
def test_the_command_wants_an_example_of_a_torch_net_and_takes_the_files(tmp_path):
    pytest.importorskip("torch")
    text = "from torch import nn\nnet = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))\n"
    job_file(tmp_path, text, "t.py")
    fieldfare(tmp_path, "fit", "t.py").refused("example")
    rows = 'import numpy as np\nexample = {"x": np.zeros((2, 1, 8, 8), np.float32), "y": np.zeros(2, np.int64)}\n'
    job_file(tmp_path, text + rows, "t.py")
    done = fieldfare(tmp_path, "fit", "t.py:net", "--levels", "1,1/2", "--json").result
    assert [row["parameters"] for row in done["levels"]] == [80 + 288 * 5 + 5, 40 + 144 * 5 + 5]


def test_sizes_are_read_as_people_write_them():
    assert [bytes_of(text) for text in ("256KB", "4MB", "1.5GiB", " 7 kib", "12", "4M")] == [
        256e3, 4e6, 1.5 * 2**30, 7 * 1024, 12, 4e6,
    ]  # fmt: skip


def test_want_of_memory_is_told_as_such_and_changes_nothing_for_later(monkeypatch):
    torch = pytest.importorskip("torch")
    from fieldfare.work import torch_loops
    from fieldfare.work.shortage import wants_memory

    rows = {"x": np.zeros((8, 1, 8, 8), np.float32), "y": np.zeros(8, np.int64)}
    body = torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 5)
    net = ff.torch_net(torch.nn.Sequential(*body), example=rows)
    data = ff.federate(rows, ff.iid(), clients=2)
    job = ff.Job(net, data, ff.FedAvg(1, 2), TRAINING, simulated=ff.Simulated(workers=1))
    before = job.run(None, progress=False).model.vector
    said = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes."

    def short(*args, **more):
        raise RuntimeError(said)

    with monkeypatch.context() as patch:
        for loop in (torch_loops.ByHand, torch_loops.Graph):
            patch.setattr(loop, "client", short)
        with pytest.raises(UsageError, match=r"not enough memory to train .* \(80 bytes more were asked for\): use a"):
            job.run(None, progress=False)
    assert job.run(None, progress=False).model.vector.tobytes() == before.tobytes()
    assert not wants_memory(RuntimeError("unsupported memory format option"))
    assert wants_memory(MemoryError())
