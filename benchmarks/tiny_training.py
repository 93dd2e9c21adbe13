"""Training steps of ladder-sized networks, ours against Hugging Face's LlamaForCausalLM, on one CPU thread.

    python benchmarks/tiny_training.py

Each side runs in a virtual environment and process of its own; runs are interleaved and medians taken. Same shapes,
same tokens a step, AdamW, gradient clipping, bfloat16 matrix products where the CPU has them, for both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv" / "peers"
SHAPES = {"0.09M": (2, 32), "0.27M": (3, 64), "0.59M": (4, 96)}  # layers, width; heads of 32, vocabulary 2,048
CONTEXT, ROWS, VOCAB, HEAD_DIM = 256, 4, 2048, 32
STEPS, WARMUP, ROUNDS = 30, 5, 5


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--side", choices=["ours", "huggingface"])
    options.add_argument("--shape", choices=list(SHAPES))
    chosen = options.parse_args()
    if chosen.side:
        print(json.dumps(measure(chosen.side, *SHAPES[chosen.shape])))
        return
    pythons = {"ours": Path(sys.executable), "huggingface": peer("huggingface", ["transformers"])}
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for shape in SHAPES:
        runs: dict[str, list[float]] = {side: [] for side in pythons}
        for _ in range(ROUNDS):
            for side, python in pythons.items():
                command = [str(python), __file__, "--side", side, "--shape", shape]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[side].append(json.loads(done.stdout.splitlines()[-1]))
        for side, speeds in runs.items():
            figures[f"{side} {shape} tokens/s"] = round(statistics.median(speeds))
        pairs = [a / b for a, b in zip(runs["ours"], runs["huggingface"], strict=True)]
        ratios[f"{shape} ours/huggingface"] = round(statistics.median(pairs), 2)
    for label, value in (figures | ratios).items():
        print(f"{label:32} {value:>10,}")
    print(json.dumps({"benchmark": "tiny_training", "figures": figures, "ratios": ratios, "machine": machine()}))


def peer(name: str, packages: list[str]) -> Path:
    """Python of a peer's own virtual environment, made on the first call."""
    python = PEERS / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "-c",
            str(ROOT / "constraints.txt"),
            "torch",
            "numpy",
            *packages,
        ]
        subprocess.run(install, check=True)
    return python


def measure(side: str, layers: int, dim: int) -> float:
    """Tokens a second over STEPS steps, after a warm-up."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    ids = np.random.default_rng(0).integers(0, VOCAB, (ROWS, CONTEXT + 1))
    step = our_step(layers, dim, ids) if side == "ours" else their_step(layers, dim, ids)
    for _ in range(WARMUP):
        step()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * ROWS * CONTEXT / (time.perf_counter() - started)


def our_step(layers: int, dim: int, ids: Any) -> Any:
    import numpy as np

    from herd.data.loader import Batch
    from herd.model.config import ModelConfig
    from herd.pretrain.initial import new_model
    from herd.recipe import Compute, Optimizer
    from herd.train.hardware import choose_hardware
    from herd.train.loop import Plan, train_step
    from herd.train.objective import next_token
    from herd.train.optim import Schedule, adamw
    from herd.train.workers import set_threads

    set_threads(1)
    hardware = choose_hardware(Compute(device="cpu"))
    config = ModelConfig(layers, dim, dim // HEAD_DIM, 1, ffn(dim), VOCAB, HEAD_DIM, CONTEXT, True)
    model, batch = new_model(config, 0, hardware), Batch(ids[:, :-1], ids[:, 1:], np.zeros((ROWS, CONTEXT), int))
    plan = Plan(STEPS, Schedule(1e-3, 1e-3, 1, STEPS), Optimizer())
    optimizer = adamw(model, plan.optimizer)
    return lambda: train_step(model, next_token, batch, optimizer, plan, 0, hardware)


def their_step(layers: int, dim: int, ids: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=dim,
        intermediate_size=ffn(dim),
        num_hidden_layers=layers,
        num_attention_heads=dim // HEAD_DIM,
        num_key_value_heads=1,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            logits = model(inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def ffn(dim: int) -> int:
    return -(-dim * 8 // 3 // 16) * 16


def machine() -> dict[str, Any]:
    import torch

    from herd.train.hardware import machine as facts

    return facts() | {"torch": torch.__version__, "platform": platform.platform()}


if __name__ == "__main__":
    main()
