"""How much a document reads like a page of code with its explanation, or like reasoning (paper 3.1.2), 0 to 1.

Where a model judged documents, the linear models distilled from its judgments score. Without judgments two counts do:
code lines among prose, and signs of mathematics among words of argument. These find the plain cases, a tutorial with
listings, a page of theorems; they know no quality, miss reasoning that is told without formulas (law, history) and
argument in languages other than English, and take a formula sheet with a few connectives for a proof. What they
decide is the group of the mix, never whether a document is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.data.language import UNKNOWN
from herd.data.linear import LinearModel
from herd.data.words import Hashes, HashSet, Tokens
from herd.data.words import tokens as tokens_of
from herd.recipe_data import Group

REASONING = 0.5  # a page that scores this much belongs to the group `reasoning`
MAX_LINE = 600  # bytes; a longer line is minified or data, and counts as neither code nor prose
PROSE_WORDS = 5  # a line with so many words and few signs is prose
LEGAL_WORDS = 8  # a line of so many that ends with a semicolon is a clause, unless it is full of signs
CODE_SIGNS, PROSE_SIGNS = 0.15, 0.08  # share of a line's visible bytes that are signs

# Words that argue, in mathematics and the sciences; and common ones that formulas are written with.
ARGUMENT = """theorem lemma proof prove proves proved proving corollary proposition conjecture hence therefore thus
implies follows suppose assume assuming assumption let consider denote denotes satisfies satisfying whence contradiction
induction deduce derive derived derivation equation equations inequality solution solve solving holds iff arbitrary
sufficient conversely equal equals obtain obtained yields gives substituting rearranging"""
MATHEMATICS = """integral derivative matrix vector vectors polynomial prime primes modulo infinite infinity limit
convergence converges continuous coefficient coefficients algebra probability distribution expectation variance sin cos
tan exp sqrt frac sum product lim infty alpha beta gamma delta epsilon theta lambda sigma pi omega mathbb mathrm leq geq
neq cdot forall circle triangle angle radius square root integers divisor divides odd even rational irrational velocity
acceleration force energy mass momentum temperature pressure molecule reaction equilibrium asymptotic logarithm"""
ARGUED = 6  # distinct words of argument that a page of reasoning has; a manual repeats two or three


def _hashes(text: str) -> Hashes:
    return tokens_of(text).words


_KNOWN = HashSet(np.concatenate([_hashes(ARGUMENT), _hashes(MATHEMATICS)]))
_IS_ARGUMENT = np.isin(_KNOWN.hashes, _hashes(ARGUMENT))
_IS_MATHEMATICS = np.isin(_KNOWN.hashes, _hashes(MATHEMATICS))
_IS_VISIBLE = np.ones(256, np.bool_)
_IS_VISIBLE[[9, 10, 11, 12, 13, 32]] = False
_IS_SIGN = np.zeros(256, np.bool_)
_IS_SIGN[list(b"(){}[]<>=+*/|&^%$#@~\\;:_\"'`")] = True
_IS_FORMULA = np.zeros(256, np.bool_)
_IS_FORMULA[list(b"=+^\\")] = True
_ENDS_CODE = np.zeros(256, np.bool_)
_ENDS_CODE[list(b";{}")] = True


class Lines(NamedTuple):
    """Shares of a document's visible bytes."""

    code: float
    prose: float


def lines_of(tokens: Tokens) -> Lines:
    """Bytes in lines of code (signs, `;` or braces at the end, `>>>` and `$ ` at the start) and in lines of prose."""
    data = tokens.data
    starts, ends = tokens.line_edges
    visible = np.flatnonzero(_IS_VISIBLE[data])
    low, high = np.searchsorted(visible, starts), np.searchsorted(visible, ends)
    filled = high > low
    low, high, starts, ends = low[filled], high[filled], starts[filled], ends[filled]
    if not len(low):
        return Lines(0.0, 0.0)
    sizes = (high - low).astype(np.float64)
    first, last = visible[low], visible[high - 1]
    signs = _count(_IS_SIGN[data], starts, ends) / sizes
    word_starts = tokens.word_edges[0]
    words = np.searchsorted(word_starts, ends) - np.searchsorted(word_starts, starts)
    prompt = (data[first] == ord(">")) & (data[np.minimum(first + 2, len(data) - 1)] == ord(">"))
    shell = (data[first] == ord("$")) & (data[np.minimum(first + 1, len(data) - 1)] == ord(" "))
    indented = (first - starts >= 4) & (signs >= PROSE_SIGNS)
    short = ends - starts <= MAX_LINE
    address = _count(_addresses(data), starts, ends) > 0  # signs by the dozen, and no code
    code = (
        short
        & ~address
        & (prompt | shell | (_ENDS_CODE[data[last]] & (words < LEGAL_WORDS)) | (signs >= CODE_SIGNS) | indented)
    )
    prose = short & ~code & (words >= PROSE_WORDS) & (signs < PROSE_SIGNS)
    total = sizes.sum()
    return Lines(float(sizes[code].sum() / total), float(sizes[prose].sum() / total))


def _addresses(data: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where `://` begins."""
    found = data == ord(":")
    found[-2:] = False
    places = np.flatnonzero(found)
    found[places] = (data[places + 1] == ord("/")) & (data[places + 2] == ord("/"))
    return found


def _count(mask: NDArray[np.bool_], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    sums = np.zeros(len(mask) + 1, np.int64)
    np.cumsum(mask, out=sums[1:])
    return sums[ends] - sums[starts]


def code_score(tokens: Tokens, model: LinearModel | None = None) -> float:
    """How much a page is code interleaved with prose: by the distilled model where there is one, else 4 x code x prose.

    That product is 1 for halves, 0.36 for a tenth of code, 0 for a bare listing and for prose alone.
    """
    if model is not None:
        return float(model.score(tokens)[1])
    code, prose = lines_of(tokens)
    return min(1.0, 4 * code * prose)


def reasoning_score(tokens: Tokens, model: LinearModel | None = None) -> float:
    """How much a page is deduction or STEM reasoning: by the distilled model where there is one, else by two densities.

    The geometric mean of mathematics (a tenth of the words of it or formula signs count as full) and of words that
    argue (3% count as full, if six different ones), 0 where either is missing.
    """
    if model is not None:
        return float(model.score(tokens)[1])
    words = tokens.words
    if not len(words):
        return 0.0
    counts = np.bincount(_KNOWN.find(words)[1], minlength=len(_KNOWN.hashes))
    arguing = counts[_IS_ARGUMENT]
    argument = arguing.sum() / len(words) * min(1.0, np.count_nonzero(arguing) / ARGUED)
    mathematics = counts[_IS_MATHEMATICS].sum() / len(words) + tokens.histogram[_IS_FORMULA].sum() / max(
        1, tokens.visible
    )
    return float(np.sqrt(min(1.0, argument / 0.03) * min(1.0, mathematics / 0.1)))


def group_of(kind: str, page: str, language: str, primary_language: str, reasoning: float) -> Group:
    """The group of the mix that a document counts for (paper 3.1.2: code, reasoning, multilingual, the rest general).

    Code is code in any language; a page in another language than the first is multilingual before it is anything else.
    """
    if kind == "code":
        return "code"
    if language not in (primary_language, UNKNOWN, "") and kind != "table":
        return "multilingual"
    if page == "code":
        return "code"
    return "reasoning" if page == "reasoning" or reasoning >= REASONING else "general"
