"""The chunked output head gives torch's loss and gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from herd.train import cross_entropy
from herd.train.cross_entropy import CHUNK_ROWS, linear_cross_entropy


def both(rows: int, dim: int, vocabulary: int, dtype: torch.dtype, scale: float = 1.0):
    """(loss, hidden gradient, weight gradient) of ours and of torch's in float64."""
    torch.manual_seed(rows)
    hidden, weight = torch.randn(rows, dim, dtype=torch.float64), torch.randn(vocabulary, dim, dtype=torch.float64)
    targets = torch.randint(0, vocabulary, (rows,))
    results = []
    for ours in (True, False):
        h, w = (t.to(dtype if ours else torch.float64).requires_grad_() for t in (hidden, weight))
        loss = (
            linear_cross_entropy(h, w, targets, dtype) if ours else F.cross_entropy(h @ w.T, targets, reduction="sum")
        )
        (scale * loss).backward()
        results.append((loss.detach(), h.grad, w.grad))
    return results


@pytest.mark.parametrize("rows", [0, 1, 2, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 77])
@pytest.mark.parametrize("piece_rows", [100, 10_000], ids=["in pieces", "whole chunks"])
def test_equals_torch_in_float64(rows, piece_rows, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", CHUNK_ROWS * 37)
    monkeypatch.setattr(cross_entropy, "PIECE_LOGITS", piece_rows * 37)
    for ours, theirs in zip(*both(rows, 12, 37, torch.float64, scale=0.37), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_is_near(dtype, tolerance):
    for ours, theirs in zip(*both(300, 16, 50, dtype), strict=True):
        assert ours is not None and theirs is not None
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


def test_bfloat16_products_keep_a_float32_loss_and_gradients_in_the_types_of_the_inputs():
    hidden = torch.randn(300, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(300, dtype=torch.long), torch.bfloat16)
    loss.backward()
    assert hidden.grad is not None and weight.grad is not None
    assert (loss.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)


def test_the_loss_is_exact_where_the_targets_probability_underflows():
    hidden, weight = torch.tensor([[300.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.ones(1, dtype=torch.long), torch.float32)
    loss.backward()
    assert loss.item() == 600
    assert hidden.grad is not None and hidden.grad.item() == 2


def test_a_nearly_certain_target_keeps_its_small_gradient_in_bfloat16():
    """1 - p is 3e-4 here; p itself would round to 1 in bfloat16."""
    hidden, weight = torch.tensor([[8.0]], requires_grad=True), torch.tensor([[1.0], [0.0]], requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(1, dtype=torch.long), torch.bfloat16).backward()
    assert weight.grad is not None
    assert weight.grad[0].item() == pytest.approx(-8 / (1 + math.exp(8)), rel=1e-2)


def test_large_logits_do_not_overflow():
    hidden = torch.full((4, 2), 1e4, requires_grad=True)
    loss = linear_cross_entropy(
        hidden, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.zeros(4, dtype=torch.long), torch.float32
    )
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and hidden.grad.isfinite().all()


def test_a_weight_used_twice_collects_both_gradients():
    """As a tied head does: the embedding's gradient and the head's add up."""
    torch.manual_seed(0)
    ids, targets = torch.randint(0, 11, (30,)), torch.randint(0, 11, (30,))
    first, second = (torch.nn.Parameter(torch.linspace(-1, 1, 55, dtype=torch.float64).view(11, 5)) for _ in range(2))
    linear_cross_entropy(F.embedding(ids, first).tanh(), first, targets, torch.float64).backward()
    F.cross_entropy(F.embedding(ids, second).tanh() @ second.T, targets, reduction="sum").backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-11, atol=1e-12)
