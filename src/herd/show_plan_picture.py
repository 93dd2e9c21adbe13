"""A plan as a picture: which micro-batch runs on which rank when, and what fills each rank's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herd.console import human_bytes
from herd.train.parallel.schedule import Slot
from herd.train.planner import StepPlan
from herd.train.planner_memory import Bytes, rank_bytes

# Okabe and Ito's colours, told apart by the colour-blind; reserved memory in grey
MEMORY_COLOURS = ("#0072b2", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#bbbbbb")
FORWARD, BACKWARD = (0.00, 0.45, 0.70), (0.90, 0.60, 0.00)
LEGIBLE = 0.012  # share of the picture's width from which a slot has room for its number


def draw_plan(plan: StepPlan, timeline: list[list[Slot]], title: str, picture: Path) -> None:
    """Write a PNG: the pipeline's timeline where there is one, above a memory bar of each pipeline rank."""
    from matplotlib.figure import Figure

    pp = plan.setting.mesh.pp
    row = 0.3 if pp <= 16 else 0.16
    heights = ([1.2 + row * pp] if timeline else []) + [1.4 + row * pp]
    figure = Figure(figsize=(11, sum(heights) + 0.6), dpi=150, layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    mesh = plan.setting.mesh
    cut = f"V {plan.setting.stages_per_rank}, M {plan.setting.micro_batches}, recomputation: {plan.setting.recompute}"
    figure.suptitle(
        f"{title}: TP {mesh.tp}, CP {mesh.cp}, PP {pp}, DP {mesh.dp}; {cut}", x=0.01, ha="left", fontsize=11
    )
    if timeline:
        _draw_timeline(axes[0], plan, timeline)
    _draw_memory(axes[-1], plan)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


def _draw_timeline(axes: Any, plan: StepPlan, timeline: list[list[Slot]]) -> None:
    setting = plan.setting
    end = max(slots[-1].end for slots in timeline)
    for rank, slots in enumerate(timeline):
        axes.broken_barh([(0, end)], (rank - 0.42, 0.84), facecolor="#f0f0f0")  # what stays grey is idle
        spans = [(slot.start, slot.end - slot.start) for slot in slots]
        edge = 0.3 if len(slots) < 100 else 0.0  # edges of more would cover what they part
        colours = [_colour(slot, setting.mesh.pp, setting.stages_per_rank) for slot in slots]
        axes.broken_barh(spans, (rank - 0.42, 0.84), facecolors=colours, edgecolor="white", linewidth=edge)
        for slot in slots:
            if (slot.end - slot.start) / end > LEGIBLE and setting.mesh.pp <= 16:
                middle = (slot.start + slot.end) / 2
                ink = "white" if _depth(slot, setting.mesh.pp, setting.stages_per_rank) > 0.5 else "#333333"
                axes.text(middle, rank, str(slot.action.micro), ha="center", va="center", fontsize=6, color=ink)
    micros = 1 + max(slot.action.micro for slot in timeline[0])
    shown = "" if micros == setting.micro_batches else f", drawn with {micros} micro-batches instead of M"
    idle = 1 - sum(slot.end - slot.start for slots in timeline for slot in slots) / (end * len(timeline))
    stages = "; the darker, the later the stage" if setting.stages_per_rank > 1 else ""
    axes.set_title(
        f"Pipeline: forward blue, backward orange{stages}, idle grey ({idle:.0%}){shown}", loc="left", fontsize=9
    )
    axes.set_xlim(0, end)
    axes.set_xlabel("seconds, without the waits for other dimensions' last collectives and the optimizer", fontsize=8)
    _ranks(axes, setting.mesh.pp)


def _colour(slot: Slot, pp: int, stages_per_rank: int) -> tuple[float, ...]:
    """Light for a rank's first stage, full for its last."""
    full = FORWARD if slot.action.kind == "F" else BACKWARD
    strength = 0.45 + 0.55 * _depth(slot, pp, stages_per_rank)
    return tuple(1 - strength * (1 - part) for part in full)


def _depth(slot: Slot, pp: int, stages_per_rank: int) -> float:
    return slot.action.stage // pp / (stages_per_rank - 1) if stages_per_rank > 1 else 1.0


def _draw_memory(axes: Any, plan: StepPlan) -> None:
    ranks = [rank_bytes(plan.setting, rank) for rank in range(plan.setting.mesh.pp)]
    left = [0.0] * len(ranks)
    for name, colour in zip(Bytes._fields, MEMORY_COLOURS, strict=True):
        widths = [getattr(one, name) / 1e9 for one in ranks]
        axes.barh(range(len(ranks)), widths, 0.84, left, label=name, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    limit = plan.card.memory_bytes / 1e9
    axes.axvline(limit, color="#222222", linewidth=1.2, linestyle="--")
    axes.text(
        limit, -0.75, f"{plan.card.name}: {human_bytes(plan.card.memory_bytes)} ", ha="right", va="center", fontsize=8
    )
    axes.set_xlim(0, max(limit, *left) * 1.02)
    axes.set_xlabel("GB on a rank at its peak", fontsize=8)
    axes.set_title("Memory", loc="left", fontsize=9)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    _ranks(axes, len(ranks))
    axes.set_ylim(len(ranks) - 0.4, -1.2)


def _ranks(axes: Any, pp: int) -> None:
    axes.set_ylim(pp - 0.4, -0.6)  # rank 0 on top
    axes.set_yticks(range(0, pp, 1 if pp <= 16 else 8))
    axes.set_ylabel("pipeline rank", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
