"""The engine against a plain loop and transformers; and what callers rely on: seeds, stops, characters, endings."""

import os
import pathlib
import random
import threading
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from herd.console import HerdError
from herd.infer import engine as engine_module
from herd.infer.engine import Engine
from herd.model.config import ModelConfig
from herd.model.formats.huggingface import write_huggingface
from herd.model.generation import Sampling
from herd.model.transformer import Transformer

SCRIPTED = Sampling(temperature=0.0, max_tokens=200)
TEXT = (pathlib.Path(os.__file__).parent / "argparse.py").read_text()
GREEDY = Sampling(temperature=0.0, max_tokens=20)
FREE = Sampling(temperature=1.0, top_p=1.0, max_tokens=30)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = ["def main(", "import", "class Parser:", "x", "return self", "for a in b:", "y", "if not found", "z"]
    return [tokenizer.encode(text, bos=True) for text in texts]


def scripted(tokenizer, text, stop_token="<|end_of_text|>"):
    """An engine whose model is certain of every next token of `text` after a prompt of one token."""
    script = [*text_ids(tokenizer, text), tokenizer.special[stop_token]]

    class Script(Transformer):
        def hidden(self, tokens_BT, mask=None, cache=None):
            assert cache is not None and tokens_BT.shape == (1, 1)
            return torch.nn.functional.one_hot(torch.tensor([[script[cache.end - 1]]]), 400).float() * 100

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


def test_ragged_batches_equal_prompts_alone_in_float32(engine, tokenizer):
    """Prompts of many lengths, some equal, some beginning alike, more of them than rows, each with its own limits."""
    base = tokenizer.encode(TEXT)[:40]
    prompts = [base[: 3 + 5 * (index % 7)] + base[: index % 3] for index in range(20)]
    samplings = [Sampling(0.8, 0.9, max_tokens=2 + 3 * (index % 5), seed=index) for index in range(20)]
    together = engine.generate(prompts, samplings)
    assert len({(len(c.ids), c.stop_reason) for c in together}) > 4
    for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        others = [[5]] * index  # a prompt's random numbers depend on its place in the call
        alone = engine.generate([*others, prompt], [Sampling(0.0, max_tokens=1)] * index + [sampling])[-1]
        assert together[index].ids == alone.ids
        assert together[index].logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_what_prompts_share_is_computed_once(engine, tokenizer, monkeypatch):
    computed = []
    hidden = engine.model.hidden
    monkeypatch.setattr(
        engine.model, "hidden", lambda tokens, **rest: computed.append(tokens.numel()) or hidden(tokens, **rest)
    )
    base = tokenizer.encode(TEXT)[:50]
    questions = [[*base, 200 + index, *base[:4]] for index in range(3)]
    engine.generate([questions[index % 3] for index in (2, 0, 1)], Sampling(0.0, max_tokens=2))
    assert computed == [
        55,
        1 + 2 * 5,
        2,
    ]  # one prompt; then the ends of the others, which a block and a copied half precede
    computed.clear()
    long = engine.generate([base] * 3, Sampling(0.0, max_tokens=5))
    assert computed == [50, 3, 3, 3, 3, 2]
    computed.clear()
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 20)  # long prompts in parts
    assert engine.generate([base] * 3, Sampling(0.0, max_tokens=5))[2].ids == long[2].ids
    assert computed == [20, 20, 10, 3, 3, 3, 3, 2]
    monkeypatch.undo()
    assert long[0].ids == tuple(naive_greedy(engine, base, 5)[0])
    assert engine.blocks.used == engine.blocks.promised == 0


def test_an_engine_that_keeps_knows_the_prompts_of_earlier_calls(engine, tokenizer, monkeypatch):
    keeping, computed = Engine(engine.model, tokenizer, keep=True), []
    hidden = engine.model.hidden
    monkeypatch.setattr(
        engine.model, "hidden", lambda tokens, **rest: computed.append(tokens.numel()) or hidden(tokens, **rest)
    )
    base = tokenizer.encode(TEXT)[:50]
    first = [keeping.generate([base], GREEDY)[0] for _ in range(2)]
    assert first[0].ids == first[1].ids == engine.generate([base], GREEDY)[0].ids
    prompts_computed = [count for count in computed if count > 1]
    assert prompts_computed == [50, 18, 50]


def test_calls_of_several_threads_and_streams_left_open_run_together(engine, prompts):
    expected = {index: engine.generate([prompt], GREEDY)[0].ids for index, prompt in enumerate(prompts)}
    started = engine.stream_tokens(prompts[0], GREEDY)
    first, found = next(started), {}

    def ask(index):
        found[index] = engine.generate([prompts[index]], GREEDY)[0].ids

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(1, len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (first, *started) == expected[0]
    assert all(found[index] == expected[index] for index in found) and len(found) == len(prompts) - 1


def test_a_cache_too_small_for_one_request_is_an_error_and_others_wait_for_room(engine, tokenizer, prompts):
    small = Engine(engine.model, tokenizer, cache_bytes=engine.model.config.kv_cache_bytes_per_token() * 2 * 64)
    assert small.blocks.count == 2
    with pytest.raises(HerdError, match=r"prompt 1 may grow to \d+ tokens, the cache holds 32 .*lower max_tokens"):
        Engine(engine.model, tokenizer, cache_bytes=1).generate([[5], list(range(50))], GREEDY)
    together = small.generate(prompts, GREEDY)  # two at a time
    assert [c.ids for c in together] == [c.ids for c in engine.generate(prompts, GREEDY)]


def test_a_freed_row_is_taken_at_once(engine, prompts, monkeypatch):
    rows = []
    hidden = engine.model.hidden
    monkeypatch.setattr(
        engine.model, "hidden", lambda tokens, **rest: rows.append(tokens.numel()) or hidden(tokens, **rest)
    )
    one, many = Sampling(1.0, 1.0, max_tokens=2), Sampling(1.0, 1.0, max_tokens=17)
    completions = engine.generate([[7]] * 9, [many, one, many, one, one, one, one, one, one])
    expected = [17, 2, 17, 2, 2, 2, 2, 2, 2]
    assert all(len(c.ids) == n or c.stop_reason == "end" for c, n in zip(completions, expected, strict=True))
    assert max(rows) == 3 and len(rows) < 25  # in turns of three, to the end of the longest each, it would be 34


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_greedy_equals_transformers_for_ragged_prompts(kv_heads, tokenizer, tmp_path):
    torch.manual_seed(kv_heads)
    config = ModelConfig(2, 48, 4, kv_heads, 96, 400, 12, 400, tied_embeddings=True)
    model = Transformer(config).requires_grad_(False)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    write_huggingface(tmp_path, config, model.state_dict(), None, torch.float32)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = tokenizer.encode(TEXT)
    prompts = [ids[at : at + length] for at, length in ((0, 1), (5, 300), (50, 17), (5, 290), (400, 64), (7, 255))]
    completions = Engine(model, tokenizer, max_batch=4).generate(prompts, Sampling(0.0, max_tokens=24))
    for prompt, completion in zip(prompts, completions, strict=True):
        stops = sorted(tokenizer.stop_ids)
        whole = theirs.generate(  # pyright: ignore[reportAttributeAccessIssue]
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=stops, pad_token_id=0
        )
        assert list(completion.ids) == whole[0, len(prompt) :].tolist()


def test_bfloat16_stays_close_to_float32(engine, tokenizer):
    """The path of its own that bf16 has on the CPU: the chance of each token that float32 chose."""
    narrow = Transformer(engine.model.config).requires_grad_(False)
    narrow.load_state_dict(engine.model.state_dict())
    prompts = [tokenizer.encode(TEXT)[at : at + 10 + at] for at in range(8)]
    wide = engine.generate(prompts, Sampling(0.0, max_tokens=1))
    close = Engine(narrow.to(torch.bfloat16), tokenizer).generate(prompts, Sampling(0.0, max_tokens=2))
    for a, b in zip(wide, close, strict=True):
        assert a.logprobs[0] == pytest.approx(b.logprobs[0], abs=0.3)


def test_logits_that_are_not_numbers_name_the_prompt_and_the_engine_goes_on(tokenizer):
    model = Transformer(ModelConfig(1, 8, 2, 1, 8, 400, 4, 32)).requires_grad_(False)
    model.tok_embeddings.weight[77] = float("nan")
    engine = Engine(model, tokenizer)
    with pytest.raises(HerdError, match=r"prompt 2: the model's logits are not numbers \(NaN"):
        engine.generate([[5], [6, 7], [5, 77], [8]], GREEDY)
    assert len(engine.generate([[5], [6, 7], [8]], GREEDY)) == 3


def test_tokens_come_one_by_one_and_a_stream_can_be_left(engine, prompts):
    whole = engine.generate([prompts[0]], FREE)[0]
    assert tuple(engine.stream_tokens(prompts[0], FREE)) == whole.ids
    tokens = engine.stream_tokens(prompts[0], FREE)
    assert next(tokens) == whole.ids[0]
    tokens.close()
    assert list(tokens) == []
    with pytest.raises(HerdError, match="prompt 0 is empty"):
        engine.stream_tokens([], FREE)


def test_one_sampling_for_all_or_one_each(engine, prompts):
    each = engine.generate(prompts[:3], [Sampling(0.0, max_tokens=n) for n in (1, 2, 3)])
    assert [len(c.ids) for c in each] == [1, 2, 3]
    with pytest.raises(HerdError, match="3 prompts and 2 samplings"):
        engine.generate(prompts[:3], [GREEDY] * 2)
    assert engine.generate([], GREEDY) == []


def test_repetition_is_counted_from_the_prompt_on(engine, prompts):
    plain = engine.generate(prompts, GREEDY)
    for prompt, completion in zip(prompts, engine.generate(prompts, replace(GREEDY, repetition=1e6)), strict=True):
        ids = [token for token in completion.ids if token not in engine.tokenizer.stop_ids]
        assert not {*prompt} & {*ids} and len(set(ids)) == len(ids)
    assert any(len(set(c.ids)) < len(c.ids) for c in plain)


def test_a_deadline_ends_its_request_alone(engine, prompts):
    late = replace(FREE, seconds=1e-9)
    found = engine.generate(prompts[:3], [GREEDY, late, GREEDY])
    assert found[1].stop_reason == "deadline" and found[1].ids == ()
    for at in (0, 2):
        assert found[at].ids == engine.generate([prompts[at]], GREEDY)[0].ids


def test_a_call_can_be_stopped_and_gives_what_there_is(engine, prompts, monkeypatch):
    stop, hidden, steps = threading.Event(), engine.model.hidden, []

    def slowly(tokens, **rest):
        steps.append(1)
        if len(steps) == 4:
            stop.set()
        return hidden(tokens, **rest)

    monkeypatch.setattr(engine.model, "hidden", slowly)
    found = engine.generate(prompts, GREEDY, stop)
    assert len(steps) == 4 and {c.stop_reason for c in found} <= {"cancelled", "end"}
    assert [len(c.ids) for c in found[3:]].count(0) >= 3  # did not get their turn
    assert engine.blocks.used == engine.blocks.promised == 0


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


def test_log_probabilities_of_prompts_are_the_models(engine, tokenizer):
    text = "def main(): return [value for value in range(10) if value]"
    ids = tokenizer.encode(text, bos=True)[:40]
    with torch.no_grad():
        logits = engine.model(torch.tensor([ids]))[0].log_softmax(-1)
    wanted = logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    asked = Sampling(0.0, max_tokens=0, prompt_logprobs=True)
    plain = Sampling(0.0, max_tokens=5)
    scored, others = [], []
    for one in engine.generate(
        [ids, ids[:20], ids, ids[:1]], [asked, plain, replace(plain, prompt_logprobs=True), asked]
    ):
        (scored if one.prompt_logprobs else others).append(one)
    for one in scored:
        torch.testing.assert_close(torch.tensor(one.prompt_logprobs), wanted, atol=2e-5, rtol=0)
    assert [len(one.ids) for one in scored] == [0, 5] and [one.stop_reason for one in scored] == ["length", "length"]
    assert scored[1].ids == engine.generate([ids], plain)[0].ids
    full = tokenizer.encode(text * 4, bos=True)[: engine.model.config.context]
    (whole,) = engine.generate([full], asked)
    assert len(whole.prompt_logprobs) == len(full) - 1 and whole.stop_reason == "length"
    (whole,) = engine.generate([full], replace(plain, prompt_logprobs=True))
    assert len(whole.prompt_logprobs) == len(full) - 1 and whole.stop_reason == "context"
    assert others[0].ids == engine.generate([ids[:20]], plain)[0].ids and engine.blocks.used == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_fixed_shapes_company_changes_nothing_to_the_bit(dtype, tokenizer):
    torch.manual_seed(1)
    model = Transformer(ModelConfig(2, 96, 6, 2, 160, 400, 16, 700)).to(dtype).requires_grad_(False)
    engine = Engine(model, tokenizer, max_batch=5, fixed_shapes=True)
    stream = random.Random(0)
    long = [stream.randrange(400) for _ in range(600)]
    lengths = (1, 7, 257, 290, 290, 300, 513, 600, 33, 256, 512, 2)
    prompts = [[*long[: length - 1], stream.randrange(400)] for length in lengths]
    each = [Sampling(1.0, 1.0, max_tokens=stream.randint(1, 40), seed=3) for _ in prompts]
    together = engine.generate(prompts, each)
    alone = []
    for index, (prompt, sampling) in enumerate(zip(prompts, each, strict=True)):
        # the stream of random numbers follows from the index: the others end before they begin
        company = [[1]] * index + [prompt]
        alone.append(engine.generate(company, [Sampling(0.0, max_tokens=1)] * index + [sampling])[-1])
    assert [(a.ids, a.logprobs) for a in together] == [(a.ids, a.logprobs) for a in alone]
    again = engine.generate(prompts[::-1], Sampling(0.0, max_tokens=20))
    for prompt, one in zip(prompts[::-1], again, strict=True):
        assert engine.generate([prompt], Sampling(0.0, max_tokens=20))[0].logprobs == one.logprobs


def test_further_stop_tokens_end_a_request_and_unknown_ones_are_named(engine, prompts):
    plain = engine.generate([prompts[0]], GREEDY)[0]
    at = next(at for at, token in enumerate(plain.ids) if at and token not in plain.ids[:at])
    stopped = engine.generate([prompts[0]], replace(GREEDY, stop_ids=(plain.ids[at],)))[0]
    assert stopped.ids == plain.ids[: at + 1] and stopped.stop_reason == "end"
    assert stopped.text == engine.tokenizer.decode(plain.ids[:at])
    with pytest.raises(HerdError, match=r"prompt 1: stop_ids \[400\]; expected token ids, 0 \.\. 399"):
        engine.generate(prompts[:2], [GREEDY, replace(GREEDY, stop_ids=(400,))])
