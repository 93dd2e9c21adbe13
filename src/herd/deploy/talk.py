"""Using a member from the terminal: continue a text, or take turns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from herd.console import HerdError
from herd.deploy.assistant import Assistant, Conversation, Error, Notice, Text
from herd.infer.engine import Engine
from herd.infer.quantized_files import is_quantized, load_quantized
from herd.model.dialog import Dialog
from herd.model.formats.native import load_native, open_native
from herd.model.generation import Generator, Sampling
from herd.model.tokenizer import Tokenizer
from herd.recipe import Compute
from herd.train.hardware import choose_hardware


def load_generator(model: Path, tokenizer: Path) -> tuple[Generator, Tokenizer, int]:
    """A member's generator, its tokenizer, and its context in tokens; in bfloat16 where that is native, as measured.

    `model` is a folder of plain or of quantized weights.
    """
    hardware = choose_hardware(Compute())
    network = load_quantized(model) if is_quantized(model) else load_native(model)
    network = network.to(hardware.device, hardware.dtype)
    words = Tokenizer.load(tokenizer)
    return Engine(network, words, keep=True), words, network.config.context


@contextmanager
def open_generator(model: Path, tokenizer: Path) -> Iterator[tuple[Generator, Tokenizer, int] | None]:
    """`load_generator` for what torchrun may start: several processes hold the member's layers together.

    Then the process of rank 0 gets it; the others serve here until that leaves, and get None.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield load_generator(model, tokenizer)
        return
    from herd.infer.pipeline import load_stage, pipeline, processes

    if is_quantized(model):
        raise HerdError(f"{model}: quantized weights run in one process; start it without torchrun")
    hardware, words = choose_hardware(Compute()), Tokenizer.load(tokenizer)
    device = hardware.device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    with processes(device):
        stage = load_stage(*open_native(model), device, hardware.dtype)
        with pipeline(stage, words, keep=True) as generator:
            yield (generator, words, stage.config.context) if generator is not None else None


def continue_text(model: Path, tokenizer: Path, prompt: str, sampling: Sampling) -> None:
    """Print the prompt and what the model makes of it, piece by piece. Raises HerdError for one too long.

    Of several processes (torchrun) the one of rank 0 prints.
    """
    with open_generator(model, tokenizer) as opened:
        if opened is None:
            return
        generator, words, _ = opened
        pieces = generator.stream(words.encode(prompt, bos=True), sampling)
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


def chat(model: Path, tokenizer: Path, name: str, sampling: Sampling) -> None:
    """Take turns until an empty line or the end of input.

    A base model has not learnt to answer: it is shown the transcript, oldest turns left out where it grows longer
    than the context, and continues it with one paragraph.
    """
    generator, words, context = load_generator(model, tokenizer)
    print(f"{name} is a base model: it continues the transcript, it has not learnt to answer. Empty line: end.")
    turns: list[str] = []
    sampling = replace(sampling, stop=("\n\n", "\nUser:"))
    while True:
        said = _said()
        if not said:
            return
        turns.append(f"User: {said}\n\nAssistant:")
        room = context - min(sampling.max_tokens, context // 2)
        prompt = words.encode("".join(turns), bos=True)
        while len(prompt) > room and len(turns) > 1:
            turns.pop(0)
            prompt = words.encode("".join(turns), bos=True)
        if len(prompt) > room:
            print(f"(that is {len(prompt)} tokens, {room} fit: say it shorter)")
            turns.pop()
            continue
        answer = ""
        print(f"{name}:", end="", flush=True)
        for piece in generator.stream(prompt, replace(sampling, seed=sampling.seed + len(turns))):
            print(piece, end="", flush=True)
            answer += piece
        print()
        turns[-1] += f"{answer}\n\n"


def converse(assistant: Assistant, sampling: Sampling) -> None:
    """Take turns with a member that has learnt to answer, until an empty line or the end of input; nothing is run."""
    print(f"{assistant.name} answers in words; for a question about a table use `herd ask`. Empty line: end.")
    conversation = Conversation(assistant, None, Dialog(()))
    turn = 0
    while said := _said():
        print(f"{assistant.name}: ", end="", flush=True)
        for event in conversation.ask(said, sampling=replace(sampling, seed=sampling.seed + turn)):
            if isinstance(event, Text):
                print(event.piece, end="", flush=True)
            elif isinstance(event, Notice | Error):
                print(f"({event.text})", end="", flush=True)
        print()
        turn += 1


def _said() -> str:
    """What the person types; empty at the end of input."""
    try:
        return input("you: ").strip()
    except EOFError:
        print()
        return ""
