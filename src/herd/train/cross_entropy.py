"""Output head and cross-entropy in one, in chunks of rows, so that the logits never exist as a whole.

At a vocabulary of 2,048 the plain form (logits, float32 copy, log-softmax, its gradient) took a fifth of a training
step on a CPU, most of it moving memory; in chunks that stay in the cache it takes a third of that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 256


def linear_cross_entropy(hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over rows of the cross-entropy (nats) of softmax(hidden @ weight.T); products in `dtype`, softmax in float32.

    The weight's gradient is accumulated in float32 over the chunks (paper 3.3.2). Rows are R = B * T flattened.
    """
    return _LinearCrossEntropy.apply(hidden_RD, weight_VD, targets_R, dtype)  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    """Both gradients are made in the forward pass, while a chunk's logits are there; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        weight = weight_VD.to(dtype)
        d_hidden, d_weight = torch.empty_like(hidden_RD), torch.zeros_like(weight_VD, dtype=wide)
        loss = torch.zeros((), dtype=wide, device=hidden_RD.device)
        for start in range(0, len(hidden_RD), CHUNK_ROWS):
            hidden, targets = (
                hidden_RD[start : start + CHUNK_ROWS].to(dtype),
                targets_R[start : start + CHUNK_ROWS, None],
            )
            logps = torch.log_softmax((hidden @ weight.T).to(wide), -1)
            chosen = logps.gather(1, targets)
            loss -= chosen.sum()
            d_logits = logps.exp_().scatter_add_(1, targets, torch.full_like(chosen, -1.0)).to(dtype)
            d_hidden[start : start + CHUNK_ROWS] = d_logits @ weight
            d_weight += d_logits.T @ hidden
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = gradients[0]
        return d_hidden * scale, (d_weight * scale).to(ctx.weight_dtype), None, None
