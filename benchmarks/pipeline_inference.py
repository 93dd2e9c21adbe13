"""Pipeline-parallel generation: how long stages wait, against the number of micro-batches, on 2 and 4 stages (gloo).

    python benchmarks/pipeline_inference.py

A stage's wait (the bubble) is the share of the time in which it computes nothing, the mean over stages; messages,
scheduling and drawing tokens count as waiting. Beside it stands what arithmetic says.

Simulated: four stages on a laptop's cores would wait for cores and not for each other, so there a stage's layers are a
sleep, 60 ms for a pass that decodes (where reading the weights decides, its batch costs nothing) and 0.2 ms a token of
a prompt. Processes, messages, engine and schedule are the real ones.

- decode: M micro-batches of 8 requests, 16 tokens each, in the middle of the run: 1 - M/P, and none from M = P on. At
  this equal local batch (paper 6.1) tokens/s grow as far. M = P leaves no slack for messages and drawing, M > P does.
- prompt: one of 2,048 tokens in M parts, all on their way at once, from its beginning to its end: (P-1)/(M+P-1).

Real: 23.6M parameters in float32 on two stages of one thread each, 16 requests; for cores of their own, run it on an
idle machine of two cores or more. One process of one thread stands beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.infer.engine import Engine
from herd.infer.pipeline import Stage, load_stage, pipeline, processes
from herd.model.config import ModelConfig
from herd.model.generation import Generator, Sampling
from herd.model.tokenizer import Tokenizer, train_tokenizer
from herd.model.transformer import Transformer
from herd.train.hardware import machine

CPU = torch.device("cpu")
SMALL = ModelConfig(4, 32, 2, 1, 32, 400, 16, 4096)
REAL = ModelConfig(8, 512, 8, 4, 1408, 400, 64, 512)
DECODE_SECONDS, TOKEN_SECONDS, PROMPT = 0.06, 0.0002, 2048
Spans = list[tuple[float, float]]


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([Path(argparse.__file__).read_text()], 400)
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    print(f"{'simulated stages':34} {'waits':>7} {'formula':>8} {'tokens/s':>9}")
    small = Transformer(SMALL).state_dict()
    for stages, counts in ((2, (1, 2, 4)), (4, (1, 2, 3, 4, 8))):
        speeds = {}
        for count in counts:
            wait, speeds[count] = decode(
                SMALL, small, tokenizer, stages, count, requests=8 * count, tokens=16, sleep=True
            )
            label = f"decode, {stages} stages, {count} micro-batches"
            figures[f"{label}: waiting"] = round(wait, 3)
            figures[f"{label}: tokens/s"] = round(speeds[count])
            print(f"{label:34} {wait:7.1%} {max(0.0, 1 - count / stages):8.1%} {speeds[count]:9.0f}")
        ratios[f"decode, {stages} stages, {stages} micro-batches/1"] = round(speeds[stages] / speeds[1], 2)
        for count in counts:
            wait = prompt(small, tokenizer, stages, count)
            label = f"prompt, {stages} stages, {count} micro-batches"
            figures[f"{label}: waiting"] = round(wait, 3)
            print(f"{label:34} {wait:7.1%} {(stages - 1) / (count + stages - 1):8.1%}")
    print(f"{'real stages':34} {'waits':>7} {'formula':>8} {'tokens/s':>9}")
    speeds, real = {}, Transformer(REAL).requires_grad_(False)
    for count in (1, 2, 4):
        wait, speeds[count] = decode(REAL, real.state_dict(), tokenizer, 2, count, requests=16, tokens=48, sleep=False)
        label = f"real, 2 stages, {count} micro-batches"
        figures[f"{label}: waiting"] = round(wait, 3)
        figures[f"{label}: tokens/s"] = round(speeds[count])
        print(f"{label:34} {wait:7.1%} {max(0.0, 1 - count / 2):8.1%} {speeds[count]:9.0f}")
    prompts, sampling = [[5 + at, *range(20, 50)] for at in range(16)], Sampling(0.0, max_tokens=48)
    engine, started = Engine(real, tokenizer), time.monotonic()
    alone = sum(len(one.ids) for one in engine.generate(prompts, sampling)) / (time.monotonic() - started)
    figures["real, one process: tokens/s"] = round(alone)
    print(f"{'real, one process':34} {'':7} {'':8} {alone:9.0f}")
    ratios["real, 2 stages, 2 micro-batches/1"] = round(speeds[2] / speeds[1], 2)
    ratios["real, 2 stages, 2 micro-batches/one process"] = round(speeds[2] / alone, 2)
    print(json.dumps({"benchmark": "pipeline_inference", "figures": figures, "ratios": ratios, "machine": machine()}))


def decode(
    config: ModelConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    stages: int,
    count: int,
    requests: int,
    tokens: int,
    sleep: bool,
) -> tuple[float, float]:
    """Share of time that stages wait in the middle of the run, and tokens a second of all of it."""
    prompts = [[5 + at, *range(20, 50)] for at in range(requests)]

    def ask(generator: Generator) -> tuple[float, float, int]:
        started = time.monotonic()
        found = generator.generate(prompts, Sampling(0.0, max_tokens=tokens))
        return started, time.monotonic(), sum(len(one.ids) for one in found)

    (begun, ended, drawn), spans = run(
        config, weights, tokenizer, stages, count, ask, (lambda n: DECODE_SECONDS) if sleep else None
    )
    middle = (begun + 0.3 * (ended - begun), begun + 0.9 * (ended - begun))
    return waiting(spans, *middle), drawn / (ended - begun)


def prompt(weights: dict[str, Tensor], tokenizer: Tokenizer, stages: int, count: int) -> float:
    """Share of time that stages wait while one prompt goes through, from the first's beginning to the last's end."""

    def ask(generator: Generator) -> None:
        generator.generate([[20] * PROMPT], Sampling(0.0, max_tokens=1))

    _, spans = run(SMALL, weights, tokenizer, stages, count, ask, lambda n: n * TOKEN_SECONDS)
    return waiting(spans, min(one[0][0] for one in spans), max(one[-1][1] for one in spans))


def waiting(spans: list[Spans], begin: float, end: float) -> float:
    """Mean over stages of the share of a time that none of their spans covers."""
    busy = [sum(max(0.0, min(b, end) - max(a, begin)) for a, b in one) for one in spans]
    return 1 - sum(busy) / len(busy) / (end - begin)


def run(
    config: ModelConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    stages: int,
    count: int,
    ask: Callable[[Generator], Any],
    sleep: Callable[[int], float] | None,
) -> tuple[Any, list[Spans]]:
    """What `ask` gives, and when each stage computed; `sleep`: seconds instead of its layers, by a pass's tokens."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:

        def work(rank: int, tell: Any) -> None:
            torch.set_num_threads(1)
            where = {"init_method": f"file://{folder}/meeting", "rank": rank, "world_size": stages}
            with processes(CPU, 60, **where):
                stage = load_stage(config, weights, CPU, torch.float32)
                spans = timed(stage, sleep)
                with pipeline(stage, tokenizer, count, max_batch=64, seconds=60) as generator:
                    found = ask(generator) if generator is not None else None
            tell.send((found, spans))

        ends = [fork.Pipe(duplex=False) for _ in range(stages)]
        workers = [fork.Process(target=work, args=(rank, tell)) for rank, (_, tell) in enumerate(ends)]
        for worker in workers:
            worker.start()
        for _, tell in ends:
            tell.close()  # so that a process that dies is an error here
        told = [listen.recv() for listen, _ in ends]
        for worker in workers:
            worker.join()
    return told[0][0], [spans for _, spans in told]


def timed(stage: Stage, sleep: Callable[[int], float] | None) -> Spans:
    """Let a stage note when it computes, or sleep instead."""
    spans: Spans = []
    compute = stage.hidden

    def hidden(tokens_BT: Tensor, mask: Tensor | None = None, cache: Any = None) -> Tensor:
        started, tokens = time.monotonic(), tokens_BT.shape[1]
        if sleep is None:
            given = compute(tokens_BT, mask, cache)
        else:
            time.sleep(sleep(tokens))
            given = torch.zeros(1, tokens, stage.config.dim)
        spans.append((started, time.monotonic()))
        return given

    stage.hidden = hidden
    return spans


if __name__ == "__main__":
    main()
