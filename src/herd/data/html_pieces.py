"""Blocks of a page from lexbor's serialization of its DOM, which is regular: regular expressions cut it exactly.

Attributes are quoted there and `<` and `>` escaped in values too; only the elements of raw text hold a bare `<`.
Inline elements go first (most of a page's elements are <span>s of highlighted code), links and formulas become
control characters, and one pass over the tags that are left makes pieces, one a block. Pieces become blocks once the
kind of page is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
_LINK_CLOSED, _LINE_BREAK = re.compile("</a>"), re.compile("<br>")  # `re` replaces faster than `str` here
_IMAGE = re.compile(r"<img [^>]*>")
_ALT = re.compile(r' alt="([^"]*)"')
_FILE = (".png", ".gif", ".jpg", ".jpeg", ".svg", ".webp")
_TAG = re.compile(r"<([^ >]+)[^>]*>")
_LINKED = re.compile("\x03([^\x04<]*)\x04?")  # `<` stands between pieces
_FORMULA_TEXT = re.compile("\x05([^\x06]*)\x06")
_HAS_WORD = re.compile(r"\w").search
_NUMBERED = re.compile(r"\s*(\d+)[.:|]?(?: |$)")

# What is never content, whatever it holds. Raw text is cut out whole: its `<` is no tag.
_RAW = re.compile(r"<(style|script|iframe|noembed|noframes|plaintext)(?=[ >]).*?</\1>|<!--.*?-->", re.DOTALL)
_SKIPPED_TAGS = [
    "noscript",
    "template",
    "nav",
    "footer",
    "button",
    "select",
    "textarea",
    "object",
    "canvas",
    "svg",
    "dialog",
    "audio",
    "video",
]
_BLOCK_TAGS = (
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure form "
    "h1 h2 h3 h4 h5 h6 header html legend li main ol p section summary table tbody td tfoot th thead tr ul"
)
_CODE_LINES = frozenset(["/li", "/div", "/p", "/tr", "br"])  # each ends a line inside <pre>


def _roles() -> dict[str, str]:
    """What each tag does to the pieces; those of no role leave their text in its piece."""
    roles = dict.fromkeys(_SKIPPED_TAGS, "skipped") | {"hr": "separates", "pre": "separates"}
    for name in _BLOCK_TAGS.split():
        what = " cell" if name in ("td", "th") else " paragraph" if name in ("p", "div") else ""
        roles |= {name: "opens" + what, "/" + name: "closes" + what}
    return roles


_ROLES = _roles()


def formula(tex: str, display: bool) -> str:
    """A formula as text of the DOM, on a line of its own where it is displayed."""
    tex = tex.strip()
    around = _BREAK if display else ""
    return f"{around}{_FORMULA}{tex}{_FORMULA_END}{around}" if tex else " "


class Pieces(NamedTuple):
    """What becomes blocks, in order: texts with their marks and entities, and the tag of each."""

    texts: list[str]
    tags: list[str]


def cut(markup: str) -> tuple[Pieces, Features]:
    """Pieces of a page in order, and what it is made of; formulas in `markup` are as `formula` writes them."""
    inline_code = sum(markup.count(name) for name in _INLINE_CODE)
    formulas = markup.count('class="math') + markup.count(_FORMULA)
    markup = _RAW.sub("", markup)
    markup = _INLINE.sub("", markup)
    markup = _LINE_BREAK.sub(_BREAK, _LINK_CLOSED.sub(_LINK_END, _LINK_TAG.sub(_LINK, markup)))
    markup = _IMAGE.sub(_image, markup).replace("&nbsp;", " ")
    pieces = _pieces(markup)
    return pieces, _features(pieces, inline_code, formulas)


def _pieces(markup: str) -> Pieces:
    """Cuts at block elements; cells are joined to a row, and paragraphs of a cell stay in it."""
    texts: list[str] = []
    found: list[str] = []  # their tags
    parts: list[str] = []  # of the piece to come
    open_tags = ["p"]  # block elements that we are inside of
    cells = 0  # open <td> and <th>
    linked = False  # inside a link that began in an earlier piece

    def flush(tag: str) -> None:
        nonlocal linked
        text = "".join(parts)
        parts.clear()
        if not text.isspace():
            if linked:
                text = _LINK + text
            if _LINK in text:
                linked = text.rfind(_LINK) > text.rfind(_LINK_END)
            texts.append(text)
            found.append(tag)

    tokens = iter(_TAG.split(markup))
    parts.append(next(tokens))
    tags = zip(tokens, tokens, strict=True)  # each tag with the text after it
    for tag, text in tags:
        role = _ROLES.get(tag)
        if role == "opens" or (role == "opens paragraph" and not cells):
            if parts:
                flush(open_tags[-1])
            open_tags.append(tag)
        elif role == "closes" or (role == "closes paragraph" and not cells):
            if len(open_tags) > 1:
                open_tags.pop()
            if parts:
                flush(tag[1:])
        elif role == "opens cell":
            cells += 1
            open_tags.append(tag)
        elif role == "opens paragraph":
            parts.append(_PARAGRAPH)
            open_tags.append(tag)
        elif role == "closes cell" or role == "closes paragraph":
            cells -= role == "closes cell"
            parts.append(" | " if role == "closes cell" else _PARAGRAPH)
            if len(open_tags) > 1:
                open_tags.pop()
        elif role == "separates":
            if parts:
                flush(open_tags[-1])
            if tag == "pre":
                code, text = _verbatim(tags, text)
                texts.append(code)
                found.append(tag)
        elif role == "skipped":
            text = _after(tag, tags)
        # Most tags are followed by nothing, or the line break between two blocks.
        if parts or (text != "\n" and (text or linked or not role or tag == "tr")):
            parts.append(text)
    if parts:
        flush("p")
    return Pieces(texts, found)


def _verbatim(tags: Iterator[tuple[str, str]], text: str) -> tuple[str, str]:
    """Text of a <pre>, whose lines may be separated by elements, and the text after it."""
    parts = [text]
    for tag, text in tags:
        if tag == "/pre":
            return "".join(parts), text
        if tag in _CODE_LINES and parts[-1] and not parts[-1].endswith("\n"):
            parts.append("\n")
        parts.append(text)
    return "".join(parts), ""


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


def _features(pieces: Pieces, inline_code: int, formulas: int) -> Features:
    code = "".join([text for text, tag in zip(*pieces, strict=True) if tag == "pre"])
    rest = "<".join([text for text, tag in zip(*pieces, strict=True) if tag != "pre"])
    links = "".join(_LINKED.findall(rest))
    in_code = len(code) - code.count(" ")
    whole = in_code + len(rest) - rest.count(" ") - rest.count("<")
    share, rows = max(whole, 1), pieces.tags.count("tr")
    return Features(whole, in_code / share, min(len(links) / share, 1.0), inline_code, formulas, rows)


def _plain(text: str) -> str:
    """Without entities; the serialization writes no others."""
    if "&" in text:
        text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    return text


def blocks(pieces: Pieces, kind: Kind) -> list[Block]:
    """Blocks of a page, in the way of its kind: one of most pieces, none of decoration, several of a long row."""
    # Most pieces hold nothing but text and links. White space and entities go from them all at once: 1 µs a piece.
    simple = [
        text
        if tag != "pre"
        and not (_FORMULA in text or _BREAK in text or _PARAGRAPH in text or _FORMULA_END in text or "<" in text)
        else ""
        for text, tag in zip(pieces.texts, pieces.tags, strict=True)
    ]
    joined = " ".join("<".join([*simple, ""]).replace(_LINK, "").replace(_LINK_END, "").split())
    found: list[Block] = []
    for raw, text, tag in zip(pieces.texts, joined.split("<")[:-1], pieces.tags, strict=True):
        text = _plain(text).strip("| ").rstrip("¶ ")
        if not text:
            found += _marked(raw, tag, kind)
        elif _HAS_WORD(text):  # arrows and bullets alone are decoration
            if _LINK in raw:
                links = _LINKED.findall(raw)
                characters = "".join(links)
                found.append(Block(text, tag, len(characters) - characters.count(" "), len(links)))
            else:
                found.append(Block(text, tag, 0))
    return found


def _marked(text: str, tag: str, kind: Kind) -> list[Block]:
    """Blocks of code, or of a piece with marks."""
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
    if kind == "code" and len(lines) >= 3 and _NUMBERED.match(lines[0]):
        lines = _without_numbers(lines)
    return "\n".join(lines) if any(lines) else ""


def _without_numbers(lines: list[str]) -> list[str]:
    """Code without the numbers of its lines, where each line begins with the next number."""
    found = [_NUMBERED.match(line) for line in lines]
    numbers = [int(match[1]) if match and len(match[1]) < 9 else -1 for match in found]
    if numbers != list(range(numbers[0], numbers[0] + len(lines))) or numbers[0] < 0:
        return lines
    return [line[match.end() :] if match else line for line, match in zip(lines, found, strict=True)]
