"""Intervals: how sure a measured number is. Pure functions of numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion; stays inside [0, 1] and is sound for small counts.

    Raises ValueError for no trials.
    """
    if trials < 1:
        raise ValueError("an interval needs at least one trial")
    z = normal_quantile(0.5 + confidence / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def ratio_bootstrap(
    numerators: np.ndarray, denominators: np.ndarray, seed: int, samples: int = 1000, confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap of sum(numerators) / sum(denominators), resampling pairs.

    One pair is one cluster (a document), so tokens of one document are not taken for independent evidence.
    """
    count = len(numerators)
    if count < 2:
        raise ValueError("a bootstrap needs at least two clusters")
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    ratios = (weights @ numerators) / (weights @ denominators)
    return percentiles(ratios, confidence)


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, weights: np.ndarray, seed: int, samples: int = 1000, confidence: float = 0.95
) -> Interval:
    """Interval of (sum(first) - sum(second)) / sum(weights) over the same clusters, resampled together."""
    return ratio_bootstrap(first - second, weights, seed, samples, confidence)


def percentiles(values: np.ndarray, confidence: float) -> Interval:
    """Central interval that holds `confidence` of the values."""
    low, high = np.quantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high))


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Largest distance of two samples' distribution functions, and how often equal distributions have a larger one.

    The chance is Kolmogorov's series with Stephens's correction for small samples (1970), sound from some 20 values on.
    """
    values = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    distance = float(np.abs(below[0] - below[1]).max())
    size = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    scaled = (size + 0.12 + 0.11 / size) * distance
    if scaled < 0.2:  # where the series needs many terms; its value is 1 to 12 digits
        return distance, 1.0
    terms = np.arange(1, 101)
    chance = 2 * float(np.sum((-1.0) ** (terms - 1) * np.exp(-2 * (terms * scaled) ** 2)))
    return distance, min(1.0, max(0.0, chance))


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
