"""Web archives: WARC and WET files, plain or gzip member after member (ISO 28500).

Frames are found here and each record is then parsed by fastwarc, because an iterator over the whole file stops at the
first damaged byte. Here damage loses the record it hits and nothing else: reading goes on at the next gzip member, or
at the next line that begins a record. A document is named by its file and the record's offset in it, as CDX indexes
do, so that damage to one record does not rename the others.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections import deque
from collections.abc import Iterator
from datetime import date
from typing import BinaryIO, NamedTuple

from fastwarc.warc import WarcRecord, WarcRecordType

from herd.data.documents import RawDocument
from herd.data.extract import is_text
from herd.data.files import DAMAGED, LARGER, MAX_FILE_BYTES, MAX_RATIO, Skipped
from herd.data.rows import clean_url, day_of

MAX_HEADER_BYTES = 65_536
_READ_BYTES = 65_536
# A damaged member is searched for the next one, which reads bytes again; a file made to be searched for ever is left.
_MAX_READ_AGAIN = 32

_GZIP = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")
_START = re.compile(rb"WARC/[01]\.\d{1,2}\r?\n")
_START_BYTES = 12  # longest match of _START
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,18})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_TYPE = re.compile(rb"^warc-type:[ \t]*[a-z]", re.IGNORECASE | re.MULTILINE)

_HTML = ("text/html", "application/xhtml+xml")
_PAGES = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion

# Codecs of Python that are no charset of the web; two of them take quadratic time.
_NO_CHARSETS = {"punycode", "idna", "unicode_escape", "raw_unicode_escape", "utf-7", "undefined"}
# Browsers read these as their supersets (WHATWG Encoding Standard, section 4.2).
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
}


class _Damaged(Exception):
    """A gzip member that can't be decoded to its end; the text is the reason to count."""


class Record(NamedTuple):
    """A whole record and its offset in the file; `offset+n` where it lies n decoded bytes inside a gzip member."""

    offset: str
    data: bytes


def read_warc(
    stream: BinaryIO, size: int, inside: str, licence: str, day: date, skipped: Skipped
) -> Iterator[RawDocument]:
    """Pages of a web archive of `size` bytes: HTML and plain text that was answered with status 200, and WET texts.

    `day` is used where a record doesn't tell when it was retrieved.
    """
    for record in records(stream, size, skipped):
        document = _document(record, inside, licence, day, skipped)
        if document is not None:
            yield document


def records(stream: BinaryIO, size: int, skipped: Skipped) -> Iterator[Record]:
    """Whole records of at most MAX_FILE_BYTES; what is damaged or larger is counted."""
    window = _Window(_Members(stream, size))
    lost = False  # in damage that has been counted
    while True:
        try:
            if not window.fill(1):
                return
            record = _next_record(window)
        except _Damaged as damage:
            window.drop(len(window.data))
            record = str(damage)
        except DAMAGED:
            skipped["unreadable"] += 1
            return
        if isinstance(record, Record):
            lost = False
            yield record
        elif record:
            skipped[record] += not lost
            lost = True


class _Members:
    """Decoded bytes of a file a piece at a time, and where in the file its gzip members begin."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self.gzipped = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        self._raw = b""  # read, not yet decoded
        self._position = 0  # offset of _raw in the file
        self._inflate: zlib._Decompress | None = None  # of the member that is being decoded
        self._start = self._decoded = 0  # of that member: its offset, and bytes decoded
        self._left = _MAX_READ_AGAIN * size + MAX_FILE_BYTES  # bytes that may still be read again
        self.origin: int | None = None  # offset in the file of what `read` returned last, where a member began there

    def read(self) -> bytes:
        """The next piece, never of two members; empty at the end. After _Damaged it goes on at the next member."""
        self.origin = None
        while True:
            if self._inflate is None:
                self._raw = self._raw or self._stream.read(_READ_BYTES)
                if not self.gzipped:
                    piece, self._raw = self._raw, b""
                    return piece
                if not self._raw:
                    return b""
                self._inflate = zlib.decompressobj(31)
                self._start, self._decoded = self._position, 0
            first = self._decoded == 0
            if piece := self.rest():
                self.origin = self._start if first else None
                return piece

    def rest(self) -> bytes:
        """The next piece of the member that was begun; empty where it ended, and ended well."""
        while self._inflate is not None:
            self._raw = self._raw or self._stream.read(_READ_BYTES)
            before = len(self._raw)
            try:
                piece = self._inflate.decompress(self._raw, _READ_BYTES)
            except zlib.error:
                raise self._damage("damaged record") from None
            if not piece and not before and not self._inflate.eof:
                raise self._damage("record cut short")
            ended = self._inflate.eof
            self._raw = self._inflate.unused_data if ended else self._inflate.unconsumed_tail
            self._position += before - len(self._raw)
            self._decoded += len(piece)
            if self._decoded > MAX_FILE_BYTES and self._decoded > MAX_RATIO * (self._position - self._start):
                raise self._damage("decompression bomb")
            if ended:
                self._inflate = None
            if piece:
                return piece
        return b""

    def _damage(self, reason: str) -> _Damaged:
        """Go to the next place after this member's first byte where one may begin."""
        self._inflate, self._raw = None, b""
        offset = self._start + 1
        self._left -= self._position - offset
        self._stream.seek(offset)
        data = b""
        while self._left > 0 and (more := self._stream.read(_READ_BYTES)):
            self._left -= len(more)
            data += more
            if found := _GZIP.search(data):
                self._position = offset + found.start()
                self._raw = data[found.start() :]
                return _Damaged(reason)
            offset += len(data) - 3
            data = data[-3:]
        self._stream.seek(0, 2)
        return _Damaged(reason)


class _Window:
    """The decoded bytes from the next record on, as many as were asked for."""

    def __init__(self, members: _Members) -> None:
        self._members = members
        self.data = bytearray()
        self._base = 0  # decoded position of data[0] in the whole file
        self._origins: deque[tuple[int, int]] = deque([(0, 0)])  # decoded position and offset of where members begin

    def fill(self, count: int) -> bool:
        """Have `count` bytes in `data`; False where the file ends before."""
        while len(self.data) < count:
            piece = self._members.read()
            if not piece:
                return False
            self._append(piece)
        return True

    def settle(self) -> None:
        """Raise _Damaged where the member that `data` ends in turns out to be damaged before it gives more."""
        self._append(self._members.rest())

    def _append(self, piece: bytes) -> None:
        if self._members.origin is not None:
            self._origins.append((self._base + len(self.data), self._members.origin))
            self._members.origin = None
        self.data += piece

    def drop(self, count: int) -> None:
        del self.data[:count]
        self._base += count

    def offset(self) -> str:
        """Of data[0] in the file."""
        while len(self._origins) > 1 and self._origins[1][0] <= self._base:
            self._origins.popleft()
        decoded, offset = self._origins[0]
        if self._members.gzipped:
            return f"{offset}+{self._base - decoded}" if self._base > decoded else str(offset)
        return str(self._base)


def _next_record(window: _Window) -> Record | str:
    """The record that begins the window, or the next: dropped from the window when it is returned.

    A string says what was dropped instead, and is empty for line breaks.
    """
    window.fill(_START_BYTES)
    data = window.data
    start = _START.search(data)
    if start is None or start.start():
        cut = start.start() if start else max(1, len(data) - _START_BYTES + 1)
        junk = bytes(data[:cut]).strip(b"\r\n")
        window.drop(cut)
        return "damaged record" if junk else ""
    searched = start.end() - 2  # a record without any header ends right there
    while (end := _HEADER_END.search(data, searched)) is None:
        searched = max(searched, len(data) - 3)
        if len(data) > MAX_HEADER_BYTES or not window.fill(len(data) + 1):
            window.drop(start.end())
            return "damaged record"
    head = bytes(data[: end.start()])
    length = _LENGTH.search(head)
    if length is None or not _TYPE.search(head):
        window.drop(start.end())
        return "damaged record"
    size = int(length[1])
    if size > MAX_FILE_BYTES + MAX_HEADER_BYTES:  # its length may be a lie: what follows is searched, not jumped over
        window.drop(end.end())
        return LARGER
    stop = end.end() + size
    whole = window.fill(stop)
    window.fill(stop + 4)
    if not whole or data[stop : stop + 4] not in (b"\r\n\r\n", b"\r\n", b""):
        window.drop(end.end())
        return "damaged record" if whole else "record cut short"
    window.settle()
    record = Record(window.offset(), bytes(data[:stop]))
    window.drop(min(len(data), stop + 4))
    return record


def _document(found: Record, inside: str, licence: str, day: date, skipped: Skipped) -> RawDocument | None:
    try:
        record = WarcRecord.from_bytes(found.data)
        if not record.record_type & _PAGES:
            return None
        payload = _payload(record, found.data)
        url = clean_url(record.headers.get("WARC-Target-URI") or "")
        retrieved = day_of(record.headers.get("WARC-Date") or "") or day
    except (*DAMAGED, ValueError, AttributeError):
        skipped["damaged record"] += 1
        return None
    if isinstance(payload, str):
        skipped[payload] += 1
        return None
    media, charset, content = payload
    if len(content) > MAX_FILE_BYTES:
        skipped[LARGER] += 1
        return None
    if not content.strip():
        skipped["empty"] += 1
        return None
    content = to_utf8(content, charset)
    if not is_text(content, media):
        skipped["not text"] += 1
        return None
    kind = "docs" if media == "html" else "prose"
    return RawDocument(f"{inside}#{found.offset}", kind, media, licence, retrieved, content, url)


def _payload(record: WarcRecord, data: bytes) -> tuple[str, str, bytes] | str:
    """Media, charset and content of a page, at most one byte beyond the limit; or why it is none."""
    if not record.record_type & WarcRecordType.response or not record.is_http:
        media = _media(record.headers.get("Content-Type") or "")
        if record.record_type & WarcRecordType.conversion:
            media = media or "text"
        return (media, "", record.reader.read(MAX_FILE_BYTES + 1)) if media else "neither HTML nor plain text"
    try:
        record.parse_http("all", MAX_HEADER_BYTES)
        content = record.reader.read(MAX_FILE_BYTES + 1)
    except DAMAGED:
        # Many crawlers decode what they store and keep the header that says how it was sent.
        record = WarcRecord.from_bytes(data)
        record.parse_http("none", MAX_HEADER_BYTES)
        content = record.reader.read(MAX_FILE_BYTES + 1)
        if re.match(rb"\x1f\x8b|[0-9a-fA-F]{1,8}[ \t]*(;[^\r\n]{0,100})?\r\n", content):
            raise
    if record.http_headers is None or record.http_headers.status_code is None:
        return "damaged record"
    if record.http_headers.status_code != 200:
        return "status other than 200"
    declared = record.http_content_type or record.headers.get("WARC-Identified-Payload-Type") or ""
    if not declared and re.match(rb"\s{0,100}<(!doctype html|html)\b", content, re.IGNORECASE):
        declared = "text/html"
    media = _media(declared)
    return (media, (record.http_charset or "").strip("\"' "), content) if media else "neither HTML nor plain text"


def _media(content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    return "html" if kind in _HTML else "text" if kind == "text/plain" else ""


def to_utf8(content: bytes, charset: str = "") -> bytes:
    """Content as UTF-8 where `charset` (of an HTTP header, empty where there is none) tells how; else as it is.

    UTF-8 with a few broken bytes, as where a crawler cut a page at its limit, stays UTF-8: U+FFFD for what is broken.
    """
    try:
        name = codecs.lookup(charset).name if charset else "utf-8"
    except (LookupError, ValueError):
        name = "utf-8"
    wide = name.startswith(("utf-16", "utf-32"))
    if name in _NO_CHARSETS or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content
    try:
        if not wide:
            content.decode()
            return content
    except UnicodeDecodeError:
        pass
    try:
        text = content.decode(_SUPERSETS.get(name, name), "replace")
    except (LookupError, UnicodeError):  # a codec that is no encoding of text
        return content
    broken = text.count("\ufffd")
    foreign = len(text) - len(text.encode("ascii", "ignore")) - broken
    # More whole characters beyond ASCII than broken ones: what Latin-1 read as UTF-8 does not show.
    usable = broken <= foreign if name == "utf-8" else broken * 100 <= len(text)
    return text.encode("utf-8", "replace") if usable else content
