"""How well a classifier tells two classes apart on text it has not seen, from origins it has not seen.

A random split lies: pages of one site or package resemble each other, so that a classifier which knows the site looks
like one that knows the matter (a guard of ours: 0.99 so, 0.75 by source). Both figures are given, always.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.data.linear import Features, LinearModel, calibrated, hash_share, train
from herd.intervals import Interval, percentiles

HELD_OUT = 0.2
LARGEST_ORIGIN = 0.5  # of a class's documents; holding out more leaves too little to learn from
RESAMPLES = 300


class Separation(NamedTuple):
    """Area under the ROC curve, its 95% interval, and what it stands on: documents, and origins or documents drawn."""

    auroc: float
    interval: Interval
    positives: int
    negatives: int
    clusters: int


class HeldOut(NamedTuple):
    """Of a two-class model: by origins it never saw (None where a class has one origin alone), and at random."""

    by_origin: Separation | None
    by_document: Separation
    temperature: float

    def sentence(self) -> str:
        """Both figures, to print."""
        honest = _text(self.by_origin, "origins") if self.by_origin else "not measurable: a class has one origin"
        return f"AUROC on unseen origins {honest}; on unseen documents {_text(self.by_document, 'documents')}"


def _text(one: Separation, drawn: str) -> str:
    return (
        f"{one.auroc:.3f} ({one.interval.low:.3f} to {one.interval.high:.3f}; {one.positives} against "
        f"{one.negatives} documents, {one.clusters} {drawn})"
    )


def separation(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], clusters: Sequence[str], seed: int
) -> Separation:
    """AUROC of scores, ties counted half, with a bootstrap that draws whole clusters.

    The interval is 0 to 1 where most draws lack a class, as with two clusters. Raises ValueError for a class without
    documents.
    """
    if positive.all() or not positive.any():
        raise ValueError("an AUROC needs documents of both classes")
    _, places = np.unique(scores, return_inverse=True)
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    values = [value for draw in draws if (value := _auroc(places, positive, draw[members])) is not None]
    sure = len(names) > 2 and 2 * len(values) >= RESAMPLES
    interval = percentiles(np.array(values), 0.95) if sure else Interval(0.0, 1.0)
    value = _auroc(places, positive, np.ones(len(scores)))
    assert value is not None
    return Separation(value, interval, int(positive.sum()), int((~positive).sum()), len(names))


def _auroc(places: NDArray[np.int64], positive: NDArray[np.bool_], weights: NDArray[np.float64]) -> float | None:
    above = np.bincount(places, weights * positive)
    below = np.bincount(places, weights * ~positive)
    pairs = above.sum() * below.sum()
    return float((above * (np.cumsum(below) - below / 2)).sum() / pairs) if pairs else None


def origins_held_out(labels: NDArray[np.int64], origins: Sequence[str], seed: int) -> frozenset[str]:
    """About a fifth of each class's documents, by whole origins; empty where a class can't spare one."""
    held: set[str] = set()
    for label in np.unique(labels):
        counts: dict[str, int] = defaultdict(int)
        for origin, own in zip(origins, labels, strict=True):
            counts[origin] += int(own == label)
        total, taken = sum(counts.values()), 0
        present = sorted((name for name in counts if counts[name]), key=lambda name: (hash_share(name, seed), name))
        chosen: set[str] = set()
        for name in present:
            if taken < HELD_OUT * total and taken + counts[name] <= LARGEST_ORIGIN * total:
                chosen.add(name)
                taken += counts[name]
        if not chosen:
            return frozenset()
        held |= chosen
    left = {int(label) for origin, label in zip(origins, labels, strict=True) if origin not in held}
    return frozenset(held) if len(left) == len(np.unique(labels)) else frozenset()


def held_out(
    ids: Sequence[str],
    documents: Sequence[Features],
    labels: NDArray[np.int64],
    origins: Sequence[str],
    classes: tuple[str, ...],
    seed: int,
) -> HeldOut | None:
    """Train on four fifths and measure on the rest, origins and documents; None where there is too little of a class.

    The temperature comes from unseen origins where there are some. Class 1 is the positive one.
    """
    held = origins_held_out(labels, origins, seed)
    unseen = np.array([origin in held for origin in origins])
    picked = np.array([hash_share(identity, seed) < HELD_OUT for identity in ids]) & ~unseen
    rest, chance, apart = [np.flatnonzero(mask).tolist() for mask in (~unseen & ~picked, picked, unseen)]
    if any(len(np.unique(labels[part])) < 2 for part in (rest, chance)):
        return None
    model = train([documents[index] for index in rest], labels[rest], classes, seed)
    by_document = _measure(model, chance, documents, labels, ids, seed)
    by_origin = _measure(model, apart, documents, labels, origins, seed) if held else None
    part = apart if held else chance
    temperature = calibrated(model, [documents[index] for index in part], labels[part]).temperature
    return HeldOut(by_origin, by_document, temperature)


def _measure(
    model: LinearModel,
    part: list[int],
    documents: Sequence[Features],
    labels: NDArray[np.int64],
    clusters: Sequence[str],
    seed: int,
) -> Separation:
    scores = model.score_all([documents[index] for index in part])[:, 1]
    return separation(scores, labels[part] == 1, [clusters[index] for index in part], seed)
