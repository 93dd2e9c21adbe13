"""SQL over what curation decided: DuckDB, given the four tables of a run and nothing else."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from herd.console import HerdError
from herd.show_data_books import CHANGES, DOCUMENTS, DROPS, SAMPLES, Books, plain

VIEWS = {"documents": DOCUMENTS, "drops": DROPS, "changes": CHANGES, "samples": SAMPLES}
MEMORY = "1GB"
SHOWN_ROWS, SHOWN_CHARACTERS = 200, 300
# No files, no network, no extensions, no Python variables; and no way back, once the configuration is locked.
_WALLS = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": MEMORY,
    "threads": "2",
    "lock_configuration": "true",
}


def query(books: Books, sql: str, most: int = SHOWN_ROWS) -> tuple[list[str], list[tuple[Any, ...]], bool]:
    """Column names, the first `most` rows of one SELECT over the four views, and whether there were more.

    The views are read as they are needed. Raises HerdError without DuckDB, and for what is no single SELECT or fails.
    """
    try:
        import duckdb
    except ImportError:
        raise HerdError("--sql needs DuckDB: pip install 'llm-herd[inspect]'") from None
    from pyarrow import dataset

    connection = duckdb.connect(":memory:", config=dict(_WALLS))
    try:
        for name, file in VIEWS.items():
            connection.register(name, dataset.dataset(books.file(file), format="parquet"))
        statements = connection.extract_statements(sql)
        kinds = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
        if len(statements) != 1 or statements[0].type not in kinds:
            raise HerdError(f"--sql: expected one SELECT over {', '.join(VIEWS)}")
        result = connection.execute(statements[0])
        rows = result.fetchmany(most + 1)
        return [column[0] for column in result.description or ()], rows[:most], len(rows) > most
    except duckdb.Error as error:
        line = " ".join(str(error).split())
        raise HerdError(f"--sql: {plain(line, 400)} (tables are {', '.join(VIEWS)})") from None
    finally:
        connection.close()


def print_query(books: Books, sql: str) -> None:
    """Run one SELECT and print its rows as a table."""
    names, rows, more = query(books, sql)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(names):
        numbers = bool(rows) and all(isinstance(row[index], (int, float)) or row[index] is None for row in rows)
        table.add_column(Text(plain(name)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_said(value)) for value in row))
    console = Console(highlight=False)
    console.print(table)
    if more:
        console.print(Text(f"only the first {SHOWN_ROWS} rows are shown", "dim"))


def _said(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return plain(str(value), SHOWN_CHARACTERS)
