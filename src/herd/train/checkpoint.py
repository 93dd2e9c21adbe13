"""Saving and restoring the state of a training run, so that a killed run goes on bit for bit.

Weights and optimizer moments are safetensors, the rest is JSON with the tensors' SHA-256, written last: a checkpoint
counts only when that marker is there and its hash holds. The newest that counts is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from herd.artifact import canonical_json, file_sha256, write_atomically
from herd.console import warn
from herd.model.formats.weights import write_tensors

KEEP = 2


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]
) -> None:
    """Write the state after `step` steps; older checkpoints but the last are deleted. `extra` must be JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = folder / f"step-{step:09d}.safetensors"
    write_tensors(tensors, {**_weights(model), **_moments(model, optimizer)})
    marker = {"schema": 1, "step": step, "sha256": file_sha256(tensors), "extra": extra}
    write_atomically(tensors.with_suffix(".json"), canonical_json(marker))
    for old in sorted(folder.glob("step-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest checkpoint that is whole; (steps done, extra), or None where there is none of this network.

    A damaged one is named in a warning and the one before it is used.
    """
    for marker in sorted(folder.glob("step-*.json"), reverse=True):
        tensors = marker.with_suffix(".safetensors")
        state = _read_marker(marker)
        if state is None or not tensors.is_file() or file_sha256(tensors) != state["sha256"]:
            warn(f"{tensors}: damaged, it does not match its checksum; using the checkpoint before it")
            marker.unlink()  # or it would count as one of the newest when old ones are deleted
            tensors.unlink(missing_ok=True)
            continue
        loaded = load_file(tensors)
        if any(loaded.get(f"model.{n}", torch.empty(0)).shape != p.shape for n, p in model.named_parameters()):
            warn(f"{tensors}: holds another network, of an older version of herd; starting this training anew")
            for old in folder.glob("step-*"):
                old.unlink()
            return None
        _restore(loaded, model, optimizer)
        return state["step"], state["extra"]
    return None


def _read_marker(marker: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return state if isinstance(state, dict) and {"step", "sha256", "extra"} <= state.keys() else None


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": value.detach().contiguous() for name, value in model.named_parameters()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            optimizer.state[parameter] = {
                key: tensors[f"{key}.{name}"].to(parameter.device)  # the fused optimizer counts steps there too
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in tensors
            }
