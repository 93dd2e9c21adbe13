"""Blocked attention gives torch's values and gradients, for any length, grouping and mask."""

import pytest
import torch
from torch.nn import functional as F

from herd.model import attention
from herd.model.attention import BLOCK_ROWS, BLOCKED_UP_TO, attend
from herd.model.transformer import document_mask


def inputs(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, width: int, dtype: torch.dtype = torch.float64
):
    torch.manual_seed(queries + heads)
    shapes = [(batch, heads, queries, width), (batch, kv_heads, keys, width), (batch, kv_heads, keys, width)]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def plainly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention by torch's own kernel, the key-value heads repeated as the released code does."""
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask)


def random_documents(batch: int, length: int) -> torch.Tensor:
    return (torch.rand(batch, length, generator=torch.Generator().manual_seed(length)) < 0.05).cumsum(1)


@pytest.mark.parametrize("length", [1, 2, 3, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("packed", [False, True], ids=["causal", "packed"])
def test_values_and_gradients_equal_torchs(length, heads, kv_heads, packed):
    mask = document_mask(random_documents(2, length)) if packed else None
    explicit = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask
    results = []
    for ours in (True, False):
        q, k, v = (t.requires_grad_() for t in inputs(2, heads, kv_heads, length, length, 6))
        out = attend(q, k, v, mask) if ours else plainly(q, k, v, explicit)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [1, 130, 200])
def test_the_training_path_and_the_inference_path_agree(length):
    q, k, v = inputs(1, 4, 2, length, length, 8)
    torch.testing.assert_close(attend(q.clone().requires_grad_(), k, v), attend(q, k, v), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (4, 9), (9, 9), (130, 200)])
def test_queries_are_the_last_of_the_keys(queries, keys):
    """With a cache T queries see S - T tokens before them, and not each other's future."""
    q, k, v = inputs(2, 4, 2, queries, keys, 8)
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    torch.testing.assert_close(attend(q, k, v), plainly(q, k, v, mask), rtol=1e-10, atol=1e-12)
    grad = attend(q.clone().requires_grad_(), k, v)  # the same where gradients are wanted
    torch.testing.assert_close(grad.detach(), attend(q, k, v), rtol=1e-10, atol=1e-12)


def test_beyond_the_blocked_length_training_still_has_the_right_gradients():
    length = BLOCKED_UP_TO + 1
    results = []
    for ours in (True, False):
        q, k, v = (t.requires_grad_() for t in inputs(1, 2, 1, length, length, 4))
        out = attend(q, k, v) if ours else plainly(q, k, v, torch.ones(length, length, dtype=torch.bool).tril())
        out.square().sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def test_gradients_that_arrive_transposed_are_read_rightly():
    """The network flattens heads after a transpose, so backward gets a gradient that is not contiguous."""
    results = []
    for ours in (True, False):
        q, k, v = (t.requires_grad_() for t in inputs(2, 4, 2, 150, 150, 6))
        out = attend(q, k, v) if ours else plainly(q, k, v, torch.ones(150, 150, dtype=torch.bool).tril())
        flat = out.transpose(1, 2).flatten(-2)
        (flat * torch.linspace(-1, 1, flat.numel(), dtype=flat.dtype).view_as(flat)).sum().backward()
        results.append((q.grad, k.grad, v.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_bfloat16_is_near_and_stays_bfloat16():
    q, k, v = inputs(2, 4, 2, 150, 150, 16, torch.float32)
    exact = plainly(q.double(), k.double(), v.double(), torch.ones(150, 150, dtype=torch.bool).tril())
    out = attend(q.bfloat16().requires_grad_(), k, v)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (4, 9), (9, 9), (130, 200)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernels_chosen_on_gpus_compute_the_same(queries, keys, masked):
    """Run on the CPU here: which kernel torch takes there is not shown, what it is asked for is."""
    q, k, v = inputs(2, 4, 2, queries, keys, 8)
    explicit = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(2, 1, -1, -1)
    found = attention._attend_on_gpu(q, k, v, explicit if masked else None)
    torch.testing.assert_close(found, plainly(q, k, v, explicit), rtol=1e-10, atol=1e-12)
