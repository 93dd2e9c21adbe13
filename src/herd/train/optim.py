"""AdamW as the recipe sets it, and the learning rate of a step (spec A1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from herd.recipe import Optimizer


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `peak`, then cosine to `final`; or linear to `final` where `linear` is set (annealing).

    `steps` is the horizon the decay ends at; the decay starts after the warm-up.
    """

    peak: float
    final: float
    warmup: int
    steps: int
    linear: bool = False

    def __call__(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = min(1.0, (step + 1 - self.warmup) / max(1, self.steps - self.warmup))
        share = 1 - progress if self.linear else 0.5 * (1 + math.cos(math.pi * progress))
        return self.final + (self.peak - self.final) * share


def adamw(parameters: Iterable[nn.Parameter], settings: Optimizer) -> torch.optim.AdamW:
    """AdamW with decoupled decay on matrices only: norms are not decayed (spec appendix B), frozen ones not trained."""
    parameters = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
