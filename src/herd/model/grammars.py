"""Grammars as text, for `Sampling.grammar`: the JSON of a schema, a regular expression, the call of a function.

The text is llguidance's variant of Lark. Every function checks what it gives by llguidance itself, without a model, and
raises HerdError with the cause in one line: a keyword of JSON Schema that it does not know is an error, never ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from herd.console import HerdError
from herd.model.call_formats import CallFormat
from herd.model.calls import FUNCTION_NAME

Schema = Mapping[str, Any] | bool
# As json.dumps writes it, and as calls are written for training (call_formats.py); blanks at will would let an
# untrained model write nothing but blanks.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_WHERE = re.compile(r"^(at \d+\(\d+\): |failed to compile JSON schema: |invalid regex (?=\"))+")


def json_schema(schema: Schema) -> str:
    """JSON that is valid under a schema; any JSON value under True or {}.

    Keys come in the schema's order, each once. llguidance's own settings may stand in the schema as `x-guidance`.
    """
    return f"start: {json_value(schema)}\n"


def regex(pattern: str) -> str:
    r"""Text that a regular expression matches from end to end, as `re.fullmatch` does.

    Look-around, back-references and anchors other than at the ends are refused: no automaton has them. Classes are
    Unicode's, of a newer edition than Python's: `\d` takes digits that `re` may not know yet; `[0-9]` takes ours.
    """
    text = re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL)
    grammar = f"start: PATTERN\nPATTERN: /{text}/\n" if pattern else 'start: ""\n'
    return checked(grammar, f"regex {_short(pattern)}")


def call(functions: Mapping[str, Schema | None], form: CallFormat = "json", call_id: int | None = None) -> str:
    """One call of one of the functions (name: schema of its arguments, None: any object), as `form` writes it.

    In JSON `"type": "function"` may be missing. `call_id` is the tag's for tagged JSON. Raises HerdError for a name
    that the form cannot say, and for pythonic calls: their arguments are no JSON.
    """
    return f"start: call\n{call_rules(functions, form, call_id)}"


def call_rules(functions: Mapping[str, Schema | None], form: CallFormat = "json", call_id: int | None = None) -> str:
    """The rules of `call`, for a grammar that allows something else besides: `call` and what it needs."""
    if not functions:
        raise HerdError("call: no function is given")
    calls, rules = [], []
    for number, (name, schema) in enumerate(functions.items()):
        tag, head, end = _around(name, form, call_id)
        calls.append(f"{tag}CALL_{number} arguments_{number} {_literal(end)}")
        rules += [f"CALL_{number}: {head}\n", f"arguments_{number}: {_arguments(name, schema)}\n"]
    return f"call: {' | '.join(calls)}\n{''.join(rules)}"


def json_value(schema: Schema) -> str:
    """The JSON of a schema as an expression that a rule may hold."""
    return _json_value(schema, "JSON schema")


def _json_value(schema: Schema, what: str) -> str:
    if not isinstance(schema, Mapping | bool):
        raise HerdError(f"{what}: expected an object, found {type(schema).__name__}")
    whole = {} if schema is True else schema
    try:
        text = json.dumps({"x-guidance": SPACING, **whole} if isinstance(whole, Mapping) else whole, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise HerdError(f"{what}: it is not JSON itself ({error})") from None
    checked(f"start: %json {text}", what)
    return f"%json {text}"


def _arguments(name: str, schema: Schema | None) -> str:
    whole = {"type": "object"} | dict(schema or {}) if not isinstance(schema, bool) else {"type": "object"}
    if whole["type"] != "object":
        raise HerdError(f"call of {name}: its arguments are an object, the schema says {whole['type']!r}")
    return _json_value(whole, f"call of {name}")


def _around(name: str, form: CallFormat, call_id: int | None) -> tuple[str, str, str]:
    """What stands around a call's arguments (call_formats.py writes the same): tag, terminal before them, text behind.

    Before them is one terminal: of several, the first could end where words that may come instead go on, and the
    lexer, which takes the longest, would see words.
    """
    if form == "pythonic":
        raise HerdError(
            "call: the pythonic form writes arguments in Python, for which there is no grammar; choose json"
        )
    if form == "function-tag" and not FUNCTION_NAME.fullmatch(name):
        raise HerdError(f"call of {name!r}: a function tag cannot say that name; choose json")
    if form == "tagged-json" and call_id is None:
        raise HerdError("call: tagged JSON needs a vocabulary with a call tag")
    said = json.dumps(name, ensure_ascii=False)
    if form == "function-tag":
        return "", _literal(f"<function={name}>"), "</function>"
    if form == "tool-call":
        return "", _literal('<tool_call>{"name": ' + said + ', "arguments": '), "}</tool_call>"
    head = " ".join(
        [_literal("{"), _literal('"type": "function", ') + "?", _literal(f'"name": {said}, "parameters": ')]
    )
    return f"<[{call_id}]> " if form == "tagged-json" else "", head, "}"


def _literal(text: str) -> str:
    """A Lark string; its escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def checked(grammar: str, what: str = "grammar") -> str:
    """The grammar itself. Raises HerdError where it is wrong."""
    problem = LLMatcher.validate_grammar(grammar)
    if problem:
        raise HerdError(f"{what}: {_cause(problem)}")
    return grammar


def _cause(problem: str) -> str:
    """The line of llguidance's message that says what is wrong; around it stand the grammar and markers below it."""
    lines = problem.splitlines()
    last = next((line for line in lines if line.startswith("error: ")), None)
    return last.removeprefix("error: ") if last else _WHERE.sub("", lines[0])


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + " ...")
