"""What generation and training rely on: the cache changes nothing, and packed documents do not see each other."""

from itertools import pairwise

import pytest
import torch

from herd.model.cache import PagedCache, Part
from herd.model.config import LLAMA3, ModelConfig
from herd.model.formats.native import tensor_shapes
from herd.model.transformer import Transformer, document_mask

CONFIG = ModelConfig(3, 64, 8, 2, 160, 300, 8, 64)


@pytest.fixture(scope="module")
def model(untrained):
    return untrained(CONFIG, 0.15)


def random_tokens(batch, length, seed=1):
    return torch.randint(0, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


BLOCKS = ([0, 3, 5, 2, 9, 7], [6, 1, 4, 8, 10, 11])  # of 8 tokens, in no order


def cached(model, tokens, cuts):
    """Logits of rows of tokens by passes that go from cut to cut, all rows in each pass."""
    cache, found = PagedCache(CONFIG, 12, 8, torch.float32, torch.device("cpu")), []
    for start, end in pairwise([0, *cuts]):
        cache.begin([Part(blocks, start, end) for blocks in BLOCKS])
        found.append(model(tokens[:, start:end].reshape(1, -1), cache=cache).view(2, end - start, -1))
    return torch.cat(found, 1)


@pytest.mark.parametrize("cuts", [(40, 41, 42, 43), (1, 2, 43), (20, 35, 43), (43,)])
def test_decoding_with_a_cache_equals_the_full_forward(model, cuts):
    tokens = random_tokens(2, 43)
    torch.testing.assert_close(cached(model, tokens, cuts), model(tokens), atol=2e-5, rtol=0)


@pytest.mark.parametrize("lengths", [(33, 33, 33, 33), (33, 40, 18, 25), (17,), (33, 33, 33, 3, 3, 4), (2, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sequences_that_begin_alike_are_read_once_and_mean_the_same(model, lengths, dtype):
    """Rows share their first two blocks by reference; those shorter than that hold blocks of their own."""
    network = Transformer(CONFIG).requires_grad_(False)
    network.load_state_dict(model.state_dict())
    network.to(dtype)
    cache = PagedCache(CONFIG, 40, 8, dtype, torch.device("cpu"))
    start = random_tokens(1, 16)[0]
    rows, parts, free = [], [], iter(range(2, 40))
    cache.begin([Part([0, 1], 0, 16)])
    network(start[None], cache=cache)
    for number, length in enumerate(lengths):
        alike = length > 16
        row = torch.cat((start, random_tokens(1, 60, number)[0]))[:length] if alike else random_tokens(1, length, 9)[0]
        blocks = [0, 1] if alike else []
        blocks += [next(free) for _ in range(-(-length // 8) - len(blocks))]
        cache.begin([Part(blocks, 16 if alike else 0, length - 1)])
        network(row[None, 16 if alike else 0 : -1], cache=cache)
        rows.append(row)
        parts.append(Part(blocks, length - 1, length))
    cache.begin(parts)
    logits = network(torch.stack([row[-1] for row in rows])[None], cache=cache)[0]
    alone = torch.stack([network(row[None])[0, -1] for row in rows])
    torch.testing.assert_close(logits, alone, atol=3e-5 if dtype == torch.float32 else 0.4, rtol=0)


def test_tokens_past_the_context_are_refused(model):
    cache = PagedCache(CONFIG, 9, 8, torch.float32, torch.device("cpu"))
    cache.begin([Part(range(9), 0, 65)])
    with pytest.raises(ValueError, match="65 tokens do not fit the context of 64"):
        model(random_tokens(1, 65), cache=cache)


def test_a_packed_document_gives_the_logits_it_gives_alone(model):
    """Positions go on counting over the pack; rotary attention sees distances alone, so this changes nothing."""
    first, second = random_tokens(1, 17, 2), random_tokens(1, 26, 3)
    packed, documents = torch.cat((first, second), 1), torch.tensor([[0] * 17 + [1] * 26])
    logits = model(packed, mask=document_mask(documents))
    torch.testing.assert_close(logits[:, :17], model(first), atol=5e-5, rtol=0)
    torch.testing.assert_close(logits[:, 17:], model(second), atol=5e-5, rtol=0)
    assert (model(packed)[:, 17:] - model(second)).abs().max() > 0.01  # unmasked, the second saw the first


def test_a_later_token_changes_nothing_before_it(model):
    tokens = random_tokens(1, 30)
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 300
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :20], after[:, :20]) and not torch.equal(before[:, 20], after[:, 20])


@pytest.mark.parametrize("name", LLAMA3)
def test_parameters_are_counted_as_they_are_stored(name):
    stored = sum(shape.numel() for shape in tensor_shapes(LLAMA3[name]).values())
    assert LLAMA3[name].parameters == stored
