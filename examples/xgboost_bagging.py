"""Boosted trees without averaging: clients add trees to one model.  pip install 'fieldfare[digits,xgboost]'

A client boosts the model it was sent by one round on its own rows and replies with those trees alone; `Bagging`
appends them, each scaled by its client's share of the examples. The model is XGBoost's own JSON, never pickle.
"""

import numpy as np
import xgboost as xgb

import fieldfare as ff

PARAMETERS = {
    "objective": "multi:softprob", "num_class": 10, "max_depth": 4, "eta": 0.5, "tree_method": "hist",
    "base_score": 0.5, "nthread": 1,
}  # fmt: skip


def train(model, data, config, rng):
    """One round of boosting: ten trees, one per class."""
    start = xgb.Booster(PARAMETERS, model_file=bytearray(model)) if model else None
    rows = xgb.DMatrix(data["x"], data["y"])
    booster = xgb.train({**PARAMETERS, "seed": int(rng.integers(2**31))}, rows, num_boost_round=1, xgb_model=start)
    new = booster[booster.num_boosted_rounds() - 1 :]
    return bytes(new.save_raw("json"))


def evaluate(model, data):
    chance = xgb.Booster(PARAMETERS, model_file=bytearray(model)).predict(xgb.DMatrix(data["x"]))
    right = chance[np.arange(len(chance)), data["y"]]
    return {"loss": -np.log(right + 1e-9).mean(), "accuracy": (chance.argmax(axis=1) == data["y"]).mean()}


job = ff.Job(
    model=ff.opaque(train, evaluate, init=b""),
    data=ff.data.digits(clients=10, partition=ff.dirichlet(0.5)),
    algorithm=ff.Bagging(rounds=10, cohort=5),
    name="xgboost-bagging",
)

if __name__ == "__main__":
    print(job.run().final)
