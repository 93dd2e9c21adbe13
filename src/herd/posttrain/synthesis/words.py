"""How people name columns, values and rows: rarely letter for letter."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

_WORD = re.compile(r"\d+|[^\W\d_]+")
_CASED = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def literal(value: object) -> str:
    """A value as it stands in Python code: double quotes, so that a grammar can tell labels."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def natural(label: str) -> str:
    """`unit_price`, `UnitPrice` and `Unit.Price` as `unit price`; a label without letters stays as it is."""
    words = [part for word in _WORD.findall(label) for part in (_CASED.findall(word) if word.isascii() else [word])]
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words) or label


def plural(words: str) -> str:
    """The plural of an English noun phrase, by the common rules."""
    if words.endswith(("s", "x", "ch", "sh")):
        return words + "es" if not words.endswith("s") else words
    if words.endswith("y") and words[-2:-1] not in "aeiou":
        return words[:-1] + "ies"
    return words + "s"


def mention(label: str, labels: Sequence[str], chance: random.Random) -> str:
    """A column as a person may name it: verbatim, in plain words, quoted, or by its last word where that is enough."""
    plain = natural(label)
    last = plain.split()[-1]
    others = {word for other in labels if other != label for word in natural(other).lower().split()}
    draw = chance.random()
    if draw < 0.12 and len(last) > 3 and last.lower() not in others:
        return last
    if draw < 0.55:
        return plain
    if draw < 0.92:
        return label
    return f'"{label}"' if draw < 0.97 else f"column {label}"


def rows_of(table: str, chance: random.Random, nouns: Sequence[str]) -> str:
    """What the rows are called: after the file's name where that is a plural, or any noun."""
    last = natural(table).split()[-1:]
    if last and last[0].endswith("s") and len(last[0]) > 4 and chance.random() < 0.4:
        return last[0]
    return chance.choice(nouns)
