"""The learning rate of a step, and AdamW against one written out by hand in float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.recipe import Optimizer
from herd.train.optim import Schedule, adamw

CONFIG = ModelConfig(2, 16, 2, 1, 24, 30, 8, 16, tied_embeddings=True)
schedules = st.builds(
    lambda peak, share, warmup, decay, linear: Schedule(peak, share * peak, warmup, warmup + decay, linear),
    st.floats(1e-6, 1), st.floats(0, 0.99), st.integers(0, 50), st.integers(1, 300), st.booleans(),
)  # fmt: skip


@given(schedules)
def test_the_rate_rises_in_a_line_to_its_peak_and_falls_to_its_end(schedule):
    rates = [schedule(step) for step in range(schedule.steps)]
    rising, falling = rates[: schedule.warmup], rates[schedule.warmup :]
    assert rising == pytest.approx([schedule.peak * (i + 1) / schedule.warmup for i in range(schedule.warmup)])
    assert all(first >= second for first, second in pairwise(falling))
    assert rates[-1] == pytest.approx(schedule.final, abs=1e-12 * schedule.peak)
    assert all(0 <= rate <= schedule.peak * (1 + 1e-12) for rate in rates)
    assert schedule(schedule.steps + 100) == pytest.approx(
        schedule.final, abs=1e-12 * schedule.peak
    )  # past the horizon it stays


def test_the_papers_cosine():
    """Spec A1: 8,000 steps of warm-up to 8e-5, cosine to 8e-7 at 1,200,000."""
    schedule = Schedule(8e-5, 8e-7, 8000, 1_200_000)
    assert schedule(7999) == 8e-5 and schedule(3999) == 4e-5
    for step in (8000, 100_000, 604_000, 1_199_999):
        progress = (step + 1 - 8000) / (1_200_000 - 8000)
        assert schedule(step) == pytest.approx(
            8e-7 + 0.5 * (8e-5 - 8e-7) * (1 + math.cos(math.pi * progress)), rel=1e-12
        )
    assert schedule(1_199_999) == pytest.approx(8e-7)


def test_annealing_falls_in_a_line_to_zero():
    rates = [Schedule(8e-7, 0.0, 0, 10, linear=True)(step) for step in range(10)]
    assert np.diff(rates) == pytest.approx(-8e-8) and rates[0] < 8e-7 and rates[-1] == 0


def test_torchs_cosine_agrees():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.3)
    ours = Schedule(3.0, 0.3, 0, 50)
    for step in range(50):
        optimizer.step()
        theirs.step()
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0])


def test_norms_are_not_decayed_and_nothing_is_left_out():
    model = Transformer(CONFIG)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        g["weight_decay"]: {names[id(p)] for p in g["params"]}
        for g in adamw(model.parameters(), Optimizer(weight_decay=0.3)).param_groups
    }
    assert groups[0.0] == {name for name in names.values() if "norm" in name}
    assert groups[0.3] | groups[0.0] == set(names.values()) and not groups[0.3] & groups[0.0]
    frozen = model.layers[0].requires_grad_(False)
    left = {id(p) for g in adamw(model.parameters(), Optimizer()).param_groups for p in g["params"]}
    assert left.isdisjoint(map(id, frozen.parameters()))


def test_steps_equal_an_adamw_written_out_in_float64():
    """Decoupled decay (Loshchilov & Hutter, algorithm 2): lr * weight_decay * weight, outside the moments."""
    torch.manual_seed(0)
    settings = Optimizer(betas=(0.8, 0.97), eps=1e-6, weight_decay=0.2)
    model = Transformer(CONFIG).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    optimizer = adamw(model.parameters(), settings)
    ours = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in ours.items()}
    for step, rate in enumerate([0.01, 0.02, 0.005], 1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            g, (m, v) = p.grad.numpy(), moments[name]
            m, v = 0.8 * m + 0.2 * g, 0.97 * v + 0.03 * g * g
            moments[name] = (m, v)
            decayed = ours[name] * (1 - rate * (0.2 if p.dim() > 1 else 0.0))
            ours[name] = decayed - rate * (m / (1 - 0.8**step)) / (np.sqrt(v / (1 - 0.97**step)) + 1e-6)
        optimizer.step()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), ours[name], rtol=1e-9, atol=1e-12)
