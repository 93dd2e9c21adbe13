"""Quality, code and reasoning by a model's judgments: the heavier teacher of curation (paper 3.1.1, 3.1.2).

A judge looks at some hundred documents; what it says of them is distilled into models that score all. The judge is
handed in: curation itself knows no server and no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from herd import console
from herd.artifact import canonical_json
from herd.console import HerdError
from herd.data.documents import read_rows
from herd.data.held_out import HeldOut
from herd.data.judging import CODE, QUALITY, REASONING, agreement, choose, distil, judge, labels_of, requirement
from herd.data.quality import ALL, QualityModels, Sample, ranked
from herd.data.words import tokens
from herd.model.generation import Generator
from herd.model.tokenizer import Tokenizer
from herd.recipe_data import Quality

ENCODER = "encoder"
TECHNICAL = (CODE.name, REASONING.name)
UNKNOWN_SCORE = 0.5  # of a document where there is no first model to be unsure


class Teacher(NamedTuple):
    """A judge: its generator, the tokenizer its prompts are made with, and its name."""

    generator: Generator
    tokenizer: Tokenizer
    name: str


def learn(
    teacher: Teacher,
    rules: Quality,
    first: QualityModels | None,
    samples: Sequence[Sample],
    filtered: Sequence[Path],
    work: Path,
    models: Path,
    seed: int,
) -> None:
    """Ask the judge about some of `samples` and write what is distilled of it into `models`, beside `judge.json`.

    `first` is the model trained on reference text, where there is one: half the questions go where it is unsure, and
    what is distilled takes its place. `filtered` are the files with the documents' texts. Answers are kept in `work`,
    so that a run that stopped asks only what is missing. Raises HerdError where there is no judge in the rules, or it
    gave too few answers of either kind to distil quality from.
    """
    if rules.judge is None:
        raise HerdError("data.quality.judge is missing: there is nobody to judge")
    quality = requirement(QUALITY.name, rules.judge.requirements) if rules.judge.requirements else QUALITY
    scores = {s.id: first.score_features(s.features, s.language) if first else UNKNOWN_SCORE for s in samples}
    chosen = set(choose(scores, rules.judge.documents, seed))
    texts = dict(sorted((row["id"], row["text"]) for row in _rows(filtered) if row["id"] in chosen))
    with console.progress(f"{len(texts):,} documents judged by {teacher.name}"):
        answers = judge(
            teacher.generator,
            teacher.tokenizer,
            texts,
            (quality, CODE, REASONING),
            work / "judgments.jsonl",
            teacher.name,
            seed,
        )
    by_id = {sample.id: sample for sample in samples}
    facts: dict[str, Any] = {}
    for name in (QUALITY.name, *TECHNICAL):
        facts[name] = agreement(answers, name)._asdict()
        try:
            model, measured = distil(answers, by_id, name, seed)
        except HerdError as error:
            if name == QUALITY.name:
                raise
            console.warn(str(error))  # no page of code, say: then pages are told apart by their features alone
            continue
        facts[name]["distilled"] = _shown(measured)
        if name == QUALITY.name:
            for old in models.glob(f"{QUALITY.name}*"):
                old.unlink()  # the first model's, whose place is taken
            ranked({ALL: model}, {ALL: measured}, samples, rules.reference).save(models)
        else:
            model.save(models, name)
    if rules.judge.encoder:
        _distil_encoder(labels_of(answers, QUALITY.name), texts, models, seed)
    (models / "judge.json").write_text(canonical_json(facts, indent=1) + "\n", encoding="utf-8")


def _rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from read_rows(file, ["id", "text"])


def _shown(measured: HeldOut | None) -> str:
    return measured.sentence() if measured is not None else "too few judgments to hold some out"


def _distil_encoder(labels: Mapping[str, bool], texts: Mapping[str, str], models: Path, seed: int) -> None:
    from herd.data.encoder import train_encoder

    ids = sorted(labels)
    with console.progress("distil the judgments into an encoder"):
        encoder = train_encoder([tokens(texts[i]) for i in ids], [labels[i] for i in ids], seed)
    encoder.save(models, ENCODER)
