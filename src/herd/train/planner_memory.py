"""Bytes that the fullest rank needs to train, by what they hold. Formulas and calibration: docs/planner.md."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from herd.train.planner_setting import Setting, in_flight, rank_layers, stage_layers

# float32 weights 4, float32 gradients 4 (paper 3.3.2: accumulated and reduced in FP32), AdamW's two moments 8
STATE_BYTES_PER_PARAMETER = 16
RESERVED_SHARE = 0.024  # fitted to the four rows of torchtitan that publish memory, which ask for 0.017 to 0.030


class Bytes(NamedTuple):
    """Bytes on one rank. `reserved`: CUDA's context, NCCL's buffers and what the allocator can't use."""

    weights: float
    gradients: float
    moments: float
    gathered: float
    activations: float
    loss: float
    reserved: float

    @property
    def total(self) -> float:
        return sum(self)


def saved_bytes(setting: Setting) -> float:
    """Bytes of one layer's activations for one token that wait for backward, over all tensor-parallel ranks.

    d: residual stream, q and output of attention, f: SwiGLU's halves. Fused code computes norms and SwiGLU's product
    again from what they started from; kernel by kernel those stay too, with the norm's float32 copies.
    """
    c = setting.config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    if setting.recompute == "full":
        return 2 * c.dim
    if setting.recompute == "alternate":  # input, q, v, attention's output, one half of SwiGLU
        needed = 2 * (c.dim + 2 * q + kv + c.ffn_dim)
        return needed if setting.fused else needed + 2 * c.dim  # w2's output: no backward needs it, eager code saves it
    kept = 2 * (2 * c.dim + 2 * q + 2 * kv + 2 * c.ffn_dim)  # two residual states, q, k, v, output, both halves
    if setting.recompute == "selective" or setting.fused:
        return kept
    return kept + 2 * (6 * c.dim + c.ffn_dim)  # norms' outputs and float32 copies, SwiGLU's product


def rank_bytes(setting: Setting, rank: int, reserved_share: float = RESERVED_SHARE) -> Bytes:
    """Bytes on one pipeline rank at its peak. `reserved_share`: allocator and libraries, of all the rest."""
    c, mesh = setting.config, setting.mesh
    first, last = rank == 0, rank == mesh.pp - 1
    layers = rank_layers(setting)[rank]
    ends = c.vocab_size * c.dim * (1 if c.tied_embeddings and mesh.pp == 1 else first + last)
    own = (layers * c.block_parameters + ends) / mesh.tp  # parameters of this rank's stages
    shards = mesh.cp * mesh.dp
    tokens = setting.micro_tokens
    if shards == 1:
        gathered = 2 * own  # a bf16 copy is made of float32 weights
    elif setting.reshard:
        gathered = 2 * (2 * c.block_parameters + ends) / mesh.tp  # the layer at work, the next one, and the ends
    else:
        gathered = 2 * own
    if setting.accumulates or shards == 1:
        gradients = 4 * own
    else:
        gradients = 4 * own / shards
        gathered += 6 * c.block_parameters / mesh.tp  # a layer's gradient in bf16, and in float32 while it is reduced
    # hidden states that tensor parallelism has whole while the FFN goes backward: its input, its output's gradient,
    # those of w1's and w3's input, and their sum; the first two come in chunks where it is asynchronous
    stages = stage_layers(setting)[rank :: mesh.pp]
    held = max(stages) * in_flight(setting, rank)
    work = saved_bytes(replace(setting, recompute="none")) if setting.recompute != "none" else 2 * c.ffn_dim
    whole = 0 if mesh.tp == 1 else (3 if setting.asynchronous_tp else 5) * 2 * c.dim
    activations = tokens * ((saved_bytes(setting) * held + work) / mesh.tp + whole)
    vocabulary = c.vocab_size / mesh.tp
    loss = 0.0
    if last:  # bf16 logits, log-softmax and two gradients in float32; in chunks only the head's own float32 gradient
        loss = 4 * vocabulary * c.dim if setting.chunked_loss else 14 * tokens * vocabulary
    parts = (4 * own / shards, gradients, 8 * own / shards, gathered, activations, loss)
    return Bytes(*parts, reserved=reserved_share * sum(parts))


def peak_bytes(setting: Setting, reserved_share: float = RESERVED_SHARE) -> Bytes:
    """Bytes on the fullest pipeline rank: the first, the one of most layers, or the last, which has the loss."""
    layers = rank_layers(setting)
    ranks = sorted({0, layers.index(max(layers)), setting.mesh.pp - 1})
    return max((rank_bytes(setting, rank, reserved_share) for rank in ranks), key=lambda one: one.total)
