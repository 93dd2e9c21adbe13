"""Sizes: the shape of a network, its exact parameter count, and what it costs to train and to keep in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from herd.console import HerdError


@dataclass(frozen=True)
class RopeScaling:
    """Stretching of long RoPE wavelengths as in the released Llama 3.1 code (spec 2.4); the paper gives theta alone."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise HerdError(
                f"rope scaling: low_freq_factor {self.low_freq_factor} and high_freq_factor {self.high_freq_factor}; "
                "expected 0 < low < high"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a dense Llama network. `context` is the longest sequence it was trained on, in tokens."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn_dim: int
    vocab_size: int
    head_dim: int
    context: int
    tied_embeddings: bool = False
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise HerdError(f"{self.heads} attention heads do not divide into {self.kv_heads} key-value heads")
        if self.head_dim % 2:
            raise HerdError(f"head_dim {self.head_dim} is odd; rotary embeddings turn pairs")

    @property
    def block_parameters(self) -> int:
        """Parameters of one Transformer block."""
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.dim * self.ffn_dim + 2 * self.dim

    @property
    def body_parameters(self) -> int:
        """Parameters without embedding and output head."""
        return self.layers * self.block_parameters + self.dim

    @property
    def parameters(self) -> int:
        """All parameters; a tied head is counted once."""
        return self.body_parameters + self.vocab_size * self.dim * (1 if self.tied_embeddings else 2)

    @property
    def matmul_parameters(self) -> int:
        """Parameters that every token is multiplied with: the body without its norms, and the output head.

        This is the N of our scaling laws. At small widths the head is half of the work, so leaving it out bends
        the IsoFLOP curves.
        """
        return self.layers * (self.block_parameters - 2 * self.dim) + self.vocab_size * self.dim

    def train_flops_per_token(self, context: int | None = None) -> float:
        """FLOPs of one token forward and backward: 6 a parameter, and attention over half the context on average."""
        attention = 6 * self.layers * (context or self.context) * self.heads * self.head_dim
        return 6 * self.matmul_parameters + attention

    def kv_cache_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values that one token leaves in the cache (bf16: 2 bytes a value)."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value

    def stretched(self, context: int, scaling: RopeScaling | None) -> ModelConfig:
        """The same network for a longer context."""
        return replace(self, context=context, rope_scaling=scaling)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`. Raises HerdError on unknown or missing fields."""
        scaling = values.get("rope_scaling")
        try:
            return ModelConfig(**{**values, "rope_scaling": RopeScaling(**scaling) if scaling else None})
        except TypeError as error:
            raise HerdError(f"model config: {error}") from None


def ffn_width(dim: int, ratio: float, multiple_of: int) -> int:
    """FFN width: ratio * dim, rounded up to a multiple (the released code's rule, spec 2.3)."""
    return -(-int(ratio * dim) // multiple_of) * multiple_of


def released_ffn_width(dim: int, multiplier: float, multiple_of: int) -> int:
    """FFN width as the released Llama code derives it from ffn_dim_multiplier (spec 2.3)."""
    return -(-int(multiplier * int(2 * (4 * dim) / 3)) // multiple_of) * multiple_of


def _llama(
    layers: int, dim: int, heads: int, ffn_dim: int, head_dim: int = 128, tied: bool = False, factor: float = 8.0
) -> ModelConfig:
    scaling = RopeScaling(factor=factor)
    return ModelConfig(layers, dim, heads, 8, ffn_dim, 128_256, head_dim, 131_072, tied, rope_scaling=scaling)


LLAMA3 = {  # paper Table 3; 1B and 3B from the released Llama 3.2 configurations (spec 2.1)
    "1B": _llama(16, 2048, 32, 8192, head_dim=64, tied=True, factor=32.0),
    "3B": _llama(28, 3072, 24, 8192, tied=True, factor=32.0),
    "8B": _llama(32, 4096, 32, 14_336),
    "70B": _llama(80, 8192, 64, 28_672),
    "405B": _llama(126, 16_384, 128, 53_248),
}
