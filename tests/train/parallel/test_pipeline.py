"""Pipelines on gloo: whatever the schedule, counts and placement, losses and gradients are those of one process."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from herd.console import HerdError
from herd.recipe_compute import Pipeline as Settings
from herd.train.parallel import torch_private
from herd.train.parallel.pipeline import Pipeline, order_of, stage_homes, stage_indices
from herd.train.parallel.ranks import run_ranks
from herd.train.parallel.schedule import bubble, simulate, split_layers

VOCABULARY, DIM, TOKENS, ROWS = 11, 8, 5, 2
SCHEDULES = [
    ("interleaved", 1),
    ("interleaved", 2),
    ("gpipe", 1),
    ("1f1b", 1),
    ("looped-bfs", 2),
    ("torch-interleaved", 2),
    ("interleaved-zero-bubble", 2),
    ("zbv-zero-bubble", 2),
    ("dualpipe-v", 2),
]


class Block(nn.Module):
    """A residual block whose result depends on the micro-batch that it is told, as a mask would make it."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(DIM), nn.Linear(DIM, 12), nn.Linear(12, DIM, bias=False)
        self.recompute = recompute

    def inner(self, x: Tensor, index: Tensor) -> Tensor:
        return self.down(F.silu(self.up(self.norm(x)) * (1 + 0.1 * index[:, None, None])))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        if self.recompute:
            return x + checkpoint(self.inner, x, index, use_reentrant=False)
        return x + self.inner(x, index)


class Chunk(nn.Module):
    """Some layers of the toy network, with the embedding before the first and the head after the last stage."""

    def __init__(self, network: Network, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        self.embedding = network.embedding if first else None
        self.layers = nn.ModuleDict({str(layer): network.layers[layer] for layer in layers})
        self.head = network.head if last else None

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.layers.values():
            x = block(x, index)
        return x if self.head is None else self.head(x)


class Network(nn.Module):
    def __init__(self, layers: int, dtype: torch.dtype = torch.float64, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.layers = nn.ModuleList(Block(recompute) for _ in range(layers))
        self.head = nn.Linear(DIM, VOCABULARY, bias=False)
        self.to(dtype)

    def chunks(self, settings: Settings, rank: int, pp: int) -> dict[int, nn.Module]:
        stages = pp * settings.stages_per_rank
        split = split_layers(len(self.layers), stages, settings.ends_apart)
        here = stage_indices(settings.schedule, rank, pp, settings.stages_per_rank)
        return {s: Chunk(self, split[s], s == 0, s == stages - 1) for s in here}


def batch(micros: int, tokens: int = TOKENS, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(VOCABULARY, (2, micros * ROWS, tokens), generator=generator))


def summed_loss(targets: Tensor, micros: int) -> Callable[[Tensor, int], Tensor]:
    parts, count = targets.chunk(micros), targets.numel()
    return lambda logits, micro: F.cross_entropy(logits.flatten(0, 1), parts[micro].flatten(), reduction="sum") / count


def gradients(module: nn.Module) -> dict[str, Tensor]:
    def whole(gradient: Any) -> Tensor:
        return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).clone()

    return {name: whole(p.grad) for name, p in module.named_parameters() if p.grad is not None}


def alone(network: Network, micros: int, tokens: int = TOKENS, seed: int = 1) -> tuple[list[Tensor], dict[str, Tensor]]:
    """One process, one micro-batch after another."""
    inputs, targets = batch(micros, tokens, seed)
    loss = summed_loss(targets, micros)
    whole = Chunk(network, range(len(network.layers)), True, True)
    losses = []
    for micro, part in enumerate(inputs.chunk(micros)):
        value = loss(whole(part, torch.full((ROWS,), micro)), micro)
        value.backward()
        losses.append(value.detach())
    return losses, gradients(network)


def piped(settings: Settings, layers: int, micros: int, recompute: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    network = Network(layers, recompute=recompute)
    pp = distributed.get_world_size()
    pipeline = Pipeline(
        network.chunks(settings, distributed.get_rank(), pp),
        pp * settings.stages_per_rank,
        settings,
        distributed.group.WORLD,
        torch.device("cpu"),
        micros,
    )
    inputs, targets = batch(micros)
    return pipeline.step(inputs, summed_loss(targets, micros)), gradients(network)


def assert_equal(results: list[tuple[list[Tensor], dict[str, Tensor]]], expected: tuple[list[Tensor], dict[str, Tensor]]):
    losses, wanted = expected
    [given] = [rank_losses for rank_losses, _ in results if rank_losses]
    torch.testing.assert_close(given, losses, rtol=1e-12, atol=0)
    found = {name: gradient for _, part in results for name, gradient in part.items()}
    assert sum(len(part) for _, part in results) == len(wanted)  # each parameter's gradient on one rank
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


@pytest.mark.parametrize(("schedule", "stages_per_rank"), SCHEDULES)
def test_every_schedule_gives_the_gradients_of_one_process(schedule, stages_per_rank):
    settings = Settings(schedule=schedule, stages_per_rank=stages_per_rank)
    assert_equal(run_ranks(2, piped, settings, 4, 4), alone(Network(4), 4))


@pytest.mark.parametrize(
    ("pp", "stages_per_rank", "layers", "micros", "group", "apart"),
    [
        (2, 1, 3, 1, None, False),  # fewer micro-batches than ranks, uneven layers
        (2, 2, 5, 3, None, False),
        (2, 2, 5, 5, 1, False),  # groups smaller than the number of ranks
        (3, 2, 7, 4, 3, False),  # a short last group
        (2, 3, 6, 5, 5, False),  # breadth first
        (2, 2, 3, 3, 2, True),  # the embedding alone, the head alone
        (3, 1, 2, 4, None, True),
    ],
)
def test_any_counts_groups_and_layers_run_on_our_schedule(pp, stages_per_rank, layers, micros, group, apart):
    settings = Settings(stages_per_rank=stages_per_rank, group=group, ends_apart=apart)
    if apart and pp == 3:
        layers = 1
    assert_equal(run_ranks(pp, piped, settings, layers, micros), alone(Network(layers), micros))
