"""Draws follow the distribution that was asked for."""

from typing import Any, cast

import pytest
import torch
from transformers.generation.logits_process import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from herd.console import HerdError
from herd.infer.sampling import candidates, draw, random_stream, weaken
from herd.model.generation import Sampling

LOGITS = torch.randn(20, generator=torch.Generator().manual_seed(0)) * 1.5


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_frequencies_match_the_softmax(temperature):
    sampling, stream, draws = Sampling(temperature, top_p=1.0), random_stream(3, 0), 6000
    counts = torch.bincount(torch.tensor([draw(LOGITS, sampling, stream) for _ in range(draws)]), minlength=20)
    expected = (LOGITS.double() / temperature).softmax(-1) * draws
    common = expected >= 5  # the chi-square approximation needs some of each; the rest is one cell
    seen = torch.cat((counts[common], counts[~common].sum()[None]))
    due = torch.cat((expected[common], expected[~common].sum()[None]))
    chi_square = ((seen - due) ** 2 / due.clamp(min=1e-9)).sum()
    assert chi_square < 43.8  # the 99.9% point at 19 degrees of freedom


def test_top_k_and_top_p_keep_the_most_probable():
    ranked = LOGITS.argsort(descending=True)
    full = LOGITS.softmax(-1)
    ids, chances = candidates(LOGITS, Sampling(1.0, top_p=1.0, top_k=4))
    assert ids.tolist() == ranked[:4].tolist()
    torch.testing.assert_close(chances, full[ids] / full[ids].sum())
    for top_p in (0.01, 0.3, 0.8, 0.999):
        ids, chances = candidates(LOGITS, Sampling(1.0, top_p=top_p))
        mass = full[ranked].cumsum(-1)
        assert ids.tolist() == ranked[: len(ids)].tolist()
        assert mass[len(ids) - 1] >= top_p - 1e-6 and (len(ids) == 1 or mass[len(ids) - 2] < top_p)
        torch.testing.assert_close(chances, full[ids] / full[ids].sum())


@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_min_p_keeps_what_transformers_keeps(min_p, temperature):
    scores = MinPLogitsWarper(min_p)(cast(Any, torch.zeros(1, 0)), (LOGITS / temperature)[None])[0]
    ids, chances = candidates(LOGITS, Sampling(temperature, top_p=1.0, min_p=min_p))
    assert ids.tolist() == scores.isfinite().nonzero()[:, 0].tolist()
    torch.testing.assert_close(chances, scores.softmax(-1)[ids])


@pytest.mark.parametrize("repetition", [0.5, 1.2, 3.0])
def test_repetition_weakens_what_transformers_weakens(repetition):
    seen = torch.tensor([[3, 5, 3, 19]])
    expected = RepetitionPenaltyLogitsProcessor(repetition)(cast(Any, seen), LOGITS.clone()[None])[0]
    weakened = LOGITS.clone()
    weaken(weakened, {3, 5, 19}, repetition)
    torch.testing.assert_close(weakened, expected)


def test_greedy_and_cold_sampling_agree():
    assert draw(LOGITS, Sampling(0.0), random_stream(0, 0)) == int(LOGITS.argmax())
    assert draw(LOGITS * 1e30, Sampling(1e-30, top_p=1.0), random_stream(0, 0)) == int(LOGITS.argmax())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"repetition": 0.0}, "repetition is 0.0"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ("",)}, "stop is"),
        ({"stop": "end"}, "stop is 'end'"),
    ],
)
def test_settings_out_of_range_are_named(values, named):
    with pytest.raises(HerdError, match=named):
        Sampling(**values)
