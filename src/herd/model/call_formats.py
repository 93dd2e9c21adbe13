"""Function calls as text (spec 12.4): how a dialog's encoder writes what `calls.py` reads.

Which format a model was taught is a choice of whoever trains or serves it, so it is an argument of the encoder:

    json          {"type": "function", "name": "f", "parameters": {"a": 1}}     a line each
    tagged-json   the same behind Llama 3's python tag, as where the system message says "Environment: ipython"
    function-tag  <function=f>{"a": 1}</function>                               a line each
    pythonic      [f(a=1), g(b="x")]                                            Llama 3.2 on
    tool-call     <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>   ChatML models

Code for the interpreter and Llama 3's built-in queries stand behind the tag whatever the format.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Sequence
from typing import Any, Literal

from herd.model.calls import BUILT_IN, FUNCTION_NAME, Call
from herd.model.tokenizer import ChatFormat

CallFormat = Literal["json", "tagged-json", "function-tag", "pythonic", "tool-call"]
CALL_FORMATS: tuple[CallFormat, ...] = ("json", "tagged-json", "function-tag", "pythonic", "tool-call")
USUAL: dict[ChatFormat, CallFormat] = {"llama3": "json", "chatml": "tool-call"}


def write_calls(calls: Sequence[Call], form: CallFormat) -> str:
    """Calls as text, empty for none. In JSON where a function's name is none that the format can say."""
    if form == "tool-call":
        return "\n".join(f"<tool_call>{_json(_named(call, 'arguments'))}</tool_call>" for call in calls)
    if form == "function-tag" and all(FUNCTION_NAME.fullmatch(call.name) for call in calls):
        return "\n".join(f"<function={call.name}>{_json(dict(call.arguments))}</function>" for call in calls)
    if form == "pythonic" and calls and all(_is_dotted(call.name) for call in calls):
        return f"[{', '.join(map(_pythonic, calls))}]"
    return "\n".join(_json({"type": "function"} | _named(call, "parameters")) for call in calls)


def write_tagged(call: Call, chat_format: ChatFormat) -> str | None:
    """What stands behind the call tag: the interpreter's code, or in Llama 3 a built-in query; None for others."""
    keys = dict(call.arguments).keys()
    if keys == {"code"}:
        return call.code
    if chat_format == "llama3" and call.name in BUILT_IN and keys == {"query"}:
        query = call.arguments["query"]
        return f"{call.name}.call(query={_json(query)})" if isinstance(query, str) else None
    return None


def _named(call: Call, key: str) -> dict[str, Any]:
    return {"name": call.name, key: dict(call.arguments)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _pythonic(call: Call) -> str:
    """A call with keywords; arguments whose names are none in Python come as `**{...}`."""
    plain = [f"{name}={_literal(value)}" for name, value in call.arguments.items() if _is_name(name)]
    others = {name: value for name, value in call.arguments.items() if not _is_name(name)}
    return f"{call.name}({', '.join([*plain, *([f'**{_literal(others)}'] if others else [])])})"


def _literal(value: Any) -> str:
    """A Python literal. Strings as in JSON: its escapes mean the same in Python."""
    if isinstance(value, str):
        return _json(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(key)}: {_literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)


def _is_name(text: str) -> bool:
    """Whether Python reads it back as a name: beyond ASCII it may normalise it into another."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def _is_dotted(text: str) -> bool:
    return all(map(_is_name, text.split(".")))
