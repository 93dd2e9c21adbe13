"""A grammar for calls whose column labels exist: what the model invents most, it can then not write.

The grammar is in the Lark syntax of llguidance. It reads code as free text without quotes, cut by string literals, and
the text before a string decides which strings may follow. After `[ ( { , = :` comes a label of the table, or one the
code has created. After == and != comes a known value, where these are given (`known_values`). Other comparisons and
the methods of `VALUE_METHODS` take any string, aggregations and options a word of a fixed list. A label is created by
a line `df["ratio"] = ...`, its name one of `NEW_LABELS`, and counts from the next line on. Comments, single quotes and
f-strings do not occur; a string does not begin a line.

What the grammar cannot do: check attribute access (`df.price` is free text), labels inside the strings of `query` and
`eval` (these strings are refused), or whether free text is Python at all. It forbids rows by label (`.loc["Paris"]`)
and labels that other ways create (`rename`, `assign`). The length of a call is bounded by `Sampling.max_tokens`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from herd.tools.table import TableFacts

NEW_LABELS = (
    "ratio",
    "total",
    "difference",
    "share",
    "change",
    "rate",
    "year",
    "month",
    "day",
    "length",
    "score",
    "value",
)
AGGREGATIONS = ("mean", "sum", "median", "min", "max", "count", "size", "std", "nunique", "first", "last")
OPTIONS = ("pearson", "spearman", "kendall", "coerce", "any", "all", "first", "last", "int", "float", "str", "number")
VALUE_METHODS = ("contains", "startswith", "endswith", "fillna", "strftime", "to_period")
MOST_VALUES, MOST_SAID, LONGEST_PHRASE = 400, 400, 6
TARGETED = 16  # bits from here on: a line has assigned to this new label; below: that line has ended

_FREE = r"""[^\x00-\x1f\x7f"'\\#;]"""
_RULES = rf"""
FREE: /{_FREE}+/
NEXT_LINE: /{_FREE}*[\n;][\n; ]*/
BEFORE_LABEL: /{_FREE}*[\[({{,=:] ?/
BEFORE_EQUAL: /{_FREE}*[=!]= ?/
BEFORE_VALUE: /{_FREE}*([<>]=|[A-Za-z0-9_\]) ][<>]) ?/ | /{_FREE}*\.({"|".join(VALUE_METHODS)})\(/
    | /{_FREE}*[ ,(]format=/ | /({_FREE}*[ =(])?print\(/
BEFORE_VALUES: /{_FREE}*\.(isin\(\[|between\(|replace\(|split\()/
BEFORE_NAMED: /{_FREE}*[a-z_]=\(/
BEFORE_AGGREGATIONS: /{_FREE}*\.(agg|aggregate|transform)\(\[?/
BEFORE_ENTRIES: /{_FREE}*\.(agg|aggregate)\(\{{/
BEFORE_OPTION: /{_FREE}*[ ,(](method|errors|how|keep)=/ | /{_FREE}*\.(astype|select_dtypes)\(/
TARGET: /[A-Za-z_][A-Za-z0-9_]*\[/
ASSIGN: /\] = /
COMMA: /, ?/
COLON: /: ?\[?/
ENTRY_END: /\]?, ?/
VALUE: /"([^\x00-\x1f\x7f"\\]|\\[nrt"\\.dwsb()+*?$^|]){{0,100}}"/
values: VALUE (COMMA VALUE)*
aggregations: AGGREGATION (COMMA AGGREGATION)*
entry::_: label::_ COLON aggregations
entries::_: entry::_ | entry::_ ENTRY_END entries::_
body::_: ""
    | FREE
    | BEFORE_LABEL label::_ body::_
    | BEFORE_EQUAL EQUAL body::_
    | BEFORE_VALUE VALUE body::_
    | BEFORE_VALUES values body::_
    | BEFORE_NAMED label::_ COMMA AGGREGATION body::_
    | BEFORE_AGGREGATIONS aggregations body::_
    | BEFORE_ENTRIES entries::_ body::_
    | BEFORE_OPTION OPTION body::_
"""


def call_grammar(labels: Sequence[str], call_id: int | None, values: Sequence[str] | None = None) -> str:
    """What the assistant may write: text, or the call's token and then code, or both in this order.

    `labels` are the columns as they are now; they may hold any characters. With `values`, what a column is compared
    with by == or != is one of these (`known_values`). Without a `call_id` there are no calls.
    """
    if call_id is None:
        return "start: TEXT\nTEXT: /(?s:.*)/"
    known = [_quoted(label) for label in dict.fromkeys(labels)]
    new = [(bit, _quoted(name)) for bit, name in enumerate(NEW_LABELS)]
    settled = "true"
    for bit, _ in new:
        settled = f"and({settled}, or(bit_clear({TARGETED + bit}), bit_set({bit})))"
    rules = [
        f"start: TEXT | TEXT? <[{call_id}]> line::0",
        "TEXT: /(?s:.+)/",
        _RULES.strip(),
        f"    | NEXT_LINE line::_ %if {settled}",
        *(f"    | NEXT_LINE line::set_bit({b}) %if and(bit_set({TARGETED + b}), bit_clear({b}))" for b, _ in new),
        "line::_: body::_",
        *(f"    | TARGET {text} ASSIGN body::set_bit({TARGETED + b}) %if bit_clear({b})" for b, text in new),
        "label::_: " + ("KNOWN" if known else '"no column"'),
        *(f"    | {text} %if bit_set({b})" for b, text in new),
        "EQUAL: " + (_any_of(_quoted(value) for value in dict.fromkeys(values)) if values else "VALUE"),
        "AGGREGATION: " + _any_of(map(_quoted, AGGREGATIONS)),
        "OPTION: " + _any_of(map(_quoted, OPTIONS)),
        *(["KNOWN: " + _any_of(known)] if known else []),
    ]
    return "\n".join(rules) + "\n"


def known_values(facts: TableFacts, said: Sequence[str]) -> list[str]:
    """What a column may be compared with: values that the table is known to have, and what was said.

    `said` are the user's words and earlier results. A value that nobody named and that is not in the table is
    invented; one that a person named stays, so that asking for what is not there gives nothing instead of something
    else. What was said in another case than the table has it is left out, and so are the columns' names.
    """
    texts = [column for column in facts.columns if column.kind in ("text", "bool")]
    values = list(dict.fromkeys(value for column in texts for value in column.examples if not value.endswith("...")))
    taken = {value.casefold() for value in values} | {_plain(column.name) for column in facts.columns}
    for text in said:
        for phrase in _phrases(text):
            if phrase.casefold() not in taken and _plain(phrase) not in taken:
                taken.add(phrase.casefold())
                values.append(phrase)
    return values[:MOST_VALUES]


def _plain(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", label.casefold()).strip()


def _phrases(text: str) -> Iterator[str]:
    """Every run of up to six words of a text's beginning, without the punctuation around it."""
    words = list(re.finditer(r"\S+", text[:MOST_SAID]))
    for first in range(len(words)):
        for last in range(first, min(first + LONGEST_PHRASE, len(words))):
            phrase = text[words[first].start() : words[last].end()].strip("\"'.,;:?!()|")
            if phrase and not any(ord(character) < 32 for character in phrase):
                yield phrase


def _any_of(choices: Iterable[str]) -> str:
    return " | ".join(choices)


def _quoted(label: str) -> str:
    """A Lark string that matches the label as Python source. Its escapes are JSON's, which Python reads alike."""
    lone_surrogates = any("\ud800" <= character <= "\udfff" for character in label)  # UTF-8 cannot say them
    return json.dumps(json.dumps(label, ensure_ascii=lone_surrogates))
