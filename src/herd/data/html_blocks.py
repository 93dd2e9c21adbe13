"""Blocks of a page, and which of them are content: runs of links are navigation, and so are the headings over them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from herd.data.page_kinds import Kind

NAVIGATION_DENSITY = 0.66  # characters in links over all: a sentence with links stays below, a menu entry above
NAVIGATION_RUN = 3  # as many such blocks in a row are a list of links; fewer may be a cross reference worth keeping
LONG_LINK = 50  # characters of a run's mean link beyond which they are sentences or citations, not entries of a menu
LONG_ENOUGH = 60  # characters outside links that mark where a page's content begins and ends

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_TIGHT = frozenset(["li", "tr", "dt", "dd"])  # blocks that follow one another without a blank line
_DEFINES = frozenset(["tr", "dt"])
# A name of an interface: a.b, a_b, a(), aB, --option. Prose has none of these inside a word.
_IDENTIFIER = re.compile(r"\w[._:]\w|\w\(|[a-z][A-Z]|(?<!\w)--?\w")


@dataclass(slots=True)
class Block:
    """A paragraph, heading, row, entry or piece of code of a page."""

    text: str
    tag: str
    links: int  # characters inside links, without spaces
    linked: int = 0  # links
    formulas: int = 0

    @property
    def level(self) -> int:
        """1 to 6 for a heading, else 0."""
        return _HEADINGS.get(self.tag, 0)


def content_blocks(blocks: list[Block], kind: Kind) -> list[Block]:
    """The blocks that are content, in order."""
    return _without_orphans(_without_navigation(blocks, kind))


def _is_navigation(block: Block, kind: Kind) -> bool:
    if not block.links or block.links <= NAVIGATION_DENSITY * (len(block.text) - block.text.count(" ")):
        return False
    if block.tag == "pre" or block.level:
        return False
    if kind == "reasoning" and block.formulas:
        return False
    # The entries of a reference are links to names: a table or definition list of them is what such a page is about.
    return not (kind == "code" and block.tag in _DEFINES and _IDENTIFIER.search(block.text))


def _without_navigation(blocks: list[Block], kind: Kind) -> list[Block | None]:
    """Blocks with runs of links replaced by None: any run before or after the content, long ones inside it."""
    content = [
        i for i, block in enumerate(blocks) if len(block.text) - block.links >= LONG_ENOUGH or block.tag == "pre"
    ]
    first, last = (content[0], content[-1]) if content else (len(blocks), -1)
    kept: list[Block | None] = list(blocks)
    start = 0
    while start < len(blocks):
        if not _is_navigation(blocks[start], kind):
            start += 1
            continue
        end = start
        while end < len(blocks) and _is_navigation(blocks[end], kind):
            end += 1
        run = blocks[start:end]
        citations = sum(block.links for block in run) > LONG_LINK * sum(block.linked for block in run)
        if not citations and (len(run) >= NAVIGATION_RUN or end <= first or start > last):
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
        if dropped_after and block.level and (not kept or 0 < kept[-1].level <= block.level):
            continue
        kept.append(block)
        dropped_after = False
    return kept[::-1]


def render(blocks: list[Block]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Text of the blocks, and the lines of its code as pairs [first, after the last)."""
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
    return "".join(pieces) + ("\n" if pieces else ""), tuple(verbatim)
