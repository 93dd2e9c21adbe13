"""Documents whose words are far from the corpus's: Kullback-Leibler divergence of token distributions (paper 3.1.1).

Tokens are the words of `words.py`, thrown into 16,384 bins by their hashes: at this point there is no tokenizer yet,
and a divergence from the corpus doesn't need one. Short documents are far from any corpus, so that a document is
compared with those of its kind, language and length (in octaves): what lies beyond their percentile goes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from herd.data.words import Tokens

BINS = 1 << 14
_SHIFT = np.uint64(64 - 14)
MIN_WORDS = 20  # a distribution of fewer says nothing


def bins_of(parts: Tokens) -> NDArray[np.int64]:
    """The bin of each word."""
    return (parts.words >> _SHIFT).astype(np.int64)


def count_bins(total: dict[str, NDArray[np.int64]], corpus: str, parts: Tokens) -> None:
    """Add a document's words to the counts of its corpus (kind and language)."""
    if corpus not in total:
        total[corpus] = np.zeros(BINS, np.int64)
    total[corpus] += np.bincount(bins_of(parts), minlength=BINS)


def log_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithm of each bin's share of the corpus, every bin counted once more than it was seen."""
    return np.log((counts + 1) / (counts.sum() + len(counts)))


def divergence(parts: Tokens, corpus: NDArray[np.float64]) -> float:
    """KL(document || corpus) in nats; `corpus` is of `log_shares`. NaN for a document of few words."""
    bins = bins_of(parts)
    if len(bins) < MIN_WORDS:
        return float("nan")
    present, counts = np.unique(bins, return_counts=True)
    shares = counts / len(bins)
    return float((shares * (np.log(shares) - corpus[present])).sum())


def octave(words: int) -> int:
    """Length class of a document: documents of twice the words are one higher."""
    return max(0, int(words)).bit_length()


def limits(scored: Mapping[str, NDArray[np.float64]], share: float) -> dict[str, float]:
    """For each cell the divergence that all but `share` of its documents stay within.

    Cells with fewer than 1/share documents have none: there, one document would be more than its share.
    """
    if not share:
        return {}
    found = {}
    for cell, values in scored.items():
        known = np.sort(values[~np.isnan(values)])
        if (drop := int(len(known) * share)) >= 1:
            found[cell] = float(known[len(known) - 1 - drop])
    return found
