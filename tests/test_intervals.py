"""Intervals hold what they promise: parity with scipy, and coverage measured by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from herd.intervals import paired_bootstrap, percentiles, ratio_bootstrap, wilson


@given(st.integers(1, 100_000), st.floats(0, 1), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99, 0.999]))
def test_wilson_equals_scipy(trials, share, confidence):
    successes = round(share * trials)
    theirs = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson(successes, trials, confidence) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-9)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_holds_the_share_and_mirrors(trials, share):
    successes = round(share * trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize("truth", [0.02, 0.3, 0.5, 0.95])
def test_wilson_covers_about_as_often_as_it_says(truth):
    trials = 60
    counts = np.random.default_rng(0).binomial(trials, truth, size=4000)
    intervals = [wilson(k, trials) for k in range(trials + 1)]
    covered = np.mean([intervals[k].low <= truth <= intervals[k].high for k in counts])
    assert 0.92 <= covered <= 0.985


def test_no_trials_and_single_clusters_are_refused():
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="two clusters"):
        ratio_bootstrap(np.array([1.0]), np.array([2.0]), 0)


def documents(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and summed losses of documents; a document's tokens share its difficulty. True ratio: 3 nats a token."""
    tokens = random.integers(20, 400, count).astype(float)
    return tokens * (3.0 + random.normal(0, 0.5, count)), tokens


def test_the_bootstrap_covers_a_known_ratio_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    for confidence in (0.8, 0.95):
        hits = 0
        for trial in range(400):
            low, high = ratio_bootstrap(*documents(random, 60), seed=trial, samples=300, confidence=confidence)
            hits += low <= 3.0 <= high
        assert confidence - 0.06 <= hits / 400 <= confidence + 0.03


def test_clusters_are_what_is_resampled():
    """Taking every token for independent evidence gives an interval that is far too narrow."""
    losses, tokens = documents(np.random.default_rng(2), 80)
    clustered = ratio_bootstrap(losses, tokens, 0)
    as_tokens = ratio_bootstrap(
        np.repeat(losses / tokens, tokens.astype(int)), np.ones(int(tokens.sum())), 0, samples=200
    )
    assert clustered.high - clustered.low > 5 * (as_tokens.high - as_tokens.low)


def test_a_pair_shares_its_documents_difficulty():
    """Two models on the same documents differ more surely than their two intervals suggest; equal ones not at all."""
    random = np.random.default_rng(3)
    first, tokens = documents(random, 100)
    second = first - tokens * random.normal(0.05, 0.02, 100)
    low, high = paired_bootstrap(first, second, tokens, 0)
    alone = ratio_bootstrap(first, tokens, 0)
    assert 0 < low < 0.05 < high and high - low < (alone.high - alone.low) / 5
    assert paired_bootstrap(first, first, tokens, 0) == (0.0, 0.0)


@given(st.floats(0.1, 100), st.integers(0, 2**32))
def test_the_bootstrap_is_a_function_of_its_seed_and_scales(scale, seed):
    losses, tokens = documents(np.random.default_rng(4), 30)
    one = ratio_bootstrap(losses, tokens, seed, samples=50)
    assert one == ratio_bootstrap(losses, tokens, seed, samples=50)
    assert ratio_bootstrap(losses * scale, tokens, seed, samples=50) == pytest.approx(
        (one.low * scale, one.high * scale)
    )


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.floats(0.05, 0.99))
def test_percentiles_hold_about_that_share(values, confidence):
    low, high = percentiles(np.array(values), confidence)
    inside = sum(low - 1e-9 <= v <= high + 1e-9 for v in values)
    assert low <= high and inside >= confidence * len(values) - 2
