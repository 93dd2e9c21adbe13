"""One conversation's interpreter: runs code, keeps its variables, opens tables; one answer for each request.

A request is four bytes of length and JSON, for a table followed by the bytes of its file; an answer likewise. The code
that runs here shares the process, so nothing this module says may be trusted by the host, and nothing is.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn

from herd.tools.inside import reading, show

OUTPUT_PATIENCE = 50  # output beyond this many times what is kept is an error
ERROR_CHARACTERS = 400
FILE = "<code>"
WALLED = " (the sandbox has no network and runs no other programs)"


class PrintedTooMuch(Exception):
    """The code printed far more than anyone could read."""


class Printed(io.TextIOBase):
    """What the code prints: the beginning is kept, the rest counted, and far too much is an error."""

    def __init__(self, limit: int) -> None:
        self.limit, self.count, self.parts = limit, 0, []

    def write(self, text: str, /) -> int:
        if self.count < self.limit:
            self.parts.append(text[: self.limit - self.count])
        self.count += len(text)
        if self.count > self.limit * OUTPUT_PATIENCE:
            raise PrintedTooMuch(f"the code printed more than {self.limit * OUTPUT_PATIENCE:,} characters")
        return len(text)

    def writable(self) -> bool:
        return True

    def text(self) -> str:
        return "".join(self.parts).rstrip("\n")


def serve(descriptor: int, output_bytes: int) -> NoReturn:
    """Answer the host's requests until its end closes; then the process ends."""
    names: dict[str, Any] = fresh_names()
    while True:
        request = _read(descriptor)
        with Path(os.devnull).open() as nothing:
            sys.stdin = nothing
            if request["do"] == "run":
                reply = run(request["code"], names, output_bytes)
            elif request["do"] == "open":
                reply = guarded(open_table, _exactly(descriptor, request["size"]), request, names)
            else:
                reply = guarded(table_facts, request, names)
        data = json.dumps(reply).encode()
        _write(descriptor, struct.pack(">I", len(data)) + data)


def fresh_names() -> dict[str, Any]:
    """The variables that a conversation starts with."""
    import numpy as np
    import pandas as pd

    return {"__name__": "__main__", "__builtins__": __builtins__, "pd": pd, "np": np}


def _exactly(descriptor: int, size: int) -> bytearray:
    """`size` bytes; where the host has gone the process ends."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = os.readv(descriptor, [view])
        if not count:
            os._exit(0)
        view = view[count:]
    return data


def _read(descriptor: int) -> dict[str, Any]:
    return json.loads(_exactly(descriptor, struct.unpack(">I", _exactly(descriptor, 4))[0]))


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def guarded(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of `work`, or {"error": line}."""
    try:
        return work(*arguments)
    except BaseException as error:
        return {"error": error_line(error, 1)}


def open_table(data: bytearray, request: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Parse the bytes of a file, name the table, and describe it."""
    table, notes = reading.parse(data, request["suffix"])
    names[request["name"]] = table
    return {**reading.facts(table), "notes": notes}


def table_facts(request: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Describe a table as it is now. Raises reading.Unreadable where there is none of the name any more."""
    return reading.facts(names.get(request["name"]))


def run(code: str, names: dict[str, Any], output_bytes: int) -> dict[str, Any]:
    """Run `code`; the value of a last expression is shown, as in a notebook.

    Returns {"text", "value", "error"}: what was printed and shown, that value as JSON, the error's line or None.
    """
    printed, value, shown, error = Printed(output_bytes), None, "", None
    try:
        body, last = compiled(code)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(body, names)
            if last is not None:
                result = eval(last, names)
                shown = show.text_of(result)
                value = show.value_of(result)
                names["_"] = result
    except BaseException as raised:
        error, value = error_line(raised, len(code.strip().splitlines())), None
        with contextlib.suppress(Exception):
            raised.__traceback__ = None  # lets go of what the frames hold, which after a MemoryError is a lot
    text = "\n".join(part for part in (printed.text(), shown if error is None else error) if part)
    total = max(printed.count - output_bytes, 0) + len(text)
    if total > output_bytes:
        text = f"{text[:output_bytes]}\n... {total - output_bytes:,} more characters"
    return {"text": text, "value": value, "error": error}


def compiled(code: str) -> tuple[CodeType, CodeType | None]:
    """The statements, and the last one by itself where it is an expression. Raises SyntaxError or ValueError."""
    tree = ast.parse(code, FILE)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        expression = tree.body.pop()
        assert isinstance(expression, ast.Expr)
        last = compile(ast.Expression(expression.value), FILE, "eval")
    return compile(tree, FILE, "exec"), last


def error_line(error: BaseException, lines: int) -> str:
    """The exception in one line, with the line of the code where that has several."""
    kind = type(error)
    if issubclass(kind, SystemExit):
        return "SystemExit: the code asked to end; its variables are kept"
    try:
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    except BaseException:
        message = "(its message could not be read)"
    if issubclass(kind, MemoryError) and not message:
        message = "the code needs more memory than the session's limit"
    if issubclass(kind, SyntaxError):
        message = (error.msg or "") if isinstance(error, SyntaxError) else message
    text = f"{kind.__name__}: {message}"[:ERROR_CHARACTERS] if message else kind.__name__
    refused = issubclass(kind, OSError) and getattr(error, "errno", None) in (errno.EPERM, errno.ENETUNREACH)
    if refused or kind.__name__ in ("gaierror", "URLError"):
        text += WALLED
    number = _line_of(error)
    return f"{text} (line {number})" if lines > 1 and number else text


def _line_of(error: BaseException) -> int | None:
    """The last line of the code, not of a library, that the exception passed through."""
    if isinstance(error, SyntaxError) and error.filename == FILE:
        return error.lineno
    number, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == FILE:
            number = step.tb_lineno
        step = step.tb_next
    return number
