"""Keys and values of the tokens a network has seen, so that it computes each of them once.

Shape suffixes: B batch, T new tokens, K key-value heads, E head dim, S tokens in the cache.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from herd.model.config import ModelConfig


class KVCache:
    """One pair of tensors a layer; each row holds as many tokens as it has seen.

    `used` has the token count of each row in use, the first rows of `values`; a row's tokens begin at place 0.
    A forward pass calls `extend` once, then `append` in each layer.
    """

    def __init__(self, config: ModelConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, 2, batch, config.kv_heads, length, config.head_dim)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.used = [0] * batch

    def extend(self, tokens: int) -> tuple[slice | Tensor, Tensor | None]:
        """Make place for `tokens` more in each row: their positions and who may attend to what.

        Rows of one length: a slice and None (causal). Otherwise int64 (B, T), and a mask as `attend` takes it,
        bool (B, 1, T, S).
        """
        starts, self.used = self.used, [used + tokens for used in self.used]
        if len(set(starts)) == 1:
            self._places = slice(starts[0], self.used[0])
            return self._places, None
        device = self.values.device
        self._rows_B1 = torch.arange(len(starts), device=device)[:, None]
        self._places = torch.tensor(starts, device=device)[:, None] + torch.arange(tokens, device=device)
        seen_S = torch.arange(max(self.used), device=device)
        return self._places, (seen_S <= self._places[:, :, None])[:, None]

    def append(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values behind each row's; returns the layer's so far, up to the longest row's end."""
        k_BKSE, v_BKSE = self.values[layer, :, : len(self.used)]
        if isinstance(self._places, slice):
            k_BKSE[:, :, self._places] = k_BKTE
            v_BKSE[:, :, self._places] = v_BKTE
        else:
            k_BKSE[self._rows_B1, :, self._places] = k_BKTE.transpose(1, 2)
            v_BKSE[self._rows_B1, :, self._places] = v_BKTE.transpose(1, 2)
        end = max(self.used)
        return k_BKSE[:, :, :end], v_BKSE[:, :, :end]

    def reserve(self, length: int) -> None:
        """Have room for rows of `length` tokens; what the rows hold stays."""
        layers, pair, batch, heads, room, width = self.values.shape
        if length > room:
            longer = self.values.new_zeros(layers, pair, batch, heads, length, width)
            rows, held = len(self.used), max(self.used, default=0)
            longer[:, :, :rows, :, :held] = self.values[:, :, :rows, :, :held]
            self.values = longer

    def add_row(self, source: KVCache, tokens: int) -> None:
        """Take the next row into use, with the first tokens of another cache's first row. There must be room."""
        self.values[:, :, len(self.used), :, :tokens] = source.values[:, :, 0, :, :tokens]
        self.used.append(tokens)

    def tail(self, first: int) -> KVCache:
        """The rows in use from `first` on as a cache of their own, in the same memory; its `used` is a copy."""
        part = copy(self)
        part.values, part.used = self.values[:, :, first:], self.used[first:]
        return part

    def drop_row(self, row: int) -> None:
        """Give a row up; the last row takes its place."""
        last, used = len(self.used) - 1, self.used[-1]
        if row != last:
            self.values[:, :, row, :, :used] = self.values[:, :, last, :, :used]
        self.used[row] = used
        self.used.pop()
