"""What generation and training rely on: the cache changes nothing, and packed documents do not see each other."""

import pytest
import torch

from herd.model.config import LLAMA3, ModelConfig
from herd.model.formats.native import tensor_shapes
from herd.model.transformer import KVCache, Transformer, document_mask

CONFIG = ModelConfig(3, 64, 8, 2, 160, 300, 8, 64)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.15)
    return model.requires_grad_(False)


def random_tokens(batch, length, seed=1):
    return torch.randint(0, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("parts", [(40, 1, 1, 1), (1, 1, 41), (20, 15, 8), (43,)])
def test_decoding_with_a_cache_equals_the_full_forward(model, parts):
    tokens = random_tokens(2, 43)
    cache = KVCache(CONFIG, 2, 43, torch.float32, torch.device("cpu"))
    logits = torch.cat([model(part, cache=cache) for part in tokens.split(list(parts), 1)], 1)
    torch.testing.assert_close(logits, model(tokens), atol=2e-5, rtol=0)


def test_tokens_past_the_context_are_refused(model):
    cache = KVCache(CONFIG, 1, 64, torch.float32, torch.device("cpu"))
    model(random_tokens(1, 64), cache=cache)
    with pytest.raises(ValueError, match="65 tokens do not fit the context of 64"):
        model(random_tokens(1, 1), cache=cache)


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
