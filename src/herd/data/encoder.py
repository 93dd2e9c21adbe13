"""A small transformer encoder that is distilled from a judge's answers (paper 3.1.1 took DistilRoBERTa for it).

Hashed words are its input, so it needs no tokenizer of its own and reads what curation has computed already. Against
the linear model it sees order beyond pairs of words, and costs more: 260 documents a second and core where that scores
36,000. With the labels of a small run it is the worse of the two (AUROC 0.87 against 0.93 from 195 judgments): compare
the figures of both before switching to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from herd.console import HerdError, one_line
from herd.data.words import Tokens

# B batch, T words, D width, H heads.
LARGEST_BUCKETS, LARGEST_WIDTH, LARGEST_LAYERS, LARGEST_WORDS = 1 << 20, 4096, 64, 8192
SCHEMA = 1


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes. `words` are read of a document: three quarters from its start, the rest from its middle."""

    buckets: int = 1 << 14
    width: int = 128
    layers: int = 2
    heads: int = 4
    words: int = 256


class Block(nn.Module):
    """Attention to all words, then a feed-forward layer, each after a norm and added."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.wqkv = nn.Linear(config.width, 3 * config.width)
        self.wo = nn.Linear(config.width, config.width)
        self.w1, self.w2 = nn.Linear(config.width, 4 * config.width), nn.Linear(4 * config.width, config.width)

    def forward(self, x_BTD: Tensor, seen_B11T: Tensor) -> Tensor:
        batch, words, width = x_BTD.shape
        parts = self.wqkv(self.attention_norm(x_BTD)).view(batch, words, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_B11T)
        x_BTD = x_BTD + self.wo(mixed.transpose(1, 2).reshape(batch, words, width))
        return x_BTD + self.w2(F.gelu(self.w1(self.ffn_norm(x_BTD))))


class Encoder(nn.Module):
    """Word buckets (B, T), 0 for padding, to one logit a document, (B,): the mean of the last layer, projected."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.buckets, config.width, padding_idx=0)
        self.position = nn.Embedding(config.words, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 1)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=config.width**-0.5)

    def forward(self, ids_BT: Tensor) -> Tensor:
        seen_BT = ids_BT != 0
        x_BTD = self.embedding(ids_BT) + self.position(torch.arange(ids_BT.shape[1], device=ids_BT.device))
        for block in self.blocks:
            x_BTD = block(x_BTD, seen_BT[:, None, None, :])
        weight_BT1 = seen_BT[:, :, None].to(x_BTD.dtype)
        mean_BD = (self.norm(x_BTD) * weight_BT1).sum(1) / weight_BT1.sum(1)
        return self.head(mean_BD).squeeze(-1)

    @torch.inference_mode()
    def score_batch(self, documents: Sequence[Tokens], batch: int = 32) -> NDArray[np.float64]:
        """Probability of yes for each document, shape (documents,); short ones are run together, to pad little."""
        self.eval()
        rows = [word_ids(tokens, self.config) for tokens in documents]
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
        scores = np.zeros(len(rows))
        device = self.head.weight.device
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            logits = self(padded([rows[index] for index in part]).to(device))
            scores[part] = torch.sigmoid(logits.float()).cpu().numpy()
        return scores

    def save(self, folder: Path, name: str) -> None:
        """Write NAME.safetensors and NAME.json."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
        facts = {"schema": SCHEMA, **asdict(self.config)}
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")

    @staticmethod
    def load(folder: Path, name: str) -> Encoder:
        """What `save` wrote. Raises HerdError for files that are missing, damaged or do not belong together."""
        try:
            facts = json.loads((folder / f"{name}.json").read_text("utf-8"))
            config = EncoderConfig(**{key: int(facts[key]) for key in asdict(EncoderConfig())})
            limits = (LARGEST_BUCKETS, LARGEST_WIDTH, LARGEST_LAYERS, LARGEST_WIDTH, LARGEST_WORDS)
            bounded = all(0 < value <= most for value, most in zip(asdict(config).values(), limits, strict=True))
            if not bounded or config.width % config.heads:
                raise ValueError(f"sizes {asdict(config)}")
            encoder = Encoder(config)
            encoder.load_state_dict(load_file(folder / f"{name}.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise HerdError(f"{folder / name}: no encoder can be read here ({one_line(error)})") from None
        return encoder


def word_ids(tokens: Tokens, config: EncoderConfig) -> NDArray[np.int64]:
    """Buckets from 1 up of the words that are read; one bucket where a document has no word."""
    words = tokens.words
    if len(words) > config.words:
        head = config.words - config.words // 4
        middle = max(head, (len(words) - config.words // 4) // 2)
        words = np.concatenate([words[:head], words[middle : middle + config.words // 4]])
    ids = (words % np.uint64(config.buckets - 1)).astype(np.int64) + 1
    return ids if len(ids) else np.ones(1, np.int64)


def padded(rows: Sequence[NDArray[np.int64]]) -> Tensor:
    """Rows as one tensor (B, T), filled with 0."""
    out = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(out)


Trainer = Callable[[nn.Module, Callable[[int], Tensor], int], None]


def train_encoder(
    documents: Sequence[Tokens],
    labels: Sequence[bool],
    seed: int,
    config: EncoderConfig | None = None,
    epochs: int = 6,
    batch: int = 16,
    trainer: Trainer | None = None,
) -> Encoder:
    """An encoder whose `score_batch` is the probability of a yes; both answers weigh the same.

    `trainer(module, loss_of, steps)` trains: `loss_of(step)` is the mean loss of that step's batch with its graph.
    Without one AdamW does in one thread, so that the weights are the same whatever the machine's cores. Give the
    documents sorted by id. Raises HerdError where all labels are equal.
    """
    sizes = config or EncoderConfig()
    targets = torch.tensor([float(label) for label in labels])
    yes = float(targets.sum())
    if not 0 < yes < len(targets):
        raise HerdError(f"encoder: {int(yes)} of {len(targets)} labels are yes; training needs documents of both kinds")
    rows = [word_ids(tokens, sizes) for tokens in documents]
    weights = torch.where(targets > 0, len(targets) / (2 * yes), len(targets) / (2 * (len(targets) - yes)))
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(epochs)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(sizes)

    def loss_of(step: int) -> Tensor:
        part = order[step * batch : (step + 1) * batch]
        device = encoder.head.weight.device
        logits = encoder(padded([rows[index] for index in part]).to(device))
        return F.binary_cross_entropy_with_logits(logits, targets[part].to(device), weights[part].to(device))

    (trainer or adamw)(encoder, loss_of, -(-len(order) // batch))
    return encoder.eval()


def adamw(module: nn.Module, loss_of: Callable[[int], Tensor], steps: int, learning_rate: float = 1e-3) -> None:
    """The default trainer: a tenth of the steps of warm-up, then a linear decay to 0, in one thread."""
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(1, steps // 10)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        module.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min((step + 1) / warm, (steps - step) / max(1, steps - warm))
            optimizer.zero_grad()
            loss_of(step).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
