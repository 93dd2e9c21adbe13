"""Held-out losses against a plain computation that shares nothing with ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from herd.data.shards import HeldOut
from herd.evaluate.perplexity import score_documents
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, init_weights

CONFIG = ModelConfig(2, 16, 2, 1, 32, 64, 8, 32, True)


@pytest.fixture
def model():
    network = Transformer(CONFIG)
    init_weights(network, 0)
    return network


def held_out(lengths: list[int]) -> HeldOut:
    tokens = np.random.default_rng(0).integers(0, 64, sum(lengths)).astype(np.uint16)
    starts = np.cumsum([0, *lengths])
    count = len(lengths)
    return HeldOut(
        tokens, starts, np.array(lengths) * 3, [str(i) for i in range(count)], ["code"] * count, ["en"] * count
    )


def one_by_one(model: Transformer, tokens: np.ndarray, context: int) -> float:
    """Every token but the first once, in windows that start afresh; one softmax at a time, in float64."""
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(tokens) - 1, context):
            window = torch.from_numpy(tokens[first : first + context + 1].astype(np.int64))
            logits = model(window[None, :-1])[0].double()
            total -= sum(float(row.log_softmax(-1)[target]) for row, target in zip(logits, window[1:], strict=True))
    return total


@pytest.mark.parametrize("context", [8, 32])
def test_each_document_has_the_loss_of_a_plain_computation(model, context):
    lengths = [2, 9, 33, 70, 5]
    data = held_out(lengths)
    losses = score_documents(model, data, context, torch.float32, max_documents=10, max_tokens=50)
    for i, length in enumerate(lengths):
        tokens = data.tokens[data.starts[i] : data.starts[i] + min(length, 50)]
        assert losses.nats[i] == pytest.approx(one_by_one(model, tokens, context), abs=1e-4)
        assert losses.tokens[i] == len(tokens) - 1
    assert losses.nats_per_token == pytest.approx(losses.nats.sum() / losses.tokens.sum())


def test_bits_per_byte_of_a_uniform_guess_is_known(model):
    """A model that gives every one of 64 tokens the same chance needs 6 bits a token: 6 * tokens / bytes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    data = held_out([10, 20])
    losses = score_documents(model, data, 32, torch.float32, max_documents=10)
    assert losses.nats_per_token == pytest.approx(math.log(64))
    assert losses.bits_per_byte == pytest.approx(6 * (9 + 19) / 90)


def test_a_document_cut_short_counts_its_bytes_in_proportion(model):
    losses = score_documents(model, held_out([101]), 32, torch.float32, max_documents=1, max_tokens=51)
    assert losses.bytes[0] == pytest.approx(303 * 50 / 100)


def test_the_limit_of_documents_is_kept(model):
    assert len(score_documents(model, held_out([5, 6, 7]), 32, torch.float32, max_documents=2).ids) == 2
