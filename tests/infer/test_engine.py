"""The engine against a plain loop; and what callers rely on: seeds, stops, whole characters, honest endings."""

import os
import pathlib

import pytest
import torch

from herd.console import HerdError
from herd.infer.engine import Engine
from herd.model.config import ModelConfig
from herd.model.generation import Sampling
from herd.model.tokenizer import train_tokenizer
from herd.model.transformer import Transformer

SCRIPTED = Sampling(temperature=0.0, max_tokens=200)
TEXT = (pathlib.Path(os.__file__).parent / "argparse.py").read_text()
GREEDY = Sampling(temperature=0.0, max_tokens=20)
FREE = Sampling(temperature=1.0, top_p=1.0, max_tokens=30)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], 400)


@pytest.fixture(scope="module")
def engine(tokenizer):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(2, 48, 4, 2, 96, 400, 12, 64, tied_embeddings=True))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    return Engine(model, tokenizer, max_batch=3)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = ["def main(", "import", "class Parser:", "x", "return self", "for a in b:", "y", "if not found", "z"]
    return [tokenizer.encode(text, bos=True) for text in texts]


def scripted(tokenizer, text, stop_token="<|end_of_text|>"):
    """An engine whose model is certain of every next token of `text` after a prompt of one token."""
    script = [*text_ids(tokenizer, text), tokenizer.special[stop_token]]

    class Script(Transformer):
        def hidden(self, tokens_BT, mask=None, cache=None):
            assert cache is not None
            cache.used += tokens_BT.shape[1]
            return torch.nn.functional.one_hot(torch.tensor([[script[cache.used - 1]]]), 400).float() * 100

    model = Script(ModelConfig(1, 400, 2, 1, 4, 400, 2, 256))
    model.output.weight = torch.nn.Parameter(torch.eye(400))
    return Engine(model, tokenizer)


def text_ids(tokenizer, text):
    """One token a byte, so that every character outside ASCII is spread over several tokens."""
    return [tokenizer.ranks[bytes([value])] for value in text.encode()]


@torch.no_grad()
def naive_greedy(engine, prompt, steps):
    ids, logprobs = list(prompt), []
    while len(ids) < len(prompt) + steps:
        scores = engine.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
        if ids[-1] in engine.tokenizer.stop_ids:
            break
    return ids[len(prompt) :], logprobs


def test_greedy_equals_a_loop_without_cache(engine, prompts):
    completions = engine.generate(prompts, GREEDY)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids, logprobs = naive_greedy(engine, prompt, 20)
        assert list(completion.ids) == ids
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
    assert len({completion.ids for completion in completions}) > 3


def test_a_batch_gives_what_each_prompt_gives_alone(engine, prompts):
    together = engine.generate(prompts, GREEDY)
    alone = [engine.generate([prompt], GREEDY)[0] for prompt in prompts]
    assert [c.ids for c in together] == [c.ids for c in alone]


def test_the_seed_decides(engine, prompts):
    first, second = engine.generate(prompts, FREE), engine.generate(prompts, FREE)
    assert [c.ids for c in first] == [c.ids for c in second]
    other = engine.generate(prompts, Sampling(1.0, 1.0, max_tokens=30, seed=1))
    assert all(a.ids != b.ids for a, b in zip(first, other, strict=True))


def test_equal_prompts_of_one_call_are_drawn_apart(engine, prompts):
    samples = engine.generate([prompts[0]] * 7, FREE)
    assert len({sample.ids for sample in samples}) == 7
    fewer = engine.generate([prompts[0]] * 2, FREE)
    assert [s.ids for s in samples[:2]] == [s.ids for s in fewer]  # not a matter of who else is in the call


@pytest.mark.parametrize("sampling", [GREEDY, FREE, Sampling(1.0, 1.0, stop=("e", "\n"))])
def test_streamed_pieces_join_to_the_text(engine, prompts, sampling):
    for prompt in prompts[:4]:
        assert "".join(engine.stream(prompt, sampling)) == engine.generate([prompt], sampling)[0].text


def test_a_character_is_never_split(tokenizer):
    text = "naïve 你好 👩‍👩‍👧 नमस्ते"
    engine = scripted(tokenizer, text)
    pieces = list(engine.stream([tokenizer.bos_id], SCRIPTED))
    assert pieces == list(text)
    assert engine.generate([[tokenizer.bos_id]], SCRIPTED)[0].text == text


def test_a_character_that_never_ends_is_replaced(tokenizer):
    engine = scripted(tokenizer, "abc👩")
    completion = engine.generate([[tokenizer.bos_id]], Sampling(temperature=0.0, max_tokens=5))[0]
    assert (completion.text, completion.stop_reason) == ("abc\ufffd", "length")
    assert "".join(engine.stream([tokenizer.bos_id], Sampling(temperature=0.0, max_tokens=5))) == "abc\ufffd"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("END",), "one EN"),
        ((" EN", "two"), "one"),
        (("ENDtwoX",), "one ENENDENDtwo"),
        (("two", "ENDENDt"), "one EN"),
        (("one",), ""),
    ],
)
def test_text_ends_before_the_first_stop_string(stop, text, tokenizer):
    engine = scripted(tokenizer, "one ENENDENDtwo")
    sampling = Sampling(temperature=0.0, max_tokens=100, stop=stop)
    completion = engine.generate([[tokenizer.bos_id]], sampling)[0]
    assert completion.text == text
    assert completion.stop_reason == ("end" if text == "one ENENDENDtwo" else "stop")
    assert "".join(engine.stream([tokenizer.bos_id], sampling)) == text


@pytest.mark.parametrize("name", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
def test_stop_tokens_end_the_text_and_are_among_the_ids(name, tokenizer):
    completion = scripted(tokenizer, "done", name).generate([[tokenizer.bos_id]], GREEDY)[0]
    assert (completion.text, completion.stop_reason) == ("done", "end")
    assert completion.ids[-1] == tokenizer.special[name]
    assert len(completion.logprobs) == len(completion.ids) == 5


def test_the_context_ends_a_text_and_a_longer_prompt_is_refused(engine, tokenizer):
    prompt = tokenizer.encode(TEXT)[:60]
    full = engine.generate([prompt, prompt + prompt[:4], prompt], FREE)
    assert [len(c.ids) for c in full] == [4, 0, 4] and {c.stop_reason for c in full} == {"context"}
    with pytest.raises(HerdError, match="prompt 1 has 65 tokens, the model's context is 64"):
        engine.generate([prompt, prompt + prompt[:5]], GREEDY)
    with pytest.raises(HerdError, match="prompt 0 has 65 tokens"):
        engine.stream(prompt + prompt[:5], GREEDY)
    with pytest.raises(HerdError, match="prompt 0 is empty"):
        engine.generate([[]], GREEDY)
    with pytest.raises(HerdError, match=r"outside 0 \.\. 399"):
        engine.generate([[5, 400]], GREEDY)


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    with pytest.raises(HerdError, match="tokenizer of 400 ids, model of 300 rows"):
        Engine(Transformer(ModelConfig(1, 8, 2, 1, 8, 300, 4, 16)), tokenizer)
