"""Hello, federation: 100 clients with unlike labels train one model. Run it: python hello.py"""

import fieldfare as ff

data = ff.data.digits(clients=100, partition=ff.dirichlet(0.3))
job = ff.Job(model=ff.mlp(64, 64, 10), data=data, algorithm=ff.FedAvg(rounds=40, cohort=20))

if __name__ == "__main__":
    print(job.run().final)
