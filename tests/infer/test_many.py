"""A thousand requests of all kinds through a small cache: each ends with a reason, nothing leaks, none waits on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from herd.console import HerdError
from herd.infer.blocks import BLOCK, blocks_for
from herd.infer.engine import Engine
from herd.model.config import ModelConfig
from herd.model.generation import Sampling
from herd.model.transformer import Transformer

COUNT, OPEN_AT_ONCE, CACHE_BLOCKS = 1_000, 24, 7


def asked(chance: random.Random) -> tuple[list[int], Sampling]:
    """A prompt, often one that begins like others, and how to continue it."""
    kind = chance.random()
    prompt = [chance.choice([11, 12])] * chance.choice([1, 20, 33, 45]) + [chance.randrange(300)] * chance.randrange(
        1, 12
    )
    sampling = Sampling(
        temperature=chance.choice([0.0, 0.0, 1.0]),
        top_p=1.0,
        max_tokens=chance.choice([1, 3, 12, 40]),
        seed=chance.randrange(10**6),
        stop=("e",) if chance.random() < 0.2 else (),
        repetition=1.3 if chance.random() < 0.1 else 1.0,
        seconds=chance.choice([1e-6, 0.02]) if kind < 0.1 else None,
    )
    return prompt, sampling


def test_a_thousand_requests(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    config, chance = engine.model.config, random.Random(5)
    bytes_a_block = config.kv_cache_bytes_per_token(4) * BLOCK
    small = Engine(engine.model, engine.tokenizer, max_batch=5, cache_bytes=CACHE_BLOCKS * bytes_a_block, keep=True)
    assert small.blocks.count == CACHE_BLOCKS
    requests, admitted = [], []
    make, admit = small._request, small.blocks.admit

    def remembered(*arguments):
        requests.append(make(*arguments))
        return requests[-1]

    def noted(prompt, most):
        table = admit(prompt, most)
        if table is not None:
            admitted.append(id(prompt))
        return table

    monkeypatch.setattr(small, "_request", remembered)
    monkeypatch.setattr(small.blocks, "admit", noted)
    streams, texts, left, begun = [], {}, set(), []
    while len(requests) < COUNT or streams:
        if len(requests) < COUNT and len(streams) < OPEN_AT_ONCE:
            prompt, sampling = asked(chance)
            streams.append((len(requests), small.stream_tokens(prompt, sampling)))
            texts[len(requests) - 1] = []
        at = chance.randrange(len(streams))
        number, stream = streams[at]
        if not texts[number] and number not in begun:
            begun.append(number)
        if chance.random() < 0.02:
            stream.close()
            left.add(number)
            del streams[at]
            continue
        try:
            texts[number].append(next(stream))
        except StopIteration:
            del streams[at]
        held = sum(live.done for live in small._live)
        assert small.blocks.used <= blocks_for(held) + 2 * len(small._live)
    assert small.blocks.used == small.blocks.promised == 0 and not small._live and not small._waiting
    reasons = [request.reason for number, request in enumerate(requests) if number in begun and number not in left]
    assert None not in reasons and {"end", "stop", "length", "context", "deadline"} == set(reasons)
    order = [id(requests[number].prompt) for number in begun]
    assert admitted == [prompt for prompt in order if prompt in set(admitted)]  # nobody was passed over
    for number in chance.sample([n for n in begun if n not in left and not requests[n].sampling.temperature], 40):
        request = requests[number]
        alone = engine.generate([request.prompt], replace(request.sampling, seconds=None))[0].ids
        assert tuple(texts[number]) == (alone[: len(texts[number])] if request.reason == "deadline" else alone)


def test_one_bad_request_harms_no_other(tokenizer) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(1, 16, 2, 1, 16, 400, 8, 64)).requires_grad_(False)
    model.tok_embeddings.weight[77] = float("nan")
    engine = Engine(model, tokenizer)
    expected = engine.generate([[5, 6]], Sampling(0.0, max_tokens=20))[0].ids
    good = engine.stream_tokens([5, 6], Sampling(0.0, max_tokens=20))
    first = next(good)
    with pytest.raises(HerdError, match="prompt 1: the model's logits are not numbers"):
        engine.generate([[7], [77]], Sampling(0.0, max_tokens=50))
    assert (first, *good) == expected and len(expected) > 4
    assert engine.blocks.used == engine.blocks.promised == 0
