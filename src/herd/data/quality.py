"""Model-based quality (paper 3.1.1, 3.1.2): what resembles text that the recipe declares as reference ranks higher.

The classifier is trained in the run, on a sample: documents of the reference sources against those of all others. It
learns what tells these sources apart, and that is more than quality: subject, layout, the names of a project. So its
score is for ranking within a language, never a verdict on one document, and the figure that says how far it carries
is the one on origins it has not seen (`held_out.py`). Judgments of a model (`judging.py`) are the stronger teacher.

A language with enough documents of both kinds has a model of its own; the others share one for all languages and are
ranked within themselves, so that a language far from the reference doesn't lose more of its text than another. Words
end at spaces (`words.py`), so Thai, Chinese and Japanese are told apart by little: rank them by a judge's labels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from herd.console import HerdError
from herd.data.held_out import HeldOut, held_out
from herd.data.linear import Features, LinearModel, features, hash_share, train
from herd.data.words import Tokens

CLASSES = ("other", "reference")
ALL = "all"  # the name of the model for languages without one of their own; lid.176 names no language so
# Documents of each kind from which a language gets a model of its own; fewer and it learns the few by heart.
OWN_MODEL = 200
MIN_DOCUMENTS = 20  # of each kind for any model
SAMPLE = 5_000  # documents of each kind and language that are learned from: 20 MB of buckets each
QUANTILES = 101


class Sample(NamedTuple):
    """What training needs of a document: 4 KB, whatever its length."""

    id: str
    source: str
    origin: str  # documents of one origin resemble each other for reasons of their own
    language: str
    features: Features


def sample_of(identity: str, source: str, path: str, url: str, language: str, tokens: Tokens) -> Sample:
    """A document's sample; its origin is the domain of its address, else its source and first folder."""
    return Sample(identity, source, origin_of(source, path, url), language, features(tokens))


def origin_of(source: str, path: str, url: str = "") -> str:
    """What a document lies together with: its address's domain, else its source and the first folder of its path."""
    try:
        domain = urlsplit(url).hostname
    except ValueError:
        domain = None
    return domain or f"{source}/{path.split('/')[0]}"


def lowest(samples: Iterable[Sample], reference: Collection[str], seed: int, count: int = SAMPLE) -> list[Sample]:
    """Of each language, reference and others apart, the `count` samples whose ids hash lowest, sorted by id.

    Applied to parts and again to what they gave it chooses the same documents as applied to all at once. A document
    is kept in its turn only while it is among the lowest, so memory is bounded by `count`.
    """
    chosen: dict[tuple[str, bool], list[tuple[float, Sample]]] = defaultdict(list)
    for sample in samples:
        kept = chosen[sample.language, sample.source in reference]
        kept.append((hash_share(sample.id, seed), sample))
        if len(kept) >= 2 * count:
            kept.sort(key=_by_hash)
            del kept[count:]
    every = [sample for kept in chosen.values() for _, sample in sorted(kept, key=_by_hash)[:count]]
    return sorted(every, key=lambda sample: sample.id)


def _by_hash(item: tuple[float, Sample]) -> tuple[float, str]:
    return item[0], item[1].id


@dataclass(frozen=True)
class QualityModels:
    """A model for each language that has one, and `ALL`'s; how far each carries; quantiles of each language's scores.

    `quantiles[language]` are 101 scores of the sampled documents that are no reference, ascending: in
    `quality.json` they tell a person where in its language a score lies.
    """

    models: Mapping[str, LinearModel]
    evidence: Mapping[str, HeldOut | None]
    quantiles: Mapping[str, NDArray[np.float64]]

    def score(self, tokens: Tokens, language: str) -> float:
        """0 to 1: how much a document resembles reference text, were both kinds equally frequent."""
        return self.score_features(features(tokens), language)

    def score_features(self, buckets: Features, language: str) -> float:
        """`score` of what `features` gave."""
        return float(self._model(language).score_features(buckets)[1])

    def _model(self, language: str) -> LinearModel:
        return self.models.get(language) or self.models[ALL]

    def save(self, folder: Path) -> None:
        """Write the models and `quality.json` into a folder that exists."""
        for name, model in self.models.items():
            model.save(folder, f"quality-{name}")
        facts = {
            "schema": 1,
            "models": sorted(self.models),
            "quantiles": {name: [float(point) for point in points] for name, points in sorted(self.quantiles.items())},
            "evidence": {name: _facts(held) for name, held in sorted(self.evidence.items())},
        }
        (folder / "quality.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")

    @staticmethod
    def load(folder: Path) -> QualityModels:
        """The models that `save` wrote, for scoring; their evidence stays in the file. Raises HerdError."""
        try:
            facts = json.loads((folder / "quality.json").read_text("utf-8"))
            names = [str(name) for name in facts["models"]]
            quantiles = {str(name): np.array(points, np.float64) for name, points in facts["quantiles"].items()}
            if ALL not in names or ALL not in quantiles or any("/" in name for name in names):
                raise ValueError(f"no model named {ALL}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HerdError(f"{folder / 'quality.json'}: not what curation wrote ({error})") from None
        return QualityModels({name: LinearModel.load(folder, f"quality-{name}") for name in names}, {}, quantiles)


def _facts(held: HeldOut | None) -> dict[str, Any] | None:
    if held is None:
        return None
    return {name: part and {**part._asdict()} for name, part in held._asdict().items() if name != "temperature"}


def fit_quality(samples: Iterable[Sample], reference: Collection[str], seed: int) -> QualityModels:
    """Train on samples in any order; equal samples give equal models.

    Raises HerdError with the counts where either kind has fewer than 20 documents.
    """
    chosen = lowest(samples, reference, seed)
    by_language: dict[str, list[Sample]] = defaultdict(list)
    for sample in chosen:
        by_language[sample.language].append(sample)
    models, evidence = {}, {}
    for name, own in [(ALL, chosen), *sorted(by_language.items())]:
        good = sum(sample.source in reference for sample in own)
        if min(good, len(own) - good) < (MIN_DOCUMENTS if name == ALL else OWN_MODEL):
            if name == ALL:
                raise HerdError(
                    f"data.quality.reference: {good} reference documents and {len(own) - good} others are too few to "
                    f"tell apart; a classifier needs at least {MIN_DOCUMENTS} of each"
                )
            continue
        models[name], evidence[name] = fit(own, [sample.source in reference for sample in own], CLASSES, seed)
    return ranked(models, evidence, chosen, reference)


def ranked(
    models: Mapping[str, LinearModel],
    evidence: Mapping[str, HeldOut | None],
    samples: Sequence[Sample],
    reference: Collection[str],
) -> QualityModels:
    """Models with the scores they give to each language's samples that are no reference.

    So a model distilled from judgments takes the first one's place: `ranked({ALL: model}, {ALL: measured}, ...)`.
    Raises HerdError where every sample is reference text.
    """
    found = QualityModels(models, evidence, {})
    scores: dict[str, list[float]] = defaultdict(list)
    for one in samples:
        if one.source not in reference:
            score = found.score_features(one.features, one.language)
            scores[one.language].append(score)
            scores[ALL].append(score)
    if not scores:
        raise HerdError("data.quality.reference: every source is reference text; nothing is left to rank")
    points = np.linspace(0, 1, QUANTILES)
    return QualityModels(models, evidence, {name: np.quantile(own, points) for name, own in scores.items()})


def fit(
    samples: Sequence[Sample], positive: Sequence[bool], classes: tuple[str, str], seed: int
) -> tuple[LinearModel, HeldOut | None]:
    """A two-class model of all samples, calibrated on the fifth that another training left out, and how far it carries.

    Give the samples sorted by id.
    """
    labels = np.array(positive, np.int64)
    documents = [sample.features for sample in samples]
    measured = held_out(
        [sample.id for sample in samples], documents, labels, [sample.origin for sample in samples], classes, seed
    )
    model = train(documents, labels, classes, seed)
    temperature = measured.temperature if measured else 1.0
    return LinearModel(model.classes, model.weights, model.bias, temperature), measured


def threshold(scores: NDArray[np.float64] | NDArray[np.float32], drop_share: float) -> float:
    """The score below which a language's documents go, so that `drop_share` of them lie below.

    Give all scored documents of the language but those of reference sources. Ties at the threshold stay: no more than
    the share goes.
    """
    return float(np.sort(scores)[int(drop_share * len(scores))])
