"""What training says of itself: `metrics.jsonl`, the same for equal runs, and beside it `speed.jsonl`, by the clock.

A run that resumes goes on in the same files: rows of steps that are trained again, and a last row that a kill cut
short, are taken out first, so that no step is there twice. TensorBoard and Weights & Biases get both kinds of values.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import torch

from herd.artifact import canonical_json, write_atomically
from herd.console import HerdError

METRICS, SPEED, TENSORBOARD = "metrics.jsonl", "speed.jsonl", "tensorboard"

Where = Literal["tensorboard", "wandb"]
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def bits_per_byte(nats: float, bytes_per_token: float) -> float:
    """Loss of a token in nats as bits of a byte of text, which compares over tokenizers."""
    return nats / math.log(2) / bytes_per_token


def model_flops_utilization(tokens_per_second: float, flops_per_token: float, peak: float, ranks: int = 1) -> float:
    """Share of the measured peak (FLOP/s of a rank) that the network's FLOPs take; recomputed ones don't count."""
    return tokens_per_second * flops_per_token / (peak * ranks)


def speed_row(
    step_seconds: Sequence[float],
    tokens: int,
    device: torch.device,
    flops_per_token: float | None = None,
    peak: float | None = None,
    ranks: int = 1,
) -> dict[str, float]:
    """Values for `speed.jsonl` of the steps since the last row: their seconds, and the tokens all ranks trained on.

    `mfu` is there where `flops_per_token` (`ModelConfig.train_flops_per_token`) and `peak` (`measured_peak`) are given.
    """
    rate = tokens / max(sum(step_seconds), 1e-9)
    row = {
        "tokens_per_second": rate,
        "step_seconds_median": median(step_seconds),
        "step_seconds_max": max(step_seconds),
        "memory_bytes": float(memory_bytes(device)),
    }
    if flops_per_token and peak:
        row["mfu"] = model_flops_utilization(rate, flops_per_token, peak, ranks)
    return row


def memory_bytes(device: torch.device) -> int:
    """Most memory so far: of the device where it is a GPU (reserved by torch), else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Sink(Protocol):
    """Where values go besides the files."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Log:
    """Writes a run's rows as they come. Only rank 0 has a folder; without one nothing is written.

    `after`: steps done when the run begins or resumes; rows of later ones are taken out. Use in a `with` block, or
    close it. Raises HerdError where a package that `to` asks for is missing.
    """

    def __init__(self, folder: Path | None, to: Sequence[Where] = (), title: str = "training", after: int = 0) -> None:
        self._files: list[Any] = []
        self._sinks: list[Sink] = []
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._sinks = [_SINKS[name](folder, title, after) for name in to]
        for name in (METRICS, SPEED):
            cut_rows(folder / name, after)
            self._files.append((folder / name).open("a", encoding="utf-8"))

    def write(self, step: int, values: Mapping[str, float], speed: Mapping[str, float] | None = None) -> None:
        """One row of each file. What depends on the clock, or on the machine, belongs into `speed`."""
        for file, row in zip(self._files, (values, speed), strict=False):
            if row:
                file.write(canonical_json({"step": step} | dict(row)) + "\n")
                file.flush()  # a killed process leaves what it said; a killed machine may lose the last rows
        for sink in self._sinks:
            sink.write(step, {**values, **(speed or {})})

    def close(self) -> None:
        """Close the files; the other places send what they hold."""
        for file in self._files:
            file.close()
        for sink in self._sinks:
            sink.close()
        self._files, self._sinks = [], []

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(file: Path) -> list[dict[str, float]]:
    """Rows of a log, without those that a kill cut short; none where there is no such file."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def cut_rows(file: Path, after: int) -> None:
    """Take out rows of steps later than `after`, and what is no row; a file that is fine is not touched."""
    if file.exists():
        kept = "".join(canonical_json(row) + "\n" for row in read_rows(file) if row["step"] <= after).encode()
        if kept != file.read_bytes():
            write_atomically(file, kept.decode())


class _TensorBoard:
    def __init__(self, folder: Path, title: str, after: int) -> None:
        package = _package("tensorboard")
        # hides what an attempt before this one wrote of steps that are trained again
        purge = after + 1 if (folder / TENSORBOARD).exists() else None
        self._writer = package.SummaryWriter(str(folder / TENSORBOARD), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """Steps that it has seen before it drops with a warning of its own, so a resumed run has none twice."""

    def __init__(self, folder: Path, title: str, after: int) -> None:
        package = _package("wandb")
        known = folder / "wandb-run.txt"
        name = known.read_text(encoding="utf-8").strip() if known.exists() else os.urandom(8).hex()
        write_atomically(known, name + "\n")
        self._run = package.init(project="herd", name=title, id=name, resume="allow", dir=str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_SINKS = {"tensorboard": _TensorBoard, "wandb": _WandB}


def _package(name: Where) -> Any:
    try:
        return importlib.import_module(_PACKAGES[name])
    except ImportError:
        raise HerdError(
            f"compute.log: '{name}' needs the package {_PACKAGES[name]}: pip install 'llm-herd[{name}]'"
        ) from None
