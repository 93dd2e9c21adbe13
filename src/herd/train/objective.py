"""What a step minimises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from herd.data.loader import Batch
from herd.model.transformer import Transformer, document_mask
from herd.train.cross_entropy import linear_cross_entropy

# Sum of the losses over the batch's targets in nats. The loop divides by the number of targets of the whole step, so
# that accumulated micro-batches weigh every token the same.
Objective = Callable[[Transformer, Batch, torch.dtype], Tensor]


def next_token(model: Transformer, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of the next token; attention stays inside each packed document (paper 3.2)."""
    device = model.tok_embeddings.weight.device
    inputs, targets = torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets).to(device)
    packed = bool((batch.documents[:, 0] != batch.documents[:, -1]).any())
    mask = document_mask(torch.from_numpy(batch.documents).to(device)) if packed else None
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32 and dtype != torch.float64):
        hidden_BTD = model.hidden(inputs, mask)
    return linear_cross_entropy(hidden_BTD.flatten(0, 1), model.output.weight, targets.flatten(), dtype)
