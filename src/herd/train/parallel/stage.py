"""A pipeline stage: the part of a network that it holds, and what it must know of each micro-batch.

Without pipeline parallelism there is one stage, and it is the whole network.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from herd.model.transformer import Block, Transformer


class Micro(NamedTuple):
    """The rotary tables and attention mask of one micro-batch, at the positions that this rank computes."""

    rope: tuple[Tensor, Tensor]
    mask: Tensor | None


class Stage(nn.Module):
    """Layers `layers` of a network, with the embedding where it is the first and the head where it is the last.

    Parameters keep the network's names. `micros` is set by the step that runs.
    """

    def __init__(self, model: Transformer, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        self.config, self.first, self.last = model.config, first, last
        self.micros: list[Micro] = []
        if first:
            self.tok_embeddings = model.tok_embeddings
        self.layers = nn.ModuleDict({str(layer): model.layers[layer] for layer in layers})
        if last:
            self.norm, self.output = model.norm, model.output

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.layers.values() if isinstance(block, Block)]

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Token ids (B, T) of the first stage, or states (B, T, D) of the one before, to states; normalised ones from
        the last. `index` (B,) holds the number of the micro-batch.
        """
        micro = self.micros[int(index[0])]
        h_BTD = self.tok_embeddings(x) if self.first else x
        for block in self.layers.values():
            h_BTD = block(h_BTD, micro.rope, micro.mask, None)
        return self.norm(h_BTD) if self.last else h_BTD
