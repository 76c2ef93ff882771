"""A run in MLflow, by a callback.  pip install 'fieldfare[digits,mlflow]'

With MLFLOW_TRACKING_URI set the run goes to your server; else to files in a new temporary folder.
"""

import functools
import os
import tempfile

import fieldfare as ff


@functools.cache
def tracking():
    """Made at the first round: the client, and a run that has the settings worth a column."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow asks for this where it is to write plain files
    from mlflow import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or tempfile.mkdtemp(prefix="fieldfare-mlflow-"))
    found = client.get_experiment_by_name("fieldfare")
    experiment = found.experiment_id if found else client.create_experiment("fieldfare")
    run = client.create_run(experiment, run_name=job.name).info.run_id
    client.log_param(run, "lr", job.training.lr)
    client.log_param(run, "cohort", job.algorithm.cohort)
    return client, run


def to_mlflow(row):
    """Every number of the record as a metric, with the round as its step."""
    client, run = tracking()
    for name, value in row.items():
        if isinstance(value, float | int):
            client.log_metric(run, name, value, step=row["round"])


job = ff.Job(
    model=ff.mlp(64, 64, 10),
    data=ff.data.digits(clients=100, partition=ff.dirichlet(0.3)),
    algorithm=ff.FedAvg(rounds=30, cohort=20),
    training=ff.Training(lr=0.2, batch_size=10, epochs=2),
    callbacks=(to_mlflow,),
    name="mlflow",
)

if __name__ == "__main__":
    final = job.run().final
    client, run = tracking()
    client.set_terminated(run)
    print(final["accuracy"], "is in", client.tracking_uri, "as", client.get_run(run).data.metrics["accuracy"])
