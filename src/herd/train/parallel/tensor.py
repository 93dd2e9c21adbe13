"""Tensor parallelism with sequence parallelism: matrices by columns, then by rows; norms by positions (paper 3.3.2).

Between the blocks each rank holds its part of the positions; attention and feed-forward gather them and scatter their
sums. The loss is computed on a part of the vocabulary.

Shape suffixes: R rows (batch * positions), D model dim, V this rank's part of the vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.train.cross_entropy import CHUNK_ROWS
from herd.train.parallel.stage import Stage


def check_tensor_parallel(config: ModelConfig, tp: int, positions: int) -> None:
    """Raises HerdError where a network, or the positions of a rank, can't be cut into `tp` equal parts."""
    for what, count in (
        ("heads", config.heads),
        ("key-value heads", config.kv_heads),
        ("ffn_dim", config.ffn_dim),
        ("vocab_size", config.vocab_size),
        ("positions of a sequence on one rank", positions),
    ):
        if count % tp:
            raise HerdError(f"compute.mesh.tp: {tp} does not divide {what} ({count})")


def shard_tensors(stage: Stage, mesh: DeviceMesh) -> None:
    """Cut the stage's matrices over the ranks of a one-dimensional mesh, in place; parameters become DTensors."""
    rows = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    first_only = (Shard(1), None, None, None), (Replicate(), None, None, None)  # of x, rope, mask, cache
    for block in stage.blocks:
        plan = {
            "attention_norm": SequenceParallel(),
            "attention": PrepareModuleInput(input_layouts=first_only[0], desired_input_layouts=first_only[1]),
            "attention.wq": ColwiseParallel(),
            "attention.wk": ColwiseParallel(),
            "attention.wv": ColwiseParallel(),
            "attention.wo": RowwiseParallel(output_layouts=Shard(1)),
            "ffn_norm": SequenceParallel(),
            "feed_forward": rows,
            "feed_forward.w1": ColwiseParallel(),
            "feed_forward.w3": ColwiseParallel(),
            "feed_forward.w2": RowwiseParallel(output_layouts=Shard(1)),
        }
        parallelize_module(block, mesh, plan)
    tied = stage.first and stage.last and stage.output.weight is stage.tok_embeddings.weight
    if stage.first:
        embedding = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        parallelize_module(stage, mesh, {"tok_embeddings": embedding})
    if stage.last:
        head = {"norm": _GatheredNorm(), "output": ColwiseParallel(output_layouts=Replicate())}
        parallelize_module(stage, mesh, head)
    if tied:
        stage.output.weight = stage.tok_embeddings.weight  # both are cut by rows of the vocabulary


class _GatheredNorm(SequenceParallel):
    """The last norm: computed by positions, its output gathered, since the loss needs every position on every rank."""

    @staticmethod
    def _prepare_output_fn(use_local_output: bool, mod: nn.Module, outputs: Any, device_mesh: DeviceMesh) -> Tensor:
        return cast(DTensor, outputs).redistribute(device_mesh, [Replicate()]).to_local()


def same_part(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """The part of a whole tensor that a rank holds of a parameter of its shape; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()


def sharded_cross_entropy(hidden_RD: Tensor, weight: DTensor, targets_R: Tensor, dtype: torch.dtype) -> Tensor:
    """`linear_cross_entropy` with the head's rows spread over ranks; loss and gradient of `hidden` are every rank's."""
    group = weight.device_mesh.get_group()
    return cast(Tensor, _ShardedCrossEntropy.apply(hidden_RD, weight.to_local(), targets_R, dtype, group))


class _ShardedCrossEntropy(torch.autograd.Function):
    """As `_LinearCrossEntropy`; a row's maximum, its sum of exponentials and its target's logit are reduced."""

    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, dtype: torch.dtype, group: dist.ProcessGroup
    ) -> Tensor:
        wide, own = torch.promote_types(dtype, torch.float32), len(weight_VD)
        weight, first = weight_VD.to(dtype), own * dist.get_rank(group)
        d_hidden, d_weight = torch.empty_like(hidden_RD, dtype=wide), torch.zeros_like(weight_VD, dtype=wide)
        loss = torch.zeros((), dtype=wide, device=hidden_RD.device)
        for start in range(0, len(hidden_RD), CHUNK_ROWS):
            hidden = hidden_RD[start : start + CHUNK_ROWS].to(dtype)
            places = targets_R[start : start + CHUNK_ROWS, None] - first
            here = (places >= 0) & (places < own)
            logits = (hidden @ weight.T).to(wide)
            highest = logits.amax(-1, keepdim=True)
            dist.all_reduce(highest, dist.ReduceOp.MAX, group)
            logits -= highest
            chosen = torch.where(here, logits.gather(1, places.clamp(0, own - 1)), 0.0)
            sums = torch.cat((chosen, logits.exp_().sum(-1, keepdim=True)), -1)
            dist.all_reduce(sums, group=group)
            loss += (sums[:, 1].log() - sums[:, 0]).sum()
            logits /= sums[:, 1:]
            d_logits = logits.scatter_add_(1, places.clamp(0, own - 1), -here.to(wide)).to(dtype)
            d_hidden[start : start + CHUNK_ROWS] = d_logits @ weight
            d_weight += d_logits.T @ hidden
        dist.all_reduce(d_hidden, group=group)
        ctx.save_for_backward(d_hidden.to(hidden_RD.dtype), d_weight)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * gradients[0], (d_weight * gradients[0]).to(ctx.weight_dtype), None, None, None
