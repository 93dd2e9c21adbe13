import ast

import pytest

from herd.data.pii import mask


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.uni-bonn.de today", "write to <email> today"),
        ("see me@example.com and git@github.com", "see me@example.com and git@github.com"),
        ("from 134.22.250.3 to 192.168.1.200, version 3.8.11.1", "from <ip> to 192.168.1.200, version 3.8.11.1"),
        ("call +49 30 1234 567 or (212) 555-0188", "call <phone> or <phone>"),
        ("card 4111 1111 1111 1111 not 4111 1111 1111 1112", "card <card> not 4111 1111 1111 1112"),
    ],
)
def test_masks_what_is_personal_and_nothing_else(text: str, expected: str) -> None:
    assert mask(text, "docs").text == expected


def test_code_still_parses_and_keeps_its_numbers() -> None:
    code = (
        '__author__ = "Jane <jane@uni-bonn.de>"  # jane@uni-bonn.de\n'
        "n = 4111111111111111\nm = A@B.mean() + A@B.T\nhost = '134.22.250.3'\nx = +1 -23 -456\n"
    )
    masked = mask(code, "code")
    ast.parse(masked.text)
    assert "n = 4111111111111111\nm = A@B.mean() + A@B.T\n" in masked.text and "x = +1 -23 -456" in masked.text
    assert masked.counts["email"] == 2 and masked.counts["ip"] == 1
    assert "jane" not in masked.text


def test_a_list_of_addresses_is_a_directory_and_an_essay_with_one_is_not() -> None:
    assert mask("\n".join(f"Person {n} person{n}@mail.org" for n in range(30)), "docs").is_directory
    assert not mask("A long essay. " * 200 + "By jane@mail.org", "docs").is_directory


def test_long_runs_take_linear_time() -> None:
    assert mask("a" * 2_000_000 + "@" * 1000 + "1." * 500_000, "docs").counts.total() == 0
