"""FedFly's roles in the simulator: split rounds, aggregation, and the same bits without an edge."""

from __future__ import annotations

import numpy as np
from fedfly_toy import BATCH, MODEL, PROBLEM, SIZE, WORKS, bits, world

from fieldfare.algorithms.fedfly.messages import Backward, Between, Ends, Forward, Update
from fieldfare.core import rng
from fieldfare.core.effects import Publish, Run, Send
from fieldfare.core.work import Cohort
from fieldfare.testing import loop, simulate


def by_hand(device: int, model, round_: int, steps: int, seed: int = 0):
    """One device's round as a loop over the three works."""
    key = rng.keys(seed, ("client", "split", f"device/{device}", str(round_)), np.zeros(1, np.int64))
    data = PROBLEM.data.block(np.array([device]))
    lower, upper = model[:SIZE], model[SIZE:]
    slots = [np.zeros(SIZE, np.float32), np.zeros(len(model) - SIZE, np.float32)]

    def run(part, w, seq, **inputs):
        config = {"seq": seq, "round": round_, "cut": "first", "steps": steps}
        one = Cohort(w[None], np.zeros(1, np.int64), None, np.array([device]), key, data, config, inputs)
        return WORKS[f"split/{part}"](one).leaves

    for seq in range(steps):
        up = run("forward", lower, seq)
        got = run("step", upper, seq, act=up["act"][0], y=up["y"][0], slots=slots[1])
        upper, slots[1] = got["model"][0], got["slots"][0]
        back = run("backward", lower, seq, g=got["g"][0], slots=slots[0])
        lower, slots[0] = back["model"][0], back["slots"][0]
    return np.concatenate([lower, upper])


def sent(end, kind):
    return [
        e.body for _, _, out in end.transcript.kept for e in out if isinstance(e, Send) and isinstance(e.body, kind)
    ]


def test_each_device_sends_what_a_loop_by_hand_gives():
    end = simulate(world(devices=3, rounds=1), keep=True)
    bits(end)
    updates = {u.device: u for u in sent(end, Update)}
    assert len(updates) == 3
    for i in range(3):
        expected = by_hand(i, MODEL.vector, 1, 4)
        assert updates[f"device/{i}"].vector.tobytes() == expected.tobytes()
        assert updates[f"device/{i}"].samples == 4 * BATCH
        assert updates[f"device/{i}"].loss > 0


def test_rounds_go_on_from_the_mean_of_the_one_before():
    end = simulate(world(devices=2, rounds=2), keep=True)
    model = MODEL.vector
    for round_ in (1, 2):
        rows = [by_hand(i, model, round_, 4).astype(np.float64) for i in range(2)]
        model = (np.mean(rows, axis=0)).astype(np.float32)
        (published,) = [e.model for *_, out in end.transcript.kept for e in out
                        if isinstance(e, Publish) and e.version == round_]  # fmt: skip
        np.testing.assert_allclose(published.vector, model, rtol=0, atol=1e-6)
        model = published.vector
    assert bits(end)


def test_the_loopback_gives_the_bits_of_the_simulator():
    assert bits(loop(world(devices=2, rounds=2))) == bits(simulate(world(devices=2, rounds=2)))


def test_every_batch_is_one_step_and_no_message_is_sent_twice():
    end = simulate(world(devices=2, rounds=1), keep=True)
    runs = [e.work for *_, out in end.transcript.kept for e in out if isinstance(e, Run)]
    three = ("split/forward", "split/step", "split/backward")
    assert {work: runs.count(work) for work in {*runs}} == dict.fromkeys(three, 8)
    kinds = [type(e.body).__name__ for *_, out in end.transcript.kept for e in out if isinstance(e, Send)]
    assert kinds.count("Forward") == kinds.count("Backward") == 8
    assert kinds.count("Finish") == kinds.count("Closed") == kinds.count("Update") == 2


def test_in_a_u_no_label_leaves_the_device_and_the_server_computes_twice_per_batch():
    end = simulate(world(devices=2, rounds=1, u=True), keep=True)
    bits(end)
    runs = [e.work for *_, out in end.transcript.kept for e in out if isinstance(e, Run)]
    assert {work: runs.count(work) for work in {*runs}} == dict.fromkeys(WORKS, 8)
    assert all(body.y.size == 0 for body in sent(end, Forward))
    assert len(sent(end, Forward)) == len(sent(end, Between)) == len(sent(end, Ends)) == len(sent(end, Backward)) == 8
    assert all(update.loss > 0 for update in sent(end, Update))
