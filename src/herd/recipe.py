"""The recipe: one TOML file that describes a family. Validated once; errors name file, key and what is allowed.

Settings that cannot change what a stage produces (how many processes work on it) are marked `exclude=True`: pydantic
then leaves them out of `model_dump`, and so they are no part of an artifact's key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from herd.console import HerdError
from herd.recipe_compute import Compute
from herd.recipe_data import Data
from herd.recipe_errors import explain
from herd.recipe_posttrain import Posttrain, Safety, Tools
from herd.recipe_section import Name, Positive, PositiveReal, Section, Share, no_twins


class Family(Section):
    name: Name
    seed: int = Field(default=0, ge=0, description="every random stream is derived from it")
    description: str = Field(default="", exclude=True)


class Tokenizer(Section):
    vocab_size: int = Field(default=2048, ge=512, le=1_000_000, description="special tokens included")
    train_bytes: Positive = Field(default=8_000_000, description="text that the merges are learned from")


class Size(Section):
    """A network's shape; what is left out follows from `[pretrain.architecture]`."""

    choices: ClassVar[str] = "'forecast' or a table of layers, dim, heads, kv_heads, ffn_dim"
    layers: Positive
    dim: Positive
    heads: Positive | None = None
    kv_heads: Positive | None = None
    ffn_dim: Positive | None = None


class ExpectedOptimum(Section):
    """Where the ladder starts looking: parameters * (budget / flops) ** exponent. It widens where this is wrong."""

    flops: PositiveReal
    parameters: PositiveReal
    exponent: PositiveReal = 0.5


class Scaling(Section):
    budgets_flops: list[PositiveReal] = Field(min_length=3)
    forecast_flops: PositiveReal
    grid: list[Size] = Field(default=[], description="sizes the ladder may train, small to large")
    cells_per_budget: int = Field(default=5, ge=4, description="a parabola and its noise need four")
    extra_cells: int = Field(default=3, ge=0, description="cells a budget may add until its minimum is bracketed")
    expected_optimum: ExpectedOptimum | None = None
    confidence: Share = 0.9

    @field_validator("budgets_flops")
    @classmethod
    def _distinct(cls, budgets: list[float]) -> list[float]:
        if len(set(budgets)) < len(budgets):
            raise ValueError("a budget is named twice")
        return budgets

    @model_validator(mode="after")
    def _beyond(self) -> Scaling:
        if self.forecast_flops < 3 * max(self.budgets_flops):
            raise ValueError(
                f"forecast_flops {self.forecast_flops:g} must be at least 3x the largest budget "
                f"{max(self.budgets_flops):g}: a forecast nearby proves little"
            )
        return self


class TokenCount(Section):
    choices: ClassVar[str] = "'optimal', a number above 0 or a table { count = N }"
    count: PositiveReal


class Member(Section):
    name: Name
    role: Literal["laptop", "server", "reference"]
    size: Literal["forecast"] | Size = Field(default="forecast", description="of a member trained from scratch")
    tokens: Literal["optimal"] | PositiveReal | TokenCount = Field(
        default="optimal", description="'optimal', a multiple of optimal, or {count = N}"
    )
    from_: str = Field(
        default="scratch",
        alias="from",
        description="'scratch', or open weights: package:NAME, or the path of a .gguf file, relative to the recipe",
    )
    peak_learning_rate: PositiveReal | None = Field(default=None, description="overrides [pretrain.learning_rate]")

    @property
    def adopted(self) -> bool:
        """Whether its weights are somebody else's."""
        return self.from_ != "scratch"


class Architecture(Section):
    head_dim: Positive = 16
    queries_per_kv_head: Positive = 2
    ffn_ratio: PositiveReal = Field(default=8 / 3, description="FFN width over model width, before rounding up")
    ffn_multiple_of: Positive = 16
    tied_embeddings: bool = True
    rope_theta: PositiveReal = 500_000.0
    norm_eps: PositiveReal = 1e-5


class LearningRate(Section):
    peak: PositiveReal = Field(description="peak learning rate at width reference_dim")
    reference_dim: Positive | None = Field(
        default=None, description="peak * sqrt(reference_dim / dim); absent: one for all"
    )
    warmup_steps: Positive | None = None
    warmup_share: Share = Field(default=0.05, description="share of the steps, where warmup_steps is absent")
    final_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="cosine ends at this share of the peak"
    )
    cosine_steps: Positive | None = Field(
        default=None, description="the cosine's horizon; absent: the run's own length"
    )


class RampStep(Section):
    after_tokens: Annotated[float, Field(ge=0)]
    tokens: Positive
    context_tokens: Positive


class Batch(Section):
    """Tokens a step: tokens * (budget / reference_flops) ** exponent, rounded to whole sequences; or a ramp."""

    tokens: Positive = 1024
    reference_flops: PositiveReal | None = None
    exponent: Annotated[float, Field(ge=0, le=1)] = 0.0
    ramp: list[RampStep] = Field(default=[])


class Optimizer(Section):
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: PositiveReal = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: PositiveReal = 1.0


class LongContext(Section):
    context_tokens: Positive
    share: Share = Field(default=0.05, description="tokens of this step over tokens of initial pre-training")
    rope_factor: PositiveReal | None = Field(
        default=None, description="stretch of long RoPE wavelengths; absent: growth of the context"
    )
    low_freq_factor: PositiveReal = 1.0
    high_freq_factor: PositiveReal = 4.0


class Anneal(Section):
    share: Share | None = Field(default=0.1, description="tokens of this step over tokens of initial pre-training")
    tokens: Positive | None = Field(default=None, description="overrides share")
    checkpoints: int = Field(default=4, ge=1, description="evenly spaced checkpoints that are averaged")
    upsample: dict[Literal["code", "docs", "prose", "table", "general", "reasoning", "multilingual"], PositiveReal] = (
        Field(default={}, description="weight by kind of document or group of the mix; 1 where not named")
    )


class Pretrain(Section):
    context_tokens: Positive = 256
    architecture: Architecture = Architecture()
    learning_rate: LearningRate
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()
    long_context: LongContext | None = None
    anneal: Anneal | None = None


class Evaluate(Section):
    max_documents: Positive = Field(default=400, description="held-out documents scored")
    bootstrap_samples: Positive = 1000
    confidence: Share = 0.95


# FORMAT-KIND: how the matrices are stored; without a kind bfloat16, of GGUF float16
ExportForm = Literal[
    "huggingface",
    "huggingface-f16",
    "huggingface-f32",
    "meta",
    "meta-f16",
    "meta-f32",
    "gguf-f32",
    "gguf-f16",
    "gguf-bf16",
    "gguf-q8_0",
    "gguf-q4_0",
]


class Deploy(Section):
    formats: list[ExportForm] = Field(default=["huggingface"])


class Recipe(Section):
    family: Family
    data: Data | None = Field(default=None, description="like scaling and pretrain, for members from scratch")
    tokenizer: Tokenizer = Tokenizer()
    scaling: Scaling | None = None
    member: list[Member] = Field(min_length=1)
    pretrain: Pretrain | None = None
    posttrain: Posttrain | None = None
    safety: Safety | None = None
    tools: Tools = Tools()
    evaluate: Evaluate = Evaluate()
    deploy: Deploy = Deploy()
    compute: Compute = Compute()
    provenance: dict[str, str] = Field(
        default={}, exclude=True, description="dotted key = 'paper ...', 'released code ...', 'ours ...'"
    )

    @field_validator("member")
    @classmethod
    def _distinct(cls, members: list[Member]) -> list[Member]:
        no_twins([member.name for member in members])
        return members

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        scratch = [member.name for member in self.member if not member.adopted]
        if missing := [name for name in ("data", "scaling", "pretrain") if scratch and getattr(self, name) is None]:
            raise ValueError(f"[{missing[0]}] is missing: member '{scratch[0]}' is trained from scratch")
        if self.posttrain is not None:
            known = {member.name: member for member in self.member}
            for name in self.posttrain.members:
                if name not in known or not known[name].adopted:
                    raise ValueError(
                        f"posttrain.members: '{name}' is not a member with from = 'package:...' or a file; "
                        "this version post-trains open weights"
                    )
        return self

    @property
    def assistants(self) -> list[Member]:
        """Members to post-train."""
        if self.posttrain is None:
            return []
        return [
            m for m in self.member if m.adopted and (not self.posttrain.members or m.name in self.posttrain.members)
        ]

    @field_validator("provenance")
    @classmethod
    def _origins(cls, provenance: dict[str, str]) -> dict[str, str]:
        for key, origin in provenance.items():
            if not origin.startswith(("paper", "released code", "ours")):
                raise ValueError(f"'{key}' must begin with 'paper', 'released code' or 'ours', not '{origin}'")
        return provenance

    def find_member(self, name: str) -> Member:
        """The member of this name. Raises HerdError listing the names there are."""
        for member in self.member:
            if member.name == name:
                return member
        raise HerdError(
            f"no member '{name}' in family {self.family.name}; there are: {', '.join(m.name for m in self.member)}"
        )


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Raises HerdError, one line for each problem, naming file, key, value and what is allowed.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HerdError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise HerdError(f"{path}: a folder, not a recipe file") from None
    except UnicodeDecodeError as error:
        raise HerdError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise HerdError(f"{path}: not valid TOML: {error}") from None
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise HerdError("\n".join(f"{path}: {line}" for line in explain(error, tables, Recipe))) from None
