"""The template that an export carries gives transformers the tokens that our encoder writes."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from herd.model.dialog import Call, Dialog, Message, encode, from_openai, prompt, python_call, to_openai


@pytest.fixture(scope="module")
def theirs(tokenizers, tmp_path_factory):
    found = {}
    for name, tokenizer in tokenizers.items():
        tokenizer.save(folder := tmp_path_factory.mktemp(name))
        found[name] = AutoTokenizer.from_pretrained(folder)
    return found


def rows_of(dialog):
    """OpenAI's messages with arguments as objects, as transformers wants them."""
    rows = to_openai(dialog)
    for row in rows:
        for call in row.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return rows


def rendered(rows, tokenizer, **options):
    return tokenizer.apply_chat_template(rows, return_dict=False, **options)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda t: not re.match(r"\s*[\r\n]", t))
TALK = st.lists(st.builds(Message, st.sampled_from(["system", "user", "tool", "assistant"]), WORDS), max_size=5)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | WORDS | st.lists(WORDS, max_size=2)
CALLS = st.one_of(
    st.builds(python_call, WORDS),
    st.builds(lambda name, query: Call(name, {"query": query}), st.sampled_from(["brave_search", "f"]), WORDS),
    st.builds(Call, st.sampled_from(["f", "python", "é"]), st.dictionaries(WORDS, VALUES, max_size=3)),
)
ANSWERS = st.builds(
    lambda words, calls: Message("assistant", words, tuple(calls)), WORDS, st.lists(CALLS, min_size=1, max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(TALK, ANSWERS)
@example([Message("user", "")], Message("assistant", "Both.", (Call("f", {"é": "\u2028<&'"}), python_call("1\n"))))
def test_llama3_messages_and_calls(tokenizers, theirs, before, answer):
    dialog = Dialog((*before, answer, Message("tool", "1")))
    ours, tokenizer = tokenizers["llama3"], theirs["llama3"]
    assert rendered(rows_of(dialog), tokenizer) == encode(dialog, ours).ids
    assert rendered(rows_of(dialog), tokenizer, add_generation_prompt=True) == prompt(dialog, ours)


@settings(max_examples=200, deadline=None)
@given(TALK.filter(bool))
def test_chatml_messages(tokenizers, theirs, messages):
    """Blanks that an assistant's answer begins with are its own here; in a template they may join the header's."""
    dialog = Dialog(tuple(replace(one, content=one.content.lstrip()) for one in messages))
    assert rendered(to_openai(dialog), theirs["chatml"]) == encode(dialog, tokenizers["chatml"]).ids


def test_arguments_in_a_string_are_written_as_they_are(tokenizers, theirs):
    rows = to_openai(Dialog((Message("assistant", "", (Call("f", {"a": "é"}), Call("g", {}))),)))
    rows[0]["content"] = None
    assert rendered(rows, theirs["llama3"]) == encode(from_openai(rows), tokenizers["llama3"]).ids


def test_code_in_a_string_is_refused(theirs):
    rows = to_openai(Dialog((Message("assistant", "", (python_call("1"),)),)))
    with pytest.raises(TemplateError, match="the arguments of python have to be an object"):
        rendered(rows, theirs["llama3"])
