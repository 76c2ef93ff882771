"""The starter job that `fieldfare new` writes: commented, offline, with nothing heavier than NumPy."""

from __future__ import annotations

from pathlib import Path

from fieldfare.core.errors import UsageError

STARTER = '''"""A federated job. Run it:  fieldfare run {file}   (or: python {file})"""

import fieldfare as ff

# The data: 100 clients with their own tasks, made on the spot (Synthetic(alpha, beta) of the FedProx paper).
# Real data: ff.data.digits(), ff.data.from_csv("records.csv", id_column="hospital", label="target"), from_parquet, ...
data = ff.data.synthetic(clients=100, classes=10, features=60, alpha=0.5, beta=0.5)

job = ff.Job(
    data=data,
    # The model: declared layers that need NumPy only. An nn.Module works as well: model=nn.Sequential(...)
    model=ff.mlp(60, 32, 10),
    # The algorithm; `fieldfare algorithms` lists them: ff.FedProx(mu=0.1, ...), ff.Scaffold(...), ff.FedAdam(...)
    algorithm=ff.FedAvg(rounds=50, cohort=10),
    # What each client does when it is asked.
    training=ff.Training(lr=0.05, batch_size=20, epochs=1),
    seed=0,
    # Only this part is about the simulation; the rest is what would be deployed.
    simulated=ff.Simulated(fleet=ff.fleet.phones()),
)

if __name__ == "__main__":
    result = job.run()
    print(result.final)
'''


def write_starter(path: Path, force: bool = False) -> None:
    """Write the starter job; an existing file is kept unless `force`."""
    if path.suffix != ".py":
        raise UsageError(f"new {path}: a job is a Python file; use a name that ends in .py.")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already: choose another name, or --force to overwrite it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STARTER.format(file=path.name))
