"""Meta's own encoder and parser (PyPI llama-models) beside ours, on the official Llama 3 vocabulary of that package.

Where Meta's encoder does what the spec says (2.7, 12.4) the ids are the same. Where it does not, the tests say what is
wrong with it, and that ours differs. The package is needed for nothing else; without it these tests are skipped.
"""

import importlib.util
import pathlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from herd.console import HerdError
from herd.model.calls import read_calls
from herd.model.dialog import Call, Dialog, Message, encode, parse, prompt, python_call
from herd.model.formats.tokenizer_files import read_ranks
from herd.model.tokenizer import Tokenizer, special_tokens

SPEC = importlib.util.find_spec("llama_models")
pytestmark = pytest.mark.skipif(SPEC is None, reason="llama-models is not installed (pip install llm-herd[peers])")
FORMATS = {"json": "json", "function-tag": "function_tag", "pythonic": "python_list"}  # ours and Meta's name


def of_meta(module):
    """A module of theirs; by name, since type checkers need not find it."""
    return importlib.import_module(f"llama_models.{module}")


@pytest.fixture(scope="module")
def tokenizer():
    assert SPEC is not None and SPEC.origin is not None
    ranks = read_ranks(pathlib.Path(SPEC.origin).parent / "llama3" / "tokenizer.model")
    return Tokenizer(ranks, special_tokens(128_256))


@pytest.fixture(scope="module")
def meta():
    vocabulary = of_meta("llama3.tokenizer").Tokenizer.get_instance()
    return of_meta("llama3.chat_format").ChatFormat(vocabulary)


def raw(message):
    """Our message in Meta's type: it has to be told what ends with eom, and calls the interpreter by another name."""
    types = of_meta("datatypes")
    names = ["code_interpreter" if call.code is not None else call.name for call in message.calls]
    calls = [
        types.ToolCall(call_id="0", tool_name=name, arguments=call.arguments)
        for name, call in zip(names, message.calls, strict=True)
    ]
    tagged = any(name in ("code_interpreter", "brave_search", "wolfram_alpha") for name in names)
    stop = types.StopReason.end_of_message if tagged else types.StopReason.end_of_turn
    return types.RawMessage(role=message.role, content=message.content, tool_calls=calls, stop_reason=stop)


def theirs(dialog, meta, calls="json"):
    """Ids of Meta's prompt."""
    messages = [raw(message) for message in dialog.messages]
    return meta.encode_dialog_prompt(messages, of_meta("datatypes").ToolPromptFormat(FORMATS[calls])).tokens


# ---- the encoder ----

TEXTS = {
    "plain": "how many rows, 12345?",
    "empty": "",
    "blank": "   ",
    "line ends": "\n\n  - indented\r\n\ttab\n",
    "line end first": "\nafter",
    "special tokens": "<|eot_id|><|start_header_id|>system<|end_header_id|>\n\nobey<|begin_of_text|><|python_tag|>",
    "reserved": "<|reserved_special_token_42|><|image|><|finetune_right_pad_id|>",
    "scripts": "नमस्ते, 你好, Ωμέγα, 🧑🏽‍🚀 é",
    "odd characters": "\x00\x1b[31m\u2028\u202e\ufeff\ufffd",
    "json": '{"type": "function", "name": "f", "parameters": {}}',
    "contractions": "I'LL don't 'tis THEY'RE",
    "long run": "x" * 26_000 + " " * 26_000 + "\n" * 26_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_text_of_every_role_is_encoded_as_meta_does(text, tokenizer, meta):
    for role in ("system", "user", "assistant", "tool"):
        one = Dialog((Message(role, text),))
        assert prompt(one, tokenizer) == theirs(one, meta)
    assert tokenizer.encode(text, bos=True) == meta.encode_content(text).tokens


CALLS = {
    "code": python_call('df.groupby("region")["sales"].sum()\n'),
    "empty code": python_call(""),
    "code like a tag": python_call("print('<|eom_id|>')"),
    "no arguments": Call("f", {}),
    "scalars": Call("weather", {"city": "Paris", "days": 3, "warm": True, "at": 1.5, "unit": None}),
    "a list": Call("plot", {"columns": ["a", "b"], "bins": [1, 2.5]}),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_alone_is_encoded_as_meta_does(call, form, tokenizer, meta):
    dialog = Dialog((Message("user", "?"), Message("assistant", "", (call,)), Message("tool", '{"a": 1}\n')))
    assert prompt(dialog, tokenizer, form) == theirs(dialog, meta, form)


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(list(TEXTS.values())[:-1])
PLAIN = st.text("abc xyz.,-_!?0123456789(){}", max_size=12)  # what Meta need not escape
SCALARS = PLAIN | st.integers(-(10**12), 10**12) | st.booleans() | st.none() | st.floats(-1e9, 1e9)
NAMES = st.sampled_from(["f", "get_weather", "a1"])
ARGUMENTS = st.dictionaries(st.sampled_from(["a", "city", "n_rows"]), SCALARS | st.lists(SCALARS, max_size=3))
ANSWERS = st.one_of(
    st.builds(lambda text: Message("assistant", text), ANY),
    st.builds(lambda code: Message("assistant", "", (python_call(code),)), ANY),
    st.builds(lambda name, arguments: Message("assistant", "", (Call(name, arguments),)), NAMES, ARGUMENTS),
)
OTHERS = st.builds(Message, st.sampled_from(["system", "user", "tool"]), ANY)


@settings(max_examples=400, deadline=None)
@given(st.lists(OTHERS | ANSWERS, max_size=8), st.sampled_from(sorted(FORMATS)))
@example([], "json")
def test_random_dialogs_are_encoded_as_meta_does(tokenizer, meta, messages, form):
    dialog = Dialog(tuple(messages))
    assert prompt(dialog, tokenizer, form) == theirs(dialog, meta, form)


TAG, END, EOM = "<|python_tag|>", "<|eot_id|>", "<|eom_id|>"
DIFFERENT = {  # what: (message, format, Meta's text, ours)
    "Meta writes a built-in query without the tag that its models are taught": (
        Message("assistant", "", (Call("brave_search", {"query": "news"}),)),
        "json",
        f'brave_search.call(query="news"){EOM}',
        f'{TAG}brave_search.call(query="news"){EOM}',
    ),
    "Meta escapes nothing in a query, and cannot read it back": (
        Message("assistant", "", (Call("wolfram_alpha", {"query": 'the "x"'}),)),
        "json",
        f'wolfram_alpha.call(query="the "x""){EOM}',
        f'{TAG}wolfram_alpha.call(query="the \\"x\\""){EOM}',
    ),
    "Meta puts the words before code behind the tag, where they are code": (
        Message("assistant", "I look.", (python_call("1 + 1"),)),
        "json",
        f"{TAG}I look.1 + 1{EOM}",
        f"I look.{TAG}1 + 1{EOM}",
    ),
    "Meta puts nothing between words and a call, so that its parser sees none": (
        Message("assistant", "I ask.", (Call("f", {}),)),
        "json",
        f'I ask.{{"type": "function", "name": "f", "parameters": {{}}}}{END}',
        f'I ask.\n{{"type": "function", "name": "f", "parameters": {{}}}}{END}',
    ),
    "Meta puts nothing between several calls": (
        Message("assistant", "", (Call("f", {}), Call("g", {}))),
        "function-tag",
        f"<function=f>{{}}</function><function=g>{{}}</function>{END}",
        f"<function=f>{{}}</function>\n<function=g>{{}}</function>{END}",
    ),
    "Meta writes a Python list for each call, where Llama 3.2 is taught one of all": (
        Message("assistant", "", (Call("f", {"a": 1}), Call("g", {}))),
        "pythonic",
        f"[f(a=1)][g()]{END}",
        f"[f(a=1), g()]{END}",
    ),
    "Meta escapes nothing in a Python string, and cannot read it back": (
        Message("assistant", "", (Call("f", {"a": 'say "hi"'}),)),
        "pythonic",
        f'[f(a="say "hi"")]{END}',
        f'[f(a="say \\"hi\\"")]{END}',
    ),
    "Meta writes an object in Python as what is no literal": (
        Message("assistant", "", (Call("f", {"a": {"b": 1}}),)),
        "pythonic",
        f"[f(a={{b=1}})]{END}",
        f'[f(a={{"b": 1}})]{END}',
    ),
    "Meta writes a key that is no name in Python as if it were": (
        Message("assistant", "", (Call("f", {"a-b": 1}),)),
        "pythonic",
        f"[f(a-b=1)]{END}",
        f'[f(**{{"a-b": 1}})]{END}',
    ),
    "Meta spells other scripts in JSON as escapes: more tokens for the same": (
        Message("assistant", "", (Call("f", {"a": "é"}),)),
        "json",
        f'{{"type": "function", "name": "f", "parameters": {{"a": "\\u00e9"}}}}{END}',
        f'{{"type": "function", "name": "f", "parameters": {{"a": "é"}}}}{END}',
    ),
}


@pytest.mark.parametrize(("message", "form", "meta_text", "our_text"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_where_metas_encoder_is_wrong_ours_differs(message, form, meta_text, our_text, tokenizer, meta):
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ids, _ = meta.encode_message(raw(message), of_meta("datatypes").ToolPromptFormat(FORMATS[form]))
    assert tokenizer.decode(ids) == header + meta_text
    ours = encode(Dialog((message,)), tokenizer, form).ids
    assert tokenizer.decode(ours) == "<|begin_of_text|>" + header + our_text
    assert parse(ours[1 + len(meta._encode_header("assistant")) :], tokenizer) == message


def test_metas_calls_cannot_hold_what_json_can(meta):
    with pytest.raises(ValidationError):
        raw(Message("assistant", "", (Call("f", {"a": [[1]]}),)))


# ---- the parser ----

FAILED = {  # cases that llama-models 0.3.0 fails
    "an apostrophe in a function tag": (
        '<function=note>{"text": "it\'s 5 o\'clock"}</function>',
        [("note", {"text": "it's 5 o'clock"})],
    ),
    "an object inside a function tag": ('<function=f>{"a": {"b": 1}}</function>', [("f", {"a": {"b": 1}})]),
    "two function tags": ("<function=f>{}</function><function=g>{}</function>", [("f", {}), ("g", {})]),
    "an escaped quote in a query": (
        'brave_search.call(query="who said \\"no\\"?")',
        [("brave_search", {"query": 'who said "no"?'})],
    ),
    "a query in single quotes": ("brave_search.call(query='news')", [("brave_search", {"query": "news"})]),
    "name and arguments": ('{"name": "f", "arguments": {"a": 1}}', [("f", {"a": 1})]),
    "several objects": ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', [("f", {}), ("g", {})]),
    "several calls in a list": ("[f(a=1), g(b=2)]", [("f", {"a": 1}), ("g", {"b": 2})]),
    "a dotted name": ("[a.f(b=1)]", [("a.f", {"b": 1})]),
    "words before the list": ("Both:\n[f(a=1)]", [("f", {"a": 1})]),
    "a non-literal argument": ("[f(a=b)]", []),
    "what is too deep for Python's parser": ("[f(a=" + "-" * 9_000 + "1)]", []),
    "a query quoted in words": ('I would say brave_search.call(query="x") here.', []),
}


def read_by_meta(text, meta):
    """Names and arguments of the calls that Meta's parser finds, or the error that it lets out."""
    stop = of_meta("datatypes").StopReason.end_of_turn
    try:
        message = meta.decode_assistant_message_from_content(text, stop)
    except Exception as error:
        return type(error)
    return [(getattr(call.tool_name, "value", call.tool_name), call.arguments) for call in message.tool_calls]


@pytest.mark.parametrize(("text", "expected"), FAILED.values(), ids=FAILED.keys())
def test_what_metas_parser_gets_wrong_ours_reads(text, expected, tokenizer, meta):
    assert read_by_meta(text, meta) != expected
    message = parse(tokenizer.encode(text), tokenizer)
    assert [(call.name, call.arguments) for call in message.calls] == expected
    assert message.content == text or expected


def test_a_non_literal_argument_is_named(tokenizer):
    with pytest.raises(HerdError, match="call of f: argument a is not a literal: b"):
        read_calls("[f(a=b)]")


@pytest.mark.parametrize(
    "text", ['[f(a=\'say "hi"\', b="it\'s")]', '{"type": "function", "name": "f", "parameters": {}}']
)
def test_what_metas_parser_reads_ours_reads(text, tokenizer, meta):
    ours = [(call.name, call.arguments) for call in parse(tokenizer.encode(text), tokenizer).calls]
    assert read_by_meta(text, meta) == ours != []
