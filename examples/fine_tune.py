"""Fine-tuning: how much better does the common model get when each client trains it on its own data first?

Every ten rounds each client is sent the model, trains it for two epochs on its own training rows, and measures it on
its held-out rows before and after. Nothing of this comes back but the metrics, and the trained model is unchanged.
"""

import fieldfare as ff

job = ff.Job(
    model=ff.mlp(64, 32, 10),
    data=ff.data.digits(clients=50, partition=ff.labels_per_client(2)).holdout(0.3),
    algorithm=ff.FedAvg(rounds=40, cohort=20),
    training=ff.Training(lr=0.1, batch_size=10, epochs=2),
    evaluate=ff.Evaluation(clients=ff.Everyone(), clients_every=10, fine_tune=2),
    name="fine-tune",
)

if __name__ == "__main__":
    final = job.run().final
    print(f"before {final['fine_tuned_before_accuracy_mean']:.3f}, after {final['fine_tuned_accuracy_mean']:.3f}")
