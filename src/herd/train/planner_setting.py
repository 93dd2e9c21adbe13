"""One way to train a network on a mesh: what the planner judges. Which layers and micro-batches a rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herd.model.config import ModelConfig
from herd.recipe_compute import Mesh

# alternate: of the matrix products every second one is computed again too, as torchtitan's selective mode does
Recomputation = Literal["none", "selective", "alternate", "full"]


@dataclass(frozen=True)
class Setting:
    """A network, a mesh and how a step is cut. One data-parallel group trains `group_sequences` sequences a step.

    `stages_per_rank` is V, `run` is N: micro-batches a stage runs before the next one (paper 3.3.2; absent: PP).
    `fused`: element-wise work compiled into few kernels. `reshard`: FSDP gathers weights again for backward.
    `attention`: share of the card's peak where the kernel is another than the card's own.
    """

    config: ModelConfig
    mesh: Mesh
    context: int
    group_sequences: int
    micro_sequences: int = 1
    stages_per_rank: int = 1
    run: int | None = None
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


def stage_layers(setting: Setting) -> list[int]:
    """Transformer layers of each of the PP * V stages, first to last; what doesn't divide goes to the middle ones.

    With `ends_apart` the embedding and the output head take the place of a layer (paper 3.3.2).
    """
    stages = setting.mesh.pp * setting.stages_per_rank
    ends = 1 if setting.ends_apart else 0
    each, left = divmod(setting.config.layers + 2 * ends, stages)
    layers = [each] * stages
    layers[0] -= ends
    layers[-1] -= ends
    middle = list(range(1, stages - 1)) or [0]
    order = middle if left <= len(middle) else list(range(stages))
    for index in order[:left]:
        layers[index] += 1
    return layers


def rank_layers(setting: Setting) -> list[int]:
    """Layers of each pipeline rank: stage s is on rank s mod PP."""
    layers, pp = stage_layers(setting), setting.mesh.pp
    return [sum(layers[rank::pp]) for rank in range(pp)]


def in_flight(setting: Setting, rank: int) -> int:
    """Most micro-batches of a stage whose activations a rank holds at once, over its V stages.

    Megatron-LM's warm-up plus the one in work: PP - r for one stage a rank, 2 (PP - r - 1) + (V - 1) N + 1 for more.
    """
    pp, v, m = setting.mesh.pp, setting.stages_per_rank, setting.micro_batches
    if v == 1:
        return min(m, pp - rank)
    return min(v * m, 2 * (pp - rank - 1) + (v - 1) * min(m, setting.run or pp) + 1)


def rounds(setting: Setting) -> float:
    """Length of a pipeline's step in micro-batches of a whole rank: M without bubbles, M + (PP - 1) / V at N = PP.

    A stage's turn of N micro-batches can't be followed by the rank's next stage before the first of them has passed
    all PP ranks, so with V > 1 a turn shorter than PP waits. (The paper's (PP - 1) / (V M) is of M a multiple of N.)
    """
    pp, v, m = setting.mesh.pp, setting.stages_per_rank, setting.micro_batches
    if v == 1 or pp == 1:
        return m + pp - 1
    run = min(m, setting.run or pp)
    whole, last = divmod(m, run)
    turns = whole * max(run, pp) * v
    if last:
        turns += (v - 1) * max(last, pp) + last
    elif run < pp:
        turns -= pp - run  # nothing waits for the last turn
    return (turns + pp - 1) / v
