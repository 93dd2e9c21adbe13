"""Where and in which precision to compute, from the recipe's `[compute]` and what this machine has."""

from __future__ import annotations

import platform
from typing import Any, NamedTuple

import torch

from herd.console import HerdError
from herd.process import cores
from herd.recipe import Compute


class Hardware(NamedTuple):
    """Device and compute precision. Weights and optimizer state are float32 in either precision."""

    device: torch.device
    dtype: torch.dtype

    def describe(self) -> dict[str, str]:
        """What of the hardware changes results: part of a training artifact's key."""
        return {"device": self.device.type, "dtype": str(self.dtype).removeprefix("torch.")}


def choose_hardware(compute: Compute) -> Hardware:
    """Resolve `auto`, for this process. bfloat16 where it is native, since emulated it is slower than float32.

    Raises HerdError where the named device is not there.
    """
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not torch.backends.mps.is_available()):
        raise HerdError(f"compute.device: '{name}' is not available to this PyTorch ({torch.__version__})")
    if compute.dtype == "auto":
        dtype = torch.bfloat16 if _native_bfloat16(name) else torch.float32
    else:
        dtype = getattr(torch, compute.dtype)
    return Hardware(torch.device(name), dtype)


def _native_bfloat16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def machine() -> dict[str, Any]:
    """Facts of the machine, to stand beside a measurement."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
