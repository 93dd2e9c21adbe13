"""What training on a mesh takes: seconds of a step, bytes on a rank; which mesh is best (docs/planner.md)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from herd.model.config import ModelConfig
from herd.recipe_compute import Compute, Mesh
from herd.train.gpus import Card
from herd.train.planner_memory import Bytes, peak_bytes
from herd.train.planner_setting import Setting, stage_layers
from herd.train.planner_time import Seconds, head_seconds, hop_seconds, layer_seconds, step_seconds

MOST_STAGES_PER_RANK = 16
MOST_MICRO_SEQUENCES = 16


@dataclass(frozen=True)
class StepPlan:
    """A setting on a card: where its step's seconds go, and what fills the fullest rank."""

    setting: Setting
    card: Card
    seconds: Seconds
    memory: Bytes

    @property
    def tokens_per_second(self) -> float:
        return self.setting.step_tokens / self.seconds.total

    @property
    def flops_per_gpu(self) -> float:
        """Model FLOPs a second of one GPU, as the paper counts them: recomputation does not count."""
        context = self.setting.context
        return self.tokens_per_second * self.setting.config.train_flops_per_token(context) / self.setting.mesh.size

    @property
    def mfu(self) -> float:
        """Model FLOPs over the card's bf16 peak."""
        return self.flops_per_gpu / self.card.bf16_flops

    @property
    def bubble(self) -> float:
        """Time a rank waits for others, over the time it works: (PP - 1) / (V M) at N = PP (paper 3.3.2)."""
        waits = self.seconds.bubble
        return waits / (self.seconds.total - waits - self.seconds.jitter - self.seconds.dp)

    def stage_seconds(self) -> tuple[list[float], list[float], float]:
        """Seconds of a micro-batch forward and backward, of each stage; and of an activation on its way to the next."""
        forward, backward = layer_seconds(self.setting, self.card)
        head = head_seconds(self.setting, self.card)
        layers = stage_layers(self.setting)
        ahead, back = ([count * one.total for count in layers] for one in (forward, backward))
        ahead[-1] += head[0].total
        back[-1] += head[1].total
        return ahead, back, hop_seconds(self.setting, self.card)

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.card.memory_bytes


class Found(NamedTuple):
    """`best`: of each degree of TP, CP and PP the fastest plan that fits, fastest first.

    `too_big`: the fastest plan that memory rules out. `tried`: plans judged.
    """

    best: list[StepPlan]
    too_big: StepPlan | None
    tried: int


def plan_step(setting: Setting, card: Card) -> StepPlan:
    """Plan one setting. Raises HerdError where stages would be empty or an order is too long to be played."""
    return StepPlan(setting, card, step_seconds(setting, card), peak_bytes(setting))


def recipe_setting(config: ModelConfig, compute: Compute, context: int, sequences: int) -> Setting:
    """The setting of a recipe's `[compute]` for batches of `sequences` of `context` tokens."""
    own = max(1, -(-sequences // compute.mesh.dp))
    return Setting(
        config,
        compute.mesh,
        context,
        own,
        micro_sequences=min(own, compute.micro_rows),
        stages_per_rank=compute.pipeline.stages_per_rank,
        group=compute.pipeline.group,
        ends_apart=compute.pipeline.ends_apart,
        recompute=compute.recompute,
        fused=compute.compile,
        reshard=compute.reshard_after_forward,
    )


def search(config: ModelConfig, context: int, sequences: int, ranks: int, card: Card, *, keep: int = 6) -> Found:
    """Plan every mesh of so many ranks that cuts network and batch evenly, with each way to cut and recompute.

    TP stays inside a node; element-wise work is compiled. Of equally fast plans the one with the least memory is best.
    """
    fastest: dict[tuple[int, int, int], StepPlan] = {}
    too_big: StepPlan | None = None
    tried = 0
    for setting in settings(config, context, sequences, ranks, card):
        plan, tried = plan_step(setting, card), tried + 1
        if not plan.fits:
            too_big = plan if too_big is None or _rank(plan) < _rank(too_big) else too_big
            continue
        degrees = (setting.mesh.tp, setting.mesh.cp, setting.mesh.pp)
        if degrees not in fastest or _rank(plan) < _rank(fastest[degrees]):
            fastest[degrees] = plan
    best = sorted(fastest.values(), key=_rank)[:keep]
    if best and too_big is not None and _rank(too_big) >= _rank(best[0]):
        too_big = None
    return Found(best, too_big, tried)


def _rank(plan: StepPlan) -> tuple[float, float]:
    return round(plan.seconds.total, 9), plan.memory.total


def settings(config: ModelConfig, context: int, sequences: int, ranks: int, card: Card) -> Iterator[Setting]:
    """Every setting that `search` judges. Compiled code keeps no more than selective recomputation: none or full."""
    for mesh in meshes(config, context, sequences, ranks, card):
        own = sequences // mesh.dp
        base = Setting(config, mesh, context, own)
        micros = [size for size in _powers(min(own, MOST_MICRO_SEQUENCES)) if own % size == 0]
        for micro, mode in itertools.product(micros, ("none", "full")):
            setting = replace(base, micro_sequences=micro, recompute=mode)
            if mesh.pp == 1:
                yield setting
                if mesh.cp * mesh.dp > 1:
                    yield replace(setting, reshard=True)
                continue
            for v in _powers(min(MOST_STAGES_PER_RANK, (config.layers + 2) // mesh.pp)):
                if v > 1 and own // micro > mesh.pp and own // micro % mesh.pp:
                    continue  # an order that would have to be played; PP and V of its neighbours tell as much
                apart = mesh.pp * v > config.layers
                if not apart or mesh.pp * v > 2:
                    yield replace(setting, stages_per_rank=v, ends_apart=apart)


def meshes(config: ModelConfig, context: int, sequences: int, ranks: int, card: Card) -> Iterator[Mesh]:
    """Meshes of `ranks` whose degrees divide heads, layers' widths, the context in 2 CP chunks, and the batch."""
    for tp in _powers(min(ranks, card.per_node)):
        if ranks % tp or config.heads % tp or config.kv_heads % tp or config.ffn_dim % tp:
            continue
        for cp in _powers(ranks // tp):
            if ranks % (tp * cp) or (cp > 1 and context % (2 * cp * tp)):
                continue
            for pp in range(1, min(ranks // (tp * cp), config.layers + 2) + 1):
                dp, left = divmod(ranks, tp * cp * pp)
                if not left and sequences % dp == 0:
                    yield Mesh(tp=tp, cp=cp, pp=pp, dp=dp)


def _powers(most: int) -> list[int]:
    return [1 << exponent for exponent in range(max(1, most).bit_length())]


def differences(plan: StepPlan, best: StepPlan) -> list[tuple[str, float]]:
    """Seconds by which the parts of a step differ from the best one's, the largest first.

    Those under half a percent of its step are left out, but for the largest.
    """
    parts = [(name, a - b) for name, a, b in zip(Seconds._fields, plan.seconds, best.seconds, strict=True)]
    parts.sort(key=lambda part: -abs(part[1]))
    return parts[:1] + [part for part in parts[1:] if abs(part[1]) > 0.005 * best.seconds.total]
