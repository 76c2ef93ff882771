"""An existing Flower client, unchanged: a NumPyClient and its client_fn, simulated here. Flower need not be installed.

With Flower installed the class would say `class SoftmaxClient(fl.client.NumPyClient)`; nothing else differs.
"""

import numpy as np

import fieldfare as ff

DATA = ff.data.digits(clients=20, partition=ff.dirichlet(0.5)).holdout(0.2)


class SoftmaxClient:
    """Softmax regression by gradient descent."""

    def __init__(self, train, test):
        self.train, self.test = train, test

    def get_parameters(self, config):
        return [np.zeros((64, 10)), np.zeros(10)]

    def fit(self, parameters, config):
        (w, b), (x, y) = parameters, (self.train["x"], np.eye(10)[self.train["y"]])
        for _ in range(config["local_steps"]):
            error = softmax(x @ w + b) - y
            w, b = w - config["lr"] * x.T @ error / len(x), b - config["lr"] * error.mean(axis=0)
        return [w, b], len(x), {}

    def evaluate(self, parameters, config):
        loss, accuracy = score(parameters, self.test)
        return loss, len(self.test["y"]), {"accuracy": accuracy}


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def score(parameters, rows):
    chance = softmax(rows["x"] @ parameters[0] + parameters[1])
    right = chance[np.arange(len(chance)), rows["y"]]
    return float(-np.log(right + 1e-9).mean()), float((chance.argmax(axis=1) == rows["y"]).mean())


def client_fn(context):
    partition = [context.node_config["partition-id"]]
    return SoftmaxClient(DATA.block(partition).client(0), DATA.held_block(partition).client(0))


def evaluate_fn(server_round, parameters, config):
    loss, accuracy = score(parameters, DATA.test)
    return loss, {"accuracy": accuracy}


model = ff.flower_client(client_fn, fit_config={"lr": 0.5, "local_steps": 10}, evaluate_fn=evaluate_fn)
job = ff.Job(model, DATA, ff.FedAvg(rounds=15, cohort=10), evaluate=ff.Evaluation(clients=10), name="flower-client")

if __name__ == "__main__":
    print(job.run().final)
