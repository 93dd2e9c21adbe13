"""Seconds of a training step, by what they go to. Formulas and the figures they rest on: docs/planner.md."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from herd.train.gpus import Card
from herd.train.planner_setting import Setting, rank_layers, rounds, stage_layers

# From public figures, because no calibration row tells them apart from the fitted ones below.
HBM_SHARE = 0.85  # of the memory bandwidth that element-wise kernels reach (STREAM-like tests: 0.85 to 0.92)
NVLINK_SHARE = 0.80  # all_gather_perf of nccl-tests on eight H100: about 360 of 450 GB/s
NETWORK_SHARE = 0.90  # the same between nodes: about 45 of 50 GB/s a card
HOP_SECONDS = 10e-6  # from node to node in a ring; the paper speaks of tens of microseconds on long paths (3.3.3)
FULL_POWER_WATTS = 700


class Constants(NamedTuple):
    """What published rows had to tell. Fitted by `benchmarks/planner.py --fit`; what identifies each: docs/planner.md.

    `matrix`: share of the peak that large matrix products reach on a 700 W card.
    `power_limited`: the same share on a 500 W card, relative to that.
    `async_tp`: share of tensor parallelism's traffic that asynchronous TP hides behind products.
    `jitter`: what a step loses by waiting for the slowest, for each doubling of nodes.
    `paper_attention`: share of the peak that the paper's attention kernel reaches, document masks included.
    """

    matrix: float
    power_limited: float
    async_tp: float
    jitter: float
    paper_attention: float


FITTED = Constants(matrix=0.655, power_limited=0.763, async_tp=0.383, jitter=0.0016, paper_attention=0.549)


class Seconds(NamedTuple):
    """Seconds by kind; of collectives those that nothing hides."""

    matrix: float = 0.0
    attention: float = 0.0
    memory: float = 0.0  # element-wise work and casts, bound by memory bandwidth
    tp: float = 0.0
    cp: float = 0.0
    pp: float = 0.0
    dp: float = 0.0
    bubble: float = 0.0
    jitter: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)

    def plus(self, other: Seconds, times: float = 1.0) -> Seconds:
        return Seconds(*(a + times * b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Seconds:
        return Seconds(*(factor * a for a in self))


class Rates(NamedTuple):
    """What a card reaches under a setting: FLOPs or bytes a second."""

    product: float
    attention: float
    hbm: float

    @staticmethod
    def of(setting: Setting, card: Card, constants: Constants) -> Rates:
        share = constants.matrix * (1.0 if card.watts >= FULL_POWER_WATTS else constants.power_limited)
        peak = card.float8_flops if setting.float8 and card.float8_flops else card.bf16_flops
        attention = setting.attention if setting.attention is not None else card.attention
        return Rates(share * peak, attention * card.bf16_flops, HBM_SHARE * card.hbm_bytes)


def bandwidth(card: Card, size: int, stride: int) -> float:
    """Bytes a second that each rank of a group moves in a ring; `stride` ranks lie between two members.

    Inside a node NVLink; beyond it the network cards of all the members that share a node.
    """
    inside = max(1, card.per_node // stride)
    if size <= inside:
        return NVLINK_SHARE * card.nvlink_bytes
    return min(NVLINK_SHARE * card.nvlink_bytes, inside * NETWORK_SHARE * card.network_bytes)


class Ring(NamedTuple):
    """The group that shares parameters: bytes a second that each rank moves, seconds that one round takes."""

    bytes_per_second: float
    latency: float

    @staticmethod
    def of(setting: Setting, card: Card) -> Ring:
        """Context and data parallel ranks, the latter PP stages apart. Inside a node NVLink, its latency left out."""
        tp, cp, pp, dp = setting.mesh.tp, setting.mesh.cp, setting.mesh.pp, setting.mesh.dp
        near = max(1, min(cp, card.per_node // tp)) * max(1, min(dp, card.per_node // (tp * cp * pp)))
        inside = NVLINK_SHARE * card.nvlink_bytes
        if cp * dp == near:
            return Ring(inside, 0.0)
        return Ring(min(inside, near * NETWORK_SHARE * card.network_bytes), HOP_SECONDS * (cp * dp / near - 1))


def _product(tokens: float, inputs: float, outputs: float, rates: Rates, float8: bool) -> tuple[Seconds, Seconds]:
    """Forward and backward of one linear layer. Traffic adds to arithmetic: operands stream in, results stream out."""
    x, y, w = tokens * inputs, tokens * outputs, inputs * outputs
    size = 1 if float8 else 2
    flops = 2 * tokens * inputs * outputs / rates.product
    forward = flops + (size * (x + w) + 2 * y) / rates.hbm
    backward = 2 * flops + (size * (y + w) + 2 * x + size * (x + y) + 10 * w) / rates.hbm  # 10: fp32 accumulation
    # dynamic scaling reads for the maximum, reads again, writes 1 byte; backward transposes once more
    casts = (5 * (x + w) / rates.hbm, (2 * x + 7 * y) / rates.hbm) if float8 else (0.0, 0.0)
    return Seconds(matrix=forward, memory=casts[0]), Seconds(matrix=backward, memory=casts[1])


def _element_wise(setting: Setting) -> float:
    """Bytes that norms, rotary embedding, residual sums and SwiGLU move for one token forward; backward twice that.

    Fused: norms and residuals 18 d, rotation 4 (q + k), SwiGLU 6 f. Kernel by kernel, in float32 where the reference
    code is: norms 64 d, residuals 12 d, rotation 20 (q + k), SwiGLU 10 f.
    """
    c = setting.config
    rotated = (c.heads + c.kv_heads) * c.head_dim
    if setting.fused:
        return 18 * c.dim + 4 * rotated + 6 * c.ffn_dim
    return 76 * c.dim + 20 * rotated + 10 * c.ffn_dim


def layer_seconds(setting: Setting, card: Card, constants: Constants = FITTED) -> tuple[Seconds, Seconds]:
    """Forward and backward of one Transformer layer for one micro-batch on one rank, recomputation in backward."""
    c, tp, cp = setting.config, setting.mesh.tp, setting.mesh.cp
    rates, tokens = Rates.of(setting, card, constants), setting.micro_tokens
    q, kv = c.heads * c.head_dim / tp, c.kv_heads * c.head_dim / min(tp, c.kv_heads)
    f = c.ffn_dim / tp
    shapes = {"wq": (c.dim, q), "wk": (c.dim, kv), "wv": (c.dim, kv), "wo": (q, c.dim)}
    shapes |= {"w1": (c.dim, f), "w3": (c.dim, f), "w2": (f, c.dim)}
    products = {name: _product(tokens, n_in, n_out, rates, setting.float8) for name, (n_in, n_out) in shapes.items()}
    # two products over half the context on average; the kernel's backward makes five
    attended = Seconds(attention=2 * tokens * setting.context * q / rates.attention)
    element_wise = Seconds(memory=tokens / tp * _element_wise(setting) / rates.hbm)
    gather, scatter = _tp_collectives(setting, card, constants)
    exchange = Seconds(cp=4 * kv * setting.micro_sequences * setting.context * (cp - 1) / cp / bandwidth(card, cp, tp))

    forward = attended.plus(element_wise).plus(exchange).plus(gather, 2).plus(scatter, 2)
    # gathers keys and values again, scatters their gradients; four TP collectives and two gathers for weight gradients
    backward = attended.times(2.5).plus(element_wise, 2).plus(exchange, 2).plus(gather, 4).plus(scatter, 2)
    for ahead, back in products.values():
        forward, backward = forward.plus(ahead), backward.plus(back)
    if setting.recompute == "full":
        # up to the last tensor that backward needs: w2's output and its scatter aren't; gathers serve weight gradients
        backward = backward.plus(forward).plus(products["w2"][0], -1).plus(gather, -2).plus(scatter, -1)
    elif setting.recompute != "none":
        backward = backward.plus(element_wise)
        for name in ("wk", "wo", "w3") if setting.recompute == "alternate" else ():
            backward = backward.plus(products[name][0])
    return forward, backward


def _tp_collectives(setting: Setting, card: Card, constants: Constants) -> tuple[Seconds, Seconds]:
    """One all-gather and one reduce-scatter of a micro-batch's hidden states. With float8 what is gathered is cast."""
    tp = setting.mesh.tp
    seconds = 2 * setting.micro_tokens * setting.config.dim * (tp - 1) / tp / bandwidth(card, tp, 1)
    seconds *= 1 - constants.async_tp if setting.asynchronous_tp else 1
    return Seconds(tp=seconds / (2 if setting.float8 else 1)), Seconds(tp=seconds)


def head_seconds(setting: Setting, card: Card, constants: Constants = FITTED) -> tuple[Seconds, Seconds]:
    """Forward and backward of output head and loss for one micro-batch on one rank; the head stays in bf16."""
    rates = Rates.of(replace(setting, float8=False), card, constants)
    vocabulary = setting.config.vocab_size / setting.mesh.tp
    forward, backward = _product(setting.micro_tokens, setting.config.dim, vocabulary, rates, False)
    # bytes a logit: to float32 6, log-softmax 8, its gradient 16, back to bf16 6
    loss = Seconds(memory=setting.micro_tokens * vocabulary * 18 / rates.hbm)
    gather, scatter = _tp_collectives(setting, card, constants)
    return forward.plus(loss).plus(gather), backward.plus(loss).plus(scatter)


def step_seconds(setting: Setting, card: Card, constants: Constants = FITTED) -> Seconds:
    """Seconds of one optimizer step, of the slowest pipeline rank and what it waits for."""
    mesh = setting.mesh
    forward, backward = layer_seconds(setting, card, constants)
    head_forward, head_backward = head_seconds(setting, card, constants)
    layer, head = forward.plus(backward), head_forward.plus(head_backward)
    hop = hop_seconds(setting, card)
    ranks = [Seconds().plus(layer, count) for count in rank_layers(setting)]
    ranks[-1] = ranks[-1].plus(head)
    if not setting.asynchronous_p2p:  # each stage waits for what it receives, forward and backward
        ranks = [one.plus(Seconds(pp=2 * setting.stages_per_rank * hop)) for one in ranks]
    slowest = max(ranks, key=lambda one: one.total)
    busy = slowest.times(setting.micro_batches)
    idle = slowest.total * (rounds(setting) - setting.micro_batches)
    filling = 2 * (mesh.pp - 1) * hop if setting.asynchronous_p2p else 0.0  # later ones hide behind work
    exposed = _fsdp_seconds(setting, card, forward.total, backward.total)
    own = setting.config.parameters / mesh.size
    update = Seconds(memory=36 * own / (HBM_SHARE * card.hbm_bytes))  # AdamW moves 28 bytes a parameter, clipping 8
    step = busy.plus(Seconds(pp=filling, bubble=idle, dp=exposed)).plus(update)
    nodes = max(1.0, mesh.size / card.per_node)
    return step.plus(Seconds(jitter=step.total * constants.jitter * math.log2(nodes)))


def hop_seconds(setting: Setting, card: Card) -> float:
    """One activation from stage to stage, cut among the tensor-parallel ranks."""
    mesh = setting.mesh
    if mesh.pp == 1:
        return 0.0
    rate = bandwidth(card, mesh.pp, mesh.tp * mesh.cp)
    return 2 * setting.micro_tokens * setting.config.dim / mesh.tp / rate


def _fsdp_seconds(setting: Setting, card: Card, forward: float, backward: float) -> float:
    """Seconds of FSDP that no work hides: first gather, last reduction, and what of a layer's is longer than its work.

    bf16 weights are gathered, float32 gradients reduced (paper 3.3.2). `forward`, `backward`: seconds of a layer.
    """
    c, mesh = setting.config, setting.mesh
    size = mesh.cp * mesh.dp
    if size == 1:
        return 0.0
    ring = Ring.of(setting, card)
    rate = ring.bytes_per_second * size / (size - 1) * mesh.tp
    gather, reduce = (width * c.block_parameters / rate + ring.latency for width in (2, 4))
    ends = c.parameters - c.layers * c.block_parameters
    if mesh.pp == 1:  # embedding, norm and head are one group: gathered first, reduced last
        edge = 6 * ends / rate + 2 * ring.latency
        again, others = (gather, setting.micro_batches - 1) if setting.reshard else (0.0, 0)
        late = max(0.0, gather - forward) + max(0.0, again + reduce - backward)
        late += others * (max(0.0, gather - forward) + max(0.0, again - backward))
        return edge + c.layers * late
    first = max(stage_layers(setting)) * (gather + reduce)
    # the rest is gathered while the first stages work, and reduced while the last backwards do
    layers = max(rank_layers(setting))
    span = (
        setting.micro_batches if setting.stages_per_rank == 1 else min(setting.micro_batches, setting.group or mesh.pp)
    )
    return first + max(0.0, layers * (gather - forward * span)) + max(0.0, layers * (reduce - backward * span))
