"""What the loop trains: a network on one process. `parallel/network.py` has the same on a mesh of many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from herd.model.config import ModelConfig
from herd.model.transformer import Block
from herd.recipe_compute import Compute, Mesh
from herd.train.compiled import compile_blocks
from herd.train.hardware import Hardware
from herd.train.objective import Objective
from herd.train.recompute import recompute_activations
from herd.train.stragglers import Place, this_place

Weights = Callable[[str], Tensor]  # a whole weight by its name, so that no rank needs to hold them all


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


@runtime_checkable
class RememberedBatches(Protocol):
    """Batches whose state checkpoints keep, so that a run can't go on with others than it began with."""

    def state(self, step: int) -> dict[str, Any]: ...

    def check(self, state: Mapping[str, Any]) -> int: ...


class Network(Protocol):
    """A network in training, whole or spread over ranks."""

    @property
    def config(self) -> ModelConfig | None: ...

    parameters: dict[str, nn.Parameter]  # what of it lives here, by canonical name

    place: Place

    @property
    def leads(self) -> bool:
        """Whether this rank speaks and writes for all."""
        ...

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that an optimizer must step."""
        ...

    @property
    def saved(self) -> dict[str, nn.Parameter]:
        """What checkpoints hold of this rank, by canonical name."""
        ...

    def read(self, batches: Batches, step: int) -> TrainBatch:
        """This rank's part of a step's batch."""
        ...

    def accumulate(self, objective: Objective, batch: Any) -> tuple[Tensor, int]:
        """Add the gradients of a step's batch; the mean loss, and what it was divided by, of all ranks."""
        ...

    def clip(self, norm: float) -> Tensor:
        """Scale the gradients down to a norm, over all ranks; the norm they had."""
        ...

    def agree(self, flag: bool) -> bool:
        """The first rank's flag, on all: clocks differ, and what all must do together one decides."""
        ...

    def told(self, text: str) -> str:
        """The first rank's text, on all."""
        ...

    def loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after a checkpoint was restored into `saved`."""
        ...

    def gather(self) -> dict[str, Tensor] | None:
        """All weights by name where the rank leads, else None. Every rank must call it."""
        ...


class Whole:
    """A network on one process."""

    leads, place = True, this_place(Mesh(), 0)

    def __init__(self, model: nn.Module, hardware: Hardware, compute: Compute) -> None:
        self.parameters = dict(model.named_parameters())
        self.config: ModelConfig | None = getattr(model, "config", None)
        self.model, self._hardware = model, hardware
        self._compute = compute
        recompute_activations((m for m in model.modules() if isinstance(m, Block)), compute.recompute)
        if compute.compile:
            compile_blocks(model)

    def read(self, batches: Batches, step: int) -> TrainBatch:
        return batches[step]

    def accumulate(self, objective: Objective, batch: TrainBatch) -> tuple[Tensor, int]:
        count, wide = batch.count, torch.promote_types(self._hardware.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=self._hardware.device)
        for part in batch.split(self._compute.micro_rows):
            loss = objective(self.model, part, self._hardware.dtype) / count
            loss.backward()
            total = total + loss.detach()
        return total, count

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        return self.parameters

    @property
    def saved(self) -> dict[str, nn.Parameter]:
        return self.parameters

    def agree(self, flag: bool) -> bool:
        return flag

    def told(self, text: str) -> str:
        return text

    def loaded(self, optimizer: torch.optim.Optimizer) -> None:
        pass

    def gather(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.parameters.items()}

    def clip(self, norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), norm)
