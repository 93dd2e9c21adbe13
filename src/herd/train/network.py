"""What the loop trains: a network on one process. `parallel/network.py` has the same on a mesh of many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from herd.recipe_compute import Compute
from herd.train.hardware import Hardware
from herd.train.objective import Objective

MICRO_SEQUENCES = 64  # that pass through the network at once, where the recipe does not say


class TrainBatch(Protocol):
    """What a step trains on. `count` is what its summed loss is divided by: targets, or pairs."""

    @property
    def count(self) -> int: ...

    def split(self, rows: int) -> Iterator[TrainBatch]:
        """Micro-batches of at most so many rows."""
        ...


class Batches(Protocol):
    """Batches by step: a Loader, or anything that gives the same batch for the same step."""

    def __getitem__(self, step: int) -> Any: ...


class Network(Protocol):
    """A network in training, whole or spread over ranks."""

    parameters: dict[str, nn.Parameter]  # what of it lives here, by canonical name

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that an optimizer must step."""
        ...

    def accumulate(self, objective: Objective, batches: Batches, step: int) -> tuple[Tensor, int]:
        """Add a step's gradients; the mean loss, and what it was divided by, of all ranks."""
        ...

    def clip(self, norm: float) -> Tensor:
        """Scale the gradients down to a norm, over all ranks; the norm they had."""
        ...


class Whole:
    """A network on one process."""

    def __init__(self, model: nn.Module, hardware: Hardware, compute: Compute) -> None:
        self.parameters = dict(model.named_parameters())
        self._model, self._hardware = model, hardware
        self._micro_sequences = compute.micro_sequences or MICRO_SEQUENCES

    def accumulate(self, objective: Objective, batches: Batches, step: int) -> tuple[Tensor, int]:
        batch: TrainBatch = batches[step]
        count, total = batch.count, torch.zeros((), device=self._hardware.device)
        for part in batch.split(self._micro_sequences):
            loss = objective(self._model, part, self._hardware.dtype) / count
            loss.backward()
            total = total + loss.detach()
        return total, count

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        return self.parameters

    def clip(self, norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), norm)
