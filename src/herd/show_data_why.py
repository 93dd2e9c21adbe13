"""`herd data why`: the whole story of one document, from where it came from to where it went, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from herd.console import human_bytes
from herd.report_funnel import count
from herd.show_data import FOUND, print_fates, print_none
from herd.show_data_books import (
    DOCUMENTS,
    DROPS,
    Books,
    Fate,
    changes,
    find,
    keeper_of,
    open_books,
    plain,
    plain_lines,
    reason,
    rows_where,
)

SHOWN_COPIES, SHOWN_LINES = 12, 8


def why(run: Path, words: str) -> int:
    """Print a document's story; status 1 where nothing matches, and where several do, which are listed."""
    books, console = open_books(run), Console(highlight=False)
    found, total = find(books, words, FOUND)
    if not found:
        return print_none(console, books, words)
    if all(fate.url == words for fate in found):  # copies of one page: its story names them
        ids = {fate.id for fate in found}
        found = [fate for fate in found if fate.kept not in ids] or found
    if len({fate.id for fate in found}) > 1:
        console.print(f"{total:,} documents match; name one by its id, or by more of its path:")
        print_fates(console, books, found)
        if total > len(found):
            console.print(Text(f"and {total - len(found):,} more", "dim"))
        return 1
    _tell(console, books, found[0])
    return 0


def _tell(console: Console, books: Books, fate: Fate) -> None:
    raw = _raw(books, fate.id)
    row = next(iter(rows_where(books.file(DOCUMENTS), "id", [fate.id], _KEPT)), {}) if not fate.step else {}
    console.print(Text(plain(fate.path), "bold"))
    facts = {
        "id": fate.id,
        "source": fate.source,
        "url": fate.url,
        "kind": raw.get("kind", ""),
        "licence": raw.get("licence", ""),
        "retrieved": raw.get("retrieved", ""),
    }
    if row:
        facts |= {name: row[name] for name in ("page", "language", "group", "topic", "split")}
        facts["quality"] = f"{row['quality']:.3f}" if row.get("quality") is not None else "not scored"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(plain(str(value))))
    console.print(table)
    console.print()
    _steps(console, books, fate)
    _copies(console, books, fate)
    if row:
        console.print()
        console.print(Text(f"Kept: {human_bytes(row['bytes'])} of text, which begins:", "bold green"))
        text = Text(plain_lines(row["text"], SHOWN_LINES), overflow="ellipsis", no_wrap=True)
        console.print(Padding(text, (0, 0, 0, 2)))


_KEPT = ["id", "page", "language", "group", "topic", "split", "quality", "bytes", "text"]


def _raw(books: Books, id: str) -> dict[str, Any]:
    """What the reader noted of a document; empty where its row is not there."""
    for file in books.raw():
        if rows := rows_where(file, "id", [id], ["id", "kind", "media", "licence", "retrieved"], 1):
            return rows[0]
    return {}


def _steps(console: Console, books: Books, fate: Fate) -> None:
    """A line a step: passed, changed, dropped, or not reached."""
    changed: dict[str, list[dict[str, Any]]] = {}
    for one in changes(books, [fate.id]):
        changed.setdefault(one["step"], []).append(one)
    reached = True
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for step in (one["step"] for one in books.funnel["steps"]):
        said: list[Text] = [Text(_change(one)) for one in changed.get(step, ())]
        if step == fate.step:
            said.append(Text(f"dropped: {reason(fate, keeper_of(books, fate))}", "red"))
            table.add_row(Text("✗", "red"), Text(step, "red"), Text("\n").join(said))
            reached = False
        elif not reached:
            table.add_row(Text("·", "dim"), Text(step, "dim"), Text("not reached", "dim"))
        else:
            mark = Text("~", "yellow") if said else Text("✓", "green")
            table.add_row(mark, Text(step), Text("\n").join(said) if said else Text("passed", "dim"))
    console.print(table)


def _change(one: dict[str, Any]) -> str:
    """What a step changed, in words: masked 3 times: 3 email; 12 lines taken out, 410 B, such as ..."""
    rule = one["rule"].replace("_", " ")
    size = f", {human_bytes(one['bytes'])}" if one["bytes"] else ""
    sample = f', such as "{plain(one["sample"], 80)}"' if one["sample"] else ""
    if one["step"] == "pii":
        return f"masked {count(one['count'], 'time')}: {plain(one['sample'], 80)}" if one["sample"] else plain(rule)
    if one["step"] == "lines":
        return f"{count(one['count'], 'line')} taken out{size}{sample}"
    return f"{plain(rule)}: changed {count(one['count'], 'time')}{size}{sample}"


def _copies(console: Console, books: Books, fate: Fate) -> None:
    """The other members of its cluster: copies of this document, or of the one that stands for it."""
    head = fate.kept or fate.id
    rows = rows_where(books.file(DROPS), "kept", [head], Fate._fields)
    others = [row for row in rows if row["id"] != fate.id]
    if not others and not fate.kept:
        return
    console.print()
    console.print(Text(f"Cluster of copies: {count(len(rows) + 1, 'document')}", "bold"))
    if fate.kept and (keeper := keeper_of(books, fate)) is not None:
        state = f"dropped in '{keeper.step}'" if keeper.step else "kept"
        console.print(Text(f"  {keeper.id}  {plain(keeper.path)}  ({state})", "green"), soft_wrap=True)
    for row in others[:SHOWN_COPIES]:
        line = f"  {row['id']}  {plain(row['path'])}  ({row['step']}, {row['score']:.3g})"
        console.print(Text(line), soft_wrap=True)
    if len(others) > SHOWN_COPIES:
        console.print(Text(f"  and {len(others) - SHOWN_COPIES:,} more", "dim"))
