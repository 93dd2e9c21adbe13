"""The decode step of `decode.c`: compiled on this machine when it is first wanted, called through ctypes.

A machine without a C compiler has none, and everything else works without. Weights are codes of 4 or 8 bits with a
float16 scale for each 32 inputs; they stand in memory as the kernel reads them, once, front to back.

Shape suffixes: N outputs and K inputs of a matrix, G groups of 32 inputs, B rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from herd.console import HerdError, say
from herd.data.cache import folder
from herd.infer.quantize import Int4Linear, Int8Embedding, Int8Linear, Matrix, unpacked
from herd.model.cache import PagedCache, Part
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

GROUP = 32  # inputs that share a scale, as in llama.cpp's Q4_0 and Q8_0
TILE = 16
WIDEST_HEAD = 256
ALIGNED_BYTES = 64
COMPILE_SECONDS = 120


@dataclass(frozen=True)
class Packed:
    """A matrix of N outputs and K inputs in `decode.c`'s order: `data` is uint8, one dimension."""

    bits: int
    outputs: int
    inputs: int
    data: Tensor


def pack4(codes_NK: Tensor, scales_NG: Tensor) -> Packed:
    """Pack uint8 codes 0 .. 15 that stand for (code - 8) * scale. Raises HerdError for other types or shapes."""
    _check(codes_NK, scales_NG, torch.uint8)
    if codes_NK.numel() and codes_NK.max() > 15:
        raise HerdError(f"a code of {int(codes_NK.max())}; codes of 4 bits are 0 .. 15")
    fours = _fours(codes_NK)
    return _packed(4, codes_NK, scales_NG, fours[:, :, 0::2] | fours[:, :, 1::2] << 4)


def pack8(codes_NK: Tensor, scales_NG: Tensor) -> Packed:
    """Pack int8 codes -127 .. 127 that stand for code * scale. Raises HerdError for other types or shapes."""
    _check(codes_NK, scales_NG, torch.int8)
    if codes_NK.numel() and codes_NK.min() < -127:
        raise HerdError("a code of -128; codes of 8 bits are -127 .. 127")
    return _packed(8, codes_NK, scales_NG, _fours(codes_NK.view(torch.uint8) ^ 128))


def _check(codes_NK: Tensor, scales_NG: Tensor, dtype: torch.dtype) -> None:
    if codes_NK.dim() != 2 or codes_NK.dtype != dtype or scales_NG.dtype != torch.float16:
        raise HerdError(f"codes {codes_NK.dtype}, scales {scales_NG.dtype}; expected {dtype} and torch.float16")
    outputs, inputs = codes_NK.shape
    if inputs % GROUP:
        raise HerdError(f"a width of {inputs} is not a multiple of {GROUP}, the inputs that share a scale")
    if scales_NG.shape != (outputs, inputs // GROUP):
        raise HerdError(
            f"scales {tuple(scales_NG.shape)} of codes {tuple(codes_NK.shape)}: one for each {GROUP} inputs"
        )
    if not scales_NG.isfinite().all():
        raise HerdError("a scale is not a finite number")


def _fours(codes_NK: Tensor) -> Tensor:
    """(tiles, G, 8, 64): the 64 are 4 neighbouring inputs of each of 16 outputs."""
    filled = F.pad(codes_NK, (0, 0, 0, -len(codes_NK) % TILE))
    tiles = filled.unflatten(0, (-1, TILE)).unflatten(-1, (-1, GROUP // 4, 4))
    return tiles.permute(0, 2, 3, 1, 4).flatten(-2)


def _packed(bits: int, codes_NK: Tensor, scales_NG: Tensor, codes: Tensor) -> Packed:
    """Tile by tile its scales, filled up to whole cache lines, and its codes."""
    tiles = F.pad(scales_NG, (0, 0, 0, -len(scales_NG) % TILE)).unflatten(0, (-1, TILE)).mT
    scales = tiles.contiguous().view(torch.uint8).flatten(1)
    scales = F.pad(scales, (0, -scales.shape[1] % ALIGNED_BYTES))
    outputs, inputs = codes_NK.shape
    return Packed(bits, outputs, inputs, torch.cat((scales, codes.flatten(1)), 1).flatten())


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("bits", ctypes.c_int64),
    )


MATRICES = {f"attention.{name}": name for name in ("wq", "wk", "wv", "wo")} | {
    f"feed_forward.{name}": name for name in ("w1", "w2", "w3")
}
NORMS = ("attention_norm", "ffn_norm")
SIZES = ("layers", "dim", "heads", "kv_heads", "head_dim", "ffn_dim")


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in MATRICES.values()),
        *((name, ctypes.c_void_p) for name in NORMS),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in (*SIZES, "block", "places", "bfloat16")),
        ("eps", ctypes.c_double),
        ("layer", ctypes.POINTER(_Layer)),
        ("embeddings", _Matrix),
        ("output", _Matrix),
        *((name, ctypes.c_void_p) for name in ("norm", "cosines", "sines", "cache")),
    )


class NativeDecoder:
    """Next-token logits of sequences whose earlier tokens are in a cache, from packed weights, on the CPU.

    `matrices` and `norms` go by the network's weight names; where `output.weight` is missing, the head is the
    embedding's. `rope` is `rotary_table`'s pair. Raises HerdError where the kernel can't run such a network, where a
    tensor is missing or has another shape, and where this machine has no `library`.
    """

    def __init__(
        self,
        config: ModelConfig,
        matrices: Mapping[str, Packed],
        norms: Mapping[str, Tensor],
        rope: tuple[Tensor, Tensor],
        cache: PagedCache,
        kernel: ctypes.CDLL | None = None,
    ) -> None:
        kernel = kernel or library()
        if kernel is None:
            raise HerdError("no native decoding here: it needs a C compiler")
        _runs(config)
        _fits(config, cache, rope)
        shapes = _shapes(config)
        if config.tied_embeddings or "output.weight" not in matrices:
            del shapes["output.weight"]
        self._config, self._cache, self._step = config, cache, kernel.herd_decode
        self._table_rows = min(config.context, len(rope[0]))
        wanted = {name: _matrix(matrices, name, shape) for name, shape in shapes.items()}
        memory, addresses = _laid_out(wanted.values())
        matrix = {
            name: _Matrix(address, packed.outputs, packed.inputs, packed.bits)
            for (name, packed), address in zip(wanted.items(), addresses, strict=True)
        }
        self._kept = [memory]  # what the structures point to
        layers = (_Layer * config.layers)()
        for index, layer in enumerate(layers):
            for name, field in MATRICES.items():
                setattr(layer, field, matrix[f"layers.{index}.{name}.weight"])
            for name in NORMS:
                setattr(layer, name, self._vector(norms, f"layers.{index}.{name}.weight"))
        self._layers = layers
        self._model = _Model(
            *(getattr(config, name) for name in SIZES),
            cache.block,
            cache.values.shape[3],
            cache.values.dtype == torch.bfloat16,
            config.norm_eps,
            layers,
            matrix["tok_embeddings.weight"],
            matrix.get("output.weight", matrix["tok_embeddings.weight"]),
            self._vector(norms, "norm.weight"),
            *(self._keep(table) for table in rope),
            cache.values.data_ptr(),
        )

    def logits(self, tokens: Sequence[int], parts: Sequence[Part], threads: int | None = None) -> Tensor:
        """Logits after one token each of some sequences, (B, V) float32; their keys and values go into the cache.

        `parts` are of one token. A row's logits are the same, bit for bit, with other neighbours and other `threads`
        (None: torch's number). Raises ValueError for tokens, places or blocks that are not there.
        """
        self._allow(tokens, parts)
        count, columns = len(tokens), max(len(part.blocks) for part in parts)
        tables = (ctypes.c_int32 * (count * columns))()
        for row, part in enumerate(parts):
            tables[row * columns : row * columns + len(part.blocks)] = part.blocks
        logits_BV = torch.empty(count, self._config.vocab_size)
        failed = self._step(
            ctypes.byref(self._model),
            count,
            (ctypes.c_int32 * count)(*tokens),
            (ctypes.c_int32 * count)(*(part.start for part in parts)),
            tables,
            columns,
            logits_BV.data_ptr(),
            threads or torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for a decode step")
        return logits_BV

    def _allow(self, tokens: Sequence[int], parts: Sequence[Part]) -> None:
        """Refuse what the kernel would run out of its memory with."""
        block, blocks = self._cache.block, self._model.places // self._cache.block
        if not tokens or len(tokens) != len(parts):
            raise ValueError(f"{len(tokens)} tokens and {len(parts)} parts; expected one each, and one at least")
        if not 0 <= min(tokens) <= max(tokens) < self._config.vocab_size:
            raise ValueError(f"a token outside 0 .. {self._config.vocab_size - 1}")
        for part in parts:
            if part.end != part.start + 1 or not 0 <= part.start < self._table_rows:
                raise ValueError(f"tokens {part.start} .. {part.end}; expected one, within {self._table_rows}")
            if len(part.blocks) * block < part.end:
                raise ValueError(f"{len(part.blocks)} blocks of {block} do not hold {part.end} tokens")
            if not 0 <= min(part.blocks) <= max(part.blocks) < blocks:
                raise ValueError(f"a block outside 0 .. {blocks - 1}")
        targets = [part.blocks[part.start // block] for part in parts]
        for row, target in enumerate(targets):
            if any(target in part.blocks for other, part in enumerate(parts) if other != row):
                raise ValueError(f"block {target} is written for one row and belongs to another")

    def _vector(self, norms: Mapping[str, Tensor], name: str) -> int:
        if name not in norms or norms[name].shape != (self._config.dim,):
            raise HerdError(f"{name}: missing, or not of shape ({self._config.dim},)")
        return self._keep(norms[name])

    def _keep(self, values: Tensor) -> int:
        """The address of a float32 copy that lives as long as this."""
        self._kept.append(values.detach().to("cpu", torch.float32, copy=True).contiguous())
        return self._kept[-1].data_ptr()


def decoder_of(model: Transformer, cache: PagedCache) -> NativeDecoder | None:
    """A decoder of a model whose matrices are all int4 or int8, over a cache; None where it can't run here.

    The kernel is compiled for such a model only.
    """
    config, matrices = model.config, dict[str, Matrix]()
    for name in [*_shapes(config)][: -1 if config.tied_embeddings else None]:
        module = model.get_submodule(name.removesuffix(".weight"))
        module = module.linear if isinstance(module, Int8Embedding) else module
        if not isinstance(module, Int8Linear | Int4Linear):
            return None
        matrices[name] = module.matrix
    try:
        _runs(config)
        if cache.values.device.type != "cpu" or library() is None:
            return None
        packed = {name: _pack(matrix) for name, matrix in matrices.items()}
        norms = {name: weight for name, weight in model.named_parameters() if name.endswith("norm.weight")}
        return NativeDecoder(config, packed, norms, model.rotary, cache)
    except HerdError:  # the network's sizes, or scales beyond float16: torch's products take all
        return None


def _pack(matrix: Matrix) -> Packed:
    codes, scales = matrix
    if codes.dtype == torch.uint8:
        return pack4(unpacked(codes), scales.half())
    return pack8(codes, scales.half().expand(-1, codes.shape[1] // GROUP).contiguous())


def _runs(config: ModelConfig) -> None:
    attended = config.heads * config.head_dim
    for name, width in (("dim", config.dim), ("ffn_dim", config.ffn_dim), ("heads * head_dim", attended)):
        if width % GROUP:
            raise HerdError(
                f"{name} {width} is not a multiple of {GROUP}: native decoding has groups of {GROUP} inputs"
            )
    if config.head_dim % TILE or config.head_dim > WIDEST_HEAD:
        raise HerdError(f"head_dim {config.head_dim}: native decoding takes multiples of {TILE}, {WIDEST_HEAD} at most")


def _fits(config: ModelConfig, cache: PagedCache, rope: tuple[Tensor, Tensor]) -> None:
    values = cache.values
    shape = (config.layers, 2, config.kv_heads, values.shape[3], config.head_dim)
    if tuple(values.shape) != shape or values.shape[3] % cache.block or not values.is_contiguous():
        raise HerdError(f"a cache of shape {tuple(values.shape)}; expected {shape}, contiguous, in whole blocks")
    if values.device.type != "cpu" or values.dtype not in (torch.bfloat16, torch.float32):
        raise HerdError(f"a cache in {values.dtype} on {values.device}; expected bfloat16 or float32 on the CPU")
    if rope[0].shape != rope[1].shape or rope[0].dim() != 2 or rope[0].shape[1] != config.head_dim // 2:
        raise HerdError(f"rotary tables of shapes {tuple(rope[0].shape)} and {tuple(rope[1].shape)}")


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Of all matrices, (N, K), in the order in which a step reads them."""
    dim, attended, kept = config.dim, config.heads * config.head_dim, config.kv_heads * config.head_dim
    of_layer = {
        "attention.wq": (attended, dim),
        "attention.wk": (kept, dim),
        "attention.wv": (kept, dim),
        "attention.wo": (dim, attended),
        "feed_forward.w1": (config.ffn_dim, dim),
        "feed_forward.w3": (config.ffn_dim, dim),
        "feed_forward.w2": (dim, config.ffn_dim),
    }
    layers = {f"layers.{i}.{name}.weight": shape for i in range(config.layers) for name, shape in of_layer.items()}
    ends = dict.fromkeys(("tok_embeddings.weight", "output.weight"), (config.vocab_size, dim))
    return {**layers, **ends}


def _matrix(matrices: Mapping[str, Packed], name: str, shape: tuple[int, int]) -> Packed:
    packed = matrices.get(name)
    if packed is None:
        raise HerdError(f"{name} is missing among the packed matrices")
    if (packed.outputs, packed.inputs) != shape:
        raise HerdError(f"{name} is {packed.outputs} x {packed.inputs}, the model's {shape[0]} x {shape[1]}")
    return packed


def _laid_out(matrices: Collection[Packed]) -> tuple[Tensor, list[int]]:
    """One memory that holds all in order, and where each begins.

    In large pages where the system has them: a step walks through all of it, which is 22,000 pages of 4 KB for 90 MB.
    """
    starts, at = [], 0
    for packed in matrices:
        starts.append(at)
        at += -(-packed.data.numel() // ALIGNED_BYTES) * ALIGNED_BYTES
    memory = mmap.mmap(-1, at)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    for packed, start in zip(matrices, starts, strict=True):
        whole[start : start + packed.data.numel()] = packed.data
    return whole, [whole.data_ptr() + start for start in starts]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None, said once with the reason, where there is no C compiler or it fails."""
    try:
        return build()
    except (HerdError, OSError, subprocess.SubprocessError) as error:
        say(f"native decoding is off: {error}")
        return None


def build(*flags: str) -> ctypes.CDLL:
    """Compile `decode.c` for this processor, or take what an earlier run compiled from the same.

    With OpenMP where the compiler has it, else for one thread. Raises HerdError with the compiler's first line where
    it fails, and where the cache's folder is another user's.
    """
    compiler = _compiler()
    source = Path(__file__).with_name("decode.c").read_bytes()
    version = _output([*compiler, "--version"])
    tuned = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    where, found = _private_folder(), []
    for openmp in (["-fopenmp"], []):
        command = [*compiler, "-O3", tuned, "-std=gnu11", "-fPIC", "-shared", *openmp, *flags]
        key = hashlib.sha256(repr((source, command, version, _processor())).encode()).hexdigest()[:24]
        found.append((command, where / f"decode-{key}.so"))
    for _, path in found:
        if path.exists():
            return _loaded(path)
    error = ""
    for command, path in found:
        error = _compile(command, source, path)
        if not error:
            return _loaded(path)
    raise HerdError(f"{shlex.join(compiler)}: {error}")


def _compiler() -> list[str]:
    """$CC with its options, or the first of cc, gcc and clang that is there."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    raise HerdError("no C compiler (cc, gcc or clang)")


def _private_folder() -> Path:
    """Where compiled kernels are kept. What another user could have put there is not run."""
    path = folder("native")
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise HerdError(f"{path} belongs to another user")
    path.chmod(0o700)
    return path


def _compile(command: Sequence[str], source: bytes, path: Path) -> str:
    """Compile to `path`, whole or not at all; the first line of what went wrong, or nothing."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        code, made = Path(scratch) / "decode.c", Path(scratch) / "decode.so"
        code.write_bytes(source)
        ran = subprocess.run(
            [*command, str(code), "-o", str(made), "-lm"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_SECONDS,
        )
        if ran.returncode or not made.exists():
            lines = ran.stderr.strip().splitlines()
            return next((line for line in lines if "error" in line), lines[0] if lines else f"status {ran.returncode}")
        made.replace(path)
    return ""


def _loaded(path: Path) -> ctypes.CDLL:
    kernel = ctypes.CDLL(str(path))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    kernel.herd_decode.argtypes = (pointer, number, pointer, pointer, pointer, number, pointer, number)
    kernel.herd_decode.restype = ctypes.c_int
    return kernel


def _processor() -> str:
    """What tells processors apart that need other code: a home folder may be shared between machines."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(line for line in lines if line.startswith(("flags", "Features", "model name")))
    return platform.machine() + platform.processor() + platform.platform()


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS).stdout
