"""The third pass over a part: scores that need the whole corpus to have been seen once.

How far a document's words are from its corpus, how much it resembles reference text, what it is about. Scores of all
documents are a few numbers each; `limits` turns them into what the last pass drops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.data import outliers, quality
from herd.data.documents import read_rows
from herd.data.filtering import corpus_of
from herd.data.quality import QualityModels
from herd.data.technical import reasoning_score
from herd.data.topics import TopicModel, cap
from herd.data.words import tokens
from herd.recipe_data import Data


class Scoring(NamedTuple):
    """A task: score a part's filtered documents by the corpus's words and the models in `models`."""

    filtered: Path
    out: Path
    corpora: Path
    models: Path
    reference: tuple[str, ...]


def score(task: Scoring) -> str:
    """Scores of a part's documents, in its order, as arrays in a file."""
    with np.load(task.corpora) as counts:
        shares = {name: outliers.log_shares(counts[name]) for name in counts.files}
    judge = QualityModels.load(task.models) if (task.models / "quality.json").is_file() else None
    topics = TopicModel.load(task.models) if (task.models / "topics.json").is_file() else None
    columns: dict[str, list[Any]] = defaultdict(list)
    for row in read_rows(task.filtered):
        parts = tokens(row["text"])
        corpus = corpus_of(row)
        columns["divergence"].append(outliers.divergence(parts, shares[corpus]))
        columns["cell"].append(f"{corpus} {outliers.octave(len(parts.words))}")
        columns["language"].append(row["language"])
        columns["judged"].append(row["source"] not in task.reference)
        columns["quality"].append(judge.score(parts, row["language"]) if judge is not None else float("nan"))
        columns["topic"].append(topics.classify(parts)[0] if topics is not None else "")
        columns["reasoning"].append(reasoning_score(parts))
        columns["bytes"].append(row["bytes"])
    np.savez(task.out, **{name: np.array(values) for name, values in columns.items()})
    return str(task.out)


class Limits(NamedTuple):
    """What the last pass drops by: divergence by cell, quality by language, share of each topic that stays."""

    divergence: dict[str, float]
    quality: dict[str, float]
    topics: dict[str, float]


def limits(files: Sequence[str], data: Data) -> Limits:
    """Limits of scores, of all documents' scores."""
    scores = [np.load(file) for file in files]

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([part[name] for part in scores if name in part.files])

    cells, divergences = column("cell"), column("divergence")
    order = np.argsort(cells, kind="stable")
    names, starts = np.unique(cells[order], return_index=True)
    groups = dict(zip(names.tolist(), np.split(divergences[order], starts[1:]), strict=True))
    judged = column("judged") & ~np.isnan(column("quality"))
    worst: dict[str, float] = {}
    if data.quality.drop_share and judged.any():
        worst = quality.thresholds(
            column("quality")[judged], column("language")[judged].tolist(), data.quality.drop_share
        )
    topics, sizes = np.unique(column("topic"), return_inverse=True)
    weights = np.bincount(sizes, column("bytes"), len(topics)) if len(topics) else np.empty(0)
    by_topic = dict(zip(topics.tolist(), weights.tolist(), strict=True))
    return Limits(outliers.limits(groups, data.outlier_share), worst, cap(by_topic, data.mix.class_caps))
