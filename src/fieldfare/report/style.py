"""The look of every picture, and a drawn figure as markup that stands alone inside a page.

Here: colours, the canvas, direct labels, and `as_svg` / `as_png`. Not here: what is drawn. Kept: no global state of
matplotlib changes outside `drawing`, pyplot is never imported, the same figure gives the same bytes, and the markup
refers to nothing outside itself.
"""

from __future__ import annotations

import base64
import html
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fieldfare.core.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, SURFACE = "#17212b", "#586776", "#e7ebef", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a94f8d"
ORANGE, SKY, GREY = "#d39000", "#3b9fdc", "#5c6670"
LIGHT = "#8abfe3"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
"""Okabe and Ito's colours, the light ones darkened to stand out on white: safe for the usual colour blindnesses."""

BROWN = "#8c5a2b"
OUTCOMES = {
    "late": VERMILION, "interrupted": ORANGE, "timeout": BROWN, "stale": PURPLE, "refused": INK, "drop-out": GREY,
}  # fmt: skip
"""Colours of the ways in which a task does not count."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.5, 1.4, 1.5)))

MARKS_IN_SVG = 5000
"""A picture with more marks than this is drawn as pixels: its SVG would be larger than the page around it."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fieldfare",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": "#aab4bd",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.0,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#aab4bd",
    "ytick.color": "#aab4bd",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0.0,
    "xtick.major.size": 3.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Picture:
    """One drawn figure: its heading, one sentence on how to read it, what it shows in words, and its markup."""

    title: str
    note: str
    alt: str
    markup: str
    wide: bool = False


@dataclass(frozen=True)
class Label:
    """Words written beside a point of the axes, in the colour of what they name."""

    x: float
    y: float
    text: str
    colour: str


@contextmanager
def drawing() -> Iterator[None]:
    """Draw inside this: matplotlib's defaults plus the house style, put back as they were afterwards.

    Raises `MissingExtra` when matplotlib is not installed.
    """
    try:
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.backends.backend_svg
        import matplotlib.figure
    except ImportError:
        raise MissingExtra.of("matplotlib", "report") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def canvas(
    *, width: float = 5.6, height: float = 3.1, left: float = 0.56, right: float = 0.2, bottom: float = 0.5
) -> tuple[Figure, Axes]:
    """Make a figure and its axes; all in inches, margins fixed so that neighbours on a page line up."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="none")
    top = 0.32
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height), facecolor="none"
    )
    return figure, axes


def darker(colour: str, by: float = 0.22) -> str:
    """Darken a ``#rrggbb`` colour, for words written in the colour of a line.

    >>> darker("#ffffff", 0.5)
    '#7f7f7f'
    """
    return "#" + "".join(f"{int(int(colour[i : i + 2], 16) * (1 - by)):02x}" for i in (1, 3, 5))


def shorten(name: str, length: int = 32) -> str:
    """Cut a name that would not fit beside a picture, in its middle: both ends tell runs apart.

    >>> shorten("20250101-120000-fedavg-on-mnist-000"), shorten("fedavg")
    ('20250101-120000-…vg-on-mnist-000', 'fedavg')
    """
    half = length // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-(length - half - 1) :]}"


def room(texts: Iterable[str]) -> float:
    """Give the inches that the longest of some labels needs beside a picture; capitals and figures are wider."""
    widths = [
        sum(0.085 if c.isupper() or c in "mw@%=" else 0.07 if c.isdigit() else 0.062 for c in text) for text in texts
    ]
    return 0.16 + max(widths, default=0.0)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours are ``gap`` apart, as little as possible, within [low, high] if they fit.

    >>> spread([1.0, 1.0], gap=2.0, low=0.0, high=10.0)
    [0.0, 2.0]
    """
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    blocks: list[tuple[float, list[int]]] = []
    for index in order:
        blocks.append((positions[index], [index]))
        while True:
            start, members = _placed(blocks[-1], gap, low, high)
            if len(blocks) < 2:
                break
            before, earlier = _placed(blocks[-2], gap, low, high)
            if before + gap * len(earlier) <= start + 1e-9:
                break
            joined = [*earlier, *members]
            centre = sum(positions[i] for i in joined) / len(joined)
            blocks[-2:] = [(centre, joined)]
    placed = [0.0] * len(positions)
    for block in blocks:
        start, members = _placed(block, gap, low, high)
        for rank, index in enumerate(members):
            placed[index] = start + rank * gap
    return placed


def _placed(block: tuple[float, list[int]], gap: float, low: float, high: float) -> tuple[float, list[int]]:
    centre, members = block
    half = gap * (len(members) - 1) / 2
    return max(low, min(centre - half, high - 2 * half)), members


def label_ends(axes: Axes, labels: Sequence[Label], *, size: float = 8.5) -> None:
    """Write words to the right of the axes' edge, level with their points, moved apart where they would touch."""
    if not labels:
        return
    figure = axes.figure
    box = axes.get_window_extent()
    pixels = [float(axes.transData.transform((label.x, label.y))[1]) for label in labels]
    gap = size * 1.25 * figure.dpi / 72
    placed = spread(pixels, gap, box.y0 + gap / 3, box.y1 - gap / 3)
    for label, y in zip(labels, placed, strict=True):
        axes.text(
            1.015,
            (y - box.y0) / box.height,
            label.text,
            transform=axes.transAxes,
            color=darker(label.colour, 0.45 if label.colour == LIGHT else 0.22),
            fontsize=size,
            va="center_baseline",
            ha="left",
        )


def identifier(name: str) -> str:
    """Give an identifier of letters, digits and dashes that differs where names differ.

    >>> identifier("curve-loss-round"), identifier("a b")
    ('curve-loss-round', 'a-b-806c5cd3')
    """
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", name)
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def as_svg(figure: Figure, name: str, alt: str) -> str:
    """Give a figure as an ``<svg>`` element; ``name`` makes its identifiers unique within a page."""
    name = identifier(name)
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag.group(0)), text)  # 0.01 px is enough
    view = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {view.group(0) if view else ""} role="img" aria-label="{html.escape(alt)}">'
    return opening + text[text.index(">") + 1 :].strip()


def as_png(figure: Figure, alt: str, dpi: int = 200) -> str:
    """Give a figure as an ``<img>`` element with its pixels inside."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor=SURFACE, metadata={"Software": None})
    pixels = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{pixels}">'


def picture(
    figure: Figure, *, name: str, title: str, note: str, alt: str, marks: int = 0, wide: bool = False
) -> Picture:
    """Turn a figure into a `Picture`: SVG, or pixels when it has more than `MARKS_IN_SVG` marks."""
    markup = as_png(figure, alt) if marks > MARKS_IN_SVG else as_svg(figure, name, alt)
    return Picture(title=title, note=note, alt=alt, markup=markup, wide=wide)
