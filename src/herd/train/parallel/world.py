"""The ranks of a training run: started by torchrun, laid out as a mesh in the paper's order (3.3.2)."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from herd.console import HerdError
from herd.recipe_compute import Mesh
from herd.train.parallel.torch_private import flattened

PATIENCE = datetime.timedelta(days=1)  # of a collective: rank 0 may be measuring; hangs in training the watchdog ends
RECORDED_COLLECTIVES = 2000  # the newest, for reports of hangs


@dataclass(frozen=True)
class World:
    """A mesh of ranks: rank = tp + TP * (cp + CP * (pp + PP * dp)), tensor parallelism innermost."""

    degrees: Mesh
    mesh: DeviceMesh  # dimensions (dp, pp, cp, tp)
    replicas: DeviceMesh  # dp and cp as one: what FSDP shards over and gradients are summed over
    device: torch.device

    def group(self, dimension: str) -> dist.ProcessGroup:
        return self.mesh.get_group(dimension)

    def place(self, dimension: str) -> int:
        """This rank's coordinate."""
        return self.mesh.get_local_rank(dimension)

    def describe(self) -> str:
        return ", ".join(f"{name} {self.place(name)}" for name in ("dp", "pp", "cp", "tp"))


def start(device: torch.device) -> None:
    """Join the process group of torchrun; CPU tensors travel by gloo, CUDA's by NCCL.

    A restart finds torchrun's store as the attempt before left it, with addresses of processes that are gone (torch
    2.13: gloo then fails with `Connection refused`), so each attempt has its own part of it.
    """
    if dist.is_initialized():
        return
    if device.type == "cuda":
        here = int(os.environ.get("LOCAL_RANK", "0"))
        if here >= torch.cuda.device_count():
            raise HerdError(f"local rank {here}, but there are {torch.cuda.device_count()} GPUs: --nproc-per-node")
        torch.cuda.set_device(here)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(RECORDED_COLLECTIVES))
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)


_worlds: dict[tuple[int, ...], World] = {}  # of this process: each layout makes communicators, which stay


def world_of(degrees: Mesh, device: torch.device) -> World:
    """Lay the ranks of the process group out as a mesh. Raises HerdError where their number is another."""
    if dist.get_world_size() != degrees.size:
        asked = f"tp {degrees.tp} x cp {degrees.cp} x pp {degrees.pp} x dp {degrees.dp} = {degrees.size}"
        raise HerdError(f"compute.mesh: {asked} processes, but {dist.get_world_size()} were started")
    shape = (degrees.dp, degrees.pp, degrees.cp, degrees.tp)
    if shape not in _worlds:
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("dp", "pp", "cp", "tp"))
        _worlds[shape] = World(degrees, mesh, flattened(mesh, ("dp", "cp"), "replicas"), device)
    return _worlds[shape]
