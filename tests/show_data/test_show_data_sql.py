"""SQL over the decisions, behind walls."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

GUIDE = "docs/guide/install.html"


def test_sql_over_the_decisions(say: Any) -> None:
    pytest.importorskip("duckdb")
    query = "select step, count(*) as n from drops group by step having n > 1 order by step"
    status, printed = say("inspect", "--sql", query)
    assert status == 0 and [line.split() for line in printed.splitlines()[1:]] == [["heuristics", "2"], ["near", "2"]]
    query = "select d.path, c.sample from documents d join changes c using (id) join samples s using (id)"
    assert GUIDE in say("inspect", "--sql", query)[1]
    status, printed = say("inspect", "--sql", "select path from drops")
    assert status == 0 and "\x1b" not in printed


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('{file}')",
        "select * from read_csv('{file}')",
        "select * from '{file}'",
        "select * from glob('{folder}/*')",
        "copy (select 1) to '{folder}/written.csv'",
        "copy drops to '{folder}/written.csv'",
        "attach '{folder}/written.db'",
        "set enable_external_access = true",
        "install httpfs",
        "create table x as select 1",
        "select 1; select 2",
        "select nothing from drops",
        "not sql at all",
        "",
    ],
)
def test_sql_reaches_nothing_but_the_tables(say: Any, tmp_path: Path, query: str) -> None:
    pytest.importorskip("duckdb")
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nswordfish\n")
    status, printed = say("inspect", "--sql", query.format(file=secret, folder=tmp_path))
    assert status == 1 and printed.startswith("herd: --sql:") and printed.count("\n") == 1
    assert "swordfish" not in printed and [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_without_duckdb_the_error_says_how_to_install_it(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    status, printed = say("inspect", "--sql", "select 1")
    assert status == 1 and "pip install 'llm-herd[inspect]'" in printed
