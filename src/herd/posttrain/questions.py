"""Stage `questions`: tables, questions about them with executed gold answers, and dialogs to train on."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from herd.artifact import Artifact, Draft
from herd.console import HerdError, progress, say, warn
from herd.evaluate.answers import TableQuestion, write_questions
from herd.evidence import Claim, write_claims
from herd.model.dialog import Dialog, from_openai, to_openai
from herd.posttrain.sources import SourceTable, read_chats, read_source_tables
from herd.posttrain.synthesis.chat import HELD_OUT_SMALL_TALK
from herd.posttrain.synthesis.dialogs import draw_dialog, draw_turn, restore, view_of
from herd.posttrain.synthesis.questions import View
from herd.posttrain.tuning import seed_of
from herd.recipe import Section
from herd.recipe_posttrain import DialogSource, Synthesis
from herd.tools.sandbox import Backend, Sandbox, Session


class QuestionSettings(Section):
    seed: int
    source: list[DialogSource]
    synthesis: Synthesis
    sandbox: Backend = Field(default="bubblewrap", exclude=True)
    base: Path = Field(exclude=True)


@dataclass
class Opened:
    """A table in a session of its own, and what may be asked about it."""

    id: str
    source: str
    view: View
    session: Session


def write_all(settings: QuestionSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: write tables, questions and dialogs.

    `tables/ID.csv`, `questions.jsonl` (sample, dev, test), `dialogs.parquet` (OpenAI messages and where they are
    from). Raises HerdError where the sources have no table to train on or none to test on.
    """
    folder = out.folder / "tables"
    folder.mkdir()
    sizes, seed = settings.synthesis, settings.seed
    with Sandbox(backend=settings.sandbox) as sandbox:
        train, test = _open_tables(settings, folder, sandbox)
        dialogs = list(_dialogs(train, sizes, seed))
        questions = [
            *_ask(train, sizes.sample_questions, "sample", False, seed),
            *_ask(train, sizes.dev_questions, "dev", False, seed),
            *_ask(test, sizes.known_phrasing_questions, "test", False, seed),
            *_ask(test, sizes.test_questions, "test", True, seed),
            *_talk(test),
        ]
    chats = read_chats(settings.source, settings.base)
    rows = [*dialogs, *((source, dialog) for source, dialog in chats)]
    write_dialogs(out.folder / "dialogs.parquet", rows)
    write_questions(out.folder / "questions.jsonl", questions)
    used = {question.table for question in questions}
    for path in folder.glob("*/*.csv"):  # a table nobody asks about again need not travel
        if f"{path.parent.name}/{path.name}" not in used:
            shutil.rmtree(path.parent)
    facts = {"train_tables": len(train), "test_tables": len(test), "dialogs": len(dialogs), "own_chats": len(chats)}
    out.write_json("facts.json", facts | {"kinds": dict(sorted(Counter(q.kind for q in questions).items()))})
    write_claims(out.folder / "claims.json", _claims(train, test, dialogs))
    say(f"questions: {len(dialogs)} dialogs on {len(train)} tables; {len(test)} tables are never trained on")


def write_dialogs(path: Path, rows: Sequence[tuple[str, Dialog]]) -> None:
    """Dialogs with the name of their source; `untrained` lists assistant messages that carry no loss."""
    columns = {
        "source": [source for source, _ in rows],
        "messages": [json.dumps(to_openai(dialog), ensure_ascii=False) for _, dialog in rows],
        "untrained": [
            [i for i, m in enumerate(dialog.messages) if m.role == "assistant" and not m.trained] for _, dialog in rows
        ],
    }
    schema = pa.schema([("source", pa.string()), ("messages", pa.string()), ("untrained", pa.list_(pa.int32()))])
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def read_dialogs(path: Path) -> list[tuple[str, Dialog]]:
    """Inverse of `write_dialogs`."""
    rows = pq.read_table(path).to_pylist()
    return [(row["source"], _dialog(json.loads(row["messages"]), set(row["untrained"]))) for row in rows]


def _dialog(messages: list[dict], untrained: set[int]) -> Dialog:
    read = from_openai(messages).messages
    return Dialog(tuple(replace(m, trained=False) if i in untrained else m for i, m in enumerate(read)))


def _open_tables(settings: QuestionSettings, folder: Path, sandbox: Sandbox) -> tuple[list[Opened], list[Opened]]:
    """Tables worth asking about, those to train on and those never seen, each open in a session."""
    train: list[Opened] = []
    test: list[Opened] = []
    tables = list(read_source_tables(settings.source, settings.base, settings.seed))
    with progress("questions: tables", len(tables)) as bar:
        for number, table in enumerate(tables, 1):
            if (opened := _open(table, number, folder, sandbox)) is not None:
                (test if table.test else train).append(opened)
            elif table.own:
                warn(
                    f"posttrain.source '{table.source}': {table.name} is left out; expected two columns of numbers and "
                    "one to group by"
                )
            bar.update(number, f"{len(train)} to train on, {len(test)} to test on")
    if not train:
        raise HerdError("posttrain.source: no table to train on; add one of kind 'package-tables' or 'invented-tables'")
    if not test:
        raise HerdError(
            "posttrain.source: no table is kept for testing; add a source of kind 'package-tables', or one of kind "
            "'own-tables' with test = true"
        )
    return train, test


def _open(table: SourceTable, number: int, folder: Path, sandbox: Sandbox) -> Opened | None:
    """None for a table that has too little to ask about: fewer than two numbers, or nothing to group by."""
    path = folder / f"{number:04d}" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', table.name)[:60]}.csv"
    path.parent.mkdir()
    path.write_bytes(table.content)
    session = sandbox.session()
    view = view_of(session.open_table(path), session)
    if len(view.numbers) < 2 or not view.groups:
        session.close()
        shutil.rmtree(path.parent)
        return None
    return Opened(f"{path.parent.name}/{path.name}", table.source, view, session)


def _dialogs(tables: Sequence[Opened], sizes: Synthesis, seed: int) -> Iterator[tuple[str, Dialog]]:
    """Dialogs over all tables in turn. Some have one question only, as most conversations do."""
    order = list(range(len(tables)))
    random.Random(seed_of(seed, "tables")).shuffle(order)
    with progress("questions: dialogs", sizes.dialogs) as bar:
        for index in range(sizes.dialogs):
            table = tables[order[index % len(order)]]
            chance = random.Random(seed_of(seed, "dialog", index))
            yield table.source, draw_dialog(table.view, table.session, chance, sizes.turns)
            bar.update(index + 1, "")


def _ask(
    tables: Sequence[Opened], count: int, split: Literal["sample", "dev", "test"], held_out: bool, seed: int
) -> Iterator[TableQuestion]:
    """So many questions, the tables in turn, none asked twice; fewer where the tables do not give so many."""
    phrasing = "held-out" if held_out else "train"
    asked: set[tuple[str, str]] = set()
    with progress(f"questions: {split}, {phrasing} phrasings", count) as bar:
        for index in range(20 * count):
            if len(asked) == count:
                break
            table = tables[index % len(tables)]
            chance = random.Random(seed_of(seed, split, phrasing, index))
            restore(table.view, table.session)
            turn = draw_turn(table.view, table.session, chance, held_out)
            if (table.id, turn.question.text) in asked:
                continue
            asked.add((table.id, turn.question.text))
            question = turn.question
            id = f"{split}-{phrasing}-{len(asked):04d}"
            yield TableQuestion(id, table.id, question.kind, question.text, turn.codes, turn.gold, phrasing, split)
            bar.update(len(asked), "")


def _talk(tables: Sequence[Opened]) -> Iterator[TableQuestion]:
    """What needs no tool, said in words no training dialog has."""
    for index, text in enumerate(HELD_OUT_SMALL_TALK):
        table = tables[index % len(tables)].id
        yield TableQuestion(f"test-talk-{index:04d}", table, "no-tool", text, (), None, "held-out", "test")


def _claims(train: Sequence[Opened], test: Sequence[Opened], dialogs: Sequence[object]) -> list[Claim]:
    return [
        Claim("questions.tables.train", "tables that dialogs are written about", len(train), "tables"),
        Claim("questions.tables.test", "tables that are never trained on", len(test), "tables"),
        Claim("questions.dialogs", "dialogs whose every gold call was executed", len(dialogs), "dialogs"),
    ]
