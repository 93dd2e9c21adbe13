"""A forecast is right on data whose law is known, is as sure as it says, and refuses what it has not seen."""

import dataclasses
import json
import math

import numpy as np
import pytest

from herd.console import HerdError
from herd.scaling import forecast as forecasting
from herd.scaling.forecast import Forecast, extrapolate_loss, forecast
from herd.scaling.isoflop import Cell, fit_bowl

# L = E + A / N^a + B / D^b with C = 6 N D; losses and slopes of the size that small models have.
E, A, B, a, b = 2.0, 60.0, 150.0, 0.35, 0.35
BUDGETS = (1e13, 3e13, 1e14)
BEYOND = 3e14


def law(parameters: float, budget: float) -> float:
    return E + A / parameters**a + B / (budget / (6 * parameters)) ** b


def best_size(budget: float) -> float:
    return (a * A / (b * B)) ** (1 / (a + b)) * (budget / 6) ** (b / (a + b))


def ladder(noise: float, seed: int, cells: int = 5, ratio: float = 1.8, shift: float = 0.15) -> list[Cell]:
    random = np.random.default_rng(seed)
    sizes = {c: [round(best_size(c) * ratio ** (i - cells // 2 + shift)) for i in range(cells)] for c in BUDGETS}
    return [Cell(c, n, round(c / 6 / n), law(n, c) + noise * random.normal()) for c in BUDGETS for n in sizes[c]]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(forecasting, "DRAWS", 150)


def test_a_known_law_is_forecast_three_times_beyond():
    found = forecast(ladder(0.002, 0), BEYOND, seed=1)
    truth = law(best_size(BEYOND), BEYOND)
    assert found.parameters == pytest.approx(best_size(BEYOND), rel=0.1)
    assert found.tokens == pytest.approx(BEYOND / 6 / best_size(BEYOND), rel=0.1)
    assert found.parameters * found.tokens * 6 == pytest.approx(BEYOND, rel=0.02)
    assert found.loss == pytest.approx(truth, rel=0.01)
    assert found.loss_interval.low <= truth <= found.loss_interval.high
    assert found.parameters_interval.low <= best_size(BEYOND) <= found.parameters_interval.high
    assert found.exponent_interval.low <= b / (a + b) <= found.exponent_interval.high
    assert found.noise == pytest.approx(0.002, rel=0.6)
    for factor in (0.6, 1.5):
        size = factor * best_size(BEYOND)
        assert found.loss_of_size(size) - found.loss == pytest.approx(law(size, BEYOND) - truth, abs=0.01)
    assert found.loss_of_size(found.parameters) == found.loss


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """60 ladders that differ in their noise, 90% intervals. The loss is that of one new run, its own noise included."""
    hits = {"size": 0, "loss": 0, "exponent": 0}
    for seed in range(60):
        found = forecast(ladder(0.004, seed), BEYOND, seed=seed, confidence=0.9)
        new_run = law(best_size(BEYOND), BEYOND) + 0.004 * np.random.default_rng(10_000 + seed).normal()
        hits["size"] += found.parameters_interval.low <= best_size(BEYOND) <= found.parameters_interval.high
        hits["loss"] += found.loss_interval.low <= new_run <= found.loss_interval.high
        hits["exponent"] += found.exponent_interval.low <= b / (a + b) <= found.exponent_interval.high
    assert all(hit / 60 >= 0.75 for hit in hits.values()), hits


def test_more_noise_is_a_wider_interval():
    widths = [np.ptp(forecast(ladder(noise, 3), BEYOND, seed=1).loss_interval) for noise in (0.001, 0.004, 0.01)]
    assert widths == sorted(widths) and widths[2] > 3 * widths[0]


def test_a_forecast_is_a_function_of_its_cells_and_seed():
    cells = ladder(0.004, 5)
    assert forecast(cells, BEYOND, 1) == forecast(cells[::-1], BEYOND, 1)
    assert forecast(cells, BEYOND, 1) != forecast(cells, BEYOND, 2)


def test_a_forecast_survives_json():
    found = forecast(ladder(0.004, 2), BEYOND, seed=1)
    again = Forecast.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert again.size_law(BEYOND) == found.parameters and again.loss_interval.low == found.loss_interval.low


@pytest.mark.parametrize("shift", [-2.4, 2.4], ids=["optimum above all sizes", "optimum below all sizes"])
def test_a_minimum_at_the_edge_is_not_extrapolated(shift):
    where = r"at 1e\+13 FLOPs the lowest loss lies at the edge of the sizes tried \([\d,]+ to [\d,]+ parameters\)"
    with pytest.raises(HerdError, match=f"forecast: {where}"):
        forecast(ladder(0, 0, shift=shift), BEYOND, seed=1)


def test_too_little_is_refused():
    cells = ladder(0.004, 1)
    with pytest.raises(HerdError, match="2 budgets; three are needed"):
        forecast([c for c in cells if c.budget_flops < 1e14], BEYOND, seed=1)
    with pytest.raises(HerdError, match=r"three cells a budget; set scaling\.cells_per_budget to 4"):
        forecast(ladder(0, 1, cells=3), BEYOND, seed=1)
    # a pattern that no parabola holds, so all of it is noise, over a bowl a hundred times shallower
    pattern, bowl = (-0.1, 0.4, -0.6, 0.4, -0.1), (0.004, 0.001, 0.0, 0.001, 0.004)
    shallow = [dataclasses.replace(c, loss=4 + pattern[i % 5] + bowl[i % 5]) for i, c in enumerate(cells)]
    with pytest.raises(HerdError, match="too shallow for their noise"):
        forecast(shallow, BEYOND, seed=1)


@pytest.mark.parametrize("floor_share", [0.0, 0.3, 0.6])
def test_bottoms_on_a_law_with_a_floor_are_extrapolated(floor_share):
    """The floor is searched in steps of a twentieth of the lowest bottom: the loss is right to 0.3%."""
    bowls = []
    for budget in BUDGETS:
        loss = 4.0 * (floor_share + (1 - floor_share) * (budget / 1e14) ** -0.12)
        bowls.append(
            fit_bowl(
                [
                    Cell(budget, n, round(budget / 6 / n), loss + 0.1 * math.log(n / 1e6) ** 2)
                    for n in (5 * 10**5, 10**6, 2 * 10**6)
                ]
            )
        )
    truth = 4.0 * (floor_share + (1 - floor_share) * 3**-0.12)
    assert extrapolate_loss(bowls, BEYOND) == pytest.approx(truth, rel=0.003)
