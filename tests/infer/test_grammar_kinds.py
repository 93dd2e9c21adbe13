"""A thousand completions of an untrained model, each under a grammar, each read and judged by others' code."""

import ast
import json
import re
from collections import Counter
from typing import Any, cast

import jsonschema
import pytest

from herd.console import HerdError
from herd.infer.grammar import Grammars
from herd.model.call_formats import CALL_FORMATS, write_calls
from herd.model.calls import Call
from herd.model.dialog import parse
from herd.model.generation import Sampling
from herd.model.grammars import call, json_schema, regex
from herd.tools.columns import call_grammar

EACH = 100
NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 6},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                "point": {
                    "type": "array",
                    "prefixItems": [{"$ref": "#/$defs/degree"}] * 2,
                    "items": False,
                    "minItems": 2,
                },
            },
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"enum": ["a", "größe", 'with "quotes"\n', 7, None]}, "maxItems": 3},
    },
    "required": ["name", "address"],
    "additionalProperties": False,
    "$defs": {"degree": {"type": "integer", "minimum": -180, "maximum": 180}},
}
NUMBERS = {
    "type": "object",
    "properties": {
        "share": {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
        "count": {"type": "integer", "exclusiveMinimum": 9, "maximum": 1234},
        "even": {"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 99},
        "yes": {"type": "boolean"},
        "no": {"type": "null"},
    },
    "required": ["share", "count", "even", "yes", "no"],
    "additionalProperties": False,
}
CHOICES = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "circle"}, "radius": {"type": "integer", "minimum": 1, "maximum": 50}},
                "required": ["kind", "radius"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {
                    "kind": {"const": "word"},
                    "text": {"type": "string", "pattern": "^[a-zäöü]{2,5}(-x)?$"},
                },
                "required": ["kind", "text"],
                "additionalProperties": False,
            },
        ]
    },
}
FORMATS = {
    "type": "object",
    "properties": {
        "day": {"type": "string", "format": "date"},
        "host": {"type": "string", "format": "ipv4"},
        "id": {"type": "string", "format": "uuid"},
    },
    "required": ["day", "host", "id"],
    "additionalProperties": False,
}
TREE = {  # a schema that contains itself
    "type": "object",
    "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 9}, "left": {"$ref": "#"}},
    "required": ["value"],
    "additionalProperties": False,
}
FUNCTIONS = {"weather.today": FORMATS, "draw": NUMBERS, "find": NESTED}
PATTERNS = (
    r"^[12][0-9]{3}-[01][0-9]-[0-3][0-9](T[0-9]{2}:[0-9]{2}(:[0-9]{2})?)?$",
    r"https?://[a-z]{1,8}(/[a-z0-9#%]{1,4}){0,3}",
)
SUMS = r"""start: sum
sum: product (("+" | "-") product){0,3}
product: atom ("*" atom){0,2}
atom: NUMBER | "-" NUMBER | "(" NUMBER "+" NUMBER ")"
NUMBER: /[1-9][0-9]{0,3}/
"""
LABELS = ["price", "sold units", 'a "b"', "x\\y", "new\nline", "größe 🙂", "[a-z]+(.*)|$", "'", "#1", "<[3]>"]


def valid(schema):
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())

    def judge(text, ids, tokenizer):
        checker.validate(json.loads(text))
        return text

    return judge


def matching(pattern):
    def judge(text, ids, tokenizer):
        assert re.fullmatch(pattern, text), text
        return text

    return judge


def arithmetic(text, ids, tokenizer):
    assert isinstance(eval(compile(ast.parse(text, mode="eval"), "sum", "eval"), {"__builtins__": {}}), int)
    return text


def called(text, ids, tokenizer):
    message = parse(ids, tokenizer)
    assert message.content == "" and len(message.calls) == 1, text
    valid(FUNCTIONS[message.calls[0].name])(json.dumps(dict(message.calls[0].arguments)), ids, tokenizer)
    return message.calls[0].name


def labelled(text, ids, tokenizer):
    """A call whose only strings are columns of the table."""
    assert ids[0] == tokenizer.call_id
    code = tokenizer.decode(ids[1:-1])
    found = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert found and {*found} <= {*LABELS}, code
    return code


def column_grammar(call_id):
    """The table's grammar with a beginning of its own: random free text would hardly ever come to a bracket."""
    rules = call_grammar(LABELS, call_id).splitlines()[1:]
    start = f'start: <[{call_id}]> "df[" label::0 "]" (".groupby(" label::0 ")[" label::0 "]")? ("." METHOD "()")?'
    return "\n".join([start, "METHOD: /(mean|max|count)/", *rules])


@pytest.fixture(scope="module")
def kinds(tokenizer):
    return {
        "nested": (json_schema(NESTED), valid(NESTED)),
        "numbers": (json_schema(NUMBERS), valid(NUMBERS)),
        "choices": (json_schema(CHOICES), valid(CHOICES)),
        "formats": (json_schema(FORMATS), valid(FORMATS)),
        "tree": (json_schema(TREE), valid(TREE)),
        "times": (regex(PATTERNS[0]), matching(PATTERNS[0])),
        "addresses": (regex(PATTERNS[1]), matching(PATTERNS[1])),
        "sums": (SUMS, arithmetic),
        "calls": (call(FUNCTIONS, "json"), called),
        "columns": (column_grammar(tokenizer.call_id), labelled),
    }


@pytest.mark.usefixtures("one_thread")
def test_a_thousand_completions_parse_and_are_valid(wild, tokenizer, kinds):
    names = [name for name in kinds for _ in range(EACH)]
    samplings = [Sampling(1.0, 1.0, max_tokens=4000, seed=1, grammar=kinds[name][0]) for name in names]
    completions = wild.generate([[tokenizer.bos_id]] * len(names), samplings)
    assert Counter(completion.stop_reason for completion in completions) == {"end": 1000}
    said: dict[str, list[Any]] = {}
    for name, completion in zip(names, completions, strict=True):
        said.setdefault(name, []).append(kinds[name][1](completion.text, completion.ids, tokenizer))
    assert all(len(set(found)) > EACH / 2 for name, found in said.items() if name not in ("calls", "columns"))
    assert set(said["calls"]) == set(FUNCTIONS)
    assert len({label for code in said["columns"] for label in LABELS if json.dumps(label) in code}) > 3


WRONG = {
    "keyword": (lambda: json_schema({"not": {"type": "string"}}), r'JSON schema: Unimplemented keys: \["not"\]$'),
    "type": (lambda: json_schema({"type": "text"}), "JSON schema: Invalid type: text$"),
    "reference": (lambda: json_schema({"$ref": "#/none"}), "JSON schema: Pointer '/none' does not exist$"),
    "impossible": (lambda: json_schema({"enum": []}), "JSON schema: Unsatisfiable schema"),
    "no-json": (lambda: json_schema({"enum": [{1}]}), "JSON schema: it is not JSON itself"),
    "no-schema": (lambda: json_schema(cast(Any, "string")), "JSON schema: expected an object, found str"),
    "its-pattern": (lambda: json_schema({"type": "string", "pattern": "(?=a)"}), "JSON schema: look-around.*not supp"),
    "look-around": (lambda: regex("(?!a)b"), r"regex '\(\?!a\)b': look-around"),
    "back-reference": (lambda: regex(r"(a)\1"), "regex .*: backreferences are not supported$"),
    "anchor-inside": (lambda: regex("a^b"), "regex .*lookarounds not supported"),
    "open-group": (lambda: regex("(a"), r"regex '\(a': unclosed group$"),
    "no-function": (lambda: call({}), "call: no function is given"),
    "no-object": (lambda: call({"f": {"type": "string"}}), "call of f: its arguments are an object, .* says 'string'"),
    "its-arguments": (lambda: call({"f": {"properties": {"a": {"type": "?"}}}}), "call of f: Invalid type"),
    "pythonic": (lambda: call({"f": None}, "pythonic"), "the pythonic form .* no grammar"),
    "tag": (lambda: call({"a>b": None}, "function-tag"), "call of 'a>b': a function tag cannot say"),
    "no-tag": (lambda: call({"f": None}, "tagged-json"), "needs a vocabulary with a call tag"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_grammar_can_say_is_named_in_a_line(name):
    make, expected = WRONG[name]
    with pytest.raises(HerdError, match=expected) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [form for form in CALL_FORMATS if form != "pythonic"])
def test_a_call_is_written_as_calls_are_for_training(form, tokenizer):
    """The grammar takes what `encode` writes, and what it lets an untrained model write is read as that call."""
    given = Call("find", {"name": 'a "b"\n', "address": {"street": "ö", "zip": "01234"}})
    text = write_calls([given], form)
    ids = [*([tokenizer.call_id] if form == "tagged-json" else []), *tokenizer.encode(text)]
    progress = Grammars(tokenizer).begin(call(FUNCTIONS, form, tokenizer.call_id))
    for token in ids:
        progress.take(token)
    assert progress.allowed()[tokenizer.eos_id]
    assert parse(ids, tokenizer).calls == (given,)


def test_a_pattern_may_hold_what_ends_a_regular_expression_in_lark(tokenizer):
    for pattern, text in (
        (r"a/b\/c", "a/b/c"),
        ("#[/#]\n", "#/\n"),
        ("", ""),
        (r"\\/", "\\/"),
        ("%json {2}", "%json  "),
    ):
        assert re.fullmatch(pattern, text)
        progress = Grammars(tokenizer).begin(regex(pattern))
        for token in tokenizer.encode(text):
            progress.take(token)
        assert progress.allowed()[tokenizer.eos_id]
