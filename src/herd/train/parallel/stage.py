"""A pipeline stage: the part of a network that it holds, and what it must know of each micro-batch.

Without pipeline parallelism there is one stage, and it is the whole network.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from herd.model.transformer import Block, Transformer
from herd.train.objective import computing_in


class Micro(NamedTuple):
    """The rotary tables and attention mask of one micro-batch, at the positions that this rank computes."""

    rope: tuple[Tensor, Tensor]
    mask: Tensor | None


class Stage(nn.Module):
    """Layers `layers` of a network, with the embedding where it is the first and the head where it is the last.

    Parameters keep the network's names. `micros` and `micro`, the number of the one that passes, are set by the step
    that runs; a number that came as a tensor would make a GPU's host wait for it.
    """

    def __init__(self, model: Transformer, layers: range, first: bool, last: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.first, self.last, self.dtype = model.config, first, last, dtype
        self.micros: list[Micro] = []
        self.micro = 0  # whose turn it is
        if first:
            self.tok_embeddings = model.tok_embeddings
        self.layers = nn.ModuleDict({str(layer): model.layers[layer] for layer in layers})
        if last:
            self.norm, self.output = model.norm, model.output

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.layers.values() if isinstance(block, Block)]

    def forward(self, x: Tensor) -> Tensor:
        """Token ids (B, T) of the first stage, or states (B, T, D) of the one before, to states; normalised ones from
        the last."""
        micro = self.micros[self.micro]
        with computing_in(x.device, self.dtype):
            h_BTD = self.tok_embeddings(x) if self.first else x
            for block in self.layers.values():
                h_BTD = block(h_BTD, micro.rope, micro.mask, None)
            return self.norm(h_BTD) if self.last else h_BTD
