"""Function calls written as text (spec 12.4): what models emit in place of words, read into values.

Read are `<tool_call>{json}</tool_call>` (ChatML models), `<function=NAME>{json}</function>`, JSON objects with a name
and parameters or arguments, Llama 3's Python lists `[f(a=1), g(b="x")]` and its built-in queries. Nothing is executed:
JSON and Python literals only. `call_formats.py` writes them.
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
from herd.model.tokenizer import encodable

PYTHON = "python"
BUILT_IN = ("brave_search", "wolfram_alpha")  # Llama 3's own; their argument is `query`
LONGEST = 20_000  # characters; a longer text is words: no such call is that long, and parsing is not free
DEEPEST = 50  # lists and objects inside each other
MOST_BITS = 2_048  # of an integer: Python may refuse to write out one of more than 640 digits
FUNCTION_NAME = re.compile(r"[A-Za-z_][\w.-]*")  # in a function tag

_BUILT_IN = re.compile(rf"({'|'.join(BUILT_IN)})\.call\((\w+)=(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')\)", re.DOTALL)
_FUNCTION = re.compile(rf"<function=({FUNCTION_NAME.pattern})>")
_LIST = re.compile(r"^\[\s*[A-Za-z_][\w.]*\s*\(", re.MULTILINE)
_BLANK = re.compile(r"\s*")
_END = re.compile(r"\s*(?:</(?:tool_call|function)>)?\s*")
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
    if stripped.startswith(("{", "[{")) and (calls := _objects(stripped)):
        return "", calls
    if (found := _OBJECT.search(stripped)) and (calls := _objects(stripped[found.start() :])):
        return stripped[: found.start()].strip(), calls
    if stripped.endswith("]") and (found := _LIST.search(stripped)):
        calls = _python_list(stripped[found.start() :])
        return (stripped[: found.start()].strip(), calls) if calls else (stripped, ())
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
    at = 0
    while at < len(text):
        if not text.startswith("<tool_call>", at):
            return ()
        start = at + len("<tool_call>")
        value, at = _json_at(text, start)
        for one in value if isinstance(value, list) else [value]:
            if (call := _call(one)) is None:
                found = text[start:].strip()[:60]
                raise HerdError(f"call '{found}': expected a JSON object with name and arguments")
            calls.append(call)
    return tuple(calls)


def _functions(text: str) -> tuple[Call, ...]:
    """`<function=NAME>{json}</function>`, several after each other; empty where words follow."""
    calls: list[Call] = []
    at = 0
    while at < len(text):
        if (start := _FUNCTION.match(text, at)) is None:
            return ()
        arguments, at = _json_at(text, start.end())
        if not isinstance(arguments, dict):
            found = text[start.end() :].strip()[:60]
            raise HerdError(f"call of {start[1]}: its arguments are not a JSON object: '{found}'")
        calls.append(Call(start[1], arguments))
    return tuple(calls)


def _json_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins there, and where the end tag behind it ends: tags may stand in its strings too.

    None and the end of the text for what is no JSON, or too deep.
    """
    try:
        value, end = _DECODER.raw_decode(text, _end(_BLANK, text, start))
        return _plain(value), _end(_END, text, end)
    except (ValueError, RecursionError):
        return None, len(text)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where the match of a pattern that always matches ends."""
    return cast(re.Match[str], pattern.match(text, at)).end()


def _objects(text: str) -> tuple[Call, ...]:
    """JSON objects, in a list or after each other; empty where one of them is no call."""
    calls: list[Call] = []
    at = 0
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
            at = _end(_BETWEEN, text, at)
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
    arguments = read_arguments(value.get("parameters", value.get("arguments")))
    return Call(name, arguments) if arguments is not None else None


def read_arguments(value: Any) -> dict[str, Any] | None:
    """Arguments given as an object, or as JSON in a string; None for what is neither, or has no place in JSON."""
    try:
        plain = _plain(_DECODER.decode(value) if isinstance(value, str) else value)
    except (ValueError, RecursionError):
        return None
    return plain if isinstance(plain, dict) else None


def _python_list(text: str) -> tuple[Call, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    if not isinstance(tree, ast.List):
        return ()
    named = [(node, _dotted(node.func)) for node in tree.elts if isinstance(node, ast.Call)]
    if len(named) < len(tree.elts) or not all(name for _, name in named):
        return ()
    return tuple(_python_call(node, name) for node, name in named)


def _dotted(node: ast.expr) -> str:
    """The name of a function, `a.b.f` included; empty for what is none, as `f()`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < DEEPEST:
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _python_call(node: ast.Call, name: str) -> Call:
    arguments: dict[str, Any] = {}
    named = not node.args
    for keyword in node.keywords:
        value = _literal(keyword.value, name, keyword.arg or "**")
        if keyword.arg is not None:
            arguments[keyword.arg] = value
        elif isinstance(value, dict):  # `**{"no-name": 1}`
            arguments |= value
        else:
            named = False
    if not named:
        raise HerdError(f"call of {name}: arguments need names, as in {name}(key=1)")
    return Call(name, arguments)


def _literal(node: ast.expr, function: str, argument: str) -> Any:
    try:
        return _plain(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise HerdError(f"call of {function}: argument {argument} is not a literal: {_text(node)}") from None


def _text(node: ast.expr) -> str:
    try:
        return ast.unparse(node)[:60]
    except (RecursionError, ValueError):  # ValueError: a backslash inside an f-string
        return "an expression"


def _plain(value: Any, depth: int = DEEPEST) -> Any:
    """A literal as JSON has it: tuples as lists, lone surrogates as U+FFFD. Raises ValueError for what JSON lacks."""
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list | tuple):
        return [_plain(one, depth - 1) for one in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {encodable(key): _plain(one, depth - 1) for key, one in value.items()}
    if value is None or (isinstance(value, int) and value.bit_length() <= MOST_BITS):  # True and False too
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{type(value).__name__} is not JSON")


def _built_in(text: str) -> tuple[Call, ...]:
    if (found := _BUILT_IN.fullmatch(text)) is None:
        return ()
    name, argument, quoted = found.groups()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            query = ast.literal_eval(quoted.replace("\n", "\\n").replace("\r", "\\r"))  # line ends as they stand
        except (SyntaxError, ValueError):  # a half escape, a null character
            return ()
    return (Call(name, {argument: encodable(query)}),)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
