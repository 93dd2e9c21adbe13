"""Near-duplicates made of real pages as mirrors make them, and the exact similarity of two texts."""

from __future__ import annotations

import random
import re

import numpy as np
from numpy.typing import NDArray

from herd.data.extract import extract

NEAR = 0.8  # a near-duplicate, as `data.near_duplicate_similarity` has it
Words = NDArray[np.int64]


class Texts:
    """Words of pages as numbers, equal for equal words: what similarities are computed from."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def words(self, content: bytes) -> Words:
        text = extract(content, "html").text
        return self.of(text)

    def of(self, text: str) -> Words:
        known = self._numbers
        found = re.findall(r"\w+", text.lower())
        return np.array([known.setdefault(word, len(known)) for word in found], np.int64)


def jaccard(a: Words, b: Words, size: int = 5) -> float:
    """Exact Jaccard similarity of the sets of word n-grams; nothing is hashed. Texts of fewer words are one n-gram."""
    if min(len(a), len(b)) < size:
        return float(len(a) == len(b) and bool((a == b).all()))
    left, right = len(a) - size + 1, len(b) - size + 1
    codes = np.concatenate([a[:left], b[:right]])
    for offset in range(1, size):  # numbers below 2^31 for the grams so far, extended by one word and made dense again
        following = np.concatenate([a[offset : offset + left], b[offset : offset + right]])
        codes = np.unique(codes << 32 | following, return_inverse=True)[1]
    both = len(np.intersect1d(codes[:left], codes[left:]))
    return both / (len(np.unique(codes)))


_BODY = re.compile(r"<body[^>]*>", re.IGNORECASE)
_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_HIDDEN = re.compile(r"<(script|style|title)\b.*?</\1>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_SEGMENT = re.compile(r">([^<>]{12,})<")
_WORD = re.compile(r"(?<![&\w])[A-Za-z]{3,}(?![\w;])")
_PARAGRAPH = re.compile(r"<p\b[^>]*>(.{80,1500}?)</p>", re.IGNORECASE | re.DOTALL)


def mirrored(html: str, words: Words, texts: Texts, draw: random.Random) -> bytes | None:
    """The page as another host would serve it, at least 0.8 similar and not equal; None where that can't be."""
    rate = draw.uniform(0.01, 0.03)
    whole = framed(html, f"A mirror of the documentation, updated {draw.randrange(1, 28)} February 2026", draw)
    for _ in range(5):
        content = _reworded(_paragraph_moved(whole, draw), rate, draw).encode()
        if NEAR <= jaccard(words, texts.words(content)) < 1:
            return content
        rate /= 2
    return None


def framed(html: str, line: str, draw: random.Random) -> str:
    """The page with another title, a header with links above it and a footer below."""
    names = draw.sample(["Home", "Manuals", "Search", "About", "Contact", "Help", "News", "Archive"], 4)
    links = "".join(f'<li><a href="/{name.lower()}">{name}</a></li>' for name in names)
    html = _TITLE.sub(lambda m: f"<title>{m[1].strip()} - documentation mirror</title>", html, count=1)
    html = _BODY.sub(lambda m: f'{m[0]}<div class="header"><ul>{links}</ul></div>', html, count=1)
    end = html.lower().rfind("</body>")
    footer = f'<div class="footer">{line}</div>'
    return html + footer if end < 0 else html[:end] + footer + html[end:]


def _paragraph_moved(html: str, draw: random.Random) -> str:
    """The page with one paragraph removed, or one added after another."""
    found = list(_PARAGRAPH.finditer(html))
    if len(found) < 8:  # a paragraph of few is too much of the page
        return html
    one = draw.choice(found)
    if draw.random() < 0.5:
        return html[: one.start()] + html[one.end() :]
    other = _WORD.findall(draw.choice(found)[1])
    draw.shuffle(other)
    return html[: one.end()] + f"<p>{' '.join(other)}.</p>" + html[one.end() :]


def _reworded(html: str, rate: float, draw: random.Random) -> str:
    """The page with a share of its visible words replaced by others of its words, singly and in runs of up to five."""
    hidden = [match.span() for match in _HIDDEN.finditer(html)]
    starts = np.array([start for start, _ in hidden] or [len(html)])
    ends = np.array([end for _, end in hidden] or [len(html)])
    body = _BODY.search(html)
    spans: list[tuple[int, int]] = []
    for segment in _SEGMENT.finditer(html, body.end() if body else 0):
        block = int(np.searchsorted(starts, segment.start(1), "right")) - 1
        if block < 0 or ends[block] <= segment.start(1):
            spans += [match.span() for match in _WORD.finditer(html, *segment.span(1))]
    if not spans:
        return html
    chosen: set[int] = set()
    while len(chosen) < rate * len(spans):
        first = draw.randrange(len(spans))
        chosen.update(range(first, min(len(spans), first + draw.choice((1, 3, 5)))))
    pieces, at = [], 0
    for number in sorted(chosen):
        start, end = spans[number]
        other = spans[draw.randrange(len(spans))]
        pieces += [html[at:start], html[other[0] : other[1]]]
        at = end
    return "".join([*pieces, html[at:]])
