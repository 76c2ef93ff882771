"""The sections of a page on tasks and devices: at work, taking part, lost.

Here: from a `Work` to sections, tables and tiles. Not here: adding up (`read_tasks`, `groups`), drawing
(`plots_time`, `plots_tasks`). Kept: a section, a table or a picture is there only where it says something.
"""

from __future__ import annotations

import numpy as np

from fieldfare.fleet.tasks import OK, OUTCOMES
from fieldfare.report import page, plots_tasks, plots_time, units
from fieldfare.report.groups import Groups, everyone, gini, groups_of, share_of
from fieldfare.report.page import Section, Tile
from fieldfare.report.read_tasks import Work
from fieldfare.report.table import Floats


def work_section(work: Work | None, *, draw: bool) -> Section | None:
    """Give tasks at work, devices available, staleness, and a few devices task by task; None without pictures."""
    if work is None or not draw:
        return None
    kinds = None
    shown = work.strip
    if shown is not None and work.devices is not None and work.kinds and work.every == 1:
        found = [int(work.devices["kind"][one]) for one in shown.devices]
        kinds = [work.kinds[kind] if kind >= 0 else "" for kind in found]
    drawn = [
        plots_time.at_work(work),
        plots_tasks.strip(shown, float(work.edges[-1]), kinds) if shown is not None else None,
        plots_tasks.staleness(work),
    ]
    body = page.pictures(drawn)
    if not body:
        return None
    lead = "When devices could work, how many did, and how old the models were that their replies came from."
    if work.staleness is None:
        lead = "How many devices worked, and when." if work.available is None else "When devices could work, and did."
    return Section("devices", "Devices", lead, body)


def waste_section(work: Work | None, *, draw: bool) -> Section | None:
    """Give what tasks took by how they ended; None where every task counted."""
    if work is None or not (body := waste_table(work)):
        return None
    if draw:
        body += page.GAP + page.pictures([plots_tasks.waste(work)])
    lost = sum(int(work.count[one]) for one in range(len(OUTCOMES)) if one != OK)
    lead = f"{lost:,} of {work.n:,} tasks took devices' time, bytes and energy, and no model holds anything of them."
    return Section("waste", "Waste", lead, body)


def waste_table(work: Work) -> str:
    """Give what tasks took by how they ended as a table; empty where every task counted."""
    if work.outcomes() == [OK]:
        return ""
    spent, moved = work.taken["device_s"], work.taken["bytes_down"] + work.taken["bytes_up"]
    energy, tasks = work.taken["energy_j"], share_of(work.count.astype(float))
    device, size, joules = (
        units.scale_of(axis, float(one.max())) for axis, one in (
            ("device_s", spent), ("bytes", np.maximum(work.taken["bytes_down"], work.taken["bytes_up"])),
            ("energy_j", energy))
    )  # fmt: skip

    def write(values: Floats, one: int, scale: units.Scale) -> str:
        return f"{units.number(float(values[one]) / scale.divisor, 3)} {scale.unit}"

    rows = []
    for one in work.outcomes():
        name, _ = plots_tasks.LOOK[one]
        written = (
            f"{int(work.count[one]):,}", units.share(float(tasks[one])), write(spent, one, device),
            units.share(float(share_of(spent)[one])), write(work.taken["compute_s"], one, device),
            write(work.taken["bytes_down"], one, size), write(work.taken["bytes_up"], one, size),
            units.share(float(share_of(moved)[one])), write(energy, one, joules),
        )  # fmt: skip
        head = page.cell(name, head=True, under=plots_tasks.WHY[one])
        rows.append([head, *(page.cell(text, number=True) for text in written)])
    columns = ("tasks", "of all", "device time", "of all", "of it computing", "down", "up", "of all bytes", "energy")
    head = [("how tasks ended", False), *((words, True) for words in columns)]
    return page.table(head, rows, caption="Tasks by how they ended")


def participation_tiles(work: Work | None) -> list[Tile]:
    """Give how far devices came and how even the updates are over them."""
    whole = None if work is None else everyone(work)
    if work is None or whole is None:
        return []
    n = max(float(whole.devices[0]), 1.0)
    tiles = []
    if whole.available is not None:
        tiles.append(Tile("Ever available", units.share(float(whole.available[0]) / n), "of devices, while it ran"))
    tiles.append(Tile("Ever asked", units.share(float(whole.asked[0]) / n), "of devices"))
    tiles.append(Tile("Ever counted", units.share(float(whole.reached[0]) / n), _held(work, whole)))
    tiles.append(Tile("Gini of updates", units.number(gini(work.counted), 2), "over devices; 0: all alike"))
    return tiles


def _held(work: Work, whole: Groups) -> str:
    assert work.devices is not None
    reached = float(work.devices["examples"][work.counted[: len(work.devices)] > 0].sum())
    held = float(whole.examples[0])
    return f"of devices, with {units.share(reached / held)} of the examples" if held else "of devices"


def participation_body(work: Work | None, *, draw: bool, folded: bool = False) -> str:
    """Give who takes part by class of device and by data size: pictures, and tables that open on a click.

    `folded`: the body itself opens on a click, so that its tables need none.
    """
    if work is None:
        return ""
    found = groups_of(work)
    body = page.GAP + page.pictures(plots_tasks.participation(one) for one in found) if draw and found else ""
    for one in found:
        words = "by class of device" if one.kind == "class" else "by data size"
        table = _groups_table(one)
        body += (
            table + page.GAP if folded else page.details(f"Participation {words}, in numbers", table, opened=not draw)
        )
    if found and work.every > 1:
        body += f"<p>Of a fleet of {work.size:,}, one in {work.every:,} devices is kept; shares are of those.</p>"
    return body


def _groups_table(groups: Groups) -> str:
    head = [("class" if groups.kind == "class" else "examples", False), ("devices", True)]
    able = groups.available is not None
    head += [(words, True) for words in (
        "of all devices", *(("ever available",) if able else ()), "ever asked", "ever counted", "of tasks begun",
        "of updates that counted", "updates over devices", "of examples held", "of examples learnt from")]  # fmt: skip
    shares = [share_of(one) for one in (
        groups.devices, groups.begun, groups.counted, groups.examples, groups.learnt)]  # fmt: skip
    ratio, rows = groups.ratio(), []
    for at, name in enumerate(groups.names):
        n = max(float(groups.devices[at]), 1.0)
        cells = [f"{int(groups.devices[at]):,}", units.share(float(shares[0][at]))]
        cells += [units.share(float(one[at]) / n) for one in (
            *((groups.available,) if groups.available is not None else ()), groups.asked, groups.reached)]  # fmt: skip
        cells += [units.share(float(shares[1][at])), units.share(float(shares[2][at])), f"× {ratio[at]:.2f}"]
        cells += [units.share(float(shares[3][at])), units.share(float(shares[4][at]))]
        rows.append([page.cell(name, head=True), *(page.cell(text, number=True) for text in cells)])
    return page.table(head, rows, caption="Participation by group")
