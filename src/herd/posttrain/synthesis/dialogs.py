"""Questions become dialogs: every gold program is executed, and what fails is left out.

A dialog is about one table: a system message with its columns, then questions, each with its calls, their real
results and an answer in words (spec A14). Some turns begin with a call that fails, whose error is real and which is
not trained on, so that its repair is what is learned.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from herd.evaluate.answers import Value
from herd.model.dialog import Dialog, Message, python_call
from herd.posttrain.synthesis.chat import SMALL_TALK
from herd.posttrain.synthesis.kinds import draw_question
from herd.posttrain.synthesis.questions import Question, View
from herd.posttrain.synthesis.words import literal, natural
from herd.tools.prompts import system_prompt
from herd.tools.sandbox import Result, Session
from herd.tools.table import TableFacts

LONGEST_RESULT = 240  # characters: a longer result costs more tokens than it teaches
TOLD_ENTRIES = 6
ERROR_SHARE, TALK_SHARE = 0.05, 0.05
SILENT_SHARE = 0.4  # turns whose answer in words is left out: words are learned from fewer than calls need


@dataclass(frozen=True)
class Turn:
    """A question that was executed: the messages from the question to the answer in words, and the gold value."""

    question: Question
    codes: tuple[str, ...]
    messages: tuple[Message, ...]
    gold: Value


def view_of(facts: TableFacts, session: Session) -> View:
    """What builders need of a table that is open in a session; quantiles of its number columns are computed there."""
    numbers = [column.name for column in facts.columns if column.kind == "number"]
    quantiles: dict[str, list[float]] = {}
    for name in numbers:
        result = session.run(f"df[{literal(name)}].dropna().quantile([i / 10 for i in range(1, 10)]).tolist()")
        values = result.value["values"] if result.value and result.value["kind"] == "list" else []
        if len(values) == 9 and all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            quantiles[name] = [float(value) for value in values]
    return View(facts, quantiles)


def play(question: Question, session: Session) -> Turn | None:
    """Execute a question's gold steps; None where one fails or the value says nothing (none, missing, empty)."""
    messages, codes, before = [Message("user", question.text)], [], ""
    result: Result | None = None
    for step in question.steps:
        code = step.code.replace("{}", before, 1) if before else step.code
        result = session.run(code)
        if not result.ok or not _telling(result):
            return None
        codes.append(code)
        messages += [Message("assistant", calls=(python_call(code),)), Message("tool", result.text)]
        before = _as_literal(result.value)
    assert result is not None and result.value is not None
    answer = question.answer.replace("{}", told(result), 1)
    return Turn(question, tuple(codes), (*messages, Message("assistant", answer)), result.value)


def told(result: Result) -> str:
    """A result inside a sentence: a scalar as it was shown, the first entries of what is longer."""
    lines = [" ".join(line.split()) for line in result.text.strip().splitlines()]
    kind = result.value["kind"] if result.value else ""
    if kind == "table":
        lines = lines[1:]
    if len(lines) <= 1 and kind != "table":
        return lines[0] if lines else ""
    more = f" and {len(lines) - TOLD_ENTRIES} more" if len(lines) > TOLD_ENTRIES else ""
    return ("; " if kind == "table" else ", ").join(lines[:TOLD_ENTRIES]) + more


def restore(view: View, session: Session) -> None:
    """Take away the columns that questions added, so that each dialog is about the table as it was opened."""
    session.run(f"df = df[{view.labels!r}]")


def draw_turn(view: View, session: Session, chance: random.Random, held_out: bool) -> Turn:
    """A question that works on this table; those whose gold fails are drawn again."""
    while True:
        turn = play(draw_question(view, chance, held_out), session)
        if turn is not None:
            return turn


def draw_dialog(view: View, session: Session, chance: random.Random, turns: int) -> Dialog:
    """A conversation of several questions about one table, ready to train on; its last turn has an answer."""
    restore(view, session)
    messages = [Message("system", system_prompt(view.facts))]
    for left in reversed(range(turns)):
        if chance.random() < TALK_SHARE:
            said, answers = chance.choice(SMALL_TALK)
            messages += [Message("user", chance.choice(said)), Message("assistant", chance.choice(answers))]
            continue
        turn = draw_turn(view, session, chance, held_out=False)
        failed = _failed_call(turn, view, session, chance) if chance.random() < ERROR_SHARE else ()
        silent = left > 0 and chance.random() < SILENT_SHARE
        messages += [turn.messages[0], *failed, *(turn.messages[1:-1] if silent else turn.messages[1:])]
    return Dialog(tuple(messages))


def _failed_call(turn: Turn, view: View, session: Session, chance: random.Random) -> Sequence[Message]:
    """A call that goes wrong the way calls do, with the error that it really gives; nothing where it does not fail."""
    code = turn.codes[0]
    named = [label for label in view.labels if literal(label) in code and natural(label) != label]
    wrong = [code.replace("df", "data")]
    wrong += [code.replace(literal(label), literal(natural(label))) for label in named]
    texts = [column.name for column in view.facts.columns if column.kind == "text"]
    if texts:
        wrong.append(f"df[{literal(chance.choice(texts))}].mean()")
    result = session.run(bad := chance.choice(wrong))
    if result.ok:
        return ()
    return Message("assistant", calls=(python_call(bad),), trained=False), Message("tool", result.text)


def _telling(result: Result) -> bool:
    value = result.value
    if value is None or not result.text.strip() or len(result.text) > LONGEST_RESULT:
        return False
    match value["kind"]:
        case "number":
            return isinstance(value["value"], int | float) and math.isfinite(value["value"])
        case "text" | "bool":
            return True
        case "series" | "list":
            return len(value["values"]) > 0
        case "table":
            return len(value["rows"]) > 0
    return False


def _as_literal(value: Value | None) -> str:
    return literal(value["value"]) if value and value["kind"] in ("number", "text", "bool") else ""
