"""IsoFLOP curves: at one budget, loss against size is a bowl; its bottom is the compute-optimal model (paper 3.2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from herd.console import HerdError

FARTHEST_OPTIMUM = math.log(1e4)  # a vertex farther than this from the sizes tried is a line, not a bowl


@dataclass(frozen=True)
class Cell:
    """One finished ladder run: a size trained with one budget. Loss in nats a token on held-out documents."""

    budget_flops: float
    parameters: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Bowl:
    """Parabola loss = curvature * (ln N - ln optimum)^2 + loss over the cells of one budget.

    `residuals`: what the parabola leaves of each cell's loss, in nats. `bracketed`: whether cells on both sides lie
    above the lowest one, so that the minimum was seen and not assumed.
    """

    budget_flops: float
    optimum_parameters: float
    optimum_tokens: float
    loss: float
    curvature: float
    residuals: tuple[float, ...]
    bracketed: bool

    def at(self, parameters: float) -> float:
        """Loss of a size on the fitted parabola."""
        return self.curvature * (math.log(parameters) - math.log(self.optimum_parameters)) ** 2 + self.loss


def lowest(cells: Sequence[Cell]) -> int:
    """Index of the cell of lowest loss, cells sorted by size."""
    return min(range(len(cells)), key=lambda i: cells[i].loss)


def is_bracketed(cells: Sequence[Cell]) -> bool:
    """Whether the lowest loss lies neither at the smallest nor at the largest size."""
    return len(cells) >= 3 and 0 < lowest(cells) < len(cells) - 1


def fit_bowl(cells: Sequence[Cell], width: int = 5) -> Bowl:
    """Least-squares parabola in ln N through the `width` cells nearest the lowest one.

    Raises HerdError for fewer than three cells or where the parabola opens downwards, naming the budget.
    """
    cells = sorted(cells, key=lambda c: c.parameters)
    if len(cells) < 3:
        raise HerdError(f"budget {cells[0].budget_flops:.3g} FLOPs: {len(cells)} cells; a parabola needs three")
    bottom = lowest(cells)
    start = max(0, min(bottom - width // 2, len(cells) - width))
    near = cells[start : start + width]
    x, loss = np.log([c.parameters for c in near]), np.array([c.loss for c in near])
    a, b, c = np.polyfit(x - x.mean(), loss, 2)
    offset = -b / (2 * a) if a > 0 else math.inf
    if abs(offset) > FARTHEST_OPTIMUM:
        raise HerdError(f"budget {near[0].budget_flops:.3g} FLOPs: losses form no bowl over size; widen scaling.grid")
    optimum = math.exp(offset + x.mean())
    # Tokens at the optimum: at a fixed budget ln D falls with ln N almost in a line, so interpolate there.
    slope, level = np.polyfit(x, np.log([c.tokens for c in near]), 1)
    return Bowl(
        near[0].budget_flops,
        optimum,
        math.exp(slope * math.log(optimum) + level),
        float(c - b * b / (4 * a)),
        float(a),
        tuple(float(r) for r in loss - np.polyval((a, b, c), x - x.mean())),
        is_bracketed(cells),
    )


def by_budget(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells grouped by budget, smallest budget first, each group sorted by size."""
    budgets = sorted({c.budget_flops for c in cells})
    return [sorted((c for c in cells if c.budget_flops == b), key=lambda c: c.parameters) for b in budgets]
