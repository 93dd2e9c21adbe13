"""Pipeline parallelism: stages of a network on the ranks of a group, micro-batches passing through (paper 3.3.2).

Orders come from schedule.py ("interleaved", "gpipe", "1f1b") or from torch's schedule classes, and all run on torch's
pipelining runtime. Messages are asynchronous; what a stage doesn't need any more is freed (torch_private.Stage).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule

from herd import recipe_compute
from herd.console import HerdError
from herd.recipe_compute import ScheduleName
from herd.train.parallel.schedule import Order, forwards_only, gpipe, interleaved, one_forward_one_backward
from herd.train.parallel.torch_private import Stage, check_torch, refuse_compiled, runtime, torch_order

TORCH_NAMES: dict[ScheduleName, str] = {
    "looped-bfs": "LoopedBFS",
    "torch-interleaved": "Interleaved1F1B",
    "interleaved-zero-bubble": "InterleavedZeroBubble",
    "zbv-zero-bubble": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}
V_SHAPED: tuple[ScheduleName, ...] = ("zbv-zero-bubble", "dualpipe-v")
IN_HALVES: tuple[ScheduleName, ...] = ("interleaved-zero-bubble", "zbv-zero-bubble", "dualpipe-v")
LAYOUTS_KEPT = 8  # shapes of batches whose plan is kept; a plan holds no tensors


def stage_homes(schedule: ScheduleName, pp: int, stages_per_rank: int) -> list[int]:
    """The rank of each stage: s mod PP, or down the ranks and up again for schedules in the shape of a V."""
    if schedule in V_SHAPED:
        return [*range(pp), *reversed(range(pp))]
    return [stage % pp for stage in range(pp * stages_per_rank)]


def stage_indices(schedule: ScheduleName, rank: int, pp: int, stages_per_rank: int) -> list[int]:
    """The stages that live on a rank, in ascending order."""
    homes = stage_homes(schedule, pp, stages_per_rank)
    return [stage for stage, home in enumerate(homes) if home == rank]


def order_of(settings: recipe_compute.Pipeline, pp: int, micros: int) -> Order:
    """The order of a step's micro-batches under the recipe's schedule; needs no process group.

    Raises HerdError where torch's schedule refuses the number of micro-batches, naming numbers that it takes.
    """
    name, stages_per_rank = settings.schedule, settings.stages_per_rank
    if name == "interleaved":
        return interleaved(pp, stages_per_rank, micros, settings.group or pp)
    if name == "gpipe":
        return gpipe(pp, micros)
    if name == "1f1b":
        return one_forward_one_backward(pp, micros)
    try:
        return torch_order(TORCH_NAMES[name], pp, stages_per_rank, micros)
    except ValueError as error:
        below = islice((n for n in range(micros - 1, 0, -1) if _takes(settings, pp, n)), 2)
        above = islice((n for n in count(micros + 1) if _takes(settings, pp, n)), 2)
        near = ", ".join(map(str, [*reversed([*below]), *above]))
        raise HerdError(
            f"[compute] pipeline.schedule '{name}' with pp = {pp} does not take {micros} micro-batches "
            f"(near that it takes {near}); 'interleaved' takes any number"
        ) from error


def _takes(settings: recipe_compute.Pipeline, pp: int, micros: int) -> bool:
    try:
        torch_order(TORCH_NAMES[settings.schedule], pp, settings.stages_per_rank, micros)
    except ValueError:
        return False
    return True


class _Layout(NamedTuple):
    """What a plan depends on: counts, lengths, and whether there is a backward."""

    micros: int
    rows: int
    tokens: int
    backward: bool
    autocast: torch.dtype | None


class Pipeline:
    """This rank's stages of a network, and the steps in which micro-batches pass through all of them.

    `modules[s]` is called as `module(x)`, its attribute `micro` telling the number of the micro-batch: x is tokens
    (rows, T) int64 on stage 0, else the state (rows, T_local, D) that the stage before returned, a plain tensor local
    to this rank. All stages but the last return states of one shape and dtype, that of stage 0.
    Gradients add up in the parameters' `grad`, in the parameters' dtype: keep these in float32. FSDP2 modules are
    welcome as stages; each is the root of its own FSDP tree, and reduces its gradients once a step.

    `stages`: of the whole pipeline. `group`: the ranks of this pipeline, by their place in it. `micros`: micro-batches
    of a step, unless the step says otherwise.
    """

    def __init__(
        self,
        modules: Mapping[int, nn.Module],
        stages: int,
        settings: recipe_compute.Pipeline,
        group: ProcessGroup,
        device: torch.device,
        micros: int,
    ) -> None:
        check_torch()
        self._modules, self._settings, self._group, self._device = dict(modules), settings, group, device
        self._pp, rank = distributed.get_world_size(group), distributed.get_rank(group)
        self._micros = micros
        self._homes = stage_homes(settings.schedule, self._pp, settings.stages_per_rank)
        here = stage_indices(settings.schedule, rank, self._pp, settings.stages_per_rank)
        if len(self._homes) != stages or sorted(modules) != here:
            raise ValueError(f"rank {rank} of {self._pp} holds stages {here} of {len(self._homes)}, not {[*modules]}")
        if settings.schedule in IN_HALVES:
            for module in modules.values():
                refuse_compiled(module, settings.schedule)
        self._states: dict[torch.dtype | None, tuple[int, int, int, torch.dtype]] = {}
        self._plans: dict[_Layout, tuple[Any, list[Stage]]] = {}
        self._loss: Callable[[Tensor, int], Tensor] = _no_loss

    def step(self, tokens: Tensor, loss: Callable[[Tensor, int], Tensor], micros: int | None = None) -> list[Tensor]:
        """Forward and backward of one step; gradients are added to those that the parameters have.

        `tokens` (micros * rows, T) int64 on every rank; only stage 0 reads it. `loss(hidden, micro)` is called where
        the last stage lives, on what it returned for each micro-batch, and gives a loss of no dimensions that is
        scaled already. Returns these losses, detached, where the last stage lives, and [] elsewhere. Raises HerdError
        where the schedule doesn't take this number of micro-batches.
        """
        return self._run(tokens, loss, micros or self._micros, backward=True)

    @torch.no_grad()
    def evaluate(
        self, tokens: Tensor, loss: Callable[[Tensor, int], Tensor], micros: int | None = None
    ) -> list[Tensor]:
        """As `step`, without backward; every schedule takes any number of micro-batches."""
        return self._run(tokens, loss, micros or self._micros, backward=False)

    def _run(self, tokens: Tensor, loss: Callable[[Tensor, int], Tensor], micros: int, backward: bool) -> list[Tensor]:
        rows, rest = divmod(len(tokens), micros)
        if rest or not rows:
            raise ValueError(f"{len(tokens)} rows of tokens are not {micros} equal micro-batches")
        autocast = torch.get_autocast_dtype(self._device.type)
        layout = _Layout(
            micros, rows, tokens.shape[1], backward, autocast if torch.is_autocast_enabled(self._device.type) else None
        )
        schedule, stages = self._plan(layout, tokens)
        run = schedule.step if backward else schedule.eval
        losses: list[Tensor] = []
        self._loss = loss
        with _own_errors():
            run(
                *([tokens] if 0 in self._modules else []),
                target=torch.arange(micros),
                losses=losses,
                return_outputs=False,
            )
        self._loss = _no_loss
        for stage in stages:
            stage.finish_sends()
        return [value.detach() for value in losses]

    def _plan(self, layout: _Layout, tokens: Tensor) -> tuple[Any, list[Stage]]:
        """torch's runtime for this layout, made at its first use."""
        if layout not in self._plans:
            if layout.backward:
                order = order_of(self._settings, self._pp, layout.micros)
            else:
                order = forwards_only(self._homes, layout.micros, self._settings.group or self._pp)
            state = self._state(layout, tokens[: layout.rows])
            stages = [
                Stage(self._modules[s], s, len(self._homes), self._device, self._group, state)
                for s in sorted(self._modules)
            ]
            made = runtime(
                stages, layout.micros, lambda output, number: self._loss(output, int(number)), order, self._homes
            )
            while len(self._plans) >= LAYOUTS_KEPT:
                del self._plans[next(iter(self._plans))]
            self._plans[layout] = (made, stages)
        return self._plans[layout]

    def _state(self, layout: _Layout, tokens: Tensor) -> Tensor:
        """A tensor on the meta device like those that stages hand on, learnt from stage 0 at the first step.

        Other lengths scale it: T_local / T is 1 over the ranks that share a sequence.
        """
        if layout.autocast not in self._states:
            found: list[Any] = [None]
            if 0 in self._modules:
                with torch.no_grad():
                    output = self._modules[0](tokens)
                found = [(layout.tokens, *output.shape[1:], output.dtype)]
                for part in self._modules[0].modules():
                    if isinstance(part, FSDPModule):
                        part.reshard()
            first = distributed.get_global_rank(self._group, 0)
            distributed.broadcast_object_list(found, first, self._group, self._device)
            self._states[layout.autocast] = found[0]
        length, local, width, dtype = self._states[layout.autocast]
        shape = (layout.rows, layout.tokens * local // length, width)
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=layout.backward)


def _no_loss(output: Tensor, micro: int) -> Tensor:
    raise RuntimeError("no step is running")


@contextmanager
def _own_errors() -> Iterator[None]:
    """torch wraps what a module raises; a HerdError inside is what the user should read."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, HerdError):
            raise error.__cause__ from None
        raise
