"""Reading GGUF files of the llama architecture (spec 12.3): weights dequantized to float32, tokenizer, facts.

GGUF stores wq and wk as Meta does, neighbouring pairs rotated, so their rows stay in order.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.formats.native import check_tensors, tensor_shapes
from herd.model.formats.tokenizer_files import byte_characters
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
PATTERN_OF = {"llama-bpe": "llama3", "smollm": "smollm"}  # tokenizer.ggml.pre -> our split pattern
LARGEST = {"block_count": 1_000, "embedding_length": 100_000, "feed_forward_length": 1_000_000, "vocab_size": 2_000_000}
CONTROL = 3  # tokenizer.ggml.token_type of special tokens


class GgufModel(NamedTuple):
    """What a file holds. `facts`: name, licence and kinds of quantization."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    facts: dict[str, Any]


def read_gguf(path: Path) -> GgufModel:
    """Read a file. Raises HerdError naming the key or tensor that is missing, damaged or not supported."""
    from gguf import GGUFReader

    size = path.stat().st_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file with a wrong count, before the error that follows
            reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError, UnicodeDecodeError) as error:
        raise HerdError(f"{path}: not a whole GGUF file ({_line(error)})") from None
    config = _config(path, fields, [tensor.name for tensor in reader.tensors])
    tokenizer = _tokenizer(path, fields, config.vocab_size)
    state, kinds = _state(path, config, reader.tensors, size)
    facts = {
        "name": str(fields.get("general.name", path.stem)),
        "licence": str(fields.get("general.license", "unstated")),
        "quantization": kinds,
    }
    return GgufModel(config, state, tokenizer, facts)


def _config(path: Path, fields: Mapping[str, Any], tensors: list[str]) -> ModelConfig:
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise HerdError(f"{path}: general.architecture is {architecture!r}; herd reads 'llama'")
    if "rope_freqs.weight" in tensors or f"{architecture}.rope.scaling.type" in fields:
        raise HerdError(f"{path}: its RoPE is scaled (rope_freqs.weight or llama.rope.scaling), which is not read yet")

    def number(key: str, default: float | None = None) -> Any:
        value = fields.get(f"llama.{key}", default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= LARGEST.get(key, 1e12):
            raise HerdError(f"{path}: llama.{key} is {value!r}; expected a number above 0")
        return value

    dim, heads = number("embedding_length"), number("attention.head_count")
    vocabulary = fields.get("tokenizer.ggml.tokens")
    if not isinstance(vocabulary, list) or not vocabulary:
        raise HerdError(f"{path}: tokenizer.ggml.tokens is missing; herd needs the vocabulary")
    try:
        return ModelConfig(
            layers=int(number("block_count")),
            dim=int(dim),
            heads=int(heads),
            kv_heads=int(number("attention.head_count_kv", heads)),
            ffn_dim=int(number("feed_forward_length")),
            vocab_size=len(vocabulary),
            head_dim=int(number("rope.dimension_count", dim // heads)),
            context=int(number("context_length")),
            tied_embeddings="output.weight" not in tensors,
            rope_theta=float(number("rope.freq_base", 10_000.0)),
            norm_eps=float(np.float32(number("attention.layer_norm_rms_epsilon"))),
        )
    except HerdError as error:
        raise HerdError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def _state(path: Path, config: ModelConfig, tensors: Any, size: int) -> tuple[dict[str, Tensor], dict[str, int]]:
    from gguf.quants import dequantize

    by_name = {tensor.name: tensor for tensor in tensors}
    state: dict[str, Tensor] = {}
    kinds: dict[str, int] = {}
    for name, shape in tensor_shapes(config).items():
        tensor = by_name.get(gguf_name(name))
        if tensor is None:
            raise HerdError(f"{path}: tensor {gguf_name(name)} is missing")
        if tuple(reversed(tensor.shape.tolist())) != tuple(shape):
            raise HerdError(f"{path}: {tensor.name} has shape {tensor.shape.tolist()[::-1]}, expected {list(shape)}")
        if int(tensor.data_offset) + int(tensor.n_bytes) > size:
            raise HerdError(f"{path}: {tensor.name} lies beyond the end of the file, which is cut short or damaged")
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise HerdError(
                f"{path}: {tensor.name}: {tensor.tensor_type.name} can't be read ({_line(error)})"
            ) from None
        state[name] = torch.from_numpy(np.array(values, dtype=np.float32).reshape(shape))
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    check_tensors(config, state, str(path))
    if bad := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise HerdError(f"{path}: {gguf_name(bad[0])} holds values that are not finite")
    return state, kinds


def gguf_name(name: str) -> str:
    """GGUF's name of one of our tensors."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{NAMES['.'.join(parts[2:])]}.weight"
    return f"{NAMES[parts[0]]}.weight"


def _tokenizer(path: Path, fields: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in PATTERN_OF:
        known = ", ".join(PATTERN_OF)
        raise HerdError(
            f"{path}: tokenizer {model!r} with pre {pre!r} is not supported; herd reads 'gpt2' with {known}"
        )
    names, kinds = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != vocab_size:
        raise HerdError(f"{path}: tokenizer.ggml.token_type does not have a kind for each of {vocab_size} tokens")
    table = {character: value for value, character in enumerate(byte_characters())}
    specials = {name: token for token, (name, kind) in enumerate(zip(names, kinds, strict=True)) if kind == CONTROL}
    ranks: dict[bytes, int] = {}
    for token, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if kind != CONTROL:
            if not all(character in table for character in name):
                raise HerdError(f"{path}: token {token} is not spelled in byte-level characters")
            ranks[bytes(table[character] for character in name)] = token
    if len(ranks) + len(specials) != vocab_size:
        raise HerdError(f"{path}: the vocabulary has a token twice")
    try:
        return Tokenizer(ranks, specials, PATTERN_OF[pre])
    except HerdError as error:
        raise HerdError(f"{path}: {error}") from None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
