"""Writing GGUF files that llama.cpp loads (spec 12.3): one tensor in memory at a time.

Norms and RoPE factors are float32, as llama.cpp wants them. Of a Q4_0 file the output head (tied to the embeddings or
not) is Q8_0: llama.cpp's own quantizer too keeps it finer, as Q6_K, which nothing in Python writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.formats.chat_templates import TEMPLATES
from herd.model.formats.gguf import CONTROL, ORDINARY, PATTERN_OF, ROPE_FACTORS, gguf_name
from herd.model.formats.native import check_tensors, tensor_shapes
from herd.model.formats.tokenizer_files import merges, spelled
from herd.model.formats.weights import stored
from herd.model.rope import rotary_frequencies
from herd.model.tokenizer import Tokenizer

GgufKind = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0"]
GGUF_KINDS: tuple[GgufKind, ...] = get_args(GgufKind)
FILE_TYPE: dict[GgufKind, int] = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # llama.cpp's LLAMA_FTYPE
BLOCK = 32  # values that share a scale; rows that do not divide stay F16
CHUNK_VALUES = 1 << 24  # quantized at once: 64 MB of float32, and a few times that while at it


def write_gguf(
    path: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    kind: GgufKind,
    name: str,
    licence: str | None = None,
) -> dict[str, GgufKind]:
    """Write a model; returns the kind of each tensor under its GGUF name.

    `state` has our names. Raises HerdError naming tensors that do not fit the config, a RoPE scaling that the format
    can't say, and a value that float16 can't hold; OSError (ENOSPC) where the disk is full.
    """
    import gguf

    check_tensors(config, state, "the model to write")
    scaling = config.rope_scaling
    if scaling is not None and (scaling.low_freq_factor, scaling.high_freq_factor) != (1.0, 4.0):
        raise HerdError(f"{path}: a RoPE scaling with other bounds than Llama 3's can't be told from its factors")
    entries, names = stored(state), list(tensor_shapes(config))
    kinds: dict[str, GgufKind] = {ours: tensor_kind(ours, entries[ours].shape, kind, config) for ours in names}
    path.unlink(missing_ok=True)  # cut short, a file that is mapped ends whoever reads it
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**_facts(config, kind, name, licence), **tokenizer_facts(tokenizer)}.items():
        _add(writer, key, value)
    if scaling is not None:
        writer.add_tensor_info(ROPE_FACTORS, (config.head_dim // 2,), np.dtype(np.float32), config.head_dim * 2)
    for ours in names:
        ggml = gguf.GGMLQuantizationType[kinds[ours]]
        block, size = gguf.GGML_QUANT_SIZES[ggml]
        shape = entries[ours].shape
        count = int(np.prod(shape)) // block * size
        writer.add_tensor_info(gguf_name(ours), shape, np.dtype(np.float32), count, raw_dtype=ggml)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if scaling is not None:
            writer.write_tensor_data(_rope_factors(config))
        for ours in names:
            writer.write_tensor_data(encoded(entries[ours].read().detach(), kinds[ours], ours))
    finally:
        writer.close()
    return {gguf_name(ours): written for ours, written in kinds.items()}


def tensor_kind(name: str, shape: tuple[int, ...], kind: GgufKind, config: ModelConfig) -> GgufKind:
    """How a tensor is stored in a file of a kind."""
    if len(shape) == 1:
        return "F32"
    if kind in ("Q8_0", "Q4_0") and shape[-1] % BLOCK:
        return "F16"
    head = "tok_embeddings.weight" if config.tied_embeddings else "output.weight"
    return "Q8_0" if kind == "Q4_0" and name == head else kind


def encoded(tensor: Tensor, kind: GgufKind, name: str) -> np.ndarray[Any, Any]:
    """The bytes of a tensor in one of GGUF's kinds. Raises HerdError where float16 can't hold its values."""
    if kind == "F32":
        return tensor.float().numpy()
    if kind == "BF16":
        return tensor.bfloat16().contiguous().view(torch.uint8).numpy()
    if kind == "F16":
        half = tensor.half()
        if not half.isfinite().all():
            raise HerdError(f"{name} holds values beyond float16's {torch.finfo(torch.float16).max:g}; take bf16")
        return half.numpy()
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rows = max(1, CHUNK_VALUES // tensor.shape[-1])
    parts = (quantize(part.float().numpy(), GGMLQuantizationType[kind]) for part in tensor.split(rows))
    return np.concatenate(list(parts))


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys that describe a vocabulary. Raises HerdError for a split pattern that llama.cpp has no name for."""
    pre = next((pre for pre, pattern in PATTERN_OF.items() if pattern == tokenizer.pattern), None)
    if pre is None:
        raise HerdError(f"llama.cpp has no name for the split pattern '{tokenizer.pattern}'")
    specials = set(tokenizer.special.values())
    ids = range(tokenizer.vocab_size)
    ends = {"eot": "<|eot_id|>", "eom": "<|eom_id|>"} if tokenizer.chat_format == "llama3" else {"eot": "<|im_end|>"}
    names = {token: name for name, token in tokenizer.special.items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [names[i] if i in specials else spelled(tokenizer.token_bytes(i)) for i in ids],
        "tokenizer.ggml.token_type": [CONTROL if i in specials else ORDINARY for i in ids],
        "tokenizer.ggml.merges": [f"{spelled(a)} {spelled(b)}" for a, b in merges(tokenizer.ranks)],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        **{f"tokenizer.ggml.{end}_token_id": tokenizer.special[text] for end, text in ends.items()},
        "tokenizer.ggml.add_bos_token": tokenizer.chat_format == "llama3",  # a ChatML text begins with nothing
        "tokenizer.chat_template": TEMPLATES[tokenizer.chat_format],
    }


def _facts(config: ModelConfig, kind: GgufKind, name: str, licence: str | None) -> dict[str, Any]:
    return {
        "general.name": name,
        **({"general.license": licence} if licence else {}),
        "general.file_type": FILE_TYPE[kind],
        "general.quantization_version": 2,
        "llama.context_length": config.context,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.layers,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.vocab_size": config.vocab_size,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
    }


def _rope_factors(config: ModelConfig) -> np.ndarray[Any, Any]:
    """What llama.cpp divides the plain frequencies by, float32 of shape (head_dim / 2,)."""
    plain = rotary_frequencies(config.head_dim, config.rope_theta)
    return (plain / rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)).numpy()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
