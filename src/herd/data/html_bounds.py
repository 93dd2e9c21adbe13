"""Bounds on a hostile HTML page, applied before it is parsed, so that parsing takes linear time and memory.

The HTML standard's tree builder has three products in it. It looks through the stack of open elements at every block
(100,000 nested <div>: 15 s), it opens again in each paragraph the formatting elements left open (<p><b id=1><b id=2>
and so on: memory), and it compares each attribute of a tag with all before it (100,000: 14 s). Pages of documentation
nest 60 deep; browsers stop at 512.
"""

from __future__ import annotations

import re

import numpy as np

MAX_CHARACTERS = 20_000_000
MAX_NESTING = 512
MAX_ATTRIBUTES = 10_000  # of one tag, names and values counted: 0.2 s
LARGE = 200_000  # characters below which attributes need no look: at worst 2 s
GAP = 10_000  # characters without a `>`, rare outside scripts
STRIDE = 64_000  # between places where a long tag is looked for: 30,000 attributes at most, 1 s
MANY = 2_000  # tags below which nesting needs no look: at worst two million elements, 0.2 s
MAX_REOPENED = 1_000_000  # tags times the formatting elements open at each
MAX_TAGS = 2_000_000  # a 20 MB page of documentation has about 800,000

# Elements that have no inside, and those which the next one of their kind closes: not closing them is no nesting.
_FLAT = (
    "area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr "
    "p li dt dd option optgroup rp rt td th tr tbody thead tfoot colgroup caption html head body"
)
_FLAT_NAMES = frozenset(_FLAT.split())
_FORMATTING = frozenset(
    ["a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"]
)
# Text that a highlighter or Sphinx wrapped for its colour: a sixth of the tags of documentation's pages each way, gone
# as inline elements anyway, and a quarter of the parser's work. White space alone stays: in a table it would not move.
_HIGHLIGHTED = re.compile(r'<span(?: class="(?:[a-z][a-z0-9]?|pre)")?>([^<\s][^<]*)</span>')
_TAG = re.compile(r"<(/?)([a-z][^\s/>]*)", re.IGNORECASE)
_WHOLE_TAG = re.compile(r"""<[a-z][^>"']*(?:(?:"[^"]*"|'[^']*')[^>"']*)*""", re.IGNORECASE)
_QUOTED_END = re.compile(r"""=\s*["'][^"']*>""")
_ATTRIBUTE = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'/]+)""")
_NAME = 8  # bytes of a name that the quick look compares; longer names are taken as never closed


def bounded(html: str) -> tuple[str, bool]:
    """The page, or its start where it is too long, too deep or of too many tags; and whether it is whole."""
    whole = len(html) <= MAX_CHARACTERS
    html = kept = "".join(_HIGHLIGHTED.split(html[:MAX_CHARACTERS]))
    tags = kept.count("<")
    if tags > MAX_TAGS:
        kept = "<".join(kept.split("<", MAX_TAGS)[:MAX_TAGS])
    if len(kept) > LARGE:
        kept = _not_too_many_attributes(kept)
    whole = whole and len(kept) == len(html)
    if kept.count("<option") > MAX_NESTING:  # a long list of choices takes the parser time in its square
        kept = _without("select", kept)
    if tags > MANY and not _surely_flat(kept):
        # The shapes of a drawing close themselves, which no count of names can tell from nesting.
        plain = _without("svg", kept)
        kept = _not_too_deep(plain)
        whole = whole and len(kept) == len(plain)
    return kept, whole


def _without(name: str, html: str) -> str:
    """The page without an element that is never content."""
    first, *rest = html.split("<" + name)
    return first + "".join(piece.partition(f"</{name}>")[2] for piece in rest)


def _not_too_many_attributes(html: str) -> str:
    """The page up to a tag of more than about MAX_ATTRIBUTES: the parser compares each one with all before it."""
    ends = np.flatnonzero(np.frombuffer(html.encode("utf-8", "replace"), np.uint8) == ord(">"))
    suspect = len(ends) == 0 or int(np.diff(ends, prepend=0, append=len(html)).max()) > GAP
    # A tag of many attributes without such a gap has a `>` in quotes in any 2 GAP of its length.
    if suspect or any(_QUOTED_END.search(html, at, at + 2 * GAP) for at in range(0, len(html), STRIDE)):
        for match in _WHOLE_TAG.finditer(html):
            if len(match[0]) > 2 * MAX_ATTRIBUTES and len(_ATTRIBUTE.findall(match[0])) > MAX_ATTRIBUTES:
                return html[: match.start()]
    return html


def _word(name: str) -> int:
    return int.from_bytes(name.encode()[:_NAME], "little")


def _every_byte(value: int) -> np.uint64:
    return np.uint64(value * 0x0101010101010101)


_FLAT_WORDS = np.sort(np.array([_word(name) for name in _FLAT_NAMES if len(name) < _NAME], np.uint64))
_FORMATTING_WORDS = frozenset(_word(name) for name in _FORMATTING)
_ENDS = b" \n\t\r\f/>"  # what ends a tag's name


def _surely_flat(html: str) -> bool:
    """Whether the sum over names of the most that are open at once is within the bounds (2 ms for 1 MB)."""
    data = np.frombuffer(html.encode("utf-8", "replace") + b" " * (_NAME + 2), np.uint8)
    at = np.flatnonzero(data[: -_NAME - 2] == ord("<")) + 1
    closes = data[at] == ord("/")
    # eight bytes from each position on, as one number each
    names = np.ndarray((len(data) - _NAME + 1,), "<u8", data, strides=(1,))[at + closes]
    ends = np.zeros(len(names), np.uint64)
    for end in _ENDS:  # the high bit of the lowest byte that equals `end`
        differs = names ^ _every_byte(end)
        ends |= (differs - _every_byte(1)) & ~differs & _every_byte(0x80)
    lowest = (ends & (~ends + np.uint64(1))) >> np.uint64(7)
    names = (names | _every_byte(0x20)) & (lowest - np.uint64(1))  # lower case, nothing from the end on
    first = names & np.uint64(0xFF)
    flat = _FLAT_WORDS[np.minimum(np.searchsorted(_FLAT_WORDS, names), len(_FLAT_WORDS) - 1)] == names
    counted = (first >= ord("a")) & (first <= ord("z")) & ~flat & ~(closes & (ends == 0))
    names, closes = names[counted], closes[counted]
    # Most elements hold text alone. Their pairs can go: at any time one of them at most is open.
    pairs = np.flatnonzero((names[:-1] == names[1:]) & ~closes[:-1] & closes[1:])
    left = np.ones(len(names), bool)
    left[pairs] = left[pairs + 1] = False
    names, closes = names[left], closes[left]
    if not len(names):
        return True
    order = np.argsort(names, kind="stable")  # by name, in the page's order
    names, steps = names[order], np.where(closes[order], -1, 1)
    starts = np.flatnonzero(np.concatenate(([True], names[1:] != names[:-1])))
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(names))))
    level = np.cumsum(steps)
    level -= (level - steps)[starts][group]
    # a close of what is not open does nothing: the floor under the level moves down with it, name by name
    apart = group * (2 * len(names))
    floor = np.minimum.accumulate(np.minimum(level, 0) - apart) + apart
    most = np.maximum.reduceat(level - floor, starts)
    formatting = sum(int(m) for m, name in zip(most, names[starts].tolist(), strict=True) if name in _FORMATTING_WORDS)
    return bool(most.sum() < MAX_NESTING and (formatting + 1) * len(at) <= MAX_REOPENED)


def _not_too_deep(html: str) -> str:
    """The page up to where more is open than the bounds; a close counts for its own name only."""
    still_open: dict[str, int] = {}
    depth = formatting = reopened = 0
    for match in _TAG.finditer(html):
        name = match[2].lower()
        step = 0
        if not match[1]:
            reopened += formatting
            if name not in _FLAT_NAMES:
                step = 1
        elif still_open.get(name):
            step = -1
        if step:
            still_open[name] = still_open.get(name, 0) + step
            depth += step
            if name in _FORMATTING:
                formatting += step
        if depth > MAX_NESTING or reopened > MAX_REOPENED:
            return html[: match.start()]
    return html
