"""Hello, federation: 100 clients with unlike labels train one model. Run it: python hello.py"""

import fieldfare as ff

data = ff.data.digits(clients=100, partition=ff.dirichlet(0.3))
job = ff.Job(
    model=ff.mlp(64, 64, 10), data=data, algorithm=ff.FedAvg(rounds=60, cohort=20),
    training=ff.Training(lr=0.3, batch_size=10, epochs=2),
)  # fmt: skip
if __name__ == "__main__":
    print(job.run().final)
