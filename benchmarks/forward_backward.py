"""Forward and backward of a 13.8M-parameter Llama at 512 tokens, beside Hugging Face's and litgpt's.

    python benchmarks/forward_backward.py

6 layers, width 384, 6 heads of 64, FFN 1,024, vocabulary 8,192: 13.8M parameters that tokens are multiplied with, on
one thread and on two. Each side trains in the way it is meant to (ours by its own loss in chunks, litgpt by its chunked
loss, Hugging Face by `labels`), in a process and a virtual environment of its own; processes are interleaved, medians
taken. A process's speed is tokens by CPU second of its threads, the best of its steps; gradients are freed between
steps, no optimizer runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv" / "peers"
LAYERS, DIM, HEADS, FFN, VOCAB, CONTEXT, ROWS = 6, 384, 6, 1024, 8192, 512, 4
STEPS, WARMUP, ROUNDS = 8, 2, 5
SIDES = {"ours": "ours", "huggingface-bf16": "huggingface", "huggingface-fp32": "huggingface", "litgpt-bf16": "litgpt"}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--side", choices=list(SIDES))
    options.add_argument("--threads", type=int, choices=[1, 2])
    options.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = options.parse_args()
    if chosen.side:
        print(json.dumps(measure(chosen.side, chosen.threads)))
        return
    pythons = {
        "ours": Path(sys.executable),
        "huggingface": peer("huggingface", ["transformers"]),
        "litgpt": peer("litgpt", ["litgpt==0.5.13"]),
    }
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for threads in (1, 2):
        runs: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(chosen.rounds):
            for side, python in SIDES.items():
                command = [str(pythons[python]), __file__, "--side", side, "--threads", str(threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[side].append(json.loads(done.stdout.splitlines()[-1]))
        for side, speeds in runs.items():
            figures[f"{side} {threads} threads tokens/CPU-s"] = round(statistics.median(speeds))
            if side != "ours":
                pairs = [a / b for a, b in zip(runs["ours"], speeds, strict=True)]
                ratios[f"ours/{side} {threads} threads"] = round(statistics.median(pairs), 2)
    for label, value in (figures | ratios).items():
        print(f"{label:44} {value:>10,}")
    print(json.dumps({"benchmark": "forward_backward", "figures": figures, "ratios": ratios, "machine": machine()}))


def peer(name: str, packages: list[str]) -> Path:
    """Python of a peer's own virtual environment, made on the first call. Only torch's version is ours."""
    python = PEERS / name / "bin" / "python"
    if not python.exists():
        pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *pinned, "numpy", *packages], check=True)
    return python


def measure(side: str, threads: int) -> float:
    """Tokens a CPU second: the best of STEPS steps after a warm-up."""
    import torch

    torch.set_num_threads(threads)
    step = {"ours": our_step, "litgpt-bf16": litgpt_step}.get(side)
    go = step() if step else huggingface_step("bf16" in side)
    seconds = []
    for _ in range(WARMUP + STEPS):
        started = time.process_time()
        go()
        seconds.append(time.process_time() - started)
    return ROWS * CONTEXT / min(seconds[WARMUP:])


def token_ids() -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, VOCAB, (ROWS, CONTEXT + 1))


def our_step() -> Callable[[], None]:
    import numpy as np

    from herd.data.loader import Batch
    from herd.model.config import ModelConfig
    from herd.pretrain.initial import new_model
    from herd.recipe import Compute
    from herd.train.hardware import choose_hardware
    from herd.train.objective import next_token

    ids, hardware = token_ids(), choose_hardware(Compute(device="cpu"))
    config = ModelConfig(LAYERS, DIM, HEADS, HEADS, FFN, VOCAB, DIM // HEADS, CONTEXT)
    model = new_model(config, 0, hardware)
    batch = Batch(ids[:, :-1], ids[:, 1:], np.zeros((ROWS, CONTEXT), int))

    def step() -> None:
        (next_token(model, batch, hardware.dtype) / batch.count).backward()
        model.zero_grad(set_to_none=True)

    return step


def huggingface_step(bf16: bool) -> Callable[[], None]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    model, ids = LlamaForCausalLM(config), torch.from_numpy(token_ids()[:, :-1].copy())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def litgpt_step() -> Callable[[], None]:
    import torch
    from litgpt import GPT, Config  # pyright: ignore[reportMissingImports] (only in its peer's environment)
    from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports]

    config = Config(
        block_size=CONTEXT,
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=DIM,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=FFN,
    )
    model, ids = GPT(config), torch.from_numpy(token_ids())
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = chunked_cross_entropy(model(inputs, lm_head_chunk_size=128), targets)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def machine() -> dict[str, Any]:
    from herd.train.hardware import machine as facts

    return facts()


if __name__ == "__main__":
    main()
