"""The page around tables and pictures: its style sheet, its parts as escaped markup, the whole document.

Here: text to HTML. Not here: what a report says (`html`). Kept: every text from a run passes `html.escape`; the
document asks for nothing over the network, has no script, and reads on a phone, in print and aloud.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from fieldfare import __version__
from fieldfare.report.style import Picture


@dataclass(frozen=True)
class Tile:
    """One headline number: its name, its value in words, a smaller line under it, and finished markup behind that."""

    name: str
    value: str
    under: str = ""
    behind: str = ""


@dataclass(frozen=True)
class Section:
    """One part of a page: heading, one sentence on what it is for, and its finished markup."""

    anchor: str
    title: str
    lead: str
    body: str


_CSS = """
:root{--ink:#17212b;--muted:#586776;--line:#dfe5ea;--soft:#f5f7f9;--accent:#0072b2;--good:#00704f;--bad:#b23a00;
--sans:Inter,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:#fff;color:var(--ink);font:15px/1.55 var(--sans);font-variant-numeric:tabular-nums}
main,header.top,footer{max-width:1180px;margin:0 auto;padding:0 24px}
header.top{padding-top:36px}
h1{font-size:27px;line-height:1.2;margin:0 0 6px;letter-spacing:-.015em;overflow-wrap:anywhere}
.sub{color:var(--muted);margin:0}
.eyebrow{color:var(--accent);font-weight:600;font-size:13px;letter-spacing:.02em;margin:0 0 8px}
nav{margin:18px 0 0;display:flex;flex-wrap:wrap;gap:4px 18px;font-size:14px}
a{color:var(--accent);text-decoration:none}a:hover,a:focus{text-decoration:underline}
.tiles{display:flex;flex-wrap:wrap;gap:1px;margin:24px 0 0;padding:0;
background:var(--line);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.tile{background:#fff;padding:14px 16px;flex:1 1 140px;min-width:0}
.tile dt{color:var(--muted);font-size:13px}
.tile dd{margin:2px 0 0;font-size:23px;font-weight:650;letter-spacing:-.01em;line-height:1.25}
.tile dd small{display:block;font-size:12.5px;font-weight:400;color:var(--muted);letter-spacing:0;margin-top:2px}
section{margin-top:46px;scroll-margin-top:12px}
h2{font-size:20px;margin:0 0 2px;letter-spacing:-.01em}
.lead{color:var(--muted);margin:0 0 16px;max-width:76ch}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:20px}
.gap{height:20px}
figure{margin:0;border:1px solid var(--line);border-radius:10px;padding:16px 18px 10px;min-width:0;
break-inside:avoid;display:flex;flex-direction:column}
figure.wide{grid-column:1/-1}
@media(min-width:1010px){figure.alone{grid-column:1/-1;display:grid;align-items:start;column-gap:36px;
grid-template-columns:minmax(220px,1fr) minmax(0,780px)}
figure.alone svg,figure.alone img{max-width:none}}
figcaption{margin-bottom:10px}
figcaption b{display:block;font-size:15px;font-weight:620}
figcaption span{color:var(--muted);font-size:13.5px;line-height:1.45;display:block;max-width:76ch}
figure svg,figure img{display:block;width:100%;max-width:640px;height:auto;margin-top:auto}
figure.wide svg,figure.wide img{max-width:none}
figure svg text{font-family:var(--sans)!important;font-variant-numeric:tabular-nums}
figure .plot{margin-top:auto;overflow-x:auto}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:8px 14px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--muted);font-weight:500;font-size:13px;background:var(--soft);white-space:nowrap}
tbody th{font-weight:500;overflow-wrap:break-word;min-width:8.5em;max-width:30em}
.claims tbody th{min-width:15em;max-width:none}
.n{text-align:right;white-space:nowrap}
td small,th small{display:block;color:var(--muted);font-weight:400;font-size:12.5px}
td.best{font-weight:680}td.best small{font-weight:400}
.values thead th{white-space:normal;min-width:5.4em;vertical-align:bottom}
.values tbody th{overflow-wrap:anywhere;min-width:8em;max-width:22em}
.rounds td{white-space:nowrap}.rounds thead th{white-space:normal;min-width:5.4em;vertical-align:bottom}
.settings td{overflow-wrap:anywhere}
.settings th{font-weight:400;color:var(--muted);width:34%;white-space:normal}
.settings .group th{color:var(--ink);font-weight:600;background:var(--soft);width:auto}
td.differs{background:#fff6e2}
.yes{color:var(--good);font-weight:650;white-space:nowrap}.no{color:var(--bad);font-weight:650;white-space:nowrap}
.yes small,.no small{white-space:normal;min-width:10em;max-width:26em}
.swatch{display:inline-block;width:22px;height:8px;margin-right:8px;vertical-align:baseline}
.notes{margin:20px 0 0;padding:10px 16px 10px 34px;background:#fff6e2;border-radius:8px;font-size:14px}
details{margin-top:14px}
summary{cursor:pointer;color:var(--accent);font-size:14px;margin-bottom:8px}
code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--soft);padding:1px 5px;
border-radius:4px}
footer{color:var(--muted);font-size:13px;margin-top:52px;padding-bottom:36px}
footer p{border-top:1px solid var(--line);padding-top:14px;margin:0}
@media(max-width:560px){main,header.top,footer{padding-left:14px;padding-right:14px}header.top{padding-top:22px}
h1{font-size:22px}.tile{padding:11px 12px;flex-basis:42%}.tile dd{font-size:19px}
figure{padding:12px 10px 8px}figure.wide .plot svg,figure.wide .plot img{min-width:640px}th,td{padding:7px 10px}
section{margin-top:36px}}
@media print{nav,summary{display:none}section{margin-top:28px}.scroll{overflow:visible}}
"""

GAP = '<div class="gap"></div>'

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="generator" content="fieldfare $version">
<title>$title</title>
<style>$css</style>
</head>
<body>
<header class="top">
<p class="eyebrow">$eyebrow</p>
<h1>$title</h1>
<p class="sub">$subtitle</p>
$tiles
$notes
<nav aria-label="Sections">$nav</nav>
</header>
<main>
$sections
</main>
<footer><p>$footer</p></footer>
</body>
</html>
"""
)


def document(
    *,
    title: str,
    eyebrow: str,
    subtitle: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    notes: Sequence[str] = (),
    footer: str = "",
) -> str:
    """Give the whole page; ``notes`` are what a reader must know before the numbers."""
    said = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return _PAGE.substitute(
        version=escape(__version__),
        title=escape(title),
        css=_CSS.strip(),
        eyebrow=escape(eyebrow),
        subtitle=escape(subtitle),
        tiles=tile_row(tiles),
        notes=f'<ul class="notes" aria-label="Notes">{said}</ul>' if said else "",
        nav="".join(f'<a href="#{escape(part.anchor)}">{escape(part.title)}</a>' for part in sections),
        sections="\n".join(_section(part) for part in sections),
        footer=escape(footer),
    )


def tile_row(tiles: Sequence[Tile]) -> str:
    """Give headline numbers side by side, as many to a line as fit."""
    if not tiles:
        return ""
    rows = "".join(
        f'<div class="tile"><dt>{escape(tile.name)}</dt><dd>{escape(tile.value)}'
        + (f"<small>{escape(tile.under)}</small>" if tile.under else "")
        + f"{tile.behind}</dd></div>"
        for tile in tiles
    )
    return f'<dl class="tiles">{rows}</dl>'


def _section(part: Section) -> str:
    name = escape(part.anchor)
    return (
        f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{escape(part.title)}</h2>'
        f'<p class="lead">{escape(part.lead)}</p>{part.body}</section>'
    )


def pictures(drawn: Iterable[Picture | None]) -> str:
    """Give figures in as many columns as the width allows, without those that had nothing to draw."""
    kept = [one for one in drawn if one is not None]
    narrow = [one for one in kept if not one.wide]
    alone = narrow[-1] if len(narrow) % 2 else None
    figures = "".join(_figure(one, "wide" if one.wide else "alone" if one is alone else "") for one in kept)
    return f'<div class="pictures">{figures}</div>' if figures else ""


def _figure(one: Picture, kind: str) -> str:
    return (
        f'<figure class="{kind}"><figcaption><b>{escape(one.title)}</b><span>{escape(one.note)}</span></figcaption>'
        f'<div class="plot">{one.markup}</div></figure>'
    )


def cell(text: str, *, kind: str = "", number: bool = False, under: str = "", head: bool = False) -> str:
    """Give one escaped table cell; ``kind`` is a class of the style sheet, ``under`` a smaller second line."""
    classes = " ".join(part for part in ("n" if number else "", kind) if part)
    tag = "th" if head else "td"
    scope = ' scope="row"' if head else ""
    below = f"<small>{escape(under)}</small>" if under else ""
    return f"<{tag}{scope}{f' class={chr(34)}{classes}{chr(34)}' if classes else ''}>{escape(text)}{below}</{tag}>"


def table(head: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]], *, kind: str = "", caption: str = "") -> str:
    """Give a table that scrolls within the page; ``head`` is (words, whether the column holds numbers)."""
    top = "".join(f'<th scope="col"{" class=n" if number else ""}>{escape(words)}</th>' for words, number in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    label = f' aria-label="{escape(caption)}"' if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region"{label}><table{f" class={kind}" if kind else ""}>'
        + (f"<thead><tr>{top}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table></div>"
    )


def details(words: str, body: str, *, opened: bool = False) -> str:
    """Give a part that opens on a click."""
    return f"<details{' open' if opened else ''}><summary>{escape(words)}</summary>{body}</details>"


def swatch(colour: str, dash: int) -> str:
    """Give the small line in front of an arm's name, in the colour and dash of its curves."""
    dashes = ("", "8 3", "3 3", "9 3 3 3")[dash % 4]
    stroke = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true"><path d="M1 4H21" stroke="{escape(colour)}" '
        f'stroke-width="3" stroke-linecap="round"{stroke}/></svg>'
    )
