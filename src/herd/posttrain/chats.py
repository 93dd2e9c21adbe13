"""Stage `chats`: general conversations whose answers the adopted member writes itself.

Half of them join the training dialogs, so that tuning for tables does not cost the member its manners; the other half
is never trained on and measures what was lost (chat retention).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import Field

from herd.artifact import Artifact, Draft
from herd.console import HerdError
from herd.evidence import Claim, write_claims
from herd.infer.engine import Engine
from herd.model.dialog import Dialog, Message, prompt, to_openai
from herd.model.formats.native import load_native
from herd.model.generation import Generator, Sampling
from herd.model.tokenizer import Tokenizer
from herd.recipe import Compute, Section
from herd.recipe_posttrain import Synthesis
from herd.safety.ordinary import ordinary_requests
from herd.train.hardware import choose_hardware
from herd.train.workers import set_threads

BRIEFLY = "Answer in one or two sentences."
SPARE = 2  # prompts for each chat that is wanted: answers that do not end in time are left out
TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"


class ChatSettings(Section):
    member: str
    synthesis: Synthesis
    threads: int
    hardware: dict[str, str]
    compute: Compute = Field(exclude=True)


def write_chats(settings: ChatSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: answers of inputs["adopt"] to ordinary prompts, as OpenAI messages, a line each."""
    set_threads(settings.threads)
    hardware = choose_hardware(settings.compute)
    tokenizer = Tokenizer.load(inputs["adopt"].path / "tokenizer")
    model = load_native(inputs["adopt"].path).to(hardware.device, hardware.dtype)
    wanted = 2 * settings.synthesis.chats
    prompts = [f"{text} {BRIEFLY}" for text in ordinary_requests(SPARE * wanted)]
    chats = answer(Engine(model, tokenizer), tokenizer, prompts, settings.synthesis.chat_tokens)[:wanted]
    if len(chats) < 2:
        raise HerdError(
            f"{settings.member}: of its answers to {len(prompts)} general prompts {len(chats)} came to an end, at "
            "least 2 are needed; raise posttrain.synthesis.chat_tokens"
        )
    for name, part in ((TRAIN, chats[::2]), (HELD_OUT, chats[1::2])):
        lines = (json.dumps(to_openai(dialog), ensure_ascii=False, sort_keys=True) + "\n" for dialog in part)
        (out.folder / name).write_text("".join(lines), encoding="utf-8")
    what = "general chats whose answers the member wrote before it was tuned; every other one is trained on"
    claims = [Claim(f"{settings.member}.chats", what, len(chats), "chats")]
    write_claims(out.folder / "claims.json", claims)


def answer(generator: Generator, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[Dialog]:
    """Each text as a one-turn dialog with the generator's likeliest answer.

    Left out are empty answers and those cut off by `max_tokens`: they would teach to stop in mid-sentence.
    """
    asked = [Dialog((Message("user", text),)) for text in texts]
    settings = Sampling(temperature=0, max_tokens=max_tokens)
    completions = generator.generate([prompt(dialog, tokenizer) for dialog in asked], settings)
    pairs = zip(asked, completions, strict=True)
    whole = [(dialog, c.text.strip()) for dialog, c in pairs if c.stop_reason == "end" and c.text.strip()]
    return [dialog.then(Message("assistant", text)) for dialog, text in whole]
