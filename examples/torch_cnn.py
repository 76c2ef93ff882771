"""Any nn.Module: a small convolutional network on real digits.  pip install 'fieldfare[digits]' torch

A function that makes the module gets new weights from the job's seed; a module itself starts from the weights it has.
"""

from torch import nn

import fieldfare as ff


def cnn():
    """8 x 8 pixels come as 64 numbers; 6,090 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


job = ff.Job(
    model=cnn,
    loss="cross_entropy",  # or any function (output, y) -> scalar tensor
    data=ff.data.digits(clients=50, partition=ff.dirichlet(0.3)),
    algorithm=ff.FedAvgM(rounds=20, cohort=10, beta=0.7),
    training=ff.Training(lr=0.1, batch_size=10, epochs=2),
    name="torch-cnn",
)

if __name__ == "__main__":
    print(job.run().final)
