"""Reading GGUF files of the llama architecture (spec 12.3): weights, tokenizer, facts.

GGUF stores wq and wk as Meta does, neighbouring pairs rotated, so their rows stay in order. F32, F16 and BF16 stay what
they are, all else is dequantized to float32. The file itself is read by `gguf_file.py`, `gguf_write.py` writes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.formats.gguf_file import StoredTensor, read_gguf_file
from herd.model.formats.merge_order import check_merges, read_merges
from herd.model.formats.native import tensor_shapes
from herd.model.formats.numbers import LONGEST_CONTEXT, MOST_HEADS, MOST_LAYERS, WIDEST, WIDEST_FFN, Numbers, plain
from herd.model.formats.tokenizer_files import byte_characters
from herd.model.formats.weights import OpenModel, Stored, Weights
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
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # kinds that stay what they are
ORDINARY, CONTROL, UNUSED = 1, 3, 5  # tokenizer.ggml.token_type


def read_gguf(path: Path) -> OpenModel:
    """Open a file; its weights are read one by one, when asked for.

    Raises HerdError naming the key or tensor that is missing, damaged or not supported; reading a weight does where
    its values are not finite or nobody can dequantize them.
    """
    fields, tensors = read_gguf_file(path)
    try:
        config = _config(fields, tensors)
        tokenizer = _tokenizer(fields)
        state = _state(config, tensors, path)
    except HerdError as error:
        raise HerdError(f"{path}: {plain(str(error))}") from None
    kinds = Counter(tensor.kind for tensor in tensors.values())
    facts = {
        "name": str(fields.get("general.name", path.stem)),
        "licence": str(fields.get("general.license", "unstated")),
        "quantization": dict(sorted(kinds.items())),
    }
    return OpenModel(config, state, tokenizer, facts)


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

    numbers = Numbers({key.removeprefix("llama."): fields[key] for key in fields if key.startswith("llama.")}, "llama.")
    dim, heads = numbers.whole("embedding_length", WIDEST), numbers.whole("attention.head_count", MOST_HEADS)
    head_dim = numbers.whole("attention.key_length", WIDEST, max(1, dim // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if numbers.whole(key, WIDEST, head_dim) != head_dim:
            raise HerdError(
                f"llama.{key} is {fields[f'llama.{key}']}, the heads are {head_dim} wide; expected the same"
            )
    config = ModelConfig(
        layers=numbers.whole("block_count", MOST_LAYERS),
        dim=dim,
        heads=heads,
        kv_heads=numbers.whole("attention.head_count_kv", MOST_HEADS, heads),
        ffn_dim=numbers.whole("feed_forward_length", WIDEST_FFN),
        vocab_size=len(_vocabulary(fields)),
        head_dim=head_dim,
        context=numbers.whole("context_length", LONGEST_CONTEXT),
        tied_embeddings="output.weight" not in tensors,
        rope_theta=_shortest(numbers.real("rope.freq_base", 10_000.0)),
        norm_eps=_shortest(numbers.real("attention.layer_norm_rms_epsilon")),
    )
    return config.stretched(config.context, _scaling(config, fields, tensors.get(ROPE_FACTORS)))


def _shortest(value: float) -> float:
    """The shortest number that is this float32: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))


def _scaling(config: ModelConfig, fields: Mapping[str, Any], factors: StoredTensor | None) -> RopeScaling | None:
    """The stretching that a file's factors come from: Llama 3.1's and 3.2's are known, others are refused."""
    kind = fields.get("llama.rope.scaling.type", "none")
    if kind != "none" or any(key.startswith("llama.rope.scale") for key in fields):
        raise HerdError(f"llama.rope.scaling.type is {kind!r}; herd reads Llama 3's scaling by {ROPE_FACTORS}, or none")
    if factors is None:
        return None
    given = _values(ROPE_FACTORS, factors).flatten().float()
    scaling = RopeScaling(factor=float(given.max()))
    plain = rotary_frequencies(config.head_dim, config.rope_theta)
    expected = plain / rotary_frequencies(config.head_dim, config.rope_theta, scaling)
    if given.shape != expected.shape or not torch.allclose(given, expected, rtol=1e-3):
        raise HerdError(f"{ROPE_FACTORS} is not the RoPE scaling of Llama 3.1 or 3.2, and herd knows no other")
    return scaling


def _state(config: ModelConfig, tensors: Mapping[str, StoredTensor], path: Path) -> Weights:
    shapes = tensor_shapes(config)
    if unknown := sorted(tensors.keys() - {gguf_name(name) for name in shapes} - {ROPE_FACTORS}):
        raise HerdError(f"unknown tensor {unknown[0]}; herd reads Llama models without biases")
    found: dict[str, Stored] = {}
    for name, shape in shapes.items():
        theirs = gguf_name(name)
        one = tensors.get(theirs)
        if one is None:
            raise HerdError(f"tensor {theirs} is missing")
        if one.shape != tuple(shape):
            raise HerdError(f"{theirs} has shape {list(one.shape)}, expected {list(shape)}")
        found[name] = Stored(one.shape, PLAIN.get(one.kind, torch.float32), lambda t=theirs, o=one: _read(path, t, o))
    return Weights(_norms_as_matrices(found))


def _norms_as_matrices(found: dict[str, Stored]) -> dict[str, Stored]:
    """GGUF keeps norms in float32 whatever the matrices are; where nothing is lost they get the matrices' dtype."""
    matrices = {one.dtype for one in found.values() if len(one.shape) > 1}
    norms = {name: one for name, one in found.items() if len(one.shape) == 1 and one.dtype == torch.float32}
    if len(matrices) != 1 or matrices == {torch.float32}:
        return found
    (dtype,) = matrices
    if not all(torch.equal(value.to(dtype).float(), value) for value in (one.read() for one in norms.values())):
        return found
    return found | {name: one.then(lambda value: value.to(dtype), dtype) for name, one in norms.items()}


def _read(path: Path, name: str, stored: StoredTensor) -> Tensor:
    try:
        return _values(name, stored)
    except HerdError as error:
        raise HerdError(f"{path}: {error}") from None


def _values(name: str, stored: StoredTensor) -> Tensor:
    """A tensor's numbers, copied out of the file."""
    if stored.kind in PLAIN:
        values = torch.frombuffer(bytearray(stored.data), dtype=PLAIN[stored.kind]).view(stored.shape)
    else:
        try:
            with np.errstate(all="ignore"):  # what comes out of damaged scales is looked at below
                values = torch.from_numpy(stored.values())
        except NotImplementedError:
            raise HerdError(f"{name}: its kind {stored.kind} can't be dequantized") from None
    if not values.isfinite().all():
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
