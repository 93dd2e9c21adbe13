"""Stage `executed`: how many questions about tables a member answers right, judged by executing its calls.

Right means: the last call of the conversation ran and its value is the gold value; for a question that needs no tool,
that it was answered without a call. Beside it: how often the answer in words says the value, and the loss on chats
that are never trained on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from herd.artifact import Artifact, Draft, canonical_json
from herd.data.loader import derive_seed
from herd.evaluate.answers import TableQuestion, is_right, read_questions
from herd.evaluate.usage import usage_claims
from herd.evidence import Claim, write_claims
from herd.infer.engine import Engine
from herd.intervals import paired_bootstrap, wilson
from herd.model.dialog import Dialog, Message, encode, from_openai
from herd.model.formats.native import load_native
from herd.model.generation import Generator, Sampling
from herd.model.tokenizer import Tokenizer
from herd.model.transformer import Transformer
from herd.recipe import Compute, Section
from herd.tools.prompts import system_prompt
from herd.tools.sandbox import Backend, Sandbox
from herd.tools.turns import MAX_CALLS, Episode, run_episodes
from herd.train.batches import Row, dialog_batch
from herd.train.hardware import choose_hardware
from herd.train.objective import token_logprobs
from herd.train.workers import set_threads

MAX_TOKENS = 64
GROUPS = {  # claim id -> (phrasing, what it says of the questions)
    "unseen": ("held-out", "tables and phrasings never trained on"),
    "unseen-tables": ("train", "tables never trained on, phrasings trained on"),
}


class ExecutedSettings(Section):
    """`step` names what was done to the member last: zero-shot, after-sft, after-rejection, after-dpo."""

    seed: int
    member: str
    step: str
    confidence: float
    threads: int
    hardware: dict[str, str]
    sandbox: Backend = Field(default="bubblewrap", exclude=True)
    compute: Compute = Field(exclude=True)


def evaluate_executed(settings: ExecutedSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: answer the test questions with inputs["model"]; a row a question goes to `answers.jsonl`."""
    set_threads(settings.threads)
    hardware = choose_hardware(settings.compute)
    tokenizer = Tokenizer.load(inputs["adopt"].path / "tokenizer")
    model = load_native(inputs["model"].path).to(hardware.device)
    held_out = [from_openai(row) for row in inputs["chats"].json_lines("held-out.jsonl")]
    chats = chat_losses(model, tokenizer, held_out, hardware.dtype)
    engine = Engine(model.to(hardware.dtype), tokenizer)
    questions = [q for q in read_questions(inputs["questions"].file("questions.jsonl")) if q.split == "test"]
    started = time.monotonic()
    title = f"{settings.member}: questions, {settings.step}"
    rows = answer_questions(
        engine, tokenizer, questions, inputs["questions"].path / "tables", title, sandbox=settings.sandbox
    )
    seconds = time.monotonic() - started
    lines = "".join(canonical_json(row) + "\n" for row in rows)
    (out.folder / "answers.jsonl").write_text(lines, encoding="utf-8")
    out.write_json("chats.json", {"nats": chats[0].tolist(), "tokens": chats[1].tolist()})
    write_claims(out.folder / "claims.json", _claims(settings, rows, chats, inputs.get("before")))
    (out.recorded / "speed.json").write_text(canonical_json({"seconds": seconds, "questions": len(rows)}))
    write_claims(out.recorded / "claims.json", usage_claims(settings.member, engine))


def answer_questions(
    generator: Generator,
    tokenizer: Tokenizer,
    questions: Sequence[TableQuestion],
    tables: Path,
    title: str,
    sampling: Sampling | None = None,
    use_grammar: bool = True,
    max_calls: int = MAX_CALLS,
    sandbox: Backend = "bubblewrap",
) -> list[dict[str, Any]]:
    """Let a generator answer questions, each in a session of its own, and judge the answers.

    Rows in the order of the questions: id, kind, phrasing, text, codes, results, answer, right, said.
    """
    sampling = sampling or Sampling(temperature=0, max_tokens=MAX_TOKENS)
    with Sandbox(backend=sandbox) as walls, ExitStack() as stack:
        episodes = []
        for question in questions:
            session = stack.enter_context(walls.session())
            facts = session.open_table(tables / question.table)
            dialog = Dialog((Message("system", system_prompt(facts)), Message("user", question.text)))
            episodes.append(Episode(dialog, session, facts))
        run_episodes(generator, tokenizer, episodes, sampling, title, use_grammar, max_calls)
    return [_row(question, episode) for question, episode in zip(questions, episodes, strict=True)]


def _row(question: TableQuestion, episode: Episode) -> dict[str, Any]:
    last = episode.results[-1] if episode.results else None
    answer = episode.dialog.messages[-1].content if episode.dialog.messages[-1].role == "assistant" else ""
    if question.gold is None:
        right = said = last is None
    else:
        right = last is not None and last.ok and is_right(last.value, question.gold)
        said = right and last is not None and says(answer, last.text)
    return {
        "id": question.id,
        "kind": question.kind,
        "phrasing": question.phrasing,
        "table": question.table,
        "text": question.text,
        "gold": {"code": list(question.code), "value": question.gold},
        "codes": episode.codes,
        "results": [result.text for result in episode.results],
        "executed": last is None or last.ok,
        "answer": answer,
        "right": right,
        "said": said,
    }


def says(answer: str, result: str) -> bool:
    """Whether an answer in words has every entry that it could be expected to tell of a result: its first line."""
    lines = [" ".join(line.split()) for line in result.strip().splitlines()]
    return bool(lines) and (lines[0] in answer or (len(lines) > 1 and lines[1] in answer))


def chat_losses(
    model: Transformer, tokenizer: Tokenizer, chats: Sequence[Dialog], dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Of each chat, the summed loss in nats of the assistant's tokens, and how many there are."""
    encoded = [encode(chat, tokenizer) for chat in chats]
    rows = [Row(one.ids[: model.config.context], one.trained[: model.config.context]) for one in encoded]
    nats, tokens = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    with torch.inference_mode():
        for start in range(0, len(rows), 8):
            logps, targets = token_logprobs(model, dialog_batch(rows[start : start + 8]), dtype)
            nats[start : start + 8] = -logps.sum(-1).double().cpu().numpy()
            tokens[start : start + 8] = (targets >= 0).sum(-1).cpu().numpy()
    return nats, tokens


def _claims(
    settings: ExecutedSettings,
    rows: Sequence[dict[str, Any]],
    chats: tuple[np.ndarray, np.ndarray],
    before: Artifact | None,
) -> list[Claim]:
    member, step = settings.member, settings.step
    tables = [row for row in rows if row["kind"] != "no-tool"]
    claims = []
    for name, (phrasing, of) in GROUPS.items():
        group = [row for row in tables if row["phrasing"] == phrasing]
        claims.append(
            _share(settings, f"{member}.executed.{name}.{step}", f"questions on {of} answered right", group, "right")
        )
    held_out = [row for row in tables if row["phrasing"] == "held-out"]
    claims.append(
        _share(settings, f"{member}.said.unseen.{step}", "and the answer in words says the value", held_out, "said")
    )
    if called := [row for row in held_out if row["codes"]]:
        claims.append(_share(settings, f"{member}.ran.unseen.{step}", "last calls that ran", called, "executed"))
    talk = [row for row in rows if row["kind"] == "no-tool"]
    claims.append(
        _share(settings, f"{member}.no-tool.{step}", "turns that need no tool, answered without a call", talk, "right")
    )
    nats, tokens = chats
    loss = float(nats.sum() / tokens.sum())
    what = "loss on general chats never trained on, whose answers the member wrote before it was tuned"
    claims.append(Claim(f"{member}.chat.loss.{step}", what, loss, "nats/token", len(nats), "chats"))
    if before is not None:
        claims += _changes(settings, rows, chats, before)
    return claims


def _share(settings: ExecutedSettings, id: str, what: str, rows: Sequence[dict[str, Any]], key: str) -> Claim:
    hits = sum(bool(row[key]) for row in rows)
    low, high = wilson(hits, len(rows), settings.confidence)
    full = f"{settings.member} {settings.step}: {what}"
    return Claim(
        id, full, hits / len(rows), "fraction", len(rows), "questions", low, high, settings.confidence, "Wilson"
    )


def _changes(
    settings: ExecutedSettings, rows: Sequence[dict[str, Any]], chats: tuple[np.ndarray, np.ndarray], before: Artifact
) -> list[Claim]:
    """What the step added on the same questions and chats, with paired intervals."""
    member, step, seed = settings.member, settings.step, derive_seed(settings.seed, "executed")
    earlier = before.json_lines("answers.jsonl")
    keep = [i for i, row in enumerate(rows) if row["kind"] != "no-tool" and row["phrasing"] == "held-out"]
    now, then = (np.array([float(table[i]["right"]) for i in keep]) for table in (rows, earlier))
    low, high = paired_bootstrap(now, then, np.ones(len(keep)), seed, 1000, settings.confidence)
    what = f"{member} {step}: share of unseen questions answered right, minus that of the step before"
    method = "paired bootstrap over questions"
    id, n = f"{member}.executed.unseen.gain.{step}", len(keep)
    gain = Claim(
        id, what, float((now - then).mean()), "fraction", n, "questions", low, high, settings.confidence, method
    )
    old = before.json("chats.json")
    nats, tokens = chats
    change = (nats - np.array(old["nats"])).sum() / tokens.sum()
    low, high = paired_bootstrap(nats, np.array(old["nats"]), tokens.astype(float), seed, 1000, settings.confidence)
    what = f"{member} {step}: change of the loss on general chats by this step"
    method = "paired bootstrap over chats"
    id = f"{member}.chat.change.{step}"
    drift = Claim(id, what, float(change), "nats/token", len(nats), "chats", low, high, settings.confidence, method)
    return [gain, drift]
