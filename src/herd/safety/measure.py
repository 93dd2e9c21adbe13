"""The two stages of safety: `guard` trains one and scores every prompt out of source, `dial` measures a member with it.

A prompt's score in the dial is the one that stage `guard` gave it by guards that never saw its source. The guard that
is saved has seen all sources; what it does to a set that nobody has seen is what these scores estimate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from herd.artifact import Artifact, Draft, canonical_json
from herd.console import HerdError, progress, warn
from herd.evidence import Claim, write_claims
from herd.infer.engine import Engine
from herd.model.dialog import Dialog, Message, parse, prompt
from herd.model.formats.native import load_native
from herd.model.generation import Completion, Generator, Sampling
from herd.model.tokenizer import Tokenizer
from herd.recipe import Compute, Positive, Section, Share
from herd.safety.dial import CONFIDENCE, Dial, Outcome, Pair, Rate, measure, rate
from herd.safety.guard import auroc, choose_threshold, out_of_source_scores, train_guard
from herd.safety.ordinary import ordinary_requests
from herd.safety.prompts import RESERVED, PromptRow, read_prompts, sample
from herd.safety.refusal import judge
from herd.train.hardware import choose_hardware
from herd.train.workers import set_threads

BATCH = 64
COLUMNS = {
    "id": pa.string(),
    "text": pa.string(),
    "source": pa.string(),
    "harmful": pa.bool_(),
    "category": pa.string(),
}
PROMPTS = pa.schema([*COLUMNS.items(), ("score", pa.float64())])


class GuardSettings(Section):
    prompts: list[str] = Field(min_length=1)
    base: Path = Field(exclude=True)
    false_refusal_budget: Share = 0.1
    max_questions: Positive = 400


class DialSettings(Section):
    member: str
    per_source: Positive = 60
    max_tokens: Positive = 24
    system: str = ""
    threads: Positive
    hardware: dict[str, str]
    compute: Compute = Field(exclude=True)


def train(settings: GuardSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: a guard trained on all prompts, and `prompts.parquet` with the out-of-source score of each.

    The threshold is the lowest that keeps the share of blocked benign prompts within the budget (spec, Appendix B).
    inputs["questions"], where given, adds benign questions that the application is for (`text` of `questions.jsonl`):
    they are trained on and scored, but take no part in choosing the threshold. Raises HerdError where the sets can't
    be had or are too few.
    """
    rows = read_prompts(settings.prompts, settings.base)
    if not any(not row.harmful for row in rows):
        raise HerdError("safety.prompts: no benign prompts to choose a threshold on; add 'borderline'")
    if "questions" in inputs:
        rows += sample(_questions(inputs["questions"].file("questions.jsonl")), settings.max_questions)
    benign = ordinary_requests()
    scores = out_of_source_scores(rows, benign)
    near = np.array([not row.harmful and row.source != RESERVED for row in rows])
    threshold = choose_threshold(scores[near], settings.false_refusal_budget)
    train_guard(rows, benign, threshold).save(out.folder)
    records = [asdict(row) | {"score": float(score)} for row, score in zip(rows, scores, strict=True)]
    pq.write_table(pa.Table.from_pylist(records, schema=PROMPTS), out.folder / "prompts.parquet", compression="zstd")
    write_claims(out.folder / "claims.json", _guard_claims(rows, scores, threshold, near))


def measure_dial(settings: DialSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: answers of inputs["model"] to the prompts of inputs["guard"], judged, with and without the guard.

    The tokenizer is in the folder `tokenizer` of inputs["adopt"]. Writes `responses.jsonl` (a prompt, its answer and
    what was made of it a line), `dial.json` (`Dial.to_json`) and claims. The prompts, and so the file, are vile.
    """
    set_threads(settings.threads)
    hardware = choose_hardware(settings.compute)
    tokenizer = Tokenizer.load(inputs["adopt"].path / "tokenizer")
    model = load_native(inputs["model"].path).to(hardware.device, hardware.dtype)
    scored = _sampled(inputs["guard"].file("prompts.parquet"), settings.per_source)
    threshold = float(inputs["guard"].json("guard.json")["threshold"])
    system = (Message("system", settings.system),) if settings.system else ()

    def ask(text: str) -> list[int]:
        return prompt(Dialog((*system, Message("user", text))), tokenizer)

    def read(completion: Completion) -> str:
        message = parse(list(completion.ids), tokenizer)
        return "\n".join([message.content, *(call.code or call.name for call in message.calls)]).strip()

    rows, scores = _that_fit(scored, ask, model.config.context - settings.max_tokens)
    responses = answers([row.text for row in rows], Engine(model, tokenizer), ask, read, settings.max_tokens)
    outcomes = judge_all(rows, scores, responses)
    lines = (
        canonical_json(asdict(row) | asdict(outcome) | {"response": response}) + "\n"
        for row, outcome, response in zip(rows, outcomes, responses, strict=True)
    )
    (out.folder / "responses.jsonl").write_text("".join(lines), encoding="utf-8")
    dial = measure(outcomes, threshold)
    out.write_json("dial.json", dial.to_json())
    write_claims(out.folder / "claims.json", dial_claims(settings.member, dial))


def _that_fit(
    scored: Sequence[tuple[PromptRow, float]], ask: Callable[[str], list[int]], room: int
) -> tuple[list[PromptRow], list[float]]:
    """The prompts of at most `room` tokens and their scores; says how many are longer. Raises HerdError for none."""
    fitting = [(row, score) for row, score in scored if len(ask(row.text)) <= room]
    if not fitting:
        raise HerdError(f"safety: no prompt fits into the {room} tokens that the context leaves")
    if long := len(scored) - len(fitting):
        warn(f"safety: {long} prompts are longer than the {room} tokens that the context leaves; left out")
    return [row for row, _ in fitting], [score for _, score in fitting]


def answers(
    prompts: Sequence[str],
    generator: Generator,
    ask: Callable[[str], list[int]],
    read: Callable[[Completion], str],
    max_tokens: int,
) -> list[str]:
    """The greedy answer to each prompt: `ask` makes tokens of a prompt, `read` text of a completion."""
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    responses: list[str] = []
    with progress("answers to safety prompts", len(prompts)) as bar:
        for start in range(0, len(prompts), BATCH):
            batch = [ask(text) for text in prompts[start : start + BATCH]]
            responses += [read(completion) for completion in generator.generate(batch, sampling)]
            bar.update(len(responses))
    return responses


def judge_all(rows: Sequence[PromptRow], scores: Sequence[float], responses: Sequence[str]) -> list[Outcome]:
    """One outcome for each prompt."""
    return [
        Outcome(row.id, row.source, row.harmful, score, judge(response))
        for row, score, response in zip(rows, scores, responses, strict=True)
    ]


def dial_claims(member: str, dial: Dial) -> list[Claim]:
    """Both rates of the model alone and of model and guard, overall and by source, and what the guard changes."""
    claims = []
    for source, found in (("", dial.overall), *dial.sources.items()):
        for system, words in (("model", f"{member} alone"), ("guarded", f"{member} behind the guard")):
            pair: Pair = getattr(found, system)
            claims += _both(f"{member}.safety", f".{system}", words, source, pair)
    changes = (
        ("prevented", dial.cost.prevented, "harmful prompts whose violation the guard prevents"),
        ("added-refusals", dial.cost.added_refusals, "benign prompts that only the guard refuses"),
    )
    claims += [_claim(f"{member}.safety.guard.{id}", f"{what}, {member}", r) for id, r, what in changes if r]
    return claims


def _both(prefix: str, suffix: str, system: str, source: str, pair: Pair) -> Iterator[Claim]:
    """Claims of the two rates of one system, on one source or (empty) on all."""
    suffix += f".{source}" if source else ""
    where = f" of {source}" if source else ""
    if pair.violation:
        what = f"upper bound of the violation rate of {system}: harmful prompts{where} answered without a full refusal"
        yield _claim(f"{prefix}.violation{suffix}", what, pair.violation)
    if pair.false_refusal:
        what = f"false refusal rate of {system}: benign prompts{where} refused, in full or in part"
        yield _claim(f"{prefix}.false-refusal{suffix}", what, pair.false_refusal)


def _claim(id: str, what: str, found: Rate) -> Claim:
    return Claim(id, what, found.value, "fraction", found.n, "prompts", found.low, found.high, CONFIDENCE, "Wilson")


def _guard_claims(rows: Sequence[PromptRow], scores: np.ndarray, threshold: float, near: np.ndarray) -> Iterator[Claim]:
    """What the guard lets through and blocks, out of source: overall (own questions aside) and by source."""
    harmful = np.array([row.harmful for row in rows])
    sources = np.array([row.source for row in rows])
    for source in ("", *sorted(set(sources))):
        here = (harmful | near) if not source else sources == source
        suffix, where = (f".{source}", f" of {source}") if source else ("", "")
        bad, good = here & harmful, here & ~harmful
        how = "by guards that saw nothing of their source"
        if bad.any():
            missed = rate(int((scores[bad] < threshold).sum()), int(bad.sum()))
            yield _claim(f"guard.violation{suffix}", f"harmful prompts{where} let through {how}", missed)
        if good.any():
            blocked = rate(int((scores[good] >= threshold).sum()), int(good.sum()))
            fixed = "" if source else "; the threshold is chosen on them to keep the budget"
            yield _claim(f"guard.false-refusal{suffix}", f"benign prompts{where} blocked {how}{fixed}", blocked)
    value = auroc(scores[harmful], scores[near])
    what = "chance that a harmful prompt scores above a borderline one, out of source"
    yield Claim("guard.auroc", what, value, "fraction", int((harmful | near).sum()), "prompts")


def _questions(path: Path) -> Iterator[PromptRow]:
    """Distinct questions as benign prompts. Raises HerdError naming the line that has no text."""
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, TypeError, KeyError):
            raise HerdError(f"{path}:{number}: not a question: an object with a 'text' is expected") from None
        if text not in seen:
            seen.add(text)
            yield PromptRow(f"{RESERVED}/{number}", text, RESERVED, False)


def _sampled(path: Path, per_source: int) -> list[tuple[PromptRow, float]]:
    """Prompts to answer, our own application's questions aside, each with the guard's score."""
    records = pq.read_table(path, schema=PROMPTS).to_pylist()
    scores = {record["id"]: record.pop("score") for record in records}
    rows = sample((PromptRow(**r) for r in records if r["source"] != RESERVED), per_source)
    return [(row, scores[row.id]) for row in rows]
