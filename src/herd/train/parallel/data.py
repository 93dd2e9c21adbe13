"""Data parallelism by FSDP2: weights, gradients and moments of a stage sharded over DP x CP (paper 3.3.2).

As in the paper weights are not resharded between forward and backward, unless the recipe asks for it; gradients are
summed (not averaged) in float32 or wider, after a step's last micro-batch.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from herd.train.parallel.torch_private import sums_gradients


def shard_data(stage: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, reshard_after_forward: bool) -> None:
    """Shard each block and the rest of the stage, in place. `dtype`: in which blocks compute and weights travel."""
    narrow = dtype in (torch.bfloat16, torch.float16)
    policy = MixedPrecisionPolicy(
        param_dtype=dtype if narrow else None,
        reduce_dtype=torch.float32 if narrow else None,
        cast_forward_inputs=False,
    )
    blocks = list(getattr(stage, "layers", nn.ModuleDict()).children())
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=policy)
    fully_shard(stage, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    sums_gradients(stage)


def last_of_step(stage: nn.Module, last: bool) -> None:
    """Tell a sharded stage whether the backward pass to come is the step's last: then gradients are reduced."""
    if isinstance(stage, FSDPModule):
        stage.set_requires_gradient_sync(last)
        stage.set_reshard_after_backward(last)
        stage.set_is_last_backward(last)
