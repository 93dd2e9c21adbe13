"""A classifier as fast as fastText's (paper 3.1.1): hashed words and word pairs, their mean, one linear layer.

It starts from the word hashes that curation has anyway and looks at 512 words of a document at most, so scoring costs a
gather of some thousand numbers. It knows words, not layout: what indentation or line lengths alone tell it cannot
learn (the counts of `technical.py` can). Training is Adagrad in a fixed order without threads: equal samples, equal
bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from herd.console import HerdError
from herd.data.words import Hashes, Tokens, distinct, ngrams

Features = NDArray[np.uint32]  # bucket of each word and of each pair of neighbours

BUCKETS = 1 << 18
FIRST_WORDS, MIDDLE_WORDS = 384, 128  # of a longer document; what it is about stands early, what it is made of later
EPOCHS = 8
BATCH = 64
LEARNING_RATE = 1.0  # 0.1 to 1 and 4 to 32 epochs differ by 0.003 in AUROC on unseen modules of the standard library
# A word of one document alone tells that document by heart and nothing about others.
MIN_DOCUMENTS = 2
TEMPERATURES = np.geomspace(0.1, 5, 69)  # among which the one with the least log loss on held-out text is taken
SCHEMA = 1


def hash_share(identity: str, seed: int) -> float:
    """A number from 0 up to 1 that depends on a document's id and the seed alone: samples and splits are cut by it."""
    digest = hashlib.blake2b(f"{seed}\0{identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def buckets_of(hashes: Hashes) -> Features:
    """The bucket of each hash of a word or a pair."""
    return (hashes & np.uint64(BUCKETS - 1)).astype(np.uint32)


def features(tokens: Tokens) -> Features:
    """Buckets of a document's first 384 words, of 128 from its middle, and of their pairs; bucket 0 for no words.

    Up to 512 words all count. A thousand buckets (4 KB) stand for a document of any length.
    """
    words = tokens.words
    if len(words) <= FIRST_WORDS + MIDDLE_WORDS:
        parts = [words, ngrams(words, 2)]
    else:
        middle = max(FIRST_WORDS, len(words) // 2 - MIDDLE_WORDS // 2)
        stretches = words[:FIRST_WORDS], words[middle : middle + MIDDLE_WORDS]
        parts = [*stretches, *(ngrams(stretch, 2) for stretch in stretches)]
    buckets = buckets_of(np.concatenate(parts))
    return buckets if len(buckets) else np.zeros(1, np.uint32)


@dataclass(frozen=True)
class LinearModel:
    """Weights of shape (classes, BUCKETS), biases of shape (classes,), both float32.

    `temperature` divides the logits, so that what is said with 0.8 is so in 80 of 100 cases of held-out text.
    """

    classes: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    temperature: float = 1.0

    def score(self, tokens: Tokens) -> NDArray[np.float64]:
        """Probability of each class, as they are ordered in `classes`; classes count as equally frequent."""
        return self.score_features(features(tokens))

    def score_features(self, buckets: Features) -> NDArray[np.float64]:
        """`score` of what `features` gave."""
        return softmax(self.logits(buckets)[None] / self.temperature)[0]

    def score_all(self, documents: Sequence[Features]) -> NDArray[np.float64]:
        """`score_features` of many documents, shape (documents, classes)."""
        if not documents:
            return np.zeros((0, len(self.classes)))
        return softmax(np.stack([self.logits(buckets) for buckets in documents]) / self.temperature)

    def logits(self, buckets: Features) -> NDArray[np.float64]:
        places = buckets.astype(np.intp)  # once, not for every class
        return np.array([row[places].sum(dtype=np.float64) for row in self.weights]) / len(buckets) + self.bias

    def save(self, folder: Path, name: str) -> None:
        """Write NAME.safetensors and NAME.json."""
        save_file({"weights": self.weights, "bias": self.bias}, folder / f"{name}.safetensors")
        facts = {"schema": SCHEMA, "classes": list(self.classes), "temperature": self.temperature, "buckets": BUCKETS}
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")

    @staticmethod
    def load(folder: Path, name: str) -> LinearModel:
        """What `save` wrote. Raises HerdError for files that are missing, damaged or of another size."""
        try:
            facts: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
            tensors = load_file(folder / f"{name}.safetensors")
            classes, temperature = tuple(map(str, facts["classes"])), float(facts["temperature"])
            weights, bias = tensors["weights"], tensors["bias"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise HerdError(f"{folder / name}: no linear model can be read here ({error})") from None
        finite = np.isfinite(weights).all() and np.isfinite(bias).all() and 0 < temperature < float("inf")
        if weights.shape != (len(classes), BUCKETS) or bias.shape != (len(classes),) or not finite:
            raise HerdError(
                f"{folder / name}: the weights are {weights.shape}; expected {(len(classes), BUCKETS)} finite numbers"
            )
        return LinearModel(classes, weights, bias, temperature)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of each row."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def train(
    documents: Sequence[Features],
    labels: Sequence[int] | NDArray[np.int64],
    classes: tuple[str, ...],
    seed: int,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
) -> LinearModel:
    """Fit by softmax regression; every class weighs the same, however many documents it has.

    `labels` are indices into `classes`. The order of the documents matters: sort them by id. Raises HerdError for a
    class without documents.
    """
    targets = np.asarray(labels, np.int64)
    counts = np.bincount(targets, minlength=len(classes))
    if len(counts) > len(classes) or (counts == 0).any():
        missing = [name for name, count in zip(classes, counts, strict=False) if not count]
        raise HerdError(f"classifier: no documents of {', '.join(missing) or 'a class that is named'}; each needs some")
    balance = len(targets) / (len(classes) * counts)
    # Only buckets of several documents get weights: they are numbered anew, and the others, most of them, left out.
    known = np.flatnonzero(_known(documents))
    number = np.full(BUCKETS, -1)
    number[known] = np.arange(len(known))
    sizes = np.array([len(buckets) for buckets in documents])
    kept = [(found := number[buckets])[found >= 0] for buckets in documents]
    weights = np.zeros((len(classes), len(known)))
    squares = np.full((len(classes), len(known)), 1e-12)
    bias, bias_squares = np.zeros(len(classes)), np.full(len(classes), 1e-12)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(targets))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            flat, counts = _flatten([kept[index] for index in batch])
            lengths, rows = sizes[batch], np.repeat(np.arange(len(batch)), counts)
            logits = np.stack([np.bincount(rows, row[flat], len(batch)) for row in weights], axis=1)
            errors = softmax(logits / lengths[:, None] + bias)
            errors[np.arange(len(batch)), targets[batch]] -= 1
            errors *= balance[targets[batch], None] / len(batch)
            touched, slots = _slots(flat, len(known))
            for index in range(len(classes)):
                gradient = np.bincount(slots, (errors[:, index] / lengths)[rows], len(touched))
                squares[index, touched] += gradient**2
                weights[index, touched] -= learning_rate * gradient / np.sqrt(squares[index, touched])
            gradient = errors.sum(axis=0)
            bias_squares += gradient**2
            bias -= 0.1 * learning_rate * gradient / np.sqrt(bias_squares)
    every = np.zeros((len(classes), BUCKETS), np.float32)
    every[:, known] = weights
    return LinearModel(classes, every, bias.astype(np.float32))


def _flatten(documents: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.concatenate(documents), np.array([len(buckets) for buckets in documents])


def _slots(flat: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct buckets of a batch in order, and for each entry its place among them; no sort is needed."""
    present = np.zeros(size, np.bool_)
    present[flat] = True
    touched = np.flatnonzero(present)
    place = np.empty(size, np.int64)
    place[touched] = np.arange(len(touched))
    return touched, place[flat]


def _known(documents: Sequence[Features]) -> NDArray[np.bool_]:
    """Buckets that stand in at least MIN_DOCUMENTS documents."""
    seen = np.zeros(BUCKETS, np.int64)
    for buckets in documents:
        seen[distinct(buckets)] += 1
    return seen >= MIN_DOCUMENTS


def calibrated(
    model: LinearModel, documents: Sequence[Features], labels: Sequence[int] | NDArray[np.int64]
) -> LinearModel:
    """The model with the temperature under which held-out documents are least surprising (Guo et al. 2017).

    Every class weighs the same, as in training.
    """
    targets = np.asarray(labels, np.int64)
    logits = np.stack([model.logits(buckets) for buckets in documents])
    weights = 1 / np.bincount(targets, minlength=len(model.classes))[targets]
    rows = np.arange(len(targets))
    losses = [
        float((-weights * np.log(softmax(logits / value)[rows, targets] + 1e-12)).sum()) for value in TEMPERATURES
    ]
    best = float(TEMPERATURES[int(np.argmin(losses))])
    return LinearModel(model.classes, model.weights, model.bias, best)
