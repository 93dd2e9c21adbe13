"""Reads what a session says. Its code may say anything, so each message is bounded, and checked before it is used."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

MAX_REPLY_BYTES = 8_000_000
ATOMS = (str, int, float, bool, type(None))
SHAPES = {
    "number": {"value": (int, float)},
    "text": {"value": (str,)},
    "bool": {"value": (bool,)},
    "missing": {"value": (type(None),)},
    "series": {"index": list, "values": list, "name": (str, type(None))},
    "table": {"columns": list, "rows": "rows", "total_rows": (int,)},
    "list": {"values": list},
}

UNPRINTABLE = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

Value = dict[str, Any]


class Ended(Exception):
    """The session's process has gone."""


class Nonsense(Exception):
    """The session said something that it can't have meant."""


def send(connection: socket.socket, request: dict[str, Any]) -> None:
    """One request: four bytes of length, then JSON. Raises Ended, or TimeoutError where the session does not read."""
    data = json.dumps(request).encode()
    try:
        connection.sendall(struct.pack(">I", len(data)) + data)
    except (BrokenPipeError, ConnectionError):
        raise Ended from None


def receive(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """One reply, before the monotonic time `deadline`. Raises Ended, Nonsense, TimeoutError."""
    size = struct.unpack(">I", _exactly(connection, 4, deadline))[0]
    if size > MAX_REPLY_BYTES:
        raise Nonsense(f"a reply of {size:,} bytes")
    data = _exactly(connection, size, deadline)
    try:
        reply = _clean(json.loads(data, parse_constant=_refuse))
    except (ValueError, RecursionError):
        raise Nonsense("a reply that is not JSON") from None
    if not isinstance(reply, dict):
        raise Nonsense("a reply that is not an object")
    return reply


def _clean(part: Any) -> Any:
    """The same JSON without control characters, which could steer a terminal, and halves of surrogate pairs."""
    if isinstance(part, str):
        return part.encode(errors="replace").decode().translate(UNPRINTABLE)
    if isinstance(part, list):
        return [_clean(item) for item in part]
    return {_clean(k): _clean(v) for k, v in part.items()} if isinstance(part, dict) else part


def _refuse(word: str) -> float:
    raise ValueError(word)


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        try:
            part = connection.recv(min(size - len(data), 1 << 16))
        except ConnectionError:
            raise Ended from None
        if not part:
            raise Ended
        data += part
    return bytes(data)


def read_result(reply: dict[str, Any], output_bytes: int) -> tuple[str, Value | None, str | None]:
    """Text, value and error of a reply to `run`. Raises Nonsense."""
    text, error = reply.get("text"), reply.get("error")
    if not isinstance(text, str) or not isinstance(error, (str, type(None))):
        raise Nonsense("a reply without text")
    return text[: output_bytes + 100], read_value(reply.get("value")), None if error is None else error[:1000]


def read_value(value: object) -> Value | None:
    """The JSON value of a last expression, with nothing in it but what its kind has. Raises Nonsense."""
    if value is None:
        return None
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str) or kind not in SHAPES:
        raise Nonsense("a value of no known kind")
    kept: Value = {"kind": kind}
    for key, shape in SHAPES[kind].items():
        part = value.get(key)
        if shape is list:
            good = _atoms(part)
        elif shape == "rows":
            good = isinstance(part, list) and all(_atoms(row) for row in part)
        else:
            good = isinstance(part, shape) and (kind == "bool" or not isinstance(part, bool))
        if not good:
            raise Nonsense(f"a {kind} with a wrong {key}")
        kept[key] = part
    return kept


def _atoms(part: object) -> bool:
    return isinstance(part, list) and all(isinstance(item, ATOMS) for item in part)
