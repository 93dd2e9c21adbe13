"""What a step minimises: next token, dialogs, reward (A6) and preference (A7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.data.loader import Batch
from herd.model.transformer import Transformer, document_mask
from herd.train.batches import IGNORED, DialogBatch, PreferenceBatch, RankedBatch
from herd.train.cross_entropy import linear_cross_entropy

# (model, batch, dtype) -> sum of the losses over what the batch counts, in nats. The loop divides by the count of the
# whole step, so that accumulated micro-batches weigh every token, or pair, the same.
Objective = Callable[[Any, Any, torch.dtype], Tensor]


def next_token(model: Transformer, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of the next token; attention stays inside each packed document (paper 3.2)."""
    device = model.tok_embeddings.weight.device
    inputs, targets = torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets).to(device)
    packed = bool((batch.documents[:, 0] != batch.documents[:, -1]).any())
    mask = document_mask(torch.from_numpy(batch.documents).to(device)) if packed else None
    with computing_in(device, dtype):
        hidden_BTD = model.hidden(inputs, mask)
    return linear_cross_entropy(hidden_BTD.flatten(0, 1), model.output.weight, targets.flatten(), dtype)


def dialog_tokens(model: Transformer, batch: DialogBatch, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of the assistant's tokens alone (paper 4.1.3); only they pass through the output head."""
    hidden_BTD, targets_BT = _states(model, batch, dtype)
    trained = targets_BT != IGNORED
    return linear_cross_entropy(hidden_BTD[trained], model.output.weight, targets_BT[trained], dtype)


def preference(beta: float, nll_weight: float) -> Objective:
    """DPO over pairs with log-probabilities of the reference given, and a weight on the chosen one's NLL (A7).

    Formatting tokens are masked out of the sums of both responses, but stay in the NLL, which is the mean over the
    chosen response's tokens.
    """

    def loss(model: Transformer, batch: PreferenceBatch, dtype: torch.dtype) -> Tensor:
        logps_BT, targets_BT = token_logprobs(model, batch, dtype)
        scored = torch.from_numpy(batch.scored[:, : logps_BT.shape[1]]).to(logps_BT.device)
        sums_B = (logps_BT * scored).sum(-1)
        gain_P2 = (sums_B - torch.from_numpy(batch.reference).to(sums_B)).view(-1, 2)
        chosen_PT, trained_PT = logps_BT[::2], targets_BT[::2] != IGNORED
        nll_P = -(chosen_PT * trained_PT).sum(-1) / trained_PT.sum(-1)
        return (F.softplus(-beta * (gain_P2[:, 0] - gain_P2[:, 1])) + nll_weight * nll_P).sum()

    return loss


def token_logprobs(model: Transformer, batch: DialogBatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, zero where there is none, and the targets, both (B, T)."""
    hidden_BTD, targets_BT = _states(model, batch, dtype)
    trained = targets_BT != IGNORED
    with computing_in(hidden_BTD.device, dtype):
        logits_RV = model.output(hidden_BTD[trained])
    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    chosen_R = logits_RV.gather(1, targets_BT[trained][:, None])[:, 0] - logits_RV.logsumexp(-1)
    return chosen_R.new_zeros(targets_BT.shape).masked_scatter(trained, chosen_R), targets_BT


class RewardModel(nn.Module):
    """A network with a linear score of its last state in the place of the output head (spec 6.2)."""

    def __init__(self, body: Transformer) -> None:
        super().__init__()
        self.body = body
        self.score = nn.Linear(body.config.dim, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def scores(self, batch: RankedBatch, dtype: torch.dtype) -> Tensor:
        """Score of each response at its last token, best ranked first, (rows, responses)."""
        device = self.score.weight.device
        with computing_in(device, dtype):
            hidden_BTD = self.body.hidden(torch.from_numpy(batch.inputs[:, : self.body.config.context]).to(device))
        ends_BR = torch.from_numpy(batch.ends).to(device)
        last_BRD = hidden_BTD.gather(1, ends_BR[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
        return self.score(last_BRD.to(self.score.weight.dtype))[..., 0]


def reward(model: RewardModel, batch: RankedBatch, dtype: torch.dtype) -> Tensor:
    """Mean over a row's ordered pairs of -log sigmoid(better - worse), without a margin; summed over rows (A6)."""
    scores_BR = model.scores(batch, dtype)
    better, worse = torch.triu_indices(scores_BR.shape[1], scores_BR.shape[1], 1)
    return F.softplus(scores_BR[:, worse] - scores_BR[:, better]).mean(-1).sum()


def computing_in(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype` over float32 weights."""
    return torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))


def _states(model: Transformer, batch: DialogBatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states (B, T, D) and targets (B, T). Padding stands at the end, where causal attention never looks; what
    of it lies beyond the context is cut off.
    """
    device, end = model.tok_embeddings.weight.device, model.config.context
    with computing_in(device, dtype):
        hidden_BTD = model.hidden(torch.from_numpy(batch.inputs[:, :end]).to(device))
    return hidden_BTD, torch.from_numpy(batch.targets[:, :end]).to(device)
