"""The command `fieldfare assess privacy`: write down what is known of a mechanism, or have epsilon computed."""

from __future__ import annotations

from pathlib import Path

import click

from fieldfare.assess.options import artefact_at, as_json_, out_, tell


@click.command("privacy")
@click.option("--mechanism", required=True, help="none, dp-fedavg, dp-ftrl, secure-aggregation, ...")
@click.option("--source", required=True, help="Who says so: a person, a review, a run.")
@click.option("--epsilon", type=float, help="The budget spent; or let it be computed of --noise.")
@click.option("--delta", type=float, help="At most one over the population, by custom.")
@click.option("--attack-success", type=float, help="Share of attacks that succeed, as a red team measured it.")
@click.option("--population", type=float, help="Clients that may take part.")
@click.option("--noise", type=float, metavar="MULTIPLIER", help="Compute epsilon: noise over clipping norm.")
@click.option("--sampling", type=float, default=1.0, show_default=True, help="Share of clients drawn a round.")
@click.option("--rounds", type=int, help="Rounds, with --noise.")
@click.option("--model", default="", help="The model it is of (default: any).")
@click.option("--pet", default="", help="The technique's name in the case (default: any).")
@out_
@as_json_
def command(
    mechanism: str, source: str, epsilon: float | None, delta: float | None, attack_success: float | None,
    population: float | None, noise: float | None, sampling: float, rounds: int | None, model: str, pet: str,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Write a privacy artefact; what is left out stays missing."""
    from fieldfare.assess.decide.privacy import accounted, declare
    from fieldfare.core.errors import UsageError

    how = "declared"
    if noise is not None:
        if epsilon is not None or rounds is None or delta is None:
            raise UsageError("--noise computes epsilon: give --rounds and --delta with it, and no --epsilon.")
        epsilon, how = accounted(noise, sampling, rounds, delta), "closed form"
    made = declare(artefact_at(out or "", "privacy"), mechanism=mechanism, source=source, epsilon=epsilon, delta=delta,
                   attack_success=attack_success, population=population, model=model, pet=pet, how=how)  # fmt: skip
    tell(made, as_json)
