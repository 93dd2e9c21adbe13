"""The drawings of the assistant's half: accuracy by step of the round, and the dial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from herd.report_plots import FAINT, INK, MUTED, PAPER, SERIES, Measured, drawing, end_labels

COLOURS = (SERIES[0], SERIES[7], SERIES[5])  # the model alone, the guard alone, both
Series = Sequence[tuple[str, Sequence[Measured | None]]]


def accuracy(name: str, steps: Sequence[str], series: Series) -> Markup:
    """Shares after each step with their intervals, a line for each series; None where a step was not measured."""
    with drawing(f"accuracy-{name}", 3.5, f"Share of questions that {name} answers right after each step") as (
        fig,
        svg,
    ):
        axes = fig.subplots()
        ends = []
        for number, (label, values) in enumerate(series):
            colour, shift = SERIES[number], 0.13 * (number - (len(series) - 1) / 2)
            points = [(i + shift, one) for i, one in enumerate(values) if one is not None]
            if not points:
                continue
            axes.plot([x for x, _ in points], [one.value for _, one in points], color=colour, linewidth=1, alpha=0.6)
            for x, one in points:
                _interval(axes, [x, x], [one.low, one.high], colour)
                axes.plot([x], [one.value], "o", color=colour, markersize=5)
            ends.append((points[-1][1].value, label, colour, points[-1][0]))
        axes.set_xticks(range(len(steps)), steps)
        axes.tick_params(axis="x", length=0, labelcolor=INK)
        axes.set_xlim(-0.3, len(steps) - 0.7)
        _percents(axes, "y")
        axes.set_ylabel("questions answered right")
        end_labels(axes, ends)
    return svg[0]


def dial(name: str, curve: Sequence[tuple[float, float]], systems: Sequence[tuple[str, Measured, Measured]]) -> Markup:
    """Violation rate over false refusal rate: a curve, and systems as (label, false refusals, violations)."""
    title = f"Violation rate over false refusal rate of {name}, alone and behind the guard"
    with drawing(f"dial-{name}", 4.4, title) as (figure, svg):
        axes = figure.subplots()
        axes.plot([x for x, _ in curve], [y for _, y in curve], color=MUTED, linewidth=1.2)
        handles = []
        for (label, refusal, violation), colour, marker in zip(systems, COLOURS, "sDo", strict=True):
            x, y = refusal.value, violation.value
            _interval(axes, [refusal.low, refusal.high], [y, y], colour)
            _interval(axes, [x, x], [violation.low, violation.high], colour)
            axes.plot([x], [y], marker, color=colour, markeredgecolor=PAPER, markersize=7.5, zorder=4)
            handles.append(axes.plot([], [], marker, color=colour, markersize=6, label=label)[0])
        _percents(axes, "x")
        _percents(axes, "y")
        axes.set_xlabel("false refusal rate: benign prompts refused")
        axes.set_ylabel("violation rate: harmful prompts answered")
        axes.legend(
            handles=handles,
            loc="upper right",  # where no sensible guard has its curve
            frameon=False,
            handletextpad=0.2,
        )
    return svg[0]


def _interval(axes: Any, x: list[float | None], y: list[float | None], colour: str) -> None:
    if None not in x and None not in y:
        axes.plot(x, y, color=colour, linewidth=2.4, alpha=0.4)


def _percents(axes: Any, side: str) -> None:
    """An axis from none to all, with faint lines across."""
    axis = getattr(axes, f"{side}axis")
    getattr(axes, f"set_{side}lim")(-0.02, 1.02)
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.grid(axis=side, color=FAINT, linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
