"""What separates code from the question it answers: names, values and numbers that stand in only one of the two.

A small model's code nearly always runs; where it is wrong it has mostly left out a condition, taken a column's sibling
or made up a number. Each of these shows when the words of both are laid side by side. This is a heuristic for choosing
between drafts and for warning a person: a synonym looks like a gap, and code without a gap can still be wrong.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from herd.tools.table import TableFacts

WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
BOUNDARY = re.compile(r"(?<=[a-z])(?=[A-Z])")
LONGEST = 2_000  # characters of a text that are looked at
SMALL = (0.0, 1.0, 2.0, 100.0)  # numbers that code holds for its own sake: indices, halves, percent
SCALES = (1.0, 0.01, 1_000.0, 1_000_000.0)  # 5 percent, 5k, 5 million
COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
GENERAL = {"amount", "average", "count", "max", "maximum", "mean", "median", "min", "minimum", "number", "rate"}
GENERAL |= {"record", "row", "share", "sum", "total", "value"}  # as often what is done as a column's name
YES_NO = {"yes", "no", "true", "false", "y", "n", "t", "f"}
LARGEST = 1e18


@dataclass(frozen=True)
class _Words:
    """A text as comparable words: lower case, no plural s, CamelCase and digits split off."""

    words: tuple[str, ...]
    as_written: tuple[str, ...]

    def places(self, name: _Words) -> list[range]:
        """Where another text's words stand in a row; a name of one letter must be written alike."""
        size = len(name.words)
        exact = size == 1 and len(name.words[0]) == 1
        mine, theirs = (self.as_written, name.as_written) if exact else (self.words, name.words)
        starts = range(len(mine) - size + 1) if size else ()
        return [range(start, start + size) for start in starts if mine[start : start + size] == theirs]

    @property
    def numbers(self) -> set[float]:
        return {float(word) for word in self.words if word[0].isdecimal()} | {
            float(COUNTS.index(word) + 1) for word in self.words if word in COUNTS
        }


def _words(text: str) -> _Words:
    found = WORD.findall(BOUNDARY.sub(" ", text[:LONGEST]))
    return _Words(tuple(_stem(word.lower()) for word in found), tuple(found))


def _stem(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s") or word.endswith("ss"):
        return word
    return word[:-3] + "y" if word.endswith("ies") else word[:-1]


@dataclass(frozen=True)
class _Code:
    """What code names: columns, other strings, numbers, and which column is compared with which constant."""

    columns: frozenset[str]
    strings: frozenset[str]
    numbers: frozenset[float]
    compared: tuple[tuple[str, str | float], ...]


def _read(code: str, columns: frozenset[str]) -> _Code:
    strings, numbers, compared = set[str](), set[float](), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            if not isinstance(node.value, bool) and abs(node.value) < LARGEST:
                numbers.add(float(node.value))
        elif isinstance(node, ast.Attribute) and node.attr in columns:
            strings.add(node.attr)
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            side, other = node.left, node.comparators[0]
            if isinstance(side, ast.Subscript) and isinstance(side.slice, ast.Constant):
                if isinstance(other, ast.UnaryOp):
                    other = other.operand
                if isinstance(other, ast.Constant) and isinstance(other.value, str | int | float):
                    compared.append((str(side.slice.value), other.value))
    return _Code(frozenset(strings & columns), frozenset(strings - columns), frozenset(numbers), tuple(compared))


def gaps(question: str, said: Sequence[str], code: str, facts: TableFacts, ran: Sequence[str] = ()) -> list[str]:
    """What stands in the question and not in the code, or the other way round; a line each.

    `said`: earlier messages and results, whose words code may use too. `ran`: code that has run for this question, so
    that what it held is not asked for again. Raises SyntaxError or ValueError for text that is no Python.
    """
    names = frozenset(column.name for column in facts.columns)
    now = _read(code, names)
    whole = _read("\n".join([*ran, code]), names)
    asked = _words(question)
    known = _words(" ".join([question, *said]))
    return [*_left_out(asked, whole, facts), *_made_up(known, now, facts), *_no_such_value(now, facts)]


def _values(facts: TableFacts) -> dict[str, tuple[str, ...]]:
    """The values that are known of each column of text."""
    texts = [column for column in facts.columns if column.kind in ("text", "bool")]
    return {column.name: tuple(v for v in column.examples if not v.endswith("...")) for column in texts}


def _left_out(asked: _Words, code: _Code, facts: TableFacts) -> Iterator[str]:
    """Columns, values and numbers of the question that the code does without. The longest names are found first."""
    taken = set[int]()
    values = {value for column in _values(facts).values() for value in column}
    names = [(_words(column.name), column.name, True) for column in facts.columns]
    names += [(_words(value), value, False) for value in values]
    used = [_words(name).words for name in code.columns]
    for words, name, is_column in sorted(names, key=lambda entry: -len(entry[0].words)):
        places = [place for place in asked.places(words) if not taken & set(place)]
        for place in places:
            taken |= set(place)
        if not places or name in code.columns or name in code.strings:
            continue
        if is_column and (set(words.words) <= GENERAL or any(set(words.words) <= set(other) for other in used)):
            continue
        yield f"the question names {name!r}, the code does not"
    held = code.numbers | {number for text in code.strings for number in _words(text).numbers}
    left = _Words(tuple(word for index, word in enumerate(asked.words) if index not in taken), ())
    for number in sorted(left.numbers):
        digits = f"{number:g}" in left.words
        if digits and not any(_close(number * scale, other) for scale in SCALES for other in held):
            yield f"the question says {number:g}, the code does not"


def _made_up(known: _Words, code: _Code, facts: TableFacts) -> Iterator[str]:
    """Columns, values and numbers of the code that nobody named."""
    values = _values(facts)
    by_value = {column for column, value in code.compared if known.places(_words(str(value)))}
    for name in sorted(code.columns - by_value):
        if not set(_words(name).words) & set(known.words):
            yield f"the code uses {name!r}, which was not named"
    for text in sorted(code.strings & {value for column in values.values() for value in column}):
        if text.lower() not in YES_NO and not set(_words(text).words) <= set(known.words):
            yield f"the code says {text!r}, which was not named"
    for number in sorted(code.numbers - set(SMALL)):
        if not any(_close(other * scale, number) for scale in SCALES for other in known.numbers):
            yield f"the code says {number:g}, which was not named"


def _no_such_value(code: _Code, facts: TableFacts) -> Iterator[str]:
    """Comparisons that no row can meet: with text in a column of numbers, or with what a column does not hold."""
    columns = {column.name: column for column in facts.columns}
    for name, value in code.compared:
        column = columns.get(name)
        if column is None:
            continue
        known = _values(facts).get(name)
        text = isinstance(value, str)
        complete = known is not None and len(known) == column.distinct
        if (
            (text and column.kind == "number")
            or (not text and column.kind == "text")
            or (text and complete and known is not None and value not in known)
        ):
            yield f"{name!r} is never {value!r}"


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-9 * max(1.0, abs(one))
