"""The same bits on a Ray cluster: two workers on a local Ray, whatever becomes of them.

One test with a real Ray is part of the default suite (Ray takes seconds to start); the others are slow.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import fieldfare, job_file, program
from test_job_bits import ALGORITHMS, JOB, make, vector

import fieldfare as ff
from fieldfare import assembly
from fieldfare.core.effects import Run
from fieldfare.core.errors import MissingExtra, PeerError, UsageError
from fieldfare.core.quorum import Everyone
from fieldfare.load import load_job
from fieldfare.resume import resume_run
from fieldfare.sim import batch, cluster
from fieldfare.sim import ray as sim_ray
from fieldfare.sim.batch import Executor
from fieldfare.sim.pool import WorkerDied
from fieldfare.sim.simulator import Simulator
from fieldfare.store.runs import RunFolder
from fieldfare.testing import Asking, Echo, quadratics


@pytest.fixture(scope="module")
def local_ray():
    """A Ray of two CPUs, started as a run starts one, for all tests here."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fieldfare[ray]'")
    ray = cluster.library()
    before = signal.getsignal(signal.SIGTERM)
    assert cluster.join(ray, None, 2)
    assert signal.getsignal(signal.SIGTERM) == before
    yield ray
    cluster.leave(ray)


@pytest.fixture
def pools(local_ray, monkeypatch):
    """The Ray pools that are made, as they are made."""
    made: list[sim_ray.RayPool] = []

    class Noted(sim_ray.RayPool):
        def __init__(self, *args):
            made.append(self)
            super().__init__(*args)

    monkeypatch.setattr(batch, "RayPool", Noted)
    return made


def killing(job, pools, at=2):
    """The job, one of whose Ray workers is killed when round `at` ends; and the process ids seen at each round."""
    seen: list[tuple[int, ...]] = []

    def kill(row):
        seen.append(tuple(pools[-1].pids))
        if row["round"] == at:
            os.kill(seen[-1][0], signal.SIGKILL)

    return replace(job, callbacks=(kill,)), seen


@pytest.mark.parametrize(
    "algorithm", [ff.Scaffold(rounds=4, cohort=7), ff.FedBuff(rounds=9, cohort=12, buffer=3)], ids=lambda one: one.name
)
def test_two_ray_workers_of_which_one_is_killed_give_the_bits_of_one_process(algorithm, pools, capfd):
    expected = vector(make(algorithm, workers=1))
    job, seen = killing(make(algorithm, workers=2, on="ray"), pools)
    assert vector(job) == expected
    assert len({*seen[0], os.getpid()}) == 3
    assert pools[-1].deaths == 1
    assert seen[0][0] not in seen[-1]
    assert seen[0][1] in seen[-1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_ray_and_chunks_change_no_bit(name, local_ray):
    expected = vector(make(ALGORITHMS[name](), workers=1))
    assert vector(make(ALGORITHMS[name](), on="ray")) == expected
    assert vector(make(ALGORITHMS[name](), workers=2, chunk=1, on="ray")) == expected


@pytest.mark.slow
def test_a_torch_model_has_the_same_bits_on_ray(pools):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 40), torch.nn.ReLU(), torch.nn.Linear(40, 4))
    job = replace(make(ff.FedAvg(rounds=3, cohort=7), workers=1), model=net, loss="cross_entropy")
    expected = vector(job)
    job, _ = killing(job.with_overrides({"on": "ray", "workers": 2}), pools, at=1)
    assert vector(job) == expected
    assert pools[-1].deaths == 1


@pytest.mark.slow
def test_workers_on_ray_go_the_way_that_was_settled_here_in_the_same_stacks(local_ray, monkeypatch):
    torch = pytest.importorskip("torch")
    from fieldfare.work.native import choose, timing

    monkeypatch.setenv("FIELDFARE_PATH", "auto")
    monkeypatch.setattr(choose, "_settled", {})
    monkeypatch.setattr(timing.threads, "allowed", lambda: 2)
    torch.manual_seed(0)
    data = ff.data.digits(clients=20)
    net = ff.torch_net(
        torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Hardtanh(), torch.nn.Linear(8, 10)),
        example={name: rows[:2] for name, rows in data.columns.items()},
    )
    told = f"{net.key}, batches of 5, sgd, stacks of 4 at most"
    monkeypatch.setattr(timing, "_known", {told: choose.Choice("lockstep-4", {}, told)})
    job = ff.Job(
        model=net, data=data, algorithm=ff.FedAvg(rounds=2, cohort=9), training=ff.Training(batch_size=5),
    )  # fmt: skip
    here = vector(replace(job, simulated=ff.Simulated(workers=2)))
    assert net.lockstep is not None
    assert vector(replace(job, simulated=ff.Simulated(workers=2, on="ray"))) == here
    monkeypatch.setenv("FIELDFARE_PATH", "graph")
    assert vector(replace(job, simulated=ff.Simulated(workers=1))) != here


@pytest.mark.slow
def test_a_jax_model_has_the_same_bits_on_ray(local_ray):
    pytest.importorskip("jax")
    from test_jax_net import job

    assert vector(job(on="ray", workers=2)) == vector(job(workers=1))


class Failing(Echo):
    """A work whose clients above 1 raise what `make` gives."""

    def __init__(self, make):
        self.make = make

    def __call__(self, cohort):
        for client in cohort.clients.tolist():
            if client > 1:
                raise self.make(client)
        return super().__call__(cohort)


class Own(Exception):
    """An exception that only this file knows."""


def fails(make, on):
    """The error of a run in which clients 2 to 7 fail, and the executor asked once more after that."""
    world = quadratics(n=8).world(Asking((Run("bad", Everyone(), 1),)), works={"bad": Failing(make)})
    with Executor(world.works, None, workers=2 if on == "ray" else 1, on=on) as executor:
        for _ in range(2):
            simulator = Simulator(world, executor)
            with pytest.raises(Exception) as caught:
                simulator.run()
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [lambda c: KeyError(c), lambda c: PeerError(c, 1, "no"), lambda c: ff.UsageError(f"client {c}"), lambda c: Own(c)],
    ids=["KeyError", "PeerError", "UsageError", "Own"],
)
def test_an_exception_of_a_work_is_told_as_in_one_process(make, local_ray):
    here, there = fails(make, "local"), fails(make, "ray")
    assert (type(there), str(there), there.args) == (type(here), str(here), here.args)
    assert str(there) == str(make(2))
    assert "in Ray worker process" in there.__notes__[-1]


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_told_with_client_and_round(local_ray):
    job = replace(make(ff.FedAvg(rounds=2, cohort=7), workers=2, on="ray"), bad_updates="stop")
    job.data.columns["x"][:] *= np.float32(1e30)
    told = []
    for on in ("local", "ray"):
        with pytest.raises(PeerError) as caught:
            job.with_overrides({"on": on}).run(None, progress=False)
        told.append(str(caught.value))
    assert told[0] == told[1]


@dataclass
class Deadly:
    """The work `inner` in a process that is killed at client 5, once for every file in `folder`."""

    inner: Any
    folder: Path

    def __call__(self, cohort):
        left = [*self.folder.iterdir()]
        if 5 in cohort.clients and left:
            left[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(cohort)

    def __getattr__(self, name):
        if name == "inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def deadly(job, folder, times, monkeypatch):
    """Run `job` where a worker is killed `times` times amid a piece; gives the model's bytes."""
    for number in range(times):
        (folder / str(number)).touch()
    made = assembly.works_of
    monkeypatch.setattr(assembly, "works_of", lambda *args: {**(w := made(*args)), "train": Deadly(w["train"], folder)})
    return vector(job)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 100])
def test_pieces_of_a_worker_killed_amid_them_are_computed_again_and_count_once(chunk, tmp_path, pools, monkeypatch):
    expected = vector(make(ff.Scaffold(rounds=2, cohort=20), workers=1))
    job = make(ff.Scaffold(rounds=2, cohort=20), workers=2, chunk=chunk, on="ray")
    assert deadly(job, tmp_path, 3, monkeypatch) == expected
    assert pools[-1].deaths == 3


@pytest.mark.slow
def test_a_piece_that_ends_its_worker_every_time_stops_the_run_in_one_line(tmp_path, local_ray, monkeypatch):
    job = make(ff.FedAvg(rounds=1, cohort=20), workers=2, chunk=1, on="ray")
    with pytest.raises(WorkerDied, match="ended 4 times while computing clients 5 to 5") as caught:
        deadly(job, tmp_path, 20, monkeypatch)
    assert "\n" not in str(caught.value)
    assert "smaller chunk" in str(caught.value)
    assert len([*tmp_path.iterdir()]) == 16


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_are_refused(local_ray):
    with pytest.raises(UsageError, match="workers=3: this Ray cluster has 2 CPUs; use workers <= 2"):
        make(ff.FedAvg(rounds=1, cohort=7), workers=3, on="ray").run(None, progress=False)


@pytest.mark.slow
def test_another_address_than_that_of_the_ray_in_this_process_is_refused(local_ray):
    with pytest.raises(UsageError, match="initialised in this process already; use on='ray'"):
        make(ff.FedAvg(rounds=1, cohort=7), on="ray://elsewhere").run(None, progress=False)


@pytest.mark.slow
def test_a_memory_mapped_column_is_mapped_by_every_worker_and_not_copied(tmp_path, local_ray):
    np.save(tmp_path / "x.npy", np.arange(24.0, dtype=np.float32).reshape(12, 2))
    whole = np.load(tmp_path / "x.npy", mmap_mode="r")
    with cluster.mapped_files(local_ray):
        box = local_ray.put((whole, whole[3:7], whole[:, 1]))

    def look(boxed):
        return [(str(getattr(array, "filename", None)), array.tolist()) for array in local_ray.get(boxed[0])]

    got = local_ray.get(local_ray.remote(look).remote([box]))
    assert [file for file, _ in got] == [str(tmp_path / "x.npy"), str(tmp_path / "x.npy"), "None"]
    assert [values for _, values in got] == [whole.tolist(), whole[3:7].tolist(), whole[:, 1].tolist()]
    assert local_ray.get(local_ray.put(whole)).filename is None


OWN = """
import numpy as np
from beside import step

import fieldfare as ff


def train(model, data, config, rng):
    return step(model, data["x"], rng)


def measure(model, data):
    return {"loss": float(np.abs(model).sum())}


job = ff.Job(
    model=ff.opaque(train, measure, init=np.zeros(3)),
    data=ff.data.synthetic(clients=12, classes=3, features=3, max_examples=60, seed=1),
    algorithm=ff.FedAvg(rounds=3, cohort=6),
)
"""
BESIDE = """
def step(model, x, rng):
    return 0.9 * model + 0.1 * x.mean(axis=0) + rng.normal(size=3)
"""


@pytest.mark.slow
def test_functions_of_the_job_file_and_of_modules_beside_it_reach_the_workers(tmp_path, local_ray):
    job_file(tmp_path, BESIDE, "beside.py")
    job = load_job(job_file(tmp_path, OWN, "own.py"))
    assert vector(job.with_overrides({"on": "ray"})) == vector(job.with_overrides({"workers": 1}))


@pytest.mark.slow
def test_the_command_computes_on_a_ray_of_its_own_and_leaves_none_behind(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fieldfare[ray]'")
    job_file(tmp_path)
    told = [program(tmp_path, "run", "hello.py", "-q", "--json", *more) for more in ((), ("--on", "ray"))]
    assert [one.code for one in told] == [0, 0], told[1].err
    assert told[1].err == told[0].err
    assert told[0].result["final"] == told[1].result["final"]
    folders = [tmp_path / "runs" / one.result["run"] for one in told]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1


@pytest.mark.slow
def test_a_run_begun_here_and_killed_is_resumed_on_ray_with_the_same_bits(tmp_path, local_ray):
    job = tmp_path / "job.py"
    job.write_text(JOB.format(tests=os.path.dirname(__file__), algorithm="ff.Scaffold(rounds=5, cohort=7)"))
    whole = program(tmp_path, "run", "job.py", "-q")
    assert whole.code == 0, whole.err
    expected = RunFolder.find("latest", tmp_path / "runs").read_model().vector.tobytes()
    env = {**os.environ, "DIE_AT": "3"}
    assert program(tmp_path, "run", "job.py", "-q", env=env).code == -signal.SIGKILL
    result = resume_run("latest", tmp_path / "runs", progress=False, on="ray")
    assert result.model.vector.tobytes() == expected


def test_addresses_are_those_that_ray_knows():
    assert cluster.address_of("ray://head") == "ray://head:10001"
    assert cluster.address_of("ray://head:9") == "ray://head:9"
    assert cluster.address_of("ray://auto") == "auto"
    assert cluster.address_of("ray") is None


def free_port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def never(**settings):
    raise AssertionError("Ray was asked to join, and would have tried for minutes")


def ray_that_knows(address):
    """A Ray whose address file says `address` (None: no cluster was started here)."""

    def get_ray_address_from_environment(given, folder):
        if address is None:
            raise ConnectionError("Could not find any running Ray instance.")
        return address

    services = SimpleNamespace(get_ray_address_from_environment=get_ray_address_from_environment)
    return SimpleNamespace(_private=SimpleNamespace(services=services), is_initialized=lambda: False, init=never)


def test_an_address_at_which_nobody_listens_is_refused_before_ray_tries(monkeypatch):
    port = free_port()
    with pytest.raises(UsageError) as told:
        cluster.join(ray_that_knows(None), f"ray://127.0.0.1:{port}", None)
    assert str(told.value) == (
        f"no Ray cluster answers at 'ray://127.0.0.1:{port}' (connection refused): start one with `ray start --head`, "
        "check the address, or use on='ray' for one on this machine."
    )
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match=rf"no Ray cluster answers at '127\.0\.0\.1:{port}' \(connection refused\)"):
        cluster.join(ray_that_knows(None), None, None)


def test_without_a_cluster_here_auto_is_refused_and_so_is_one_that_has_gone(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match=r"no Ray cluster runs on this machine \('auto' finds none\): start one with"):
        cluster.join(ray_that_knows(None), "auto", None)
    port = free_port()
    with pytest.raises(UsageError, match=rf"answers at 'auto', which is 127\.0\.0\.1:{port} \(connection refused\)"):
        cluster.join(ray_that_knows(f"127.0.0.1:{port}"), "auto", None)


def test_an_address_that_stays_silent_is_refused_when_time_is_up(monkeypatch):
    over = threading.Event()

    def silent(where, timeout_s):
        over.wait(60)
        raise OSError(f"{where} said nothing within {timeout_s} s")

    monkeypatch.setattr(cluster, "REACH_S", 0.05)
    monkeypatch.setattr(cluster.socket, "create_connection", silent)
    with pytest.raises(UsageError, match=r"answers at 'ray://head:10001' \(no answer within 0\.05 s\)"):
        cluster.reach(ray_that_knows(None), "ray://head:10001")
    over.set()


@pytest.mark.parametrize("address", ["ray://head:many", "ray://[::1:9"])
def test_an_address_that_is_none_is_refused_in_one_line(address):
    with pytest.raises(UsageError, match="no Ray cluster can be at") as told:
        cluster.reach(ray_that_knows(None), address)
    assert "\n" not in str(told.value)


def test_an_address_where_somebody_listens_is_left_to_ray():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        cluster.reach(ray_that_knows(None), f"ray://127.0.0.1:{one.getsockname()[1]}")
    cluster.reach(ray_that_knows(None), "anyscale://of/their/own")


@pytest.mark.slow
def test_the_command_refuses_a_cluster_out_of_reach_with_one_line(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fieldfare[ray]'")
    job_file(tmp_path)
    port = free_port()
    done = program(tmp_path, "run", "hello.py", "-q", "--on", f"ray://127.0.0.1:{port}")
    done.refused(f"no Ray cluster answers at 'ray://127.0.0.1:{port}' (connection refused)")


@pytest.fixture(scope="module")
def client_port():
    """The port for Ray's clients of a cluster of two CPUs, started for this as its user would, on 127.0.0.1 alone."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fieldfare[ray]'")
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # Ray's sockets lie in there: no long path will do
    port = free_port()
    command = [
        os.path.join(os.path.dirname(sys.executable), "ray"), "start", "--head", "--block", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--ray-client-server-port={port}",
        "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}",
        f"--object-store-memory={100 << 20}",
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (folder / "said").open("w") as said:
        head = subprocess.Popen(command, stdout=said, stderr=said, env=env, start_new_session=True)
        try:
            until = time.monotonic() + 90
            while cluster._refusal("127.0.0.1", port):
                assert head.poll() is None, (folder / "said").read_text()
                assert time.monotonic() < until, (folder / "said").read_text()
                time.sleep(0.2)
            yield port
        finally:
            head.terminate()
            try:
                head.wait(30)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(head.pid, signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_reached_by_rays_client_gives_the_bits_of_one_process(tmp_path, client_port):
    job_file(tmp_path)
    told = [
        program(tmp_path, "run", "hello.py", "-q", "--json", *more)
        for more in ((), ("--on", f"ray://127.0.0.1:{client_port}", "--workers", "2"))
    ]
    assert [one.code for one in told] == [0, 0], told[1].err
    folders = [tmp_path / "runs" / one.result["run"] for one in told]
    assert told[0].result["final"] == told[1].result["final"]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize("on", ["", "rays", "ray:", "ray://", "dask", "localhost"])
def test_a_place_that_is_not_known_is_refused_in_one_line(on):
    with pytest.raises(UsageError, match=r"use 'local', 'ray', 'ray://HOST:PORT' or 'ray://auto'"):
        ff.Simulated(on=on)


def test_a_place_that_is_not_known_is_refused_by_the_command(tmp_path):
    job_file(tmp_path)
    fieldfare(tmp_path, "run", "hello.py", "-q", "--on", "moon").refused("on='moon'", "'ray://auto'")


def test_without_ray_the_extra_is_named_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"ray is not installed.*pip install 'fieldfare\[ray\]'"):
        make(ff.FedAvg(rounds=1, cohort=7), on="ray").run(tmp_path, progress=False)


def test_modules_of_the_user_travel_as_they_are_and_installed_ones_by_name(tmp_path, monkeypatch):
    (tmp_path / "beside_the_job.py").write_text("def halve(rows):\n    return rows / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    import beside_the_job

    found = {module.__name__ for module in cluster.own_modules()}
    assert beside_the_job.__name__ in found
    assert not found & {"numpy", "fieldfare", "json", "click", "__main__", "fieldfare.sim.ray"}
    del sys.modules["beside_the_job"]
