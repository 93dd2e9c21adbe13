"""Compiled blocks compute what the blocks compute."""

import pytest
import torch

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, document_mask, init_weights
from herd.train.compiled import compile_blocks

CONFIG = ModelConfig(2, 32, 4, 2, 48, 60, 8, 160, tied_embeddings=True)


def loss_and_gradients(model: Transformer, mask: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    tokens = torch.randint(0, 60, (2, 150), generator=torch.Generator().manual_seed(1))
    loss = torch.nn.functional.cross_entropy(model(tokens, mask)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return loss.detach(), {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["causal", "packed"])
def test_loss_and_gradients_are_those_of_the_blocks_and_names_stay(packed: bool) -> None:
    model = Transformer(CONFIG)
    init_weights(model, 0)
    mask = document_mask((torch.arange(150) // 60).expand(2, -1)) if packed else None
    names = list(model.state_dict())
    expected, theirs = loss_and_gradients(model, mask)
    compile_blocks(model)
    loss, gradients = loss_and_gradients(model, mask)
    assert list(model.state_dict()) == names and set(gradients) == set(theirs)
    assert abs(float(loss - expected)) < 1e-5
    for name, value in theirs.items():
        assert (gradients[name] - value).norm() <= 1e-5 * value.norm(), name


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(HerdError, match=r"compute\.compile.*no-such-compiler"):
        compile_blocks(Transformer(CONFIG))
