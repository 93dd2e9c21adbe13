"""The network's steps as one autograd function each, for training on a CPU: fewer casts, fewer passes over memory.

There a step of a 13.8M-parameter network spent 40% of its time outside of matrix products. Here a normalised state is
cast to the compute precision once and not by each projection; products that share their input are one product; and
what backward needs is kept in that precision. Weights stay separate parameters and keep their gradients' dtype.

Under autocast everything is computed in its precision, as by the plain modules; otherwise in that of the input.

Shape suffixes: B batch, T tokens, D model dim, H heads, E head dim, F pairs of a head, R rows (B * T), N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from herd.model.rope import turned


def applies(x: Tensor, *weights: Tensor) -> bool:
    """Whether these functions can stand in for the modules: plain weights on one CPU, and gradients wanted.

    On GPUs kernels of torch do this; sharded weights (DTensor) and quantized ones must be used by their modules. A
    compiler makes more of the modules too (`train.compiled`), and it knows no complex numbers.
    """
    if torch.compiler.is_compiling():
        return False
    plain = all(type(weight) in (Tensor, torch.nn.Parameter) for weight in weights)
    return plain and x.device.type == "cpu" and torch.is_grad_enabled()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision of matrix products here: autocast's, or the input's."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight * x / rms(x), computed in float32 or wider and returned in the compute precision."""
    return cast(Tensor, _RMSNorm.apply(x_BTD, weight_D, eps, compute_dtype(x_BTD)))


def project(x_BTD: Tensor, weights_ND: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x @ weight.T for each weight, by one product."""
    return cast(tuple[Tensor, ...], _Project.apply(x_BTD, compute_dtype(x_BTD), *weights_ND))


def swiglu(x_BTD: Tensor, w1_FD: Tensor, w3_FD: Tensor, w2_DF: Tensor) -> Tensor:
    """w2(silu(w1(x)) * w3(x)) (spec 2.3)."""
    return cast(Tensor, _SwiGLU.apply(x_BTD, compute_dtype(x_BTD), w1_FD, w3_FD, w2_DF))


def rotate_heads(x_BTHE: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    """`rope.rotate`, returned with the heads before the tokens, (B, H, T, E), as attention wants them."""
    return cast(Tensor, _RotateHeads.apply(x_BTHE, torch.complex(cos_TF, sin_TF)))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / wide.shape[-1]
        scale = (mean + eps).rsqrt_()
        ctx.save_for_backward(x_BTD, weight_D, scale)
        return (wide * scale).to(x_BTD.dtype).mul_(weight_D).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_BTD, weight_D, scale = ctx.saved_tensors
        normal = x_BTD.to(scale.dtype) * scale
        gradient = gradients[0].to(scale.dtype)
        d_weight = (gradient * normal).sum(tuple(range(gradient.dim() - 1)))
        d_normal = gradient * weight_D
        shared = torch.linalg.vecdot(d_normal, normal).unsqueeze(-1) / normal.shape[-1]
        d_x = torch.addcmul(d_normal, normal, shared, value=-1).mul_(scale)
        return d_x.to(x_BTD.dtype), d_weight.to(weight_D.dtype), None, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, dtype: torch.dtype, *weights_ND: Tensor) -> tuple[Tensor, ...]:
        x_RD, weight_ND = x_BTD.to(dtype).flatten(0, -2), _joined(weights_ND, dtype)
        ctx.save_for_backward(x_RD, weight_ND)
        ctx.sizes, ctx.dtypes = [len(weight) for weight in weights_ND], (x_BTD.dtype, weights_ND[0].dtype)
        outputs = (x_RD @ weight_ND.T).unflatten(0, x_BTD.shape[:-1])
        return outputs.split(ctx.sizes, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, weight_ND = ctx.saved_tensors
        d_out_RN = torch.cat(gradients, -1).to(x_RD.dtype).flatten(0, -2)
        d_x = (d_out_RN @ weight_ND).to(ctx.dtypes[0]).unflatten(0, gradients[0].shape[:-1])
        d_weights = (d_out_RN.T @ x_RD).to(ctx.dtypes[1]).split(ctx.sizes)
        return d_x, None, *d_weights


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, dtype: torch.dtype, w1_FD: Tensor, w3_FD: Tensor, w2_DF: Tensor) -> Tensor:
        x_RD, up_ND, w2 = x_BTD.to(dtype).flatten(0, -2), _joined((w1_FD, w3_FD), dtype), w2_DF.to(dtype)
        both_RN = x_RD @ up_ND.T
        gate, up = both_RN.chunk(2, -1)
        hidden = torch.nn.functional.silu(gate).mul_(up)
        ctx.save_for_backward(x_RD, up_ND, w2, both_RN, hidden)
        ctx.dtypes = x_BTD.dtype, w1_FD.dtype
        return (hidden @ w2.T).unflatten(0, x_BTD.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, up_ND, w2, both_RN, hidden = ctx.saved_tensors
        d_out_RD = gradients[0].to(x_RD.dtype).flatten(0, -2)
        d_hidden, d_w2 = d_out_RD @ w2, d_out_RD.T @ hidden
        gate, up = both_RN.chunk(2, -1)
        d_both = torch.empty_like(both_RN)
        d_gate, d_up = d_both.chunk(2, -1)
        torch.mul(d_hidden, torch.nn.functional.silu(gate), out=d_up)
        torch.ops.aten.silu_backward(d_hidden.mul_(up), gate, grad_input=d_gate)
        d_x = (d_both @ up_ND).to(ctx.dtypes[0]).unflatten(0, gradients[0].shape[:-1])
        d_w1, d_w3 = (d_both.T @ x_RD).to(ctx.dtypes[1]).chunk(2)
        return d_x, None, d_w1, d_w3, d_w2.to(ctx.dtypes[1])


class _RotateHeads(torch.autograd.Function):
    """A pair turned by an angle is a complex number times one of modulus 1; backward turns by the angle's negative."""

    @staticmethod
    def forward(ctx: Any, x_BTHE: Tensor, turns_TF: Tensor) -> Tensor:
        ctx.save_for_backward(turns_TF)
        return turned(x_BTHE, turns_TF.unsqueeze(-2)).transpose(-3, -2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (turns_TF,) = ctx.saved_tensors
        return turned(gradients[0].transpose(-3, -2), turns_TF.unsqueeze(-2).conj()), None


def _joined(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Weights of one input below each other."""
    return torch.cat([weight.to(dtype) for weight in weights]) if len(weights) > 1 else weights[0].to(dtype)
