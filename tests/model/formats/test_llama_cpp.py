"""llama.cpp loads the files we write, splits text as we do, and says what we say."""

import importlib
import importlib.util
import json
import os
import pathlib
import urllib.request
from dataclasses import replace
from typing import Any

import pytest
import torch

from herd.infer.engine import Engine
from herd.model.config import ModelConfig, RopeScaling
from herd.model.formats.gguf import read_gguf
from herd.model.formats.gguf_write import write_gguf
from herd.model.formats.native import build
from herd.model.generation import Sampling
from herd.model.tokenizer import train_tokenizer
from herd.model.transformer import Transformer

LIBRARY = pathlib.Path(os.__file__).parent
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a small village",
    "<|im_start|>user\nWhat is the sum of 2 and 3?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at a temperature of",
)
WORLD = "नमस्ते दुनिया · สวัสดี · 你好，世界 · Здравствуй · 👩‍👩‍👧 · don't I'LL they've 12345 1½ ²³ Ⅷ \u3000… \t\n\n  x  \n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp is not here: install the extra peers"
    ),
]


class LlamaCpp:
    """A file in llama.cpp's server, in this process; keys and values in float32."""

    def __init__(self, path, context):
        xllamacpp: Any = importlib.import_module("xllamacpp")  # an extra
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel, settings.n_batch = str(path), context, 1, context
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cpuparams.n_threads, settings.warmup, settings.verbosity, settings.port = 1, False, -1, 0
        self.server = xllamacpp.Server(settings)

    def post(self, path, asked):
        data, kind = json.dumps(asked).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server.listening_address}/{path}", data, kind)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    def encode(self, text):
        return self.post("tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def complete(self, ids, count, **more):
        asked = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.post("completion", asked | more)

    def greedy(self, ids, count):
        return self.complete(ids, count)["tokens"]

    def logprobs(self, ids, count=50):
        """Of the likeliest tokens after `ids`: token and log-probability."""
        (first,) = self.complete(ids, 1, n_probs=count)["completion_probabilities"]
        return {one["id"]: one["logprob"] for one in first["top_logprobs"]}


def furthest(found, logits):
    """The largest difference of log-probabilities from those of our logits."""
    ours = logits.log_softmax(-1)
    return max(abs(float(ours[token]) - value) for token, value in found.items())


def texts():
    files = [path.read_text(encoding="utf-8")[:3_000] for path in sorted(LIBRARY.glob("[a-h]*.py"))]
    return [*files, WORLD, WORLD * 3, "", "   ", "a" * 500, "\n" * 50]


@pytest.fixture(scope="module")
def smollm2(adopted_file):
    return read_gguf(adopted_file)


def written(model, tmp_path, kind):
    path = tmp_path / f"{kind}.gguf"
    write_gguf(path, model.config, model.state, model.tokenizer, kind, "smollm2", "apache-2.0")
    return path


def test_greedy_text_is_ours_in_float16(smollm2, tmp_path):
    path = written(smollm2, tmp_path, "F16")
    theirs, ours = LlamaCpp(path, 256), read_gguf(path)
    engine = Engine(build(ours.config, ours.state), ours.tokenizer)
    for text in PROMPTS:
        ids = ours.tokenizer.encode(text)
        (completion,) = engine.generate([ids], Sampling(temperature=0, max_tokens=64))
        text = ours.tokenizer.decode(theirs.greedy(ids, 64))
        assert text and text.removesuffix("<|im_end|>") == completion.text


@pytest.mark.parametrize(("kind", "bound"), [("F32", 0.02), ("F16", 0.05), ("BF16", 0.2), ("Q8_0", 0.3), ("Q4_0", 1.0)])
@torch.no_grad()
def test_probabilities_are_ours_in_every_kind(kind, bound, smollm2, tmp_path):
    """llama.cpp rounds activations to the kind it multiplies in, so it is near, and nearer the wider the kind."""
    path = written(smollm2, tmp_path, kind)
    ours = read_gguf(path)
    ids = ours.tokenizer.encode((LIBRARY / "argparse.py").read_text()[2_000:2_600])
    logits = build(ours.config, ours.state)(torch.tensor([ids]))[0, -1]
    found = LlamaCpp(path, 512).logprobs(ids)
    assert len(found) == 50 and max(found, key=found.__getitem__) == int(logits.argmax())
    assert furthest(found, logits) < bound


def test_ids_are_llama_cpps_for_smollm2(smollm2, tmp_path):
    theirs = LlamaCpp(written(smollm2, tmp_path, "Q4_0"), 64)
    different = [text[:60] for text in texts() if theirs.encode(text) != smollm2.tokenizer.encode(text)]
    assert not different


@pytest.fixture(scope="module")
def ours():
    """A random stretched, grouped, untied model with a vocabulary of Llama 3's kind."""
    tokenizer = train_tokenizer([path.read_text(encoding="utf-8") for path in LIBRARY.glob("[a-c]*.py")] + [WORLD], 600)
    scaling = RopeScaling(factor=8.0, original_context=8_192)
    config = ModelConfig(3, 128, 8, 2, 192, 600, 16, 131_072, rope_scaling=scaling)
    torch.manual_seed(0)
    model = Transformer(replace(config, context=4_096))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.12)
    return config, model, tokenizer


@torch.no_grad()
def test_a_stretched_model_of_ours_has_our_logits(ours, tmp_path):
    config, model, tokenizer = ours
    write_gguf(tmp_path / "ours.gguf", config, model.state_dict(), tokenizer, "F32", "ours")
    theirs = LlamaCpp(tmp_path / "ours.gguf", 3_072)
    ids = torch.randint(0, 580, (3_000,), generator=torch.Generator().manual_seed(1))
    logits = model(ids[None])[0, -1]
    assert logits.std() > 0.3
    assert furthest(theirs.logprobs(ids.tolist()), logits) < 5e-3
    assert (model(ids[None, -1_500:])[0, -1] - logits).abs().max() > 0.05  # what is far away counts


def test_ids_are_llama_cpps_for_a_vocabulary_of_ours(ours, tmp_path):
    config, model, tokenizer = ours
    write_gguf(tmp_path / "ours.gguf", config, model.state_dict(), tokenizer, "F16", "ours")
    theirs = LlamaCpp(tmp_path / "ours.gguf", 64)
    different = [text[:60] for text in texts() if theirs.encode(text) != tokenizer.encode(text)]
    assert not different
