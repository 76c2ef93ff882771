"""The commands `fieldfare assess ...`: should this model go federated, on which devices, at what cost.

Here: the group; each command is in the `cli` of its tool, loaded when it is asked for. Not here: what they do.
"""

from __future__ import annotations

from importlib import import_module

import click

TOOLS = {
    "bench": "fieldfare.assess.bench.cli",
    "trace": "fieldfare.assess.trace.cli",
    "proxy": "fieldfare.assess.proxy.cli",
    "features": "fieldfare.assess.features.cli",
    "simulate": "fieldfare.assess.simulate.cli",
    "forecast": "fieldfare.assess.forecast.cli",
    "privacy": "fieldfare.assess.decide.cli_privacy",
    "declare": "fieldfare.assess.decide.cli_declare",
    "decide": "fieldfare.assess.decide.cli",
    "report": "fieldfare.assess.decide.cli_report",
    "demo": "fieldfare.assess.demo.cli",
    "publish": "fieldfare.assess.platform.cli_publish",
    "metrics": "fieldfare.assess.platform.cli_metrics",
    "drift": "fieldfare.assess.platform.cli_drift",
}
"""Each tool's command, and the module whose `command` it is; in the order of the workflow."""


class _Tools(click.Group):
    """Commands that are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(TOOLS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return import_module(TOOLS[cmd_name]).command if cmd_name in TOOLS else None


@click.group(cls=_Tools)
def assess() -> None:
    """Should this model go federated, on which devices, at what cost? Measure, simulate, forecast, decide."""
