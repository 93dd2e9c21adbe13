"""Rules that tell text worth learning from from the rest: lengths, repetition, odd bytes; a profile for each kind.

Repetition limits are Gopher's (Rae et al. 2021, table A1), which the paper names (3.1.1). Web rules applied to all
alike dropped 80% of technical pages in a pipeline we measured, hence the profiles: code may repeat itself and tables
are numbers. All counts come from one byte histogram and one pass for words (`words.py`).
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import numpy as np

from herd.data.verdict import Verdict
from herd.data.words import Hashes, HashSet, Tokens, distinct, ngrams
from herd.data.words import tokens as hash_words


class Profile(NamedTuple):
    """Limits for one kind of document; None switches a rule off."""

    letters: float | None = None  # least share of letters in what is not white space
    digits: float | None = None  # largest share of digits in it
    word_length: tuple[float, float] | None = None  # mean bytes of a word
    line_length: float | None = None  # largest mean bytes of a non-blank line
    longest_line: float | None = None
    long_words: float | None = None  # largest share of bytes in words of 60 bytes and more
    repeated_lines: float | None = None  # largest share of letters in lines that stood in the document before
    stop_words: int | None = None  # least number of distinct function words of the language
    bullets: float | None = None  # largest share of lines that begin with a bullet
    ellipses: float | None = None  # largest share of lines that end in ...
    hashes: float | None = None  # largest number of # signs and ellipses a word
    top_ngrams: float | None = None  # factor on Gopher's limits on the most frequent n-gram
    repeated_ngrams: float | None = None  # factor on Gopher's limits on repeated n-grams
    generated: bool = False
    placeholder: bool = False  # "lorem ipsum" (C4: Raffel et al. 2020, 2.2)


# Gopher (Rae et al. 2021, A1.1): mean word length 3 to 10, two of eight function words, 90% bullets and 30% ellipses
# of lines, a tenth of a # or ellipsis a word, and 80% of words with a letter; bytes of letters are stricter, so 0.6.
_PROSE = Profile(
    letters=0.6,
    word_length=(3, 10),
    repeated_lines=0.2,
    long_words=0.1,
    stop_words=2,
    bullets=0.9,
    ellipses=0.3,
    hashes=0.1,
    top_ngrams=1,
    repeated_ngrams=1,
    placeholder=True,
)
# Manuals hold tables, options and code: shorter words, more signs. References say the same of one function after
# another: with Gopher's own limits a fifth of Django's, SQLite's and Apache's manuals would go.
_DOCS = _PROSE._replace(
    letters=0.4,
    word_length=(2.5, 12),
    repeated_lines=0.4,
    long_words=0.2,
    stop_words=None,
    hashes=None,
    top_ngrams=1.75,
    repeated_ngrams=3,
)
# By kind of document, and for pages by what is on them (paper 3.1.1: code and reasoning pages have heuristics of their
# own): listings have few letters and repeat themselves, formulas have short words and many signs.
PROFILES = {
    "prose": _PROSE,
    "docs": _DOCS,
    "docs/code": _DOCS._replace(letters=0.3, word_length=(2, 14), repeated_lines=0.5, top_ngrams=2.5),
    "docs/reasoning": _DOCS._replace(letters=0.25, word_length=(1.5, 12), top_ngrams=2.5),
    # StarCoder (Li et al. 2023, 3.1): no line over 1,000 characters, mean below 100, a quarter letters at least.
    "code": Profile(
        letters=0.25,
        digits=0.35,
        line_length=100,
        longest_line=1000,
        long_words=0.2,
        repeated_lines=0.6,
        generated=True,
    ),
    "table": Profile(longest_line=5000),
}
# Function words that any text of a language has, ours: the commonest that no other of these languages shares. Gopher
# names eight of English.
_STOP_WORDS = {
    "en": "the be to of and that have with",
    "de": "der die und das ist nicht mit auch ein zu",
    "es": "el los las que una por con para del y",
    "fr": "le les des est une dans pour que et du",
    "it": "il che di per una con sono della non e",
    "pt": "que os não uma para com dos em do e",
}
TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
LONG_WORD_BYTES = 60
MIN_WORDS_FOR_REPETITION = 50  # shares of a handful of words are noise
# In a comment that starts a line: docstrings speak of things that are generated, and are not.
_GENERATED = re.compile(
    r"^(?:#|//|/?\*)[^\n]{0,120}?(?:\b(?:auto-?|automatically |machine[ -])generated\b|\bgenerated (?:by|from|with)\b"
    r"|\bdo not (?:edit|modify)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_IPSUM = hash_words("ipsum").words
_PLACEHOLDER = re.compile(r"lorem\s+ipsum\s+dolor", re.IGNORECASE)
GENERATED_HEAD = 600  # characters in which a generated file says so


def judge(
    text: str, tokens: Tokens, kind: str, min_bytes: int, max_bytes: int, page: str = "", language: str = ""
) -> Verdict | None:
    """The first rule that drops a document of this kind, or None; the two bounds are on its UTF-8 length.

    `page` is how a page was extracted (article, code, reasoning), `language` the language it was found to be in.
    """
    size = len(tokens.data)
    if size < min_bytes:
        return Verdict("too_short", size, min_bytes)
    if size > max_bytes:
        return Verdict("too_long", size, max_bytes)
    profile = PROFILES.get(f"{kind}/{page}") or PROFILES[kind]
    return (
        _bytes(tokens, profile)
        or _lines(tokens, profile)
        or _line_ends(tokens, profile)
        or _words(tokens, profile)
        or (_stop_words(tokens, profile.stop_words, language) if profile.stop_words else None)
        or (_placeholder(text, tokens) if profile.placeholder else None)
        or (_generated(text) if profile.generated else None)
        or repetition(tokens, profile.top_ngrams, profile.repeated_ngrams)
    )


def _bytes(tokens: Tokens, profile: Profile) -> Verdict | None:
    visible = max(1, tokens.visible)
    if profile.letters is not None and (share := tokens.letters / visible) < profile.letters:
        return Verdict("few_letters", share, profile.letters)
    if profile.digits is not None and (share := tokens.digits / visible) > profile.digits:
        return Verdict("many_digits", share, profile.digits)
    return None


def _lines(tokens: Tokens, profile: Profile) -> Verdict | None:
    starts, ends = tokens.line_edges
    lengths = ends - starts
    lengths = lengths[lengths > 0]
    if profile.longest_line is not None and (longest := float(lengths.max(initial=0))) > profile.longest_line:
        return Verdict("long_line", longest, profile.longest_line)
    if profile.line_length is not None and len(lengths) and (mean := float(lengths.mean())) > profile.line_length:
        return Verdict("long_lines", mean, profile.line_length)
    if profile.repeated_lines is not None:
        hashes, letters = tokens.line_letters
        order = np.argsort(hashes)  # not stable, and five times faster; equal hashes are lines as long
        ordered = hashes[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        total = int(letters.sum())
        share = 1 - float(total - letters[order[again]].sum()) / max(1, total)
        if share > profile.repeated_lines:
            return Verdict("repeated_lines", share, profile.repeated_lines)
    return None


_BULLETS = np.zeros(256, np.bool_)
_BULLETS[[42, 45, 43]] = True  # * - +
_BULLET_SIGN = "•".encode()
_ELLIPSIS = "…".encode()


def _line_ends(tokens: Tokens, profile: Profile) -> Verdict | None:
    """Shares of lines that begin with a bullet or end in an ellipsis, and signs that stand for cut text."""
    if profile.bullets is None or profile.ellipses is None:
        return None
    starts, ends = tokens.line_edges
    full = ends - starts > 3
    if not full.any():
        return None
    data, starts, ends = tokens.data, starts[full], ends[full]
    # What the histogram allows for is counted first: few pages have signs enough for their lines to be looked at.
    count, seen = tokens.histogram, len(starts)
    if count[_BULLETS].sum() + count[_BULLET_SIGN[0]] > profile.bullets * seen:
        bullet = _BULLETS[data[starts]] & (data[starts + 1] == 32)
        bullet |= _stands(data, starts, _BULLET_SIGN)
        if (share := float(bullet.mean())) > profile.bullets:
            return Verdict("bullets", share, profile.bullets)
    most, words = count[46] // 3 + count[_ELLIPSIS[0]], max(1, len(tokens.words))
    if most <= profile.ellipses * seen and (profile.hashes is None or count[35] + most <= profile.hashes * words):
        return None
    cut = _stands(data, ends - 3, b"...") | _stands(data, ends - 3, _ELLIPSIS)
    if (share := float(cut.mean())) > profile.ellipses:
        return Verdict("ellipses", share, profile.ellipses)
    if profile.hashes is not None and (signs := (int(count[35]) + int(cut.sum())) / words) > profile.hashes:
        return Verdict("signs", signs, profile.hashes)
    return None


def _stands(data: np.ndarray, at: np.ndarray, sign: bytes) -> np.ndarray:
    """Where three given bytes stand."""
    return (data[at] == sign[0]) & (data[at + 1] == sign[1]) & (data[at + 2] == sign[2])


@cache
def _stop_words_of(language: str) -> HashSet | None:
    words = _STOP_WORDS.get(language)
    return HashSet(hash_words(words).words) if words else None


def _stop_words(tokens: Tokens, least: int, language: str) -> Verdict | None:
    known = _stop_words_of(language)
    if known is None or len(tokens.words) < MIN_WORDS_FOR_REPETITION:
        return None
    found = len(distinct(known.find(tokens.words)[1]))
    return Verdict("few_stop_words", found, least) if found < least else None


def _placeholder(text: str, tokens: Tokens) -> Verdict | None:
    # No-break spaces count as letters in `tokens`; elsewhere the word stands alone, and few texts have it.
    if "\xa0" not in text and not (tokens.words == _IPSUM).any():
        return None
    return Verdict("placeholder_text", 1.0, 0.0) if _PLACEHOLDER.search(text) else None


def _words(tokens: Tokens, profile: Profile) -> Verdict | None:
    starts, ends = tokens.word_edges
    lengths = ends - starts
    if profile.long_words is not None:
        share = float(lengths[lengths >= LONG_WORD_BYTES].sum()) / max(1, tokens.visible)
        if share > profile.long_words:
            return Verdict("long_words", share, profile.long_words)
    if profile.word_length is not None:
        mean = float(lengths.mean()) if len(lengths) else 0.0
        low, high = profile.word_length
        if mean < low:
            return Verdict("short_words", mean, low)
        if mean > high:
            return Verdict("long_words_on_average", mean, high)
    return None


def _generated(text: str) -> Verdict | None:
    return Verdict("generated", 1.0, 0.0) if _GENERATED.search(text, 0, GENERATED_HEAD) else None


def repetition(tokens: Tokens, top: float | None, repeated: float | None) -> Verdict | None:
    """Gopher's limits on the most frequent n-gram (2 to 4 words) and on repeated ones (5 to 10), by characters.

    `top` and `repeated` are factors on the limits; None switches them off.
    """
    words = tokens.words
    if len(words) < MIN_WORDS_FOR_REPETITION:
        return None
    starts, ends = tokens.word_edges
    lengths = (ends - starts).astype(np.float64)
    total = float(lengths.sum())
    for size, gopher in TOP_NGRAMS if top is not None else ():
        limit = gopher * (top or 1)
        share = _top_share(words, lengths, size) / total
        if share > limit:
            return Verdict(f"top_{size}gram", share, limit)
        # A frequent 4-gram holds a 2-gram that is as frequent, and about half as long.
        if share < TOP_NGRAMS[-1][1] * (top or 1) / 4:
            break
    for size, gopher in DUPLICATE_NGRAMS if repeated is not None else ():
        limit = gopher * (repeated or 1)
        share = _repeated_share(words, lengths, size) / total
        if share > limit:
            return Verdict(f"duplicate_{size}gram", share, limit)
        if share < DUPLICATE_NGRAMS[-1][1] * (repeated or 1):  # words in repeated 10-grams are in repeated 5-grams too
            break
    return None


def _top_share(words: np.ndarray, lengths: np.ndarray, size: int) -> float:
    """Characters in the most frequent n-gram, if it stands at least twice."""
    grams = ngrams(words, size)
    ordered = np.sort(grams)  # without places it is vectorised, which np.unique with places is not
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    counts = np.diff(starts, append=len(ordered))
    best = int(counts.argmax())
    if counts[best] < 2:
        return 0.0
    first = int((grams == ordered[starts[best]]).argmax())
    return float(counts[best] * lengths[first : first + size].sum())


def _repeated_share(words: np.ndarray, lengths: np.ndarray, size: int) -> float:
    """Characters of words covered by n-grams that stood in the document before."""
    again = _repeats(ngrams(words, size))
    if not len(again):
        return 0.0
    covered = np.zeros(len(words), np.bool_)
    for offset in range(size):
        covered[again + offset] = True
    return float(lengths[covered].sum())


def _repeats(grams: Hashes) -> np.ndarray:
    """Indices of n-grams that stood before. Only those that stand twice are looked up: few, in most documents."""
    ordered = np.sort(grams)
    twice = HashSet(ordered[1:][ordered[1:] == ordered[:-1]])
    places, which = twice.find(grams)
    first = np.empty(len(twice.hashes), np.int64)
    first[which[::-1]] = places[::-1]  # the last value that is set stays: the first place
    return places[first[which] != places]
