"""Whatever a model emits is a message: `parse` never raises, never hangs, and what it returns can be sent on."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.model.call_formats import CALL_FORMATS
from herd.model.dialog import Call, Dialog, Message, encode, from_openai, parse, prompt, python_call, to_openai

PATIENCE = 10_000  # milliseconds: a guard against hanging; the worst of all took 40 on one busy core
ASKED = Dialog((Message("user", "?"),))


def check(ids, tokenizer):
    """What the ids mean can be encoded again, sent as JSON, and comes back from there."""
    message = parse(ids, tokenizer)
    assert message.role == "assistant"
    encode(ASKED.then(message), tokenizer)
    sent = json.dumps(to_openai(Dialog((message,))), ensure_ascii=False, allow_nan=False).encode()
    assert from_openai(json.loads(sent)).messages == (message,)


@settings(max_examples=1_500, deadline=PATIENCE)
@given(st.lists(st.integers(-3, 720) | st.sampled_from([2**40, -(2**40)]), max_size=60))
def test_any_ids_are_a_message(tokenizers, ids):
    for tokenizer in tokenizers.values():
        check(ids, tokenizer)


# fmt: off
PIECES = st.sampled_from([
    "[f(a=", ")]", '{"name": "f", "parameters": ', "<function=f>", "</function>", "<tool_call>", "</tool_call>", "**{",
    'brave_search.call(query="', '{"type": "function"', "\\u", "\\x0", "\\", '"""', "f'{", "\x01", "\x00", "\n",
    "\u2028", "\ud800", "\udc00\ud800", "0x", "1e9", "NaN", "-", "lambda:", "await ", "(" * 60, "[" * 60, "9" * 700,
])
# fmt: on
TEXT = (
    st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)
    | st.text(alphabet="[](){}<>=,:'\"\\/. -\n" + "fa1" + "é\x00")
    | st.text(alphabet=string.printable)
)


@settings(max_examples=1_500, deadline=PATIENCE)
@given(TEXT)
def test_any_text_is_a_message(tokenizers, text):
    for tokenizer in tokenizers.values():
        for tag in ([], [tokenizer.call_id]):
            check([*tag, *tokenizer.encode(text)], tokenizer)


VALID = (
    Message("assistant", "Both.", (Call("f", {"a": [1, {"b": None}], "s": "x\"'\\\n"}), Call("a.g", {"class": True}))),
    Message("assistant", "", (Call("brave_search", {"query": 'the "x"'}),)),
    Message("assistant", "I look.", (Call("f", {}), python_call("df[df.a > 1]\n"))),
    Message("assistant", "Three of 7."),
)
CHANGES = st.tuples(st.integers(0, 200), st.integers(0, 20), PIECES | st.text(max_size=3))


@settings(max_examples=1_500, deadline=PATIENCE)
@given(
    st.sampled_from(VALID),
    st.sampled_from(CALL_FORMATS),
    st.lists(CHANGES, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.integers(0, 720)), max_size=3),
)
def test_what_was_a_call_before_it_was_damaged_is_a_message(tokenizers, message, form, changes, swaps):
    """Characters cut out and put in, in the text; then tokens in the ids."""
    for name, tokenizer in tokenizers.items():
        if form == "tagged-json" and name == "chatml":
            continue
        ids = encode(ASKED.then(message), tokenizer, form).ids[len(prompt(ASKED, tokenizer)) :]
        tag = [tokenizer.call_id] if tokenizer.call_id in ids else []
        text = tokenizer.decode(token for token in ids if token not in tokenizer.special.values())
        for at, length, piece in changes:
            text = text[:at] + piece + text[at + length :]
        damaged = [*tag, *tokenizer.encode(text)]
        for at, length, token in swaps:
            damaged[at : at + length] = [token]
        check(damaged, tokenizer)


HOSTILE = {
    "deep list": "[" * 9_000,
    "deep call": "[f(a=" + "(" * 5_000 + ")" * 5_000 + ")]",
    "many minus": "[f(a=" + "-" * 9_000 + "1)]",
    "deep json": '{"name": "f", "parameters": {"a": ' + "[" * 5_000 + "]" * 5_000 + "}}",
    "long hexadecimal": "[f(a=0x" + "f" * 9_000 + ")]",  # Python reads it, and then refuses to write it
    "a string that ast cannot write": "[f(a=f\"{'\x01'}\")]",
    "long number": '{"name": "f", "parameters": {"a": ' + "1" * 9_000 + "}}",
    "long chain": "[" + "a." * 5_000 + "b(c=1)]",
    "not a number": '{"name": "f", "parameters": {"a": NaN, "b": 1e999}}',
    "too long": '{"name": "f", "parameters": {"a": "' + "x" * 50_000 + '"}}',
    "open tags": "<tool_call>" * 2_000,
    "open functions": "<function=f>" * 1_500,
    "nameless": '{"name": 3, "parameters": {}}',
    "zero byte": "[f(a='\x00')]",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_emissions_are_words(text, tokenizer):
    message = parse(tokenizer.encode(text), tokenizer)
    assert message == Message("assistant", text)


def test_half_a_surrogate_pair_is_replaced(tokenizer):
    """JSON can spell it, UTF-8 cannot: it would break whoever sends it on."""
    for text in ('{"name": "f", "parameters": {"\\ud800": "\\udc00"}}', "[f(**{'\\ud800': '\\udc00'})]"):
        ids = tokenizer.encode(text)
        assert parse(ids, tokenizer).calls == (Call("f", {"\ufffd": "\ufffd"}),)
        check(ids, tokenizer)
