"""One way to train a network on a mesh: what the planner judges. Which layers and micro-batches a rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.recipe_compute import Mesh
from herd.train.parallel.schedule import interleaved, simulate, split_layers

MAX_ACTIONS = 50_000  # of an order that is played: about three seconds

# alternate: of the matrix products every second one is computed again too, as torchtitan's selective mode does
Recomputation = Literal["none", "selective", "alternate", "full"]


@dataclass(frozen=True)
class Setting:
    """A network, a mesh and how a step is cut. One data-parallel group trains `group_sequences` sequences a step.

    `stages_per_rank` is V, `group` is N: micro-batches a stage runs before the next one (paper 3.3.2; absent: PP).
    `fused`: element-wise work compiled into few kernels. `reshard`: FSDP gathers weights again for backward.
    `attention`: share of the card's peak where the kernel is another than the card's own.
    """

    config: ModelConfig
    mesh: Mesh
    context: int
    group_sequences: int
    micro_sequences: int = 1
    stages_per_rank: int = 1
    group: int | None = None
    ends_apart: bool = False
    recompute: Recomputation = "none"
    fused: bool = True
    chunked_loss: bool = True
    reshard: bool = False
    asynchronous_tp: bool = False
    asynchronous_p2p: bool = True
    float8: bool = False
    attention: float | None = None

    @property
    def micro_batches(self) -> int:
        """M; the last may be smaller."""
        return -(-self.group_sequences // self.micro_sequences)

    @property
    def micro_tokens(self) -> float:
        """Tokens of a micro-batch that one context-parallel rank holds."""
        return self.micro_sequences * self.context / self.mesh.cp

    @property
    def step_tokens(self) -> int:
        return self.group_sequences * self.context * self.mesh.dp

    @property
    def accumulates(self) -> bool:
        """Whether gradients wait, unsharded, for further micro-batches (FSDP reduces them once a step)."""
        return self.micro_batches > 1 or self.mesh.pp > 1


def stage_layers(setting: Setting) -> tuple[int, ...]:
    """Transformer layers of each of the PP * V stages, first to last. Raises HerdError where a stage would be empty."""
    return _split(setting.config.layers, setting.mesh.pp * setting.stages_per_rank, setting.ends_apart)


def rank_layers(setting: Setting) -> tuple[int, ...]:
    """Layers of each pipeline rank: stage s is on rank s mod PP."""
    layers, pp = stage_layers(setting), setting.mesh.pp
    return tuple(sum(layers[rank::pp]) for rank in range(pp))


@lru_cache(maxsize=1024)  # a search asks for the same few thousands of times
def _split(layers: int, stages: int, ends_apart: bool) -> tuple[int, ...]:
    return tuple(map(len, split_layers(layers, stages, ends_apart)))


def in_flight(setting: Setting, rank: int) -> int:
    """Most micro-batches of a stage whose activations a rank holds at once, over its V stages.

    Megatron-LM's warm-up plus the one in work: PP - r for one stage a rank, 2 (PP - r - 1) + (V - 1) N + 1 for more.
    """
    pp, v, m = setting.mesh.pp, setting.stages_per_rank, setting.micro_batches
    if v == 1:
        return min(m, pp - rank)
    return min(v * m, 2 * (pp - rank - 1) + (v - 1) * min(m, setting.group or pp) + 1)


def rounds(setting: Setting) -> float:
    """Length of a pipeline's step in micro-batches of a whole rank: M, and what it waits; (PP - 1) / V at N = PP.

    The formula is exact for one stage a rank, for M a multiple of N >= PP, and for M <= PP; other orders are played.
    """
    pp, v, m = setting.mesh.pp, setting.stages_per_rank, setting.micro_batches
    group = min(m, setting.group or pp)
    if pp == 1:
        return m
    if v == 1 or (group >= pp and m % group == 0):
        return m + (pp - 1) / v
    if m <= group:  # a rank's next stage waits until the first micro-batch has passed all ranks
        return ((v - 1) * pp + m + pp - 1) / v
    return _played(pp, v, m, group)


@lru_cache(maxsize=4096)
def _played(pp: int, v: int, m: int, group: int) -> float:
    """The same from the pipeline's own order of forwards and backwards, the latter twice as long.

    Raises HerdError for orders of more than MAX_ACTIONS actions, which take seconds to play.
    """
    if 2 * pp * v * m > MAX_ACTIONS:
        raise HerdError(f"PP {pp}, V {v}, M {m}, N {group}: too long to play; take N a divisor of M and at least PP")
    timeline = simulate(interleaved(pp, v, m, group), [1.0] * (pp * v), [2.0] * (pp * v))
    return max(slots[-1].end for slots in timeline) / (3 * v)
