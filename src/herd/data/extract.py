"""Text of a document: HTML by a block classifier of our own, Markdown without its markers, the rest decoded.

Extraction keeps what a reader of the page would call its content (paper 3.1.1: precision of boilerplate removal and
recall of content at once). HTML is in `html.py`; this file decodes bytes, strips Markdown (found harmful next to plain
text, paper 3.1.1) and is the one entry for every kind of media.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

from herd.data.html import page_text
from herd.data.page_kinds import Features, Kind

_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.MULTILINE)
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset=["']?([-\w]+)""", re.IGNORECASE)
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Extracted(NamedTuple):
    """Text of a document, the encoding its bytes were in, and which lines are verbatim (code, not prose).

    `verbatim` holds pairs [first line, line after the last) that line-level cleaning must leave alone. `complete` is
    false where a bound on the size of a page cut it short. `page` is the variant of extraction that a page of HTML
    got by its `features`; "" for other media.
    """

    text: str
    encoding: str = "utf-8"
    verbatim: tuple[tuple[int, int], ...] = ()
    complete: bool = True
    page: Kind = ""
    features: Features = Features()


def extract(content: bytes, media: str) -> Extracted:
    """Text of `content`; raises UnicodeError where the bytes are no text in any encoding they may be in."""
    text, encoding = decode(content, media)
    if media == "html":
        page = page_text(text)
        return Extracted(page.text, encoding, page.verbatim, page.complete, page.kind, page.features)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if media == "markdown":
        text, verbatim = strip_markdown(text)
        return Extracted(text, encoding, verbatim)
    return Extracted(text.strip("\n") + "\n" if text.strip() else "", encoding)


def decode(content: bytes, media: str) -> tuple[str, str]:
    """Text and the encoding that gave it: a byte order mark, UTF-8, the encoding declared inside, cp1252.

    Raises UnicodeError for bytes that are no text (a zero byte, or not even cp1252).
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding), encoding
    if b"\0" in content:
        raise UnicodeError("a zero byte")
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    found = (_CHARSET if media == "html" else _COOKIE).search(content[:4096])
    for encoding in (found[1].decode("ascii", "replace") if found else "", "cp1252"):
        try:
            name = codecs.lookup(encoding).name
            if name != "utf-8":
                text = content.decode(name)
                text.encode()  # a lone surrogate is no text: it could not be written again
                return text, name
        except (LookupError, UnicodeError):
            continue
    raise UnicodeError("neither UTF-8, nor the encoding it declares, nor cp1252")


def is_text(content: bytes, media: str) -> bool:
    """Whether `decode` will give text."""
    try:
        decode(content, media)
    except UnicodeError:
        return False
    return True


_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_RULE = re.compile(r"^\s*([-*_=]\s*){3,}$|^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*$")
_IMAGE = re.compile(r"!\[([^\[\]\n]{0,300})\]\([^()\n]{0,2000}\)")  # bounded, as are the others: linear in the line
_BADGES = re.compile(r"^\s*(\[?!\[[^\[\]\n]{0,300}\]\([^()\n]{0,2000}\)(\]\([^()\n]{0,2000}\))?\s*)+$")
_LINK = re.compile(r"\[([^\[\]\n]{1,300})\](?:\([^()\n]{0,2000}\)|\[[^\[\]\n]{0,300}\])")
_DEFINITION = re.compile(r"^\s*\[[^\]\n]+\]:\s+\S+.*$")
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^>\s]+)>")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,300}>|<!--.{0,2000}?-->")
_LINE_START = re.compile(r"^(\s*)(?:>\s?)*(?:#{1,6}\s+|[-*+]\s+(?:\[[ xX]\]\s+)?)?")
_EMPHASIS = re.compile(
    r"(?<![\w*])(\*{1,3})(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])"
    r"|(?<![\w_])(_{1,3})(?=\S)([^_\n]+?)(?<=\S)\3(?![\w_])"
)
_CODE = re.compile(r"(`+)(.+?)\1")


def strip_markdown(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Markdown without markers, and the lines that were fenced code (kept as they are, without the fence)."""
    lines: list[str] = []
    verbatim: list[tuple[int, int]] = []
    fence, opened = "", 0
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                verbatim.append((opened, len(lines)))
                fence = ""
            else:
                lines.append(line)
        elif mark:
            fence, opened = mark[1], len(lines)
        elif line.startswith(("    ", "\t")) and (
            not lines or not lines[-1].strip() or lines[-1].startswith(("    ", "\t"))
        ):
            lines.append(line)  # an indented code block
        elif not (_RULE.match(line) or _BADGES.match(line) or _DEFINITION.match(line)):
            lines.append(_plain(line))
    if fence:
        verbatim.append((opened, len(lines)))
    return _squeeze(lines, verbatim)


def _plain(line: str) -> str:
    line = _LINE_START.sub(lambda m: m[1], line, count=1)
    pieces = _CODE.split(line)  # text, ticks, code, text, ...: what is in backticks has no markers inside
    for i in range(0, len(pieces), 3):
        piece = _LINK.sub(r"\1", _IMAGE.sub(r"\1", pieces[i]))
        piece = _TAG.sub("", _AUTOLINK.sub(r"\1", piece))
        pieces[i] = _EMPHASIS.sub(lambda m: m[2] or m[4], piece)
    return "".join(piece for i, piece in enumerate(pieces) if i % 3 != 1).rstrip()


def _squeeze(lines: list[str], verbatim: list[tuple[int, int]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Lines as text without runs of blank lines outside verbatim parts; the parts move along."""
    kept: list[str] = []
    moved: list[tuple[int, int]] = []
    inside = {number for first, last in verbatim for number in range(first, last)}
    starts = {first: last - first for first, last in verbatim}
    for number, line in enumerate(lines):
        if number in starts:
            moved.append((len(kept), len(kept) + starts[number]))
        if number in inside or line.strip() or (kept and kept[-1].strip()):
            kept.append(line)
    text = "\n".join(kept).rstrip()
    return (text + "\n" if text else ""), tuple(moved)
