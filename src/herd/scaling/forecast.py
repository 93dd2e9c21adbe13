"""From a table of ladder runs to a forecast of the flagship: its best size, its tokens, and its loss with an interval.

Method: a parabola for each budget; a power law through the optimal sizes; a power law L = E + B * C^-b through the
bottoms, E between nothing and four fifths of the lowest of them. All of it is fitted anew to many ladders redrawn
with the noise that the parabolas left, so the interval holds both that noise and how little three budgets say of E.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from herd.console import HerdError
from herd.intervals import Interval, percentiles
from herd.scaling.isoflop import Bowl, Cell, by_budget, fit_bowl
from herd.scaling.power_law import PowerLaw, fit_power_law

DRAWS = 2000
FLOOR_SHARES = np.linspace(0.0, 0.8, 17)


@dataclass(frozen=True)
class Forecast:
    """What the ladder says about a budget it has not seen. Loss in nats a token, sizes in parameters."""

    budget_flops: float
    parameters: float
    parameters_interval: Interval
    tokens: float
    loss: float
    loss_interval: Interval
    confidence: float
    size_law: PowerLaw
    token_law: PowerLaw
    exponent_interval: Interval
    curvature: float
    noise: float
    bowls: tuple[Bowl, ...]

    def loss_of_size(self, parameters: float) -> float:
        """Forecast loss of a size near the optimum, by the mean curvature of the bowls."""
        return self.loss + self.curvature * (math.log(parameters) - math.log(self.parameters)) ** 2

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Forecast:
        """Inverse of `to_dict`."""
        intervals = {k: Interval(*values[k]) for k in ("parameters_interval", "loss_interval", "exponent_interval")}
        laws = {k: PowerLaw(**values[k]) for k in ("size_law", "token_law")}
        bowls = tuple(Bowl(**{**b, "residuals": tuple(b["residuals"])}) for b in values["bowls"])
        return Forecast(**{**values, **intervals, **laws, "bowls": bowls})


def forecast(cells: Sequence[Cell], budget_flops: float, seed: int, confidence: float = 0.9) -> Forecast:
    """Forecast the compute-optimal model of `budget_flops` from finished cells.

    Raises HerdError for fewer than three budgets, or where a budget's minimum lies at the edge of its sizes: an
    optimum that was not seen from both sides is not extrapolated (spec 3.2).
    """
    groups = by_budget(cells)
    if len(groups) < 3:
        raise HerdError(f"forecast: {len(groups)} budgets; three are needed")
    bowls = [fit_bowl(group) for group in groups]
    for bowl, group in zip(bowls, groups, strict=True):
        sizes = [c.parameters for c in group]
        if not bowl.bracketed or not sizes[0] <= bowl.optimum_parameters <= sizes[-1]:
            raise HerdError(
                f"forecast: at {bowl.budget_flops:.3g} FLOPs the lowest loss lies at the edge of the sizes tried "
                f"({sizes[0]:,} to {sizes[-1]:,} parameters); add sizes to scaling.grid or raise scaling.extra_cells"
            )
    noise = _noise(bowls)
    draws = _draws(groups, budget_flops, noise, np.random.default_rng(seed))
    optimum = fit_power_law([b.budget_flops for b in bowls], [b.optimum_parameters for b in bowls])
    return Forecast(
        budget_flops,
        optimum(budget_flops),
        percentiles(draws[:, 1], confidence),
        fit_power_law([b.budget_flops for b in bowls], [b.optimum_tokens for b in bowls])(budget_flops),
        float(np.median(draws[:, 0])),
        percentiles(draws[:, 0], confidence),
        confidence,
        optimum,
        fit_power_law([b.budget_flops for b in bowls], [b.optimum_tokens for b in bowls]),
        percentiles(draws[:, 2], confidence),
        float(np.mean([b.curvature for b in bowls])),
        noise,
        tuple(bowls),
    )


def extrapolate_loss(bowls: Sequence[Bowl], budget_flops: float) -> float:
    """Loss at a budget by L = E + B * C^-b through the bowls' bottoms.

    E is the share of the lowest bottom, from 0 to 0.8 in steps, that leaves the straightest line in logarithms.
    """
    budgets, losses = np.log([b.budget_flops for b in bowls]), np.array([b.loss for b in bowls])
    floors = FLOOR_SHARES * losses.min()
    logs = np.log(losses[:, None] - floors)
    (slopes, levels), residuals, *_ = np.polyfit(budgets, logs, 1, full=True)
    best = int(np.argmin(residuals / slopes**2))
    return float(floors[best] + np.exp(levels[best] + slopes[best] * math.log(budget_flops)))


def _noise(bowls: Sequence[Bowl]) -> float:
    """Standard deviation of a cell's loss around its parabola, pooled; a parabola spends three degrees of freedom."""
    freedom = sum(len(b.residuals) - 3 for b in bowls)
    if freedom < 1:
        raise HerdError(
            "forecast: no interval can be given from three cells a budget; set scaling.cells_per_budget to 4 or more"
        )
    return math.sqrt(sum(r * r for b in bowls for r in b.residuals) / freedom)


def _draws(groups: Sequence[Sequence[Cell]], budget: float, noise: float, random: np.random.Generator) -> np.ndarray:
    """Rows of (loss of a new run, optimal parameters, size exponent) from cells redrawn with noise.

    A draw whose minima are not bracketed would itself have been refused, so it is no part of the interval.
    Raises HerdError where that is most of them.
    """
    rows: list[tuple[float, float, float]] = []
    for _ in range(DRAWS):
        redrawn = [
            [Cell(c.budget_flops, c.parameters, c.tokens, c.loss + noise * random.normal()) for c in g] for g in groups
        ]
        luck = noise * random.normal()
        bowls = _accepted(redrawn)
        if bowls is not None:
            law = fit_power_law([b.budget_flops for b in bowls], [b.optimum_parameters for b in bowls])
            rows.append((extrapolate_loss(bowls, budget) + luck, law(budget), law.exponent))
    if len(rows) < DRAWS // 2:
        raise HerdError(
            f"forecast: the bowls are too shallow for their noise of {noise:.3f} nats: only {len(rows)} of {DRAWS} "
            "redrawn ladders keep every minimum inside its sizes; raise scaling.cells_per_budget or the budgets"
        )
    return np.array(rows)


def _accepted(groups: Sequence[Sequence[Cell]]) -> list[Bowl] | None:
    """Bowls of a redrawn ladder, or None where one opens downwards or has its bottom outside the sizes tried."""
    try:
        bowls = [fit_bowl(group) for group in groups]
    except HerdError:
        return None
    inside = all(
        g[0].parameters <= b.optimum_parameters <= g[-1].parameters for b, g in zip(bowls, groups, strict=True)
    )
    return bowls if inside else None
