"""The drawings of the report: from plain values to inline SVG whose colours follow the page.

matplotlib writes colours as hexadecimal constants. The constants used here are placeholders: after drawing each one is
replaced by a CSS variable of the page, so that one drawing is legible on light and dark paper alike. Text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from herd.console import human_count
from herd.scaling.isoflop import Bowl, Cell

INK, MUTED, FAINT, PAPER = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
SERIES = tuple(f"#0b0b0{i}" for i in range(8))  # members: Okabe and Ito's colours, told apart by the colour-blind
RAMP = tuple(f"#0c0c0{i}" for i in range(10))  # budgets: one ramp from dark to light
_VARIABLES = {INK: "ink", MUTED: "muted", FAINT: "faint", PAPER: "paper"}
_VARIABLES |= {c: f"c{i}" for i, c in enumerate(SERIES)} | {c: f"r{i}" for i, c in enumerate(RAMP)}

WIDTH_INCHES, FONT_POINTS = 5.0, 9.8
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": FONT_POINTS,
    "axes.labelsize": FONT_POINTS,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """Training loss of one member over the tokens it has seen. `breaks`: where its later steps start, in tokens."""

    name: str
    tokens: tuple[float, ...]
    losses: tuple[float, ...]
    breaks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Measured:
    """A value with its interval, if one was measured."""

    value: float
    low: float | None = None
    high: float | None = None


def isoflop(groups: Sequence[Sequence[Cell]], bowls: Sequence[Bowl]) -> Markup:
    """Loss over size, a bowl for each budget, its bottom marked. `bowls` may be empty: then only the runs are drawn."""
    with drawing("isoflop", 3.5, "Held-out loss over model size, one bowl for each training budget") as (figure, svg):
        axes = figure.subplots()
        colours = ramp(len(groups))
        ends = []
        for group, colour in zip(groups, colours, strict=True):
            sizes, losses = [c.parameters for c in group], [c.loss for c in group]
            axes.plot(sizes, losses, "o", color=colour, markersize=4.5)
            ends.append((losses[-1], f"{scientific(group[0].budget_flops)} FLOPs", colour, sizes[-1]))
        for bowl, group, colour in zip(bowls, groups, colours, strict=False):
            low, high = group[0].parameters, group[-1].parameters
            sizes = [low * (high / low) ** (i / 60) for i in range(61)]
            axes.plot(sizes, [bowl.at(n) for n in sizes], color=colour, linewidth=1.4)
            axes.plot([bowl.optimum_parameters], [bowl.loss], "D", color=PAPER, markeredgecolor=INK, markersize=5.5)
        _log_axis(axes.xaxis, [c.parameters for g in groups for c in g])
        axes.set_xlabel("parameters (matrix multiplications, head included)")
        axes.set_ylabel("held-out loss, nats a token")
        end_labels(axes, ends)
    return svg[0]


def optimum_law(
    bowls: Sequence[Bowl], law: Any, budget: float, optimum: float, low: float, high: float, built: float | None
) -> Markup:
    """Optimal size over FLOPs on two log axes: the bottoms, the power law, the forecast with its interval."""
    with drawing("law", 3.3, "Compute-optimal size over training FLOPs with the forecast") as (figure, svg):
        axes = figure.subplots()
        budgets = [b.budget_flops for b in bowls]
        reach = [min(budgets) / 1.25, budget * 1.2]
        axes.plot(reach, [law(x) for x in reach], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
        for bowl, colour in zip(bowls, ramp(len(bowls)), strict=True):
            axes.plot([bowl.budget_flops], [bowl.optimum_parameters], "D", color=colour, markersize=5.5)
        axes.plot([budget, budget], [low, high], color=SERIES[0], linewidth=5, alpha=0.35)
        axes.plot([budget], [optimum], "_", color=SERIES[0], markersize=13, markeredgewidth=2)
        _beside(axes, budget, optimum, f"forecast {human_count(optimum)}", SERIES[0])
        if built:
            axes.plot([budget], [built], "o", color=SERIES[5], markersize=6)
            shift = _away(built, optimum, low, high)
            _beside(axes, budget, built, f"built {human_count(built)}", SERIES[5], shift)
        _log_axis(axes.xaxis, [*budgets, budget], scientific, exactly=True)
        _log_axis(axes.yaxis, [*(b.optimum_parameters for b in bowls), low, high, built or optimum])
        axes.set_xlim(reach[0], budget * 1.4)
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("optimal parameters")
    return svg[0]


def _away(built: float, optimum: float, low: float, high: float) -> float:
    """Points to move the second of two labels by where they would touch."""
    distance = (math.log(built) - math.log(optimum)) / max(1e-9, math.log(high) - math.log(low))
    return 0.0 if abs(distance) > 0.5 else math.copysign(10.0, distance)


def _beside(axes: Any, x: float, y: float, text: str, colour: str, up: float = 0.0) -> None:
    axes.annotate(text, (x, y), xytext=(-11, up), textcoords="offset points", ha="right", va="center", color=colour)


def descent(bowls: Sequence[Bowl], budget: float, forecast: Measured, measured: float | None) -> Markup:
    """Bottoms of the bowls over FLOPs, the forecast's interval, and what was measured."""
    with drawing("descent", 3.1, "Lowest loss over training FLOPs, forecast and measured") as (figure, svg):
        axes = figure.subplots()
        budgets, losses = [b.budget_flops for b in bowls], [b.loss for b in bowls]
        axes.plot(budgets, losses, color=MUTED, linewidth=1)
        axes.plot(
            [budgets[-1], budget], [losses[-1], forecast.value], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3))
        )
        for x, y, colour in zip(budgets, losses, ramp(len(bowls)), strict=True):
            axes.plot([x], [y], "D", color=colour, markersize=5.5)
        axes.plot([budget, budget], [forecast.low, forecast.high], color=SERIES[0], linewidth=5, alpha=0.35)
        axes.plot([budget], [forecast.value], "_", color=SERIES[0], markersize=13, markeredgewidth=2)
        if measured is not None:
            axes.plot([budget], [measured], "o", color=SERIES[5], markersize=6)
        _log_axis(axes.xaxis, [*budgets, budget], scientific, exactly=True)
        axes.set_xlim(min(budgets) / 1.25, budget * 1.3)
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("held-out loss, nats a token")
    return svg[0]


def verdict(name: str, forecast: Measured, measured: float | None) -> Markup:
    """One line: the interval of the forecast as a bar, its middle as a tick, the measured loss as a dot."""
    with drawing(f"verdict-{name}", 1.25, f"Forecast interval and measured loss of {name}") as (figure, svg):
        axes = figure.subplots()
        axes.plot(
            [forecast.low, forecast.high], [0, 0], color=SERIES[0], linewidth=9, alpha=0.35, solid_capstyle="butt"
        )
        axes.plot([forecast.value], [0], "|", color=SERIES[0], markersize=15, markeredgewidth=2)
        axes.annotate(
            f"forecast {forecast.value:.3f}",
            (forecast.value, 0),
            xytext=(0, -15),
            textcoords="offset points",
            ha="center",
            va="top",
            color=SERIES[0],
        )
        points = [p for p in (forecast.low, forecast.high, forecast.value, measured) if p is not None]
        if measured is not None:
            axes.plot([measured], [0], "o", color=SERIES[5], markersize=7)
            axes.annotate(
                f"measured {measured:.3f}",
                (measured, 0),
                xytext=(0, 11),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=SERIES[5],
            )
        margin = 0.22 * (max(points) - min(points))
        axes.set_xlim(min(points) - margin, max(points) + margin)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=6)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("held-out loss, nats a token")
    return svg[0]


def loss_curves(curves: Sequence[Curve]) -> Markup:
    """Training loss over tokens, log x; each member named at the end of its line, later steps set off by a dot."""
    with drawing("losses", 3.7, "Training loss of each member over the tokens it has seen") as (figure, svg):
        axes = figure.subplots()
        ends = []
        for curve, colour in zip(curves, cycle(len(curves)), strict=True):
            axes.plot(curve.tokens, curve.losses, color=colour, linewidth=1.3)
            for _, start in curve.breaks:
                after = next((i for i, t in enumerate(curve.tokens) if t >= start), None)
                if after is not None:
                    axes.plot(
                        [curve.tokens[after]],
                        [curve.losses[after]],
                        "o",
                        color=PAPER,
                        markeredgecolor=colour,
                        markersize=4.5,
                        zorder=4,
                    )
            ends.append((curve.losses[-1], curve.name, colour, curve.tokens[-1]))
        _log_axis(axes.xaxis, [t for c in curves for t in (c.tokens[0], c.tokens[-1])])
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("training loss, nats a token")
        end_labels(axes, ends)
    return svg[0]


def dots(rows: Sequence[tuple[str, Mapping[str, Measured]]], members: Sequence[str], unit: str) -> Markup:
    """A row for each slice; in it a dot with its interval for each member."""
    height = 0.75 + sum(0.22 + 0.13 * len(members) for _ in rows) + 0.2
    with drawing("dots", height, f"{unit} of each member with its interval, overall and by slice") as (figure, svg):
        axes = figure.subplots()
        colours, step, y, centres = cycle(len(members)), 1.0, 0.0, []
        for _, values in rows:
            first = y
            for name, colour in zip(members, colours, strict=True):
                if (one := values.get(name)) is not None:
                    if one.low is not None and one.high is not None:
                        axes.plot([one.low, one.high], [y, y], color=colour, linewidth=2.4, alpha=0.45)
                    axes.plot([one.value], [y], "o", color=colour, markersize=4.5)
                y += step
            centres.append((first + y - step) / 2)
            y += 1.4
        axes.set_yticks(centres, [label for label, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.5)
        axes.set_axisbelow(True)
        axes.set_ylim(y - 0.9, -0.9)
        axes.set_xlabel(unit)
        handles = [
            axes.plot([], [], "o", color=c, markersize=4.5, label=n)[0] for n, c in zip(members, colours, strict=True)
        ]
        columns = 3 if max(map(len, members)) < 14 else 2
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            frameon=False,
            handletextpad=0.1,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
    return svg[0]


def smooth(
    tokens: Sequence[float], losses: Sequence[float], bins: int = 70
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means of losses in bins of equal width in log tokens: noise goes, the shape stays."""
    if not tokens:
        return (), ()
    first, last = math.log(tokens[0]), math.log(tokens[-1])
    width = max(1e-9, (last - first) / bins)
    found: dict[int, list[tuple[float, float]]] = {}
    for t, loss in zip(tokens, losses, strict=True):
        found.setdefault(min(bins - 1, int((math.log(t) - first) / width)), []).append((t, loss))
    means = [(sum(t for t, _ in b) / len(b), sum(v for _, v in b) / len(b)) for _, b in sorted(found.items())]
    return tuple(t for t, _ in means), tuple(v for _, v in means)


def ramp(count: int) -> list[str]:
    """Colours for ordered things, spread over the whole ramp."""
    return [RAMP[round(i * (len(RAMP) - 1) / max(1, count - 1))] for i in range(count)]


def cycle(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def scientific(value: float) -> str:
    """3e11 as a person writes it: 3×10¹¹."""
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = f"{value / 10**exponent:.3g}"
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{mantissa}×{power}"


def _log_axis(axis: Any, values: Sequence[float], say: Any = human_count, exactly: bool = False) -> None:
    """A log axis around `values` with few ticks, written as a person says them; `exactly`: at the values, if few."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(values) / 1.15, max(values) * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = sorted(set(values)) if exactly else []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        if 0 < len(ticks) <= 6:
            break
        ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: say(x)))


def end_labels(axes: Any, ends: Sequence[tuple[float, str, str, float]]) -> None:
    """Name lines right of the drawing, pushed apart where they would touch, with a hair to where the line ends."""
    low, high = axes.get_ylim()
    points = axes.get_figure().get_figheight() * 72 * 0.8
    gap = (FONT_POINTS + 2.5) * (high - low) / points
    placed = sorted(ends, key=lambda e: e[0])
    heights = [e[0] for e in placed]
    for _ in range(200):  # neighbours that are too near push each other away, evenly
        for i in range(len(heights) - 1):
            if (lack := gap - (heights[i + 1] - heights[i])) > 1e-12:
                heights[i] -= lack / 2
                heights[i + 1] += lack / 2
    for (y, text, colour, x), height in zip(placed, heights, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.03, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 1, "shrinkB": 3},
        )
    axes.set_ylim(low, high)


@contextmanager
def drawing(name: str, height: float, title: str) -> Iterator[tuple[Any, list[Markup]]]:
    """A figure to draw on; when the block ends its SVG is in the list that comes with it."""
    import matplotlib
    from matplotlib.figure import Figure

    svg: list[Markup] = []
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        yield figure, svg
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg.append(_inline(stream.getvalue(), re.sub(r"[^A-Za-z0-9_-]", "-", name), title))


def _inline(svg: str, name: str, title: str) -> Markup:
    """An SVG file as an element of the page: no prolog or metadata, ids of its own, colours of the page, a title."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", rest)
    rest = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', rest)
    rest = re.sub(r"#0[abc]0[abc]0\d", lambda m: f"var(--{_VARIABLES[m[0]]})", rest)
    label = Markup.escape(title)
    return Markup(f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">{rest}')
