"""Content of an HTML page: lexbor's DOM, cleaned by one query, and one pass over its serialization that makes blocks.

Visiting nodes from Python costs 1 µs each, and most nodes are <span>s of highlighted code. lexbor's serialization of
the cleaned DOM is regular (attributes quoted, `<` and `>` escaped in values too), so that regular expressions drop
inline elements and cut it at the others exactly. Code in `pre` keeps every space, tables become rows, and maths keeps
its source: TeX annotations of MathML, MathJax scripts and the alt text of images, where it is often pre-rendered
(paper 3.1.1). Nothing recurses on the page's depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from selectolax.lexbor import LexborHTMLParser

from herd.data import mathml
from herd.data.html_blocks import Block, content_blocks, render
from herd.data.html_bounds import bounded
from herd.data.page_kinds import Features, Kind

MAIN_SHARE = 0.4  # a <main> with less of the page's text than this is a layout's mistake
LONG_ROW = 400  # characters beyond which a row is a layout, and its paragraphs stand alone

# Widely used names for navigation: ARIA roles, Sphinx, DocBook, doxygen, Bootstrap; then numbers of lines, what only
# screen readers say, and duplicates that math renderers make of a formula whose source is kept.
_SKIPPED_CLASSES = (
    "related sphinxsidebar sidebar navbar navheader navfooter navigation breadcrumb breadcrumbs toc footer headerlink "
    "viewcode-link linenos lineno linenodiv gutter rouge-gutter hljs-ln-numbers skip-link sr-only visually-hidden "
    "katex-html MathJax MathJax_Preview mwe-math-fallback-image-inline mwe-math-fallback-image-display"
)
_SKIPPED_ROLES = frozenset("navigation banner contentinfo search menu".split())
_DECIDED = "[role] [hidden] #toc #footer #sidebar aside header form main article math script mjx-container xmp"
_QUERY = ", ".join([f".{name}" for name in _SKIPPED_CLASSES.split()] + _DECIDED.split())
_KEPT_ASIDES = frozenset(["footnote", "footnote-list", "admonition", "note"])

# Control characters stand for what has no text of its own until a block is put together.
_BREAK, _PARAGRAPH, _LINK, _LINK_END, _FORMULA, _FORMULA_END = "\x01\x02\x03\x04\x05\x06"
_MARKS = _BREAK + _PARAGRAPH + _LINK + _LINK_END + _FORMULA + _FORMULA_END
_INLINE = re.compile(
    r"</?(?:abbr|acronym|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|ins|kbd|label|mark|nobr|q|rb|rp|rt|ruby|s|samp"
    r"|small|span|strike|strong|sub|sup|time|tt|u|var|wbr)(?=[ >])[^>]*>"
)
_INLINE_CODE = ("<code", "<tt")
_LINK_TAG = re.compile(r"<a(?=[ >])[^>]*>")
_IMAGE = re.compile(r"<img [^>]*>")
_ALT = re.compile(r' alt="([^"]*)"')
_FILE = (".png", ".gif", ".jpg", ".jpeg", ".svg", ".webp")
_TAG = re.compile(r"<([^ >]+)[^>]*>([^<]*)")
_LINKED = re.compile("\x03([^\x04]*)\x04?")
_FORMULA_TEXT = re.compile("\x05([^\x06]*)\x06")
_HAS_WORD = re.compile(r"\w").search
_NUMBERED = re.compile(r"\s*(\d+)[.:|]?(?: |$)")

# What is never content, whatever it holds. Raw text is cut out whole: its `<` is no tag.
_RAW = re.compile(r"<(style|script|iframe|noembed|noframes|plaintext)(?=[ >]).*?</\1>|<!--.*?-->", re.DOTALL)
_SKIPPED_TAGS = frozenset("noscript template nav footer button select textarea object canvas svg dialog audio video".split())
_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure form "
    "h1 h2 h3 h4 h5 h6 header hr html legend li main ol p section summary table tbody td tfoot th thead tr ul".split()
)
_CELLS = frozenset(["td", "th"])
_PARAGRAPHS = frozenset(["p", "div"])
_CODE_LINES = frozenset(["/li", "/div", "/p", "/tr", "br"])  # each ends a line inside <pre>


class Page(NamedTuple):
    """Content of a page; `verbatim` are its lines of code as pairs [first, after the last)."""

    text: str
    verbatim: tuple[tuple[int, int], ...]
    complete: bool
    kind: Kind
    features: Features


def page_text(html: str) -> Page:
    """Content of a page; of one beyond the bounds of `html_bounds`, the content before they are reached."""
    html, complete = bounded(html)
    for mark in _MARKS:
        if mark in html:
            html = html.replace(mark, " ")
    tree = LexborHTMLParser(html)
    if tree.body is None:
        return Page("", (), complete, "article", Features())
    markup = _clean(tree, tree.body).html or ""
    inline_code = sum(markup.count(name) for name in _INLINE_CODE)
    formulas = markup.count('class="math') + markup.count(_FORMULA)
    pieces = _Pieces()
    pieces.run(markup)
    features = _features(pieces.found, inline_code, formulas)
    kind = features.kind
    blocks = [block for piece in pieces.found for block in _blocks(piece, kind)]
    text, verbatim = render(content_blocks(blocks, kind))
    return Page(text, verbatim, complete, kind, features)


def _clean(tree: LexborHTMLParser, body: Any) -> Any:
    """The element that holds the page's content, with what is no content inside taken out and formulas as text."""
    found = {node.mem_id: node for node in tree.css(_QUERY)}  # in the page's order; the query may name one twice
    nodes = list(found.values())
    root, after = _content_root(nodes, body)
    whole = -1
    # Backwards, so that no node is touched after one that holds it is gone.
    for node in reversed(nodes[after:]):
        tag = node.tag
        if tag == "math":
            display = (node.attributes.get("display") or "") == "block"
            node.replace_with(_formula(mathml.source(node), display))
        elif tag == "script":
            media = node.attributes.get("type") or ""
            if media.startswith("math/"):
                node.replace_with(_formula(node.text(), "mode=display" in media))
        elif tag == "mjx-container":
            spoken = node.css_first("mjx-assistive-mml")
            node.replace_with(spoken.text() if spoken is not None else " ")
        elif tag == "xmp":
            node.replace_with(node.text())
        elif tag == "form":  # some sites wrap the whole page in one
            if whole < 0:
                whole = len(body.text())
            if len(node.text()) < 0.5 * whole:
                node.decompose()
        elif not _stays(node, tag) and node.mem_id != body.mem_id:
            node.decompose()
    return root


def _stays(node: Any, tag: str) -> bool:
    """Whether an element that the query found may be content; what it found by class or id may not."""
    attributes = node.attributes
    names = (attributes.get("class") or "").split()
    if "hidden" in attributes or attributes.get("role") in _SKIPPED_ROLES or attributes.get("id") in _SKIPPED_IDS:
        return False
    if not _SKIPPED_NAMES.isdisjoint(names):
        return False
    if tag == "aside":
        return not _KEPT_ASIDES.isdisjoint(names)
    return tag != "header" or node.css_first("h1") is not None


_SKIPPED_IDS = frozenset(["toc", "footer", "sidebar"])
_SKIPPED_NAMES = frozenset(_SKIPPED_CLASSES.split())


def _content_root(nodes: list[Any], body: Any) -> tuple[Any, int]:
    """The one main element or article where it has the most of the page's text, and how many nodes come up to it."""
    mains = [i for i, node in enumerate(nodes) if node.tag == "main" or node.attributes.get("role") == "main"]
    articles = [i for i, node in enumerate(nodes) if node.tag == "article"]
    for candidates in (mains, articles):
        if len(candidates) == 1:
            node = nodes[candidates[0]]
            if len(node.text()) >= MAIN_SHARE * len(body.text()):
                return node, candidates[0] + 1
    return body, 0


def _formula(tex: str, display: bool) -> str:
    tex = tex.strip()
    around = _BREAK if display else " "
    return f"{around}{_FORMULA}{tex}{_FORMULA_END}{around}" if tex else " "


class _Piece(NamedTuple):
    """What becomes a block, with its marks and entities."""

    text: str
    tag: str


@dataclass(slots=True)
class _Pieces:
    """Cuts the serialization of a page at its block elements."""

    found: list[_Piece] = field(default_factory=list)
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
        tags = iter(_TAG.findall(markup))
        for tag, text in tags:
            if tag in _BLOCKS:
                self._enter(tag)
            elif tag[0] == "/":
                self._leave(tag[1:])
            elif tag == "pre":
                text = self._verbatim(tags, text)
            elif tag in _SKIPPED_TAGS:
                text = _after(tag, tags)
            if text:
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
        self.found.append(_Piece("".join(parts), "pre"))
        return after

    def _flush(self, tag: str) -> None:
        if self.parts:
            text = "".join(self.parts)
            self.parts.clear()
            if not text.isspace():
                if self.linked:
                    text = _LINK + text
                self.linked = text.rfind(_LINK) > text.rfind(_LINK_END)
                self.found.append(_Piece(text, tag))


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
    alt = _ALT.search(match[0])
    text = alt[1].strip() if alt else ""
    return f" {_FORMULA}{text}{_FORMULA_END} " if len(text) > 1 and not text.lower().endswith(_FILE) else ""


def _features(pieces: list[_Piece], inline_code: int, formulas: int) -> Features:
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


def _blocks(piece: _Piece, kind: Kind) -> list[Block]:
    text, tag = piece
    if tag == "pre":
        code = _code(text, kind)
        return [Block(code, "pre", 0)] if code else []
    pieces = [text]
    if _PARAGRAPH in text:
        pieces = text.split(_PARAGRAPH) if len(text) > LONG_ROW else [text.replace(_PARAGRAPH, " ")]
        if len(pieces) > 1:
            tag = "p"
    blocks: list[Block] = []
    for text in pieces:
        links = 0
        formulas = text.count(_FORMULA)
        if formulas:
            text = _with_formulas(text, kind)
        if _LINK in text or _LINK_END in text:
            links = sum(len(link) - link.count(" ") for link in _LINKED.findall(text))
            text = text.replace(_LINK, "").replace(_LINK_END, "")
        text = _plain(text)
        if _BREAK in text:
            text = "\n".join(filter(None, (" ".join(line.split()) for line in text.split(_BREAK))))
        else:
            text = " ".join(text.split())
        text = text.strip("| ").rstrip("¶").rstrip()
        if formulas or _HAS_WORD(text):  # arrows and bullets alone are decoration
            if text:
                blocks.append(Block(text, tag, links, formulas))
    return blocks


def _with_formulas(text: str, kind: Kind) -> str:
    """Formulas in place of their marks; outside reasoning pages an image in a link is a button."""
    if kind == "reasoning":
        return _FORMULA_TEXT.sub(lambda m: m[1].strip().replace("\n", _BREAK), text)
    if _LINK in text:
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
