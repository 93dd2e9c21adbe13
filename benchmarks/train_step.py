"""Full training steps beside Hugging Face's Trainer and litgpt: tokens a second and share of the machine's peak (MFU).

    python benchmarks/train_step.py [--sizes 1M 14M 135M] [--threads 1 2] [--sides eager ...] [--rounds 3]

A step is forward, backward, clipping and AdamW (training/sides.py says what each side is). Every side is a process in a
virtual environment of its own that is built, compiled and warmed up once, and then trains in short bursts by turns with
the others, sleeping in between; a speed is the median over rounds of its bursts, a ratio the median of the ratios of a
round. Eager and compiled sides take turns among themselves, so that the memory of a 135M network holds them all.

MFU is FLOPs of matrix products in forward and backward, causal attention included, over what one product of bfloat16
matrices of 2,048 reaches in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from peers import ROOT, machine, peer, versions
from training.sides import PEAK_DIM, SIZES, Size

WORKER = Path(__file__).parent / "training" / "sides.py"
EAGER = ("eager", "mesh-1x1x1x1", "huggingface-bf16", "huggingface-fp32", "litgpt-bf16")
COMPILED = ("compiled", "huggingface-compiled", "litgpt-compiled")
COMPARED = (
    ("mesh-1x1x1x1", "eager"),
    ("eager", "huggingface-bf16"),
    ("eager", "litgpt-bf16"),
    ("eager", "huggingface-fp32"),
    ("compiled", "huggingface-compiled"),
    ("compiled", "litgpt-compiled"),
)
DEFAULT_SIZES = ["1M", "14M", "135M"]
BURST_STEPS = {"0.3M": 20, "1M": 10, "14M": 2, "135M": 1}
ROUNDS = 3
TARGETS = {  # ratios to reach
    "mesh-1x1x1x1/eager": 0.95,  # what the machinery may cost
    "eager/huggingface-bf16": 1.3,
    "eager/litgpt-bf16": 1.1,
    "compiled/huggingface-compiled": 1.2,
    "compiled/litgpt-compiled": 1.2,
}
MFU_TARGET = ("14M", 0.54)


class Setting(NamedTuple):
    """What the sides of one comparison have in common."""

    size: str
    threads: int

    def __str__(self) -> str:
        return f"{self.size} {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def shape(self) -> Size:
        return SIZES[self.size]


class Worker:
    """A side's process. `start` and `finish` bracket a burst; its seconds come back from `finish`."""

    def __init__(self, side: str, setting: Setting, python: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads), "PYTHONPATH": str(ROOT / "src")}
        command = [str(python), str(WORKER), side, setting.size, str(setting.threads)]
        self._side = side
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )

    def start(self, steps: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()

    def finish(self) -> float:
        """Seconds of the burst by the wall clock. Raises RuntimeError with what the process said where it ended."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("@@"):
                return json.loads(line[2:])[0]
        self._errors.seek(0)
        raise RuntimeError(f"{self._side}: {self._errors.read()[-3000:]}")

    def end(self) -> None:
        self._process.communicate("\n")
        self._errors.close()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--sizes", nargs="+", choices=list(SIZES), default=DEFAULT_SIZES)
    options.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    options.add_argument("--sides", nargs="+", choices=[*EAGER, *COMPILED], default=[*EAGER, *COMPILED])
    options.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = options.parse_args()
    pythons = environments(chosen.sides)
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for setting in (Setting(size, threads) for size in chosen.sizes for threads in chosen.threads):
        for group in (EAGER, COMPILED):
            if sides := [side for side in group if side in chosen.sides]:
                seconds = bursts(sides, setting, pythons, chosen.rounds)
                figures |= speeds(seconds, setting)
                ratios |= compare(seconds, setting)
                print(f"{setting}: {', '.join(sides)} done", file=sys.stderr, flush=True)
    for label, value in (figures | ratios).items():
        print(f"{label:48} {value:>10,}{verdict(label, value)}")
    facts = machine() | {"peers": peer_versions(pythons)}
    print(json.dumps({"benchmark": "train_step", "figures": figures, "ratios": ratios, "machine": facts}))


def environments(sides: list[str]) -> dict[str, Path]:
    """Python of each side; the peak is measured in ours."""
    pythons = {"peak": Path(sys.executable)}
    for side in sides:
        if side.startswith("huggingface"):
            pythons[side] = peer("trainer", ["transformers[torch]"])
        elif side.startswith("litgpt"):
            pythons[side] = peer("litgpt", ["litgpt==0.5.13"])
        else:
            pythons[side] = Path(sys.executable)
    return pythons


def peer_versions(pythons: dict[str, Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for side, python in pythons.items():
        if (name := side.split("-")[0]) in ("huggingface", "litgpt"):
            found |= versions(python, ["transformers", "accelerate"] if name == "huggingface" else ["litgpt"])
    return found


def bursts(sides: list[str], setting: Setting, pythons: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side's step by round, and of the peak's product. Building and warming up go on side by side."""
    workers = {side: Worker(side, setting, pythons[side]) for side in ["peak", *sides]}
    steps = BURST_STEPS[setting.size]
    for worker in workers.values():
        worker.start(2)
    for worker in workers.values():
        worker.finish()
    seconds: dict[str, list[float]] = {side: [] for side in workers}
    for _ in range(rounds):
        for side, worker in workers.items():
            worker.start(steps)
            seconds[side].append(worker.finish() / (1 if side == "peak" else steps))
    for worker in workers.values():
        worker.end()
    return seconds


def speeds(seconds: dict[str, list[float]], setting: Setting) -> dict[str, float]:
    """Tokens a second and MFU of each side, and the peak that MFU is measured against."""
    peak = 2 * PEAK_DIM**3 / min(seconds["peak"])
    figures: dict[str, float] = {}
    for side, taken in seconds.items():
        if side == "peak":
            continue
        step = statistics.median(taken)
        figures[f"{side} {setting} tokens/s"] = round(setting.shape.tokens / step)
        figures[f"{side} {setting} MFU"] = round(setting.shape.step_flops / step / peak, 3)
    kind = "compiled" if COMPILED[0] in seconds else "eager"
    return figures | {f"peak {setting} GFLOP/s, beside {kind}": round(peak / 1e9)}


def compare(seconds: dict[str, list[float]], setting: Setting) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for ours, theirs in COMPARED:
        if ours in seconds and theirs in seconds:
            by_round = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
            ratios[f"{ours}/{theirs} {setting}"] = round(statistics.median(by_round), 2)
    return ratios


def verdict(label: str, value: float) -> str:
    """Whether a figure is what was asked for; nothing where nothing was."""
    name, size, *_ = label.split()
    if label.endswith("MFU"):
        target = MFU_TARGET[1] if size == MFU_TARGET[0] and name in ("eager", "compiled") else None
    else:
        target = TARGETS.get(name)
    if target is None:
        return ""
    return f"   at least {target}: {'met' if value >= target else 'MISSED'}"


if __name__ == "__main__":
    main()
