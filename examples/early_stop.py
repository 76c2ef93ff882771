"""Stop when it is good enough; later start from the saved model.

The first run stops at the first evaluation with 85 % accuracy, long before its 200 rounds are over. The second starts
from the first one's model (a safetensors file, as any tool can write) and goes on.
"""

from dataclasses import replace

import fieldfare as ff

job = ff.Job(
    model=ff.mlp(64, 64, 10),
    data=ff.data.digits(clients=100, partition=ff.dirichlet(0.3)),
    algorithm=ff.FedAvg(rounds=200, cohort=20),
    training=ff.Training(lr=0.2, batch_size=10, epochs=2),
    evaluate=ff.Evaluation(every=2),
    stop_at=ff.StopAt("accuracy", at_least=0.85),
    name="until-85",
)


def going_on(model_file):
    """The same job from a model, with half the learning rate."""
    return replace(
        job,
        start_from=model_file,
        stop_at=None,
        algorithm=ff.FedAvg(rounds=40, cohort=20),
        training=replace(job.training, lr=0.1),
        name="going-on",
    )


if __name__ == "__main__":
    first = job.run()
    print(first.summary["stopped"])
    second = going_on(first.path / "model.safetensors").run()
    print(f"accuracy {first.final['accuracy']:.3f}, then {second.final['accuracy']:.3f}")
