"""Meta's folder, both ways (spec 12.1): `params.json` and a `consolidated.NN.pth` for each model-parallel rank.

Reading joins the ranks' parts of a tensor when it is asked for; writing cuts each tensor once. So a folder is resharded
by reading and writing it. What the files do not say:

- the context: 131,072 tokens with scaled RoPE, 8,192 without, as released;
- the factor of the scaling: 8, and 32 in the sizes of Llama 3.2's 1B and 3B, as in their Hugging Face configs (Meta's
  own code has only the 8);
- whether the head is tied: it is where it equals the embeddings, which torch.save then stores once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.console import HerdError
from herd.model.config import LLAMA3, ModelConfig, RopeScaling, released_ffn_width
from herd.model.formats.native import check_tensors, tensor_shapes
from herd.model.formats.numbers import MOST_HEADS, MOST_LAYERS, MOST_TOKENS, WIDEST, WIDEST_FFN, Numbers, plain
from herd.model.formats.tokenizer_files import save_tokenizer
from herd.model.formats.torch_file import open_torch_file
from herd.model.formats.torch_write import TorchFile
from herd.model.formats.weights import Stored, Weights, read_json, stored, write_json
from herd.model.tokenizer import Tokenizer

PARAMS = "params.json"
MOST_RANKS = 1_000
EMBEDDINGS, HEAD = "tok_embeddings.weight", "output.weight"
KEYS_AND_VALUES = (".wk.weight", ".wv.weight")
COMPUTED = ("rope.freqs",)  # stored by early code, not learned
ROWS_AT_ONCE = 4_096  # compared to find a tied head
FFN_RULE = {  # ffn_dim_multiplier and multiple_of of the released sizes, by dim and ffn_dim (spec 2.1)
    (2_048, 8_192): (1.5, 256),
    (3_072, 8_192): (1.0, 256),
    (4_096, 14_336): (1.3, 1_024),
    (8_192, 28_672): (1.3, 4_096),
    (16_384, 53_248): (1.2, 4_096),
}


def read_meta(folder: Path) -> tuple[ModelConfig, Weights]:
    """Config and weights, in the files' dtype. Each weight is read when it is asked for.

    Raises HerdError naming the file and key of what is missing, damaged, or not this architecture.
    """
    numbers = Numbers(params := read_json(folder / PARAMS), f"{folder / PARAMS}: ")
    for key in ("quantization_args", "lora_args"):
        if params.get(key) is not None:
            raise HerdError(f"{folder / PARAMS}: has {key}; herd reads Meta's weights as trained, not quantized ones")
    ranks = _open_ranks(folder)
    config = _read_config(numbers, ranks)
    found = {name: _joined(name, ranks, folder) for name in ranks[0] if name not in COMPUTED}
    if (copies := _copies(config, ranks)) > 1:
        config = replace(config, kv_heads=len(ranks) // copies)
        for name, one in found.items():
            if name.endswith(KEYS_AND_VALUES):
                found[name] = _without_copies(name, one, config.kv_heads, copies, folder)
    config = replace(config, tied_embeddings=_is_tied(ranks))
    if config.tied_embeddings:
        found.pop(HEAD, None)
    weights = Weights(found)
    check_tensors(config, weights, f"{folder} ({len(ranks)} files consolidated.*.pth)")
    return config, weights


def write_meta(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    dtype: torch.dtype,
    shards: int = 1,
) -> None:
    """Write a folder that Meta's code loads on `shards` model-parallel ranks; weights rounded to `dtype`.

    `state` has our names; one tensor is in memory at a time. Files of weights in the folder are replaced; `state` may
    be read from them. Raises HerdError naming what the format can't say and what `shards` does not divide, OSError
    (ENOSPC) where the disk is full.
    """
    check_tensors(config, state, "the model to write")
    params = _params(config, shards, folder)
    copies = max(1, shards // config.kv_heads)
    entries, shapes = stored(state), tensor_shapes(config)
    cuts = {name: _part_shape(name, tuple(shape), shards, copies) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("consolidated.*.pth"):  # no rank of another number may stay; what is being read, does
        stale.unlink()
    with ExitStack() as opened:
        also = {HEAD: EMBEDDINGS} if config.tied_embeddings else {}
        paths = [folder / f"consolidated.{rank:02d}.pth" for rank in range(shards)]
        files = [opened.enter_context(TorchFile(path, cuts, dtype, also)) for path in paths]
        for name in shapes:
            tensor = entries[name].read().detach().to(dtype)
            if copies > 1 and name.endswith(KEYS_AND_VALUES):
                tensor = tensor.unflatten(0, (config.kv_heads, -1)).repeat_interleave(copies, 0).flatten(0, 1)
            axis = _axis(name)
            parts = [tensor] * shards if axis is None else tensor.chunk(shards, axis)
            for file, part in zip(files, parts, strict=True):
                file.add(part)
    write_json(folder / PARAMS, params)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def ffn_rule(dim: int, ffn_dim: int) -> tuple[float, int]:
    """`ffn_dim_multiplier` and `multiple_of` that give an FFN width; for the released sizes what Meta wrote."""
    if (dim, ffn_dim) in FFN_RULE:
        return FFN_RULE[dim, ffn_dim]
    multiple = gcd(ffn_dim, 4_096)
    middle = (ffn_dim - multiple / 2 + 1) / released_ffn_width(dim, 1.0, 1)  # of what is rounded up to it
    rounded = (round(middle, digits) for digits in range(1, 17))
    return next(one for one in rounded if released_ffn_width(dim, one, multiple) == ffn_dim), multiple


def _axis(name: str) -> int | None:
    """Along which axis the ranks share a tensor: rows, or columns of what adds up over ranks; norms all have."""
    if name.endswith("norm.weight"):
        return None
    return -1 if name.endswith((".wo.weight", ".w2.weight")) else 0


def _open_ranks(folder: Path) -> list[dict[str, Stored]]:
    """The tensors of each file, in the order of ranks."""
    found = sorted(path.name for path in folder.glob("consolidated.*.pth"))
    if not found or len(found) > MOST_RANKS:
        raise HerdError(f"{folder}: {len(found)} files consolidated.NN.pth; expected 1 to {MOST_RANKS}")
    wanted = [f"consolidated.{rank:02d}.pth" for rank in range(len(found))]
    if lost := [name for name in wanted if name not in found]:
        raise HerdError(f"{folder / lost[0]}: missing; {len(found)} files of weights are here, {found[-1]} among them")
    ranks = [open_torch_file(folder / name).stored for name in wanted]
    for name, rank in zip(wanted, ranks, strict=True):
        if other := sorted(rank.keys() ^ ranks[0].keys()):
            raise HerdError(f"{folder / name}: {plain(other[0])} is not both in this file and in {wanted[0]}")
    return ranks


def _read_config(numbers: Numbers, ranks: list[dict[str, Stored]]) -> ModelConfig:
    """Sizes as the file gives them, key-value heads with their copies."""
    dim, heads = numbers.whole("dim", WIDEST), numbers.whole("n_heads", MOST_HEADS)
    layers, where = numbers.whole("n_layers", MOST_LAYERS), numbers.where
    if dim % heads:
        raise HerdError(f"{where}dim {dim} does not divide into n_heads {heads}")
    multiplier = numbers.real("ffn_dim_multiplier", 1.0)
    ffn_dim = released_ffn_width(dim, multiplier, numbers.whole("multiple_of", WIDEST_FFN, 256))
    if not 0 < ffn_dim <= WIDEST_FFN:
        raise HerdError(f"{where}ffn_dim_multiplier {multiplier} makes a width of {ffn_dim}; at most {WIDEST_FFN}")
    scaled = numbers.flag("use_scaled_rope", False)
    embeddings = ranks[0].get(EMBEDDINGS)
    rows = embeddings.shape[0] * len(ranks) if embeddings else 1
    if numbers.values.get("vocab_size") == -1:  # Meta's code takes it from the tokenizer then
        numbers = Numbers({**numbers.values, "vocab_size": None}, where)
    try:
        return ModelConfig(
            layers=layers,
            dim=dim,
            heads=heads,
            kv_heads=numbers.whole("n_kv_heads", MOST_HEADS, heads),
            ffn_dim=ffn_dim,
            vocab_size=numbers.whole("vocab_size", MOST_TOKENS, rows),
            head_dim=dim // heads,
            context=131_072 if scaled else 8_192,
            rope_theta=numbers.real("rope_theta", 500_000.0),
            rope_scaling=_scaling(layers, dim, heads) if scaled else None,
            norm_eps=numbers.real("norm_eps", 1e-5),
        )
    except HerdError as error:
        raise error if str(error).startswith(where) else HerdError(f"{where}{error}") from None


def _scaling(layers: int, dim: int, heads: int) -> RopeScaling:
    """What `use_scaled_rope` stands for in a size."""
    same = (known for known in LLAMA3.values() if (known.layers, known.dim, known.heads) == (layers, dim, heads))
    released = next(same, None)
    return released.rope_scaling if released and released.rope_scaling else RopeScaling()


def _joined(name: str, ranks: list[dict[str, Stored]], folder: Path) -> Stored:
    """A tensor out of its parts in all files. Raises HerdError where they do not fit each other."""
    parts, axis = [rank[name] for rank in ranks], _axis(name)
    if len({(part.shape, part.dtype) for part in parts}) > 1:
        raise HerdError(f"{folder}: {plain(name)} differs in shape or dtype from file to file")
    first = parts[0]
    if not first.shape:
        raise HerdError(f"{folder}: {plain(name)} is a single number; a matrix or a row is expected")
    if len(parts) == 1:
        return first
    if axis is None:
        return first._replace(read=partial(_same, name, parts, folder))
    shape = list(first.shape)
    shape[axis] *= len(parts)
    return Stored(tuple(shape), first.dtype, lambda: torch.cat([part.read() for part in parts], axis))


def _same(name: str, parts: list[Stored], folder: Path) -> Tensor:
    first, *others = (part.read() for part in parts)
    if not all(_equal(first, other) for other in others):
        raise HerdError(f"{folder}: {name} is not the same in all files consolidated.*.pth; are they of one model?")
    return first


def _equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _is_tied(ranks: list[dict[str, Stored]]) -> bool:
    """Whether the head is the embeddings: looked at in pieces, and no further than to the first difference."""
    if HEAD not in ranks[0] or EMBEDDINGS not in ranks[0]:
        return HEAD not in ranks[0]
    for rank in ranks:
        head, embeddings = rank[HEAD], rank[EMBEDDINGS]
        if (head.shape, head.dtype) != (embeddings.shape, embeddings.dtype) or not head.shape:
            return False
        pieces = zip(head.read().split(ROWS_AT_ONCE), embeddings.read().split(ROWS_AT_ONCE), strict=True)
        if not all(_equal(one, other) for one, other in pieces):
            return False
    return True


def _copies(config: ModelConfig, ranks: list[dict[str, Stored]]) -> int:
    """How often each key-value head is there: more than once where every file has one, and neighbours' are equal.

    So 405B is released for 16 ranks; `n_kv_heads` may be said with the copies or without them. The first layer decides,
    the others are held to it when they are read.
    """
    keys = [rank.get("layers.0.attention.wk.weight") for rank in ranks]
    if len(ranks) == 1 or any(one is None or one.shape != (config.head_dim, config.dim) for one in keys):
        return 1
    values = [one.read() for one in keys if one is not None]
    equal = [_equal(one, other) for one, other in pairwise(values)]
    copies = (*equal, False).index(False) + 1
    whole = len(ranks) % copies == 0 and equal == [at % copies != 0 for at in range(1, len(ranks))]
    return copies if whole and config.kv_heads in (len(ranks), len(ranks) // copies) else 1


def _without_copies(name: str, one: Stored, kept: int, copies: int, folder: Path) -> Stored:
    def read() -> Tensor:
        heads = one.read().unflatten(0, (kept, copies, -1))
        if not _equal(heads, heads[:, :1].expand_as(heads)):
            raise HerdError(
                f"{folder}: {name} does not have each key-value head {copies} times, as the first layer has"
            )
        return heads[:, 0].flatten(0, 1)

    return Stored((one.shape[0] // copies, *one.shape[1:]), one.dtype, read)


def _params(config: ModelConfig, shards: int, folder: Path) -> dict[str, Any]:
    """What params.json says. Raises HerdError for what it can't say, and for a number of ranks that does not fit."""
    if config.head_dim * config.heads != config.dim:
        given = f"{config.heads} heads of {config.head_dim} in a width of {config.dim}"
        raise HerdError(f"{folder}: {given}: Meta's format can only say heads of dim / n_heads")
    scaling, expected = config.rope_scaling, _scaling(config.layers, config.dim, config.heads)
    if scaling is not None and scaling != expected:
        raise HerdError(f"{folder}: {scaling} can't be told in Meta's format, which has {expected} in this size")
    fits = [("attention heads", config.heads), ("FFN width", config.ffn_dim), ("vocabulary", config.vocab_size)]
    for what, size in fits:
        if shards < 1 or size % shards:
            raise HerdError(f"{folder}: {shards} shards do not divide the {what}, {size}")
    if config.kv_heads % shards and shards % config.kv_heads:
        raise HerdError(f"{folder}: {shards} shards and {config.kv_heads} key-value heads do not divide each other")
    multiplier, multiple = ffn_rule(config.dim, config.ffn_dim)
    return {
        "dim": config.dim,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": max(config.kv_heads, shards),
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": scaling is not None,
    }


def _part_shape(name: str, shape: tuple[int, ...], shards: int, copies: int) -> tuple[int, ...]:
    """Shape of what one rank has of a tensor."""
    if (axis := _axis(name)) is None:
        return shape
    sizes = list(shape)
    sizes[axis] = sizes[axis] * (copies if name.endswith(KEYS_AND_VALUES) else 1) // shards
    return tuple(sizes)
