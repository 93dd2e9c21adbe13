"""The one chat and tool-call format: used to train, to measure and to serve (spec 2.7, 12.4).

A dialog is messages. `encode` writes it in the chat format of a tokenizer's vocabulary, Llama 3's or ChatML, and says
which tokens are trained; `prompt` is what stands before the assistant's next message; `parse` reads what a model
emitted. Content never forges a special token: text is encoded as text.

The code interpreter's call is raw Python behind a tag: `<|python_tag|>` in Llama 3, `<jupyter_code>` in SmolLM2's
vocabulary, which has no python tag. Llama 3 ends what is behind the tag with `<|eom_id|>`. Other functions are called
in the format that the encoder is told (`call_formats.py`), by default JSON, a line each; every format is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from herd.console import HerdError
from herd.model.call_formats import USUAL, CallFormat, write_calls, write_tagged
from herd.model.calls import Call, python_call, read_arguments, read_calls, read_tagged
from herd.model.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
__all__ = [
    "Call",
    "CallFormat",
    "Dialog",
    "Encoded",
    "Message",
    "encode",
    "from_openai",
    "parse",
    "prompt",
    "python_call",
    "to_openai",
]


@dataclass(frozen=True)
class Message:
    """One message. `calls` and `trained` (whether it carries loss) are for the assistant's."""

    role: Role
    content: str = ""
    calls: tuple[Call, ...] = ()
    trained: bool = True


@dataclass(frozen=True)
class Dialog:
    """Messages in order."""

    messages: tuple[Message, ...]

    def then(self, *messages: Message) -> Dialog:
        """The dialog with messages added."""
        return Dialog((*self.messages, *messages))


@dataclass
class Encoded:
    """Token ids of a dialog. `trained`: the assistant's content, call tag and end token. `formatting`: headers, call
    tags, end tokens and line ends of the protocol, which preference sums leave out (spec 6.4).
    """

    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    formatting: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], trained: bool, formatting: bool) -> None:
        """Append tokens of one kind."""
        self.ids += ids
        self.trained += [trained] * len(ids)
        self.formatting += [formatting] * len(ids)


def encode(dialog: Dialog, tokenizer: Tokenizer, calls: CallFormat | None = None) -> Encoded:
    """A whole dialog, function calls in the format `calls` (default: the chat format's usual one).

    Of several calls only the last can be Python or a built-in query behind the tag; others are written as text.
    Raises HerdError for tagged JSON in a vocabulary without Llama 3's tag.
    """
    form = calls or USUAL[tokenizer.chat_format]
    if form == "tagged-json" and tokenizer.chat_format != "llama3":
        raise HerdError(f"call format '{form}': the chat format {tokenizer.chat_format} has no tag for it")
    encoded = Encoded()
    if tokenizer.chat_format == "llama3":
        encoded.add([tokenizer.bos_id], False, True)
    for message in dialog.messages:
        if message.role == "assistant":
            _encode_answer(encoded, message, tokenizer, form)
        elif tokenizer.chat_format == "llama3":
            encoded.add(_header(message.role, tokenizer), False, True)
            encoded.add(tokenizer.encode(message.content), False, False)
            encoded.add([tokenizer.special["<|eot_id|>"]], False, True)
        else:
            _encode_chatml(encoded, message, tokenizer)
    return encoded


def _encode_answer(encoded: Encoded, message: Message, tokenizer: Tokenizer, form: CallFormat) -> None:
    encoded.add(_header("assistant", tokenizer), False, True)
    text, tagged = _body(message, tokenizer, form)
    encoded.add(tokenizer.encode(text), message.trained, False)
    if tagged is not None:
        encoded.add([cast(int, tokenizer.call_id)], message.trained, True)
        encoded.add(tokenizer.encode(tagged), message.trained, False)
    if tokenizer.chat_format == "llama3":
        end = "<|eom_id|>" if tagged is not None else "<|eot_id|>"
        encoded.add([tokenizer.special[end]], message.trained, True)
    else:
        encoded.add([tokenizer.special["<|im_end|>"]], message.trained, True)
        encoded.add(tokenizer.encode("\n"), False, True)


def _encode_chatml(encoded: Encoded, message: Message, tokenizer: Tokenizer) -> None:
    """A message that is not the assistant's. Its role and content are one text, as the template renders them: blanks
    that the content begins with may join the line end. (Not so an assistant's: the header is its prompt.)
    """
    encoded.add([tokenizer.special["<|im_start|>"]], False, True)
    ids, role = tokenizer.encode(f"{message.role}\n{message.content}"), tokenizer.encode(message.role)
    encoded.add(ids[: len(role) + 1], False, True)
    encoded.add(ids[len(role) + 1 :], False, False)
    encoded.add([tokenizer.special["<|im_end|>"], *tokenizer.encode("\n")], False, True)


def prompt(dialog: Dialog, tokenizer: Tokenizer, calls: CallFormat | None = None) -> list[int]:
    """The dialog and the header of the assistant's next message; a prefix of the encoded dialog with its answer."""
    return [*encode(dialog, tokenizer, calls).ids, *_header("assistant", tokenizer)]


def parse(ids: Sequence[int], tokenizer: Tokenizer) -> Message:
    """The assistant's message in what a model emitted, up to the first stop token; for any ids there is one.

    Behind the call tag stands Python; without it calls may be text (`calls.py`). What is no call is words, also what
    was meant as one and cannot be read.
    """
    end = next((index for index, token in enumerate(ids) if token in tokenizer.stop_ids), len(ids))
    kept = [token for token in ids[:end] if 0 <= token < tokenizer.vocab_size]
    tag = kept.index(tokenizer.call_id) if tokenizer.call_id in kept else None
    text = tokenizer.decode(kept[:tag])
    try:
        words, calls = read_calls(text)
    except HerdError:
        words, calls = text.strip(), ()
    if tag is not None:
        code = tokenizer.decode(kept[tag + 1 :])
        tagged = (python_call(code),) if tokenizer.chat_format == "chatml" else read_tagged(code)
        calls = (*calls, *tagged)
    return Message("assistant", words, calls)


def _header(role: Role, tokenizer: Tokenizer) -> list[int]:
    if tokenizer.chat_format == "chatml":
        return [tokenizer.special["<|im_start|>"], *tokenizer.encode(role + "\n")]
    name = "ipython" if role == "tool" else role  # the tool is called ipython there
    start, end = tokenizer.special["<|start_header_id|>"], tokenizer.special["<|end_header_id|>"]
    return [start, *tokenizer.encode(name), end, *tokenizer.encode("\n\n")]


def _body(message: Message, tokenizer: Tokenizer, form: CallFormat) -> tuple[str, str | None]:
    """The text of an assistant's message, and what stands behind the tag."""
    others, tagged = message.calls, None
    if others and tokenizer.call_id is not None:
        tagged = write_tagged(others[-1], tokenizer.chat_format)
        if tagged is not None:
            others = others[:-1]
        elif form == "tagged-json":
            others, tagged = (), write_calls(others, form)
    return "\n".join(part for part in (message.content, write_calls(others, form)) if part), tagged


# ---- OpenAI's chat messages ----


def from_openai(messages: Sequence[Any]) -> Dialog:
    """Chat messages as OpenAI's API has them, `weight` of its fine-tuning files included.

    Tool results that name their calls come into the order of the calls. Raises HerdError naming the message and key
    that is wrong.
    """
    if not isinstance(messages, list | tuple):
        raise HerdError(f"messages: expected a list, found {type(messages).__name__}")
    dialog: list[Message] = []
    open_calls, results = list[Any](), list[tuple[int, Message]]()
    for index, given in enumerate(messages):
        where = f"messages[{index}]"
        message = _message(given, where)
        if message.role == "tool":
            results.append((_place(given.get("tool_call_id"), open_calls, len(results), where), message))
            continue
        dialog += [result for _, result in sorted(results, key=lambda pair: pair[0])]
        results = []
        dialog.append(message)
        open_calls = [call.get("id") for call in given.get("tool_calls") or []]
    return Dialog((*dialog, *(result for _, result in sorted(results, key=lambda pair: pair[0]))))


def _place(id: Any, open_calls: list[Any], results: int, where: str) -> int:
    """Which of the calls before it a tool result answers; by order where it does not say."""
    if id is None or open_calls == [None] * len(open_calls):
        return results
    if id not in open_calls:
        raise HerdError(f"{where}.tool_call_id: {id!r} is no call of the message before it")
    return open_calls.index(id)


def to_openai(dialog: Dialog) -> list[dict[str, Any]]:
    """Inverse of `from_openai`, but for `trained`, which is no part of a chat; ids of calls are counted."""
    rows: list[dict[str, Any]] = []
    count, waiting = 0, list[str]()
    for message in dialog.messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.calls:
            ids = [f"call_{count + index}" for index in range(len(message.calls))]
            count += len(ids)
            waiting = list(ids)
            row["tool_calls"] = [_openai_call(id, call) for id, call in zip(ids, message.calls, strict=True)]
        if message.role == "tool":
            row["tool_call_id"] = waiting.pop(0) if waiting else "call_unknown"
        rows.append(row)
    return rows


def _openai_call(id: str, call: Call) -> dict[str, Any]:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise HerdError(f"{where}: not an object; expected {{'role': ..., 'content': ...}}")
    given = str(message.get("role"))
    role = {"developer": "system", "ipython": "tool", "function": "tool"}.get(given, given)
    if role not in ROLES:
        raise HerdError(f"{where}.role: {given!r}; expected one of {', '.join(ROLES)}")
    content = "".join(_parts(message.get("content"), f"{where}.content"))
    calls = message.get("tool_calls") or []
    if message.get("content") is None and not calls:
        raise HerdError(f"{where}.content: missing; expected text")
    if not isinstance(calls, list):
        raise HerdError(f"{where}.tool_calls: not a list")
    if calls and role != "assistant":
        raise HerdError(f"{where}.tool_calls: only the assistant calls functions, this is the {role}'s message")
    read = tuple(_read_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls))
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise HerdError(f"{where}.weight: {weight!r}; expected 0 (not trained on) or 1")
    return Message(cast(Role, role), content, read, trained=weight == 1)


def _parts(content: Any, where: str) -> Iterator[str]:
    """Content is text, nothing, or a list of text parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for index, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise HerdError(f"{where}[{index}]: only parts of type 'text' are supported")
            yield part["text"]
    elif content is not None:
        raise HerdError(f"{where}: expected text, found {type(content).__name__}")


def _read_call(call: Any, where: str) -> Call:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise HerdError(f"{where}.function.name: missing; expected the name of a function")
    arguments = read_arguments(function.get("arguments") or "{}")
    if arguments is None:
        raise HerdError(f"{where}.function.arguments: not a JSON object")
    return Call(function["name"], arguments)
