import ast
import hashlib
import importlib.metadata
import inspect
import re
import socket
import ssl
import time
import uuid
from collections.abc import Callable
from pydoc_data import topics

import pytest

from herd.data import checksums
from herd.data.pii import mask


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.uni-bonn.de today", "write to <email> today"),
        ("see me@example.com and git@github.com", "see me@example.com and git@github.com"),
        ("from 134.22.250.3 to 192.168.1.200, version 3.8.11.1", "from <ip> to 192.168.1.200, version 3.8.11.1"),
        ("call +49 30 1234 567 or (212) 555-0188", "call <phone> or <phone>"),
        ("card 4111 1111 1111 1111 not 4111 1111 1111 1112", "card <card> not 4111 1111 1111 1112"),
        ("Amex 3782 822463 10005.", "Amex <card>."),
        ("IBAN DE89 3704 0044 0532 0130 00 UND mehr", "IBAN <iban> UND mehr"),
        ("GB82WEST12345698765432, DE89370400440532013001", "<iban>, DE89370400440532013001"),
        ("SSN 219-09-9998, not 900-12-3456 nor 1219-09-9998", "SSN <id>, not 900-12-3456 nor 1219-09-9998"),
        ("social security number: 219099998", "social security number: <id>"),
        ("NINO AB123456C, AB 12 34 56 C, part AB123456C-7", "NINO <id>, <id>, part AB123456C-7"),
        ("NIR 2 55 08 14 168 025 38 et 255081416802539", "NIR <id> et 255081416802539"),
        ("DNI: 12345678Z, NIE X-1234567-L", "DNI: <id>, NIE <id>"),
        ("C.F. RSSMRA85T10A562S, RSSMRA85T10A562T", "C.F. <id>, RSSMRA85T10A562T"),
        ("Steuer-ID 86 095 742 719, IdNr. 86095742710", "Steuer-ID <id>, IdNr. 86095742710"),
        ("CPF 529.982.247-25 e 529.982.247-26; cpf 52998224725", "CPF <id> e 529.982.247-26; cpf <id>"),
        ("BSN: 111222333.", "BSN: <id>."),
        ("Aadhaar 9999 4105 7058", "Aadhaar <id>"),
    ],
)
def test_masks_what_is_personal_and_nothing_else(text: str, expected: str) -> None:
    assert mask(text, "docs").text == expected


@pytest.mark.parametrize(
    ("check", "number"),
    [
        (checksums.iban, "DE89370400440532013000"),
        (checksums.iban, "FR1420041010050500013M02606"),
        (checksums.luhn, "4111111111111111"),
        (checksums.aadhaar, "999941057058"),
        (checksums.german_tax_id, "86095742719"),
        (checksums.brazilian_cpf, "52998224725"),
        (checksums.dutch_bsn, "111222333"),
        (checksums.spanish_dni, "12345678Z"),
        (checksums.italian_codice, "RSSMRA85T10A562S"),
    ],
)
def test_check_digits_find_every_wrong_digit(check: Callable[[str], bool], number: str) -> None:
    assert check(number)
    for place, digit in enumerate(number):
        for other in "0123456789".replace(digit, "") if digit.isdigit() else "":
            assert not check(number[:place] + other + number[place + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "order 111222333, 86095742719 bytes, 9999 4105 7058, 12345678Z, X1234567L",  # valid, but nobody says of what
        "MAC 00:1a:2b:3c:4d:5e, 2001:db8::1, OID 1.3.6.1.4.1.311, ISBN 978-0-13-110362-7, CAS 7732-18-5",
        "2023-01-01T12:30:45, 20230101T123045Z, 1.7976931348623157e+308, 0xDEADBEEF12345678, 10 000 000 000",
        "1998 1999 2000 2001, 2010-2011-2012, RFC 2606, x86_64-12345678-A, 3.141592653589793 23846264338",
        "SHA 2FD4E1C67A2D28FCED849EE1BB76E7391B93EB12, GUID 21EC2020-3AEA-4069-A2DD-08002B30309D",
    ],
)
def test_numbers_of_other_kinds_stay(text: str) -> None:
    assert mask(text, "docs").text == text


def test_documentation_of_the_standard_library_stays_as_it_is() -> None:
    modules = (hashlib, uuid, ssl, re, inspect)
    pages = {**topics.topics, **{module.__name__: inspect.getsource(module) for module in modules}}
    assert sum(len(page) for page in pages.values()) > 500_000
    for name, page in pages.items():
        counts = mask(page, "docs").counts
        if name not in topics.topics:  # some modules name their authors
            del counts["email"], counts["ip"]
        assert not counts.total(), (name, counts)
    digests = "\n".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(2_000))
    identifiers = "\n".join(f"{n:02d}:{uuid.uuid5(uuid.NAMESPACE_DNS, str(n))}".upper() for n in range(2_000))
    floats = "\n".join(f"{n / 7:.12f}  {n * 1e9 / 3:.3f}  {n * 7919:012d}" for n in range(2_000))
    for text in (digests, identifiers, floats):
        assert mask(text, "docs").text == text


def test_what_is_planted_in_real_pages_goes_and_the_rest_stays() -> None:
    page = topics.topics["numbers"] + topics.topics["formatstrings"]
    middle = page.index("\n\n", len(page) // 2)
    planted = " jane@uni-bonn.de, DE89 3704 0044 0532 0130 00, 219-09-9998, RSSMRA85T10A562S "
    masked = mask(page[:middle] + planted + page[middle:], "docs")
    assert masked.text == page[:middle] + " <email>, <iban>, <id>, <id> " + page[middle:]
    assert dict(+masked.counts) == {"email": 1, "iban": 1, "id": 2} and masked.personal == 4


def test_code_still_parses_and_keeps_its_numbers() -> None:
    code = (
        '__author__ = "Jane <jane@uni-bonn.de>"  # jane@uni-bonn.de\n'
        "n = 4111111111111111\nm = A@B.mean() + A@B.T\nhost = '134.22.250.3'\nx = +1 -23 -456\n"
        "y = 219-99-9998\niban = 'DE89370400440532013000'\n"
    )
    masked = mask(code, "code")
    ast.parse(masked.text)
    assert "n = 4111111111111111\nm = A@B.mean() + A@B.T\n" in masked.text and "x = +1 -23 -456" in masked.text
    assert masked.counts["email"] == 2 and masked.counts["ip"] == 1
    assert "jane" not in masked.text and "y = 219-99-9998\niban = 'DE89370400440532013000'" in masked.text


def test_real_sources_still_parse_as_the_same_code() -> None:
    for module in (socket, ssl, uuid, importlib.metadata):
        source = inspect.getsource(module)
        assert _without_strings(mask(source, "code").text) == _without_strings(source), module.__name__


def _without_strings(code: str) -> str:
    """The syntax tree of code, with every string (where something may be masked) made empty."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def test_a_page_on_networks_is_no_directory() -> None:
    masked = mask("\n".join(f"route 134.22.250.{n} via 91.198.174.192" for n in range(60)), "docs")
    assert masked.counts["ip"] == 120 and not masked.is_directory


def test_a_list_of_people_is_a_directory_and_an_essay_with_one_is_not() -> None:
    assert mask("\n".join(f"Person {n} person{n}@mail.org" for n in range(30)), "docs").is_directory
    assert mask("\n".join(f"Person {n} (212) 555-{n:04d}" for n in range(30)), "docs").is_directory
    assert not mask("A long essay. " * 200 + "By jane@mail.org", "docs").is_directory


@pytest.mark.parametrize(
    "unit", ["1.", "1 ", "12-", "DE12 ", "AAAAAA1", "2 55 08 14 168 ", "4111 ", "ssn 123456789 ", "X1"]
)
def test_long_runs_take_linear_time(unit: str) -> None:
    text = "a" * 500_000 + "@" * 1000 + unit * 100_000
    start = time.process_time()
    masked = mask(text, "docs")
    assert time.process_time() - start < 10  # ours: a second or two for a megabyte
    assert masked.text.startswith("a" * 500_000 + "@" * 1000)
