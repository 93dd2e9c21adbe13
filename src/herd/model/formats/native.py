"""Our own folder of a model: `config.json` (ModelConfig) and `model.safetensors` under Meta's weight names.

A tied output head is not stored. Reading and writing of safetensors for all formats is here too.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from herd.artifact import canonical_json
from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

WEIGHTS = "model.safetensors"


def save_native(folder: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write a model; `state` is `Transformer.state_dict()`, its dtypes are kept.

    Raises HerdError naming tensors that do not fit the config, OSError where the disk is full.
    """
    check_tensors(config, state, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(canonical_json(config.to_dict(), indent=1) + "\n")
    write_tensors(folder / WEIGHTS, {name: state[name] for name in tensor_shapes(config)})


def load_native(folder: Path) -> Transformer:
    """The model of a folder, on the CPU in float32. Raises HerdError naming a missing or damaged file or tensor."""
    config = ModelConfig.from_dict(read_json(folder / "config.json"))
    state = read_tensors(folder / WEIGHTS)
    check_tensors(config, state, str(folder / WEIGHTS))
    return build(config, state)


def build(config: ModelConfig, state: Mapping[str, Tensor]) -> Transformer:
    """A float32 model on the CPU with the weights of `state`, which are copied; a tied head follows the embeddings."""
    model = Transformer(config)
    model.load_state_dict({name: state[name] for name in tensor_shapes(config)}, strict=False)
    return model


def tensor_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every tensor that a model of this config is stored as."""
    with torch.device("meta"):  # allocates nothing
        shapes = {name: value.shape for name, value in Transformer(config).state_dict().items()}
    if config.tied_embeddings:
        del shapes["output.weight"]
    return shapes


def check_tensors(config: ModelConfig, state: Mapping[str, Tensor], where: str) -> None:
    """Raise HerdError naming the first tensors that are missing, unknown or of another shape than the config says."""
    expected = tensor_shapes(config)
    extra = state.keys() - expected.keys() - ({"output.weight"} if config.tied_embeddings else set())
    for problem, names in (("missing", sorted(expected.keys() - state.keys())), ("unknown", sorted(extra))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise HerdError(f"{where}: {problem} tensor {', '.join(names[:3])}{more}")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise HerdError(f"{where}: {name} has shape {tuple(state[name].shape)}, the config says {tuple(shape)}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that transformers reads too. Raises OSError (ENOSPC) where the disk is full."""
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        raise
    path.chmod(0o644)  # safetensors writes for the owner alone; a server under another user must read it


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises HerdError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise HerdError(f"{path}: missing") from None
    except SafetensorError as error:
        raise HerdError(f"{path}: not a whole safetensors file ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises HerdError where the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HerdError(f"{path}: missing") from None
    except ValueError as error:
        raise HerdError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise HerdError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value
