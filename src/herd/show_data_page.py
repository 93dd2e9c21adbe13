"""One page about a run's curation: funnel, samples side by side, languages, and a search over what was dropped.

The page is one file that loads nothing. Documents are hostile: everything of theirs is escaped by the template or
handed to the script as JSON that it writes as text, and the page's own policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from herd import __version__
from herd.artifact import write_atomically
from herd.console import human_bytes
from herd.report_funnel import deed, levels, plain_name, warnings
from herd.show_data_books import DROPS, Books, Fate, groups, plain, plain_lines
from herd.show_data_samples import heading, pairs, verdict

TEMPLATE = "show_data.html.jinja"
SEARCHED_ROWS = 20_000  # rows of drops in the page: 3 MB at most
PATH_CHARACTERS, SAMPLE_LINES, PAIRS = 160, 14, 4
_SCRIPT = """
"use strict";
const rows = JSON.parse(document.getElementById("drops").textContent);
const box = document.getElementById("search"), body = document.getElementById("found");
const note = document.getElementById("note"), most = 100;
function show() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const hits = [];
  let total = 0;
  for (const row of rows) {
    const text = row.join(" ").toLowerCase();
    if (words.every(word => text.includes(word)) && ++total <= most) hits.push(row);
  }
  body.replaceChildren(...hits.map(row => {
    const line = document.createElement("tr");
    for (const value of row) {
      const cell = document.createElement("td");
      cell.textContent = value;
      line.append(cell);
    }
    return line;
  }));
  const said = total + (total === 1 ? " document" : " documents");
  note.textContent = said + (total > most ? ", the first " + most + " shown" : "");
}
box.addEventListener("input", show);
show();
"""


def write_page(books: Books, page: Path) -> None:
    """Write the page of a run's curation."""
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render(books))


def render(books: Books) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = levels(books.funnel)
    most, size = max(1, found[0].documents), max(1, *(one.bytes for one in found))
    drops, total = _drops(books)
    return environment.get_template(TEMPLATE).render(
        version=__version__,
        run=books.run.resolve().name,
        artifact=books.curate.path.name,
        read=found[0],
        kept=books.funnel["kept"],
        human_bytes=human_bytes,
        levels=[
            {
                "level": one,
                "document_share": round(100 * one.documents / most, 2),
                "byte_share": round(100 * one.bytes / size, 2),
                "rules": [f"{rule.said}: {deed(rule)}" for rule in one.rules],
            }
            for one in found
        ],
        warnings=warnings(books.funnel),
        languages=sorted(books.funnel.get("languages", ()), key=lambda row: -row["documents"])[:60],
        steps=[step for one in found[1:] if (step := _step(books, one.step)) is not None],
        drops=Markup(_json(drops)),
        searched=len(drops),
        dropped=total,
        script=Markup(_SCRIPT),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_hash(_SCRIPT)}'; base-uri 'none'",
    )


def _step(books: Books, step: str) -> dict[str, Any] | None:
    """Samples of one step, dropped beside let pass; None where there are none."""
    found = [[_sample(one) if one else None for one in pair] for pair in pairs(books, step, PAIRS)]
    return {"name": step, "said": plain_name(step), "heads": heading(step), "pairs": found} if found else None


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "path": plain(row["url"] or row["path"], PATH_CHARACTERS),
        "said": verdict(row),
        "dropped": row["dropped"],
        "text": plain_lines(row["text"], SAMPLE_LINES),
    }


def _drops(books: Books) -> tuple[list[list[str]], int]:
    """Rows for the search: id, path, step and rule, score, kept; the first `SEARCHED_ROWS`, and how many there are."""
    rows: list[list[str]] = []
    total = 0
    for table in groups(books.file(DROPS), Fate._fields):
        total += table.num_rows
        for row in table.slice(0, max(0, SEARCHED_ROWS - len(rows))).to_pylist():
            said = f"{row['step']}: {row['rule'].replace('_', ' ')}"
            path = plain(row["url"] or row["path"], PATH_CHARACTERS)
            score = verdict(row | {"rule": ""})
            rows.append([row["id"], path, said, score, row["kept"] or ""])
    return rows, total


def _json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
