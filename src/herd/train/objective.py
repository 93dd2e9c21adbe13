"""What a step minimises: next token, dialogs, reward (A6) and preference (A7).

Shape suffixes: B batch, T tokens, D model dim, R rows that are trained, V vocabulary, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.data.loader import Batch
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, document_mask
from herd.train.batches import IGNORED, DialogBatch, PreferenceBatch, RankedBatch
from herd.train.cross_entropy import linear_cross_entropy


@dataclass(frozen=True)
class Objective:
    """(model, batch, dtype) -> sum of the losses over what the batch counts, in nats. The loop divides by the count of
    the whole step, so that accumulated micro-batches weigh every token, or pair, the same.

    `loss(model, hidden_BTD, batch, dtype)` takes the network's normalised states and needs of the model its head
    alone: the last rank of a pipeline has no more.
    """

    loss: Callable[[Any, Tensor, Any, torch.dtype], Tensor]

    def __call__(self, model: Any, batch: Any, dtype: torch.dtype) -> Tensor:
        return self.loss(model, states(model, batch, dtype), batch, dtype)


def states(model: Any, batch: Any, dtype: torch.dtype) -> Tensor:
    """Normalised states (B, T, D) of a batch. Attention stays inside each packed document (paper 3.2).

    Padding stands at the end, where causal attention never looks; what of it lies beyond the context is cut off.
    """
    device = next(model.parameters()).device
    inputs, mask = batch.inputs, None
    if not isinstance(batch, Batch):
        inputs = inputs[:, : model.config.context]
    elif (batch.documents[:, 0] != batch.documents[:, -1]).any():
        mask = document_mask(torch.from_numpy(batch.documents).to(device))
    with computing_in(device, dtype):
        return model.hidden(torch.from_numpy(inputs).to(device), mask)


def _next_token(model: Any, hidden_BTD: Tensor, batch: Batch, dtype: torch.dtype) -> Tensor:
    targets_BT = torch.from_numpy(batch.targets).to(hidden_BTD.device)
    return _cross_entropy(hidden_BTD.flatten(0, 1), model.output.weight, targets_BT.flatten(), dtype)


def _dialog_tokens(model: Any, hidden_BTD: Tensor, batch: DialogBatch, dtype: torch.dtype) -> Tensor:
    targets_BT = _targets(batch, hidden_BTD)
    trained = targets_BT != IGNORED
    return _cross_entropy(hidden_BTD[trained], model.output.weight, targets_BT[trained], dtype)


def _cross_entropy(hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, dtype: torch.dtype) -> Tensor:
    """Summed over rows, whether the head is whole or spread over tensor parallel ranks."""
    if type(weight_VD) in (Tensor, nn.Parameter):
        return linear_cross_entropy(hidden_RD, weight_VD, targets_R, dtype)
    from herd.train.parallel.tensor import sharded_cross_entropy  # its imports take half a second

    return sharded_cross_entropy(hidden_RD, cast(Any, weight_VD), targets_R, dtype)


next_token = Objective(_next_token)  # cross-entropy of the next token
dialog_tokens = Objective(_dialog_tokens)  # of the assistant's tokens alone (paper 4.1.3); only they reach the head


def preference(beta: float, nll_weight: float) -> Objective:
    """DPO over pairs with log-probabilities of the reference given, and a weight on the chosen one's NLL (A7).

    Formatting tokens are masked out of the sums of both responses, but stay in the NLL, which is the mean over the
    chosen response's tokens.
    """

    def loss(model: Any, hidden_BTD: Tensor, batch: PreferenceBatch, dtype: torch.dtype) -> Tensor:
        logps_BT, targets_BT = _logprobs(model, hidden_BTD, batch, dtype)
        scored = torch.from_numpy(batch.scored[:, : logps_BT.shape[1]]).to(logps_BT.device)
        sums_B = (logps_BT * scored).sum(-1)
        gain_P2 = (sums_B - torch.from_numpy(batch.reference).to(sums_B)).view(-1, 2)
        chosen_PT, trained_PT = logps_BT[::2], targets_BT[::2] != IGNORED
        nll_P = -(chosen_PT * trained_PT).sum(-1) / trained_PT.sum(-1)
        return (F.softplus(-beta * (gain_P2[:, 0] - gain_P2[:, 1])) + nll_weight * nll_P).sum()

    return Objective(loss)


def token_logprobs(model: Transformer, batch: DialogBatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, zero where there is none, and the targets, both (B, T)."""
    return _logprobs(model, states(model, batch, dtype), batch, dtype)


def _logprobs(model: Any, hidden_BTD: Tensor, batch: DialogBatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    targets_BT = _targets(batch, hidden_BTD)
    trained = targets_BT != IGNORED
    with computing_in(hidden_BTD.device, dtype):
        logits_RV = model.output(hidden_BTD[trained])
    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    chosen_R = logits_RV.gather(1, targets_BT[trained][:, None])[:, 0] - logits_RV.logsumexp(-1)
    return chosen_R.new_zeros(targets_BT.shape).masked_scatter(trained, chosen_R), targets_BT


def _targets(batch: DialogBatch, hidden_BTD: Tensor) -> Tensor:
    return torch.from_numpy(batch.targets[:, : hidden_BTD.shape[1]]).to(hidden_BTD.device)


class RewardModel(nn.Module):
    """A network with a linear score of its last state in the place of the output head (spec 6.2)."""

    def __init__(self, body: Transformer) -> None:
        super().__init__()
        self.body = body
        self.score = nn.Linear(body.config.dim, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    @property
    def config(self) -> ModelConfig:
        return self.body.config

    def hidden(self, tokens_BT: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.body.hidden(tokens_BT, mask)

    def scores(self, batch: RankedBatch, dtype: torch.dtype) -> Tensor:
        """Score of each response at its last token, best ranked first, (rows, responses)."""
        return _scores(self, states(self, batch, dtype), batch)


def _scores(model: Any, hidden_BTD: Tensor, batch: RankedBatch) -> Tensor:
    ends_BR = torch.from_numpy(batch.ends).to(hidden_BTD.device)
    last_BRD = hidden_BTD.gather(1, ends_BR[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
    return model.score(last_BRD.to(model.score.weight.dtype))[..., 0]


def _reward(model: Any, hidden_BTD: Tensor, batch: RankedBatch, dtype: torch.dtype) -> Tensor:
    scores_BR = _scores(model, hidden_BTD, batch)
    better, worse = torch.triu_indices(scores_BR.shape[1], scores_BR.shape[1], 1)
    return F.softplus(scores_BR[:, worse] - scores_BR[:, better]).mean(-1).sum()


reward = Objective(_reward)  # mean over a row's ordered pairs of -log sigmoid(better - worse), no margin (A6)


def computing_in(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype` over float32 weights."""
    return torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))
