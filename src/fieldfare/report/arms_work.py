"""The sections of a page on the tasks and devices of several arms: each arm's own, side by side on common axes.

Here: `read_arms`, one pass over the tasks of every run, and sections from what it found. Not here: adding up
(`read_tasks`), drawing (`plots_arms_work`), the sections of one run (`work_sections`). Kept: what is said of one arm
alone names it; a section is there only where it says something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fieldfare.fleet.tasks import OUTCOMES
from fieldfare.report import page, plots_arms_work, plots_tasks
from fieldfare.report.arms import Arm, Column, told_table
from fieldfare.report.page import Section
from fieldfare.report.plots_arms_work import ArmWork
from fieldfare.report.read import Run
from fieldfare.report.read_tasks import work_facts, work_of_run
from fieldfare.report.work_sections import participation_body, waste_table

READ_UP_TO = 20_000_000
"""Tasks of all runs together up to which they are read for a comparison, half a minute."""
DRAWN_UP_TO = 8
"""Arms, the first ones, that are drawn each with devices of their own; more would make the page long, not clear."""


def read_arms(arms: Sequence[Arm], shown: Mapping[str, str] | None = None) -> list[ArmWork]:
    """Add up the tasks of every run of `arms`; arms without tasks are left out, and all where there are too many.

    `shown` `{heading: arm or arm/seed}` names the run of an arm to be drawn, by default its first.
    """
    if sum(_tasks(run) for arm in arms for run in arm.runs) > READ_UP_TO:
        return []
    seeds = dict(str(which).partition("/")[::2] for which in (shown or {}).values())
    found = []
    for rank, arm in enumerate(arms):
        works = [(run, work) for run in arm.runs if (work := work_of_run(run)) is not None]
        if works:
            wanted = [one for one in works if one[0].path.name == seeds.get(arm.name)]
            run, work = (wanted or works)[0]
            seed = str(run.summary.get("seed", run.path.name)) if len(arm.runs) > 1 else ""
            found.append(ArmWork(arm.name, rank, tuple(work_facts(one) for _, one in works), work, seed))
    return found


def _tasks(run: Run) -> int:
    told = run.summary.get("tasks")
    return int(sum(told.values())) if isinstance(told, Mapping) else 0


def tasks_section(arms: Sequence[Arm], works: Sequence[ArmWork], word: str = "arm") -> Section | None:
    """Give what became of each arm's tasks and whom it heard; None where no arm keeps tasks."""
    if not works:
        return None
    by_name = {one.name: one.facts for one in works}
    found = [by_name.get(arm.name, ()) for arm in arms]

    def column(words: str, metric: str, pick: Callable[[Mapping[str, Any]], float | None]) -> Column:
        return words, metric, [[v for facts in seeds if (v := pick(facts)) is not None] for seeds in found]

    def spent(facts: Mapping[str, Any], outcome: str) -> float:
        total = sum(row["device_s"] for row in facts["waste"].values())
        return facts["waste"].get(outcome, {}).get("device_s", 0.0) / total if total > 0 else 0.0

    def reached(facts: Mapping[str, Any]) -> float | None:
        part = facts["participation"]
        return part["reached"] / part["devices"] if part.get("devices") else None

    lost = [name for name in OUTCOMES[1:] if any(name in facts["waste"] for seeds in found for facts in seeds)]
    columns = [
        column("at work, mean", "at_work", lambda facts: facts["at_work_mean"]),
        column("device time lost", "lost_device_share", lambda facts: facts["lost_device_share"]),
        *(column(f"lost: {plots_tasks.LOOK[OUTCOMES.index(name)][0]}", f"{name}_share", partial(spent, outcome=name))
          for name in lost),
        column("staleness, mean", "staleness", lambda facts: facts.get("staleness", {}).get("mean")),
        column("devices ever counted", "reached_share", reached),
        column("Gini of updates", "gini", lambda facts: facts["participation"].get("gini_updates")),
    ]  # fmt: skip
    columns = [one for one in columns if any(one[2])]
    lead = "What became of the time that devices gave, as shares of all of it, and how many devices a model heard."
    return Section("tasks", "Tasks and devices", lead, told_table(arms, columns, f"Tasks of every {word}", word))


def task_sections(works: Sequence[ArmWork], *, draw: bool, word: str = "arm") -> list[Section]:
    """Give what devices of each arm did and when, who took part, and what was lost."""
    found = (_devices(works, draw=draw, word=word), _participation(works, draw=draw, word=word),
             _waste(works, draw=draw, word=word))  # fmt: skip
    return [one for one in found if one is not None]


def _devices(works: Sequence[ArmWork], *, draw: bool, word: str) -> Section | None:
    if not works or not draw:
        return None
    shown = works[:DRAWN_UP_TO]
    stale = [plots_arms_work.of_arm(plots_tasks.staleness(one.work), one) for one in shown]
    body = page.pictures([plots_arms_work.at_work(shown), *plots_arms_work.strips(shown), *stale])
    if not body:
        return None
    lead = f"What the devices of each {word} did at the same hours" + (
        f", of the first {DRAWN_UP_TO} of {len(works)} {word}s." if len(works) > DRAWN_UP_TO else "."
    )
    return Section("devices", "Devices", lead, body)


def _participation(works: Sequence[ArmWork], *, draw: bool, word: str) -> Section | None:
    tables = {one.name: participation_body(one.work, draw=False, folded=True) for one in works}
    if not any(tables.values()):
        return None
    body = ""
    if draw:
        groups = [plots_arms_work.participation(works, kind) for kind in ("class", "examples")]
        drawn = [plots_arms_work.how_far(works), *groups]
        body = page.pictures(drawn)
    body += "".join(page.details(f"{name}, in numbers", table) for name, table in tables.items() if table)
    return Section("participation", "Participation", f"Who is heard, and who is left out, in each {word}.", body)


def _waste(works: Sequence[ArmWork], *, draw: bool, word: str) -> Section | None:
    tables = {one.name: table for one in works if (table := waste_table(one.work))}
    if not tables:
        return None
    body = page.pictures([plots_arms_work.waste(works)]) if draw else ""
    body += "".join(page.details(f"{name}, by how tasks ended", table) for name, table in tables.items())
    lead = f"What devices did for nothing in each {word}: no model holds anything of these tasks."
    return Section("waste", "Waste", lead, body)
