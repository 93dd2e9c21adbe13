"""Keys and values in blocks, and one forward pass over several sequences whose tokens stand in one row.

A pass takes any tokens of any sequences: first one each of those that decode, then the prompts' parts. Matrix products
see all of them at once; attention goes by sequence. What several decoding sequences have in common is held once and
read once: their queries meet it in one product (cascade attention; vLLM and FlashInfer do the same on GPUs).

Shape suffixes: N tokens of a pass, D of them decoding, H heads, K key-value heads, G query heads a key-value head,
E head dim, P tokens in common, S tokens of one's own, C places in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.model.attention import attend
from herd.model.config import ModelConfig

FEW_ROWS = 3


@dataclass(frozen=True)
class Part:
    """Tokens `start` .. `end`-1 of a sequence whose keys and values stand in `blocks`."""

    blocks: Sequence[int]
    start: int
    end: int


class PagedCache:
    """The memory of all blocks. `begin` a pass, then run the network with this as its cache.

    `block` tokens a block. Memory is taken by the system when a block is first written.
    """

    def __init__(self, config: ModelConfig, blocks: int, block: int, dtype: torch.dtype, device: torch.device) -> None:
        self.block = block
        shape = (config.layers, 2, config.kv_heads, blocks * block, config.head_dim)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.end = 0  # the length of the pass's longest sequence
        self._groups: list[_Group] = []
        self._prompts: list[tuple[slice, Tensor]] = []

    def begin(self, parts: Sequence[Part], apart: bool = False) -> None:
        """Plan a pass over these parts' tokens, in this order; parts of one token that end a longer sequence first.

        `apart`: what a sequence attends to is computed without regard to the others'.
        """
        decoding = next((at for at, part in enumerate(parts) if not decodes(part)), len(parts))
        groups = [range(row, row + 1) for row in range(decoding)] if apart else _alike(parts[:decoding], self.block)
        lengths = [part.end - part.start for part in parts]
        self.end = max(part.end for part in parts)
        self._positions = self._tensor([position for part in parts for position in range(part.start, part.end)])
        places = [self._places(part.blocks, part.end) for part in parts]
        self._new = torch.cat([place[part.start :] for place, part in zip(places, parts, strict=True)])
        self._groups = [_group(self, places, parts, rows) for rows in groups]
        self._prompts, at = [], decoding
        for length, place in zip(lengths[decoding:], places[decoding:], strict=True):
            self._prompts.append((slice(at, at + length), place))
            at += length

    @property
    def positions(self) -> Tensor:
        """Of the pass's tokens, (1, N)."""
        return self._positions[None]

    def attend(self, layer: int, q_1HNE: Tensor, k_1KNE: Tensor, v_1KNE: Tensor) -> Tensor:
        """Store the pass's keys and values and attend to each sequence's own, (1, H, N, E)."""
        keys_KCE, values_KCE = self.values[layer]
        keys_KCE.index_copy_(1, self._new, k_1KNE[0])
        values_KCE.index_copy_(1, self._new, v_1KNE[0])
        out_1HNE = torch.empty_like(q_1HNE)
        for group in self._groups:
            out_1HNE[0, :, group.rows] = group.attend(q_1HNE[0, :, group.rows], keys_KCE, values_KCE)
        for tokens, places in self._prompts:
            k, v = keys_KCE.index_select(1, places)[None], values_KCE.index_select(1, places)[None]
            out_1HNE[:, :, tokens] = attend(q_1HNE[:, :, tokens], k, v)
        return out_1HNE

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a block into another."""
        from_, to = source * self.block, target * self.block
        self.values[..., to : to + tokens, :] = self.values[..., from_ : from_ + tokens, :]

    def _places(self, blocks: Sequence[int], tokens: int) -> Tensor:
        """Where the first tokens of a sequence stand."""
        firsts = self._tensor(blocks)[:, None] * self.block
        return (firsts + torch.arange(self.block, device=firsts.device)).flatten()[:tokens]

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.values.device)


@dataclass(frozen=True)
class _Group:
    """Decoding sequences, rows of the pass, that begin with the same blocks."""

    rows: slice
    common_P: Tensor
    own_DS: Tensor  # places; those beyond a sequence's end are any
    seen_DS: Tensor | None  # which of them count, None: all

    def attend(self, q_HDE: Tensor, keys_KCE: Tensor, values_KCE: Tensor) -> Tensor:
        """Softmax over what is in common and one's own together; float32 inside."""
        kv_heads, (count, own) = len(keys_KCE), self.own_DS.shape
        q_KDGE = q_HDE.unflatten(0, (kv_heads, -1)).transpose(1, 2) * q_HDE.shape[-1] ** -0.5
        shape = (kv_heads, count, own, -1)
        k_KDSE = keys_KCE.index_select(1, self.own_DS.flatten()).view(shape)
        v_KDSE = values_KCE.index_select(1, self.own_DS.flatten()).view(shape)
        scores = (k_KDSE @ q_KDGE.mT).mT.float()  # keys first: twice as fast in bf16 on a CPU
        if self.seen_DS is not None:
            scores.masked_fill_(~self.seen_DS[:, None], -torch.inf)
        common = len(self.common_P)
        if not common:
            out_KDGE = scores.softmax(-1).to(v_KDSE.dtype) @ v_KDSE
            return out_KDGE.transpose(1, 2).flatten(0, 1)
        k_KPE, v_KPE = keys_KCE.index_select(1, self.common_P), values_KCE.index_select(1, self.common_P)
        before = (q_KDGE.flatten(1, 2) @ k_KPE.mT).view(kv_heads, count, -1, common)
        chances = torch.cat((before.float(), scores), -1).softmax(-1).to(v_KDSE.dtype)
        out = (chances[..., :common].flatten(1, 2) @ v_KPE).view(q_KDGE.shape) + chances[..., common:] @ v_KDSE
        return out.transpose(1, 2).flatten(0, 1)


def decodes(part: Part) -> bool:
    """Whether it is one token that continues what the cache holds."""
    return part.end - part.start == 1 and part.start > 0


def _group(cache: PagedCache, places: Sequence[Tensor], parts: Sequence[Part], rows: range) -> _Group:
    """Plan the attention of some rows: what they have in common, and a rectangle of the rest."""
    members = [parts[row] for row in rows]
    common = _common([part.blocks[: (part.end - 1) // cache.block] for part in members]) * cache.block
    own = [places[row][common:] for row in rows]
    longest = max(map(len, own))
    own_DS = torch.stack([torch.nn.functional.pad(place, (0, longest - len(place))) for place in own])
    seen = None
    if any(len(place) < longest for place in own):
        lengths = torch.tensor([len(place) for place in own], device=own_DS.device)
        seen = torch.arange(longest, device=own_DS.device) < lengths[:, None]
    return _Group(slice(rows.start, rows.stop), places[rows.start][:common], own_DS, seen)


def _alike(parts: Sequence[Part], block: int) -> list[range]:
    """Neighbouring rows that have at least half of their blocks in common; all rows as one group where few have.

    Groups of fewer than `FEW_ROWS` rows on average cost more calls than their sharing saves.
    """
    if not parts:
        return []
    full = [part.blocks[: (part.end - 1) // block] for part in parts]
    starts = [0]
    for at in range(1, len(parts)):
        if 2 * _common(full[at - 1 : at + 1]) < min(len(full[at - 1]), len(full[at])):
            starts.append(at)
    if len(starts) * FEW_ROWS > len(parts):
        starts = starts[:1]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(parts)], strict=True)]


def _common(lists: Sequence[Sequence[int]]) -> int:
    """How many of the first entries all lists have in common."""
    count = min(map(len, lists))
    for at in range(count):
        if any(blocks[at] != lists[0][at] for blocks in lists[1:]):
            return at
    return count
