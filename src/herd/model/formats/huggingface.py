"""Hugging Face's LlamaForCausalLM folder, both ways (spec 12.2).

Hugging Face rotates halves of a head where Meta rotates neighbouring pairs, so the rows of wq and wk are reordered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.formats.native import WEIGHTS, check_tensors, read_json, read_tensors, tensor_shapes, write_tensors
from herd.model.formats.tokenizer_files import save_tokenizer
from herd.model.generation import Sampling
from herd.model.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def write_huggingface(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    dtype: torch.dtype,
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load; weights in one file, rounded to `dtype`.

    `state` has our names (`Transformer.state_dict()`); it is not changed. Without a tokenizer the special ids stay
    null. Raises HerdError naming tensors that do not fit the config, OSError (ENOSPC) where the disk is full.
    """
    check_tensors(config, state, "the model to write")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name in tensor_shapes(config):
        heads = _rotated_heads(name, config)
        tensor = state[name].to(dtype)
        tensors[huggingface_name(name)] = to_halves(tensor, heads) if heads else tensor
    write_tensors(folder / WEIGHTS, tensors)
    _write_json(folder / "config.json", _config_json(config, tokenizer, str(dtype).removeprefix("torch.")))
    if tokenizer is not None:
        _write_json(folder / "generation_config.json", _generation_json(tokenizer))
        save_tokenizer(tokenizer, folder)


def read_huggingface(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights, under our names and in the files' dtype, of a Llama folder: one safetensors file or shards.

    Raises HerdError naming the file and key of what is missing, damaged, or not this architecture.
    """
    config = _read_config(folder / "config.json")
    theirs = _read_weights(folder)
    if config.tied_embeddings:
        theirs.pop("lm_head.weight", None)  # some writers store the embeddings twice
    state: dict[str, Tensor] = {}
    for name in tensor_shapes(config):
        if (tensor := theirs.pop(huggingface_name(name), None)) is not None:
            state[name] = tensor
    unknown = sorted(name for name in theirs if not name.endswith("rotary_emb.inv_freq"))  # computed, not learned
    if unknown:
        raise HerdError(f"{folder}: unknown tensor {unknown[0]}; is this LlamaForCausalLM?")
    check_tensors(config, state, str(folder))
    return config, {
        name: from_halves(tensor, heads) if (heads := _rotated_heads(name, config)) else tensor
        for name, tensor in state.items()
    }


def huggingface_name(name: str) -> str:
    """Their name of one of our tensors: layers.3.attention.wq.weight is model.layers.3.self_attn.q_proj.weight."""
    layer, inner = re.fullmatch(r"(layers\.\d+\.)?(.+)\.weight", name).groups()  # type: ignore[union-attr]
    return f"model.{layer}{NAMES[inner]}.weight" if layer else f"{NAMES[inner]}.weight"


def to_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from pairs (2i, 2i+1) to halves (i, i + head_dim/2); shape (heads * head_dim, dim) stays."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def from_halves(weight: Tensor, heads: int) -> Tensor:
    """Inverse of `to_halves`."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _rotated_heads(name: str, config: ModelConfig) -> int:
    """How many heads a tensor rotates; 0 for all but wq and wk."""
    if name.endswith("attention.wq.weight"):
        return config.heads
    return config.kv_heads if name.endswith("attention.wk.weight") else 0


def _config_json(config: ModelConfig, tokenizer: Tokenizer | None, dtype: str) -> dict[str, Any]:
    scaling: dict[str, Any] | None = None
    if config.rope_scaling is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_context,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,  # transformers 4
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},  # 5
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.bos_id if tokenizer else None,
        "eos_token_id": tokenizer.eos_id if tokenizer else None,
        "torch_dtype": dtype,  # transformers 4
        "dtype": dtype,  # 5
        "use_cache": True,
    }


def _generation_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """All stop tokens: harmless for a base model, needed by an assistant."""
    usual = Sampling()
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.stop_ids),
        "pad_token_id": tokenizer.pad_id,
        "do_sample": True,
        "temperature": usual.temperature,
        "top_p": usual.top_p,
    }


def _read_config(path: Path) -> ModelConfig:
    values = read_json(path)
    fixed = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for key, wanted in fixed.items():
        if values.get(key, None if key == "model_type" else wanted) != wanted:
            raise HerdError(f"{path}: {key} is {values.get(key)!r}; herd reads Llama models, with {wanted!r} there")
    rope = values.get("rope_parameters") or {
        "rope_theta": values.get("rope_theta", 10_000.0),
        **(values.get("rope_scaling") or {}),
    }
    try:
        heads = values["num_attention_heads"]
        return ModelConfig(
            layers=values["num_hidden_layers"],
            dim=values["hidden_size"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            ffn_dim=values["intermediate_size"],
            vocab_size=values["vocab_size"],
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            context=values["max_position_embeddings"],
            tied_embeddings=values.get("tie_word_embeddings", False),
            rope_theta=rope["rope_theta"],
            rope_scaling=_rope_scaling(rope, path),
            norm_eps=values.get("rms_norm_eps", 1e-6),
        )
    except KeyError as error:
        raise HerdError(f"{path}: key {error} is missing") from None
    except TypeError as error:
        raise HerdError(f"{path}: a value has the wrong type ({error})") from None


def _rope_scaling(rope: Mapping[str, Any], path: Path) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise HerdError(f"{path}: rope_type '{kind}' is not supported; 'default' and 'llama3' are")
    return RopeScaling(
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if not (folder / INDEX).is_file():
        return read_tensors(folder / WEIGHTS)
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise HerdError(f"{folder / INDEX}: key 'weight_map' is missing or not a table of file names")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        if Path(name).name != name:
            raise HerdError(f"{folder / INDEX}: '{name}' leads out of the folder")
        tensors |= read_tensors(folder / name)
    return tensors


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
