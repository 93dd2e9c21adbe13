"""The third pass over a part: scores that need the whole corpus to have been seen once.

How far a document's words are from its corpus, how much it resembles reference text, what it is about. Scores of all
documents are a few numbers each; `limits` turns them into what the last pass drops.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
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
from herd.data.settings import CurateSettings
from herd.data.technical import code_score, reasoning_score
from herd.data.topics import TopicModel, cap
from herd.data.words import Tokens, tokens
from herd.recipe_data import Data

# What the passes before leave for this one: the corpora's words, phrases that are in benchmarks by chance, classifiers.
WORDS, COMMON, MODELS = "words.npz", "common.npy", "models"


class Scoring(NamedTuple):
    """A task: score the filtered documents of part `name` by the corpus's words and the models in `folder`."""

    folder: Path
    name: str
    settings: CurateSettings

    def benchmarks(self) -> Benchmarks | None:
        """The benchmarks to keep out, less the phrases that many documents share."""
        found, common = benchmarks_of(self.settings), self.folder / COMMON
        return found.without(np.load(common)) if found is not None and common.is_file() else found


def score(task: Scoring) -> str:
    """Scores of a part's documents, in its order, as arrays in a file."""
    with np.load(task.folder / WORDS) as counts:
        shares = {name: outliers.log_shares(counts[name]) for name in counts.files}
    models, rules = task.folder / MODELS, task.settings.data
    judge = QualityModels.load(models) if (models / "quality.json").is_file() else None
    encoder = _by_encoder(models)
    technical = [_model(models, name) for name in TECHNICAL]
    topics = TopicModel.load(models) if (models / "topics.json").is_file() else None
    benchmarks, max_hits = task.benchmarks(), rules.decontamination.max_hits if rules.decontamination else 0
    columns: dict[str, list[Any]] = defaultdict(list)
    for row in read_rows(task.folder / f"{task.name}.filtered.parquet"):
        parts = tokens(row["text"])
        corpus = corpus_of(row)
        columns["divergence"].append(outliers.divergence(parts, shares[corpus]))
        columns["cell"].append(f"{corpus} {outliers.octave(len(parts.words))}")
        columns["language"].append(row["language"])
        columns["judged"].append(row["source"] not in rules.quality.reference and row["kind"] in TEXT_KINDS)
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
    arrays: dict[str, Any] = {name: np.array(values) for name, values in columns.items()}
    np.savez(scores_of(task.folder, task.name), **arrays)
    return task.name


def scores_of(folder: Path, name: str) -> Path:
    """The file of a part's scores."""
    return folder / f"{name}.scores.npz"


def _model(folder: Path, name: str) -> LinearModel | None:
    return LinearModel.load(folder, name) if (folder / f"{name}.json").is_file() else None


def _by_encoder(models: Path) -> Callable[[Tokens], float] | None:
    """Quality by the encoder, where one was distilled."""
    if not (models / f"{ENCODER}.json").is_file():
        return None
    from herd.data.encoder import Encoder

    encoder = Encoder.load(models, ENCODER)
    return lambda parts: float(encoder.score_batch([parts])[0])


class Drop(NamedTuple):
    """The step and rule that a document's scores drop it by: what it measured and where the limit was."""

    step: str
    rule: str
    score: float
    threshold: float


class Limits(NamedTuple):
    """What the last pass drops by: benchmark runs, divergence by cell, quality by language; and topics' shares."""

    hits: int
    divergence: dict[str, float]
    quality: dict[str, float]
    topics: dict[str, float]

    def drop(self, own: dict[str, Any]) -> Drop | None:
        """The first of the steps contamination, outliers and quality that drops a document of these scores."""
        if own["leak"]:
            return Drop("contamination", own["leak"], own["hits"], self.hits)
        limit = self.divergence.get(own["cell"])
        if limit is not None and own["divergence"] > limit:
            return Drop("outliers", "odd_words", own["divergence"], limit)
        limit = self.quality.get(own["language"])
        if limit is not None and own["judged"] and own["quality"] < limit:
            return Drop("quality", "low_quality", own["quality"], limit)
        return None


def limits(folder: Path, parts: Sequence[str], data: Data) -> Limits:
    """Limits by all documents' scores: two readings of them, and 12 bytes a document in memory.

    Caps of topics are reckoned over what the other limits leave.
    """
    cells: dict[str, list[Any]] = defaultdict(list)
    judged: dict[str, list[Any]] = defaultdict(list)
    for scores in _parts(folder, parts):
        _gather(cells, scores["cell"], scores["divergence"])
        known = scores["judged"] & ~np.isnan(scores["quality"])
        _gather(judged, scores["language"][known], scores["quality"][known].astype(np.float32))
    share = data.quality.drop_share
    found = Limits(
        data.decontamination.max_hits if data.decontamination else 0,
        outliers.limits({cell: np.concatenate(values) for cell, values in cells.items()}, data.outlier_share),
        {language: quality.threshold(np.concatenate(values), share) for language, values in judged.items() if share},
        {},
    )
    if not data.mix.class_caps:
        return found
    sizes: Counter[str] = Counter()
    for scores in _parts(folder, parts):
        for own in documents(scores):
            if found.drop(own) is None:
                sizes[own["topic"]] += own["bytes"]
    return found._replace(topics=cap(sizes, data.mix.class_caps))


def read_scores(file: Path) -> dict[str, NDArray[Any]]:
    """The scores of a part, a column each."""
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def documents(scores: dict[str, NDArray[Any]]) -> Iterator[dict[str, Any]]:
    """The scores of each document of a part, in its order."""
    columns = [values.tolist() for values in scores.values()]
    return (dict(zip(scores, values, strict=True)) for values in zip(*columns, strict=True))


def _parts(folder: Path, parts: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    return (
        scores for part in parts if (scores := read_scores(scores_of(folder, part)))
    )  # a part without documents has none


def _gather(into: dict[str, list[Any]], names: NDArray[Any], values: NDArray[Any]) -> None:
    """Add values to those of their names."""
    for name in np.unique(names):
        into[str(name)].append(values[names == name])
