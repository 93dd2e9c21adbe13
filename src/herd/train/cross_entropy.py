"""Output head and cross-entropy in one, in chunks of rows, so that the logits never exist as a whole.

Chunks are large, since each reads and writes the weight's gradient once more; within them, on a CPU, the softmax works
on pieces that stay in a core's cache until its gradient has replaced the logits. At a vocabulary of 8,192, 4,096 rows
and one core this took 216 ms, of which the products need 180, where chunks of 256 rows took 326.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 26  # 128 MB in bfloat16
CHUNK_ROWS = 256  # at least: with fewer the products are slower than the memory they save is worth
PIECE_LOGITS = 1 << 18  # a megabyte in float32


def linear_cross_entropy(hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over rows of the cross-entropy (nats) of softmax(hidden @ weight.T); products in `dtype`, softmax in float32.

    The weight's gradient is accumulated in float32 over the chunks (paper 3.3.2). Rows are R = B * T flattened.
    """
    return cast(Tensor, _LinearCrossEntropy.apply(hidden_RD, weight_VD, targets_R, dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    """Both gradients are made in the forward pass, while a chunk's logits are there; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, dtype: torch.dtype) -> Tensor:
        wide, vocabulary = torch.promote_types(dtype, torch.float32), len(weight_VD)
        weight = weight_VD.to(dtype)
        d_hidden, d_weight = torch.empty_like(hidden_RD), None
        loss = torch.zeros((), dtype=wide, device=hidden_RD.device)
        rows = max(CHUNK_ROWS, CHUNK_LOGITS // vocabulary)
        piece_rows = max(1, PIECE_LOGITS // vocabulary) if hidden_RD.device.type == "cpu" else rows
        for start in range(0, len(hidden_RD), rows):
            hidden, targets = hidden_RD[start : start + rows].to(dtype), targets_R[start : start + rows]
            logits = hidden @ weight.T
            for piece, chosen in zip(logits.split(piece_rows), targets.split(piece_rows), strict=True):
                loss += _to_gradient(piece, chosen.unsqueeze(1), wide)
            d_hidden[start : start + rows] = logits @ weight
            product = logits.T @ hidden
            d_weight = product if d_weight is None else d_weight.to(wide).add_(product)
        if d_weight is None:  # no rows
            d_weight = torch.zeros_like(weight_VD, dtype=wide)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = gradients[0]
        scaled = d_weight * scale if d_weight.dtype == scale.dtype else d_weight.to(scale.dtype).mul_(scale)
        return d_hidden * scale, scaled.to(ctx.weight_dtype), None, None


def _to_gradient(logits_RV: Tensor, targets_R1: Tensor, wide: torch.dtype) -> Tensor:
    """Summed cross-entropy of the logits, which are replaced by its gradient by them.

    The largest probability is at least 1 / V, so its logarithm is exact where the target's own may have underflowed.
    """
    logits = logits_RV.to(wide)
    probabilities = logits.softmax(-1)
    log_sums = logits.amax(-1) - probabilities.amax(-1).log()
    loss = log_sums.sum() - logits.gather(1, targets_R1).sum()
    logits_RV.copy_(probabilities.scatter_add_(1, targets_R1, probabilities.new_full(targets_R1.shape, -1.0)))
    return loss
