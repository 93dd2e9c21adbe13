"""One question in the terminal: what is printed where, the JSON, and the exit status."""

from __future__ import annotations

import json

import pytest

from herd.cli import main
from herd.deploy.ask import ask


@pytest.fixture
def put(session):
    """Asks a question about the sales table; gives the exit status."""

    def ask_it(assistant, as_json=False, show_code=True):
        return ask(assistant, session, session.facts(), "Units?", as_json, show_code)

    return ask_it


def test_code_result_and_answer_are_printed(scripted, put, capsys):
    assistant = scripted("> df.groupby('region')['units'].sum()", "North has six, South seven.")
    assert put(assistant) == 0
    printed = capsys.readouterr().out
    places = [printed.index(part) for part in ("df.groupby('region')['units'].sum()", "North", "7", "South seven.")]
    assert places == sorted(places)


def test_code_can_be_left_out(scripted, put, capsys):
    assert put(scripted("> df['units'].sum()", "22."), show_code=False) == 0
    assert "df['units']" not in capsys.readouterr().out


def test_json_holds_everything(scripted, put, capsys):
    assistant = scripted("> df['unit'].sum()", "> df['units'].sum()", "It is 22.")
    assert put(assistant, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["value"] == {"kind": "number", "value": 22} and told["answer"] == "It is 22."
    assert told["code"] == ["df['unit'].sum()", "df['units'].sum()"] and "KeyError" in told["errors"][0]
    assert (told["reason"], told["table"], told["question"]) == ("answered", "sales", "Units?")


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_turn_that_fails_exits_with_1(scripted, put, capsys, as_json):
    assert put(scripted("> x..."), as_json) == 1
    assert "did not end" in "".join(capsys.readouterr())


def test_an_answer_without_code_says_so(scripted, put, capsys):
    assert put(scripted("Six, I guess.")) == 0
    assert "No code was run" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", None, bytes(range(256)) * 40], ids=["empty", "missing", "binary"])
def test_what_is_no_table_is_one_clear_line_before_anything_is_loaded(tmp_path, capsys, content):
    path = tmp_path / "odd.csv"
    if content is not None:
        path.write_bytes(content)
    assert main(["ask", str(path), "?", "--run", str(tmp_path / "no-run")]) == 1
    said = capsys.readouterr().err
    if "bubblewrap" in said:
        pytest.skip(said)
    assert said.startswith("herd: ") and "odd.csv" in said and said.count("\n") == 1
