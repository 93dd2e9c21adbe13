"""Content of an HTML page: one walk over the lexbor DOM that makes blocks, and a classifier that keeps some of them.

Navigation is told from content by the role and tag of an element and by the link density of runs of blocks. Code in
`pre` keeps every space, tables become rows, and maths keeps its source: TeX annotations of MathML, MathJax scripts
and the alt text of images, where it is often pre-rendered (paper 3.1.1). Nothing recurses on the page's depth.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from selectolax.lexbor import LexborHTMLParser

MAX_CHARACTERS = 20_000_000
MAX_NODES = 2_000_000  # a 20 MB page of documentation has about 800,000
# Parsing takes time in the square of the nesting (100,000 nested <div>: 15 s), and reopened formatting elements take
# memory so; pages of documentation nest 60 deep.
MAX_NESTING = 1_000

# What is never content, whatever it holds.
_NO_CONTENT = (
    "style noscript template nav footer button select textarea input iframe object canvas svg head dialog audio video"
)
_SKIPPED_TAGS = frozenset(_NO_CONTENT.split())
# Widely used names for navigation: ARIA roles, Sphinx, DocBook, doxygen, Bootstrap; and duplicates that math
# renderers make of a formula whose source is kept.
_SKIPPED = (
    "[role=navigation], [role=banner], [role=contentinfo], [role=search], [role=menu], [hidden], .related, "
    ".sphinxsidebar, .sidebar, .navbar, .navheader, .navfooter, .navigation, .breadcrumb, .breadcrumbs, .toc, "
    "#toc, .footer, #footer, #sidebar, .headerlink, .viewcode-link, .linenos, .lineno, .linenodiv, .gutter, "
    ".skip-link, .sr-only, .visually-hidden, .katex-html, .MathJax, .MathJax_Preview, mjx-container"
)
_ASIDES = "aside:not(.footnote):not(.footnote-list):not(.admonition):not(.note)"
_BLOCK_TAGS = (
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure form "
    "h1 h2 h3 h4 h5 h6 header hr html legend li main ol p section summary table tbody td tfoot th thead tr ul"
)
_BLOCKS = frozenset(_BLOCK_TAGS.split())
_TIGHT = frozenset(["li", "tr", "dt", "dd"])  # blocks that follow one another without a blank line
_NESTING_TAGS = (
    "address article aside b big blockquote button center code details dialog dir div dl em fieldset figure font "
    "footer form header i main menu nav nobr ol pre s section small span strike strong sub summary sup table tt "
    "u ul"
)
_NESTING = re.compile(rf"<(/?)({'|'.join(_NESTING_TAGS.split())})(?=[\s/>])", re.IGNORECASE)
_HAS_WORD = re.compile(r"\w").search
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CELLS = frozenset(["td", "th"])
_PARAGRAPHS = frozenset(["p", "div"])
_BREAK = "\x01"  # stands for <br> until whitespace has been collapsed
_PARAGRAPH = "\x02"  # stands for a paragraph inside a cell until the row's length is known

NAVIGATION_DENSITY = 0.66  # characters in links over all: a sentence with links stays below, a menu entry above
NAVIGATION_RUN = 3  # as many such blocks in a row are a list of links; fewer may be a cross reference worth keeping
MAIN_SHARE = 0.4  # a <main> with less of the page's text than this is a layout's mistake
LONG_ROW = 400  # characters beyond which a row is a layout, and its paragraphs stand alone
LONG_ENOUGH = 60  # characters outside links that mark where a page's content begins and ends


class Page(NamedTuple):
    """Content of a page; `verbatim` are its lines of code as pairs [first, after the last)."""

    text: str
    verbatim: tuple[tuple[int, int], ...]
    complete: bool


@dataclass(slots=True)
class Block:
    text: str
    tag: str
    links: int  # characters inside links

    @property
    def level(self) -> int:
        return _HEADINGS.get(self.tag, 0)

    @property
    def navigation(self) -> bool:
        return (
            self.tag != "pre" and not self.level and self.links > NAVIGATION_DENSITY * len(self.text.replace(" ", ""))
        )


def page_text(html: str) -> Page:
    """Content of a page of at most 20 million characters; the rest of a longer one is not looked at."""
    whole = len(html)
    html = _not_too_deep(html[:MAX_CHARACTERS])
    tree = LexborHTMLParser(html)
    if tree.body is None:
        return Page("", (), True)
    root, skipped = _content_root(tree, tree.body), _skipped_nodes(tree, tree.body)
    breaks = tree.css_first("pre br") is not None or tree.css_first("pre .lineno, pre .linenos") is not None
    walk = _Walk(skipped, breaks)
    complete = walk.run(root)
    return _render(_without_orphans(_without_navigation(walk.blocks)), complete and len(html) == whole)


def _not_too_deep(html: str) -> str:
    """The page up to where more elements are open than MAX_NESTING; elements that close themselves don't count."""
    if html.count("<") <= MAX_NESTING:
        return html
    still_open: dict[str, int] = dict.fromkeys(_NESTING_TAGS.split(), 0)
    depth = 0
    for match in _NESTING.finditer(html):
        name = match[2].lower()
        if not match[1]:
            still_open[name] += 1
            depth += 1
            if depth > MAX_NESTING:
                return html[: match.start()]
        elif still_open[name]:
            still_open[name] -= 1
            depth -= 1
    return html


def _content_root(tree: LexborHTMLParser, body: Any) -> Any:
    for selector in ("main, [role=main]", "article"):
        found = tree.css(selector)
        if len(found) == 1 and len(found[0].text()) >= MAIN_SHARE * len(body.text()):
            return found[0]
    return body


def _skipped_nodes(tree: LexborHTMLParser, body: Any) -> set[int]:
    skipped = {node.mem_id for node in tree.css(_SKIPPED)} | {node.mem_id for node in tree.css(_ASIDES)}
    skipped |= {node.mem_id for node in tree.css("header") if node.css_first("h1") is None}
    forms = tree.css("form")
    if forms:  # some sites wrap the whole page in a form
        whole = len(body.text())
        skipped |= {node.mem_id for node in forms if len(node.text()) < 0.5 * whole}
    return skipped - {body.mem_id}


@dataclass(slots=True)
class _Walk:
    """Walks the DOM in document order and cuts it into blocks."""

    skipped: set[int]
    careful: bool  # some <pre> holds line breaks or line numbers as elements
    blocks: list[Block] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    links: int = 0
    depth: int = 0  # of <a> elements
    cells: int = 0  # of <td> and <th> elements
    open: list[str] = field(default_factory=list)  # block tags that we are inside of

    def run(self, root: Any) -> bool:
        """Fill `blocks`; false where the page has more nodes than the bound."""
        end, node, nodes = root.mem_id, root.first_child, 0
        while node is not None:
            nodes += 1
            if nodes > MAX_NODES:
                break
            inside = self._enter(node)
            if inside is not None:
                node = inside
                continue
            while True:  # on to the next node in document order, leaving elements on the way
                following = node.next
                if following is not None:
                    node = following
                    break
                node = node.parent
                if node is None or node.mem_id == end:
                    node = None
                    break
                self._leave(node.tag)
        self._flush("p")
        return nodes <= MAX_NODES

    def _enter(self, node: Any) -> Any:
        """Take a node in; returns its first child where its inside is to be walked."""
        tag = node.tag
        if tag == "-text":
            text = node.text_content
            self.parts.append(text)
            if self.depth:
                self.links += len(text) - text.count(" ")
            return None
        if tag in _SKIPPED_TAGS or tag[0] in "-!" or node.mem_id in self.skipped:
            return None
        if tag in _BLOCKS:
            child = node.first_child
            if child is None:
                self._close(tag)
            else:
                if tag in _PARAGRAPHS and self.cells:
                    self.parts.append(_PARAGRAPH)
                elif tag not in _CELLS:
                    self._flush(self.open[-1] if self.open else "p")
                self.cells += tag in _CELLS
                self.open.append(tag)
            return child
        if tag == "pre":
            self._flush(self.open[-1] if self.open else "p")
            if text := (_careful_text(node, self.skipped) if self.careful else node.text()):
                self._verbatim(text)
            return None
        if tag in ("br", "img", "math", "script"):
            if tag != "img" or not self.depth:  # an image in a link is a button
                self.parts.append(_special(tag, node))
            return None
        child = node.first_child
        self.depth += tag == "a" and child is not None
        return child

    def _leave(self, tag: str) -> None:
        if tag == "a":
            self.depth -= 1
        elif tag in _BLOCKS:
            self.open.pop()
            self.cells -= tag in _CELLS
            self._close(tag)

    def _close(self, tag: str) -> None:
        """End a block: cells are joined to a row, paragraphs of a cell stay in it."""
        if tag in _CELLS:
            self.parts.append(" | ")
        elif tag in _PARAGRAPHS and self.cells:
            self.parts.append(_PARAGRAPH)
        else:
            self._flush(tag)

    def _verbatim(self, text: str) -> None:
        lines = [line.rstrip() for line in text.expandtabs(8).strip("\n").split("\n")]
        if any(lines):
            self.blocks.append(Block("\n".join(lines), "pre", 0))

    def _flush(self, tag: str) -> None:
        if not self.parts:
            return
        text, links = "".join(self.parts), self.links
        self.parts, self.links = [], 0
        pieces = [text]
        if _PARAGRAPH in text:
            pieces = text.split(_PARAGRAPH) if len(text) > LONG_ROW else [text.replace(_PARAGRAPH, " ")]
        for piece in pieces:
            lines = (
                [" ".join(line.split()) for line in piece.split(_BREAK)]
                if _BREAK in piece
                else [" ".join(piece.split())]
            )
            whole = "\n".join(line for line in lines if line).strip("| ").rstrip("¶").rstrip()
            if _HAS_WORD(whole):  # arrows and bullets alone are decoration
                share = links if len(pieces) == 1 else links * len(piece) // len(text)
                self.blocks.append(Block(whole, tag if len(pieces) == 1 else "p", share))


def _special(tag: str, node: Any) -> str:
    if tag == "br":
        return _BREAK
    if tag == "img":
        alt = (node.attributes.get("alt") or "").strip()
        return (
            f" {alt} " if len(alt) > 1 and not alt.lower().endswith((".png", ".gif", ".jpg", ".jpeg", ".svg")) else ""
        )
    if tag == "script":
        return f" {node.text()} " if (node.attributes.get("type") or "").startswith("math/") else ""
    source = node.css_first("annotation[encoding='application/x-tex']") or node.css_first("annotation")
    return f" {source.text().strip()} " if source is not None else f" {node.text()} "


def _careful_text(pre: Any, skipped: set[int]) -> str:
    """Text of a <pre> whose lines may be separated by <br> and numbered by elements."""
    parts: list[str] = []
    end, node = pre.mem_id, pre.first_child
    while node is not None:
        inside = None
        if node.tag == "-text":
            parts.append(node.text_content)
        elif node.tag == "br":
            parts.append("\n")
        elif node.mem_id not in skipped:
            inside = node.first_child
        while inside is None and node is not None:
            inside = node.next
            if inside is None:
                node = node.parent
                if node is None or node.mem_id == end:
                    return "".join(parts)
        node = inside
    return "".join(parts)


def _without_navigation(blocks: list[Block]) -> list[Block | None]:
    """Blocks with runs of links replaced by None: any run before or after the content, long ones inside it."""
    content = [
        i for i, block in enumerate(blocks) if len(block.text) - block.links >= LONG_ENOUGH or block.tag == "pre"
    ]
    first, last = (content[0], content[-1]) if content else (len(blocks), -1)
    kept: list[Block | None] = list(blocks)
    start = 0
    while start < len(blocks):
        if not blocks[start].navigation:
            start += 1
            continue
        end = start
        while end < len(blocks) and blocks[end].navigation:
            end += 1
        if end - start >= NAVIGATION_RUN or end <= first or start > last:
            kept[start:end] = [None] * (end - start)
        start = end
    return kept


def _without_orphans(blocks: list[Block | None]) -> list[Block]:
    """Drops a heading whose section is gone: what followed it was navigation, and another heading comes next."""
    kept: list[Block] = []
    dropped_after = False
    for block in reversed(blocks):
        if block is None:
            dropped_after = True
            continue
        if block.level and dropped_after and (not kept or 0 < kept[-1].level <= block.level):
            continue
        kept.append(block)
        dropped_after = False
    return kept[::-1]


def _render(blocks: list[Block], complete: bool) -> Page:
    pieces: list[str] = []
    verbatim: list[tuple[int, int]] = []
    line = 0
    for number, block in enumerate(blocks):
        if number:
            tight = block.tag in _TIGHT and blocks[number - 1].tag in _TIGHT
            pieces.append("\n" if tight else "\n\n")
            line += 1 if tight else 2
        lines = block.text.count("\n")
        if block.tag == "pre":
            verbatim.append((line, line + lines + 1))
        pieces.append(block.text)
        line += lines
    return Page("".join(pieces) + ("\n" if pieces else ""), tuple(verbatim), complete)
