"""Where tables and chats of post-training come from: packages, invention, and the user's own files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from herd.artifact import file_sha256
from herd.console import HerdError
from herd.data.sources import Unavailable
from herd.model.dialog import Dialog, from_openai
from herd.posttrain.synthesis.invented import invent_table
from herd.posttrain.synthesis.real_tables import is_test_table, package_tables
from herd.posttrain.tuning import seed_of
from herd.recipe_posttrain import DialogSource, InventedTables, OwnChats, OwnTables, PackageTables

LONGEST_LINE = 1_000_000


class SourceTable(NamedTuple):
    """A CSV file to ask about. `test`: never trained on. `own`: the user named it."""

    name: str
    content: bytes
    source: str
    test: bool
    own: bool = False


def fingerprint(sources: Sequence[DialogSource], base: Path) -> dict[str, Any]:
    """What the user's own files hold: a change makes the questions anew. Raises HerdError for a file not there."""
    digests: dict[str, Any] = {}
    for source in sources:
        if isinstance(source, OwnTables):
            digests[source.name] = {path.name: file_sha256(path) for path in _files(source, base)}
        elif isinstance(source, OwnChats):
            digests[source.name] = file_sha256(_existing(base / source.path, source.name))
    return digests


def read_source_tables(sources: Sequence[DialogSource], base: Path, seed: int) -> Iterator[SourceTable]:
    """All tables of the sources. Invented ones are trained on, of packages a part, the user's own as they say.

    Raises HerdError where a source can't be had.
    """
    for source in sources:
        if isinstance(source, PackageTables):
            try:
                for table in package_tables(source.packages, source.sha256):
                    yield SourceTable(table.name, table.content, source.name, is_test_table(table.name, seed))
            except Unavailable as error:
                raise HerdError(f"posttrain.source '{source.name}': {error}") from None
        elif isinstance(source, InventedTables):
            for index in range(source.count):
                table = invent_table(random.Random(seed_of(seed, "invent", source.name, index)))
                yield SourceTable(table.name, table.content, source.name, False)
        elif isinstance(source, OwnTables):
            for path in _files(source, base):
                yield SourceTable(path.stem, path.read_bytes(), source.name, source.test, own=True)


def read_chats(sources: Sequence[DialogSource], base: Path) -> list[tuple[str, Dialog]]:
    """The user's own conversations as (source, dialog), each as often as its source says.

    Raises HerdError naming file, line and what is wrong with it.
    """
    chats: list[tuple[str, Dialog]] = []
    for source in sources:
        if isinstance(source, OwnChats):
            found = list(_read_chats(_existing(base / source.path, source.name)))
            chats += [(source.name, dialog) for _ in range(source.repeat) for dialog in found]
    return chats


def read_dialogs(path: Path) -> Iterator[tuple[str, Dialog]]:
    """Conversations of a file, each with its place: OpenAI's messages, or an object that has them under `messages`.

    One stands on each line, or one fills the file. Raises HerdError naming file, line and what is wrong with it.
    """
    with path.open("rb") as stream:
        start = stream.read(LONGEST_LINE + 1)
        spread = len(start) <= LONGEST_LINE and b"\n" in start.strip()
        if spread and (whole := _json(start)) is not None:
            yield str(path), _dialog(whole, str(path))
            return
        stream.seek(0)
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), 1):
            where = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                raise HerdError(f"{where}: longer than {LONGEST_LINE:,} bytes; one conversation a line")
            if not line.strip():
                continue
            if (row := _json(line)) is None:
                raise HerdError(f'{where}: not JSON; expected {{"messages": [...]}} on each line')
            yield where, _dialog(row, where)


def _json(text: bytes) -> Any:
    """A JSON value; None for what is not JSON, or nested too deep to read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dialog(row: Any, where: str) -> Dialog:
    messages = row.get("messages") if isinstance(row, dict) else row
    if not isinstance(messages, list):
        raise HerdError(f"{where}: no list under the key 'messages'")
    try:
        return from_openai(messages)
    except HerdError as error:
        raise HerdError(f"{where}: {error}") from None


def _read_chats(path: Path) -> Iterator[Dialog]:
    for where, dialog in read_dialogs(path):
        if not any(message.role == "assistant" for message in dialog.messages):
            raise HerdError(f"{where}: no message of the assistant, so nothing to learn")
        yield dialog


def _files(source: OwnTables, base: Path) -> list[Path]:
    path = _existing(base / source.path, source.name)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in (".csv", ".tsv"))
    if not files:
        raise HerdError(f"posttrain.source '{source.name}': no .csv or .tsv file in {path}")
    return files


def _existing(path: Path, name: str) -> Path:
    if not path.exists():
        raise HerdError(f"posttrain.source '{name}': {path} is not there")
    return path
