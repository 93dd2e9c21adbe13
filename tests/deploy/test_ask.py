"""One question in the terminal: what is printed where, the JSON, and the exit status."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from herd.console import HerdError
from herd.deploy.ask import ask

SALES = "region,units\nNorth,5\nSouth,7\nNorth,1\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "sales.csv"
    path.write_text(SALES)
    return path


@pytest.fixture
def sandbox(session) -> Any:
    return cast(Any, session)


def test_code_result_and_answer_are_printed(scripted, sandbox, table, capsys):
    assistant = scripted("> df.groupby('region')['units'].sum()", "North has six, South seven.")
    assert ask(assistant, sandbox, table, "Units by region?", as_json=False, show_code=True) == 0
    printed = capsys.readouterr().out
    places = [printed.index(part) for part in ("df.groupby('region')['units'].sum()", "North", "7", "South seven.")]
    assert places == sorted(places)


def test_code_can_be_left_out(scripted, sandbox, table, capsys):
    assert ask(scripted("> df['units'].sum()", "13."), sandbox, table, "?", as_json=False, show_code=False) == 0
    assert "df['units']" not in capsys.readouterr().out


def test_json_holds_everything(scripted, sandbox, table, capsys):
    assistant = scripted("> df['unit'].sum()", "> df['units'].sum()", "It is 13.")
    assert ask(assistant, sandbox, table, "Units?", as_json=True, show_code=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["value"] == {"kind": "number", "value": 13} and told["answer"] == "It is 13."
    assert told["code"] == ["df['unit'].sum()", "df['units'].sum()"] and "KeyError" in told["errors"][0]
    assert (told["reason"], told["table"], told["question"]) == ("answered", "sales", "Units?")


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_turn_that_fails_exits_with_1(scripted, sandbox, table, capsys, as_json):
    assert ask(scripted("> x..."), sandbox, table, "?", as_json=as_json, show_code=True) == 1
    assert "did not end" in "".join(capsys.readouterr())


def test_an_answer_without_code_says_so(scripted, sandbox, table, capsys):
    assert ask(scripted("Six, I guess."), sandbox, table, "?", as_json=False, show_code=True) == 0
    assert "No code was run" in capsys.readouterr().err


def test_what_is_no_table_is_an_error(scripted, sandbox, tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("")
    with pytest.raises(HerdError, match=r"empty\.csv"):
        ask(scripted(), sandbox, path, "?", as_json=False, show_code=True)
