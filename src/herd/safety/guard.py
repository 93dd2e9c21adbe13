"""A small local guard: a linear model on hashed n-grams that scores how much a prompt looks like a harmful one.

It knows wording, not intent: split at random such a guard reaches an AUROC of 0.99, on a set it has never seen it
refuses most of the benign prompts that merely sound dangerous. So its figures come from `out_of_source_scores`, in
which every prompt is scored by guards that saw nothing of that prompt's source, and the threshold is chosen on those
scores. The guard that is deployed is trained on all sources. English only: what it has not read it lets through, and
harm hidden in a long harmless text is diluted: a first gate, never the only one.

Function words and the verbs of asking are no features: sets differ in their frames ("Write a tutorial on ...", "How
do I ...?"), and a guard that learns those learns the set. Measured out of source on HarmBench, AdvBench and
Do-Not-Answer against our borderline prompts, leaving them out raised the AUROC from 0.44 to 0.60.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from herd.artifact import canonical_json
from herd.console import HerdError
from herd.model.formats.weights import read_json, read_tensors, write_tensors
from herd.safety.prompts import PromptRow

SCHEMA = 1
BUCKETS = 1 << 18  # of word n-grams; as many again of character n-grams
READ_CHARACTERS = 4_000  # of each end of a longer prompt: bounds the time of one score
PENALTY = 1.0  # L2, against the summed loss of rows whose weights have mean 1
STEPS = 100
SHARED_WORDS = 6  # a training text that shares so many words in a row with held-out ones is left out
_FRAMES = """
    a an the and or but if so as at by for from in into of on onto off out over to up with without about than then
    that this these those there here i me my mine we us our you your he him his she her it its they them their who
    whom whose which what when where why how do does did be is are was were been being am have has had having can
    could will would shall should may might must not no any some all each every more most other another such only
    own same too very just also please tell give show explain describe write create develop generate provide teach
    suggest list make help need want way best step steps instructions guide tutorial article script plan design
    detailed someone somebody people person one user
"""
FRAME_WORDS = frozenset(_FRAMES.split())
WEIGHTS, FACTS = "guard.safetensors", "guard.json"


@dataclass(frozen=True)
class Guard:
    """Weights of the hashed n-grams, (2 * BUCKETS,), a bias, and the score from which a prompt is blocked."""

    weights: np.ndarray
    bias: float
    threshold: float = 0.5

    def score(self, text: str) -> float:
        """How harmful a prompt looks, from 0 to 1; not a probability that holds outside the training sets."""
        columns, values = features(text)
        return _sigmoid(float(self.weights[columns] @ values) + self.bias)

    def blocks(self, text: str) -> bool:
        """Whether the prompt is to be turned away."""
        return self.score(text) >= self.threshold

    def save(self, folder: Path) -> None:
        """Write `guard.safetensors` and `guard.json`."""
        write_tensors(folder / WEIGHTS, {"weights": torch.from_numpy(self.weights.astype(np.float32))})
        facts = {"schema": SCHEMA, "bias": self.bias, "threshold": self.threshold, "buckets": BUCKETS}
        (folder / FACTS).write_text(canonical_json(facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Guard:
        """The guard of a folder. Raises HerdError where a file is missing, damaged or of another version."""
        facts = read_json(folder / FACTS)
        if facts.get("schema") != SCHEMA or facts.get("buckets") != BUCKETS:
            raise HerdError(f"{folder / FACTS}: not a guard of this version")
        tensors = read_tensors(folder / WEIGHTS)
        weights = tensors.get("weights")
        if weights is None or weights.shape != (2 * BUCKETS,):
            raise HerdError(f"{folder / WEIGHTS}: a tensor 'weights' of {2 * BUCKETS} numbers is expected")
        try:
            return cls(weights.numpy(), float(facts["bias"]), float(facts["threshold"]))
        except (KeyError, TypeError, ValueError):
            raise HerdError(f"{folder / FACTS}: 'bias' and 'threshold' must be numbers") from None


def features(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns (sorted) and values of a text: words and pairs of words, and character 3- to 5-grams inside words.

    FRAME_WORDS and punctuation are left out unless there is nothing else. Each of the two blocks has length 1, so that
    long prompts do not score higher for being long.
    """
    words = _words(text)
    words = [word for word in words if word not in FRAME_WORDS] or words or [""]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
    pieces = [piece for word in words for piece in _pieces(word)]
    columns, values = [], []
    for offset, grams in ((0, words + pairs), (BUCKETS, pieces)):
        hashed = [zlib.crc32(gram.encode()) % BUCKETS + offset for gram in grams]
        found, counts = np.unique(np.array(hashed, dtype=np.int64), return_counts=True)
        weight = 1.0 + np.log(counts)
        columns.append(found)
        values.append(weight / max(1e-9, math.sqrt(float(weight @ weight))))
    return np.concatenate(columns), np.concatenate(values)


def _words(text: str) -> list[str]:
    """Words in lower case. Compatibility forms (full-width letters) are folded and invisible characters dropped."""
    if len(text) > 2 * READ_CHARACTERS:
        text = f"{text[:READ_CHARACTERS]} {text[-READ_CHARACTERS:]}"
    plain = unicodedata.normalize("NFKC", text).replace("’", "'").lower()
    plain = "".join(c for c in plain if unicodedata.category(c) != "Cf")
    return re.findall(r"\w+(?:'\w+)?", plain)


def _pieces(word: str) -> Iterator[str]:
    padded = f"<{word}>"
    for size in (3, 4, 5):
        for start in range(len(padded) - size + 1):
            yield padded[start : start + size]


class _Rows:
    """Features of many texts as one sparse matrix: row number, column and value of each entry."""

    def __init__(self, texts: Sequence[str]) -> None:
        found = [features(text) for text in texts]
        self.starts = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in found])]).astype(np.int64)
        self.columns = np.concatenate([columns for columns, _ in found])
        self.values = np.concatenate([values for _, values in found])
        self.count = len(texts)

    def only(self, keep: np.ndarray) -> _Rows:
        """The rows where the boolean array is true."""
        part = object.__new__(_Rows)
        lengths = np.diff(self.starts)
        entries = np.repeat(keep, lengths)
        part.columns, part.values = self.columns[entries], self.values[entries]
        part.starts = np.concatenate([[0], np.cumsum(lengths[keep])])
        part.count = int(keep.sum())
        return part

    def times(self, weights: np.ndarray) -> np.ndarray:
        """The matrix times a vector of a number for each column."""
        return np.add.reduceat(self.values * weights[self.columns], self.starts[:-1])


def train_guard(rows: Sequence[PromptRow], benign: Sequence[str] = (), threshold: float = 0.5) -> Guard:
    """A guard trained on all of the rows and on more `benign` text.

    Harmful and benign weigh the same in sum, and so do the sources on each side. The loss is convex and the fit starts
    from zero: nothing is drawn. Raises HerdError where a side is empty.
    """
    texts, labels, groups = _training(rows, benign)
    return _fit(_Rows(texts), labels, groups, threshold)


def out_of_source_scores(rows: Sequence[PromptRow], benign: Sequence[str] = ()) -> np.ndarray:
    """Score of each row by guards that saw no row of its source.

    For each pair of a harmful and a benign source a guard is trained without both, and without any text that shares
    SHARED_WORDS words in a row with one of theirs; it scores the harmful rows of the one and the benign rows of the
    other. (With one source out at a time the two sides would be scored by guards that lean opposite ways: the AUROC of
    our sets came out at 0.21.) A row's score is the mean, in log odds, over the pairs that it is in.
    Raises HerdError where a side is left empty: there must be two harmful sources, and two benign ones or `benign`.
    """
    texts, labels, groups = _training(rows, benign)
    everything, prints = _Rows(texts), [_shingles(text) for text in texts]
    mine = np.arange(len(texts)) < len(rows)
    sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
    for first, second in itertools.product(*(sorted(set(groups[mine & (labels == side)])) for side in (1, 0))):
        out = (groups == first) | (groups == second)
        seen = set().union(*(prints[i] for i in np.flatnonzero(out)))
        keep = ~out & np.array([seen.isdisjoint(found) for found in prints])
        try:
            guard = _fit(everything.only(keep), labels[keep], groups[keep], 0.5)
        except HerdError as error:
            raise HerdError(f"safety.prompts: without '{first}' and '{second}' {error}; add another set") from None
        scored = ((groups == first) & (labels == 1)) | ((groups == second) & (labels == 0))
        sums[scored] += everything.only(scored).times(guard.weights) + guard.bias
        counts[scored] += 1
    if not counts[mine].all():
        raise HerdError("safety.prompts: harmful and benign prompts are needed to measure a guard")
    return np.array([_sigmoid(score) for score in (sums[mine] / counts[mine])])


def choose_threshold(benign_scores: Sequence[float] | np.ndarray, budget: float) -> float:
    """The lowest threshold at which at most a `budget` (a share) of these benign prompts is blocked.

    Scores from the threshold up are blocked; above all scores where even the highest may not be. Raises ValueError
    without scores.
    """
    ordered = np.sort(np.asarray(benign_scores, dtype=float))[::-1]
    if not len(ordered):
        raise ValueError("a threshold needs benign scores")
    allowed = math.floor(budget * len(ordered) + 1e-9)
    return float(np.nextafter(ordered[allowed], math.inf)) if allowed < len(ordered) else 0.0


def auroc(harmful: np.ndarray, benign: np.ndarray) -> float:
    """How often a harmful prompt scores above a benign one; ties count half."""
    order = np.sort(benign)
    below, upto = np.searchsorted(order, harmful, "left"), np.searchsorted(order, harmful, "right")
    return float((below + upto).mean() / (2 * len(benign)))


def _training(rows: Sequence[PromptRow], benign: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, labels (1 harmful, 0 benign) and sources; the benign extras come last, under a name no file can have."""
    texts = [row.text for row in rows] + list(benign)
    labels = np.array([float(row.harmful) for row in rows] + [0.0] * len(benign))
    groups = np.array([row.source for row in rows] + ["/benign"] * len(benign))
    return texts, labels, groups


def _shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of SHARED_WORDS words, or the whole of a shorter text."""
    words = _words(text)
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(max(1, len(words) - SHARED_WORDS + 1))}


def _fit(rows: _Rows, labels: np.ndarray, groups: np.ndarray, threshold: float) -> Guard:
    """Logistic regression by L-BFGS. Only columns that occur get a weight, the others keep zero."""
    for label, name in ((1.0, "harmful"), (0.0, "benign")):
        if not (labels == label).any():
            raise HerdError(f"no {name} prompt is left to train a guard on")
    importance = np.zeros(rows.count)
    for label in (0.0, 1.0):
        side = sorted(set(groups[labels == label]))
        for source in side:
            mine = (labels == label) & (groups == source)
            importance[mine] = rows.count / 2 / len(side) / mine.sum()
    used, columns = np.unique(rows.columns, return_inverse=True)
    owners = np.repeat(np.arange(rows.count), np.diff(rows.starts))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        logits = np.add.reduceat(rows.values * weights[columns], rows.starts[:-1]) + bias
        value = importance @ (np.logaddexp(0.0, logits) - labels * logits) + PENALTY / 2 * weights @ weights
        error = importance * (1 / (1 + np.exp(-np.clip(logits, -60, 60))) - labels)
        slope = np.bincount(columns, error[owners] * rows.values, len(used)) + PENALTY * weights
        return float(value), np.append(slope, error.sum())

    solution = _minimize(loss, np.zeros(len(used) + 1))
    weights = np.zeros(2 * BUCKETS, dtype=np.float32)
    weights[used] = solution[:-1]
    return Guard(weights, float(solution[-1]), threshold)


def _minimize(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray) -> np.ndarray:
    """L-BFGS with a memory of 10 steps and backtracking (Nocedal and Wright, algorithm 7.4); for smooth convex loss."""
    point, (value, slope) = start, loss(start)
    memory: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(STEPS):
        if np.abs(slope).max() < 1e-4:
            break
        direction = -_inverse_hessian(memory, slope)
        step = 1.0 if memory else 1.0 / max(1.0, float(np.linalg.norm(slope)))
        descent = float(slope @ direction)
        while True:
            after, after_slope = loss(point + step * direction)
            if after <= value + 1e-4 * step * descent:
                break
            step /= 2
            if step < 1e-12:  # rounding: no lower point is to be found
                return point
        moved, turned = step * direction, after_slope - slope
        if moved @ turned > 1e-12:
            memory = [*memory[-9:], (moved, turned)]
        point, value, slope = point + moved, after, after_slope
    return point


def _inverse_hessian(memory: list[tuple[np.ndarray, np.ndarray]], slope: np.ndarray) -> np.ndarray:
    """The approximate inverse Hessian that the last steps imply, times the slope (two-loop recursion)."""
    result, shares = slope.copy(), []
    for moved, turned in reversed(memory):
        share = (moved @ result) / (moved @ turned)
        shares.append(share)
        result -= share * turned
    if memory:
        moved, turned = memory[-1]
        result *= (moved @ turned) / (turned @ turned)
    for (moved, turned), share in zip(memory, reversed(shares), strict=True):
        result += (share - (turned @ result) / (moved @ turned)) * moved
    return result


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))
