"""The simulator where asks overlap, clients drop out, workers fail and memory is short."""

from __future__ import annotations

import errno
import os
import sys

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.run import Saver
from fieldfare.sim.arena import Arena
from fieldfare.sim.observe import Progressed
from fieldfare.store.runs import RunFolder


class Stop(Exception):
    pass


def overlapping(sigma: float) -> ff.Job:
    """Ditto, whose personal models everyone measures every round, while the next round trains: slots overlap."""
    data = ff.data.synthetic(clients=6, classes=3, features=4, max_examples=60, seed=1).holdout(0.3)
    return ff.Job(
        model=ff.mlp(4, 3), data=data, algorithm=ff.Ditto(rounds=4, cohort=3, lam=0.3), seed=1,
        evaluate=ff.Evaluation(clients=6, clients_every=1, personal=True),
        simulated=ff.Simulated(fleet=ff.fleet.phones(sigma=sigma), workers=1),
    )  # fmt: skip


def lines(folder: RunFolder) -> dict[str, list[dict[str, object]]]:
    """What a run wrote, without the machine's clock."""
    return {
        kind: [{k: v for k, v in row.items() if k != "wall_s"} for row in folder.read_lines(f"{kind}.jsonl")]
        for kind in ("rounds", "clients", "evaluation")
    }


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_a_run_whose_stateful_asks_overlap_is_resumed_from_every_step_to_the_same_lines(tmp_path, monkeypatch, sigma):
    whole = overlapping(sigma).run(tmp_path / "whole", progress=False, report=False)
    expected = lines(RunFolder.find("latest", tmp_path / "whole"))
    steps, overlapped = [0], []

    def stop_at(step):
        def call(saver, seen):
            if isinstance(seen, Progressed):
                steps[0] = max(steps[0], seen.steps)
                if seen.steps == step:
                    overlapped.append(len(saver.simulator.computed()))
                    saver.save()
                    raise Stop

        return call

    step = 0
    while step == 0 or step < steps[0]:
        step += 1
        with monkeypatch.context() as patch:
            patch.setattr(Saver, "__call__", stop_at(step))
            with pytest.raises(Stop):
                overlapping(sigma).run(tmp_path / str(step), progress=False, report=False)
        with monkeypatch.context() as patch:
            patch.setattr(Saver, "__call__", stop_at(-1))
            folder = RunFolder.find("latest", tmp_path / str(step))
            result = overlapping(sigma).run(folder=RunFolder.open(folder.path), progress=False, report=False)
        assert lines(folder) == expected, f"stopped after step {step}"
        assert (result.model.vector == whole.model.vector).all()
    assert step > 10
    assert max(overlapped) > 0, "no step had a computed ask outstanding: this tests nothing"


@pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
def test_shared_memory_has_no_place_in_a_file_system_and_keeps_what_is_written_as_it_grows():
    arena = Arena()
    try:
        assert os.readlink(f"/proc/self/fd/{arena._fd}").startswith("/memfd:")
        for n in (3, 100_000, 7):
            rows = np.arange(n, dtype=np.float32).reshape(n, 1)
            read = arena.read(arena.write([rows, np.arange(2)]))
            assert np.array_equal(read[0], rows)
            assert np.array_equal(read[1], [0, 1])
            del read
    finally:
        arena.close()


def test_memory_that_is_not_to_be_had_is_no_full_disk(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    arena = Arena()
    try:
        with pytest.raises(ff.UsageError, match="bytes of memory shared with the worker processes"):
            arena.write([np.zeros(8)])
    finally:
        arena.close()
