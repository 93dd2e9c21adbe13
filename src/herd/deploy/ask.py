"""`herd ask`: one question about one CSV file in the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text as Styled

from herd.deploy.assistant import (
    DRAFTS,
    Assistant,
    Code,
    Conversation,
    Done,
    Error,
    Event,
    Notice,
    Output,
    Session,
    Text,
)
from herd.deploy.talk import load_generator
from herd.model.dialog import Dialog, Message
from herd.safety.guard import Guard
from herd.tools.prompts import system_prompt
from herd.tools.table import TableFacts

REFUSAL = "I can't help with that."
SHOWN_ROWS = 20


def load_assistant(name: str, model: Path, tokenizer: Path, guard: Path | None = None) -> Assistant:
    """A member from its folders of weights, tokenizer and perhaps guard. Raises HerdError naming a file."""
    generator, words, context = load_generator(model, tokenizer)
    assistant = Assistant(name, generator, words, context, drafts=DRAFTS)
    if guard is None:
        return assistant
    judge = Guard.load(guard)
    return replace(assistant, guard=lambda text: REFUSAL if judge.blocks(text) else None)


def ask(
    assistant: Assistant, session: Session, facts: TableFacts, question: str, as_json: bool, show_code: bool
) -> int:
    """Print code, results and answer as they come, or all of it as one JSON object; 0 where the question was answered.

    `session` has the table open, `facts` say what it is.
    """
    conversation = Conversation(assistant, session, Dialog((Message("system", system_prompt(facts)),)))
    events = conversation.ask(question)
    if as_json:
        told = {"table": facts.name, "question": question, "notes": facts.notes, **summary(list(events))}
        print(json.dumps(told, ensure_ascii=False))
        return told["status"]
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    for note in facts.notes:
        errors.print(f"note: {note}", markup=False, style="dim")
    last: Event | None = None
    for event in events:
        if isinstance(last, Text) and not isinstance(event, Text):
            print(flush=True)  # ends the line of words
        show(event, console, errors, show_code)
        last = event
    return status(last)


def status(last: Event | None) -> int:
    """Exit status of a turn by its last event."""
    return 0 if isinstance(last, Done) and last.reason in ("answered", "length") else 1


def summary(events: list[Event]) -> dict[str, Any]:
    """A turn as one object: `value` is that of the last result, `reason` how the turn ended."""
    done, values = events[-1], [event.value for event in events if isinstance(event, Output)]
    assert isinstance(done, Done)
    return {
        "code": [event.text for event in events if isinstance(event, Code)],
        "results": [event.text for event in events if isinstance(event, Output)],
        "errors": [event.text for event in events if isinstance(event, Error)],
        "notices": [event.text for event in events if isinstance(event, Notice)],
        "value": values[-1] if values else None,
        "answer": "".join(event.piece for event in events if isinstance(event, Text)),
        "reason": done.reason,
        "status": status(done),
    }


def show(event: Event, console: Console, errors: Console, show_code: bool) -> None:
    """One event in the terminal: code, results and words to standard output, troubles to standard error."""
    if isinstance(event, Text):
        print(event.piece, end="", flush=True)
    elif isinstance(event, Code) and show_code:
        code = Syntax(event.text, "python", background_color="default", word_wrap=True)
        console.print(Padding(code, (0, 0, 0, 2)) if console.is_terminal else event.text, markup=False, soft_wrap=True)
    elif isinstance(event, Output):
        shown = _table(event.value) if event.value and console.is_terminal else None
        console.print(shown or Styled(event.text), soft_wrap=shown is None)
    elif isinstance(event, Error | Notice):
        errors.print(event.text, markup=False, style="red" if isinstance(event, Error) else "dim", soft_wrap=True)
    elif isinstance(event, Done) and event.reason == "answered" and not event.calls:
        errors.print("No code was run for this answer.", style="dim")


def _table(value: dict[str, Any]) -> Table | None:
    """A series or table as lines under column names; None for what its text says as well."""
    if value["kind"] == "series":
        columns, rows = (
            ["", value["name"] or ""],
            [list(row) for row in zip(value["index"], value["values"], strict=True)],
        )
    elif value["kind"] == "table":
        columns, rows = value["columns"], value["rows"]
    else:
        return None
    table = Table(box=None, pad_edge=False, header_style="dim")
    for position, name in enumerate(columns):
        numbers = all(isinstance(row[position], int | float | None) for row in rows)
        table.add_column(Styled(str(name)), justify="right" if numbers else "left", overflow="fold")
    for row in rows[:SHOWN_ROWS]:
        table.add_row(
            *(Styled("–" if cell is None else f"{cell:,.6g}" if isinstance(cell, float) else str(cell)) for cell in row)
        )
    if len(rows) > SHOWN_ROWS:
        table.add_row(Styled(f"… {value.get('total_rows', len(rows)):,} rows in all", style="dim"))
    return table
