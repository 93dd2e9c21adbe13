"""A WARC of real documentation pages with labelled near-duplicates, built from Debian packages.

Nothing of it is stored here: `apt-get download` brings the packages, which keep their own licences (named in the
labels). 3,600 response records of about 180 MB of HTML:

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
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curation.mirrors import NEAR, Texts, Words, framed, jaccard, mirrored
from herd.data.cache import folder as cache
from herd.data.debian import Apt, read_package
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
ALIKE, UNLIKE = 0.3, 0.7  # hard negatives lie between
MIN_WORDS = 60  # a page that is edited has more: on shorter ones a new footer is a new text


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
    """The corpus from the user's cache, built where these files have changed or it isn't there; quick: a tenth of it.

    Raises herd.data.readers.Unavailable where a package can't be had.
    """
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("corpus.py", "mirrors.py"))
    version = hashlib.sha256(code).hexdigest()[:12]
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
        content = framed(page.content.decode(), f"Crawled on {later}", draw).encode()
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
