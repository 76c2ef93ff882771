"""Any Python function as a client: scikit-learn's SGDClassifier, its coefficients averaged.

pip install 'fieldfare[digits]'. The function is called once per client; what it returns is the model it ends with.
"""

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

import fieldfare as ff

CLASSES = np.arange(10)


def classifier(model, **settings):
    """A classifier with the coefficients that travel."""
    fitted = SGDClassifier(loss="log_loss", learning_rate="constant", **settings)
    fitted.classes_, fitted.coef_, fitted.intercept_ = CLASSES, model["coef"], model["intercept"]
    return fitted


def train(model, data, config, rng):
    """`config` holds the job's training settings; `rng` is this client's own generator in this round."""
    fitted = classifier(model, eta0=config["lr"], random_state=int(rng.integers(2**31)))
    for _ in range(config["epochs"]):
        fitted.partial_fit(data["x"], data["y"], CLASSES)
    return {"coef": fitted.coef_, "intercept": fitted.intercept_}


def evaluate(model, data):
    fitted = classifier(model)
    loss = log_loss(data["y"], fitted.predict_proba(data["x"]), labels=CLASSES)
    return {"loss": loss, "accuracy": fitted.score(data["x"], data["y"])}


job = ff.Job(
    model=ff.opaque(train, evaluate, like={"coef": (10, 64), "intercept": (10,)}),
    data=ff.data.digits(clients=30, partition=ff.dirichlet(0.3)).holdout(0.2),
    algorithm=ff.FedAvgM(rounds=15, cohort=10, beta=0.5),
    training=ff.Training(lr=0.02, epochs=2),
    evaluate=ff.Evaluation(clients=10, clients_every=5),
    name="sklearn-sgd",
)

if __name__ == "__main__":
    print(job.run().final)
