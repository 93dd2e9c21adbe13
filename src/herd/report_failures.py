"""What the report shows of single questions: accuracy by kind, and what failed, grouped by what can be told of it.

Questions, column labels and results come from tables that others made: the template escapes them.
"""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Sequence
from typing import Any

from herd.artifact import Artifact
from herd.intervals import wilson
from herd.report_reading import Run, json_lines

EXAMPLES = 8
LONGEST, LINES = 220, 6  # characters and lines of a result that are shown
CAUSES = {  # in the order they are tried; the last is what is left
    "no call": "was answered in words, without running anything",
    "did not run": "ended in an error",
    "went on": "had run the right code, and then ran another",
    "other columns": "used other columns than the right code",
    "other value": "used the right columns and got another value",
}

Row = dict[str, Any]


def kinds(run: Run, answers: Artifact) -> dict[str, Any]:
    """Right answers by kind of question, the worst first, for phrasings that were and were not trained on."""
    rows = [row for row in json_lines(answers, "answers.jsonl") if row["kind"] != "no-tool"]
    found = []
    for kind in sorted({row["kind"] for row in rows}):
        unseen, known = (
            [bool(r["right"]) for r in rows if r["kind"] == kind and r["phrasing"] == phrasing]
            for phrasing in ("held-out", "train")
        )
        found.append((sum(unseen) / len(unseen) if unseen else 2.0, kind, unseen, known))
    return {
        "file": f"{answers.path.name}/answers.jsonl",
        "rows": [
            {
                "kind": kind.replace("-", " "),
                "unseen": _count(run, answers, unseen),
                "interval": "{:.0%} to {:.0%}".format(*wilson(sum(unseen), len(unseen))) if unseen else "",
                "known": _count(run, answers, known),
                "share": f"{100 * share:.1f}" if unseen else "0",
            }
            for share, kind, unseen, known in sorted(found)
        ],
    }


def _count(run: Run, answers: Artifact, right: Sequence[bool]) -> Any:
    return run.from_file(answers.stage, "answers.jsonl", f"{sum(right)} of {len(right)}") if right else "none"


def failures(run: Run, answers: Artifact) -> dict[str, Any] | None:
    """Unseen questions that were answered wrong, counted by cause, and examples of each; None where there are none."""
    asked = [r for r in json_lines(answers, "answers.jsonl") if r["kind"] != "no-tool" and r["phrasing"] == "held-out"]
    wrong = [row for row in asked if not row["right"]]
    if not wrong:
        return None
    columns = _columns(run, {row["table"] for row in wrong})
    groups: dict[str, list[Row]] = {name: [] for name in CAUSES}
    for row in wrong:
        groups[cause(row, columns.get(row["table"]))].append(row)
    shown = _spread(groups)
    silent = sum(bool(row["right"] and not row["said"]) for row in asked)
    return {
        "wrong": run.from_file(answers.stage, "answers.jsonl", str(len(wrong))),
        "asked": len(asked),
        "silent": run.from_file(answers.stage, "answers.jsonl", str(silent)) if silent else None,
        "columns_known": bool(columns),
        "groups": [
            {
                "cause": name,
                "means": CAUSES[name],
                "count": run.from_file(answers.stage, "answers.jsonl", str(len(rows))),
                "examples": [_example(row) for row in shown[name]],
            }
            for name, rows in groups.items()
            if rows
        ],
    }


def cause(row: Row, columns: Sequence[str] | None) -> str:
    """What a row tells of its wrong answer; where the columns are not known, text in the code stands for them."""
    if not row["codes"]:
        return "no call"
    if not row["executed"]:
        return "did not run"
    if set(row["gold"]["code"][-1:]) & set(row["codes"][:-1]):
        return "went on"
    used, right = (labels("\n".join(codes), columns) for codes in (row["codes"], row["gold"]["code"]))
    return "other columns" if used != right else "other value"


def labels(code: str, columns: Sequence[str] | None) -> set[str]:
    """Column labels that code mentions: as text, or as `df.label`. Empty for code that is no Python."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError):
        return set()
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}  # df.count() is no column
    attributes = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and id(node) not in called
    }
    return texts if columns is None else (texts | attributes) & set(columns)


def _columns(run: Run, tables: set[str]) -> dict[str, list[str]]:
    """The first row of each table, where the run still has its questions."""
    questions, found = run.artifacts.get("questions"), {}
    for table in tables if questions else ():
        if questions is not None and (name := f"tables/{table}") in questions.manifest["files"]:
            text = questions.file(name).read_text(encoding="utf-8", errors="replace")
            found[table] = next(csv.reader(io.StringIO(text)), [])
    return found


def _spread(groups: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """At most EXAMPLES rows: one of each cause, then a second, and so on, kinds of question that differ first."""
    shown: dict[str, list[Row]] = {name: [] for name in groups}
    queues = {name: _kinds_in_turn(rows) for name, rows in groups.items()}
    while sum(map(len, shown.values())) < EXAMPLES and any(queues.values()):
        for name, queue in queues.items():
            if queue and sum(map(len, shown.values())) < EXAMPLES:
                shown[name].append(queue.pop(0))
    return shown


def _kinds_in_turn(rows: list[Row]) -> list[Row]:
    seen: dict[str, int] = {}
    order = []
    for row in rows:
        seen[row["kind"]] = seen.get(row["kind"], 0) + 1
        order.append((seen[row["kind"]], row["id"], row))
    return [row for _, _, row in sorted(order, key=lambda one: one[:2])]


def _example(row: Row) -> dict[str, str]:
    return {
        "kind": row["kind"].replace("-", " "),
        "text": row["text"],
        "table": row["table"].split("/")[-1],
        "code": "\n".join(row["codes"]),
        "result": cut(row["results"][-1]) if row["results"] else "",
        "answer": "" if row["codes"] else cut(row["answer"]),
        "gold": "\n".join(row["gold"]["code"]),
        "value": say_value(row["gold"]["value"]),
    }


def cut(text: str) -> str:
    """The beginning of a long text."""
    whole = text.strip()
    start = "\n".join(whole.splitlines()[:LINES])[:LONGEST].rstrip()
    return start if start == whole else f"{start} …"


def say_value(value: Row | None) -> str:
    """A value of the sandbox as one line."""
    if value is None:
        return "an answer in words"
    kind = value.get("kind")
    if kind == "series":
        return cut(", ".join(f"{k}: {_short(v)}" for k, v in zip(value["index"], value["values"], strict=False)))
    if kind == "list":
        return cut(", ".join(map(_short, value["values"])))
    if kind == "table":
        return cut("; ".join(", ".join(map(_short, row)) for row in value["rows"]))
    return _short(value.get("value"))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
