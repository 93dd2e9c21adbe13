"""From logits to the next token: repetition, temperature, top-k, min-p, top-p; greedy at temperature 0.

Shape suffixes: V vocabulary, C candidates.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from herd.model.generation import Sampling


def random_stream(seed: int, index: int) -> torch.Generator:
    """The random numbers of prompt `index` of a call, on the CPU so that every device draws alike.

    Seed and index are hashed: neighbouring seeds share nothing, and prompt i does not depend on its neighbours.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def weaken(logits_V: Tensor, seen: set[int], repetition: float) -> None:
    """Lessen the logits of tokens that came before, in place."""
    at = torch.tensor(sorted(seen))
    before = logits_V[at]
    logits_V[at] = torch.where(before > 0, before / repetition, before * repetition)


def draw(logits_V: Tensor, sampling: Sampling, stream: torch.Generator) -> int:
    """The next token id for one row of float32 logits on the CPU, -inf where a token may not come.

    Takes one number of the stream, unless greedy.
    """
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    ids_C, chances_C = candidates(logits_V, sampling)
    mass_C = chances_C.cumsum(0, dtype=torch.float64)
    point = torch.rand(1, generator=stream, dtype=torch.float64) * mass_C[-1]
    return int(ids_C[torch.searchsorted(mass_C, point, right=True).clamp_(max=len(ids_C) - 1)])


def candidates(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What is drawn from: token ids (C,) and their chances (C,), float32, summing to 1.

    top_p keeps the smallest set of most probable tokens whose mass reaches it, so always at least one token.
    Needs a temperature above 0.
    """
    scaled = (logits_V - logits_V.max()) / sampling.temperature  # shifted first: a tiny temperature must not overflow
    ids_C = torch.arange(len(scaled))
    if 0 < sampling.top_k < len(scaled):
        scaled, ids_C = scaled.topk(sampling.top_k)
    chances_C = scaled.softmax(-1)
    if sampling.min_p > 0:
        kept = chances_C >= sampling.min_p * chances_C.max()
        ids_C, chances_C = ids_C[kept], chances_C[kept] / chances_C[kept].sum()
    if sampling.top_p < 1:
        # Tokens below this share weigh less than 1 - top_p in all, so none is in the set: sort the few others only.
        likely = (chances_C >= (1 - sampling.top_p) / len(chances_C)).nonzero()[:, 0]
        ranked, order = chances_C[likely].sort(descending=True, stable=True)
        kept = ranked.cumsum(0) - ranked < sampling.top_p
        ids_C, chances_C = ids_C[likely[order[kept]]], ranked[kept]
    return ids_C, chances_C / chances_C.sum()
