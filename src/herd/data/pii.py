"""Personal data: masked where it stands, and documents that are lists of it dropped (paper 3.1.1, PII filter).

This is the thin form of the paper's filter: patterns with checks for e-mail and IP addresses, phone and card numbers.
It finds no names or postal addresses, and there is no list of unsafe domains: sources here are chosen by hand.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from typing import NamedTuple

MAX_EMAILS_PER_KB = 5.0  # ours: a fifth of the text is addresses: a directory, not a document
MIN_EMAILS = 10

# Top-level domains seen in addresses of people. A closed list, because `A@B.mean` is a matrix product in Python.
_DOMAINS = (
    "com|org|net|edu|gov|mil|int|info|io|dev|ai|me|name|biz|eu|uk|de|fr|it|es|pt|nl|be|ch|at|dk|se|no|fi|pl|cz|ru|ua|jp|cn|in"
    "|au|nz|ca|us|br|mx|ar|kr|tw|hk|sg|il|ie|gr|hu|ro|za|tr|is|ee|lv|lt|si|sk|hr|lu|cc|tv|co"
)
# Patterns begin with a letter or a small class, which `re` searches for at memory speed; conditions on what stands
# before come second. A pattern that begins with a look-behind is tried at every character, six times slower.
_AT_DOMAIN = re.compile(rf"@(?:[a-zA-Z0-9-]{{1,63}}\.){{1,8}}(?:{_DOMAINS})(?![\w-])")
_LOCAL_PART = re.compile(r"[a-zA-Z0-9_.+%-]+\Z")
MAX_LOCAL_PART = 64  # RFC 5321
# Reserved for documentation (RFC 2606), and addresses of programs rather than people.
_NOT_PERSONAL = re.compile(r"@(?:[\w-]+\.)*example\.(?:com|org|net|edu)$|^git@|@users\.noreply\.", re.IGNORECASE)
_IPV4 = re.compile(r"[0-9](?<![0-9.][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9.]*[0-9])")
_IPV6_PART = re.compile(r":[0-9a-fA-F]{1,4}:[0-9a-fA-F]{1,4}:[0-9a-fA-F]{1,4}:")
_IPV6 = re.compile(r"[0-9a-fA-F](?<![:\w][0-9a-fA-F])[0-9a-fA-F]{0,3}(?::[0-9a-fA-F]{1,4}){7}(?![:\w])")
_PHONES = (
    re.compile(r"\+(?<![\w+.-]\+)[0-9]{1,3}[ .-]\(?[0-9]{1,4}\)?(?:[ .-][0-9]{2,4}){2,4}(?![\w-])"),
    re.compile(r"\([0-9]{3}\) ?[0-9]{3}-[0-9]{4}(?![\w-])"),
)
_CARD = re.compile(r"[3-6](?<![\w.-][3-6])[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?![\w.-])")


class Masked(NamedTuple):
    """A text with personal data replaced by placeholders, and how many of each kind were."""

    text: str
    counts: Counter[str]

    @property
    def emails_per_kb(self) -> float:
        return 1000 * self.counts["email"] / max(1, len(self.text))

    @property
    def is_directory(self) -> bool:
        """Whether the document is mostly a list of addresses and is to be dropped."""
        return self.counts["email"] >= MIN_EMAILS and self.emails_per_kb > MAX_EMAILS_PER_KB


def mask(text: str, kind: str) -> Masked:
    """Replace e-mail and IP addresses by <email> and <ip>, in prose and docs also <phone> and <card>.

    In code and tables numbers stay as they are: there a phone number is an expression or a measurement.
    """
    counts: Counter[str] = Counter()

    def placeholder(name: str, personal: bool, found: str) -> str:
        counts[name] += personal
        return f"<{name}>" if personal else found

    text, counts["email"] = _mask_emails(text)
    text = _IPV4.sub(lambda m: placeholder("ip", _is_address(m[0]), m[0]), text)
    if _IPV6_PART.search(text):
        text = _IPV6.sub(lambda m: placeholder("ip", _is_global(m[0]), m[0]), text)
    if kind in ("prose", "docs"):
        for phone in _PHONES:
            text = phone.sub(lambda m: placeholder("phone", True, m[0]), text)
        text = _CARD.sub(lambda m: placeholder("card", _luhn(m[0]), m[0]), text)
    return Masked(text, counts)


def _mask_emails(text: str) -> tuple[str, int]:
    pieces: list[str] = []
    done = count = 0
    for match in _AT_DOMAIN.finditer(text):
        at = match.start()
        local = _LOCAL_PART.search(text, max(done, at - MAX_LOCAL_PART), at)
        if local is not None and not _NOT_PERSONAL.search(local[0] + match[0]):
            pieces += [text[done : local.start()], "<email>"]
            done, count = match.end(), count + 1
    return "".join([*pieces, text[done:]]) if count else text, count


def _is_address(text: str) -> bool:
    # 98% of addresses have a part of 100 or more, and hardly any version number (3.8.11.1) has.
    return any(int(part) >= 100 for part in text.split(".")) and _is_global(text)


def _is_global(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return sum(digits[0::2]) % 10 == (-sum(d * 2 - 9 * (d > 4) for d in digits[1::2])) % 10
