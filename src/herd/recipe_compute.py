"""The recipe's `[compute]`: where and how training runs. What changes results in the last digits is part of keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from herd.recipe_section import Positive, PositiveReal, Section


class Mesh(Section):
    """Degrees of tensor, context, pipeline and data parallelism, innermost first (paper 3.3.2)."""

    tp: Positive = 1
    cp: Positive = 1
    pp: Positive = 1
    dp: Positive = 1

    @property
    def size(self) -> int:
        return self.tp * self.cp * self.pp * self.dp


ScheduleName = Literal[
    "interleaved",  # the paper's: any number of micro-batches, tunable group, one or more stages a rank
    "gpipe",
    "1f1b",
    "looped-bfs",
    "torch-interleaved",
    "interleaved-zero-bubble",
    "zbv-zero-bubble",
    "dualpipe-v",
]


class Pipeline(Section):
    """How a network is cut into stages, and in which order their micro-batches run (paper 3.3.2, spec 4.3)."""

    schedule: ScheduleName = "interleaved"
    stages_per_rank: Positive = Field(default=1, description="V; stage s lives on rank s mod PP")
    group: Positive | None = Field(
        default=None, description="N: micro-batches a stage runs before the next one; absent: PP"
    )
    ends_apart: bool = Field(
        default=False, description="the first stage holds the embedding alone, the last one the output head alone"
    )


class Saving(Section):
    """Checkpoints of training, beside the artifacts."""

    every_seconds: PositiveReal = Field(default=30.0, description="less often where writing takes long")
    keep: Positive = Field(default=2, description="the newest; older ones are deleted")
    keep_best: Annotated[int, Field(ge=0)] = Field(default=0, description="and those of the lowest training loss")
    to: str | None = Field(
        default=None, description="a folder or address (s3://...) that every process reaches; absent: in the run"
    )
    asynchronous: bool = Field(default=True, description="write while training goes on")


AfterSpike = Literal["log", "skip", "roll-back", "stop"]


class Anomalies(Section):
    """What happens at a step whose loss or gradient is not finite, or jumps. It is always logged."""

    not_finite: Literal["skip", "roll-back", "stop"] = "stop"
    spike: AfterSpike = "log"
    spike_deviations: PositiveReal = Field(
        default=8.0, description="a spike is a loss so many deviations above the median of the last 16"
    )
    window_steps: Positive = Field(default=100, description="steps that the deviation is taken from")
    most_in_a_row: Positive = Field(default=3, description="after so many skipped or rolled back steps training stops")


class Compute(Section):
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where it is native"
    )
    mesh: Mesh = Mesh()
    pipeline: Pipeline = Pipeline()
    micro_sequences: Positive | None = Field(
        default=None, description="sequences that pass through the network at once, at most; absent: 64, in pipelines 1"
    )
    recompute: Literal["none", "selective", "full"] = Field(
        default="none", description="activations computed again in backward: all but matrix products, or all"
    )
    compile: bool = Field(default=False, description="torch.compile of each block; its first step takes up to minutes")
    reshard_after_forward: bool = Field(
        default=False, description="FSDP gathers weights again for backward: less memory, more traffic (paper: no)"
    )
    threads: Positive = Field(default=1, description="threads of one training process; changes sums in the last digits")
    processes: Positive | None = Field(default=None, exclude=True, description="absent: one a core")
    checkpoints: Saving = Field(default=Saving(), exclude=True)
    anomalies: Anomalies = Anomalies()
    hang_seconds: PositiveReal = Field(
        default=600.0, exclude=True, description="a mesh on which no rank moves for so long is reported and ended"
    )
    log: list[Literal["tensorboard", "wandb"]] = Field(
        default=[], exclude=True, description="where metrics go besides metrics.jsonl"
    )

    @property
    def micro_rows(self) -> int:
        """Most sequences of a micro-batch: given, or 1 in pipelines, which need many, and 64 elsewhere."""
        return self.micro_sequences or (1 if self.mesh.pp > 1 else 64)

    @model_validator(mode="after")
    def _fits(self) -> Compute:
        in_halves = self.pipeline.schedule in ("interleaved-zero-bubble", "zbv-zero-bubble", "dualpipe-v")
        if in_halves and (self.recompute != "none" or self.compile):
            raise ValueError(
                f"pipeline.schedule '{self.pipeline.schedule}' runs backward in halves, each of which would compute "
                "activations again: it needs recompute = 'none' and compile = false"
            )
        v_shaped = self.pipeline.schedule in ("zbv-zero-bubble", "dualpipe-v")
        if v_shaped and self.pipeline.stages_per_rank != 2:
            raise ValueError(f"pipeline.schedule '{self.pipeline.schedule}' needs stages_per_rank = 2")
        if self.pipeline.schedule in ("gpipe", "1f1b") and self.pipeline.stages_per_rank != 1:
            raise ValueError(f"pipeline.schedule '{self.pipeline.schedule}' needs stages_per_rank = 1")
        return self
