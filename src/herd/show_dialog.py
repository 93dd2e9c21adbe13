"""`herd dialog show`: a file's dialogs as the token sequences that a model is trained on.

A message a block, its tokens divided by thin bars. What is trained stands in «marks» and in green; the protocol's
tokens are dim. What a file holds never controls the terminal: what is not printable comes as escapes.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from herd.console import HerdError
from herd.model.call_formats import CALL_FORMATS, CallFormat
from herd.model.dialog import Dialog, Encoded, encode
from herd.model.tokenizer import Tokenizer
from herd.posttrain.sources import read_dialogs

LABEL = 14  # columns before the tokens, for the number and role of their message
TRAINED, TRAINED_FORMATTING, FORMATTING, PLAIN = "bold green", "green", "dim", ""
SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
SPACE = "␣"  # beside ids, where tokens are padded
PART = "⋯"  # a token that ends inside a character
_SPECIAL = re.compile(r"<\|\w{1,40}\|>")  # what text looks like that would forge the protocol


@dataclass(frozen=True)
class Shown:
    """How dialogs are written: the tokenizer, the format of calls, and the context where one is known."""

    tokenizer: Tokenizer
    context: int | None = None
    calls: CallFormat | None = None
    ids: bool = False


class Cell(NamedTuple):
    """One token on the screen, with its marks."""

    text: str
    id: str
    style: str


def call_format(name: str | None) -> CallFormat | None:
    """A call format by its name. Raises HerdError with the names there are."""
    if name is not None and name not in CALL_FORMATS:
        raise HerdError(f"--calls: '{name}'; expected one of {', '.join(CALL_FORMATS)}")
    return cast(CallFormat | None, name)


def print_dialogs(path: Path, shown: Shown, first: int) -> None:
    """Print the first dialogs of a file, what is wrong with each, and how many are left.

    Raises HerdError for a file that is not there, or naming the line that is no dialog.
    """
    if first < 1:
        raise HerdError(f"--first: {first}; expected at least 1")
    if not path.exists():
        raise HerdError(f"{path}: there is no such file")
    console = Console(highlight=False)
    console.print(_legend(shown.ids), soft_wrap=True)
    places: list[str] = []
    for where, dialog in itertools.islice(read_dialogs(path), first):
        places.append(where)
        console.print()
        _print(console, where, dialog, shown)
    if not places:
        raise HerdError(f"{path}: no dialogs in it")
    if places[0] != str(path) and (left := _lines(path) - len(places)) > 0:
        console.print(f"\n{left:,} more in the file; --first N shows more", soft_wrap=True)


def _lines(path: Path) -> int:
    """How many dialogs a file has that holds one on each line."""
    with path.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


def _legend(with_ids: bool) -> Text:
    signs = f"  │ between tokens  ↵ line end  {PART} part of a character" + (f"  {SPACE} space" if with_ids else "")
    return Text.assemble(("«trained»", TRAINED), "  ", ("formatting", FORMATTING), signs)


def _print(console: Console, where: str, dialog: Dialog, shown: Shown) -> None:
    parts = encode_parts(dialog, shown)
    total, trained, formatting = (
        sum(map(len, (part.ids for part in parts))),
        sum(sum(part.trained) for part in parts),
        sum(sum(part.formatting) for part in parts),
    )
    share = f" ({trained / total:.0%})" if total else ""
    counts = f"{total:,} tokens, {trained:,} trained{share}, {formatting:,} formatting"
    console.print(Text.assemble((visible(where), "bold"), f"  {counts}"), soft_wrap=True)
    for index, (message, part) in enumerate(zip(dialog.messages, parts, strict=True)):
        label = f"{index:>2} {message.role}".ljust(LABEL)
        for text, ids in _rows(cells(part, shown.tokenizer), max(20, console.width - LABEL), shown.ids):
            console.print(Text.assemble((label, "cyan"), text), soft_wrap=True)
            label = " " * LABEL
            if shown.ids:
                ids.rstrip()
                console.print(Text.assemble(label, ids), soft_wrap=True)
    for line in warnings(dialog, parts, shown):
        console.print(Text(f"warning: {line}", style="yellow"), soft_wrap=True)


def encode_parts(dialog: Dialog, shown: Shown) -> list[Encoded]:
    """The encoded dialog, a part for each message; what begins the text belongs to the first."""
    parts = [encode(Dialog((message,)), shown.tokenizer, shown.calls) for message in dialog.messages]
    begun = len(encode(Dialog(()), shown.tokenizer).ids)
    later = (Encoded(p.ids[begun:], p.trained[begun:], p.formatting[begun:]) for p in parts[1:])
    return [*parts[:1], *later]


def warnings(dialog: Dialog, parts: list[Encoded], shown: Shown) -> Iterator[str]:
    """What would keep a model from learning what the dialog is there for."""
    untrained: list[str] = []
    for index, (message, part) in enumerate(zip(dialog.messages, parts, strict=True)):
        stops = [trained for id, trained in zip(part.ids, part.trained, strict=True) if id in shown.tokenizer.stop_ids]
        if message.role == "assistant" and not (stops and stops[-1]):
            if any(part.trained):
                yield f"messages[{index}]: its stop token is not trained: a model would not learn to stop there"
            else:
                untrained.append(f"messages[{index}]")
        known = {name for name in shown.tokenizer.special if name in message.content}
        for name in sorted(known | set(_SPECIAL.findall(message.content))):
            unknown = "" if name in known else "; the vocabulary has no special token of this name"
            yield f"messages[{index}]: {visible(name)} stands in its text and is encoded as text{unknown}"
    if untrained:
        yield f"{', '.join(untrained)}: not trained, the stop token neither (weight 0)"
    if not any(any(part.trained) for part in parts):
        yield "nothing is trained"
    if dialog.messages and dialog.messages[-1].role != "assistant":
        yield f"the last message is the {dialog.messages[-1].role}'s: no answer follows it"
    total = sum(len(part.ids) for part in parts)
    if shown.context is not None and total > shown.context:
        yield f"{total:,} tokens are more than the member's context of {shown.context:,}"


def cells(part: Encoded, tokenizer: Tokenizer) -> list[Cell]:
    """The tokens of a message as they are shown: trained runs in marks, a character with the token that ends it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = []
    edges = [False, *part.trained, False]
    for index, (id, trained, formatting) in enumerate(zip(part.ids, part.trained, part.formatting, strict=True)):
        text = visible(decoder.decode(tokenizer.token_bytes(id))) or PART
        begin = "«" if trained and not edges[index] else ""
        end = "»" if trained and not edges[index + 2] else ""
        styles = (TRAINED_FORMATTING, TRAINED) if trained else (FORMATTING, PLAIN)
        found.append(Cell(begin + text + end, str(id), styles[0] if formatting else styles[1]))
    return found


def visible(text: str) -> str:
    """Text without control over the terminal: signs for line ends and tabs, escapes for what is not printable."""
    return "".join(SIGNS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode("ascii")) for c in text)


def _rows(row: list[Cell], width: int, with_ids: bool) -> Iterator[tuple[Text, Text]]:
    """Lines of tokens and of their ids beneath, broken where they are full and after line ends."""
    text, ids = Text(), Text()
    for cell in row:
        size = max(cell_len(cell.text), len(cell.id) if with_ids else 0)
        if text and text.cell_len + size >= width:
            yield text, ids
            text, ids = Text(), Text()
        text.append(cell.text.replace(" ", SPACE) if with_ids else cell.text, cell.style)
        text.append(" " * (size - cell_len(cell.text)) + "│", FORMATTING)
        ids.append(cell.id.ljust(size + 1), FORMATTING)
        if SIGNS["\n"] in cell.text:
            yield text, ids
            text, ids = Text(), Text()
    if text:
        yield text, ids
