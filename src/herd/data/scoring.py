"""The third pass over a part: scores that need the whole corpus to have been seen once.

How far a document's words are from its corpus, how much it resembles reference text, what it is about. Scores of all
documents are a few numbers each; `limits` turns them into what the last pass drops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.data import outliers, quality
from herd.data.cleaning import TEXT_KINDS
from herd.data.decontaminate import Benchmarks
from herd.data.documents import read_rows
from herd.data.filtering import benchmarks_of, corpus_of
from herd.data.judged import ENCODER, TECHNICAL
from herd.data.linear import LinearModel
from herd.data.quality import QualityModels
from herd.data.technical import code_score, reasoning_score
from herd.data.topics import TopicModel, cap
from herd.data.words import Tokens, tokens
from herd.recipe_data import Data, Decontamination


class Scoring(NamedTuple):
    """A task: score a part's filtered documents by the corpus's words and the models in `models`."""

    filtered: Path
    out: Path
    corpora: Path
    models: Path
    reference: tuple[str, ...]
    base: Path
    decontamination: Decontamination | None

    def benchmarks(self) -> Benchmarks | None:
        """The benchmarks to keep out, less the phrases that many documents share."""
        if self.decontamination is None:
            return None
        found, common = benchmarks_of(self.decontamination, self.base), self.corpora.parent / "common.npy"
        return found.without(np.load(common)) if self.decontamination.common_documents else found


def score(task: Scoring) -> str:
    """Scores of a part's documents, in its order, as arrays in a file."""
    with np.load(task.corpora) as counts:
        shares = {name: outliers.log_shares(counts[name]) for name in counts.files}
    judge = QualityModels.load(task.models) if (task.models / "quality.json").is_file() else None
    encoder = _by_encoder(task)
    technical = [_model(task.models, name) for name in TECHNICAL]
    topics = TopicModel.load(task.models) if (task.models / "topics.json").is_file() else None
    benchmarks, max_hits = task.benchmarks(), task.decontamination.max_hits if task.decontamination else 0
    columns: dict[str, list[Any]] = defaultdict(list)
    for row in read_rows(task.filtered):
        parts = tokens(row["text"])
        corpus = corpus_of(row)
        columns["divergence"].append(outliers.divergence(parts, shares[corpus]))
        columns["cell"].append(f"{corpus} {outliers.octave(len(parts.words))}")
        columns["language"].append(row["language"])
        columns["judged"].append(row["source"] not in task.reference and row["kind"] in TEXT_KINDS)
        if encoder is not None:
            columns["quality"].append(encoder(parts))
        else:
            columns["quality"].append(judge.score(parts, row["language"]) if judge is not None else float("nan"))
        columns["topic"].append(topics.classify(parts, row["language"])[0] if topics is not None else "")
        columns["reasoning"].append(reasoning_score(parts, technical[1]))
        columns["code"].append(code_score(parts, technical[0]) if technical[0] is not None else 0.0)
        columns["bytes"].append(row["bytes"])
        leak = benchmarks.judge(parts, max_hits) if benchmarks is not None else None
        columns["leak"].append(leak.rule if leak else "")
        columns["hits"].append(leak.score if leak else 0.0)
    np.savez(task.out, **{name: np.array(values) for name, values in columns.items()})  # pyright: ignore[reportArgumentType]
    return str(task.out)


_TYPES = {"cell": "U1", "language": "U1", "topic": "U1", "divergence": float, "quality": float} | {
    "judged": np.bool_,
    "bytes": np.int64,
}


def _model(folder: Path, name: str) -> LinearModel | None:
    return LinearModel.load(folder, name) if (folder / f"{name}.json").is_file() else None


def _by_encoder(task: Scoring) -> Callable[[Tokens], float] | None:
    """Quality by the encoder, where one was distilled."""
    if not (task.models / f"{ENCODER}.json").is_file():
        return None
    from herd.data.encoder import Encoder

    encoder = Encoder.load(task.models, ENCODER)
    return lambda parts: float(encoder.score_batch([parts])[0])


class Limits(NamedTuple):
    """What the last pass drops by: divergence by cell, quality by language, share of each topic that stays."""

    divergence: dict[str, float]
    quality: dict[str, float]
    topics: dict[str, float]


def limits(files: Sequence[str], data: Data) -> Limits:
    """Limits of scores, of all documents' scores."""
    scores = [np.load(file) for file in files]

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([np.empty(0, _TYPES[name]), *(part[name] for part in scores if name in part.files)])

    names, cells = np.unique(column("cell"), return_inverse=True)
    divergences = column("divergence")
    groups = {str(name): divergences[cells == index] for index, name in enumerate(names)}
    judged = column("judged") & ~np.isnan(column("quality"))
    worst: dict[str, float] = {}
    if data.quality.drop_share and judged.any():
        worst = quality.thresholds(
            column("quality")[judged], column("language")[judged].tolist(), data.quality.drop_share
        )
    topics, sizes = np.unique(column("topic"), return_inverse=True)
    sums = np.bincount(sizes, column("bytes"), len(topics)).astype(np.int64) if len(topics) else np.empty(0)
    by_topic = {topic: int(size) for topic, size in zip(topics.tolist(), sums, strict=True)}
    return Limits(outliers.limits(groups, data.outlier_share), worst, cap(by_topic, data.mix.class_caps))
