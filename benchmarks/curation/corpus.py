"""A WARC of real documentation pages with labelled near-duplicates, built from Debian packages.

    python benchmarks/curation/corpus.py FOLDER

Nothing of it is stored here: `apt-get download` brings the packages, which keep their own licences (named in the
labels). 3,600 response records of about 150 MB of HTML:

- pages: a sample of each package by the hash of their paths, at https://docs.example/PACKAGE/PATH;
- mirrors, 12.5% of the records: a page on another host with another title, header and footer, 1 to 3% of its words
  replaced (single words and short runs), and a paragraph removed or added. Edits are halved until the exact Jaccard
  similarity of both texts' word 5-grams is at least 0.8, and it stays below 1;
- copies, byte for byte, on another host; re-crawls, the same address a month later with another footer.

The labels (JSON) hold the pairs with their exact similarity. Two more kinds of pair are found, not made: pages that
are near-duplicates by nature (0.8 and more), and hard negatives, pages of one package that are alike (0.3 to 0.7).
Candidates for both are pairs that share sixteenths of their 5-grams' hashes; the similarity stored is the exact one.
Same packages, seed and extractor: same bytes. Another extractor finds other similarities of the same pages, so whoever
uses a label computes the similarity again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from herd.data.cache import folder as cache
from herd.data.debian import Apt, read_package
from herd.data.extract import extract
from herd.data.readers import Skipped
from herd.data.words import ngrams

SEED = 6
PAGES = {  # how many pages of each package; all where it has fewer
    "python3.11-doc": 531,
    "git-doc": 241,
    "postgresql-doc-15": 500,
    "sqlite3-doc": 400,
    "python-django-doc": 400,
    "python-scipy-doc": 418,
    "python-sympy-doc": 150,
    "python-sklearn-doc": 150,
    "apache2-doc": 150,
    "anarchism": 100,
}
MIRRORS, COPIES, RECRAWLS = 450, 50, 60
HARD_NEGATIVES = 300
CRAWLED = date(2026, 3, 1)
NEAR = 0.8  # a near-duplicate, as `data.near_duplicate_similarity` has it
ALIKE, UNLIKE = 0.3, 0.7  # hard negatives lie between
MIN_WORDS = 60  # a page that is edited has more: on shorter ones a new footer is a new text
Words = NDArray[np.int64]


class Corpus(NamedTuple):
    warc: Path
    labels: dict[str, Any]


class Page(NamedTuple):
    url: str
    day: date
    package: str
    kind: str  # page, mirror, copy or recrawl
    content: bytes
    origin: int = -1  # number of the page that it is made from


def corpus(quick: bool = False) -> Corpus:
    """The corpus from the user's cache, built where this file has changed or it isn't there; quick: a tenth of it.

    Raises herd.data.readers.Unavailable where a package can't be had.
    """
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    warc = cache("benchmarks") / f"curation-{version}{'-quick' if quick else ''}.warc.gz"
    labels = warc.with_suffix(".json")
    if not (warc.exists() and labels.exists()):
        build(warc, labels, 10 if quick else 1)
    return Corpus(warc, json.loads(labels.read_text()))


def build(warc: Path, labels: Path, fraction: int = 1) -> None:
    """Write the WARC and its labels, with one in `fraction` of the documents."""
    pages, licences = originals(fraction)
    texts = Texts()
    words = [texts.words(page.content) for page in pages]
    draw = random.Random(SEED)
    numbers = [number for number, page in enumerate(pages) if len(words[number]) >= MIN_WORDS and _is_utf8(page)]
    draw.shuffle(numbers)
    pairs: list[tuple[int, int, str, float]] = []

    def add(number: int, page: Page, label: str) -> None:
        words.append(texts.words(page.content))
        pairs.append((number, len(pages), label, jaccard(words[number], words[-1])))
        pages.append(page)

    for number in numbers[: COPIES // fraction]:
        add(number, pages[number]._replace(url=_elsewhere(pages[number], "copy.example"), kind="copy"), "copy")
    for number in numbers[COPIES // fraction : (COPIES + RECRAWLS) // fraction]:
        page, later = pages[number], pages[number].day + timedelta(30)
        content = _framed(page.content.decode(), f"Crawled on {later}", draw).encode()
        add(number, page._replace(day=later, kind="recrawl", content=content), "recrawl")
    made = 0  # how many mirrors
    for number in numbers[(COPIES + RECRAWLS) // fraction :]:
        if made == MIRRORS // fraction:
            break
        content = mirrored(pages[number].content.decode(), words[number], texts, draw)
        if content is not None:
            url = _elsewhere(pages[number], f"mirror{draw.randrange(9)}.example")
            add(number, pages[number]._replace(url=url, kind="mirror", content=content), "mirror")
            made += 1
    pages = [page._replace(origin=origin) for page, origin in zip(pages, _origins(len(pages), pairs), strict=True)]
    known = {(a, b) for a, b, _, _ in pairs}
    pairs += [pair for pair in found_pairs(pages, words) if pair[:2] not in known]
    _write(warc, labels, pages, pairs, licences)


def originals(fraction: int) -> tuple[list[Page], dict[str, str]]:
    """Pages of all packages, each package sampled by the hashes of its paths, and the packages' licences."""
    apt, pages, licences = Apt(cache("debian")), [], {}
    for package, wanted in PAGES.items():
        found = [
            one for one in read_package(package, apt.fetch(package), CRAWLED, Skipped())
            if one.media == "html" and (package != "apache2-doc" or one.path.endswith((".en", ".en.html", ".html")))
        ]  # fmt: skip
        found.sort(key=lambda one: hashlib.sha256(f"{SEED}{one.path}".encode()).digest())
        licences[package] = found[0].licence
        for one in found[: wanted // fraction]:
            day = CRAWLED + timedelta(int(hashlib.sha256(one.path.encode()).hexdigest()[:4], 16) % 28)
            pages.append(Page(f"https://docs.example/{package}/{one.path}", day, package, "page", one.content))
    return pages, licences


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
    framed = _framed(html, f"A mirror of the documentation, updated {draw.randrange(1, 28)} February 2026", draw)
    for _ in range(5):
        content = _reworded(_paragraph_moved(framed, draw), rate, draw).encode()
        if NEAR <= jaccard(words, texts.words(content)) < 1:
            return content
        rate /= 2
    return None


def _framed(html: str, line: str, draw: random.Random) -> str:
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


def found_pairs(pages: list[Page], words: list[Words]) -> list[tuple[int, int, str, float]]:
    """Natural near-duplicates and hard negatives among all pages, as (page, page, label, exact similarity)."""
    sketches = []
    for page in words:
        hashes = np.unique(ngrams(page.astype(np.uint64) + np.uint64(1), 5)) if len(page) >= MIN_WORDS else page[:0]
        sketches.append(hashes[hashes % np.uint64(16) == 0].astype(np.uint64))
    flat = np.concatenate(sketches)
    owner = np.repeat(np.arange(len(words)), [len(one) for one in sketches])
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    groups = np.split(owner[order], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
    shared: Counter[tuple[int, int]] = Counter()
    for group in groups:
        members = group.tolist()
        if 2 <= len(members) <= 40:
            shared.update((a, b) for i, a in enumerate(members) for b in members[i + 1 :])
    natural: list[tuple[int, int, str, float]] = []
    negative: list[tuple[int, int, str, float]] = []
    for (a, b), count in sorted(shared.items()):
        if count < 0.3 * (len(sketches[a]) + len(sketches[b]) - count) or pages[a].origin == pages[b].origin:
            continue
        alike = jaccard(words[a], words[b])
        if alike >= NEAR:
            natural.append((a, b, "natural", alike))
        elif (
            ALIKE <= alike < UNLIKE
            and pages[a].kind == pages[b].kind == "page"
            and pages[a].package == pages[b].package
        ):
            negative.append((a, b, "hard-negative", alike))
    negative.sort(key=lambda pair: (-pair[3], pair[:2]))
    return natural + negative[:HARD_NEGATIVES]


def _write(
    warc: Path, labels: Path, pages: list[Page], pairs: list[tuple[int, int, str, float]], licences: dict[str, str]
) -> None:
    """Records in an order drawn by chance in which a page's relatives follow it; labels say where each record ends."""
    lead = [hashlib.sha256(f"{SEED}{pages[page.origin].url}".encode()).digest() for page in pages]
    order = sorted(range(len(pages)), key=lambda number: (lead[number], number))
    records, place = [], {}
    unfinished = warc.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(gzip.compress(_record("warcinfo", "", CRAWLED, "application/warc-fields", b"herd\r\n"), 6, mtime=0))
        start = file.tell()
        for number in order:
            page = pages[number]
            body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
            body += f"Content-Length: {len(page.content)}\r\n\r\n".encode() + page.content
            record = _record("response", page.url, page.day, "application/http; msgtype=response", body)
            file.write(gzip.compress(record, 6, mtime=0))
            place[number] = len(records)
            facts = {"url": page.url, "date": page.day.isoformat(), "package": page.package, "kind": page.kind}
            records.append({**facts, "bytes": len(page.content), "end": file.tell()})
    found = [{"a": place[a], "b": place[b], "label": label, "jaccard": round(alike, 4)} for a, b, label, alike in pairs]
    labels.write_text(json.dumps({"records": records, "pairs": found, "licences": licences, "start": start}))
    unfinished.rename(warc)


def _record(kind: str, url: str, day: date, media: str, body: bytes) -> bytes:
    digest = hashlib.sha256(f"{url}{day}".encode() + body).hexdigest()
    name = "-".join((digest[:8], digest[8:12], "4" + digest[13:16], "8" + digest[17:20], digest[20:32]))
    head = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Date: {day}T12:00:00Z", f"WARC-Record-ID: <urn:uuid:{name}>"]
    # Without the second, which Common Crawl writes, datatrove asks libmagic and loses every other page.
    head += [f"WARC-Target-URI: {url}", "WARC-Identified-Payload-Type: text/html"] if url else []
    head += [f"Content-Type: {media}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body + b"\r\n\r\n"


def contents(found: Corpus, count: int | None = None) -> Iterator[bytes]:
    """HTML of the first records, in order."""
    begin = found.labels["start"]
    with found.warc.open("rb") as file:
        file.seek(begin)
        for record in found.labels["records"][:count]:
            whole = gzip.decompress(file.read(record["end"] - begin))
            begin = record["end"]
            yield whole[-4 - record["bytes"] : -4]


def first_records(found: Corpus, count: int, to: Path, skip: int = 0) -> int:
    """Copy records [skip, skip + count) into a WARC of their own; returns their bytes of HTML."""
    records = found.labels["records"]
    begin = records[skip - 1]["end"] if skip else 0
    chosen = records[skip : skip + count]
    with found.warc.open("rb") as file:
        file.seek(begin)
        to.write_bytes(file.read(chosen[-1]["end"] - begin))
    return sum(record["bytes"] for record in chosen)


def _origins(count: int, pairs: list[tuple[int, int, str, float]]) -> list[int]:
    made_from = {b: a for a, b, _, _ in pairs}
    return [made_from.get(number, number) for number in range(count)]


def _elsewhere(page: Page, host: str) -> str:
    return page.url.replace("docs.example", host)


def _is_utf8(page: Page) -> bool:
    try:
        page.content.decode()
    except UnicodeDecodeError:
        return False
    return True


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    build(target / "documentation.warc.gz", target / "labels.json")
