"""What training a network asks of a mesh: memory of its state on each rank, and the pipeline's bubble (paper 3.3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from herd.model.config import ModelConfig
from herd.recipe_compute import Mesh

# float32 weights 4, float32 gradients 4 (paper 3.3.2: accumulated and reduced in FP32), AdamW's two moments 8
STATE_BYTES_PER_PARAMETER = 16


@dataclass(frozen=True)
class MeshPlan:
    """`state_bytes_per_rank`: weights, gradients and moments, an even share; activations are not counted.

    `bubble`: share of the pipeline's ideal time that ranks wait, (PP - 1) / (V * M).
    """

    ranks: int
    sequences_per_group: int
    state_bytes_per_rank: float
    bubble: float


def plan_mesh(config: ModelConfig, mesh: Mesh, batch_sequences: int, stages_per_rank: int = 1) -> MeshPlan:
    """Plan a network on a mesh. A group is what data parallelism replicates; one micro-batch is one sequence.

    State is sharded over all ranks: by tensor and pipeline parallelism, and by FSDP over CP x DP (spec A5).
    """
    sequences = max(1, batch_sequences // mesh.dp)
    return MeshPlan(
        mesh.size,
        sequences,
        STATE_BYTES_PER_PARAMETER * config.parameters / mesh.size,
        (mesh.pp - 1) / (stages_per_rank * sequences),
    )
