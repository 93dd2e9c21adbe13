"""Context parallelism: the positions of a sequence spread over ranks; keys and values are gathered (paper 3.3.2, A5).

A sequence is cut into 2 * CP chunks; rank i computes chunks i and 2 * CP - 1 - i, so that causal attention costs every
rank the same. Gathering, not a ring: grouped-query attention makes keys and values small, and masks stay simple.

Shape suffixes: B batch, H heads, K key-value heads, T this rank's positions, S all positions, E head dim.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from herd.console import HerdError
from herd.model.attention import attend
from herd.train.parallel.stage import Stage
from herd.train.parallel.torch_private import all_gather_sequence


def own_positions(length: int, cp: int, rank: int) -> Tensor:
    """True positions of a rank's tokens, (length / cp,). Raises HerdError where chunks would differ in length."""
    if length % (2 * cp):
        raise HerdError(f"compute.mesh.cp: sequences of {length} tokens can't be cut into {2 * cp} equal chunks")
    chunks = torch.arange(length).view(2 * cp, -1)
    return torch.cat((chunks[rank], chunks[2 * cp - 1 - rank]))


def spread_positions(stage: Stage, group: dist.ProcessGroup) -> None:
    """Let the stage's attention gather keys and values from all ranks of the group, in place."""
    for block in stage.blocks:
        block.attention.attend = partial(_attend_gathered, group)


def _attend_gathered(
    group: dist.ProcessGroup, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attention of this rank's positions to all; `mask` is (B, 1, T, S), its columns in the sequence's order."""
    cp, rank = dist.get_world_size(group), dist.get_rank(group)
    both = _in_order(all_gather_sequence(torch.stack((k_BKTE, v_BKTE)), 3, group), cp)
    chunk, outputs = q_BHTE.shape[2] // 2, []
    for half, place in enumerate((rank, 2 * cp - 1 - rank)):
        rows, end = slice(half * chunk, (half + 1) * chunk), (place + 1) * chunk
        own_mask = None if mask is None else mask[:, :, rows, :end]
        k, v = both[:, :, :, :end].unbind()
        outputs.append(attend(q_BHTE[:, :, rows], k, v, own_mask))
    return torch.cat(outputs, 2)


def _in_order(gathered: Tensor, cp: int) -> Tensor:
    """Chunks as the ranks gave them, (2, B, K, S, E), put into the sequence's order."""
    given = [place for rank in range(cp) for place in (rank, 2 * cp - 1 - rank)]
    order = torch.tensor(given, device=gathered.device).argsort()
    return gathered.unflatten(3, (2 * cp, -1)).index_select(3, order).flatten(3, 4)
