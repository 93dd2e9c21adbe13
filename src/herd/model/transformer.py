"""The dense Llama network (paper 3.2, spec 2.3): RMSNorm, grouped-query attention with RoPE, SwiGLU.

Weight names are Meta's. No parallel code lives here; `train/parallel/` applies it from outside.

Shape suffixes: B batch, T tokens, D model dim, H heads, K key-value heads, E head dim, F ffn dim, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.model import fused
from herd.model.attention import attend
from herd.model.cache import PagedCache
from herd.model.config import ModelConfig
from herd.model.rope import rotary_frequencies, rotary_table, rotate


class RMSNorm(nn.Module):
    """y = weight * x / rms(x), the quotient in float32 and cast back before the weight (spec 2.3)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        if fused.applies(x_BTD, self.weight):
            return fused.rms_norm(x_BTD, self.weight, self.eps)
        x = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)).type_as(x_BTD)


class Attention(nn.Module):
    """Grouped-query attention. `attend` is replaced where the sequence is spread over ranks; heads are counted by the
    projections' outputs, of which a rank may compute some."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.attend = layer, config.head_dim, attend
        self.wq = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: PagedCache | None
    ) -> Tensor:
        weights = (self.wq.weight, self.wk.weight, self.wv.weight)
        if fused.applies(x_BTD, *weights):
            q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in fused.project(x_BTD, weights))
            q, k, v = fused.rotate_heads(q, *rope), fused.rotate_heads(k, *rope), v.transpose(1, 2)
        else:
            q_BTHE = rotate(self.wq(x_BTD).unflatten(-1, (-1, self.head_dim)), *rope)
            k_BTKE = rotate(self.wk(x_BTD).unflatten(-1, (-1, self.head_dim)), *rope)
            v_BTKE = self.wv(x_BTD).unflatten(-1, (-1, self.head_dim))
            q, k, v = (t.transpose(1, 2) for t in (q_BTHE, k_BTKE, v_BTKE))
        mixed = self.attend(q, k, v, mask) if cache is None else cache.attend(self.layer, q, k, v)
        return self.wo(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        weights = (self.w1.weight, self.w3.weight, self.w2.weight)
        if fused.applies(x_BTD, *weights):
            return fused.swiglu(x_BTD, *weights)
        return self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: PagedCache | None
    ) -> Tensor:
        h_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rope, mask, cache)
        return h_BTD + self.feed_forward(self.ffn_norm(h_BTD))


class Transformer(nn.Module):
    """Token ids (B, T) in, logits (B, T, V) out, in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.output.weight = self.tok_embeddings.weight
        self.reset_rotary()

    def reset_rotary(self) -> None:
        """Compute the rotary table, which is no weight: (context, head_dim / 2) cosines and sines, float32."""
        config = self.config
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self._cos_TF, self._sin_TF = rotary_table(frequencies, config.context)

    @property
    def rotary(self) -> tuple[Tensor, Tensor]:
        return self._cos_TF, self._sin_TF

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transformer:
        """Move with the weights, but keep the rotary table in float32 when the weights are cast to bfloat16."""
        super()._apply(fn, recurse)
        device = self.norm.weight.device
        self._cos_TF, self._sin_TF = self._cos_TF.to(device), self._sin_TF.to(device)
        return self

    def forward(self, tokens_BT: Tensor, mask: Tensor | None = None, cache: PagedCache | None = None) -> Tensor:
        logits_BTV = self.output(self.hidden(tokens_BT, mask, cache))
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))

    def hidden(self, tokens_BT: Tensor, mask: Tensor | None = None, cache: PagedCache | None = None) -> Tensor:
        """Normalised state before the output head, (B, T, D). Raises ValueError past the context length.

        With a cache, the tokens are those of the pass that it was begun for, (1, N), and it masks by itself.
        """
        if cache is not None and mask is not None:
            raise ValueError("a mask and a cache: the cache masks by itself")
        end = tokens_BT.shape[1] if cache is None else cache.end
        if end > self.config.context:
            raise ValueError(f"{end} tokens do not fit the context of {self.config.context}")
        positions = slice(0, end) if cache is None else cache.positions
        rope = (self._cos_TF[positions], self._sin_TF[positions])
        h_BTD = self.tok_embeddings(tokens_BT)
        for block in self.layers:
            h_BTD = block(h_BTD, rope, mask, cache)
        return self.norm(h_BTD)


INIT_STD = 0.02
INIT_STD_DIM = 1024


def init_weights(model: Transformer, seed: int) -> None:
    """Set every weight of a network to its `initial_weight`."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(initial_weight(model.config, name, weight.shape, seed))


def initial_weight(config: ModelConfig, name: str, shape: torch.Size, seed: int) -> Tensor:
    """Initial value of the weight of this name, float32, on the CPU.

    As torchtitan's Llama 3 does (spec 2.3; the paper does not say), with two changes for small networks. A tied head
    needs embeddings of std dim^-0.5, or logits would start at sqrt(dim). And below a width of 1,024 the std of 0.02
    grows as 1 / sqrt(dim): at width 96, 0.065 instead of 0.02 took 250 steps from 5.44 to 5.15 nats.

    The draw depends on seed and name alone: a rank of a mesh draws what it holds, and every mesh starts alike.
    """
    weight = torch.empty(shape, dtype=torch.float32)
    if len(shape) == 1:
        return weight.fill_(1.0)
    drawn = int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:6], "big")
    generator = torch.Generator().manual_seed(drawn)
    parts = name.split(".")
    if parts[0] == "layers":
        std, cut = INIT_STD * max(1.0, (INIT_STD_DIM / config.dim) ** 0.5), 2.0
        if parts[-2] not in ("wq", "wk", "wv", "w1"):
            std /= (2 * (int(parts[1]) + 1)) ** 0.5
    elif parts[0] == "output" or config.tied_embeddings:
        std, cut = config.dim**-0.5, 3.0
    else:
        return weight.normal_(generator=generator)
    return nn.init.trunc_normal_(weight, 0.0, std, -cut * std, cut * std, generator=generator)


def document_mask(documents_BT: Tensor) -> Tensor:
    """Causal mask that also blocks attention between documents packed in one row, shape (B, 1, T, T).

    `documents_BT` numbers the document of each token (paper 3.2: matters in training on very long sequences).
    """
    length = documents_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    return (causal & (documents_BT[:, :, None] == documents_BT[:, None, :]))[:, None]
