"""How far a written model is from the one it was written from: logits on real text, both computed in float32.

Both are computed one layer at a time over all of the text, so a layer of each and the largest tensor are what has to be
in memory, not two models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.console import progress
from herd.model.config import ModelConfig
from herd.model.rope import rotary_frequencies, rotary_table
from herd.model.transformer import Block, RMSNorm

Module = TypeVar("Module", bound=nn.Module)
WINDOW_TOKENS = 512  # bounds the logits of a 128K vocabulary to 260 MB a model


@dataclass(frozen=True)
class Parity:
    """How far a model's logits are from a reference's over `tokens` positions of real text.

    `kl_nats` is the mean of KL(reference || model); `top1_agreement` a fraction from 0 to 1.
    """

    tokens: int
    max_abs_logit_error: float
    kl_nats: float
    top1_agreement: float


@torch.inference_mode()
def parity(config: ModelConfig, reference: Mapping[str, Tensor], model: Mapping[str, Tensor], tokens: Tensor) -> Parity:
    """Compare two sets of weights of one config on a 1-D tensor of token ids, in windows of at most 512."""
    windows = tokens.split(min(config.context, WINDOW_TOKENS))
    with progress("comparing logits, layer by layer", 2 * config.layers) as bar:
        wanted = last_states(config, reference, windows, lambda done: bar.update(done))
        had = last_states(config, model, windows, lambda done: bar.update(config.layers + done))
    head_wanted, head_had = _head(config, reference), _head(config, model)
    pairs = zip(wanted, had, strict=True)
    return compared((want @ head_wanted.T, have @ head_had.T) for want, have in pairs)


def compared(logits: Iterable[tuple[Tensor, Tensor]]) -> Parity:
    """How far the second of each two logits (T, V), float32, is from the first."""
    worst, kl, agreed, tokens = 0.0, 0.0, 0, 0
    for want, have in logits:
        error = (want - have).abs().max()
        worst = max(worst, float(error)) if not error.isnan() else float("nan")
        kl += float(F.kl_div(have.log_softmax(-1), want.log_softmax(-1), reduction="sum", log_target=True))
        agreed += int((want.argmax(-1) == have.argmax(-1)).sum())
        tokens += len(want)
    return Parity(tokens, worst, kl / tokens, agreed / tokens)


def last_states(
    config: ModelConfig, weights: Mapping[str, Tensor], windows: Sequence[Tensor], done: Callable[[int], None]
) -> list[Tensor]:
    """Normalised states (T, D) in float32 of windows of token ids; `done` is told how many layers are."""
    frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    cos_TF, sin_TF = rotary_table(frequencies, max(map(len, windows)))
    embeddings = weights["tok_embeddings.weight"]
    states = [embeddings[ids].float()[None] for ids in windows]
    for layer in range(config.layers):
        block = _loaded(Block(config, layer), weights, f"layers.{layer}.")
        states = [block(state, (cos_TF[: state.shape[1]], sin_TF[: state.shape[1]]), None, None) for state in states]
        done(layer + 1)
    norm = _loaded(RMSNorm(config.dim, config.norm_eps), weights, "norm.")
    return [norm(state)[0] for state in states]


def _loaded(module: Module, weights: Mapping[str, Tensor], prefix: str) -> Module:
    for name, place in module.named_parameters():
        place.copy_(weights[prefix + name])
    return module


def _head(config: ModelConfig, weights: Mapping[str, Tensor]) -> Tensor:
    return weights["tok_embeddings.weight" if config.tied_embeddings else "output.weight"].float()
