"""Web archives: what is read of healthy ones, and that damage to a record loses that record only."""

import gzip
import io
import random
import zlib
from datetime import date
from pydoc_data.topics import topics

import pytest
from fastwarc.stream_io import GzipWriter
from fastwarc.warc import WarcRecord, WarcRecordType

from herd.data import files
from herd.data.charsets import to_utf8
from herd.data.documents import RawDocument
from herd.data.extract import decode
from herd.data.readers import Skipped
from herd.data.warc import read_warc

TODAY = date(2026, 1, 2)
PAGES = [f"<html><body><pre>{topics[name]}</pre></body></html>" for name in sorted(topics)[:8]]


def warc(block: bytes, length: int | None = None, number: int = 0, **headers: str) -> bytes:
    """One record; `length` is what its header claims."""
    lines = {
        "WARC-Type": "response",
        "WARC-Date": "2024-05-06T07:08:09Z",
        "WARC-Target-URI": f"https://example.org/{number}",
        "Content-Type": "application/http; msgtype=response",
        "Content-Length": str(len(block) if length is None else length),
    }
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + block + b"\r\n\r\n"


def http(body: bytes, media: str = "text/html; charset=utf-8", status: str = "200 OK", **headers: str) -> bytes:
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\n{more}\r\n".encode() + body


def read(data: bytes, name: str = "crawl.warc.gz") -> tuple[list[RawDocument], dict[str, int]]:
    skipped = Skipped()
    found = list(read_warc(io.BytesIO(data), len(data), name, "CC0-1.0", TODAY, skipped))
    return found, {why: count for why, count in skipped.items() if count}


def test_pages_of_an_archive_that_fastwarc_wrote() -> None:
    """Requests and other statuses and media are no pages; address, day and content are the record's own."""
    out = io.BytesIO()
    writer = GzipWriter(out)
    for kind, block, address in (
        (WarcRecordType.warcinfo, b"software: test\r\n", ""),
        (WarcRecordType.request, b"GET / HTTP/1.1\r\n\r\n", "https://a.org/"),
        (WarcRecordType.response, http(PAGES[0].encode()), "https://a.org/page"),
        (WarcRecordType.response, http(b"gone", status="404 Not Found"), "https://a.org/gone"),
        (WarcRecordType.response, http(b"\x89PNG\r\n", media="image/png"), "https://a.org/image"),
        (WarcRecordType.response, http(b"User-agent: *\n", media="text/plain"), "https://a.org/robots.txt"),
        (WarcRecordType.response, http(b" \n"), "https://a.org/empty"),
    ):
        record = WarcRecord()
        record.init_headers(kind)
        record.headers["WARC-Target-URI"] = address
        record.headers["WARC-Date"] = "2023-11-12T13:14:15Z"
        record.is_http = kind != WarcRecordType.warcinfo
        record.set_bytes_content(block)
        record.write(writer)
    writer.close()
    documents, skipped = read(out.getvalue())
    assert [(page.url, page.kind, page.media) for page in documents] == [
        ("https://a.org/page", "docs", "html"),
        ("https://a.org/robots.txt", "prose", "text"),
    ]
    assert documents[0].content.decode() == PAGES[0]
    assert {page.retrieved for page in documents} == {date(2023, 11, 12)}
    assert {page.licence for page in documents} == {"CC0-1.0"}
    assert skipped == {"status other than 200": 1, "neither HTML nor plain text": 1, "empty": 1}


def test_texts_of_a_wet_file() -> None:
    record = warc("A text. Ein Text: äöü.".encode(), WARC_Type="conversion", Content_Type="text/plain")
    [document], _ = read(gzip.compress(record), "x.warc.wet.gz")
    assert (document.kind, document.media, document.content.decode()) == ("prose", "text", "A text. Ein Text: äöü.")
    assert document.url == "https://example.org/0"


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_records_are_named_by_their_offset(compress) -> None:
    parts = [compress(warc(http(page.encode()))) for page in PAGES[:3]]
    documents, _ = read(b"".join(parts))
    offsets = [0, len(parts[0]), len(parts[0]) + len(parts[1])]
    assert [page.path for page in documents] == [f"crawl.warc.gz#{offset}" for offset in offsets]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content_Encoding": "gzip"}, gzip.compress(PAGES[0].encode())),
        ({"Content_Encoding": "deflate"}, zlib.compress(PAGES[0].encode())),
        (
            {"Transfer_Encoding": "chunked"},
            b"5\r\n" + PAGES[0].encode()[:5] + b"\r\n%x\r\n" % (len(PAGES[0].encode()) - 5)
            + PAGES[0].encode()[5:] + b"\r\n0\r\n\r\n",
        ),
        ({"Content_Encoding": "gzip"}, PAGES[0].encode()),  # decoded by the crawler, which kept the header
        ({"Transfer_Encoding": "chunked"}, PAGES[0].encode()),
    ],
)  # fmt: skip
def test_pages_are_decoded_as_they_were_sent(headers: dict[str, str], body: bytes) -> None:
    [document], skipped = read(warc(http(body, **headers)))
    assert document.content.decode() == PAGES[0] and not skipped


def test_a_payload_that_cannot_be_decoded_loses_that_page_only() -> None:
    good = warc(http(PAGES[0].encode()))
    broken = warc(http(b"\x1f\x8b\x08\0garbage garbage", Content_Encoding="gzip"))
    documents, skipped = read(good + broken + good)
    assert len(documents) == 2 and skipped == {"damaged record": 1}


def test_the_charset_of_the_header_is_honoured() -> None:
    greek = "<p>Η φύση της γνώσης και η γλώσσα</p>" * 5
    [document], _ = read(warc(http(greek.encode("iso8859-7"), media="text/html; charset=ISO-8859-7")))
    assert decode(document.content, "html")[0] == greek
    [document], _ = read(warc(http(greek.encode("utf-16-le"), media='text/html; charset="UTF-16LE"')))
    assert decode(document.content, "html")[0] == greek


def test_a_charset_that_lies_or_is_none_does_no_harm() -> None:
    page = "<p>Zürich, naïve façade</p>"
    for charset in ("latin1", "punycode", "zlib", "no-such-charset", "utf-32"):
        assert to_utf8(page.encode(), charset).decode() == page
    latin = page.encode("latin-1")
    assert to_utf8(latin, "utf-8") == latin  # for the page's own declaration, or cp1252
    assert to_utf8(latin, "zlib") == latin


def test_utf8_cut_in_a_character_stays_utf8() -> None:
    page = ("<p>" + "Größe und Maß. " * 20).encode()
    cut = page[: page.rindex("ß".encode()) + 1]
    assert to_utf8(cut, "utf-8").decode().startswith("<p>Größe und Maß. Größe")
    assert to_utf8(cut).decode().endswith("Ma\ufffd")


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_damage_to_a_record_loses_that_record_only(compress) -> None:
    """One bit flipped anywhere, half of the times among the headers: never an error, all others as they were."""
    parts = [compress(warc(http(page.encode()), number=n)) for n, page in enumerate(PAGES)]
    starts = [sum(map(len, parts[:n])) for n in range(len(parts))]
    name = "crawl.warc.gz" if compress is gzip.compress else "crawl.warc"
    whole = {page.path: page for page in read(b"".join(parts), name)[0]}
    assert len(whole) == len(parts)
    chance = random.Random(11)
    counted = 0
    for turn in range(400):
        data = bytearray(b"".join(parts))
        hit = chance.randrange(len(parts))
        at = starts[hit] + chance.randrange(len(parts[hit]) if turn % 2 else 300)
        data[at] ^= 1 << chance.randrange(8)
        documents, skipped = read(bytes(data), name)
        found = {page.path: page for page in documents}
        path = f"{name}#{starts[hit]}"
        assert {key: page for key, page in found.items() if key != path} == {
            key: page for key, page in whole.items() if key != path
        }
        assert path in found or sum(skipped.values()) == 1
        counted += path not in found
    assert counted > (300 if compress is gzip.compress else 50)


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gzip", "plain"])
@pytest.mark.parametrize("damage", ["zeros", "removed", "inserted"])
def test_runs_of_damage_lose_what_they_touch(compress, damage: str) -> None:
    parts = [compress(warc(http(page.encode()), number=n)) for n, page in enumerate(PAGES)]
    whole = {page.url: page.content for page in read(b"".join(parts))[0]}
    chance = random.Random(7)
    for _ in range(60):
        data = b"".join(parts)
        at, size = chance.randrange(len(data)), chance.randrange(1, 500)
        after = {"zeros": bytes(size), "removed": b"", "inserted": chance.randbytes(size) + data[at : at + size]}[
            damage
        ]
        found = {page.url: page.content for page in read(data[:at] + after + data[at + size :])[0]}
        ends = [sum(map(len, parts[: n + 1])) for n in range(len(parts))]
        for n, end in enumerate(ends):
            if end <= at or end - len(parts[n]) >= at + size:
                assert found[f"https://example.org/{n}"] == whole[f"https://example.org/{n}"]


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_an_archive_cut_anywhere_keeps_what_is_before(compress) -> None:
    parts = [compress(warc(http(page.encode()), number=n)) for n, page in enumerate(PAGES)]
    data = b"".join(parts)
    for cut in range(0, len(data), 997):
        documents, skipped = read(data[:cut])
        complete = sum(sum(map(len, parts[: n + 1])) <= cut for n in range(len(parts)))
        assert len(documents) in (complete, complete + 1)  # only line breaks may be missing of the last
        assert sum(skipped.values()) <= 1


def test_a_whole_archive_in_one_gzip_member() -> None:
    records = [warc(http(page.encode()), number=n) for n, page in enumerate(PAGES)]
    data = gzip.compress(b"".join(records))
    documents, skipped = read(data)
    assert [page.content.decode() for page in documents] == PAGES and not skipped
    assert documents[1].path == f"crawl.warc.gz#0+{len(records[0])}"
    documents, skipped = read(data[: len(data) // 2])
    assert 0 < len(documents) < len(PAGES) and skipped == {"record cut short": 1}


@pytest.mark.parametrize("claim", [0, 100, 5_000, 1_000_000, 19_000_000, 10**12])
def test_wrong_lengths(claim: int) -> None:
    good = [warc(http(page.encode()), number=n) for n, page in enumerate(PAGES)]
    liar = warc(http(PAGES[0].encode()), number=99, length=claim)
    documents, skipped = read(b"".join([*good[:3], liar, *good[3:]]), "crawl.warc")
    assert [page.url for page in documents] == [f"https://example.org/{n}" for n in range(8)]
    assert sum(skipped.values()) == 1


@pytest.mark.parametrize("junk", [b"", b"\r\n" * 9, b"not a record\r\n\r\n", bytes(100_000), b"WARC/1.0\r\n\r\n"])
def test_records_without_headers_and_junk_between(junk: bytes) -> None:
    good = warc(http(PAGES[0].encode()))
    documents, skipped = read(good + junk + good + junk)
    assert len(documents) == 2
    assert sum(skipped.values()) == (2 if junk.strip() else 0)


def test_writers_that_leave_one_line_break() -> None:
    records = [warc(http(page.encode()), number=n) for n, page in enumerate(PAGES)]
    documents, skipped = read(b"".join(record[:-2] for record in records))
    assert [page.content.decode() for page in documents] == PAGES and not skipped


def test_bombs_are_left_in_time() -> None:
    """A gzip member of half a gigabyte, a page that is one, and a file of nothing but beginnings."""
    zeros = bytes(1_000_000)
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=1) as out:
        for _ in range(500):
            out.write(zeros)
    good = gzip.compress(warc(http(PAGES[0].encode())))
    page = gzip.compress(warc(http(gzip.compress(bytes(files.MAX_FILE_BYTES + 1)), Content_Encoding="gzip")))
    documents, skipped = read(bomb.getvalue() + good + page + good)
    assert len(documents) == 2
    assert skipped == {"damaged record": 1, files.LARGER: 1}
    for hostile in (b"WARC/1.0\r\n", b"WARC/1.0\r\nX:", b"\x1f\x8b\x08\0\0\0\0\0\0\3\0\xff\xff\0\0"):
        documents, skipped = read(hostile * 100_000)
        assert not documents and skipped.pop("damaged record") == 1
        assert set(skipped) <= {"rest of a file that is all damage"}


def test_brackets_around_an_address_and_a_date_that_is_none() -> None:
    [document], _ = read(warc(http(b"<p>x</p>"), WARC_Target_URI="<https://a.org/x>", WARC_Date="yesterday"))
    assert document.url == "https://a.org/x" and document.retrieved == TODAY
