"""Rotary position embeddings: each pair of channels (2i, 2i+1) of a head turns with the token's position.

Meta's checkpoints rotate interleaved pairs like this; Hugging Face's rotate halves of permuted weights (spec 12.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from herd.model.config import RopeScaling


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Angular frequency of each rotated pair, shape (head_dim / 2,), float32, radians per position.

    With `scaling`, long wavelengths are stretched as in the released Llama 3.1 code; the paper gives theta alone.
    Raises ValueError for an odd head_dim.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, not {head_dim}")
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    kept_below = scaling.original_context / scaling.high_freq_factor
    divided_above = scaling.original_context / scaling.low_freq_factor
    span = scaling.high_freq_factor - scaling.low_freq_factor
    blend = (scaling.original_context / wavelengths - scaling.low_freq_factor) / span
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    stretched = torch.where(wavelengths > divided_above, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < kept_below, frequencies, stretched)


def rotary_table(frequencies: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions 0 .. positions-1, each of shape (positions, head_dim / 2), float32."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=frequencies.device), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_BTHE: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i+1) of each head by its position's angle, in float32 or wider; returned in x's dtype.

    The tables are (T, F), or (B, T, F) where rows have positions of their own.
    """
    if x_BTHE.device.type == "cpu" and not torch.is_grad_enabled():  # a seventh of the time
        return turned(x_BTHE, torch.complex(cos_TF, sin_TF)[..., None, :])
    wide = x_BTHE.to(torch.promote_types(x_BTHE.dtype, torch.float32))
    even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_TF[..., None, :], sin_TF[..., None, :]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x_BTHE)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Neighbouring pairs of the last dimension as complex numbers times `turns`, in float32 or wider; in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).contiguous()
    return torch.view_as_real(torch.view_as_complex(wide) * turns).flatten(-2).to(x.dtype)
