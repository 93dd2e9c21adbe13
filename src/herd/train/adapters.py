"""Low-rank adapters (LoRA, Hu et al. 2021): small matrices trained beside frozen weights.

A weight W becomes W + scale * B A. The sum is formed where the network reads `weight`, so every path of it, fused or
not, sees the adapted weight, and adapters shard and checkpoint like any other parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


class Adapter(nn.Module):
    """weight (N, D) -> weight + alpha / rank * up (N, rank) @ down (rank, D); `up` starts at zero."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def add_adapters(
    model: nn.Module, rank: int, alpha: float, generator: torch.Generator, matrices: Sequence[str] = MATRICES
) -> None:
    """Freeze a model and give the named matrices adapters, in place; `down` is drawn N(0, 1 / D) in the model's order.

    Raises ValueError for a name that the model has no matrix of.
    """
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] in matrices
    ]
    if missing := set(matrices) - {name.split(".")[-1] for name, _ in linears}:
        raise ValueError(f"no matrix is called {', '.join(sorted(missing))}")
    model.requires_grad_(False)
    for _, linear in linears:
        adapter = Adapter(linear.weight, rank, alpha)
        if not adapter.down.is_meta:
            with torch.no_grad():
                drawn = torch.randn(adapter.down.shape, generator=generator) * adapter.down.shape[1] ** -0.5
                adapter.down.copy_(drawn)
        parametrize.register_parametrization(linear, "weight", adapter)
        original = cast(nn.Parameter, linear.parametrizations["weight"].original)
        original.requires_grad_(False)


def merge_adapters(model: nn.Module) -> None:
    """Put the adapted weights in the place of weights and adapters, in place."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
