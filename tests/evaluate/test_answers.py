"""Right means the same value however it is written down; another value, label or number of entries is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from herd.console import HerdError
from herd.evaluate.answers import TableQuestion, is_right, read_questions, write_questions


def number(value: float) -> dict[str, Any]:
    return {"kind": "number", "value": value}


def text(value: str) -> dict[str, Any]:
    return {"kind": "text", "value": value}


def series(**entries: Any) -> dict[str, Any]:
    return {"kind": "series", "index": list(entries), "values": list(entries.values()), "name": "x"}


def several(*values: Any) -> dict[str, Any]:
    return {"kind": "list", "values": list(values)}


def table(*rows: Any) -> dict[str, Any]:
    columns = [f"c{i}" for i in range(len(rows[0]))]
    return {"kind": "table", "columns": columns, "rows": [list(row) for row in rows], "total_rows": len(rows)}


MISSING, TRUE = {"kind": "missing", "value": None}, {"kind": "bool", "value": True}
SAME = {
    "a number in the last digits": (number(1234567.0), number(1234567.5)),
    "whole and real": (number(3), number(3.0)),
    "sums of floats": (number(0.1 + 0.2), number(0.3)),
    "zero": (number(0), number(-1e-12)),
    "blanks around a text": (text(" North "), text("North")),
    "order of a series": (series(a=1, b=2), series(b=2, a=1)),
    "a series of one and its value": (series(a=5), number(5)),
    "a value and a series of one": (number(5), series(a=5)),
    "a list of one and its value": (several(5), number(5)),
    "a table of one cell and its value": (table([5]), number(5)),
    "a series of one and a table of one cell": (series(a=5), table([5])),
    "order of a list": (several(1, 2, 2), several(2, 1, 2)),
    "order of rows": (table(["a", 1], ["b", 2]), table(["b", 2.0], ["a", 1])),
    "a series and a table of labels and values": (table(["a", 1], ["b", 2]), series(b=2, a=1)),
    "missing entries": (series(a=None, b=1), series(b=1, a=None)),
    "close values in a list": (several(1.0, 1.0000001), several(1.0000001, 1.0)),
}
OTHER = {
    "a number": (number(2.001), number(2)),
    "one in ten thousand": (number(10001), number(10000)),
    "a sign": (number(-3), number(3)),
    "labels of a series": (series(a=1, b=2), series(a=2, b=1)),
    "the label of a series of one": (series(a=5), series(b=5)),
    "one entry less": (series(a=1), series(a=1, b=2)),
    "one entry more": (several(1, 2, 3), several(1, 2)),
    "how often": (several(1, 1, 2), several(1, 2, 2)),
    "columns of a row": (table([1, 2]), table([2, 1])),
    "one column more": (table(["a", 1]), several("a")),
    "a share for a percentage": (number(0.25), number(25)),
    "missing for zero": (MISSING, number(0)),
    "missing for a number": (MISSING, number(5)),
    "missing entries for zeros": (several(None), several(0)),
    "true for one": (TRUE, number(1)),
    "the text of a bool": (text("yes"), TRUE),
    "letters": (text("north"), text("North")),
    "not a number for a number": (number(float("nan")), number(0)),
    "nothing": (several(), number(0)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_answer(name):
    value, gold = SAME[name]
    assert is_right(value, gold) and is_right(gold, value)


@pytest.mark.parametrize("name", OTHER)
def test_another_answer(name):
    value, gold = OTHER[name]
    assert not is_right(value, gold) and not is_right(gold, value)


def test_a_call_without_a_value_is_wrong():
    assert not is_right(None, number(0)) and not is_right(None, MISSING)


def question(**changes: Any) -> TableQuestion:
    given: dict[str, Any] = {
        "id": "test-1",
        "table": "0001/a.csv",
        "kind": "count",
        "text": 'rows with "a\u2028b"\x85\n in {x}?',
        "code": ("len(df)", 'df["é"]'),
        "gold": series(a=1.5, b=None),
        "phrasing": "held-out",
        "split": "test",
    }
    return TableQuestion(**given | changes)


def test_questions_come_back_as_they_were_written(tmp_path):
    """Also with characters inside that str.splitlines takes for line ends."""
    questions = [question(), question(id="test-2", gold=None, code=(), kind="no-tool")]
    write_questions(tmp_path / "questions.jsonl", questions)
    assert read_questions(tmp_path / "questions.jsonl") == questions


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "x"}', "3", '{"code": 3}'])
def test_a_line_that_is_no_question_is_named(tmp_path, line):
    path = tmp_path / "questions.jsonl"
    write_questions(path, [question()])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(HerdError) as error:
        read_questions(path)
    assert str(error.value).startswith(f"{path}:2: not a question")
