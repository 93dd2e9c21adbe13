"""One side of `train_step.py`: a process that builds a network and trains it in bursts of steps when it is told to.

    python sides.py SIDE SIZE THREADS

Runs in the side's own virtual environment, so nothing of herd is imported but by ours. A line on standard input is the
number of steps of the next burst, an empty one the end; each burst is answered by `@@` and its seconds as JSON.

Every side trains the same shape on the same tokens with AdamW and the gradient's norm clipped to 1:

- eager, compiled, mesh-1x1x1x1: the step of herd's loop on one process; with compiled blocks; and through the
  machinery of a mesh, of one rank.
- huggingface-*: the real `transformers.Trainer` on a data set in memory; bursts are cut by a callback. Its bf16 on a
  CPU is autocast over float32 weights (accelerate wraps the model's forward); the loss is computed in float32.
- litgpt-*: litgpt's network, precision (bf16-mixed: autocast) and chunked head and loss in a plain loop with torch's
  fused AdamW; `torch.compile(model)` where its pre-training script has it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn


class Size(NamedTuple):
    """A network's shape, and the batch a step trains on."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn_dim: int
    vocab: int
    tied: bool
    context: int
    rows: int

    @property
    def tokens(self) -> int:
        return self.context * self.rows

    @property
    def step_flops(self) -> float:
        """Of forward and backward: 6 for each matrix weight and token, and causal attention's half of its square."""
        width = self.dim // self.heads * self.kv_heads
        block = 2 * self.dim * self.dim + 2 * self.dim * width + 3 * self.dim * self.ffn_dim
        weights = self.layers * block + self.dim * self.vocab
        return 6.0 * self.tokens * (weights + self.layers * self.context * self.dim)


SIZES = {
    "0.3M": Size(3, 64, 2, 1, 176, 2048, True, 256, 4),  # a cell of the ladder
    "1M": Size(4, 128, 4, 4, 352, 2048, True, 256, 8),
    "14M": Size(6, 384, 6, 6, 1024, 8192, False, 512, 8),
    "135M": Size(30, 576, 9, 3, 1536, 49152, True, 512, 2),  # SmolLM2-135M's shape
}
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
PEAK_DIM, PEAK_TRIES = 2048, 10
LITGPT_CHUNK = 128  # rows of litgpt's chunked head, its own default in fine-tuning


class Bursts:
    """Counts steps; at the end of a burst reports its seconds and waits for the next."""

    def __init__(self) -> None:
        self._wait()

    def step_done(self) -> None:
        self._left -= 1
        if self._left == 0:
            seconds = time.perf_counter() - self._started, time.process_time() - self._cpu_started
            print("@@" + json.dumps(seconds), flush=True)
            self._wait()

    def _wait(self) -> None:
        self._left = int(sys.stdin.readline().strip() or 0)
        if self._left == 0:
            os._exit(0)
        self._started, self._cpu_started = time.perf_counter(), time.process_time()


def main() -> None:
    import torch

    side, size, threads = sys.argv[1], SIZES[sys.argv[2]], int(sys.argv[3])
    torch.set_num_threads(threads)
    precision = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
    if side == "peak":
        peak(precision)
    elif side.startswith("huggingface"):
        train_huggingface(size, "fp32" if "fp32" in side else precision, side.endswith("compiled"))
    elif side.startswith("litgpt"):
        repeat(litgpt_step(size, precision, side.endswith("compiled")))
    else:
        repeat(our_step(size, threads, side))


def repeat(step: Callable[[], Any]) -> NoReturn:
    bursts = Bursts()
    while True:
        step()
        bursts.step_done()


def peak(precision: str) -> NoReturn:
    """A "step" is one product of two square matrices of 2,048; the best of ten is reported in the place of the sum."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(PEAK_DIM, PEAK_DIM).to(dtype) for _ in range(2))
    while sys.stdin.readline().strip():
        seconds = []
        for _ in range(PEAK_TRIES):
            started = time.perf_counter()
            torch.mm(left, right)
            seconds.append(time.perf_counter() - started)
        print("@@" + json.dumps([min(seconds), 0.0]), flush=True)
    os._exit(0)


def token_ids(size: Size) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, size.vocab, (size.rows, size.context + 1))


def our_network(size: Size, side: str) -> Any:
    """Whole, with compiled blocks, or by the machinery of a mesh of one rank."""
    import torch.distributed as dist

    from herd.model.config import ModelConfig
    from herd.recipe_compute import Compute, Mesh
    from herd.train.compiled import compile_blocks
    from herd.train.hardware import choose_hardware
    from herd.train.launch import fresh, open_network
    from herd.train.parallel.network import Sharded
    from herd.train.parallel.world import world_of

    compute = Compute(device="cpu")
    hardware = choose_hardware(compute)
    config = ModelConfig(
        size.layers, size.dim, size.heads, size.kv_heads, size.ffn_dim, size.vocab, size.dim // size.heads,
        size.context, size.tied,
    )  # fmt: skip
    if side == "mesh-1x1x1x1":
        meeting = f"file://{tempfile.mkdtemp()}/store"
        dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
        return Sharded(config, fresh(config, 0), world_of(Mesh(), hardware.device), compute, hardware)
    network: Any = open_network(config, fresh(config, 0), compute, hardware)
    if side == "compiled":
        compile_blocks(network.model)
    return network


def our_step(size: Size, threads: int, side: str) -> Callable[[], Any]:
    """A step as the loop makes it."""
    import numpy as np

    from herd.data.loader import Batch
    from herd.recipe import Optimizer
    from herd.train.loop import Plan, set_rate, train_step
    from herd.train.objective import next_token
    from herd.train.optim import Schedule, adamw
    from herd.train.workers import set_threads

    set_threads(threads)
    network, ids = our_network(size, side), token_ids(size)
    batch = Batch(ids[:, :-1], ids[:, 1:], np.zeros((size.rows, size.context), int))
    settings = Optimizer(betas=BETAS, weight_decay=WEIGHT_DECAY, clip_norm=CLIP)
    plan = Plan(1, Schedule(LEARNING_RATE, LEARNING_RATE, 0, 1), settings)
    optimizer = adamw(network.trained.values(), settings)

    def step() -> None:
        train_step(network, next_token, batch, plan)
        set_rate(optimizer, LEARNING_RATE)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def train_huggingface(size: Size, precision: str, compiled: bool) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.dim,
        intermediate_size=size.ffn_dim,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=size.tied,
        use_cache=False,
    )
    ids = torch.from_numpy(token_ids(size)[:, :-1].copy())
    data: Any = [{"input_ids": row, "labels": row} for row in ids] * 1000
    options = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=precision == "bf16",
        torch_compile=compiled,
        max_steps=100_000,
        per_device_train_batch_size=size.rows,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    bursts: list[Bursts] = []

    class Cut(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bursts.append(Bursts())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bursts[0].step_done()

    Trainer(model=LlamaForCausalLM(config), args=options, train_dataset=data, callbacks=[Cut()]).train()


def litgpt_step(size: Size, precision: str, compiled: bool) -> Callable[[], Any]:
    import torch
    from litgpt import GPT, Config  # pyright: ignore[reportMissingImports] (only in its peer's environment)
    from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports]

    config = Config(
        block_size=size.context,
        vocab_size=size.vocab,
        padded_vocab_size=size.vocab,
        n_layer=size.layers,
        n_head=size.heads,
        n_query_groups=size.kv_heads,
        n_embd=size.dim,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=size.ffn_dim,
    )
    model, ids = GPT(config), torch.from_numpy(token_ids(size))
    if size.tied:
        model.transformer.wte.weight = model.lm_head.weight
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    run = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = chunked_cross_entropy(run(inputs, lm_head_chunk_size=LITGPT_CHUNK), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
