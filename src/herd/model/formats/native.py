"""Our own folder of a model: `config.json` (ModelConfig) and `model.safetensors` under Meta's weight names.

A tied output head is not stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from herd.artifact import canonical_json
from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.formats.numbers import (
    LONGEST_CONTEXT,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_TOKENS,
    WIDEST,
    WIDEST_FFN,
    Numbers,
    plain,
    shown,
)
from herd.model.formats.weights import Weights, open_tensors, read_json, stored, write_tensors
from herd.model.transformer import Transformer

WEIGHTS = "model.safetensors"
WHOLE = {
    "layers": MOST_LAYERS,
    "dim": WIDEST,
    "heads": MOST_HEADS,
    "kv_heads": MOST_HEADS,
    "ffn_dim": WIDEST_FFN,
    "vocab_size": MOST_TOKENS,
    "head_dim": WIDEST,
    "context": LONGEST_CONTEXT,
}


def save_native(folder: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write a model; `state` is `Transformer.state_dict()` or weights to be read one by one; dtypes are kept.

    Raises HerdError naming tensors that do not fit the config, OSError where the disk is full.
    """
    check_tensors(config, state, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(canonical_json(config.to_dict(), indent=1) + "\n")
    write_tensors(folder / WEIGHTS, chosen(state, tensor_shapes(config)))


def load_native(folder: Path) -> Transformer:
    """The model of a folder, on the CPU in float32. Raises HerdError naming a missing or damaged file or tensor."""
    return build(*open_native(folder))


def open_native(folder: Path) -> tuple[ModelConfig, Weights]:
    """A model's config and its weights, to be read one by one. Raises HerdError as `load_native` does."""
    config = read_config(folder / "config.json")
    weights = open_tensors(folder / WEIGHTS)
    check_tensors(config, weights, str(folder / WEIGHTS))
    return config, chosen(weights, tensor_shapes(config))


def read_config(path: Path) -> ModelConfig:
    """A model's config. Raises HerdError naming file and key."""
    values = read_json(path)
    numbers = Numbers(values, f"{path}: ")
    for key, most in WHOLE.items():
        numbers.whole(key, most)
    numbers.flag("tied_embeddings", False)
    for key in ("rope_theta", "norm_eps"):
        numbers.real(key)
    if (scaling := values.get("rope_scaling")) is not None:
        if not isinstance(scaling, dict):
            raise HerdError(f"{path}: rope_scaling is {shown(scaling)}; expected a table or null")
        stretch = Numbers(scaling, f"{path}: rope_scaling.")
        stretch.whole("original_context", LONGEST_CONTEXT)
        for key in ("factor", "low_freq_factor", "high_freq_factor"):
            stretch.real(key)
    try:
        return ModelConfig.from_dict(values)
    except HerdError as error:
        raise HerdError(f"{path}: {plain(str(error))}") from None


def chosen(state: Mapping[str, Tensor], names: Iterable[str]) -> Weights:
    """Some of the tensors, in this order."""
    entries = stored(state)
    return Weights({name: entries[name] for name in names})


def build(config: ModelConfig, state: Mapping[str, Tensor]) -> Transformer:
    """A float32 model on the CPU with the weights of `state`, which are copied; a tied head follows the embeddings."""
    model = Transformer(config)
    places = model.state_dict()
    with torch.no_grad():
        for name in tensor_shapes(config):
            places[name].copy_(state[name])
    return model


def tensor_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every tensor that a model of this config is stored as."""
    with torch.device("meta"):  # no weights; one layer, since the modules of a forged 1,000 took 3 s and 117 MB
        small = {name: value.shape for name, value in Transformer(replace(config, layers=1)).state_dict().items()}
    first = "layers.0."
    block = {name.removeprefix(first): shape for name, shape in small.items() if name.startswith(first)}
    layers = {f"layers.{layer}.{name}": shape for layer in range(config.layers) for name, shape in block.items()}
    around = {name: shape for name, shape in small.items() if not name.startswith(first)}
    shapes = {"tok_embeddings.weight": around.pop("tok_embeddings.weight"), **layers, **around}
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
            raise HerdError(f"{where}: {problem} tensor {plain(', '.join(names[:3]))}{more}")
    entries = stored(state)
    for name, shape in expected.items():
        if tuple(entries[name].shape) != tuple(shape):
            raise HerdError(f"{where}: {name} has shape {tuple(entries[name].shape)}, the config says {tuple(shape)}")
