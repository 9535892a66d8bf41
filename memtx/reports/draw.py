"""Drawing of pictures with matplotlib. The same picture always gives the same bytes, independent of the user's settings.

Lines are labelled at their ends and single points beside them, so a reader need not match colours with a legend. The colours
of Okabe and Ito (2008) are distinct for colour-blind readers. Lines also differ in their markers.
"""

from __future__ import annotations

import io
import re
from statistics import fmean

from memtx.reports.figures import Line, Picture

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = "osD^vPX"
INK, FAINT = "#30363d", "#d0d4d9"
STYLE = {
    "svg.hashsalt": "memtx",
    "svg.fonttype": "none",  # text stays text: small, and searchable in the page
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}
FEW = 16  # lines with more points have a band instead of markers and error bars
LARGE = 10_000  # x axes that reach this number are labelled 10k, 20k
LINE_HEIGHT = 1.25  # height of a label's line, in font sizes


def png(picture: Picture) -> bytes:
    """Draw a picture as a png."""
    return _save(picture, "png", dpi=120, metadata={"Software": None})


def svg(picture: Picture) -> str:
    """Draw a picture as a complete svg file on white."""
    return _save(picture, "svg", metadata={"Date": None, "Creator": None}).decode()


def inline_svg(picture: Picture) -> str:
    """Draw a picture as svg for an HTML page, with the page's text colour and background and without ids that could clash."""
    text = _save(picture, "svg", transparent=True, metadata={"Date": None, "Creator": None}).decode()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--line)")
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{_unmarked(picture.name)}"', text, count=1)


def _unmarked(text: str) -> str:
    return re.sub(r'[<>&"]', " ", text)


def _save(picture: Picture, form: str, **settings) -> bytes:
    import matplotlib.style  # imported here because it is slow
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE | {"svg.hashsalt": picture.name}]):
        figure = Figure(figsize=(6.4, max(3.6, 1 + 0.18 * len(picture.lines))), layout="constrained")
        canvas = FigureCanvasAgg(figure)  # measures labels for all formats
        axes = figure.add_subplot()
        axes.set(xlabel=picture.x, ylabel=picture.y)
        for i, line in enumerate(picture.lines):
            _draw(axes, line, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], ("-", "--", ":")[i // len(COLOURS) % 3])
        _scale(axes, picture)
        if len(picture.lines) > 1:
            _label(canvas, axes, picture)
        out = io.BytesIO()
        figure.savefig(out, format=form, **settings)
        return out.getvalue()


def _scale(axes, picture: Picture) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator

    axes.margins(x=0.06)
    if "y" in picture.log:
        axes.set_yscale("log")
    values = sorted({point.x for line in picture.lines for point in line.points})
    large = max(values, default=0) >= LARGE
    if "x" in picture.log:
        axes.set_xscale("log")
        each = len(values) <= FEW / 2 and not large
        close = values[-1] < 1000 * values[0]
        axes.xaxis.set_major_locator(FixedLocator(values) if each else LogLocator(subs=(1, 2, 5) if close else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if large else lambda x, _: f"{x:g}")


def _draw(axes, line: Line, colour: str, marker: str, dashes: str) -> None:
    x, y = [p.x for p in line.points], [p.mean for p in line.points]
    spread = [p.std or 0.0 for p in line.points]
    if len(x) <= FEW:
        bars = spread if any(spread) else None
        axes.errorbar(x, y, bars, color=colour, marker=marker, linestyle=dashes, capsize=2, elinewidth=1)
        return
    axes.plot(x, y, color=colour, linestyle=dashes)
    if any(spread):
        low, high = ([m + sign * s for m, s in zip(y, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _label(canvas, axes, picture: Picture) -> None:
    """Label each line beside its only point, or to the right of the axes, as close to its end as other labels allow."""
    figure = canvas.figure
    figure.draw_without_rendering()  # computes the limits and the layout
    if picture.points:
        _label_points(canvas.get_renderer(), axes, picture.lines)
        return
    box = axes.get_window_extent()
    to_axes = (axes.transData - axes.transAxes).transform
    ends = [to_axes((line.points[-1].x, line.points[-1].mean)) for line in picture.lines]
    heights = apart([y for _, y in ends], LINE_HEIGHT * axes.xaxis.label.get_size() * figure.dpi / 72 / box.height)
    for i, (line, (x, y), height) in enumerate(zip(picture.lines, ends, heights, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3}
        style = {"xycoords": axes.transAxes, "textcoords": axes.transAxes, "va": "center", "color": colour}
        axes.annotate(line.label, (x, y), (1.04, height), arrowprops=leader, annotation_clip=False, **style)


def apart(heights: list[float], gap: float) -> list[float]:
    """Move heights so that they keep their order and are at least `gap` apart, with the least sum of squared moves.

    The heights stay in [0, 1] if there is room. Subtract one gap from a height for each lower height. The results must then
    only be in order. This is isotonic regression, which is solved by pooling neighbours that are out of order.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([heights[i] - gap * rank])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    room = max(0.0, 1 - gap * (len(heights) - 1))
    levels = [min(max(fmean(pool), 0.0), room) for pool in pools for _ in pool]
    placed = list(heights)
    for rank, i in enumerate(order):
        placed[i] = levels[rank] + gap * rank
    return placed


OFFSETS = tuple((dx, dy, side) for dx, side in ((8, "left"), (-8, "right"), (0, "center")) for dy in (0, 11, -11) if dx or dy)


def _label_points(renderer, axes, lines: list[Line]) -> None:
    """Put each label at the first of OFFSETS from its point at which it covers the fewest other labels and points."""
    inside = axes.get_window_extent()
    only = [line.points[0] for line in lines]
    marks = axes.transData.transform([(p.x, p.mean + sign * (p.std or 0.0)) for p in only for sign in (-1, 0, 1)])
    taken = []
    for i, line in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        at = (only[i].x, only[i].mean)
        text = axes.annotate(line.label, at, (0, 0), textcoords="offset points", va="center", color=colour)

        def box(offset, text=text):
            *position, side = offset
            text.set(position=position, ha=side)
            return text.get_window_extent(renderer).padded(4)  # about the size of a marker

        def covers(offset, box=box):
            found = box(offset)
            outside = found.x0 < inside.x0 or found.y0 < inside.y0
            return 3 * outside + sum(map(found.overlaps, taken)) + sum(found.contains(*mark) for mark in marks)

        taken.append(box(min(OFFSETS, key=covers)))
