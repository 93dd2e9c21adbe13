"""`herd data inspect`: the funnel of curation in the terminal, samples side by side, and a search for fates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from herd.console import HerdError, human_bytes
from herd.report_funnel import Level, Rule, count, deed, levels, plain_name, warnings
from herd.show_data_books import (
    Books,
    Fate,
    find,
    head_of,
    keeper_of,
    measured,
    near_misses,
    plain,
    plain_lines,
    reason,
)
from herd.show_data_samples import heading, pairs, verdict

SHOWN_RULES, SHOWN_LANGUAGES, SHOWN_SHARES, SHOWN_SITES = 4, 12, 6, 8
SAMPLE_LINES, SAMPLE_PAIRS = 9, 6
FOUND = 20  # documents that a search lists


def print_funnel(books: Books) -> None:
    """Everything about the whole corpus: funnel, warnings, languages, sites, clusters, and what was kept."""
    console = Console(highlight=False)
    found = levels(books.funnel)
    if not found:
        raise HerdError(f"{books.curate.path}: an empty funnel: nothing was read")
    read, kept = found[0], books.funnel["kept"]
    console.print(Text(plain(str(books.run)), "bold"), Text(f"curated as {books.curate.path.name}", "dim"))
    console.print(
        f"{kept['documents']:,} of {count(read.documents, 'document')} kept, {human_bytes(kept['bytes'])} of text "
        f"out of {human_bytes(read.bytes)} read"
    )
    console.print()
    console.print(funnel_table(found, max(12, min(48, console.width - 56))))
    for line in warnings(books.funnel):
        console.print(Text(f"! {plain(line)}", "yellow"))
    for table in (_languages(books.funnel), _sites(books.funnel), _clusters(books)):
        if table is not None:
            console.print()
            console.print(table)
    console.print()
    console.print(Text("Kept", "bold"))
    console.print(_kept(books.funnel, console.width))
    console.print()
    _hint(console, books)


def _hint(console: Console, books: Books) -> None:
    where = f" --run {plain(str(books.run))}"
    console.print(
        Text(
            f"look closer: herd data inspect --step heuristics{where}\n             herd data why ID|URL|PATH{where}",
            "dim",
        )
    )


def funnel_table(found: Sequence[Level], wide: int, rules: int = SHOWN_RULES) -> Table:
    """The funnel as a table; in a bar the upper half is documents, the lower half bytes, as shares of what was read."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("after each step", no_wrap=True, overflow="ellipsis", min_width=22)
    table.add_column(
        Text.assemble(("▀", "default"), " documents ", ("▄", "default"), " bytes"), no_wrap=True, width=wide
    )
    table.add_column("documents", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    most, size = max(1, found[0].documents), max(1, *(level.bytes for level in found))
    for level in found:
        bar = Text(half_bars(level.documents / most, level.bytes / size, wide), "cyan")
        table.add_row(Text(level.said), bar, f"{level.documents:,}", human_bytes(level.bytes))
        for rule in level.rules[:rules]:
            table.add_row(*_rule_row(rule), style="dim")
        if len(rest := level.rules[rules:]) > 0:
            dropped = sum(rule.documents for rule in rest)
            gone = f"-{dropped:,}" if dropped else ""
            table.add_row(f"  {count(len(rest), 'rule')} more", "", gone, "", style="dim")
    return table


def _rule_row(rule: Rule) -> tuple[Text, str, str, str]:
    changed = f"{rule.changed:,} changed" if rule.changed else ""
    lines = f", {count(rule.changes, 'time')}" if rule.changed and rule.changes else ""
    return (
        Text(f"  {plain(rule.said)}"),
        changed + lines,
        f"-{rule.documents:,}" if rule.documents else "",
        f"-{human_bytes(rule.bytes)}" if rule.bytes else "",
    )


def half_bars(upper: float, lower: float, wide: int) -> str:
    """Two bars in one line of text: `upper` and `lower` are shares of `wide` characters. Above 0, at least one."""
    above, below = (min(wide, max(1, round(share * wide)) if share > 0 else 0) for share in (upper, lower))
    both = min(above, below)
    return "█" * both + ("▀" if above > below else "▄") * (max(above, below) - both)


def _languages(books: Mapping[str, Any]) -> Group | None:
    """Declared language against the one identified: where labels lie."""
    rows = sorted(books.get("languages", ()), key=lambda r: (-r["documents"], r["declared"] or "", r["identified"]))
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("source", "declared", "identified"):
        table.add_column(name, no_wrap=True)
    for name in ("documents", "bytes", "confidence"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows[:SHOWN_LANGUAGES]:
        lies = bool(row["declared"]) and row["declared"] != row["identified"]
        table.add_row(
            Text(plain(row["source"], 24)),
            Text(plain(row["declared"] or "not declared", 24)),
            Text(plain(row["identified"], 12)),
            f"{row['documents']:,}",
            human_bytes(row["bytes"]),
            f"{row['confidence']:.2f}",
            Text("the label lies", "yellow") if lies else "",
        )
    more = len(rows) - SHOWN_LANGUAGES
    rest = [Text(f"and {more} more pairs", "dim")] if more > 0 else []
    return Group(Text("Languages", "bold"), table, *rest)


def _sites(books: Mapping[str, Any]) -> Group | None:
    """Sites that went as a whole, with what was measured of them."""
    rows = list(books.get("sites_dropped", ()))
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("site", overflow="ellipsis", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("measured, limit", justify="right", no_wrap=True)
    for row in rows[:SHOWN_SITES]:
        said = plain(row["rule"].replace("_", " "))
        table.add_row(Text(plain(row["site"], 60)), Text(said), measured(row["score"], row["threshold"]))
    more = len(rows) - SHOWN_SITES
    rest = [Text(f"and {count(more, 'site')} more", "dim")] if more > 0 else []
    return Group(Text("Sites dropped as a whole", "bold"), table, *rest)


def _clusters(books: Books) -> Group | None:
    """Clusters of copies: how many, and the largest."""
    clusters = books.funnel.get("clusters")
    if not clusters or not clusters["count"]:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("documents", justify="right", no_wrap=True)
    table.add_column("standing for all", no_wrap=True)
    table.add_column("path", overflow="ellipsis", no_wrap=True)
    for one in clusters["largest"][:SHOWN_SHARES]:
        head = head_of(books, one["kept"])
        table.add_row(f"{one['documents']:,}", one["kept"], Text(plain(head.path if head else "", 200)))
    title = f"Copies: {count(clusters['count'], 'cluster')} of {count(clusters['documents'], 'document')}, the largest"
    return Group(Text(title, "bold"), table)


def _kept(books: Mapping[str, Any], wide: int) -> Any:
    """What was kept by group, kind, language, topic and licence, each as a small table with shares of bytes."""
    kept = books["kept"]
    divisions: list[tuple[str, Mapping[str, Any]]] = [
        (by, counts)
        for by in ("group", "kind", "language", "topic", "source")
        if set(counts := kept.get(f"by_{by}", {})) - {""}  # nothing was classified where all is under ""
    ]
    if licences := books.get("licences"):
        divisions.append(("licence", {name: {"documents": n} for name, n in licences.items()}))
    if splits := kept.get("splits"):
        divisions.append(("split", {name: {"documents": n} for name, n in splits.items()}))
    columns = 2 if wide < 110 else 3
    one = (wide - 2 * columns) // columns
    return Columns([_division(by, counts, one) for by, counts in divisions], width=one, padding=(0, 2), expand=False)


def _division(by: str, counts: Mapping[str, Any], wide: int) -> Padding:
    weigh = "bytes" if all("bytes" in c for c in counts.values()) else "documents"
    rows = sorted(counts.items(), key=lambda row: (-row[1][weigh], row[0]))
    total = sum(c[weigh] for c in counts.values()) or 1
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=wide)
    table.add_column(Text(by), overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("documents", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for name, c in rows[:SHOWN_SHARES]:
        said = plain(name, 60) or "none"
        table.add_row(Text(said), f"{c['documents']:,}", f"{c[weigh] / total:.0%}")
    if len(rest := rows[SHOWN_SHARES:]) > 0:
        left = sum(c[weigh] for _, c in rest) / total
        table.add_row(f"{len(rest)} more", f"{sum(c['documents'] for _, c in rest):,}", f"{left:.0%}", style="dim")
    return Padding(table, (0, 0, 1, 0))


def print_step(books: Books, step: str) -> None:
    """One step: its rules, then samples of what it dropped beside what it let pass. HerdError: no such step."""
    console = Console(highlight=False)
    known = [one["step"] for one in books.funnel["steps"]]
    if step not in known:
        raise HerdError(f"--step {step}: no such step; steps are {', '.join(known)}")
    level = next(level for level in levels(books.funnel) if level.step == step)
    before = next(one for one in books.funnel["steps"] if one["step"] == step)["documents_in"]
    console.print(
        Text(f"{step}: {plain_name(step)}", "bold"),
        Text(f"{level.dropped:,} of {count(before, 'document')} dropped", "dim"),
    )
    for rule in level.rules:
        console.print(Text(f"  {plain(rule.said)}: {deed(rule)}"))
    found = pairs(books, step, SAMPLE_PAIRS)
    console.print()
    if not found:
        console.print("No samples were kept of this step.")
        return
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    gone, stays = heading(step)
    grid.add_row(Text(gone, "bold red"), Text(stays, "bold green"))
    for pair in found:
        grid.add_row(*(_sample(one) if one else "" for one in pair))
    console.print(grid)


def _sample(row: Mapping[str, Any]) -> Panel:
    parts = [Text(plain(row["url"] or row["path"]), "bold", overflow="fold")]
    if said := verdict(row):
        parts.append(Text(said, "red" if row["dropped"] else "green"))
    text = Text(plain_lines(row["text"], SAMPLE_LINES), overflow="ellipsis", no_wrap=True)
    return Panel(
        Group(*parts, text), title=row["id"], title_align="left", border_style="red" if row["dropped"] else "green"
    )


def print_found(books: Books, words: str) -> int:
    """Documents that a search finds, each with its fate; status 1 where there are none, with near misses."""
    console = Console(highlight=False)
    found, total = find(books, words, FOUND)
    if not found:
        return print_none(console, books, words)
    print_fates(console, books, found)
    if total > len(found):
        console.print(Text(f"and {total - len(found):,} more: add words to narrow it down", "dim"))
    return 0


def print_fates(console: Console, books: Books, found: Sequence[Fate]) -> None:
    """A line for each document and one for its fate."""
    for fate in found:
        url = f"  {plain(fate.url)}" if fate.url else ""
        console.print(Text.assemble((fate.id, "bold"), "  ", plain(fate.path), (url, "dim")), soft_wrap=True)
        said = reason(fate, keeper_of(books, fate))
        where = Text(f"{fate.step}: ", "red") if fate.step else Text("", "green")
        console.print(Padding(where + Text(said, "" if fate.step else "green"), (0, 0, 0, 4)))


def print_none(console: Console, books: Books, words: str) -> int:
    """Say that nothing was found, and what comes near; the exit status."""
    console.print(Text(f"no document is called '{plain(words, 200)}' in {plain(str(books.run))}"))
    if near := near_misses(books, words):
        console.print("did you mean:")
        print_fates(console, books, near)
    return 1


def inspect(
    run: Path, step: str | None, search: str | None, sql: str | None, picture: Path | None, page: Path | None
) -> int:
    """What the verb does; without a choice the whole funnel is printed. Returns the exit status."""
    from herd.show_data_books import open_books

    books, status = open_books(run), 0
    if step is not None:
        print_step(books, step)
    if search is not None:
        status = print_found(books, search)
    if sql is not None:
        from herd.show_data_sql import print_query

        print_query(books, sql)
    if picture is not None:
        from herd.report_funnel import draw

        draw(books.funnel, f"The diet of {plain(run.resolve().name, 60)}", picture)
        print(f"written: {picture}")
    if page is not None:
        from herd.show_data_page import write_page

        write_page(books, page)
        print(f"written: {page}")
    if step is None and search is None and sql is None and picture is None and page is None:
        print_funnel(books)
    return status
