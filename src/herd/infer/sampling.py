"""From logits to the next token: temperature, then top-k, then top-p; greedy at temperature 0.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.generation import Sampling


def random_stream(seed: int, index: int) -> torch.Generator:
    """The random numbers of prompt `index` of a call, on the CPU so that every device draws alike.

    Seed and index are hashed: neighbouring seeds share nothing, and prompt i does not depend on its neighbours.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw(logits_V: Tensor, sampling: Sampling, stream: torch.Generator) -> int:
    """The next token id for one row of float32 logits. Raises HerdError where the model gave NaN."""
    if torch.isnan(logits_V).any():
        raise HerdError("the model's logits are not numbers (NaN): its weights are damaged or its training diverged")
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial(probabilities(logits_V, sampling).cpu(), 1, generator=stream))


def probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from, shape (V,), float32, summing to 1.

    top_p keeps the smallest set of most probable tokens whose mass reaches it, so always at least one token.
    Needs a temperature above 0.
    """
    scaled = logits_V.float()
    scaled = (scaled - scaled.max()) / sampling.temperature  # shifted first: a tiny temperature must not overflow
    if 0 < sampling.top_k < scaled.numel():
        kept = scaled.topk(sampling.top_k).indices
        scaled = torch.full_like(scaled, -torch.inf).index_copy_(0, kept, scaled[kept])
    chances = scaled.softmax(-1)
    if sampling.top_p < 1:
        ranked, order = chances.sort(descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        chances = chances.index_fill(0, order[before >= sampling.top_p], 0.0)
    return chances / chances.sum()
