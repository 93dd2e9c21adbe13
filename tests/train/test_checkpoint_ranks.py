"""What some processes saved, any others load, bit for bit: FSDP2, tensor parallel and pipelines in, others out."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from herd.console import HerdError
from herd.recipe_compute import Saving
from herd.train.checkpoint import Checkpoints
from herd.train.checkpoints import storage
from herd.train.checkpoints.format import Reader, open_checkpoint
from herd.train.parallel.ranks import run_ranks

Names = dict[str, nn.Parameter]
WIDTH = 6


class Block(nn.Module):
    """Odd widths: shards are uneven, and of the scale some processes hold nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(WIDTH, 10, bias=False), nn.Linear(10, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(3))


class Network(nn.Module):
    """Two blocks, a stage each, and a tensor that both stages hold, as they do a tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Parameter(torch.randn(5, 4))
        self.layers = nn.ModuleDict({str(stage): Block() for stage in range(2)})


def run(function: Callable[..., Any], ranks: int, *arguments: Any, kill_after: float | None = None) -> list[Any]:
    """`function(rank, ranks, *arguments)` in so many forked processes; what it returned in each.

    Raises where one fails, or was killed, as all are after `kill_after` seconds.
    """

    def body() -> Any:
        if kill_after is not None:
            threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return function(dist.get_rank(), ranks, *arguments)

    return run_ranks(ranks, body, timeout=60.0)


def network(mesh: str, ranks: int, seed: int) -> Network:
    """The network spread over all processes: `single` (none), `fsdp`, `tp`, `fsdp x tp`, or `pp` (and FSDP inside)."""
    torch.manual_seed(seed)
    model = Network()
    if mesh == "pp":
        grid = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("pp", "dp"))
        stage = grid["pp"].get_local_rank()
        del model.layers[str(1 - stage)]
        fully_shard(model, mesh=grid["dp"])
    elif "tp" in mesh:
        names, sizes = (("dp", "tp"), (ranks // 2, 2)) if "fsdp" in mesh else (("tp",), (ranks,))
        grid = init_device_mesh("cpu", sizes, mesh_dim_names=names)
        for block in model.layers.values():
            parallelize_module(block, grid["tp"], {"w1": ColwiseParallel(), "w2": RowwiseParallel()})
        if "fsdp" in mesh:
            fully_shard(model, mesh=grid["dp"])
    elif mesh == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
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


def load(rank: int, ranks: int, folder: Path, mesh: str, by: str, saved_by: int) -> bool:
    """Whether all came back; what did not is said."""
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
    return True


SAVES = {  # mesh and ranks that save: those that load
    ("fsdp x tp", 4): [("fsdp", 2), ("pp", 2)],
    ("pp", 4): [("fsdp x tp", 4)],
    ("fsdp", 2): [("fsdp", 2), ("pp", 4)],
    ("tp", 2): [("fsdp", 4)],
    ("single", 2): [("tp", 2)],  # plain tensors, equal in both: saved once
}


@pytest.mark.parametrize(("mesh", "ranks"), SAVES)
def test_any_mesh_loads_what_another_saved(tmp_path, mesh, ranks):
    run(save, ranks, tmp_path / "saved", mesh, ranks != 4)
    for other, count in SAVES[mesh, ranks]:
        assert all(run(load, count, tmp_path / "saved", other, mesh, ranks))
    assert load(0, 1, tmp_path / "saved", "single", mesh, ranks)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "ranks"), [*SAVES, ("fsdp", 4)])
def test_any_mesh_loads_what_any_other_saved(tmp_path, mesh, ranks):
    run(save, ranks, tmp_path / "saved", mesh, ranks != 4)
    for other, count in [*SAVES, ("fsdp", 4)]:
        assert all(run(load, count, tmp_path / "saved", other, mesh, ranks))


def test_a_single_process_s_checkpoint_goes_on_at_four(tmp_path):
    save(0, 1, tmp_path / "saved", "single", True)
    assert all(run(load, 4, tmp_path / "saved", "fsdp x tp", "single", 1))


def test_equal_tensors_are_written_once_and_by_turns(tmp_path):
    run(save, 2, tmp_path / "saved", "single", True)
    first, second = sorted((tmp_path / "saved" / "step-000000002").glob("*.safetensors"))
    total = sum(value.numel() * value.element_size() for value in torch.load(tmp_path / "truth-0").values())
    assert total < first.stat().st_size + second.stat().st_size < 2 * total + 10_000
    assert min(first.stat().st_size, second.stat().st_size) > total / 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "does not match": flip,
    "bytes instead of": lambda path: os.truncate(path, 100),
    "is missing": lambda path: path.unlink(),
}


def falls_back(rank: int, ranks: int, folder: Path, said: Path) -> None:
    with said.with_name(f"said-{rank}").open("w") as sys.stderr:
        named, optimizer = ready("fsdp", ranks, 5, 0)
        found = Checkpoints(folder).load(named, optimizer)
        assert found and found[0] == 1


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_shard_damaged_for_one_process_is_for_all(tmp_path, damage, ranks):
    """On four processes, most never read from the damaged file; all take the same older checkpoint, and one says so."""
    run(save, 2, tmp_path / "saved", "fsdp", True)
    DAMAGES[damage](tmp_path / "saved" / "step-000000002" / "rank-00001.safetensors")
    run(falls_back, ranks, tmp_path / "saved", tmp_path / "said")
    said = "".join(path.read_text() for path in tmp_path.glob("said-*"))
    assert said.count("\n") == 1 and damage in said and "step-000000002: damaged, rank-00001.safetensors" in said


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_shard_that_nothing_is_read_from_is_checked_too(tmp_path):
    run(save, 2, tmp_path / "saved", "fsdp", True)
    flip(tmp_path / "saved" / "step-000000002" / "rank-00001.safetensors")
    opened = open_checkpoint(storage.open_folder(tmp_path / "saved"), "step-000000002")
    with Reader(opened) as reader, pytest.raises(CheckpointException, match=r"rank-00001.safetensors does not match"):
        state_dict_loader.load({"random.cpu.00000": torch.get_rng_state()}, storage_reader=reader, no_dist=True)


def fails_in_one(rank: int, ranks: int, folder: Path, said: Path) -> None:
    """Disk full for the second process alone, at the second save; then at the first of another folder."""
    named, optimizer = ready("fsdp", ranks, 0, 1)
    write = storage.LocalFolder.write

    def full(*arguments: Any) -> Any:
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    checkpoints = Checkpoints(folder)
    checkpoints.save(1, named, optimizer, {})
    checkpoints.finish()
    with mock.patch.object(storage.LocalFolder, "write", full):
        with said.with_name(f"said-{rank}").open("w") as sys.stderr:
            checkpoints.save(2, named, optimizer, {})
            checkpoints.finish()
        other = Checkpoints(folder.with_name("other"))
        other.save(1, named, optimizer, {})
        with pytest.raises(HerdError, match="No space left"):
            other.finish()
    checkpoints.save(3, named, optimizer, {})
    checkpoints.finish()


def test_a_disk_full_for_one_process_is_so_for_all(tmp_path):
    run(fails_in_one, 2, tmp_path / "saved", tmp_path / "said")
    said = "".join(path.read_text() for path in tmp_path.glob("said-*"))
    assert said.count("\n") == 1 and "No space left on device" in said
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["step-000000001", "step-000000003"]


def unreadable(rank: int, ranks: int, folder: Path) -> int:
    """Which step is loaded after a load that one process's disk failed."""
    named, optimizer = ready("fsdp", ranks, 5, 0)
    digest = storage._digest

    def broken(path: Path) -> Any:
        if rank == 1:
            raise OSError(errno.EIO, "Input/output error")
        return digest(path)

    storage._digest = broken
    with pytest.raises(HerdError, match="can't be read"):
        Checkpoints(folder).load(named, optimizer)
    storage._digest = digest
    found = Checkpoints(folder).load(named, optimizer)
    return found[0] if found else 0


def test_a_disk_that_fails_for_one_process_costs_no_checkpoint(tmp_path):
    run(save, 2, tmp_path / "saved", "fsdp", True)
    assert run(unreadable, 2, tmp_path / "saved") == [2, 2]


def another(rank: int, ranks: int, folder: Path) -> None:
    """One stage has a layer more than the saved network; the other process only learns of it."""
    model = network("pp", ranks, 0)
    if rank == 1:
        model.extra = nn.Parameter(torch.zeros(2))
    named = dict(model.named_parameters())
    assert Checkpoints(folder).load(named, torch.optim.AdamW(named.values())) is None


def test_another_network_in_one_stage_is_another_for_all(tmp_path):
    run(save, 2, tmp_path / "saved", "pp", True)
    run(another, 2, tmp_path / "saved")
    assert not list((tmp_path / "saved").iterdir())


def saves_without_end(rank: int, ranks: int, folder: Path) -> None:
    named, optimizer = ready("fsdp", ranks, 5, 0)
    checkpoints = Checkpoints(folder)
    found = checkpoints.load(named, optimizer)
    for step in range(1 + (found[0] if found else 0), 100_000):
        with torch.no_grad():
            for p in named.values():
                p.fill_(step)
        checkpoints.save(step, named, optimizer, {})


def test_processes_killed_in_a_save_leave_the_state_of_one_step(tmp_path):
    """All chunks of all processes are of the step that the checkpoint says."""
    wait, reached = torch.Generator().manual_seed(0), 0
    for _ in range(6):
        with pytest.raises(RuntimeError, match=r"ended without a result|failed"):
            run(saves_without_end, 2, tmp_path / "saved", kill_after=0.5 + torch.rand((), generator=wait).item())
        named, optimizer = ready("single", 1, 5, 0)
        found = Checkpoints(tmp_path / "saved").load(named, optimizer)
        if found:
            assert found[0] >= reached and all(bool((p == found[0]).all()) for p in named.values())
            reached = found[0]
    assert reached > 1
