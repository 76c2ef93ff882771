"""A process killed at any moment leaves a folder that opens, with its last durable mark intact.

This file is also the victim: `python test_store_kill.py FOLDER TURNS [CALL]` goes on with the run in FOLDER, and with
CALL dies in the middle of that system call.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Params
from fieldfare.store import files, lines, slots
from fieldfare.store.codec import Codec, registry
from fieldfare.store.runs import RunFolder
from fieldfare.store.slots import Slots
from fieldfare.store.snapshot import Snapshots

SIZES = {"c": 50}
CALLS = ("write", "fsync", "replace", "ftruncate", "unlink")


def model_after(turn: int) -> Params:
    return Params.pack({"w": np.full(500, turn)})


def clients_of(turn: int) -> Any:
    return np.arange(turn % 3, 30, 3)


def turn_of(state: dict[str, Any] | None) -> int:
    return 0 if state is None else int(state["turn"])


def resume(folder: Path) -> tuple[RunFolder, Slots, Snapshots, int]:
    """Open the run as a driver does, and check that what is there is exactly what the snapshot's turn left."""
    run = RunFolder.open(folder) if (folder / "run.json").exists() else RunFolder.create_at(folder)
    snapshots = Snapshots(run.path / "snapshots")
    found = snapshots.read()
    state = None if found is None else Codec(registry()).decode(found.tree, found.arrays)
    turn = turn_of(state)
    run.truncate(state["lines"] if state else {})
    kept = Slots(run.path / "slots", SIZES)
    kept.restore(state["slots"] if state else {})
    if found is not None:
        assert found.torn == ()
    if state is not None:
        assert state["model"].vector.tolist() == model_after(turn).vector.tolist()
    assert run.read_lines("rounds.jsonl") == list(range(1, turn + 1))
    got, fresh = kept.get("c", np.arange(30))
    expect = np.zeros(30)
    for past in range(1, turn + 1):
        expect[clients_of(past)] = past
    assert got[:, 7].tolist() == expect.tolist()
    assert fresh.tolist() == (expect == 0).tolist()
    return run, kept, snapshots, turn


def go_on(folder: Path, turns: int, speak: bool = True) -> None:
    run, kept, snapshots, turn = resume(folder)
    codec = Codec(registry())
    while turn < turns:
        turn += 1
        kept.put("c", clients_of(turn), np.full((10, 50), turn, np.float32))
        run.append("rounds.jsonl", turn)
        state = {"turn": turn, "model": model_after(turn), "slots": kept.flush(), "lines": run.flush()}
        snapshots.write(*codec.encode(state))
        if speak:
            print(turn, flush=True)
    run.write_model(model_after(turn))
    run.finish({"turns": turn})
    kept.close()
    run.close()


def die_in_call(number: int) -> None:
    """Arrange that call `number` of those which change files is done half, if it is a write, and the process dies."""
    left = [number]
    real = {name: getattr(os, name) for name in CALLS}

    def dying(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    real["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(9)
            return real[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, dying(name))


def every_call(folder: Path, turns: int) -> int:
    """Fork a child that dies in call 1, 2, 3, ... of a run begun anew each time; each folder must resume to its end."""
    number = 0
    while True:
        number += 1
        at = folder / str(number)
        child = os.fork()
        if child == 0:
            die_in_call(number)
            go_on(at, turns, speak=False)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        run, kept, _, turn = resume(at)
        kept.close()
        run.close()
        assert died or turn == turns
        go_on(at, turns, speak=False)
        done = RunFolder.open(at, write=False)
        assert done.status == "complete"
        assert done.read_model().vector.tolist() == model_after(turns).vector.tolist()
        assert len(list(at.rglob("*.tmp"))) == 0 or turn == turns
        if not died:
            return number


def command(*args: object) -> list[str]:
    return [sys.executable, __file__, *map(str, args)]


@pytest.mark.slow
def test_a_run_killed_in_any_system_call_resumes_to_the_same_end(tmp_path: Path) -> None:
    ran = subprocess.run(command(tmp_path, 4, "every"), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 50


@pytest.mark.slow
def test_a_run_killed_at_random_moments_keeps_every_mark_it_reported_and_resumes_to_its_end(tmp_path: Path) -> None:
    dice, folder, turns, kills = random.Random(5), tmp_path / "run", 120, 0
    for _ in range(8):
        with subprocess.Popen(command(folder, turns), stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            victim.stdout.readline()
            time.sleep(dice.uniform(0.0, 0.1))
            victim.kill()
            said = [int(line) for line in victim.stdout.read().split()]
        kills += victim.returncode == -9
        run, kept, _, turn = resume(folder)
        kept.close()
        run.close()
        assert not said or turn >= said[-1]
    assert kills > 0
    subprocess.run(command(folder, turns), check=True, stdout=subprocess.DEVNULL)
    assert RunFolder.open(folder, write=False).read_lines("rounds.jsonl") == list(range(1, turns + 1))


def test_a_run_killed_while_writing_a_snapshot_has_the_one_before(tmp_path: Path) -> None:
    go_on(tmp_path / "run", 3, speak=False)
    half = tmp_path / "run" / "snapshots" / ".snapshot-000003.ffs.1.tmp"
    half.write_bytes(b"FFSNAP")
    run, kept, _, turn = resume(tmp_path / "run")
    kept.close()
    run.close()
    assert turn == 3
    go_on(tmp_path / "run", 4, speak=False)
    assert not half.exists()


def test_a_log_cut_behind_its_mark_by_a_broken_disk_is_told_and_not_taken(tmp_path: Path) -> None:
    go_on(tmp_path / "run", 3, speak=False)
    (log,) = (tmp_path / "run" / "slots").iterdir()
    os.truncate(log, log.stat().st_size - 1)
    with pytest.raises(UsageError, match="damaged or cut short"):
        resume(tmp_path / "run")


if __name__ == "__main__":
    where, count = Path(sys.argv[1]), int(sys.argv[2])
    assert all(module.os is os for module in (files, lines, slots))
    if len(sys.argv) > 3:
        print(every_call(where, count))
    else:
        go_on(where, count)
