"""Curves in TensorBoard, by a callback.  pip install 'fieldfare[digits,tensorboard]'; tensorboard --logdir runs

A callback is any function of one round's record: a dictionary, as a line of rounds.jsonl.
"""

import functools
import tempfile

import fieldfare as ff


@functools.cache
def writer():
    """Made at the first round, so that reading this file leaves no log behind."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(tempfile.mkdtemp(prefix="fieldfare-tensorboard-"))


def to_tensorboard(row):
    """Every number of the record as a curve over rounds."""
    for name, value in row.items():
        if isinstance(value, float | int):
            writer().add_scalar(name, value, row["round"])
    writer().flush()


job = ff.Job(
    model=ff.mlp(64, 64, 10),
    data=ff.data.digits(clients=100, partition=ff.dirichlet(0.3)),
    algorithm=ff.FedAvg(rounds=30, cohort=20),
    training=ff.Training(lr=0.2, batch_size=10, epochs=2),
    callbacks=(to_tensorboard,),
    name="tensorboard",
)

if __name__ == "__main__":
    print(job.run().final)
    print("tensorboard --logdir", writer().logdir)
