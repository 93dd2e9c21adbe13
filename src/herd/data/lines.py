"""Line-level de-duplication: lines that stand in many documents are taken out of all of them (paper 3.1.1, ccNet).

A line is its letters: case, digits and punctuation don't count. Verbatim and indented lines are left alone, since a
missing line breaks code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from herd.data.words import Hashes, Tokens

# Shorter lines are headings and terms (NAME, Example:, --quiet): without them, what they head describes nothing. With 3
# instead of 12, git's manual lost the names of its options.
MIN_LINE_LETTERS = 12

Verbatim = Sequence[Sequence[int]]


def line_keys(tokens: Tokens, verbatim: Verbatim) -> Hashes:
    """Distinct hashes of the lines of a document that may be boilerplate."""
    hashes, eligible = _eligible(tokens, verbatim)
    return np.unique(hashes[eligible])


def without_repeated(
    text: str, tokens: Tokens, verbatim: Verbatim, repeated: Hashes, salt: int = 0
) -> tuple[str, list[str]]:
    """The text without the lines whose hash, xor `salt`, is in `repeated` (sorted), and those lines."""
    hashes, eligible = _eligible(tokens, verbatim)
    hashes = hashes ^ np.uint64(salt)
    places = np.minimum(np.searchsorted(repeated, hashes), max(0, len(repeated) - 1))
    bad = eligible & (repeated[places] == hashes) if len(repeated) else np.zeros(len(hashes), np.bool_)
    if not bad.any():
        return text, []
    lines = text.split("\n")
    kept = [line for line, drop in zip(lines, bad.tolist(), strict=True) if not drop]
    return _squeezed(kept), [lines[i] for i in np.flatnonzero(bad)]


def _eligible(tokens: Tokens, verbatim: Verbatim) -> tuple[Hashes, NDArray[np.bool_]]:
    hashes, letters = tokens.line_letters
    starts = tokens.line_edges[0]
    first = tokens.data[np.minimum(starts, max(0, len(tokens.data) - 1))] if len(tokens.data) else starts
    eligible = (letters >= MIN_LINE_LETTERS) & (first != 32) & (first != 9)
    for begin, end in verbatim:
        eligible[begin:end] = False
    return hashes, eligible


def _squeezed(lines: list[str]) -> str:
    """Lines joined, with runs of three and more line breaks that removed lines left behind made two."""
    out: list[str] = []
    blank = 0
    for line in lines:
        blank = 0 if line.strip() else blank + 1
        if blank < 2 and (out or not blank):
            out.append(line)
    return "\n".join(out)
