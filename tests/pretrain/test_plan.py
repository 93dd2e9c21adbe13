"""From a recipe to sizes, batches and steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from herd.console import HerdError
from herd.model.config import LLAMA3
from herd.pretrain.ladder import first_cells
from herd.pretrain.plan import forecast_size, member_plan, model_config, plan_budget
from herd.recipe import Scaling, Size, load_recipe

ROOT = Path(__file__).resolve().parents[2]
LAPTOP = load_recipe(ROOT / "recipes" / "laptop.toml")
PAPER = load_recipe(ROOT / "recipes" / "llama3.toml")
assert LAPTOP.scaling and LAPTOP.pretrain and PAPER.scaling and PAPER.pretrain
LAPTOP_SCALING, LAPTOP_PRETRAIN = LAPTOP.scaling, LAPTOP.pretrain
PAPER_SCALING, PAPER_PRETRAIN = PAPER.scaling, PAPER.pretrain


@pytest.mark.parametrize(("name", "size"), [("8b", "8B"), ("70b", "70B"), ("405b", "405B")])
def test_the_papers_members_have_the_released_shapes(name, size):
    member = PAPER.find_member(name)
    assert isinstance(member.size, Size)
    config = model_config(member.size, PAPER_PRETRAIN, PAPER.tokenizer.vocab_size)
    released = LLAMA3[size]
    assert config.parameters == released.parameters
    assert (config.head_dim, config.kv_heads, config.ffn_dim) == (128, 8, released.ffn_dim)


def test_the_papers_batch_ramp():
    """Spec 5.1: about 342K steps of 8M tokens, then about 759K of 16M; 6ND is the paper's 3.8e25."""
    plan = member_plan(PAPER_SCALING, PAPER_PRETRAIN, PAPER.find_member("405b"), 128_256, None)
    assert plan is not None
    first, second, third = plan.stretches
    assert first.steps == 60
    assert second.steps == pytest.approx(342_000, rel=0.01)
    assert third.steps == pytest.approx(759_000, rel=0.01)
    assert 6 * plan.config.parameters * plan.tokens == pytest.approx(3.8e25, rel=0.001)
    assert plan.schedule(7999) == pytest.approx(8e-5)


@pytest.mark.parametrize("budget", LAPTOP_SCALING.budgets_flops)
@pytest.mark.parametrize("size", LAPTOP_SCALING.grid, ids=lambda s: f"{s.layers}x{s.dim}")
def test_a_budget_is_spent(size, budget):
    config = model_config(size, LAPTOP_PRETRAIN, LAPTOP.tokenizer.vocab_size)
    plan = plan_budget(config, LAPTOP_PRETRAIN, budget)
    assert plan.flops <= budget
    assert plan.flops > 0.97 * budget


def test_a_budget_below_one_step_is_an_error():
    config = model_config(LAPTOP_SCALING.grid[0], LAPTOP_PRETRAIN, 2048)
    with pytest.raises(HerdError, match="less than one batch"):
        plan_budget(config, LAPTOP_PRETRAIN, 1e6)


@pytest.mark.parametrize("parameters", [60_000, 120_000, 300_000, 500_000, 780_000, 900_000, 2_000_000])
def test_a_forecast_size_is_near_what_was_forecast(parameters):
    size = forecast_size(parameters, LAPTOP_SCALING, LAPTOP_PRETRAIN, 2048)
    found = model_config(size, LAPTOP_PRETRAIN, 2048)
    assert found.matmul_parameters == pytest.approx(parameters, rel=0.15)
    assert found.dim % found.heads == 0  # or transformers would not load its export


def test_first_cells_lie_around_the_expected_optimum():
    counts = [model_config(s, LAPTOP_PRETRAIN, 2048).matmul_parameters for s in LAPTOP_SCALING.grid]
    expected = LAPTOP_SCALING.expected_optimum
    assert expected is not None
    chosen = first_cells(counts, LAPTOP_SCALING, expected.flops)
    assert len(chosen) == LAPTOP_SCALING.cells_per_budget
    assert counts[chosen[1]] < expected.parameters < counts[chosen[-2]]


def test_without_an_expectation_budgets_walk_up_the_grid():
    scaling = Scaling(budgets_flops=[1.0, 2.0, 3.0], forecast_flops=9.0, cells_per_budget=4)
    counts = list(range(1, 8))
    assert [first_cells(counts, scaling, b) for b in scaling.budgets_flops] == [
        [0, 1, 2, 3],
        [1, 2, 3, 4],
        [3, 4, 5, 6],
    ]
