"""Personal data: masked where it stands, and documents that are lists of it dropped (paper 3.1.1, PII filter).

Found by pattern and check digits: e-mail and IP addresses, phone and card numbers, bank accounts (IBAN) and national
ids of nine countries. Names and postal addresses are not found, and MAC addresses are not personal.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from herd.data import checksums

MAX_PERSONAL_PER_KB = 5.0  # ours: a fifth of the text is addresses: a directory, not a document
MIN_PERSONAL = 10

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
# One pass over all numbers, because a search for digits runs at 200 MB/s and there are a dozen kinds. Kinds that chance
# fulfils too often (a shape of plain digits, a check digit that one in ten passes) count only after their name.
_NUMBER = re.compile(
    r"""[0-9](?:
      (?<![0-9.][0-9]) (?P<ip> [0-9]{0,2} (?:\.[0-9]{1,3}){3} (?![0-9.]*[0-9]) )
    | (?<![\w.,/+-][0-9]) (?:
          (?<=[3-6]) (?P<card> [0-9]{3} ([ -]) [0-9]{4} \3 [0-9]{4} \3 [0-9]{4}
                          | [47][0-9]{2} ([ -]) [0-9]{6} \4 [0-9]{5} )
        | (?P<ssn> [0-9]{2} - [0-9]{2} - [0-9]{4} )
        | (?P<cpf> [0-9]{2} \. [0-9]{3} \. [0-9]{3} - [0-9]{2} )
        | (?<=[12]) (?P<nir> [ ]?[0-9]{2} [ ]?[0-9]{2} [ ]?(?:[0-9]{2}|2[AB]) [ ]?[0-9]{3} [ ]?[0-9]{3} [ ]?[0-9]{2} )
        | (?P<named> (?:[ .-]?[0-9]){7,11} (?:-?[A-Z])? )
      ) (?![\w-]|[.,/][0-9])
    | (?<=[A-Z]{2}[0-9]) (?<![\w-][A-Z]{2}[0-9]) (?:
          (?P<iban> [0-9] (?:[ ]?[A-Z0-9]{4}){2,7} (?:[ ]?[A-Z0-9]{1,3})? )
        | (?P<nino> [0-9]{5} [A-D] )
      ) (?!\w)
    | (?<=[A-Z]{2}[ ][0-9]) (?<![\w-][A-Z]{2}[ ][0-9]) (?P<nino_spaced> [0-9][ ][0-9]{2}[ ][0-9]{2}[ ][A-D] ) (?!\w)
    | (?<=[A-Z]{6}[0-9]) (?P<codice> [0-9][A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z] ) (?!\w)
    | (?<=[XYZ][0-9]) (?<![\w-][XYZ][0-9]) (?P<nie> [0-9]{6}-?[A-Z] ) (?!\w)
    )""",
    re.VERBOSE,
)
_LETTERS_BEFORE = {"iban": 2, "nino": 2, "nino_spaced": 3, "codice": 6, "nie": 1}
NAME_DISTANCE = 60  # characters before a number in which its name must stand
_NAMED: dict[str, Callable[[str], bool]] = {
    r"\bssn\b|social security": checksums.us_ssn,
    r"\bbsn\b|burgerservicenummer|sofinummer": checksums.dutch_bsn,
    r"\baadha+r\b|\buidai\b|आधार": checksums.aadhaar,
    r"steuer-?id|steuerliche|identifikationsnummer|\bidnr\b": checksums.german_tax_id,
    r"\bcpf\b": checksums.brazilian_cpf,
    r"\b(?:dni|nif|nie)\b|documento nacional": checksums.spanish_dni,
    r"national insurance|\bnino\b|\bni (?:no|number)\b": checksums.uk_nino,
}
_NAMES = re.compile("|".join(f"({name})" for name in _NAMED))
_CHECKS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "card": ("card", checksums.luhn),
    "iban": ("iban", checksums.iban),
    "ssn": ("id", checksums.us_ssn),
    "cpf": ("id", checksums.brazilian_cpf),
    "nir": ("id", checksums.french_nir),
    "nino_spaced": ("id", checksums.uk_nino),
    "codice": ("id", checksums.italian_codice),
}


class Masked(NamedTuple):
    """A text with personal data replaced by placeholders, and how many of each kind were."""

    text: str
    counts: Counter[str]

    @property
    def personal(self) -> int:
        """Items of personal data found."""
        return self.counts.total()

    @property
    def personal_per_kb(self) -> float:
        """Items per 1,000 characters."""
        return 1000 * self.personal / max(1, len(self.text))

    @property
    def is_directory(self) -> bool:
        """Whether the document is mostly a list of addresses and numbers of people and is to be dropped."""
        return self.personal >= MIN_PERSONAL and self.personal_per_kb > MAX_PERSONAL_PER_KB


def mask(text: str, kind: str) -> Masked:
    """Replace e-mail and IP addresses by <email> and <ip>, in prose and docs also <phone>, <card>, <iban> and <id>.

    In code and tables numbers stay as they are: there a phone number is an expression or a measurement.
    """
    counts: Counter[str] = Counter()

    def placeholder(name: str, personal: bool, found: str) -> str:
        counts[name] += personal
        return f"<{name}>" if personal else found

    text, counts["email"] = _mask_emails(text)
    if _IPV6_PART.search(text):
        text = _IPV6.sub(lambda m: placeholder("ip", _is_global(m[0]), m[0]), text)
    if kind in ("prose", "docs"):
        for phone in _PHONES:
            text = phone.sub(lambda m: placeholder("phone", True, m[0]), text)
        text = _mask_numbers(text, counts)
    else:
        text = _IPV4.sub(lambda m: placeholder("ip", _is_address(m[0]), m[0]), text)
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


def _mask_numbers(text: str, counts: Counter[str]) -> str:
    pieces: list[str] = []
    done = 0
    for match in _NUMBER.finditer(text):
        shape = match.lastgroup or ""
        start, end = match.start() - _LETTERS_BEFORE.get(shape, 0), match.end()
        if shape == "iban":
            end = _iban_end(text, start, end)
        kind = _kind_of(shape, text, start, end) if done <= start < end else ""
        if kind:
            counts[kind] += 1
            pieces += [text[done:start], f"<{kind}>"]
            done = end
    return "".join([*pieces, text[done:]]) if pieces else text


def _kind_of(shape: str, text: str, start: int, end: int) -> str:
    """The placeholder for a number of some shape; "" where its digits, or the words before, say that it is none."""
    found = text[start:end]
    if shape == "ip":
        return "ip" if _is_address(found) else ""
    plain = found.replace(" ", "").replace("-", "").replace(".", "")
    if shape in _CHECKS:
        kind, check = _CHECKS[shape]
        return kind if check(plain) else ""
    named = _NAMES.finditer(text[max(0, start - NAME_DISTANCE) : start].lower())
    checks = [list(_NAMED.values())[(name.lastindex or 1) - 1] for name in named]
    return "id" if any(check(plain) for check in checks) else ""


def _iban_end(text: str, start: int, end: int) -> int:
    """Where an account number ends that may be followed by a word in capitals; `start` where it is none."""
    left = checksums.IBAN_LENGTHS.get(text[start : start + 2], 0)
    place = start
    while left and place < end:
        left -= text[place] != " "
        place += 1
    return start if left or text[place : place + 1].isalnum() else place
