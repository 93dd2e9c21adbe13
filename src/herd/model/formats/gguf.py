"""Reading GGUF files of the llama architecture (spec 12.3): weights dequantized to float32, tokenizer, facts.

GGUF stores wq and wk as Meta does, neighbouring pairs rotated, so their rows stay in order. The file itself is read
by `gguf_file.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.formats.gguf_file import StoredTensor, read_gguf_file
from herd.model.formats.merge_order import check_merges, read_merges
from herd.model.formats.native import tensor_shapes
from herd.model.formats.tokenizer_files import byte_characters
from herd.model.rope import rotary_frequencies
from herd.model.tokenizer import Tokenizer

NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}
ROPE_FACTORS = "rope_freqs.weight"
PATTERN_OF = {"llama-bpe": "llama3", "smollm": "smollm"}  # tokenizer.ggml.pre -> our split pattern
LARGEST = {"block_count": 1_000, "embedding_length": 100_000, "feed_forward_length": 1_000_000, "context_length": 2**21}
ORDINARY, CONTROL, UNUSED = 1, 3, 5  # tokenizer.ggml.token_type


class GgufModel(NamedTuple):
    """What a file holds. `facts`: name, licence and kinds of quantization."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    facts: dict[str, Any]


def read_gguf(path: Path) -> GgufModel:
    """Read a file. Raises HerdError naming the key or tensor that is missing, damaged or not supported."""
    fields, tensors = read_gguf_file(path)
    try:
        config = _config(fields, tensors)
        tokenizer = _tokenizer(fields)
        state = _state(config, tensors)
    except HerdError as error:
        raise HerdError(f"{path}: {error}") from None
    kinds = Counter(tensor.kind for tensor in tensors.values())
    facts = {
        "name": str(fields.get("general.name", path.stem)),
        "licence": str(fields.get("general.license", "unstated")),
        "quantization": dict(sorted(kinds.items())),
    }
    return GgufModel(config, state, tokenizer, facts)


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The vocabulary of a file alone. Raises HerdError naming the key that is missing, damaged or not supported."""
    fields, _ = read_gguf_file(path)
    try:
        return _tokenizer(fields)
    except HerdError as error:
        raise HerdError(f"{path}: {error}") from None


def gguf_name(name: str) -> str:
    """GGUF's name of one of our tensors: layers.3.attention.wq.weight is blk.3.attn_q.weight."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{NAMES['.'.join(parts[2:])]}.weight"
    return f"{NAMES[parts[0]]}.weight"


def _config(fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> ModelConfig:
    if (architecture := fields.get("general.architecture")) != "llama":
        raise HerdError(f"general.architecture is {architecture!r}; herd reads 'llama'")
    if fields.get("llama.expert_count", 0) != 0:
        raise HerdError(f"llama.expert_count is {fields['llama.expert_count']!r}; herd reads dense models")

    def whole(key: str, default: int | None = None) -> int:
        value, most = fields.get(f"llama.{key}", default), LARGEST.get(key, 2**31)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise HerdError(f"llama.{key} is {value!r}; expected a whole number from 1 to {most}")
        return value

    def real(key: str, default: float | None = None) -> float:
        value = fields.get(f"llama.{key}", default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
            raise HerdError(f"llama.{key} is {value!r}; expected a number above 0")
        return float(str(np.float32(value)))  # the shortest number that is this float32: 1e-05, not 9.99999975e-06

    dim, heads = whole("embedding_length"), whole("attention.head_count")
    head_dim = whole("attention.key_length", dim // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if whole(key, head_dim) != head_dim:
            raise HerdError(
                f"llama.{key} is {fields[f'llama.{key}']}, the heads are {head_dim} wide; expected the same"
            )
    config = ModelConfig(
        layers=whole("block_count"),
        dim=dim,
        heads=heads,
        kv_heads=whole("attention.head_count_kv", heads),
        ffn_dim=whole("feed_forward_length"),
        vocab_size=len(_vocabulary(fields)),
        head_dim=head_dim,
        context=whole("context_length"),
        tied_embeddings="output.weight" not in tensors,
        rope_theta=real("rope.freq_base", 10_000.0),
        norm_eps=real("attention.layer_norm_rms_epsilon"),
    )
    return config.stretched(config.context, _scaling(config, fields, tensors.get(ROPE_FACTORS)))


def _scaling(config: ModelConfig, fields: Mapping[str, Any], factors: StoredTensor | None) -> RopeScaling | None:
    """The stretching that a file's factors come from: Llama 3.1's and 3.2's are known, others are refused."""
    kind = fields.get("llama.rope.scaling.type", "none")
    if kind != "none" or any(key.startswith("llama.rope.scale") for key in fields):
        raise HerdError(f"llama.rope.scaling.type is {kind!r}; herd reads Llama 3's scaling by {ROPE_FACTORS}, or none")
    if factors is None:
        return None
    given = torch.from_numpy(_values(ROPE_FACTORS, factors)).flatten()
    scaling = RopeScaling(factor=float(given.max()))
    plain = rotary_frequencies(config.head_dim, config.rope_theta)
    expected = plain / rotary_frequencies(config.head_dim, config.rope_theta, scaling)
    if given.shape != expected.shape or not torch.allclose(given, expected, rtol=1e-3):
        raise HerdError(f"{ROPE_FACTORS} is not the RoPE scaling of Llama 3.1 or 3.2, and herd knows no other")
    return scaling


def _state(config: ModelConfig, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    shapes = tensor_shapes(config)
    if unknown := sorted(tensors.keys() - {gguf_name(name) for name in shapes} - {ROPE_FACTORS}):
        raise HerdError(f"unknown tensor {unknown[0]}; herd reads Llama models without biases")
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        stored = tensors.get(gguf_name(name))
        if stored is None:
            raise HerdError(f"tensor {gguf_name(name)} is missing")
        if stored.shape != tuple(shape):
            raise HerdError(f"{gguf_name(name)} has shape {list(stored.shape)}, expected {list(shape)}")
        state[name] = torch.from_numpy(_values(gguf_name(name), stored))
    return state


def _values(name: str, stored: StoredTensor) -> np.ndarray:
    try:
        with np.errstate(all="ignore"):  # what comes out of damaged scales is looked at below
            values = stored.values()
    except NotImplementedError:
        raise HerdError(f"{name}: its kind {stored.kind} can't be dequantized") from None
    if not np.isfinite(values).all():
        raise HerdError(f"{name} holds values that are not finite")
    return values


def _vocabulary(fields: Mapping[str, Any]) -> list[str]:
    names = fields.get("tokenizer.ggml.tokens")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise HerdError("tokenizer.ggml.tokens is missing or not a list of texts; herd needs the vocabulary")
    return names


def _tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if model != "gpt2" or not isinstance(pre, str) or pre not in PATTERN_OF:
        known = " or ".join(f"'{name}'" for name in PATTERN_OF)
        raise HerdError(f"tokenizer {model!r} with pre {pre!r} is not supported; herd reads 'gpt2' with {known}")
    names, kinds = _vocabulary(fields), fields.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(names):
        raise HerdError(f"tokenizer.ggml.token_type does not have a kind for each of {len(names)} tokens")
    table = {character: value for value, character in enumerate(byte_characters())}
    specials: dict[str, int] = {}
    ranks: dict[bytes, int] = {}
    for token, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if kind in (CONTROL, UNUSED):
            specials[name] = token
        elif kind != ORDINARY or not name or not all(character in table for character in name):
            raise HerdError(f"token {token} ({name[:40]!r}, kind {kind!r}) is neither special nor byte-level text")
        else:
            ranks[bytes(table[character] for character in name)] = token
    if len(ranks) + len(specials) != len(names):
        raise HerdError("tokenizer.ggml.tokens has a token twice")
    try:
        # llama.cpp takes a piece of text that is a token as it stands for Llama 3's vocabulary only
        check_merges(ranks, read_merges(fields.get("tokenizer.ggml.merges"), table), PATTERN_OF[pre] == "llama3")
    except HerdError as error:
        raise HerdError(f"tokenizer.ggml.{error}") from None
    return Tokenizer(ranks, specials, PATTERN_OF[pre])
