"""A tokenizer and an untrained network, small enough to run in each test."""

import argparse
import pathlib

import pytest
import torch

from herd.infer.engine import Engine
from herd.model.config import ModelConfig
from herd.model.tokenizer import train_tokenizer
from herd.model.transformer import Transformer


@pytest.fixture(scope="session")
def tokenizer():
    assert argparse.__file__ is not None
    return train_tokenizer([pathlib.Path(argparse.__file__).read_text()], 400)


@pytest.fixture(scope="session")
def engine(tokenizer, untrained):
    model = untrained(ModelConfig(2, 48, 4, 2, 96, 400, 12, 64, tied_embeddings=True))
    return Engine(model, tokenizer, max_batch=3)


@pytest.fixture(scope="session")
def wild(tokenizer):
    """An untrained network, which draws all tokens alike, with a long context."""
    torch.manual_seed(0)
    return Engine(Transformer(ModelConfig(1, 16, 2, 1, 16, 400, 8, 4096)).requires_grad_(False), tokenizer)


@pytest.fixture
def one_thread():
    """Networks this small lose by a second thread, the more the busier the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
