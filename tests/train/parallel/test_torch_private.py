"""Small functions over torch's private interface: meshes around a dimension, gathered sequences, summed gradients."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from herd.train.parallel.ranks import run_ranks
from herd.train.parallel.torch_private import all_gather_sequence, flattened, sums_gradients


def around() -> list[int]:
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("dp", "pp", "cp"))
    return flattened(mesh, ("dp", "cp"), "data").mesh.tolist()


def test_dimensions_on_both_sides_of_another_become_one():
    assert run_ranks(8, around)[::2] == [[0, 1, 4, 5], [2, 3, 6, 7]] * 2


def gathered() -> tuple[Tensor, Tensor]:
    group, rank = distributed.group.WORLD, distributed.get_rank()
    assert group is not None
    mine = torch.arange(12.0).view(2, 2, 3).mul(rank + 1).transpose(0, 1).requires_grad_()
    whole = all_gather_sequence(mine, 1, group)
    (whole * torch.arange(4.0)[:, None] * (rank + 1)).sum().backward()
    assert mine.grad is not None
    return whole.detach().clone(), mine.grad


def test_a_gathered_sequence_gives_each_rank_the_sum_of_its_gradients():
    part = torch.arange(12.0).view(2, 2, 3).transpose(0, 1)
    for rank, (whole, gradient) in enumerate(run_ranks(2, gathered)):
        torch.testing.assert_close(whole, torch.cat([part, 2 * part], 1))
        places = torch.arange(4.0)[2 * rank : 2 * rank + 2, None].expand(2, 2, 3)
        torch.testing.assert_close(gradient, 3 * places)  # 1 from rank 0's loss, 2 from rank 1's


def summed() -> Tensor:
    layer = nn.Linear(4, 3, bias=False)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    sums_gradients(layer)
    layer(torch.ones(2, 4) * (distributed.get_rank() + 1)).sum().backward()
    gradient: Tensor = layer.weight.grad.full_tensor()  # pyright: ignore
    return gradient


def test_gradients_of_data_ranks_are_summed_not_averaged():
    for gradient in run_ranks(2, summed):
        torch.testing.assert_close(gradient, torch.full((3, 4), 6.0))
