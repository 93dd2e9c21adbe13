"""The fused steps give the values and gradients of the plain modules, which Hugging Face's are held to."""

import pytest
import torch

from herd.model import fused
from herd.model.config import ModelConfig, RopeScaling
from herd.model.transformer import Transformer, document_mask

SHAPES = {
    "grouped, stretched": ModelConfig(2, 48, 6, 2, 80, 90, 8, 256, rope_scaling=RopeScaling(original_context=64)),
    "tied, wide heads": ModelConfig(2, 40, 3, 3, 64, 70, 16, 256, tied_embeddings=True),
}


def random_model(name):
    torch.manual_seed(0)
    model = Transformer(SHAPES[name]).double()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in key else 0.0, 0.15)
    return model


def loss_and_gradients(model, tokens, mask=None, dtype=torch.float64):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model.hidden(tokens, mask)
    logits = model.output(hidden.to(model.output.weight.dtype)).log_softmax(-1)
    loss = -logits[:, :-1].gather(2, tokens[:, 1:, None]).mean()
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.fixture
def plainly(monkeypatch):
    """Loss and gradients by the modules."""

    def run(*arguments, **more):
        with monkeypatch.context() as patch:
            patch.setattr(fused, "applies", lambda *_: False)
            return loss_and_gradients(*arguments, **more)

    return run


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("packed", [False, True], ids=["causal", "packed"])
def test_values_and_gradients_are_the_modules(name, packed, plainly):
    model = random_model(name)
    tokens = torch.randint(0, 70, (2, 150), generator=torch.Generator().manual_seed(1))
    mask = document_mask((torch.arange(150) // 60).expand(2, -1)) if packed else None
    loss, gradients = loss_and_gradients(model, tokens, mask)
    expected, theirs = plainly(model, tokens, mask)
    assert abs(float(loss - expected)) < 1e-12
    for key, value in theirs.items():
        torch.testing.assert_close(gradients[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_in_bfloat16_they_are_as_near_to_float64_as_the_modules(name, plainly):
    model = random_model(name)
    tokens = torch.randint(0, 70, (2, 150), generator=torch.Generator().manual_seed(1))
    _, exact = loss_and_gradients(model, tokens)
    model = model.float()
    loss, ours = loss_and_gradients(model, tokens, dtype=torch.bfloat16)
    expected, modules = plainly(model, tokens, dtype=torch.bfloat16)
    assert abs(float(loss - expected)) < 0.01

    def distance(gradients):
        return sum(float((gradients[key].double() - exact[key]).norm() / exact[key].norm()) for key in exact)

    assert distance(ours) < 1.1 * distance(modules)
    assert all(value.dtype == torch.float32 for value in ours.values())


def test_without_gradients_or_with_foreign_weights_the_modules_are_used():
    x, weight = torch.ones(1, 2, 3), torch.nn.Parameter(torch.ones(3, 3))
    assert fused.applies(x, weight)
    with torch.no_grad():
        assert not fused.applies(x, weight)

    class Sharded(torch.Tensor):
        pass

    assert not fused.applies(x, weight, torch.ones(3, 3).as_subclass(Sharded))


@pytest.mark.parametrize("frozen", ["wq", "w3", "norm"])
def test_frozen_weights_get_no_gradient(frozen):
    model = random_model("tied, wide heads")
    for name, weight in model.named_parameters():
        weight.requires_grad_(frozen not in name)
    tokens = torch.randint(0, 70, (1, 20))
    model.hidden(tokens).sum().backward()
    assert all(
        (weight.grad is None) == (frozen in name) for name, weight in model.named_parameters() if "out" not in name
    )
