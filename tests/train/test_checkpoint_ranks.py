"""What some processes saved, any others load: FSDP2, tensor parallel and pipelines in, other meshes out, bit for bit."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from herd.console import HerdError
from herd.recipe_compute import Saving
from herd.train.checkpoint import Checkpoints
from herd.train.checkpoints import storage

Names = dict[str, nn.Parameter]
WIDTH = 6


class Block(nn.Module):
    """Odd widths: shards are uneven, and of the scale some processes hold nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(WIDTH, 10, bias=False), nn.Linear(10, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w2(torch.relu(self.w1(x))) * self.scale.sum()


class Network(nn.Module):
    def __init__(self, stages: range = range(2)) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(stage): Block() for stage in stages})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers.values():
            x = block(x)
        return x


def run(function: Callable[..., Any], ranks: int, folder: Path, *arguments: Any) -> None:
    """`function(rank, ranks, *arguments)` in forked processes that form a gloo group."""
    store = folder / f"store-{os.urandom(4).hex()}"
    context = multiprocessing.get_context("fork")

    def body(rank: int, failures: Any) -> None:
        try:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
            function(rank, ranks, *arguments)
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            failures.put(f"rank {rank}:\n{traceback.format_exc()}")
            failures.close()
            failures.join_thread()
            os._exit(1)
        os._exit(0)

    failures = context.Queue()
    processes = [context.Process(target=body, args=(rank, failures)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    ends = [process.exitcode for process in processes]
    assert not hung and set(ends) == {0}, (ends, failures.get(timeout=1) if any(e == 1 for e in ends) else "hung")


def network(mesh: str, ranks: int, seed: int) -> Network:
    """The network spread over all processes: `single` (none), `fsdp`, `tp`, `fsdp x tp`, or `pp` (and FSDP inside)."""
    torch.manual_seed(seed)
    model = Network()
    if mesh == "pp":
        grid = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("pp", "dp"))
        stage = grid["pp"].get_local_rank()
        del model.layers[str(1 - stage)]
        return fully_shard(model, mesh=grid["dp"])
    if "tp" in mesh:
        names, sizes = (("dp", "tp"), (ranks // 2, 2)) if "fsdp" in mesh else (("tp",), (ranks,))
        grid = init_device_mesh("cpu", sizes, mesh_dim_names=names)
        for block in model.layers.values():
            parallelize_module(block, grid["tp"], {"w1": ColwiseParallel(), "w2": RowwiseParallel()})
        if "fsdp" in mesh:
            model = fully_shard(model, mesh=grid["dp"])
    elif mesh == "fsdp":
        model = fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    return model


def ready(mesh: str, ranks: int, seed: int, steps: int) -> tuple[Names, torch.optim.AdamW]:
    """Parameters after some steps of AdamW on made-up gradients."""
    model = network(mesh, ranks, seed)
    named = dict(model.named_parameters())
    spread = [p for p in named.values() if isinstance(p, DTensor)]  # fused AdamW takes one kind a group
    groups = [{"params": part} for part in (spread, [p for p in named.values() if not isinstance(p, DTensor)]) if part]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    for step in range(steps):
        for name, p in named.items():
            p.grad = torch.sin(p.detach() * 7 + step + len(name))
        optimizer.step()
    return named, optimizer


def whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach()


def state(named: Names, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    values = {name: whole(p) for name, p in named.items()}
    for name, p in sorted(named.items()):
        values |= {f"{key}.{name}": whole(value) for key, value in sorted(optimizer.state[p].items())}
    return values


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, wanted[name]) and value.dtype == wanted[name].dtype for name, value in found.items())


def save(rank: int, ranks: int, folder: Path, mesh: str, asynchronous: bool) -> None:
    named, optimizer = ready(mesh, ranks, 0, 1)
    checkpoints = Checkpoints(folder, Saving(asynchronous=asynchronous))
    for step in (1, 2):
        torch.manual_seed(100 + rank + step)
        checkpoints.save(step, named, optimizer, {"mesh": mesh})
        torch.save(state(named, optimizer), folder.with_name(f"truth-{rank}"))
        for name, p in named.items():  # training goes on while it is written
            p.grad = torch.sin(p.detach() * 7 + step + len(name))
        optimizer.step()
    checkpoints.finish()


def load(rank: int, ranks: int, folder: Path, mesh: str, by: str, saved_by: int) -> None:
    named, optimizer = ready(mesh, ranks, 5, 0)
    torch.manual_seed(1)
    found = Checkpoints(folder).load(named, optimizer)
    assert found == (2, {"mesh": by}), found
    random = torch.get_rng_state()
    wanted = {}
    for truth in folder.parent.glob("truth-*"):
        wanted |= torch.load(truth)
    now = state(named, optimizer)
    assert len(now) == 4 * len(named) and equal(now, wanted)
    restored = torch.manual_seed(100 + rank + 2).get_state() if ranks == saved_by or rank == 0 else None
    assert torch.equal(random, torch.manual_seed(1).get_state() if restored is None else restored)


SAVES = [("fsdp", 2), ("fsdp", 4), ("tp", 2), ("fsdp x tp", 4), ("pp", 2), ("pp", 4), ("single", 2)]


@pytest.mark.parametrize(("mesh", "ranks"), SAVES)
def test_any_mesh_loads_what_another_saved(tmp_path, mesh, ranks):
    run(save, ranks, tmp_path, tmp_path / "saved", mesh, ranks != 4)
    for other, count in (("fsdp", 4), ("fsdp x tp", 4), ("pp", 2), ("fsdp", 2)):
        run(load, count, tmp_path, tmp_path / "saved", other, mesh, ranks)
    load(0, 1, tmp_path / "saved", "single", mesh, ranks)
