"""Which kind of page it is, by features of its DOM: code and reasoning pages are extracted otherwise (paper 3.1.1)."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["", "article", "code", "reasoning"]

CODE_SHARE = 0.2  # of the characters in <pre>
INLINE_CODE = 8.0  # elements in 1,000 characters: a reference's tables and lists, where prose about code has 1 to 5
FORMULAS = 2.0  # in 1,000 characters
ENOUGH_FORMULAS = 3  # a page with fewer is about something else


class Features(NamedTuple):
    """What a page is made of; shares are of its characters other than white space."""

    characters: int = 0
    code: float = 0.0  # share in <pre>
    links: float = 0.0  # share in <a>
    inline_code: int = 0  # elements
    formulas: int = 0
    tables: int = 0  # rows

    @property
    def kind(self) -> Kind:
        """The variant of extraction for the page; formulas win, since what surrounds them often is in <pre>."""
        thousands = max(self.characters, 500) / 1000
        if self.formulas >= max(ENOUGH_FORMULAS, FORMULAS * thousands):
            return "reasoning"
        if self.code >= CODE_SHARE or self.inline_code >= INLINE_CODE * thousands:
            return "code"
        return "article"
