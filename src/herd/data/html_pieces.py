"""Blocks of a page from lexbor's serialization of its DOM, which is regular: regular expressions cut it exactly.

Attributes are quoted there and `<` and `>` escaped in values too; only the elements of raw text hold a bare `<`.
Inline elements go first (most of a page's elements are <span>s of highlighted code), links and formulas become
control characters, and one pass over the tags that are left makes pieces, one a block. Pieces become blocks once the
kind of page is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from herd.data.html_blocks import Block
from herd.data.page_kinds import Features, Kind

LONG_ROW = 400  # characters beyond which a row is a layout, and its paragraphs stand alone

# Control characters stand for what has no text of its own until a block is put together.
_BREAK, _PARAGRAPH, _LINK, _LINK_END, _FORMULA, _FORMULA_END = "\x01\x02\x03\x04\x05\x06"
MARKS = _BREAK + _PARAGRAPH + _LINK + _LINK_END + _FORMULA + _FORMULA_END
_INLINE = re.compile(
    r"</?(?:span|code|em|strong|abbr|acronym|b|bdi|bdo|big|cite|data|del|dfn|font|i|ins|kbd|label|mark|nobr|q|rb|rp|rt|ruby|s|samp"
    r"|small|strike|sub|sup|time|tt|u|var|wbr)(?=[ >])[^>]*>"
)
_INLINE_CODE = ("<code", "<tt")
_LINK_TAG = re.compile(r"<a(?=[ >])[^>]*>")
_IMAGE = re.compile(r"<img [^>]*>")
_ALT = re.compile(r' alt="([^"]*)"')
_FILE = (".png", ".gif", ".jpg", ".jpeg", ".svg", ".webp")
_TAG = re.compile(r"<([^ >]+)[^>]*>")
_LINKED = re.compile("\x03([^\x04]*)\x04?")
_FORMULA_TEXT = re.compile("\x05([^\x06]*)\x06")
_HAS_WORD = re.compile(r"\w").search
_NUMBERED = re.compile(r"\s*(\d+)[.:|]?(?: |$)")

# What is never content, whatever it holds. Raw text is cut out whole: its `<` is no tag.
_RAW = re.compile(r"<(style|script|iframe|noembed|noframes|plaintext)(?=[ >]).*?</\1>|<!--.*?-->", re.DOTALL)
_NO_CONTENT = "noscript template nav footer button select textarea object canvas svg dialog audio video"
_SKIPPED_TAGS = frozenset(_NO_CONTENT.split())
_BLOCK_TAGS = (
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure form "
    "h1 h2 h3 h4 h5 h6 header hr html legend li main ol p section summary table tbody td tfoot th thead tr ul"
)
_BLOCKS = frozenset(_BLOCK_TAGS.split())
_CELLS = frozenset(["td", "th"])
_PARAGRAPHS = frozenset(["p", "div"])
_CODE_LINES = frozenset(["/li", "/div", "/p", "/tr", "br"])  # each ends a line inside <pre>


def formula(tex: str, display: bool) -> str:
    """A formula as text of the DOM, on a line of its own where it is displayed."""
    tex = tex.strip()
    around = _BREAK if display else ""
    return f"{around}{_FORMULA}{tex}{_FORMULA_END}{around}" if tex else " "


class Piece(NamedTuple):
    """What becomes a block, with its marks and entities."""

    text: str
    tag: str


def cut(markup: str) -> tuple[list[Piece], Features]:
    """Pieces of a page in order, and what it is made of; formulas in `markup` are as `formula` writes them."""
    inline_code = sum(markup.count(name) for name in _INLINE_CODE)
    formulas = markup.count('class="math') + markup.count(_FORMULA)
    pieces = _Pieces()
    pieces.run(markup)
    return pieces.found, _features(pieces.found, inline_code, formulas)


@dataclass(slots=True)
class _Pieces:
    """Cuts the serialization of a page at its block elements."""

    found: list[Piece] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    cells: int = 0  # open <td> and <th>
    open: list[str] = field(default_factory=list)  # block tags that we are inside of
    linked: bool = False  # inside a link that began in an earlier piece

    def run(self, markup: str) -> None:
        markup = _RAW.sub("", markup)
        markup = _INLINE.sub("", markup)
        markup = _LINK_TAG.sub(_LINK, markup).replace("</a>", _LINK_END).replace("<br>", _BREAK)
        markup = _IMAGE.sub(_image, markup).replace("&nbsp;", " ")
        parts = self.parts
        tokens = iter(_TAG.split(markup))
        parts.append(next(tokens))
        tags = zip(tokens, tokens, strict=True)  # each tag with the text after it
        for tag, text in tags:
            if tag in _BLOCKS:
                self._enter(tag)
            elif tag[0] == "/":
                self._leave(tag[1:])
            elif tag == "pre":
                text = self._verbatim(tags, text)
            elif tag in _SKIPPED_TAGS:
                text = _after(tag, tags)
            if parts or text != "\n":  # most tags are followed by the line break between two blocks
                parts.append(text)
        self._flush("p")

    def _enter(self, tag: str) -> None:
        if tag == "hr":
            self._flush(self.open[-1] if self.open else "p")
            return
        if tag in _PARAGRAPHS and self.cells:
            self.parts.append(_PARAGRAPH)
        elif tag in _CELLS:
            self.cells += 1
        else:
            self._flush(self.open[-1] if self.open else "p")
        self.open.append(tag)

    def _leave(self, tag: str) -> None:
        """End a block: cells are joined to a row, paragraphs of a cell stay in it."""
        if tag not in _BLOCKS:
            return
        if self.open:
            self.open.pop()
        if tag in _CELLS:
            self.cells -= 1
            self.parts.append(" | ")
        elif tag in _PARAGRAPHS and self.cells:
            self.parts.append(_PARAGRAPH)
        else:
            self._flush(tag)

    def _verbatim(self, tags: Iterator[tuple[str, str]], text: str) -> str:
        """Take in a <pre>, whose lines may be separated by elements; returns the text after it."""
        self._flush(self.open[-1] if self.open else "p")
        parts = [text]
        after = ""
        for tag, text in tags:
            if tag == "/pre":
                after = text
                break
            if tag in _CODE_LINES and parts[-1] and not parts[-1].endswith("\n"):
                parts.append("\n")
            parts.append(text)
        self.found.append(Piece("".join(parts), "pre"))
        return after

    def _flush(self, tag: str) -> None:
        if self.parts:
            text = "".join(self.parts)
            self.parts.clear()
            if not text.isspace():
                if self.linked:
                    text = _LINK + text
                self.linked = text.rfind(_LINK) > text.rfind(_LINK_END)
                self.found.append(Piece(text, tag))


def _after(skipped: str, tags: Iterator[tuple[str, str]]) -> str:
    """Passes over the rest of an element; returns the text after it."""
    depth = 1
    for tag, text in tags:
        if tag == skipped:
            depth += 1
        elif tag[0] == "/" and tag[1:] == skipped:
            depth -= 1
            if not depth:
                return text
    return ""


def _image(match: re.Match[str]) -> str:
    alt = _ALT.search(match[0]) if "mwe-math-fallback" not in match[0] else None  # Wikipedia has the MathML beside it
    text = alt[1].strip() if alt else ""
    return (
        f"{_FORMULA}{text}{_FORMULA_END}"
        if (len(text) > 1 or text.isalpha()) and not text.lower().endswith(_FILE)
        else ""
    )


def _features(pieces: list[Piece], inline_code: int, formulas: int) -> Features:
    code = rest = links = rows = 0
    for text, tag in pieces:
        characters = len(text) - text.count(" ")
        if tag == "pre":
            code += characters
            continue
        rest += characters
        rows += tag == "tr"
        if _LINK in text:
            links += sum(len(link) for link in _LINKED.findall(text))
    whole = max(code + rest, 1)
    return Features(code + rest, code / whole, min(links / whole, 1.0), inline_code, formulas, rows)


def _plain(text: str) -> str:
    """Without entities; the serialization writes no others."""
    if "&" in text:
        text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    return text


def blocks(piece: Piece, kind: Kind) -> list[Block]:
    """Blocks of a piece, in the way of the page's kind: one, none of decoration, several of a long row."""
    text, tag = piece
    if tag == "pre":
        code = _code(text, kind)
        return [Block(code, "pre", 0)] if code else []
    pieces = [text]
    if _PARAGRAPH in text:
        pieces = text.split(_PARAGRAPH) if len(text) > LONG_ROW else [text.replace(_PARAGRAPH, " ")]
        if len(pieces) > 1:
            tag = "p"
    found: list[Block] = []
    for text in pieces:
        links: list[int] = []
        formulas = text.count(_FORMULA)
        if formulas:
            text = _with_formulas(text, kind)
        if _LINK in text or _LINK_END in text:
            links = [len(link) - link.count(" ") for link in _LINKED.findall(text)]
            text = text.replace(_LINK, "").replace(_LINK_END, "")
        text = _plain(text)
        if _BREAK in text:
            text = "\n".join(filter(None, (" ".join(line.split()) for line in text.split(_BREAK))))
        else:
            text = " ".join(text.split())
        text = text.strip("| ").rstrip("¶ ")
        if text and (formulas or _HAS_WORD(text)):  # arrows and bullets alone are decoration
            found.append(Block(text, tag, sum(links), len(links), formulas))
    return found


def _with_formulas(text: str, kind: Kind) -> str:
    """Formulas in place of their marks; outside reasoning pages an image in a link is a button."""
    text = text.replace(_FORMULA_END + _FORMULA, _FORMULA_END + " " + _FORMULA)
    if kind == "reasoning":
        text = _FORMULA_TEXT.sub(lambda m: m[1].strip().replace("\n", _BREAK), text)
    elif _LINK in text:
        text = _LINKED.sub(lambda m: _LINK + _FORMULA_TEXT.sub("", m[1]) + _LINK_END, text)
    return text.replace(_FORMULA, "").replace(_FORMULA_END, "")


def _code(text: str, kind: Kind) -> str:
    for mark in (_LINK, _LINK_END, _FORMULA, _FORMULA_END):
        if mark in text:
            text = text.replace(mark, "")
    text = _plain(text.replace(_BREAK, "\n").replace(_PARAGRAPH, "\n"))
    lines = [line.rstrip() for line in text.expandtabs(8).strip("\n").split("\n")]
    if kind == "code" and len(lines) >= 3:
        lines = _without_numbers(lines)
    return "\n".join(lines) if any(lines) else ""


def _without_numbers(lines: list[str]) -> list[str]:
    """Code without the numbers of its lines, where each line begins with the next number."""
    found = [_NUMBERED.match(line) for line in lines]
    numbers = [int(match[1]) if match and len(match[1]) < 9 else -1 for match in found]
    if numbers != list(range(numbers[0], numbers[0] + len(lines))) or numbers[0] < 0:
        return lines
    return [line[match.end() :] if match else line for line, match in zip(lines, found, strict=True)]
