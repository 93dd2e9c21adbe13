"""Whatever the model would like to say, a completion with a grammar follows it; json and re are the judges."""

import json
import re

import pytest
import torch

from herd.console import HerdError
from herd.infer.grammar import Grammars
from herd.model.generation import Sampling

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
        "kind": {"enum": ["cat", "dog", 'größe "x"\n']},
    },
    "required": ["name", "ages", "kind"],
    "additionalProperties": False,
}
JSON = f"start: %json {json.dumps(SCHEMA | {'x-guidance': {'whitespace_flexible': False}})}"
DATE = 'start: DATE (", " DATE){0,2}\nDATE: /[12][0-9]{3}-[01][0-9]-[0-3][0-9]/'


pytestmark = pytest.mark.usefixtures("one_thread")


def sample(engine, tokenizer, grammar, count, **settings):
    prompts = [tokenizer.encode("ab"[: 1 + index % 2], bos=True) for index in range(count)]
    return engine.generate(prompts, Sampling(1.0, 1.0, max_tokens=200, grammar=grammar, **settings))


def test_200_samples_are_json_of_the_schema(wild, tokenizer):
    completions = sample(wild, tokenizer, JSON, 200)
    for completion in completions:
        assert completion.stop_reason == "end" and completion.ids[-1] in tokenizer.stop_ids
        value = json.loads(completion.text)
        assert set(value) == {"name", "ages", "kind"} and len(value["name"]) <= 8
        assert all(isinstance(age, int) and 0 <= age <= 99 for age in value["ages"])
        assert value["kind"] in SCHEMA["properties"]["kind"]["enum"]
    assert len({completion.text for completion in completions}) > 150


@pytest.mark.parametrize("settings", [{}, {"seed": 5}, {"stop": ("never",)}], ids=["plain", "seed", "stop"])
def test_samples_match_a_regular_expression(settings, wild, tokenizer):
    form = r"[12]\d{3}-[01]\d-[0-3]\d"
    for completion in sample(wild, tokenizer, DATE, 30, **settings):
        assert re.fullmatch(f"{form}(, {form}){{0,2}}", completion.text, re.ASCII)


def test_the_logprobs_stay_the_models_own(wild, tokenizer):
    completion = sample(wild, tokenizer, DATE, 1)[0]
    ids = [*tokenizer.encode("a", bos=True), *completion.ids]
    with torch.no_grad():
        free = wild.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[-len(completion.ids) :]
    expected = free.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_rows_with_and_without_a_grammar_share_a_batch(wild, tokenizer):
    prompts = [tokenizer.encode("x", bos=True)] * 4
    free, bound = Sampling(1.0, 1.0, max_tokens=20), Sampling(1.0, 1.0, max_tokens=20, grammar='start: "yes" | "no"')
    mixed = wild.generate(prompts, [free, bound, free, bound])
    assert {completion.text for completion in mixed[1::2]} <= {"yes", "no"}
    alone = wild.generate(prompts, free)
    assert [mixed[0].ids, mixed[2].ids] == [alone[0].ids, alone[2].ids]


def test_a_special_token_comes_by_its_id_only(wild, tokenizer):
    call = tokenizer.special["<|python_tag|>"]
    spelled = sample(wild, tokenizer, 'start: "<|python_tag|>" /[0-9]/', 20)
    assert all(re.fullmatch(r"<\|python_tag\|>\d", c.text) and call not in c.ids for c in spelled)
    by_id = sample(wild, tokenizer, f"start: <[{call}]> /[0-9]/", 20)
    assert all(c.ids[0] == call and re.fullmatch(r"\d", tokenizer.decode(c.ids[1:-1])) for c in by_id)


def test_greedy_follows_the_grammar_and_any_stop_token_may_end_it(wild, tokenizer):
    prompt = tokenizer.encode("q", bos=True)
    completion = wild.generate([prompt], Sampling(0.0, grammar="start: /[a-f]{5}/"))[0]
    assert re.fullmatch("[a-f]{5}", completion.text) and completion.stop_reason == "end"
    progress = Grammars(tokenizer).begin('start: "ok"')
    for token in tokenizer.encode("ok"):
        assert not progress.allowed()[sorted(tokenizer.stop_ids)].any()
        progress.take(token)
    assert set(progress.allowed().nonzero()[:, 0].tolist()) == tokenizer.stop_ids


def test_a_completion_cut_short_says_so(wild, tokenizer):
    prompt = tokenizer.encode("q", bos=True)
    completion = wild.generate([prompt], Sampling(0.0, max_tokens=3, grammar="start: /[a-f]{50,60}/"))[0]
    assert completion.stop_reason == "length" and len(completion.ids) == 3


def test_a_wrong_grammar_is_named_with_its_prompt(wild, tokenizer):
    prompt = tokenizer.encode("q", bos=True)
    good, bad = Sampling(grammar="start: /a/"), Sampling(grammar="start: missing_rule")
    with pytest.raises(HerdError, match=r"prompt 1: grammar: .*missing_rule"):
        wild.generate([prompt, prompt], [good, bad])
    with pytest.raises(HerdError, match=r"prompt 0: grammar: "):
        wild.stream(prompt, Sampling(grammar="start: ("))


def test_a_token_outside_the_grammar_is_refused(tokenizer):
    progress = Grammars(tokenizer).begin('start: "ok"')
    with pytest.raises(HerdError, match="grammar: "):
        progress.take(tokenizer.encode("no")[0])
