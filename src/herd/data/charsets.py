"""Charsets as servers declare them: bytes of a page to UTF-8, without trusting the declaration."""

from __future__ import annotations

import codecs

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
