"""How well a model predicts held-out documents: nats a token, and bits a byte so that tokenizers can be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from herd.data.shards import HeldOut
from herd.evidence import Claim
from herd.intervals import Interval, paired_bootstrap, ratio_bootstrap
from herd.model.transformer import Transformer

BATCH_TOKENS = 8192
CHANGE_SAMPLES, CHANGE_CONFIDENCE = 1000, 0.95


@dataclass(frozen=True)
class DocumentLosses:
    """For each scored document: summed loss in nats, tokens predicted, and the bytes they stand for."""

    ids: list[str]
    kinds: list[str]
    languages: list[str]
    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    @property
    def nats_per_token(self) -> float:
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    def bits_per_byte_interval(self, seed: int, samples: int, confidence: float) -> Interval:
        """Bootstrap over documents."""
        return ratio_bootstrap(self.nats / math.log(2), self.bytes.astype(float), seed, samples, confidence)

    def claim(self, id: str, what: str) -> Claim:
        """The loss in nats a token as a claim."""
        return Claim(id, what, self.nats_per_token, "nats/token", len(self.ids), "held-out documents")

    def change_claim(self, before: DocumentLosses, id: str, what: str, seed: int) -> Claim:
        """How the loss in nats a token differs from `before` on the same documents, with a paired interval."""
        low, high = paired_bootstrap(
            self.nats, before.nats, self.tokens.astype(float), seed, CHANGE_SAMPLES, CHANGE_CONFIDENCE
        )
        change = self.nats_per_token - before.nats_per_token
        method = "paired bootstrap over documents"
        n, of = len(self.ids), "held-out documents"
        return Claim(id, what, change, "nats/token", n, of, low, high, CHANGE_CONFIDENCE, method)

    def select(self, keep: np.ndarray) -> DocumentLosses:
        """The documents where the boolean array is true."""
        pick = [i for i, chosen in enumerate(keep) if chosen]
        ids, kinds, languages = ([values[i] for i in pick] for values in (self.ids, self.kinds, self.languages))
        return DocumentLosses(ids, kinds, languages, self.nats[keep], self.tokens[keep], self.bytes[keep])


@torch.inference_mode()
def score_documents(
    model: Transformer, heldout: HeldOut, context: int, dtype: torch.dtype, max_documents: int, max_tokens: int = 1024
) -> DocumentLosses:
    """Score the first `max_tokens` tokens of the first `max_documents` documents, in windows of `context` tokens.

    Each window starts without memory of the one before; every token but a document's first is predicted once.
    Bytes of a document cut short are its bytes in proportion to the tokens scored.
    """
    model.eval()
    count = min(max_documents, len(heldout.ids))
    windows, owners = _windows(heldout, count, context, max_tokens)
    device = model.tok_embeddings.weight.device
    nats = np.zeros(count)
    rows = max(1, BATCH_TOKENS // context)
    for start in range(0, len(windows), rows):
        batch = torch.from_numpy(windows[start : start + rows]).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            logits = model(batch[:, :-1].clamp(min=0))
        losses = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none", ignore_index=-1)
        np.add.at(nats, owners[start : start + rows], losses.view(len(batch), -1).cpu().double().sum(1).numpy())
    lengths = np.diff(heldout.starts[: count + 1])
    tokens = np.minimum(lengths, max_tokens) - 1
    scored_bytes = heldout.bytes[:count] * tokens / np.maximum(1, lengths - 1)
    return DocumentLosses(
        heldout.ids[:count], heldout.kinds[:count], heldout.languages[:count], nats, tokens, scored_bytes
    )


def _windows(heldout: HeldOut, count: int, context: int, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of context + 1 token ids, -1 behind a document's end, and the document each belongs to."""
    windows, owners = [], []
    for document in range(count):
        start, end = heldout.starts[document], heldout.starts[document + 1]
        tokens = heldout.tokens[start : min(end, start + max_tokens)].astype(np.int64)
        for first in range(0, len(tokens) - 1, context):
            window = tokens[first : first + context + 1]
            windows.append(np.pad(window, (0, context + 1 - len(window)), constant_values=-1))
            owners.append(document)
    return np.stack(windows), np.array(owners)
