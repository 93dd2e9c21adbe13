"""Content of an HTML page: lexbor's DOM, cleaned by one query, and one pass over its serialization that makes blocks.

Visiting nodes from Python costs 1 µs each, and most nodes are <span>s of highlighted code. lexbor's serialization of
the cleaned DOM is regular (attributes quoted, `<` and `>` escaped in values too), so that regular expressions drop
inline elements and cut it at the others exactly. Code in `pre` keeps every space, tables become rows, and maths keeps
its source: TeX annotations of MathML, MathJax scripts and the alt text of images, where it is often pre-rendered
(paper 3.1.1). Nothing recurses on the page's depth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from selectolax.lexbor import LexborHTMLParser

from herd.data import mathml
from herd.data.html_blocks import content_blocks, render
from herd.data.html_bounds import bounded
from herd.data.html_pieces import MARKS, blocks, cut, formula
from herd.data.page_kinds import Features, Kind

MAIN_SHARE = 0.4  # a <main> with less of the page's text than this is a layout's mistake

# Widely used names for navigation: ARIA roles, Sphinx, DocBook, doxygen, Bootstrap; then numbers of lines, what only
# screen readers say, and duplicates that math renderers make of a formula whose source is kept.
_SKIPPED_CLASSES = (
    "related sphinxsidebar sidebar navbar navheader navfooter navigation breadcrumb breadcrumbs toc footer headerlink "
    "viewcode-link linenos lineno gutter rouge-gutter hljs-ln-numbers skip-link sr-only visually-hidden "
    "katex-html MathJax MathJax_Preview"
)
_SKIPPED_ROLES = frozenset(["navigation", "banner", "contentinfo", "search", "menu"])
_SKIPPED_NAMES = frozenset(_SKIPPED_CLASSES.split())
_SKIPPED_IDS = frozenset(["toc", "footer", "sidebar"])
_DECIDED = (
    "[role] [hidden] [id=toc] [id=footer] [id=sidebar] aside header form main article math script mjx-container xmp"
)
_QUERY = ", ".join([f".{name}" for name in _SKIPPED_CLASSES.split()] + _DECIDED.split())
_KEPT_ASIDES = frozenset(["footnote", "footnote-list", "admonition", "note"])


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
    for mark in MARKS:
        if mark in html:
            html = html.replace(mark, " ")
    tree = LexborHTMLParser(html)
    if tree.body is None:
        return Page("", (), complete, "article", Features())
    pieces, features = cut(_clean(tree, tree.body).html or "")
    kind = features.kind
    text, verbatim = render(content_blocks(blocks(pieces, kind), kind))
    return Page(text, verbatim, complete, kind, features)


def _clean(tree: LexborHTMLParser, body: Any) -> Any:
    """The element that holds the page's content, with what is no content inside taken out and formulas as text."""
    found = {node.mem_id: node for node in tree.css(_QUERY)}  # in the page's order; the query may name one twice
    nodes = list(found.values())
    every = [node.attributes for node in nodes]  # a dictionary that is made at each look
    root, after = _content_root(nodes, every, body)
    whole = -1
    # Backwards, so that no node is touched after one that holds it is gone.
    for node, attributes in zip(reversed(nodes[after:]), reversed(every[after:]), strict=True):
        tag = node.tag
        if tag == "math":
            display = (attributes.get("display") or "") == "block"
            node.replace_with(formula(mathml.source(node), display))
        elif tag == "script":
            media = attributes.get("type") or ""
            if media.startswith("math/"):
                node.replace_with(formula(node.text(), "mode=display" in media))
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
        elif not _stays(node, attributes) and node.mem_id != body.mem_id:
            node.decompose()
    return root


def _stays(node: Any, attributes: dict[str, str | None]) -> bool:
    """Whether an element that the query found may be content; what it found by class or id may not."""
    tag = node.tag
    names = (attributes.get("class") or "").split()
    if "hidden" in attributes or attributes.get("role") in _SKIPPED_ROLES or attributes.get("id") in _SKIPPED_IDS:
        return False
    if (tag == "aside" or "sidebar" in names) and node.css_first("pre, .sidebar-title, .topic-title") is not None:
        return True  # Sphinx's directives of these names: boxes beside the text
    if not _SKIPPED_NAMES.isdisjoint(names):
        return False
    if tag == "aside":
        return not _KEPT_ASIDES.isdisjoint(names)
    return tag != "header" or node.css_first("h1") is not None


def _content_root(nodes: list[Any], every: list[dict[str, str | None]], body: Any) -> tuple[Any, int]:
    """The one main element or article where it has the most of the page's text, and how many nodes come up to it."""
    tags = [node.tag for node in nodes]
    mains = [i for i, tag in enumerate(tags) if tag == "main" or every[i].get("role") == "main"]
    articles = [i for i, tag in enumerate(tags) if tag == "article"]
    for candidates in (mains, articles):
        if len(candidates) == 1:
            node = nodes[candidates[0]]
            if len(node.text()) >= MAIN_SHARE * len(body.text()):
                return node, candidates[0] + 1
    return body, 0
