"""Two small vocabularies, one of each chat format."""

import os
import pathlib

import pytest

from herd.model.tokenizer import Tokenizer, train_tokenizer

LIBRARY = pathlib.Path(os.__file__).parent
SMOLLM_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<jupyter_code>", "<empty_output>")


@pytest.fixture(scope="module")
def tokenizers():
    texts = [(LIBRARY / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "json/decoder")]
    llama3 = train_tokenizer(texts, 700)
    shifted = {token: rank + len(SMOLLM_SPECIALS) for token, rank in llama3.ranks.items()}
    places = {name: index for index, name in enumerate(SMOLLM_SPECIALS)}
    return {"llama3": llama3, "chatml": Tokenizer(shifted, places, "smollm")}


@pytest.fixture(params=["llama3", "chatml"])
def tokenizer(request, tokenizers):
    return tokenizers[request.param]
