"""Numbers of a decision in words, and links to the artefacts they are from."""

from __future__ import annotations

from fieldfare.report import units


def words(value: float | None, unit: str) -> str:
    """A number in its unit, for people; seconds, bytes, joules and shares in the size that reads best.

    >>> words(4.2 * 86400, "s"), words(0.0185, "share"), words(2.68e6, "B/s"), words(None, "s")
    ('4.2 days', '1.85 %', '2.68 MB/s', 'missing')
    """
    if value is None:
        return "missing"
    match unit:
        case "s" if value >= 2 * 86_400:
            return f"{value / 86_400:.3g} days" if value < 1000 * 86_400 else f"{value / 86_400:,.0f} days"
        case "s":
            return units.duration(value)
        case "h":
            return f"{value:,.3g} h" if value < 1000 else f"{value:,.0f} h"
        case "B":
            return units.size(value)
        case "B/s":
            return f"{units.size(value)}/s"
        case "J":
            return units.energy(value)
        case "share" | "%":
            return f"{value * (100 if unit == 'share' else 1):.3g} %"
        case "1" | "":
            return units.number(value)
        case "g":
            return f"{value / 1000:,.3g} kg" if value >= 1000 else f"{value:.3g} g"
        case _:
            return f"{units.number(value)} {unit}"


def source(sha256: str | None) -> str:
    """A link to the artefact of this hash on the page, as markup; nothing where there is none."""
    return f'<a class="src" href="#a{sha256[:12]}">{sha256[:8]}</a>' if sha256 else ""
