"""What a member is told about the table it works on. Training, evaluation and the assistant use the same words."""

from __future__ import annotations

import json

from herd.tools.table import Column, TableFacts

SHOWN_COLUMNS = 24
SHOWN_VALUES = 6


def system_prompt(facts: TableFacts) -> str:
    """The system message: the table's name and size, and a line for each column.

    Labels stand as they are written in code, quotes included. Columns beyond the 24th have their label only.
    """
    lines = [f"Table df from {facts.name}: {facts.rows} rows, {len(facts.columns)} columns"]
    lines += [_column(column) for column in facts.columns[:SHOWN_COLUMNS]]
    if rest := facts.columns[SHOWN_COLUMNS:]:
        lines.append("more columns: " + ", ".join(json.dumps(column.name, ensure_ascii=False) for column in rest))
    return "\n".join(lines)


def _column(column: Column) -> str:
    label = json.dumps(column.name, ensure_ascii=False)
    if column.kind in ("number", "date"):
        values = " to ".join(column.examples[:2])
    else:
        values = ", ".join(column.examples[:SHOWN_VALUES]) + (", ..." if column.distinct > SHOWN_VALUES else "")
    missing = f"; {column.missing} missing" if column.missing else ""
    return f"{label} {column.kind}: {values}{missing}"
