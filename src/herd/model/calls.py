"""Function calls written as text (spec 12.4): what models emit in place of words, read into values.

Read are `<tool_call>{json}</tool_call>` (ChatML models), `<function=NAME>{json}</function>`, JSON objects with a name
and parameters or arguments, Llama 3's Python lists `[f(a=1), g(b="x")]` and its built-in queries. Nothing is executed:
JSON and Python literals only.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from herd.console import HerdError

PYTHON = "python"
BUILT_IN = ("brave_search", "wolfram_alpha")  # Llama 3's own; their argument is `query`
LONGEST = 20_000  # characters; a longer text is words: no such call is that long, and parsing is not free
DEEPEST = 50  # lists and objects inside each other

_BUILT_IN = re.compile(rf"({'|'.join(BUILT_IN)})\.call\((\w+)=(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')\)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([A-Za-z_][\w.-]*)>")
_LIST = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")
_BETWEEN = re.compile(r"[\s;,]*")
_OBJECT = re.compile(r'^\{\s*"type"\s*:\s*"function"', re.MULTILINE)  # with words before it, only this marks a call


@dataclass(frozen=True)
class Call:
    """A function call. The code interpreter is the function `python` with the argument `code`."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def code(self) -> str | None:
        """The Python code, None for other functions."""
        code = self.arguments.get("code") if self.name == PYTHON else None
        return code if isinstance(code, str) else None


def python_call(code: str) -> Call:
    """A call of the code interpreter."""
    return Call(PYTHON, {"code": code})


def read_calls(text: str) -> tuple[str, tuple[Call, ...]]:
    """The words of a message, and the calls that follow them; all of it is words where there are none.

    Raises HerdError for a call that cannot be read, naming what is wrong with it.
    """
    stripped = text.strip()
    if len(stripped) > LONGEST:
        return stripped, ()
    for mark, read in (("<tool_call>", _tagged), ("<function=", _functions)):
        if (start := _line_start(stripped, mark)) is not None and (calls := read(stripped[start:])):
            return stripped[:start].strip(), calls
    if stripped.startswith(("{", "[{")):
        return ("", calls) if (calls := _objects(stripped)) else (stripped, ())
    if found := _OBJECT.search(stripped):
        calls = _objects(stripped[found.start() :])
        return (stripped[: found.start()].strip(), calls) if calls else (stripped, ())
    if _LIST.match(stripped) and stripped.endswith("]"):
        return ("", calls) if (calls := _python_list(stripped)) else (stripped, ())
    calls = _built_in(stripped)
    return ("", calls) if calls else (stripped, ())


def read_tagged(text: str) -> tuple[Call, ...]:
    """What stands behind Llama 3's python tag: a built-in query, calls in JSON or tags, and all else is Python."""
    stripped = text.strip()
    try:
        short = len(stripped) <= LONGEST
        calls = (_built_in(stripped) or _functions(stripped) or _objects(stripped)) if short else ()
    except HerdError:
        calls = ()
    return calls or (python_call(text),)


def _line_start(text: str, mark: str) -> int | None:
    """Where the first line that begins with a mark starts."""
    if text.startswith(mark):
        return 0
    at = text.find("\n" + mark)
    return at + 1 if at >= 0 else None


def _tagged(text: str) -> tuple[Call, ...]:
    """`<tool_call>` with an object or a list of them; the last end tag may be missing. Empty where words follow."""
    calls: list[Call] = []
    while text:
        if not text.startswith("<tool_call>"):
            return ()
        body, _, text = text.removeprefix("<tool_call>").partition("</tool_call>")
        text = text.lstrip()
        value = json_value(body)
        for one in value if isinstance(value, list) else [value]:
            if (call := _call(one)) is None:
                raise HerdError(f"call '{body.strip()[:60]}': expected a JSON object with name and arguments")
            calls.append(call)
    return tuple(calls)


def _functions(text: str) -> tuple[Call, ...]:
    """`<function=NAME>{json}</function>`, several after each other; empty where words follow."""
    calls: list[Call] = []
    while text:
        if (start := _FUNCTION.match(text)) is None:
            return ()
        body, _, text = text[start.end() :].partition("</function>")
        text = text.lstrip()
        arguments = json_value(body)
        if not isinstance(arguments, dict):
            raise HerdError(f"call of {start[1]}: its arguments are not a JSON object: '{body.strip()[:60]}'")
        calls.append(Call(start[1], arguments))
    return tuple(calls)


def _objects(text: str) -> tuple[Call, ...]:
    """JSON objects, in a list or after each other; empty where one of them is no call."""
    calls: list[Call] = []
    at = 0
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
            at = cast(re.Match[str], _BETWEEN.match(text, at)).end()
        except (ValueError, RecursionError):
            return ()
        for one in value if isinstance(value, list) else [value]:
            if (call := _call(one)) is None:
                return ()
            calls.append(call)
    return tuple(calls)


def _call(value: Any) -> Call | None:
    """`{"name": .., "parameters": ..}`, or "arguments", which may be JSON in a string as OpenAI's are."""
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get("parameters", value.get("arguments"))
    if isinstance(arguments, str):
        arguments = json_value(arguments)
    try:
        return Call(name, _plain(arguments)) if isinstance(arguments, dict) else None
    except ValueError:
        return None


def _python_list(text: str) -> tuple[Call, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    if not isinstance(tree, ast.List) or not all(isinstance(node, ast.Call) for node in tree.elts):
        return ()
    return tuple(_python_call(node) for node in tree.elts if isinstance(node, ast.Call))


def _python_call(node: ast.Call) -> Call:
    name = _text(node.func)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise HerdError(f"call of {name}: arguments need names, as in {name}(key=1)")
    return Call(name, {str(keyword.arg): _literal(keyword.value, name, keyword.arg) for keyword in node.keywords})


def _literal(node: ast.expr, function: str, argument: str | None) -> Any:
    try:
        value = _plain(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise HerdError(f"call of {function}: argument {argument} is not a literal: {_text(node)}") from None
    return value


def _text(node: ast.expr) -> str:
    try:
        return ast.unparse(node)[:60]
    except RecursionError:
        return "an expression"


def _plain(value: Any, depth: int = DEEPEST) -> Any:
    """A literal as JSON has it: tuples as lists. Raises ValueError for what JSON does not have."""
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(value, list | tuple):
        return [_plain(one, depth - 1) for one in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(one, depth - 1) for key, one in value.items()}
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{type(value).__name__} is not JSON")


def _built_in(text: str) -> tuple[Call, ...]:
    if (found := _BUILT_IN.fullmatch(text)) is None:
        return ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return (Call(found[1], {found[2]: ast.literal_eval(found[3])}),)
        except (SyntaxError, ValueError):  # a line end inside the quotes
            return ()


def json_value(text: str) -> Any:
    """A JSON value; None for what is not JSON, or too deep."""
    try:
        return _plain(_DECODER.decode(text))
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
