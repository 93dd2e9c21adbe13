"""Every call format: as the spec writes it, and back from it whatever the arguments are."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from herd.console import HerdError
from herd.model.call_formats import CALL_FORMATS
from herd.model.dialog import Call, Dialog, Message, encode, parse, prompt, python_call

ASKED = Dialog((Message("user", "?"),))


def emitted(message, tokenizer, form):
    """What a model taught in this format emits for a message."""
    return encode(ASKED.then(message), tokenizer, form).ids[len(prompt(ASKED, tokenizer)) :]


F, G = Call("f", {"a": 1, "s": 'it\'s "x"\n'}), Call("ns.g", {"b": [None, True, {"class": 0.5}], "c-d": "é"})
JSON_F = '{"type": "function", "name": "f", "parameters": {"a": 1, "s": "it\'s \\"x\\"\\n"}}'
JSON_G = '{"type": "function", "name": "ns.g", "parameters": {"b": [null, true, {"class": 0.5}], "c-d": "é"}}'
WRITTEN = {
    "json": f"Both.\n{JSON_F}\n{JSON_G}<|eot_id|>",
    "tagged-json": f"Both.<|python_tag|>{JSON_F}\n{JSON_G}<|eom_id|>",
    "function-tag": (
        'Both.\n<function=f>{"a": 1, "s": "it\'s \\"x\\"\\n"}</function>\n'
        '<function=ns.g>{"b": [null, true, {"class": 0.5}], "c-d": "é"}</function><|eot_id|>'
    ),
    "pythonic": (
        'Both.\n[f(a=1, s="it\'s \\"x\\"\\n"), ns.g(b=[None, True, {"class": 0.5}], **{"c-d": "é"})]<|eot_id|>'
    ),
    "tool-call": (
        'Both.\n<tool_call>{"name": "f", "arguments": {"a": 1, "s": "it\'s \\"x\\"\\n"}}</tool_call>\n'
        '<tool_call>{"name": "ns.g", "arguments": {"b": [null, true, {"class": 0.5}], "c-d": "é"}}</tool_call>'
        "<|eot_id|>"
    ),
}


@pytest.mark.parametrize("form", CALL_FORMATS)
def test_how_each_format_is_written(form, tokenizers):
    ids = emitted(Message("assistant", "Both.", (F, G)), tokenizers["llama3"], form)
    assert tokenizers["llama3"].decode(ids) == WRITTEN[form]


@pytest.mark.parametrize("form", CALL_FORMATS)
def test_code_and_built_in_queries_stand_behind_the_tag_in_every_format(form, tokenizers):
    """Spec 12.4: python tag and eom; other calls of the message stay text."""
    tokenizer = tokenizers["llama3"]
    for call, text in (
        (Call("brave_search", {"query": 'who said "no"?\n\\'}), 'brave_search.call(query="who said \\"no\\"?\\n\\\\")'),
        (Call("wolfram_alpha", {"query": "2 + 2"}), 'wolfram_alpha.call(query="2 + 2")'),
        (python_call("x = 1\n"), "x = 1\n"),
    ):
        ids = emitted(Message("assistant", "", (call,)), tokenizer, form)
        assert ids == [tokenizer.call_id, *tokenizer.encode(text), tokenizer.special["<|eom_id|>"]]
        ids = emitted(Message("assistant", "", (Call("f", {}), call)), tokenizer, form)
        assert tokenizer.decode(ids).endswith(f"<|python_tag|>{text}<|eom_id|>") and ids[0] != tokenizer.call_id
    ids = emitted(Message("assistant", "", (Call("brave_search", {"query": "q", "count": 3}),)), tokenizer, form)
    assert tokenizer.call_id not in ids or form == "tagged-json"  # no built-in takes more than a query


def test_the_usual_format_of_each_vocabulary(tokenizers):
    for name, form in (("llama3", "json"), ("chatml", "tool-call")):
        message = Message("assistant", "", (F, G))
        assert emitted(message, tokenizers[name], None) == emitted(message, tokenizers[name], form)


def test_tagged_json_needs_llama3s_tag(tokenizers):
    with pytest.raises(HerdError, match="call format 'tagged-json': the chat format chatml has no tag for it"):
        encode(ASKED, tokenizers["chatml"], "tagged-json")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ['"', "'", "\\", "\\n", "\n", "\r\n", "\x00", '"""', "</function>", "</tool_call>", "<|eot_id|>", "[f(a=1)]", "{}"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["a", "code", "query", "class", "None", "_", "__debug__", "é", "ﬁ", "a-b", "", "1"]) | TEXT
NAMES = st.sampled_from(["f", "ns.g", "get-weather", "python", "class", "é", "with space", "x" * 64, "brave_search"])
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(KEYS, VALUES, max_size=4)), min_size=1, max_size=3)
WORDS = st.sampled_from(["", "Both.", "First this:\n\n- `f(a=b)`", "{x} and [y]", "[1] says"])


@settings(max_examples=400, deadline=None)
@given(WORDS, CALLS, st.sampled_from(CALL_FORMATS), st.sampled_from(["llama3", "chatml"]))
@example("", [Call("f", {"a": "\u2028\x85\x0c"})], "pythonic", "llama3")
@example("", [Call("f", {"a": {"</function>": "</function>"}})], "function-tag", "llama3")
@example("", [Call("python", {"code": "a"}), Call("python", {"code": "b"})], "pythonic", "chatml")
def test_every_call_comes_back_from_every_format(tokenizers, words, calls, form, name):
    tokenizer = tokenizers[name]
    if form == "tagged-json" and name == "chatml":
        return
    message = Message("assistant", words, tuple(calls))
    last = calls[-1]
    if last.code is not None and len(last.arguments) == 1:  # code that reads as a call is one: another test
        message = Message("assistant", words, (*calls[:-1], python_call("x = 1")))
    assert parse(emitted(message, tokenizer, form), tokenizer) == message


def test_code_that_reads_as_a_call_is_one(tokenizers):
    """Behind the tag the reference parser looks for calls first too (spec 12.4)."""
    code = '{"name": "f", "parameters": {}}'
    ids = emitted(Message("assistant", "", (python_call(code),)), tokenizers["llama3"], None)
    assert parse(ids, tokenizers["llama3"]).calls == (Call("f", {}),)
