"""Activation checkpointing: blocks whose activations are computed again in backward instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

KEPT = {  # results of these are kept by "selective": a product costs more to repeat than it takes to remember
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def recompute_activations(blocks: Iterable[nn.Module], mode: Literal["none", "selective", "full"]) -> None:
    """Replace the forward of each block, in place: "full" keeps its input alone, "selective" matrix products too."""
    for block in blocks:
        if mode != "none":
            block.forward = _checkpointed(block.forward, mode)


def _checkpointed(forward: Callable[..., Any], mode: str) -> Callable[..., Any]:
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing here is drawn
    if mode == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return partial(checkpoint, forward, **settings)


def _policy(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
