"""Quantized execution: matrices in fewer bits, by modules that take the place of the network's linear ones.

    int8   each row of a matrix times one scale; products in the network's precision
    int4   groups of 32 inputs times one scale; embeddings and head as int8
    w8a8   rows as int8, and each token's inputs as int8 too, so that products are of integers
    fp8    the paper's (6.2; spec A19): e4m3, row-wise, of the feed-forward layers only, the first and the last excepted

Which matrices a scheme leaves as they are is `kinds`. On a CPU fp8 gives the values that a GPU gives, not its speed.

Shape suffixes: N outputs (rows of a matrix), K inputs, G groups of a row, R rows of input (tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.transformer import RMSNorm, Transformer

Scheme = Literal["int8", "int4", "w8a8", "fp8"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
GROUP = 32
E4M3_MAX = 448.0
ACTIVATION_CAP = 1200.0  # paper 6.2: a token whose largest input is beyond it would push the others below the format
FEED_FORWARD = ("w1", "w2", "w3")
# Rows of input up to which torch's weight-only products win over widening the matrix first (1536 x 576, one core):
# int8 8 rows 0.20 ms against 0.25, 16 rows 0.38 against 0.32; int4 16 rows 0.33 against 0.94, 512 rows 10.7 against 4.9
FEW_INT8, FEW_INT4 = 8, 64
aten = torch.ops.aten


class Matrix(NamedTuple):
    """A matrix in few bits: int8 or e4m3 (N, K), or two int4 a byte (N, K/2), low half first, 8 standing for 0.

    Its values are codes times scales; scales are (N, 1) float32, of int4 (N, G) bfloat16.
    """

    codes: Tensor
    scales: Tensor


def kinds(config: ModelConfig, scheme: Scheme) -> dict[str, Scheme]:
    """How each matrix that a scheme changes is stored, by weight name; all others stay as they are.

    A tied head is that of the embeddings. int4 takes int8 for embeddings and head, and where a row is not whole
    groups. w8a8 leaves the head, the first and the last layer and `w2`, whose inputs have the widest range, alone.
    """
    head = [] if config.tied_embeddings else ["output.weight"]
    found: dict[str, Scheme] = {}
    if scheme in ("int8", "int4"):
        found = dict.fromkeys(["tok_embeddings.weight", *head], "int8")
    for layer in range(config.layers):
        outer = layer in (0, config.layers - 1)
        for part, names in (("attention", ("wq", "wk", "wv", "wo")), ("feed_forward", FEED_FORWARD)):
            for name in names:
                if scheme == "fp8" and (outer or part == "attention"):
                    continue
                if scheme == "w8a8" and (outer or name == "w2"):
                    continue
                width = config.ffn_dim if name == "w2" else config.dim
                if name == "wo":
                    width = config.heads * config.head_dim
                whole = scheme != "int4" or width % GROUP == 0
                found[f"layers.{layer}.{part}.{name}.weight"] = scheme if whole else "int8"
    return found


def quantized(weight_NK: Tensor, kind: Scheme) -> Matrix:
    """A matrix in few bits, by rounding to the nearest. Raises HerdError for values that are not numbers."""
    weight = weight_NK.float()
    if not weight.isfinite().all():
        raise HerdError("a matrix holds NaN or infinite values; it can't be quantized")
    if kind == "int4":
        return _int4(weight)
    most = E4M3_MAX if kind == "fp8" else 127.0
    scales = (weight.abs().amax(1, keepdim=True) / most).clamp(min=torch.finfo(torch.float32).tiny)
    codes = weight / scales
    return Matrix(codes.to(torch.float8_e4m3fn) if kind == "fp8" else codes.round().to(torch.int8), scales)


def _int4(weight_NK: Tensor) -> Matrix:
    """Of 16 scales a group, 0.7 to 1.05 of that which just holds its largest value, the one of least square error."""
    groups = weight_NK.unflatten(1, (-1, GROUP))
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    best, scales = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    for part in torch.linspace(0.7, 1.05, 16).tolist():
        tried = (largest / -8 * part).bfloat16().float()  # the largest value gets the code -8, so that 7 is no limit
        error = (_codes4(groups, tried) * tried - groups).square().sum(2, keepdim=True)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, tried, scales)
    codes = (_codes4(groups, scales) + 8).to(torch.uint8).flatten(1)
    return Matrix(codes[:, ::2] | codes[:, 1::2] << 4, scales[..., 0].bfloat16())


def _codes4(groups_NGK: Tensor, scales_NG1: Tensor) -> Tensor:
    return torch.where(scales_NG1 == 0, 0, groups_NGK / scales_NG1).round().clamp(-8, 7)


def widened(matrix: Matrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of a matrix, (N, K)."""
    codes, scales = matrix
    if codes.dtype == torch.uint8:
        values = (unpacked(codes).to(dtype) - 8).unflatten(1, (-1, GROUP))
        return (values * scales[..., None].to(dtype)).flatten(1)
    return codes.to(dtype) * scales.to(dtype)


def unpacked(codes_NP: Tensor) -> Tensor:
    """int4 codes one a byte, 0 .. 15, (N, K)."""
    return torch.stack((codes_NP & 15, codes_NP >> 4), -1).flatten(1)


def round_trip(state: Mapping[str, Tensor], config: ModelConfig, scheme: Scheme) -> dict[str, Tensor]:
    """All weights, those that a scheme changes with the values that it gives them."""
    how = kinds(config, scheme)
    return {name: widened(quantized(state[name], how[name])) if name in how else state[name] for name in state}


class QuantizedLinear(nn.Module):
    """y = x W^T with the weight in few bits. `weight` is None: what would use a plain one must ask this module."""

    weight = None

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.register_buffer("codes", matrix.codes, persistent=False)
        self.register_buffer("scales", matrix.scales, persistent=False)

    @property
    def matrix(self) -> Matrix:
        return Matrix(self.codes, self.scales)  # pyright: ignore[reportArgumentType] (buffers)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move, but keep the dtypes where the network is cast."""
        device = fn(torch.empty(0, device=self.matrix.codes.device)).device
        self.codes, self.scales = self.matrix.codes.to(device), self.matrix.scales.to(device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():  # a pass that asks for no logits
            return x.new_zeros((*x.shape[:-1], len(self.matrix.codes)))
        return self.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    def product(self, x_RK: Tensor) -> Tensor:
        """(R, K) to (R, N), in x's dtype."""
        return F.linear(x_RK, widened(self.matrix, x_RK.dtype))


class Int8Linear(QuantizedLinear):
    """Weights alone: the matrix is widened, for a few rows inside torch's kernel.

    That one reads beyond its inputs, and crashes, where their number is no multiple of 16 (torch 2.13, bfloat16).
    """

    def product(self, x_RK: Tensor) -> Tensor:
        codes, scales = self.matrix
        if x_RK.device.type == "cpu" and len(x_RK) <= FEW_INT8 and x_RK.shape[1] % GROUP == 0:
            return aten._weight_int8pack_mm(x_RK, codes, scales[:, 0].to(x_RK.dtype))
        return F.linear(x_RK, codes.to(x_RK.dtype)) * scales[:, 0].to(x_RK.dtype)


class Int4Linear(QuantizedLinear):
    """As Int8Linear; torch's kernel for bfloat16 on CPUs wants the codes in an order of its own, made at first use.

    It takes outputs by 16.
    """

    _packed: tuple[Tensor, Tensor] | None = None

    def product(self, x_RK: Tensor) -> Tensor:
        few = x_RK.device.type == "cpu" and x_RK.dtype == torch.bfloat16 and len(x_RK) <= FEW_INT4
        if not few or len(self.matrix.codes) % 16:
            return super().product(x_RK)
        codes, scales = self._packed = self._packed or self._pack()
        return aten._weight_int4pack_mm_for_cpu(x_RK, codes, GROUP, scales)

    def _pack(self) -> tuple[Tensor, Tensor]:
        codes, scales_NG = self.matrix
        packed = aten._convert_weight_to_int4pack_for_cpu(unpacked(codes).int(), 1)
        return packed, torch.stack((scales_NG.T, torch.zeros_like(scales_NG.T)), -1).contiguous()


class W8A8Linear(QuantizedLinear):
    """int8 times int8, summed as int32: each token's inputs are scaled to their largest."""

    def product(self, x_RK: Tensor) -> Tensor:
        codes, scales_N1 = self.matrix
        x = x_RK.float()
        scales_R1 = (x.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        rounded = (x / scales_R1).round().to(torch.int8)
        if x.is_cuda and len(x) <= 16:  # fewer rows than cuBLAS takes
            sums = aten._int_mm(F.pad(rounded, (0, 0, 0, 17 - len(x))), codes.T)[: len(x)]
        else:
            sums = aten._int_mm(rounded, codes.T)
        return (sums.float() * scales_R1 * scales_N1.T).to(x_RK.dtype)


class Fp8Linear(QuantizedLinear):
    """e4m3 times e4m3, each token's inputs scaled to the smaller of their largest and `ACTIVATION_CAP`; beyond, cut."""

    _wide: Tensor | None = None

    def product(self, x_RK: Tensor) -> Tensor:
        codes, scales_N1 = self.matrix
        rounded, scales_R1 = fp8_activations(x_RK)
        if x_RK.is_cuda:
            return scaled_product(rounded, codes, scales_R1, scales_N1, x_RK.dtype)
        if self._wide is None:
            self._wide = codes.float()  # torch's own product of e4m3 takes 70 times as long here; the values are these
        return (F.linear(rounded.float(), self._wide) * scales_R1 * scales_N1.T).to(x_RK.dtype)


def fp8_activations(x_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs as e4m3 (R, K) and their scales (R, 1), float32 (spec A19; FBGEMM's rule)."""
    x = x_RK.float()
    largest = x.abs().amax(1, keepdim=True).clamp(torch.finfo(torch.float32).tiny, ACTIVATION_CAP)
    scales = largest / E4M3_MAX
    return (x / scales).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scales


def scaled_product(x_RK: Tensor, w_NK: Tensor, scales_R1: Tensor, scales_N1: Tensor, dtype: torch.dtype) -> Tensor:
    """torch's row-wise product of two e4m3 matrices: a tensor-core kernel on GPUs from Ada and Hopper on."""
    return aten._scaled_mm(x_RK, w_NK.T, scales_R1, scales_N1.T.contiguous(), out_dtype=dtype)


class Int8Embedding(nn.Module):
    """Rows of an int8 matrix by token id, in the dtype of the weight of `like`. `shared`: the head's own matrix."""

    weight = None

    def __init__(self, linear: QuantizedLinear, like: RMSNorm, shared: bool) -> None:
        super().__init__()
        self._linear, self._like = [linear], [like]  # in lists, so that neither counts as a child of this module
        if not shared:
            self.owned = linear

    @property
    def linear(self) -> QuantizedLinear:
        return self._linear[0]

    def forward(self, ids: Tensor) -> Tensor:
        codes, scales = self.linear.matrix
        return (codes[ids].float() * scales[ids]).to(self._like[0].weight.dtype)


MODULES: dict[Scheme, type[QuantizedLinear]] = {
    "int8": Int8Linear,
    "int4": Int4Linear,
    "w8a8": W8A8Linear,
    "fp8": Fp8Linear,
}


def install(model: Transformer, matrices: Mapping[str, Matrix], how: Mapping[str, Scheme]) -> Transformer:
    """Put quantized modules in place of the network's, by weight name; a tied head follows the embeddings."""
    for name, matrix in matrices.items():
        module = MODULES[how[name]](matrix)
        owner, _, child = name.removesuffix(".weight").rpartition(".")
        if name == "tok_embeddings.weight":
            if model.config.tied_embeddings:
                model.output = module  # pyright: ignore[reportAttributeAccessIssue]
            module = Int8Embedding(module, model.norm, model.config.tied_embeddings)
        setattr(model.get_submodule(owner), child, module)
    return model.requires_grad_(False)


def quantize(model: Transformer, scheme: Scheme) -> Transformer:
    """A model with a scheme's modules; the given one's other weights are shared with it, nothing of it is changed."""
    how, state = kinds(model.config, scheme), model.state_dict()
    matrices = {name: quantized(state[name], kind) for name, kind in how.items()}
    return install(hollow(model.config, {name: state[name] for name in state if name not in how}), matrices, how)


def hollow(config: ModelConfig, kept: Mapping[str, Tensor]) -> Transformer:
    """A network with some weights; the others take no memory and must be replaced before it runs."""
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(dict(kept), strict=False, assign=True)
    if config.tied_embeddings and "tok_embeddings.weight" in kept:
        model.output.weight = model.tok_embeddings.weight
    model.reset_rotary()
    return model
