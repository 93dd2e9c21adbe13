"""What a recipe means for one network: shape, batch, learning rate and steps, each by a rule that can be printed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from herd.artifact import Artifact
from herd.console import HerdError
from herd.data.loader import Batch, Loader, derive_seed
from herd.data.mix import MixRow, Mixture, plan_mix
from herd.data.shards import Shards
from herd.model.config import ModelConfig, RopeScaling, ffn_width
from herd.recipe import Member, Pretrain, Scaling, Size, TokenCount
from herd.recipe_data import Mix
from herd.scaling.forecast import Forecast
from herd.train.optim import Schedule


@dataclass(frozen=True)
class Stretch:
    """Steps of constant shape: `steps` batches of `sequences` rows of `context` tokens."""

    steps: int
    sequences: int
    context: int

    @property
    def tokens(self) -> int:
        return self.steps * self.sequences * self.context


@dataclass(frozen=True)
class TrainingPlan:
    """Initial pre-training of one network. `flops` is what its tokens cost, by `ModelConfig.train_flops_per_token`."""

    config: ModelConfig
    stretches: tuple[Stretch, ...]
    schedule: Schedule
    flops: float

    @property
    def steps(self) -> int:
        return sum(s.steps for s in self.stretches)

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.stretches)


def model_config(size: Size, pretrain: Pretrain, vocab_size: int) -> ModelConfig:
    """The network of a size; what the size leaves out follows from `[pretrain.architecture]`."""
    rules = pretrain.architecture
    heads = size.heads or max(1, size.dim // rules.head_dim)
    kv_heads = size.kv_heads or max(
        k for k in range(1, heads + 1) if heads % k == 0 and (k == 1 or k * rules.queries_per_kv_head <= heads)
    )
    return ModelConfig(
        layers=size.layers,
        dim=size.dim,
        heads=heads,
        kv_heads=kv_heads,
        ffn_dim=size.ffn_dim or ffn_width(size.dim, rules.ffn_ratio, rules.ffn_multiple_of),
        vocab_size=vocab_size,
        head_dim=rules.head_dim,
        context=pretrain.context_tokens,
        tied_embeddings=rules.tied_embeddings,
        rope_theta=rules.rope_theta,
        norm_eps=rules.norm_eps,
    )


def candidate_sizes(scaling: Scaling) -> list[Size]:
    """Sizes the ladder may train, small to large. Raises HerdError for an empty grid."""
    if not scaling.grid:
        raise HerdError("scaling.grid: empty; list the sizes to train, small to large, as {layers = .., dim = ..}")
    return scaling.grid


def forecast_size(parameters: float, scaling: Scaling, pretrain: Pretrain, vocab_size: int) -> Size:
    """The network nearest to a forecast number of parameters, in the ratio of the two.

    Depth and width lie between those of the grid's sizes just below and above; beyond the grid, up to twice its last.
    Widths that the heads do not divide are left out: transformers loads no such model, and Meta's format has no name
    for one.
    """
    grid = candidate_sizes(scaling)

    def count(size: Size) -> int:
        return model_config(size, pretrain, vocab_size).matmul_parameters

    def loads(size: Size) -> bool:
        config = model_config(size, pretrain, vocab_size)
        return config.dim % config.heads == 0

    below = max((s for s in grid if count(s) <= parameters), key=count, default=grid[0])
    above = min((s for s in grid if count(s) > parameters), key=count, default=None)
    above = above or Size(layers=2 * grid[-1].layers, dim=2 * grid[-1].dim)
    widths = range(below.dim, above.dim + 1, math.gcd(*(s.dim for s in grid)))
    between = (Size(layers=layers, dim=dim) for layers in range(below.layers, above.layers + 1) for dim in widths)
    return min(filter(loads, between), key=lambda size: abs(math.log(count(size) / parameters)))


def plan_budget(config: ModelConfig, pretrain: Pretrain, flops: float, peak: float | None = None) -> TrainingPlan:
    """Spend a budget on a network: tokens = FLOPs / FLOPs a token. Raises HerdError where that is not one step."""
    return plan_tokens(config, pretrain, flops / config.train_flops_per_token(), flops, peak)


def plan_tokens(
    config: ModelConfig, pretrain: Pretrain, tokens: float, flops: float, peak: float | None = None
) -> TrainingPlan:
    """Train a network on a number of tokens; `flops` sets the batch by the recipe's rule."""
    stretches = tuple(_stretches(config, pretrain, tokens, flops))
    steps = sum(s.steps for s in stretches)
    if steps < 1:
        raise HerdError(
            f"{tokens:,.0f} tokens are less than one batch; raise the budget or lower pretrain.batch.tokens"
        )
    rate = pretrain.learning_rate
    scale = math.sqrt(rate.reference_dim / config.dim) if rate.reference_dim and peak is None else 1.0
    top = (peak or rate.peak) * scale
    warmup = rate.warmup_steps or max(1, round(rate.warmup_share * steps))
    schedule = Schedule(top, rate.final_share * top, warmup, rate.cosine_steps or steps)
    spent = sum(s.tokens for s in stretches) * config.train_flops_per_token()
    return TrainingPlan(config, stretches, schedule, spent)


def _stretches(config: ModelConfig, pretrain: Pretrain, tokens: float, flops: float) -> Iterator[Stretch]:
    batch = pretrain.batch
    if not batch.ramp:
        wanted = batch.tokens * ((flops / batch.reference_flops) ** batch.exponent if batch.reference_flops else 1.0)
        sequences = max(1, round(wanted / config.context))
        yield Stretch(int(tokens / (sequences * config.context)), sequences, config.context)
        return
    ends = [step.after_tokens for step in batch.ramp[1:]] + [tokens]
    for step, end in zip(batch.ramp, ends, strict=True):
        rows = max(1, round(step.tokens / step.context_tokens))
        share = min(end, tokens) - step.after_tokens
        if share > 0:
            yield Stretch(round(share / (rows * step.context_tokens)), rows, step.context_tokens)


def member_plan(
    scaling: Scaling, pretrain: Pretrain, member: Member, vocab_size: int, found: Forecast | None
) -> TrainingPlan | None:
    """Plan of a member, or None where it needs a forecast that is not there yet.

    Optimal tokens of a given size are those of the budget whose optimal size it is, by the ladder's power law.
    """
    if isinstance(member.size, Size):
        config = model_config(member.size, pretrain, vocab_size)
    elif found is None:
        return None
    else:
        config = model_config(forecast_size(found.parameters, scaling, pretrain, vocab_size), pretrain, vocab_size)
    if isinstance(member.tokens, TokenCount):
        tokens = member.tokens.count
    elif found is None:
        return None
    else:
        if member.size == "forecast":
            budget = found.budget_flops
        else:
            budget = found.size_law.inverse(config.matmul_parameters)
        tokens = budget / config.train_flops_per_token() * (1.0 if member.tokens == "optimal" else member.tokens)
    flops = tokens * config.train_flops_per_token()
    return plan_tokens(config, pretrain, tokens, flops, member.peak_learning_rate)


def long_context_scaling(pretrain: Pretrain) -> RopeScaling:
    """RoPE scaling of the long-context step: by how much the context grows, unless the recipe names a factor."""
    long = pretrain.long_context
    assert long is not None
    factor = long.rope_factor or long.context_tokens / pretrain.context_tokens
    return RopeScaling(factor, long.low_freq_factor, long.high_freq_factor, pretrain.context_tokens)


class PlannedBatches:
    """Batches of a plan's stretches one after the other, by step.

    `mixture` moves over all of them, in proportion to tokens; without it streams weigh as much as they have tokens.
    `weights` multiplies shares by stream, kind or group.
    """

    def __init__(
        self,
        shards: Shards,
        stretches: tuple[Stretch, ...],
        seed: int,
        weights: dict[str, float] | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self._loaders: list[tuple[int, Loader]] = []
        total = sum(s.tokens for s in stretches)
        first = tokens = 0
        for index, s in enumerate(stretches):
            part = mixture and mixture.part(tokens / total, (tokens + s.tokens) / total)
            own = derive_seed(seed, index)
            loader = Loader(shards.streams, s.context, s.sequences, s.steps, own, shards.bos_id, weights, part)
            self._loaders.append((first, loader))
            first, tokens = first + s.steps, tokens + s.tokens

    def __getitem__(self, step: int) -> Batch:
        return self.part(step, 0, 1)

    def part(self, step: int, rank: int, ranks: int) -> Batch:
        """One data-parallel rank's rows of a step, as `Loader.part`."""
        first, loader = self._at(step)
        return loader.part(step - first, rank, ranks)

    def state(self, step: int) -> dict[str, Any]:
        """All that a checkpoint must hold to go on at a step, as `Loader.state`."""
        first, loader = self._at(step)
        return loader.state(step - first) | {"first_step": first}

    def check(self, state: Mapping[str, Any]) -> int:
        """The step that a state says to go on at. Raises HerdError where it is of others, naming the difference."""
        first, loader = self._at(state["first_step"])
        return first + loader.check(state)

    def _at(self, step: int) -> tuple[int, Loader]:
        """The stretch of a step: its first step, and its loader."""
        return next((first, loader) for first, loader in reversed(self._loaders) if first <= step)


def bytes_per_token(shards: Shards) -> float:
    """Of the held-out documents: what turns a loss a token into bits a byte."""
    held_out = shards.heldout
    return float(held_out.bytes.sum() / max(1, held_out.starts[-1]))


def training_mix(mix: Mix, inputs: Mapping[str, Artifact]) -> Mix:
    """The recipe's mix, with the shares that a search chose (inputs["mix"]) where there was one."""
    if "mix" not in inputs:
        return mix
    return mix.model_copy(update={"shares": inputs["mix"].json("mix.json")["shares"]})


def mixture_for(shards: Shards, mix: Mix, tokens: float) -> tuple[Mixture, list[MixRow]]:
    """The mixture for training on so many tokens of these shards, and its table."""
    return plan_mix({name: len(stream) for name, stream in shards.streams.items()}, mix, tokens)


def target_tokens(plan: TrainingPlan, target_flops: float) -> float:
    """Tokens of the target that a small run stands for: optimal tokens grow about as the square root of the budget
    (paper 3.2.1: exponent 0.53). What text can't give the target at `max_epochs`, small runs may not have either."""
    return plan.tokens * math.sqrt(max(1.0, target_flops / plan.flops))


def late_mixture(shards: Shards, mix: Mix, tokens: float) -> Mixture:
    """The mixture that training on so many tokens ends with, standing still: for the steps that follow it."""
    end = mixture_for(shards, mix, tokens)[0].end
    return Mixture(end, end)


def upsampling(weights: Mapping[str, float], shards: Shards) -> dict[str, float]:
    """Those of the recipe's weights that name a kind or a group of the shards; a recipe may name more than there is."""
    there = {part for stream in shards.streams for part in (stream, *stream.split("/"))}
    return {name: weight for name, weight in weights.items() if name in there}
