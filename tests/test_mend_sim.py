"""The simulator where asks overlap, clients drop out, workers fail and memory is short."""

from __future__ import annotations

import pytest

import fieldfare as ff
from fieldfare.run import Saver
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
