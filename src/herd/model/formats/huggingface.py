"""Hugging Face's LlamaForCausalLM folder, both ways (spec 12.2).

Hugging Face rotates halves of a head where Meta rotates neighbouring pairs, so the rows of wq and wk are reordered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.formats.native import WEIGHTS, check_tensors, tensor_shapes
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
from herd.model.formats.tokenizer_files import save_tokenizer
from herd.model.formats.weights import Stored, Weights, open_tensors, read_json, stored, write_json, write_tensors
from herd.model.generation import Sampling
from herd.model.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # of a file at most, unless one tensor alone is larger; what transformers does by default
MOST_SHARDS = 10_000
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
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load; weights rounded to `dtype`, in one file, or
    in shards with an index where they are larger than `shard_bytes`. One tensor is in memory at a time.

    `state` has our names (`Transformer.state_dict()`); it is not changed. Without a tokenizer the special ids stay
    null. Raises HerdError naming tensors that do not fit the config, OSError (ENOSPC) where the disk is full.
    """
    check_tensors(config, state, "the model to write")
    if config.dim % config.heads:
        raise HerdError(
            f"{folder}: {config.heads} heads do not divide the width {config.dim}, and transformers wants that"
        )
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = stored(state), dict[str, Stored]()
    for name in tensor_shapes(config):
        heads = _rotated_heads(name, config)
        theirs[huggingface_name(name)] = ours[name].then(partial(to_halves, heads=heads)) if heads else ours[name]
    _write_weights(folder, theirs, dtype, shard_bytes)
    write_json(folder / "config.json", _config_json(config, tokenizer, str(dtype).removeprefix("torch.")))
    if tokenizer is not None:
        write_json(folder / "generation_config.json", _generation_json(tokenizer))
        save_tokenizer(tokenizer, folder)


def _write_weights(folder: Path, tensors: Mapping[str, Stored], dtype: torch.dtype, shard_bytes: int) -> None:
    shards: list[dict[str, Stored]] = [{}]
    total = filled = 0
    for name, one in tensors.items():
        size = math.prod(one.shape) * dtype.itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = one
        filled, total = filled + size, total + size
    if len(shards) == 1:
        (folder / INDEX).unlink(missing_ok=True)  # of an earlier model: it would be believed
        write_tensors(folder / WEIGHTS, Weights(shards[0]), dtype)
        return
    files = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_tensors(folder / file, Weights(shard), dtype)
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def read_huggingface(folder: Path) -> tuple[ModelConfig, Weights]:
    """Config and weights, under our names and in the files' dtype, of a Llama folder: one safetensors file or shards.
    Each weight is read when it is asked for.

    Raises HerdError naming the file and key of what is missing, damaged, or not this architecture.
    """
    config = _read_config(folder / "config.json")
    theirs = _open_weights(folder)
    if config.tied_embeddings:
        theirs.pop("lm_head.weight", None)  # some writers store the embeddings twice
    found: dict[str, Stored] = {}
    for name in tensor_shapes(config):
        if (one := theirs.pop(huggingface_name(name), None)) is not None:
            heads = _rotated_heads(name, config)
            found[name] = one.then(partial(from_halves, heads=heads)) if heads else one
    unknown = sorted(name for name in theirs if not name.endswith("rotary_emb.inv_freq"))  # computed, not learned
    if unknown:
        raise HerdError(f"{folder}: unknown tensor {plain(unknown[0])}; is this LlamaForCausalLM?")
    weights = Weights(found)
    check_tensors(config, weights, str(folder))
    return config, weights


def huggingface_name(name: str) -> str:
    """Their name of one of our tensors: layers.3.attention.wq.weight is model.layers.3.self_attn.q_proj.weight.

    Raises ValueError for what is no tensor of ours.
    """
    found = re.fullmatch(r"(layers\.\d+\.)?(.+)\.weight", name)
    if found is None or found[2] not in NAMES:
        raise ValueError(f"{name!r} is no tensor of this network")
    layer, inner = found.groups()
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
            raise HerdError(
                f"{path}: {key} is {shown(values.get(key))}; herd reads Llama models, with {wanted!r} there"
            )
    numbers = Numbers(values, f"{path}: ")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise HerdError(f"{path}: rope_parameters is {type(rope).__name__}; expected a table")
    turns = Numbers({"rope_theta": values.get("rope_theta"), **rope}, f"{path}: ")
    heads, dim = numbers.whole("num_attention_heads", MOST_HEADS), numbers.whole("hidden_size", WIDEST)
    try:
        return ModelConfig(
            layers=numbers.whole("num_hidden_layers", MOST_LAYERS),
            dim=dim,
            heads=heads,
            kv_heads=numbers.whole("num_key_value_heads", MOST_HEADS, heads),
            ffn_dim=numbers.whole("intermediate_size", WIDEST_FFN),
            vocab_size=numbers.whole("vocab_size", MOST_TOKENS),
            head_dim=numbers.whole("head_dim", WIDEST, max(1, dim // heads)),
            context=numbers.whole("max_position_embeddings", LONGEST_CONTEXT),
            tied_embeddings=numbers.flag("tie_word_embeddings", False),
            rope_theta=turns.real("rope_theta", 10_000.0),
            rope_scaling=_rope_scaling(rope, turns, path),
            norm_eps=numbers.real("rms_norm_eps", 1e-6),
        )
    except HerdError as error:
        if str(error).startswith(str(path)):
            raise
        raise HerdError(f"{path}: {error}") from None


def _rope_scaling(rope: Mapping[str, Any], numbers: Numbers, path: Path) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise HerdError(f"{path}: rope_type {shown(kind)} is not supported; 'default' and 'llama3' are")
    return RopeScaling(
        numbers.real("factor"),
        numbers.real("low_freq_factor"),
        numbers.real("high_freq_factor"),
        numbers.whole("original_max_position_embeddings", LONGEST_CONTEXT),
    )


def _open_weights(folder: Path) -> dict[str, Stored]:
    if not (folder / INDEX).is_file():
        return open_tensors(folder / WEIGHTS).stored
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise HerdError(f"{folder / INDEX}: key 'weight_map' is missing or not a table of file names")
    files = sorted(set(places.values()))
    if len(files) > MOST_SHARDS:
        raise HerdError(f"{folder / INDEX}: names {len(files):,} files; at most {MOST_SHARDS:,} are read")
    tensors: dict[str, Stored] = {}
    for file in files:
        if Path(file).name != file:
            raise HerdError(f"{folder / INDEX}: '{plain(file)}' leads out of the folder")
        for name, one in open_tensors(folder / file).stored.items():
            if places.get(name) != file:
                raise HerdError(f"{folder / file}: holds {plain(name)}, which {INDEX} places elsewhere")
            tensors[name] = one
    if lost := sorted(places.keys() - tensors.keys()):
        raise HerdError(f"{folder / places[lost[0]]}: no tensor {plain(lost[0])}, which {INDEX} places there")
    return tensors
