"""Stage `sft`: supervised fine-tuning on executed dialogs and general chats (paper 4.1.3)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from herd.artifact import Artifact, Draft
from herd.evidence import Claim, write_claims
from herd.model.dialog import from_openai
from herd.model.formats.native import load_native, save_native
from herd.model.tokenizer import Tokenizer
from herd.posttrain.questions import read_dialogs
from herd.posttrain.tuning import DialogBatches, facts_of, seed_of, training_rows, tune
from herd.recipe import Compute, Section
from herd.train.hardware import choose_hardware
from herd.train.objective import dialog_tokens
from herd.train.record import write_training
from herd.train.workers import set_threads


class SftSettings(Section):
    seed: int
    member: str
    learning_rate: float
    epochs: int
    batch_dialogs: int
    context_tokens: int
    micro_tokens: int
    threads: int
    hardware: dict[str, str]
    compute: Compute = Field(exclude=True)


def sft(settings: SftSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: tune inputs["adopt"] on the dialogs of inputs["questions"] and the chats of inputs["chats"]."""
    set_threads(settings.threads)
    hardware = choose_hardware(settings.compute)
    tokenizer = Tokenizer.load(inputs["adopt"].path / "tokenizer")
    model = load_native(inputs["adopt"].path).to(hardware.device)
    dialogs = [dialog for _, dialog in read_dialogs(inputs["questions"].file("dialogs.parquet"))]
    chats = [from_openai(row) for row in inputs["chats"].json_lines("train.jsonl")]
    context = min(settings.context_tokens, model.config.context)
    rows = training_rows([*dialogs, *chats], tokenizer, context)
    batches = DialogBatches(rows, settings.batch_dialogs, seed_of(settings.seed, "sft"), settings.micro_tokens)
    steps = len(batches) * settings.epochs
    title = f"{settings.member}: supervised fine-tuning"
    state = tune(model, dialog_tokens, batches, steps, settings.learning_rate, settings.compute, title, out)
    save_native(out.folder, model.config, model.state_dict())
    facts = facts_of(rows, steps, settings.learning_rate)
    write_training(out, state, facts)
    out.write_json("lineage.json", {"answers": "gold programs, executed", "graded by": "execution", "start": "adopt"})
    what = f"tokens that {settings.member} was tuned on, prompts included"
    write_claims(out.folder / "claims.json", [Claim(f"{settings.member}.sft.tokens", what, facts["tokens"], "tokens")])
