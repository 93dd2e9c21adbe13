"""The gradient's norm over every dimension of a mesh, and clipping to it.

A gradient's squares are summed once, whatever the ranks hold: a tensor that tensor parallelism cuts is summed over its
ranks, one that it replicates is not; all are summed over the ranks that FSDP shards over, and over the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from herd.train.parallel.world import World

EPS = 1e-6  # as in torch's clip_grad_norm_


def settle(parameters: Iterable[nn.Parameter]) -> None:
    """Finish sums over tensor parallel ranks that autograd left open, in place (norm weights under sequence
    parallelism)."""
    for p in parameters:
        if isinstance(p, DTensor) and isinstance(p.grad, DTensor) and p.grad.placements != p.placements:
            p.grad = p.grad.redistribute(placements=p.placements)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient_norm(parameters: Iterable[nn.Parameter], world: World) -> Tensor:
    """Norm of the gradients of the whole network, the same on every rank. Each parameter must be given once."""
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)  # replicated over TP, cut by TP
    for p in parameters:
        if p.grad is not None and (here := local(p.grad)).numel():
            square = torch.linalg.vector_norm(here.to(torch.promote_types(here.dtype, torch.float32))).double() ** 2
            sums[int(_cut_by_tensor_parallelism(p))] += square
    if world.degrees.tp > 1:
        dist.all_reduce(sums[1:], group=world.group("tp"))
    total = sums.sum()
    dist.all_reduce(total, group=world.replicas.get_group())
    dist.all_reduce(total, group=world.group("pp"))
    return total.sqrt()


def scale_down(parameters: Iterable[nn.Parameter], norm: Tensor, most: float) -> None:
    """Scale gradients of that norm to at most `most`, in place."""
    factor = torch.clamp(most / (norm + EPS), max=1.0)
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.dtype))


def _cut_by_tensor_parallelism(parameter: nn.Parameter) -> bool:
    if not isinstance(parameter, DTensor):
        return False
    names = parameter.device_mesh.mesh_dim_names or ()
    return any(
        name == "tp" and isinstance(placement, Shard)
        for name, placement in zip(names, parameter.placements, strict=True)
    )
