"""Folders of runs with several nodes, made up for tests: a ring of two drawn every cycle, links, and one failure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from report_folders import make_run, write_lines

from fieldfare.report.read_nodes import Nodes
from fieldfare.store.nodes import MESSAGE, WORKED

KINDS = ("Version", "Select", "Frame", "Prepared", "Decided", "Broadcast", "Probe", "Skip")
INTERRUPTED = 1


def put_nodes(folder: Path, messages, work, said, *, peers: int = 4, kinds=KINDS) -> None:
    """Write the four files: `messages` as tuples of `MESSAGE`, `work` of `WORKED`, `said` as dicts."""
    nodes = [{"node": "coordinator", "role": "coordinator", "device": None}]
    nodes += [{"node": f"peer/{k}", "role": "peer", "device": k} for k in range(peers)]
    (folder / "nodes.json").write_text(json.dumps({"nodes": nodes, "kinds": list(kinds)}), encoding="utf-8")
    (folder / "messages.bin").write_bytes(np.array(messages, MESSAGE).tobytes())
    (folder / "work.bin").write_bytes(np.array(work, WORKED).tobytes())
    write_lines(folder / "said.jsonl", said)


def make_ring_run(
    folder: Path, *, cycles: int = 12, powers=(3, 3, 1, 1), steps: int = 22, link_s: float = 2.0,
    dead_in: int | None = 6, seed: int = 0, model_bytes: float = 28_840.0, chance=(0.84, 0.84, 0.16, 0.16),
) -> Path:  # fmt: skip
    """Write a run of `cycles` cycles: devices train by their own speed, two average in a ring, one tells the rest.

    In cycle `dead_in` the second member dies in the ring and is back a cycle later; the ring begins again.
    """
    make_run(folder, rounds=cycles, clients=len(powers), cohort=len(powers), seed=seed, round_s=60.0, personal=False,
             speed=0.4)  # fmt: skip
    rng = np.random.default_rng(seed)
    messages: list[tuple[float, ...]] = []
    work: list[tuple[float, ...]] = []
    said: list[dict[str, object]] = []
    step_s = [max(powers) / p for p in powers]
    period = steps * max(step_s)
    at = {name: rank for rank, name in enumerate(KINDS)}
    half = link_s / 2
    now = 0.0
    rows = []
    gone_until = dict[int, float]()
    for cycle in range(1, cycles + 1):
        p = np.array(chance) / sum(chance)
        drawn = rng.choice(len(powers), 2, replace=False, p=p)
        if cycle == dead_in:
            drawn = np.array([1, 0])
        members = [int(k) for k in drawn]
        said.append({"virtual_s": now, "cycle": cycle, "epoch": 0, "members": [f"peer/{k}" for k in members],
                     "chance": {f"peer/{k}": c for k, c in enumerate(chance)}})  # fmt: skip
        for k in range(len(powers)):
            messages.append((now, now, 0, k + 1, at["Select"], 200, cycle, 0, -1))
        ends = {}
        for k, c in enumerate(step_s):
            begun = max(now, gone_until.get(k, 0.0))
            if begun >= now + period:
                continue
            ends[k] = begun + int((now + period - begun) / c) * c
            work.append((k + 1, begun, ends[k], int((now + period - begun) / c), 0, cycle))
            messages.append((ends[k], ends[k], k + 1, 0, at["Version"], 56, cycle, -1, -1))
        start = now + period
        a, b = members[0] + 1, members[1] + 1
        if cycle == dead_in:
            dead, back = members[0], start + 1.6 * period
            messages.append((start, start + half, b, a, at["Frame"], model_bytes / 2, cycle, 0, 0))
            messages.append((start, np.nan, a, b, at["Frame"], model_bytes / 2, cycle, 0, 0))
            messages.append((start + 3 * half, np.nan, b, a, at["Probe"], 40, cycle, 0, -1))
            messages.append((start + 6 * half, start + 6 * half, b, 0, at["Skip"], 40, cycle, 0, -1))
            said.append({"virtual_s": start + half, "node": f"peer/{dead}", "there": False})
            said.append({"virtual_s": back, "node": f"peer/{dead}", "there": True})
            gone_until[dead] = back
            a = 4
            start += 6 * half
            said.append({"virtual_s": start, "cycle": cycle, "epoch": 1, "members": [f"peer/{b - 1}", f"peer/{a - 1}"]})
            for k in (a, b):
                messages.append((start, start, 0, k, at["Select"], 200, cycle, 1, -1))
        epoch = int(cycle == dead_in)
        for hop in range(2):
            for src, dst in ((a, b), (b, a)):
                messages.append((start + hop * half, start + (hop + 1) * half, src, dst, at["Frame"], model_bytes / 2,
                                 cycle, epoch, hop))  # fmt: skip
        done = start + 2 * half
        messages.append((done, done, a, 0, at["Prepared"], 80, cycle, epoch, -1))
        for k in (a, b):
            messages.append((done, done, 0, k, at["Decided"], 80, cycle, epoch, -1))
        said.append({"virtual_s": done, "cycle": cycle, "epoch": epoch})
        for k in range(1, len(powers) + 1):
            if k not in (a, b):
                lost = gone_until.get(k - 1, 0.0) > done
                messages.append(
                    (done, np.nan if lost else done + link_s, a, k, at["Broadcast"], model_bytes, cycle, -1, -1)
                )
        now = done
        level = 0.96 - 0.8 * 0.8**cycle
        rows.append({"round": cycle, "version": cycle, "virtual_s": now, "wall_s": 0.1 * cycle, "clients": 2,
                     "bytes_down": 0.0, "bytes_up": 0.0, "accuracy": level, "loss": 1 - level})  # fmt: skip
    write_lines(folder / "rounds.jsonl", rows)
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"rounds": cycles, "virtual_s": now, "wall_s": 0.1 * cycles, "bytes_down": 0.0, "bytes_up": 0.0}
    (folder / "summary.json").write_text(json.dumps(summary | {"final": {"accuracy": rows[-1]["accuracy"]}}))
    put_nodes(folder, messages, work, sorted(said, key=lambda one: one["virtual_s"]), peers=len(powers))
    return folder


def nodes_of(messages, work, *, kinds, peers, came=(), said=(), span_s=None) -> Nodes:
    """`Nodes` of `peers` peers on devices, from plain tuples."""
    rows, trained = np.array(messages, MESSAGE), np.array(work, WORKED)
    last = max([0.0, *trained["ended_s"], *(end for _, end, *_ in messages)])
    names = tuple(f"peer/{k}" for k in range(peers))
    return Nodes(names, ("peer",) * peers, tuple(range(peers)), kinds, rows[np.argsort(rows["sent_s"])],
                 trained[np.argsort(trained["begun_s"])], tuple(said), tuple(came), span_s or last)  # fmt: skip
