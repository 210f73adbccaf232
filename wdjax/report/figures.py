"""The report's figures: inline SVG that takes its colours and fonts from the page around it."""

import contextlib
import html
import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.extras import need
from wdjax.report.scales import LOG_RATIO, Scale, log_ticks, stroke_ends
from wdjax.report.scales import make_scale as make_scale
from wdjax.tables import format_number

# Matplotlib draws with these stand-ins; the SVG says `var(--ink)`, so that the page's light and
# dark themes both hold.
INK, MUTED, FIRST, SECOND, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_THEME = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    PAPER: "var(--paper)",
}

WIDTH, HEIGHT, BOTTOM = 360.0, 244.0, 36.0
"""Points. Narrow, so that the words stay readable where a phone shows a figure at full width."""

OFF_SCALE = 1e4
"""Finite values this many times the median are arrows at the edge, not points."""


class Figure(NamedTuple):
    """An `<svg>` element and the words under it."""

    svg: str
    caption: str


class Series(NamedTuple):
    """One line: values over a number of the grid; NaN where there is no score."""

    label: str
    x: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    colour: str = INK
    slope: np.ndarray | None = None
    """d value / d log x, NaN where it is not known; drawn as a short stroke along it."""


class Mark(NamedTuple):
    """A chosen point: its place on the horizontal axis, and the rules that chose it."""

    label: str
    x: float
    mean: float


def draw_series(
    name: str,
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    axis: str,
    marks: Sequence[Mark] = (),
    level: float | None = None,
    shaded: Sequence[float] = (),
) -> str:
    """Lines over a number of the grid, each with its band of one standard error.

    A cross at the top stands for a point without a score, an arrow for one off the scale. The
    marks are rules of thin ink with their names above; a short stroke through a point is its
    slope; `level` is a dotted horizontal line; behind
    the values that are `shaded` the ground is darker.
    """
    scale = make_scale(np.concatenate([s.x for s in series]))

    def paint(ax: Any) -> None:
        shown = [_shown(s) for s in series]
        bands = [v for s in shown for v in (s.mean, s.mean - s.error, s.mean + s.error)]
        limit_height(ax, [*bands, np.array([] if level is None else [level])])
        _horizontal(ax, scale, axis)
        _shade(ax, np.unique(np.concatenate([s.x for s in series])), shaded, scale)
        if level is not None:
            ax.axhline(level, color=MUTED, lw=0.7, ls=(0, (1, 2)), zorder=1)
        _draw_marks(ax, marks, scale)
        for s, full in zip(shown, series, strict=True):
            _draw_line(ax, s, scale)
            _draw_slopes(ax, s, scale)
            _draw_edge(ax, scale.place(full.x[~np.isfinite(full.mean)]), "x", s.colour)
            _draw_edge(ax, scale.place(full.x[off_scale(full.mean)]), "^", s.colour)
        if len(shown) > 1:
            ends = [(s, np.flatnonzero(np.isfinite(s.mean))) for s in shown]
            _label_ends(
                ax,
                [
                    (s.label, float(scale.place(s.x[i[-1]])), float(s.mean[i[-1]]), s.colour)
                    for s, i in ends
                    if len(i)
                ],
            )

    above = bool(marks) or not all(np.isfinite(_shown(s).mean).all() for s in series)
    right, top = 64.0 if len(series) > 1 else 14.0, 56.0 if above else 30.0
    return draw_axes(name, title, description, paint, right=right, top=top)


def _shade(ax: Any, values: np.ndarray, shaded: Sequence[float], scale: Scale) -> None:
    """A ground behind the shaded ones of all `values`, halfway to their neighbours."""
    places = scale.place(values)
    if not len(shaded) or len(places) < 2:
        return
    between = (places[1:] + places[:-1]) / 2
    first, last = places[0] - (between[0] - places[0]), places[-1] + (places[-1] - between[-1])
    edges = np.concatenate([[first], between, [last]])
    inside = np.isin(values, shaded)
    for run in np.split(np.arange(len(values)), np.flatnonzero(np.diff(inside)) + 1):
        if inside[run[0]]:
            ax.axvspan(edges[run[0]], edges[run[-1] + 1], color=MUTED, alpha=0.13, lw=0, zorder=0)


def draw_epochs(
    name: str,
    title: str,
    description: str,
    runs: Sequence[tuple[str, np.ndarray, str]],
    *,
    axis: str = "epoch",
    at: np.ndarray | None = None,
) -> str:
    """Curves over the run: `(label, values[seed, epoch], colour)`, seeds thin, their mean thick.

    `at` says where on the axis the values stand, by default at 1, 2, 3, ...
    """
    longest = max(values.shape[1] for _, values, _ in runs)
    places = np.arange(1, longest + 1) if at is None else at

    def paint(ax: Any) -> None:
        limit_height(ax, [values for _, values, _ in runs])
        first, last = float(places[0]), float(places[-1])
        ax.set_xlim(first - 0.03 * last, last + 0.03 * last)
        ticks = [t for t in ax.get_xticks() if first <= t <= last and t == int(t)] or [first]
        ax.set_xticks(ticks, [format_number(int(t)) for t in ticks])
        ax.spines["bottom"].set_bounds(first, last)
        ax.set_xlabel(axis, loc="right", color=MUTED)
        ends = []
        for label, values, colour in reversed(runs):
            epochs = places[: values.shape[1]]
            if len(values) > 1:
                ax.plot(epochs, values.T, color=colour, lw=0.5, alpha=0.35)
            mean = values.mean(0)
            ax.plot(epochs, mean, color=colour, lw=1.4)
            finite = np.flatnonzero(np.isfinite(mean))
            if len(finite):
                last = finite[-1]
                ends.append((label, float(epochs[last]), float(mean[last]), colour))
        _label_ends(ax, ends)

    return draw_axes(name, title, description, paint, right=64.0, top=30.0)


def _shown(s: Series) -> Series:
    """The series without its points off the scale; an unknown error is no band."""
    mean = np.where(off_scale(s.mean), np.nan, s.mean)
    return s._replace(mean=mean, error=np.where(np.isfinite(s.error), s.error, 0.0))


def off_scale(values: np.ndarray) -> np.ndarray:
    """Which values are finite and yet so large that a figure showing them would show no other."""
    finite = np.abs(values[np.isfinite(values)])
    limit = OFF_SCALE * np.median(finite) if len(finite) else 0.0
    return np.isfinite(values) & (np.abs(values) > (limit or np.inf))


def limit_height(ax: Any, values: Iterable[np.ndarray]) -> None:
    """Vertical limits around the finite values, log where they are positive and spread far."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    flat = np.concatenate([np.ravel(v) for v in values])
    flat = flat[np.isfinite(flat)]
    low, high = (flat.min(), flat.max()) if len(flat) else (0.0, 1.0)
    if low > 0 and high / low > LOG_RATIO:
        ax.set_yscale("log")
        ratio = (high / low) ** 0.06
        ax.set_ylim(low / ratio, high * ratio)
        ax.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - pad, high + pad)
        ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        inside = [float(t) for t in ticks if low - 0.2 * pad <= t <= high + 0.2 * pad]
        ax.yaxis.set_major_locator(FixedLocator(inside or [low]))
    ax.yaxis.set_major_formatter(lambda y, _: format_number(float(f"{y:.6g}")))
    ax.spines["left"].set_bounds(low, high)


def _horizontal(ax: Any, scale: Scale, axis: str) -> None:
    """Ticks and the bottom line; where zero stands apart, two strokes say that the axis breaks."""
    low, high = scale.ends
    start = low if scale.zero is None else scale.zero
    pad = 0.03 * (high - start) or 0.5
    ax.set_xlim(start - pad, high + pad)
    ax.set_xticks(scale.place(scale.ticks), [format_number(v) for v in scale.ticks])
    ax.set_xlabel(axis, loc="right", color=MUTED)
    ax.spines["bottom"].set_bounds(low, high)
    if scale.zero is None:
        return
    across = ax.get_xaxis_transform()
    stub = 0.3 * (low - scale.zero)
    for left, right in ((scale.zero - stub / 2, scale.zero + stub), (low - stub, low)):
        ax.plot([left, right], [0, 0], color=MUTED, lw=0.8, transform=across, clip_on=False)
    for x in (scale.zero + stub, low - stub):
        tilt = 0.012 * (high - start)
        ends = [x - tilt / 2, x + tilt / 2]
        ax.plot(ends, [-0.025, 0.025], color=MUTED, lw=0.8, transform=across, clip_on=False)


def _draw_line(ax: Any, s: Series, scale: Scale) -> None:
    """Dots joined where neighbours have scores; a band under joined ones, a whisker elsewhere."""
    order = np.argsort(s.x)
    x, mean, error = scale.place(s.x)[order], s.mean[order], s.error[order]
    width = 0.7 if s.colour == MUTED else 1.2
    apart = ~np.isfinite(mean) | ((s.x[order] == 0) & (scale.zero is not None))
    for run in np.split(np.arange(len(x)), np.flatnonzero(apart[1:] | apart[:-1]) + 1):
        ax.plot(x[run], mean[run], color=s.colour, lw=width, marker="o", ms=2.5 * width, zorder=3)
        if len(run) > 1:
            low, high = mean[run] - error[run], mean[run] + error[run]
            ax.fill_between(x[run], low, high, color=s.colour, alpha=0.15, lw=0)
        elif error[run[0]] > 0:
            ax.errorbar(x[run], mean[run], error[run], color=s.colour, lw=0.8)


def _draw_slopes(ax: Any, s: Series, scale: Scale) -> None:
    """A stroke of one length through each point whose slope is known, however steep it is."""
    if s.slope is None:
        return
    known = (s.x > 0) & np.isfinite(s.mean) & np.isfinite(s.slope)
    for x, mean, slope in zip(s.x[known], s.mean[known], s.slope[known], strict=True):
        ends = stroke_ends(ax, scale, float(x), float(mean), float(slope))
        ax.plot(*ends, color=INK, lw=1.1, zorder=4, solid_capstyle="butt")


def _draw_edge(ax: Any, x: np.ndarray, marker: str, colour: str) -> None:
    heights = np.full(len(x), 1.04)
    ax.plot(
        x, heights, marker, color=colour, ms=5, clip_on=False, transform=ax.get_xaxis_transform()
    )


def _draw_marks(ax: Any, marks: Sequence[Mark], scale: Scale) -> None:
    """Names stand away from each other, or above each other where an edge is near."""
    places = [float(scale.place(mark.x)) for mark in marks]
    above = ax.get_xaxis_transform()
    left, right = ax.get_xlim()
    for mark, x in zip(marks, places, strict=True):
        where = (x - left) / (right - left)
        outward = "center" if len(marks) == 1 else "right" if x == min(places) else "left"
        inward = {"right": where < 0.25, "left": where > 0.6, "center": False}[outward]
        side = {"right": "left", "left": "right"}[outward] if inward else outward
        top = 1.14 if inward else 1.07
        ax.plot([x, x], [0, top], color=MUTED, lw=0.7, zorder=1, clip_on=False, transform=above)
        ax.plot([x], [mark.mean], "o", ms=8, mfc="none", mec=INK, mew=1, zorder=4)
        ax.annotate(
            mark.label,
            (x, top),
            xycoords=above,
            xytext=({"center": 0, "right": 2, "left": -2}[side], 2),
            textcoords="offset points",
            ha=side,
            color=INK,
        )


def _label_ends(ax: Any, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Each line's name at its end, spread so that no two stand on each other.

    Of more lines than there is room for, the coloured ones and some between have theirs.
    """
    box, gap = ax.bbox, 11.0 * ax.figure.dpi / 72
    ends = _thinned(ends, int(box.height / gap) + 1)
    if not ends:
        return
    points = np.array([ax.transData.transform((x, y)) for _, x, y, _ in ends])
    heights = spread(points[:, 1], gap, (box.y0, box.y1))
    for (label, x, y, colour), point, height in zip(ends, points, heights, strict=True):
        lift = (height - point[1]) * 72 / ax.figure.dpi
        ax.annotate(
            label if len(label) <= 14 else f"{label[:11]}...",
            (x, y),
            xytext=(6, lift),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )


def _thinned(
    ends: Sequence[tuple[str, float, float, str]], most: int
) -> list[tuple[str, float, float, str]]:
    quiet = [i for i, end in enumerate(ends) if end[3] == MUTED]
    room = max(most - (len(ends) - len(quiet)), 0)
    evenly = np.linspace(0, len(quiet) - 1, min(room, len(quiet))).round().astype(int)
    kept = {quiet[i] for i in evenly} | set(range(len(ends))) - set(quiet)
    return [ends[i] for i in sorted(kept)[:most]]


def spread(
    heights: np.ndarray, gap: float, within: tuple[float, float] = (-np.inf, np.inf)
) -> np.ndarray:
    """The heights, moved to stand at least `gap` apart, in their order and about their mean.

    They stay within two ends as far as these have room for them; the lower end holds before the
    upper.
    """
    order = np.argsort(heights, kind="stable")
    spread = np.array(heights, float)
    for below, above in zip(order[:-1], order[1:], strict=True):
        spread[above] = max(spread[above], spread[below] + gap)
    spread -= spread.mean() - heights.mean()
    spread -= max(spread.max() - within[1], 0.0)
    return spread + max(within[0] - spread.min(), 0.0)


def import_drawing() -> None:
    """Imports what drawing needs, half of the time that a report takes, ahead of it."""
    # Refused here, an import is refused again where it is needed, with a reader for its words.
    with contextlib.suppress(ImportError):
        importlib.import_module("matplotlib.style")
        importlib.import_module("matplotlib.backends.backend_svg")


def draw_axes(
    name: str,
    title: str,
    description: str,
    paint: Callable[[Any], None],
    *,
    right: float,
    top: float,
    left: float = 46.0,
    bottom: float = BOTTOM,
    height: float = HEIGHT,
) -> str:
    """One pair of axes as an `<svg>` element, with so many points around it.

    Matplotlib's own settings are left as found.
    """

    def paint_figure(figure: Any) -> None:
        size = (WIDTH - left - right) / WIDTH, (height - top - bottom) / height
        ax = figure.add_axes((left / WIDTH, bottom / height, *size))
        quiet_axes(ax)
        paint(ax)

    return draw_figure(name, title, description, paint_figure, height=height)


def quiet_axes(ax: Any) -> None:
    """Lines at the left and below, thin and muted."""
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set(color=MUTED, linewidth=0.8)
    ax.tick_params(color=MUTED, labelcolor=MUTED, width=0.8, length=3)


def draw_figure(
    name: str,
    title: str,
    description: str,
    paint: Callable[[Any], None],
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    shown: str | None = None,
) -> str:
    """What `paint(figure)` puts on an empty figure, as an `<svg>` element under its title.

    `shown` stands for a title that is too long to be written.
    """
    need("matplotlib", what="a report")
    import matplotlib.style
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.unicode_minus": False,
    }
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        # The reader's browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure = Figure(figsize=(width / 72, height / 72))
        paint(figure)
        size = 11 if width == WIDTH else 9.5
        figure.text(0, 1 - 12 / height, shown or title, color=INK, fontsize=size)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name, title, description, (width, height))


def _inline(svg: str, name: str, title: str, description: str, size: tuple[float, float]) -> str:
    """The body of matplotlib's file under our own opening tag, every id made this figure's own."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    body = body[body.index(">", body.index("<svg")) + 1 :]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body)
    for colour, variable in _THEME.items():
        body = body.replace(colour, variable)
    return (
        f'<svg viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>{body}'
    )
